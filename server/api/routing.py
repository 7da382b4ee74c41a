"""Routing: builds an ASGI application from the table of operations, with a check of permissions before each handler."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.identity import Identity
from server.api import openapi
from server.api.answers import json_response
from server.api.conditions import answered
from server.api.middleware import Authenticated, Problems, nowhere
from server.api.operations import BODIES, OPERATIONS, Operation
from server.api.services import Services
from server.errors import NotFound, Unavailable
from server.store.ownership import probe

PREFIX = "/api/v1"
COMPRESS_FROM = 1024
"""Minimum bytes of an answer that is compressed, for clients that accept gzip."""

_NO_GZIP = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|\Z)", re.IGNORECASE)
Endpoint = Callable[[Request], Awaitable[Response]]
Nowhere = Callable[[Request, Exception], Awaitable[Response]]


def application(routes: Sequence[BaseRoute], nowhere: Nowhere = nowhere) -> ASGIApp:
    """The ASGI application of these routes. `nowhere`: answers other paths; by default with problem details."""
    compressed = Middleware(_Compressed, minimum_size=COMPRESS_FROM, compresslevel=5)
    return Starlette(routes=routes, exception_handlers={HTTPException: nowhere}, middleware=[compressed])


def routes(services: Services, identity: Identity) -> list[BaseRoute]:
    """The routes of the API, of its description and of the probes."""
    problems, authenticated = Middleware(Problems), Middleware(Authenticated, identity=identity)
    open_ = _routes((it for it in OPERATIONS if it.needs is None), services, identity)
    guarded = _routes((it for it in OPERATIONS if it.needs is not None), services, identity)
    return [
        ExactRoute("/healthz", _alive),
        ExactRoute("/readyz", _ready(services), middleware=[problems]),
        ExactRoute("/openapi.json", _description),
        *(
            ExactRoute(PREFIX + route.path, route.endpoint, methods=route.methods, middleware=[problems])
            for route in open_
        ),
        ExactMount(PREFIX, routes=guarded, middleware=[problems, authenticated]),
    ]


def as_user(services: Services, identity: Identity) -> ASGIApp:
    """The operations for callers inside this process, who put the user into the request's state.

    It must never be served: whoever calls it is whom he says he is.
    """
    guarded = _routes((it for it in OPERATIONS if it.needs is not None), services, identity)
    mounted = ExactMount(PREFIX, routes=guarded, middleware=[Middleware(Problems)])
    return Starlette(routes=[mounted], exception_handlers={HTTPException: nowhere})


class _Compressed(GZipMiddleware):
    """gzip for clients that accept it. Starlette's own ignores `gzip;q=0`, which refuses it (RFC 9110, 12.4.2)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, without Accept-Encoding if it refuses gzip."""
        if scope["type"] == "http" and _NO_GZIP.search(Headers(scope=scope).get("accept-encoding", "")):
            scope = {**scope, "headers": [it for it in scope["headers"] if it[0] != b"accept-encoding"]}
        await super().__call__(scope, receive, send)


class ExactRoute(Route):
    """The only route of its path. Starlette's own also matches the path with a newline after it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path_regex = _whole(self.path_regex)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match any method: no other route has this path, and this one answers 405 with the allowed methods."""
        match, child = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL else match), child


class ExactMount(Mount):
    """Routes below a prefix. Starlette's own drops a newline at the end of the path."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path_regex = _whole(self.path_regex)


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"{pattern.pattern.removesuffix('$')}\Z", pattern.flags | re.DOTALL)


def _routes(operations: Iterable[Operation], services: Services, identity: Identity) -> list[Route]:
    paths: dict[str, dict[str, Endpoint]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _authorized(operation, services, identity)
    return [_route(path, handlers) for path, handlers in paths.items()]


def _authorized(operation: Operation, services: Services, identity: Identity) -> Endpoint:
    """The handler of an operation, behind the check of the caller's permissions."""

    async def handler(request: Request) -> Response:
        if "\0" in request.scope["path"]:  # PostgreSQL does not accept a NUL in a query
            raise NotFound("nothing is at this path")
        for permission in await operation.permissions(services, request):
            await identity.authorize(request.state.user, permission)
        if operation.method in {"GET", "POST"}:
            await services.catch_up()
        answer = await operation.handler(services, request)
        return answered(request, answer) if operation.method == "GET" else answer

    return handler


def _route(path: str, handlers: Mapping[str, Endpoint]) -> Route:
    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return ExactRoute(path, endpoint, methods=list(handlers))


async def _alive(request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _ready(services: Services) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        if services.stopping():
            raise Unavailable("this server stops")
        if why := await services.store.refuses(probe, datetime.now(UTC)):
            raise Unavailable(why)
        return PlainTextResponse("ok\n")

    return ready


async def _description(request: Request) -> Response:
    return json_response(_document())


@cache
def _document() -> object:
    return openapi.document(OPERATIONS, BODIES, PREFIX)
