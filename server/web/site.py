"""Routes the pages: finds out who looks, refuses what another site caused, calls the page's handler, shows errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from server.access.identity import Identity
from server.access.proxy import ProxyUsers
from server.api.middleware import nowhere
from server.api.operations import OPERATIONS
from server.api.requests import content_of
from server.api.routing import ExactRoute, as_user
from server.api.services import Services
from server.errors import ApiException, Forbidden, Invalid, Unauthorized, UnsupportedMediaType
from server.store.engine import StoreClosedError
from server.web import guard
from server.web.client import Client, Refused
from server.web.page import Form, Handler, Page, Visitor, render
from server.web.pages import PAGES
from server.web.sign_in import SignedIn, SignIn, keep
from server.web.static import Static
from server.web.templates import environment, url

log = logging.getLogger(__name__)

MAX_FORM, MAX_FIELDS = 64 << 10, 200
"""Maximum bytes and fields of a form."""
LIVE_S = 600.0
"""Seconds after which a stream ends. The browser then connects again, and its session is checked again."""

NEWS = next(it for it in OPERATIONS if it.path == "/news")
"""REST's stream of changes, which the pages' own is."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Site:
    """The endpoints of all pages."""

    def __init__(self, services: Services, identity: Identity, proxy: ProxyUsers | None) -> None:
        self._services, self._identity = services, identity
        self._client = Client(as_user(services, identity))
        self._entrance = SignIn(services.sessions, identity, proxy)
        self._sessions = services.sessions
        self._stream = services.stream
        self._clock = services.clock
        self._files = Static()
        self._look = environment(self._files)

    def routes(self) -> list[BaseRoute]:
        """The routes of the pages, of their static files and of what makes them live."""
        paths: dict[str, dict[str, Handler]] = {}
        for it in PAGES:
            paths.setdefault(it.path, {})[it.method] = it.handler
        return [
            ExactRoute("/static/{digest}/{name}", self._guarded(self._static)),
            ExactRoute("/live", self._guarded(self._live)),
            ExactRoute("/sign-in", self._guarded(self._sign_in), methods=["GET", "POST"]),
            ExactRoute("/sign-out", self._guarded(self._sign_out), methods=["POST"]),
            *(ExactRoute(path, self._page(found), methods=list(found)) for path, found in paths.items()),
        ]

    async def nowhere(self, request: Request, error: Exception) -> Response:
        """The answer for a path where nothing is, or a method that a path does not have: a page for browsers."""
        if request.method not in {"GET", "HEAD"} or "text/html" not in request.headers.get("accept", ""):
            return await nowhere(request, error)

        async def fail(_request: Request) -> Response:
            raise error

        return await self._guarded(fail)(request)

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint with the headers that protect pages, whose errors are shown as a page."""

        async def guarded(request: Request) -> Response:
            try:
                answer = await endpoint(request)
            except ClientDisconnect:
                raise
            except (Refused, ApiException, HTTPException, StoreClosedError) as error:
                answer = await self._error(request, error)
            except Exception as error:
                log.exception("page failed", extra={"method": request.method, "path": request.scope["path"]})
                answer = await self._error(request, error)
            for name, value in guard.HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return guarded

    def _page(self, handlers: Mapping[str, Handler]) -> Endpoint:
        """The endpoint of a page's handlers, by method."""

        async def page(request: Request) -> Response:
            changes = request.method not in {"GET", "HEAD"}
            if changes:
                _check_origin(request)
            signed_in = await self._entrance.who(request)
            if signed_in is None:
                return self._to_sign_in(request)
            form = await self._form(request, signed_in) if changes else Form()
            visitor = self._visitor(signed_in)
            handler = handlers[request.method if changes else "GET"]
            answer = await handler(Page(request, visitor, form, self._client, self._look, self._clock()))
            if signed_in.cookie:
                keep(request, answer, signed_in.cookie)
            return answer

        return self._guarded(page)

    async def _static(self, request: Request) -> Response:
        """A static file."""
        return await self._files.answer(request)

    async def _live(self, request: Request) -> Response:
        """Server-sent events that name the kinds that have changed, for whom REST would give them."""
        signed_in = await self._entrance.who(request)
        if signed_in is None:
            raise Unauthorized("sign in first")
        for permission in await NEWS.permissions(self._services, request):
            await self._identity.authorize(signed_in.user, permission)
        headers = {"X-Accel-Buffering": "no"}  # has nginx pass events on at once
        return StreamingResponse(_for_a_while(self._stream.stream()), 200, headers, "text/event-stream")

    async def _sign_in(self, request: Request) -> Response:
        """The page that signs in, and its form."""
        if request.method != "POST":
            signed_in = await self._entrance.who(request)
            query = request.query_params
            return self._sign_in_page(request, signed_in, query.get("code", ""), query.get("next", "/"))
        _check_origin(request)
        form = await _fields(request)
        path = guard.path_here(form.get("next", "/"))
        try:
            return await self._entrance.sign_in(request, form.get("code", ""), form.get("token", ""), path)
        except (Unauthorized, Forbidden, Invalid) as error:
            return self._sign_in_page(request, None, "", path, str(error), int(error.status))

    async def _sign_out(self, request: Request) -> Response:
        """End the session."""
        _check_origin(request)
        signed_in = await self._entrance.who(request)
        if signed_in is None:
            return RedirectResponse("/sign-in", 303)
        await self._form(request, signed_in)
        return await self._entrance.sign_out(request, signed_in)

    async def _form(self, request: Request, signed_in: SignedIn) -> Form:
        """The form that was sent. Raises Forbidden when it is not from a page of this session."""
        form = await _fields(request)
        if not self._sessions.is_form_token(signed_in.session, form.get("form_token", "")):
            raise Forbidden("this form is not from a page of your session: load the page again, and repeat the change")
        return form

    def _visitor(self, signed_in: SignedIn) -> Visitor:
        token = self._sessions.form_token(signed_in.session)
        return Visitor(signed_in.user, token, not signed_in.session.proxied)

    def _to_sign_in(self, request: Request) -> Response:
        """Lead to the page that signs in, and back.

        Who followed a link of another site may be signed in: the browser did not send the cookie. It does when this
        site itself loads the page again.
        """
        if request.method not in {"GET", "HEAD"}:
            return RedirectResponse("/sign-in", 303)
        path = request.scope["path"] + (
            f"?{query}" if (query := request.scope["query_string"].decode("latin-1")) else ""
        )
        if guard.came_from_elsewhere(request.headers):
            return self._shown(request, "again.html", None, again=guard.path_here(path))
        return RedirectResponse(url("sign-in", next=path if path != "/" else ""), 303)

    def _sign_in_page(
        self, request: Request, signed_in: SignedIn | None, code: str, path: str, error: str = "", status: int = 200
    ) -> Response:
        values = {"code": code, "next": guard.path_here(path), "error": error}
        return self._shown(request, "sign-in.html", signed_in, status, **values)

    async def _error(self, request: Request, error: Exception) -> Response:
        """The page for an error. It discloses nothing of an unexpected one."""
        try:
            signed_in = await self._entrance.who(request)
        except ApiException:
            signed_in = None
        status, title, detail = _told(error)
        errors = error.errors if isinstance(error, (Refused, ApiException)) else []
        answer = self._shown(request, "error.html", signed_in, status, title=title, detail=detail, errors=errors)
        if isinstance(error, ApiException):
            answer.headers.update({name: it for name, it in error.headers.items() if name != "WWW-Authenticate"})
        return answer

    def _shown(
        self, request: Request, template: str, signed_in: SignedIn | None, status: int = 200, **values: object
    ) -> Response:
        visitor = None if signed_in is None else self._visitor(signed_in)
        return HTMLResponse(render(self._look, template, visitor, request, self._clock(), values), status)


