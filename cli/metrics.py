"""Serves what Prometheus scrapes and what Kubernetes probes, over plain HTTP: /metrics, /healthz and /readyz.

In a thread, as prometheus-client does it; what a part must say of itself is asked on its event loop, so that a loop
that hangs is not called healthy.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from cli import options

ANSWER_S = 5.0
"""Seconds that the event loop has to answer a probe."""

Ready = Callable[[], Awaitable[str]]
"""What a part waits for before it is ready; empty when it is."""
StartResponse = Callable[[str, list[tuple[str, str]]], object]


@asynccontextmanager
async def serving(
    listen: str, registry: CollectorRegistry, ready: Ready, healthy: Ready | None = None
) -> AsyncIterator[None]:
    """Serve at ADDRESS:PORT while entered; nothing when that is empty. Raises OSError when the address is taken.

    `healthy`: what is wrong that only a restart can mend; empty when nothing is. It is not ready either then.
    """
    if not listen:
        yield
        return
    host, port = options.address(listen)
    loop = asyncio.get_running_loop()

    def ask(path: str) -> str:
        """What stands against a probe's success."""
        asked = _asked(healthy or always_ready, ready if path == "/readyz" else always_ready)
        return asyncio.run_coroutine_threadsafe(asked, loop).result(ANSWER_S)

    app = _application(registry, ask)
    with make_server(host, port, app, ThreadingWSGIServer, handler_class=_Silent) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            await asyncio.to_thread(server.shutdown)


async def always_ready() -> str:
    """A part that waits for nothing."""
    return ""


async def _asked(*questions: Ready) -> str:
    for question in questions:
        if wrong := await question():
            return wrong
    return ""


def _application(registry: CollectorRegistry, ask: Callable[[str], str]) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        if path not in ("/healthz", "/readyz"):
            return _text(start, "404 Not Found", "nothing is at this path")
        try:
            wrong = ask(path)
        except TimeoutError:
            return _text(start, "503 Service Unavailable", f"no answer within {ANSWER_S:.0f} s")
        if wrong:
            return _text(start, "503 Service Unavailable", wrong)
        return _text(start, "200 OK", "ok")

    return application


def _text(start: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name for it
        """Log no requests: probes come every few seconds."""
