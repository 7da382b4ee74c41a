"""The REST API, under /api/v1, for the controller, the command line and scripts; and the probes beside it.

`api` answers each operation, `reading` reads requests within limits, `guard` stands before all of it: who calls, and
how a refusal is told. The list of operations in `api` is what is routed and what /openapi.json describes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from server import openapi, records
from server.models import Actor
from server.problems import Unavailable
from server.rest.api import BODIES, OPERATIONS, Api, ControlPlane
from server.rest.guard import Authenticated, Problems
from server.rest.reading import json_response
from server.store import Store

PREFIX = "/api/v1"
READY_S = 5
"""Seconds within which the store must answer for the server to be ready."""


def routes(control: ControlPlane, store: Store, authenticate: Callable[[str], Actor | None]) -> list[BaseRoute]:
    """The routes of the API, its description and the probes.

    `authenticate`: whose token this is, or None for one that is not known; it must compare in constant time.
    """
    api = Api(control, store)
    paths: dict[str, dict[str, Callable[[Request], Awaitable[Response]]]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation.handler.__get__(api)
    guards = [Middleware(Problems), Middleware(Authenticated, authenticate=authenticate)]
    return [
        Route("/healthz", _alive),
        Route("/readyz", _ready(store), middleware=[Middleware(Problems)]),
        Route("/openapi.json", _description(openapi.document(OPERATIONS, BODIES, PREFIX))),
        Mount(PREFIX, routes=[_route(path, handlers) for path, handlers in paths.items()], middleware=guards),
    ]


def _route(path: str, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> Route:
    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(handlers))


async def _alive(request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _ready(store: Store) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        try:
            async with asyncio.timeout(READY_S):
                await store.write(records.ping, None)
        except TimeoutError:
            raise Unavailable(f"the database did not answer within {READY_S} s") from None
        return PlainTextResponse("ok\n")

    return ready


def _description(document: object) -> Callable[[Request], Awaitable[Response]]:
    async def description(request: Request) -> Response:
        return json_response(document)

    return description
