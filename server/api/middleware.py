"""Middleware of the API: authentication by token, and errors as problem details (RFC 9457)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.identity import Identity
from server.errors import MEDIA_TYPE, ApiException, Unauthorized, Unavailable
from server.store.engine import StoreClosedError

log = logging.getLogger(__name__)


class Problems:
    """Answers errors of the application as problem details, and logs unexpected ones."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. An error after the answer has begun is raised to uvicorn, which closes the connection."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.debug("a client disconnected before its request was read")
        except Exception as error:
            if started:
                raise
            if not isinstance(error, (ApiException, HTTPException, StoreClosedError)):
                log.exception("request failed", extra={"method": scope["method"], "path": scope["path"]})
            await _response(error)(scope, receive, send)


class Authenticated:
    """Authenticates callers by bearer token, and sets `request.state.user`."""

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self._app = app
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises Unauthorized, and Unavailable when tokens cannot be checked now."""
        scope.setdefault("state", {})["user"] = await self._identity.user(bearer(scope))
        await self._app(scope, receive, send)


def bearer(scope: Scope) -> str:
    """The bearer token of a request (RFC 6750, section 2.1). Raises Unauthorized."""
    given = Headers(scope=scope).getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("this needs the header 'Authorization: Bearer TOKEN'")
    return token.strip()


async def nowhere(_request: Request, error: Exception) -> Response:
    """The answer for an unknown path, or a method that the path does not have."""
    return _response(error)


def _response(error: Exception) -> Response:
    """The answer for an error. It discloses nothing of an unexpected one."""
    if isinstance(error, HTTPException):
        title = HTTPStatus(error.status_code).phrase
        detail = "nothing is at this path" if error.status_code == HTTPStatus.NOT_FOUND else error.detail
        body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": detail}
        return _problem_response(error.status_code, body, dict(error.headers or {}))
    problem = Unavailable("the server is stopping") if isinstance(error, StoreClosedError) else error
    if not isinstance(problem, ApiException):
        problem = ApiException("the server failed: see its log")
    return _problem_response(int(problem.status), problem.body(), dict(problem.headers))


def _problem_response(status: int, body: Mapping[str, object], headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)
