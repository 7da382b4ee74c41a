"""HTTP and WebSocket connections, on the internals of uvicorn, h11 and websockets.

tests/integration/test_transport.py checks that these internals are as this file expects. pyproject.toml bounds the
versions of the three.
"""

import asyncio
import secrets
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from listener.accept import Listener, Slot
from wire import codec

SHUTDOWN_S = 5
"""Seconds that open requests have to finish when the server stops."""
PING_S = 20.0
"""Seconds between two pings to an agent, and seconds to wait for each pong."""
LATE_S = 1.0
"""Seconds in which what has arrived is read, before a connection that seems silent is dropped."""
STALE_S = 45.0
"""Seconds without a byte of an agent, which answers a ping each `PING_S`, after which what comes is not read: this
process stood still. The agent has given the connection up by now, and says on its next one what holds then."""
REQUEST_S = 60.0
"""Seconds for a request to arrive, from the beginning of the connection or the end of the previous request."""
LINGER_S = 1.0
"""Seconds for which input is discarded after a close because of a protocol error."""


class _Http(H11Protocol):
    """HTTP connection that is closed when no complete request arrives within `REQUEST_S`.

    Its slot is busy from a complete request to the end of the response, except while the client does not read that. An
    idle connection may be closed when there are too many.
    """

    def __init__(self, slot: Slot, **settings: Any) -> None:
        super().__init__(**settings)
        self.slot = slot
        self.deadline: asyncio.TimerHandle | None = None
        self.upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the wait for the first request."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Take the bytes of a request or a part of it."""
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        """Start the wait for the next request."""
        super().on_response_complete()
        self._await_request()

    def pause_writing(self) -> None:
        """Stop writing the response: the client reads more slowly than it is written."""
        super().pause_writing()
        self.slot.idle()

    def resume_writing(self) -> None:
        """Continue with the response."""
        super().resume_writing()
        self.slot.busy()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the slot."""
        super().connection_lost(exc)
        self._cancel_deadline()
        self.slot.closed()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Switch the connection to `_Protocol`. Its slot stays idle until an agent has sent its hello."""
        self._cancel_deadline()
        self.upgraded = True
        self.ws_protocol_class = partial(_Protocol, self.slot)  # type: ignore[assignment]
        super().handle_websocket_upgrade(event)

    def _await_request(self) -> None:
        """Set the deadline for the next request, unless a request is complete: then clear it."""
        if self.upgraded:
            return
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._cancel_deadline()
            self.slot.busy()
            return
        self.slot.idle()
        if self.deadline is None:
            self.deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class _Protocol(WebSocketsSansIOProtocol):
    """WebSocket connection that is written without waiting, and can be aborted without a closing handshake."""

    def __init__(self, slot: Slot, **settings: Any) -> None:
        super().__init__(**settings)
        self.slot = slot
        self.received_at = self.loop.time()  # when bytes last arrived, pongs included
        self.probe: tuple[bytes, asyncio.Future[bool]] | None = None  # payload of an unanswered ping, and its result
        self.take: Callable[[str], bool] | None = None

    def data_received(self, data: bytes) -> None:
        """Take the whole handshake, or frames after it. A handshake that cannot be parsed is answered with 400."""
        heard_at, self.received_at = self.received_at, self.loop.time()
        if self.received_at - heard_at > STALE_S:
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Pass a message to the application: to its callback, or else to its task.

        The callback gets a message only when the task has got all earlier ones. Reading goes on meanwhile. For the
        task, reading is paused and resumed for each message, which costs two system calls and a change of tasks.

        Text that is not UTF-8 closes the connection (RFC 6455, section 8.1); uvicorn would log a traceback. Messages
        after a close was sent are discarded (section 1.4).
        """
        if self.conn.state is State.OPEN and not self.close_sent and self.curr_msg_data_type == "text":
            try:
                text = b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.close(1007, "frame: not UTF-8")
                return
            if self.take is not None and self.queue.empty() and self.take(text):
                self.frames = []
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Send a close frame, as after a protocol error, and discard input for `LINGER_S` before closing the socket.

        Closing a socket with unread input resets the connection, and the peer may lose the close frame (RFC 1122,
        section 4.2.2.13).
        """
        if not self.close_sent and (close := self.conn.close_sent) is not None:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.resume_reading()
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def handle_ping(self) -> None:
        """Answer a ping, unless the other end does not read: pongs would pile up in memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_connect(self, event: Request) -> None:
        """Put this connection into the WebSocket's `state`, as the `Peer` of `server.agents.hub`."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"]["peer"] = weakref.proxy(
                self
            )  # a strong reference would be a cycle, and free memory late

    async def send(self, message: Any) -> None:
        """Send a message of the application. A denial also ends the handshake: uvicorn would log that nothing did.

        Raises ClientDisconnected after a close that this protocol sent by itself, unknown to the application.
        """
        if self.handshake_complete and self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent

    def write(self, frame: str) -> int:
        """Write a text frame without waiting. Returns the bytes that are unsent then. A closing connection drops it."""
        if self.close_sent or self.conn.state is not State.OPEN or self.transport.is_closing():
            return 0
        self.conn.send_text(frame.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        return self.transport.get_write_buffer_size()

    def take_frames(self, take: Callable[[str], bool] | None) -> None:
        """Give each frame to this callback first; where it returns False, to the task that receives. None: no more."""
        self.take = take

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a code, without waiting; its task receives a disconnect."""
        if self.conn.state is State.OPEN and not self.close_sent:
            self.conn.send_close(code, reason)
            self.handle_parser_exception()

    def abort(self) -> None:
        """Drop the connection at once. A close would wait for a peer that may never read what is unsent."""
        self.transport.abort()

    def keep(self) -> None:
        """Exempt the connection from being closed when there are too many."""
        self.slot.busy()

    async def answers_ping(self, within_s: float) -> bool:
        """Whether the other end answers a ping within so many seconds.

        So does one that says something else, since the pong may be behind it; and while reading is paused, since the
        pong may be in the unread input.
        """
        asked_at = self.loop.time()
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return False
        if self.probe is None:
            self.probe = (secrets.token_bytes(8), self.loop.create_future())
            self.conn.send_ping(self.probe[0])
            self.transport.write(b"".join(self.conn.data_to_send()))
        _, answer = self.probe
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            return self._may_live(asked_at)

    def handle_pong(self, event: Frame) -> None:
        """Take a pong, perhaps to a ping of `answers_ping`."""
        if self.probe is not None and bytes(event.data) == self.probe[0]:
            self._end_probe(answered=True)
        else:
            super().handle_pong(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """End `answers_ping`, and free the slot."""
        self._end_probe(answered=False)
        super().connection_lost(exc)
        self.slot.closed()

    def _end_probe(self, *, answered: bool) -> None:
        if self.probe is not None:
            self.probe[1].set_result(answered)
            self.probe = None

    def keepalive_timeout(self) -> None:
        """No pong was read within `PING_S`: look again once this process, which may be late, has read what arrived."""
        self.pong_timer = self.loop.call_later(LATE_S, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        """Drop the connection, unless it may live: then ping again, so that the other end hears something too."""
        if self._may_live(self.ping_sent_at):
            self.send_keepalive_ping()
        else:
            self.transport.abort()

    def _may_live(self, asked_at: float) -> bool:
        """Whether anything arrived since a ping, or would not be read: frames wait here while the store is slow."""
        return self.read_paused or self.received_at > asked_at


class _Uvicorn(uvicorn.Server):
    """Uvicorn inside a process with signal handlers of its own, with a `Listener` that bounds the connections."""

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        self.servers = []
        self._listener.start(partial(_Http, config=self.config, server_state=self.server_state, app_state={}))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, give open requests `SHUTDOWN_S` to finish, then drop all connections."""
        self._listener.stop()
        await super().shutdown(sockets)
        self._listener.drop_all()


@asynccontextmanager
async def serving(app: ASGIApp, listener: Listener) -> AsyncIterator[None]:
    """Serve an application while entered. On exit, open requests have `SHUTDOWN_S` to finish."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=H11Protocol,
        ws=WebSocketsSansIOProtocol,
        ws_per_message_deflate=False,
        ws_max_size=codec.MAX_AGENT_FRAME,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    server = _Uvicorn(config, listener)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(), name="uvicorn")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait([serving])
