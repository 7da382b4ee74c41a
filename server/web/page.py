"""A request for a page by a signed-in user: how a handler asks REST and answers."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import Environment
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from server import __version__
from server.access.identity import User
from server.web.client import Client
from server.web.templates import url

Form = ImmutableMultiDict[str, str]


class Visitor(NamedTuple):
    """Who looks at a page. `form_token`: what forms of the page hold; `can_sign_out`: not where a proxy signs in."""

    user: User
    form_token: str
    can_sign_out: bool


class Page:
    """What a page's handler gets.

    `query`: the parameters in the URL. `form`: the fields of a form that was sent; its token was checked already.
    """

    def __init__(
        self, request: Request, visitor: Visitor, form: Form, client: Client, look: Environment, now: datetime
    ) -> None:
        self.request = request
        self.path = request.path_params
        self.query = request.query_params
        self.form = form
        self.now = now
        self._visitor = visitor
        self._client = client
        self._look = look

    async def get(self, *path: str, **query: str | None) -> Any:
        """What REST answers to a GET of a path, which is given by its segments. Raises Refused."""
        return await self._client.ask(self._visitor.user, "GET", path, query)

    async def send(self, method: str, *path: str, body: object = None, **query: str | None) -> Any:
        """What REST answers to a request that changes something. Raises Refused."""
        return await self._client.ask(self._visitor.user, method, path, query, body)

    def show(self, template: str, status: int = 200, **values: object) -> Response:
        """The page that a template makes of these values."""
        return HTMLResponse(render(self._look, template, self._visitor, self.request, self.now, values), status)

    def see(self, *path: str, **query: object) -> Response:
        """Send the browser to another page, as after a form."""
        return RedirectResponse(url(*path, **query), 303)


Handler = Callable[[Page], Awaitable[Response]]


def render(
    look: Environment,
    template: str,
    visitor: Visitor | None,
    request: Request,
    now: datetime,
    values: Mapping[str, object],
) -> str:
    """The HTML of a template, with what the layout needs. `visitor`: None when nobody is signed in."""
    here = {"visitor": visitor, "here": request.scope["path"], "now": now, "version": __version__}
    return look.get_template(template).render({**here, **values})
