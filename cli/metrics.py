"""Serves what Prometheus scrapes and what Kubernetes probes, over plain HTTP: /metrics, /healthz and /readyz.

This runs on the part's own event loop, so that a loop that hangs is not called healthy. Only the text of the metrics is
made in a thread, because it may be long.
"""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import click
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cli import options
from listener import http
from listener.accept import ListenError, bind

ANSWER_S = 5.0
"""Seconds to wait for a part's answer to a probe."""

Ready = Callable[[], Awaitable[str]]
"""Says what a part waits for before it is ready; empty when it is ready."""


@asynccontextmanager
async def serving(
    listen: str, registry: CollectorRegistry, ready: Ready, healthy: Ready | None = None
) -> AsyncIterator[None]:
    """Serve at ADDRESS:PORT while entered; nothing when that is empty. Raises click.ClickException, with the remedy.

    `healthy`: says what only a restart can repair, empty when nothing is wrong. An unhealthy part is not ready either.
    """
    if not listen:
        yield
        return
    try:
        listening = bind(*options.address(listen, "--metrics-listen"), "--metrics-listen")
    except ListenError as error:
        raise click.ClickException(str(error)) from None
    async with http.serving(listening, Part(registry, ready, healthy or always_ready).answer):
        yield


async def always_ready() -> str:
    """For a part that waits for nothing."""
    return ""


class Part:
    """Answers the requests for a part's metrics and probes."""

    def __init__(self, registry: CollectorRegistry, ready: Ready, healthy: Ready) -> None:
        self._registry = registry
        self._ready = ready
        self._healthy = healthy
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, request: http.Request) -> http.Answer:
        """The answer to one request."""
        match request.path:
            case "/metrics":
                async with self._one_at_a_time:
                    return await asyncio.to_thread(self._metrics, request)
            case "/healthz":
                return await _probe(self._healthy)
            case "/readyz":
                return await _probe(self._healthy, self._ready)
        return http.text(HTTPStatus.NOT_FOUND, "this path does not exist: use /metrics, /healthz or /readyz")

    def _metrics(self, request: http.Request) -> http.Answer:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        content, headers = encode(self._registry), {"Vary": "Accept, Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = gzip.compress(content, 5), "gzip"
        return http.Answer(HTTPStatus.OK, content, content_type, headers)


async def _probe(*questions: Ready) -> http.Answer:
    """503 with the first problem, or 200."""
    try:
        async with asyncio.timeout(ANSWER_S):
            for question in questions:
                if wrong := await question():
                    return http.text(HTTPStatus.SERVICE_UNAVAILABLE, wrong)
    except TimeoutError:
        return http.text(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer within {ANSWER_S:.0f} s")
    return http.text(HTTPStatus.OK, "ok")
