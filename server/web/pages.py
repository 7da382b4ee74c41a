"""The table of pages: what is at which path."""

from collections.abc import Sequence
from typing import NamedTuple

from server.web import overview
from server.web.page import Handler


class PageRoute(NamedTuple):
    """A page. `path`: as Starlette writes it; its parts are in `Page.path`."""

    method: str
    path: str
    handler: Handler


PAGES: Sequence[PageRoute] = (
    PageRoute("GET", "/", overview.show_overview),
    PageRoute("GET", "/fleet", overview.show_fleet),
)
