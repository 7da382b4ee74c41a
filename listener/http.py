"""A small HTTP/1.1 server (RFC 9112) for probes and metrics: GET and HEAD, one request for each connection, all with
limits on size and time.

`parse` and `render` are the protocol and do no I/O; the rest is their shell.
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
"""Seconds in which the whole request must arrive."""
ANSWER_S = 30.0
"""Seconds in which the handler must answer."""
TAKE_S = 30.0
"""Seconds in which the client must read the answer and close the connection."""
METHODS = ("GET", "HEAD")

_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:https?://[^/?#]*)?(/[!-~]*) HTTP/1\.([01])")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*?)[ \t]*")


class Request(NamedTuple):
    """A request. `headers`: by their names in lower case; the last one counts if a name occurs twice."""

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """An answer, with its body in `content`."""

    status: HTTPStatus
    content: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


class RefusedError(Exception):
    """A request is refused; `answer` says why."""

    def __init__(self, status: HTTPStatus, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.answer = text(status, why, headers)


Handler = Callable[[Request], Awaitable[Answer]]


def text(status: HTTPStatus, line: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with one line of text."""
    return Answer(status, f"{line}\n".encode(), headers=headers or {})


def parse(received: bytes) -> Request | None:
    """Parse what was received so far; None while the request is incomplete. Raises RefusedError."""
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
        raise RefusedError(HTTPStatus.BAD_REQUEST, "not a valid HTTP/1.1 request")
    if asked[1] not in METHODS:
        raise RefusedError(
            HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", {"Allow": ", ".join(METHODS)}
        )
    return Request(asked[1], asked[2].partition("?")[0], headers)


def render(answer: Answer, *, head_only: bool) -> bytes:
    """The bytes of an answer. The connection is closed after it."""
    status, content, content_type, headers = answer
    fields = {"Content-Type": content_type, "Content-Length": str(len(content)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + content


@asynccontextmanager
async def serving(listening: socket, handler: Handler) -> AsyncIterator[None]:
    """Serve on a listening socket inside the `with`; on leaving, drop all connections."""
    listener = Listener(listening, MAX_CONNECTIONS)
    listener.start(lambda slot: _Connection(slot, handler))
    try:
        yield
    finally:
        listener.stop()
        listener.drop_all()


class _Connection(asyncio.Protocol):
    """A connection with one request and its answer. Each step has a time limit, after which the connection is
    dropped."""

    def __init__(self, slot: Slot, handler: Handler) -> None:
        self._slot = slot
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._is_complete = False
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        self._transport = transport
        self._deadline = self._loop.call_later(REQUEST_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Start answering when the request is complete. Later data is read and ignored.

        If there were unread data on closing, the kernel would reset the connection, and the answer could be lost
        (RFC 1122, 4.2.2.13).
        """
        if self._is_complete:
            return
        self._received += data
        try:
            request = parse(self._received)
        except RefusedError as refused:
            self._is_complete = True
            self._write(refused.answer, head_only=False)
            return
        if request is not None:
            self._is_complete = True
            self._slot.busy()
            self._wait(ANSWER_S)
            self._answering = self._loop.create_task(self._answer(request))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended: cancel what works on the answer."""
        self._deadline.cancel()
        self._slot.closed()
        if self._answering is not None:
            self._answering.cancel()

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._handler(request)
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            answer = text(HTTPStatus.INTERNAL_SERVER_ERROR, "the request failed: see the log")
        self._write(answer, head_only=request.method == "HEAD")

    def _write(self, answer: Answer, *, head_only: bool) -> None:
        """Write the answer and the end of the stream; the client then closes the connection."""
        self._slot.idle()
        self._wait(TAKE_S)
        self._transport.write(render(answer, head_only=head_only))
        self._transport.write_eof()

    def _wait(self, seconds: float) -> None:
        """Drop the connection after this many seconds."""
        self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._transport.abort)
