"""What several pages ask REST in the same way."""

from collections.abc import Awaitable
from typing import Any

from starlette.responses import Response

from server.web.client import Refused
from server.web.page import Page

FORBIDDEN = 403


async def if_allowed(asking: Awaitable[Any]) -> Any:
    """What REST answers, or None where the user may not ask that: the rest of a page is shown all the same."""
    try:
        return await asking
    except Refused as error:
        if error.status != FORBIDDEN:
            raise
        return None


def which_namespace(page: Page, refused: Refused) -> Response:
    """The page that asks for a namespace, for users who may see what is in one alone. Raises other refusals again."""
    if refused.status != FORBIDDEN:
        raise refused
    namespace, path = page.query.get("namespace", ""), page.request.scope["path"]
    return page.show("namespace.html", FORBIDDEN, refused=refused, namespace=namespace, path=path)