def _check_origin(request: Request) -> None:
    if not guard.came_from_here(request.headers):
        raise Forbidden("another site sent this form: load the page here, and repeat the change")


async def _fields(request: Request) -> Form:
    """The fields of a form, within limits. Raises UnsupportedMediaType, TooLarge, TooSlow, Invalid."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("send the form of a page")
    content = await content_of(request, MAX_FORM)
    try:
        return Form(parse_qsl(content.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise Invalid(f"the form cannot be read: it has at most {MAX_FIELDS} fields") from None


def _told(error: Exception) -> tuple[int, str, str]:
    """Status, title and detail of an error."""
    if isinstance(error, Refused):
        return error.status, error.title, error.detail
    if isinstance(error, ApiException):
        return int(error.status), error.title, error.detail
    if isinstance(error, HTTPException):
        detail = "nothing is at this path" if error.status_code == HTTPStatus.NOT_FOUND else error.detail
        return error.status_code, HTTPStatus(error.status_code).phrase, detail
    if isinstance(error, StoreClosedError):
        return 503, "Service Unavailable", "the server is stopping"
    return 500, "Internal Server Error", "the server failed: see its log"


async def _for_a_while(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream, which ends after LIVE_S."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIVE_S
    async for it in stream:
        yield it
        if loop.time() > end:
            return
