"""Serves what Prometheus scrapes and what Kubernetes probes, over plain HTTP: /metrics, /healthz and /readyz.

All of it on the part's own event loop, so that a loop that hangs is not called healthy; only the text of the metrics is
made in a thread, for it may be long.
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
"""Seconds that a part has to say whether it is ready."""

Ready = Callable[[], Awaitable[str]]
"""What a part waits for before it is ready; empty when it is."""


@asynccontextmanager
async def serving(
    listen: str, registry: CollectorRegistry, ready: Ready, healthy: Ready | None = None
) -> AsyncIterator[None]:
    """Serve at ADDRESS:PORT while entered; nothing when that is empty. Raises click.ClickException, with the remedy.

    `healthy`: what is wrong that only a restart can mend; empty when nothing is. It is not ready either then.
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
    """A part that waits for nothing."""
    return ""


class Part:
    """What is asked of a part."""

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
        return http.text(HTTPStatus.NOT_FOUND, "nothing is at this path")

    def _metrics(self, request: http.Request) -> http.Answer:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        content, headers = encode(self._registry), {"Vary": "Accept, Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = gzip.compress(content, 5), "gzip"
        return http.Answer(HTTPStatus.OK, content, content_type, headers)


async def _probe(*questions: Ready) -> http.Answer:
    """The first thing that is wrong, or ok."""
    try:
        async with asyncio.timeout(ANSWER_S):
            for question in questions:
                if wrong := await question():
                    return http.text(HTTPStatus.SERVICE_UNAVAILABLE, wrong)
    except TimeoutError:
        return http.text(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer within {ANSWER_S:.0f} s")
    return http.text(HTTPStatus.OK, "ok")
