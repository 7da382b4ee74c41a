"""A proxy before a server or an API server, through which tests see requests, and spoil them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.plain import NO_TLS

KEPT = ("content-type", "content-length", "content-encoding")


class Proxy:
    """Stands before a server or an API server; at a request that `fatal` names, `strike` before or after it is done.

    `refuse`: the status with which a request is refused, or 0; `ignores`: whether it never gets an answer.
    """

    def __init__(self, url: str, admin_token: str = "", **options: Any) -> None:
        known = {"verify": NO_TLS, **options}
        self._http = httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, **known)  # noqa: S113 - watches
        self.fatal: Callable[[str, str], bool] = lambda method, path: False
        self.when = "before"
        self.admin_token = admin_token  # of what stands behind it
        self.strike: Callable[[], None] = lambda: None
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.ignores: Callable[[str, str], bool] = lambda method, path: False
        self.heard: list[tuple[str, str]] = []

    async def _answer(self, request: Request) -> Response:
        method, path = request.method, request.url.path
        self.heard.append((method, path))
        while self.ignores(method, path):
            await asyncio.sleep(0.05)
        if status := self.refuse(method, path):
            return JSONResponse({"detail": f"not now, for the {len(self.heard)}th time"}, status)
        fatal = self.fatal(method, path)
        if fatal and self.when == "before":
            self.strike()
            return Response(status_code=502)
        headers = {key: it for key, it in request.headers.items() if key != "host"}
        url = path + (f"?{request.url.query}" if request.url.query else "")
        built = self._http.build_request(method, url, headers=headers, content=await request.body())
        answer = await self._http.send(built, stream=True)
        if fatal:
            self.strike()
        kept = {key: it for key, it in answer.headers.items() if key in KEPT}
        end = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=end)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=0)
        proxy = uvicorn.Server(config)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(proxy._serve())
            while not proxy.started:
                await asyncio.sleep(0.01)
            self.port = proxy.servers[0].sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                proxy.should_exit = True
                await asyncio.wait([running])
                await self._http.aclose()
