"""A small HTTP/1.1 server (RFC 9112) for probes and metrics: GET and HEAD, one request a connection, all of it bounded.

`parse` and `render` are the protocol, without I/O; the rest is their shell.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from socket import socket
from typing import NamedTuple

from listener.accept import Listener, Slot

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_LINE = 2048
"""Bytes of a request's first line."""
MAX_HEAD = 8192
"""Bytes of a request's first line and headers."""
REQUEST_S = 10.0
"""Seconds within which a request must have come."""
ANSWER_S = 30.0
"""Seconds within which it must be answered."""
TAKE_S = 30.0
"""Seconds within which the client must have taken the answer, and closed."""
METHODS = ("GET", "HEAD")

_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:https?://[^/?#]*)?(/[!-~]*) HTTP/1\.([01])")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*?)[ \t]*")


class Request(NamedTuple):
    """What is asked for. `headers`: by their names in lower case; of one that came twice, the last."""

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What is answered."""

    status: HTTPStatus
    content: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


class RefusedError(Exception):
    """A request that is not served; `answer` says why."""

    def __init__(self, status: HTTPStatus, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.answer = text(status, why, headers)


Handler = Callable[[Request], Awaitable[Answer]]


def text(status: HTTPStatus, line: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of one line."""
    return Answer(status, f"{line}\n".encode(), headers=headers or {})


def parse(received: bytes) -> Request | None:
    """The request in what was received so far; None while more of it must come. Raises RefusedError."""
    head, end, _ = received.partition(b"\r\n\r\n")
    line, line_end, rest = head.partition(b"\r\n")
    if len(line) > MAX_LINE:
        raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, f"the first line is longer than {MAX_LINE} bytes")
    if len(head) > MAX_HEAD:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers exceed {MAX_HEAD} bytes")
    if not end:
        return None
    asked = _LINE.fullmatch(line.decode("latin-1"))
    fields = [_HEADER.fullmatch(it) for it in rest.decode("latin-1").split("\r\n")] if line_end else []
    headers = {field[1].lower(): field[2] for field in fields if field is not None}
    if asked is None or None in fields or (asked[3] == "1" and "host" not in headers):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
    if asked[1] not in METHODS:
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": ", ".join(METHODS)})
    return Request(asked[1], asked[2].partition("?")[0], headers)


def render(answer: Answer, *, head_only: bool) -> bytes:
    """The bytes of an answer, after which the connection is closed."""
    status, content, content_type, headers = answer
    fields = {"Content-Type": content_type, "Content-Length": str(len(content)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + content


@asynccontextmanager
async def serving(listening: socket, handler: Handler) -> AsyncIterator[None]:
    """Serve on a socket that listens while entered; on leaving, its connections end."""
    listener = Listener(listening, MAX_CONNECTIONS)
    listener.start(lambda slot: _Connection(slot, handler))
    try:
        yield
    finally:
        listener.stop()
        listener.drop_all()


class _Connection(asyncio.Protocol):
    """One request and its answer. Each step has a time of its own, at whose end the connection is given up."""

    def __init__(self, slot: Slot, handler: Handler) -> None:
        self._slot = slot
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._heard = False
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self._transport = transport
        self._deadline = self._loop.call_later(REQUEST_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole. What comes later is read and not heard.

        To close while there is something to read makes the kernel reset the connection, and lose the answer (RFC 1122,
        4.2.2.13).
        """
        if self._heard:
            return
        self._received += data
        try:
            request = parse(self._received)
        except RefusedError as refused:
            self._heard = True
            self._write(refused.answer, head_only=False)
            return
        if request is not None:
            self._heard = True
            self._slot.busy()
            self._wait(ANSWER_S)
            self._answering = self._loop.create_task(self._answer(request))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, and nobody waits for the answer any more."""
        self._deadline.cancel()
        self._slot.closed()
        if self._answering is not None:
            self._answering.cancel()

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._handler(request)
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            answer = text(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed: the log says why")
        self._write(answer, head_only=request.method == "HEAD")

    def _write(self, answer: Answer, *, head_only: bool) -> None:
        """Write the answer and its end; the client closes."""
        self._slot.idle()
        self._wait(TAKE_S)
        self._transport.write(render(answer, head_only=head_only))
        self._transport.write_eof()

    def _wait(self, seconds: float) -> None:
        """Give the connection up after so many seconds."""
        self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._transport.abort)
