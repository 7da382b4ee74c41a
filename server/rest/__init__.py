"""The REST API, under /api/v1, for the controller, the command line and scripts; and the probes beside it.

`api` answers each operation, `reading` reads requests within limits, `guard` stands before all of it: who calls, and
how a refusal is told. What a caller may do is asked before each operation. The list of operations in `api` is what is
routed and what /openapi.json describes.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
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

from server import openapi, records
from server.enrolment import Enrolment
from server.identity import Identity
from server.problems import NotFound, Unavailable
from server.rest.api import BODIES, OPERATIONS, Api, ControlPlane, Operation
from server.rest.conditions import answered
from server.rest.guard import Authenticated, Problems, nowhere
from server.rest.reading import json_response
from server.restores import Restores
from server.store import Store

PREFIX = "/api/v1"
PACKED = 1024
"""Bytes of an answer from which it is compressed for those who take gzip."""


_NO_GZIP = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|\Z)", re.IGNORECASE)
Handler = Callable[[Request], Awaitable[Response]]


def application(routes: Sequence[BaseRoute]) -> ASGIApp:
    """These routes, and a problem where there is none."""
    packed = Middleware(_Packed, minimum_size=PACKED, compresslevel=5)
    return Starlette(routes=routes, exception_handlers={HTTPException: nowhere}, middleware=[packed])


def routes(
    control: ControlPlane, store: Store, enrolment: Enrolment, identity: Identity, restores: Restores
) -> list[BaseRoute]:
    """The routes of the API, its description and the probes."""
    api = Api(control, store, enrolment, restores)
    problems, known = Middleware(Problems), Middleware(Authenticated, identity=identity)
    open_ = _routes((it for it in OPERATIONS if it.needs is None), api, identity)
    guarded = _routes((it for it in OPERATIONS if it.needs is not None), api, identity)
    return [
        _Route("/healthz", _alive),
        _Route("/readyz", _ready(store), middleware=[problems]),
        _Route("/openapi.json", _description(openapi.document(OPERATIONS, BODIES, PREFIX))),
        *(_Route(PREFIX + route.path, route.endpoint, methods=route.methods, middleware=[problems]) for route in open_),
        _Mount(PREFIX, routes=guarded, middleware=[problems, known]),
    ]


class _Packed(GZipMiddleware):
    """gzip for those who take it. Starlette's own overlooks a weight of 0, by which they do not (RFC 9110, 12.4.2)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and _NO_GZIP.search(Headers(scope=scope).get("accept-encoding", "")):
            scope = {**scope, "headers": [it for it in scope["headers"] if it[0] != b"accept-encoding"]}
        await super().__call__(scope, receive, send)


class _Route(Route):
    """The one route of its path, which it takes as a whole. Starlette's own also takes one that a newline follows."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path_regex = _whole(self.path_regex)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Take any method: no other route would take it, and this one tells which methods there are."""
        match, child = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL else match), child


class _Mount(Mount):
    """Routes below a prefix, whatever characters follow it. Starlette's own loses a newline at the end."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path_regex = _whole(self.path_regex)


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"{pattern.pattern.removesuffix('$')}\Z", pattern.flags | re.DOTALL)


def _routes(operations: Iterable[Operation], api: Api, identity: Identity) -> list[Route]:
    paths: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _authorized(operation, api, identity)
    return [_route(path, handlers) for path, handlers in paths.items()]


def _authorized(operation: Operation, api: Api, identity: Identity) -> Handler:
    """An operation, for those who may."""

    async def handler(request: Request) -> Response:
        if "\0" in request.scope["path"]:  # PostgreSQL cannot even be asked for it
            raise NotFound("nothing is at this path")
        for permission in await operation.permissions(api, request):
            await identity.authorize(request.state.user, permission)
        answer = await operation.handler(api, request)
        return answered(request, answer) if operation.method == "GET" else answer

    return handler


def _route(path: str, handlers: Mapping[str, Handler]) -> Route:
    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return _Route(path, endpoint, methods=list(handlers))


async def _alive(request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _ready(store: Store) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        if why := await store.refuses(records.probe, datetime.now(UTC)):
            raise Unavailable(why)
        return PlainTextResponse("ok\n")

    return ready


def _description(document: object) -> Callable[[Request], Awaitable[Response]]:
    async def description(request: Request) -> Response:
        return json_response(document)

    return description
