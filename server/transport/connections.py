"""HTTP and WebSocket connections: all that leans on the internals of uvicorn, h11 and websockets.

tests/integration/test_transport.py holds them to what this file needs, and pyproject.toml bounds their versions.
"""

import asyncio
import secrets
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
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
"""Seconds that open requests have to end when the server stops."""
PING_S = 20.0
"""Seconds between pings to each agent, and to wait for the pong."""
REQUEST_S = 60.0
"""Seconds within which a request must have come, from its first byte on or from the connection's beginning."""
LINGER_S = 1.0
"""Seconds for which what still comes is read, and not heard, from who was told that the protocol was broken."""


class _Http(H11Protocol):
    """HTTP connection that is closed when no complete request arrives within `REQUEST_S`.

    It is busy from a complete request to the end of its answer, except while the client does not read that.
    """

    def __init__(self, slot: Slot, **settings: Any) -> None:
        super().__init__(**settings)
        self.slot = slot
        self.deadline: asyncio.TimerHandle | None = None
        self.upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Hear a request, or a part of it."""
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        """Await the next request."""
        super().on_response_complete()
        self._await_request()

    def pause_writing(self) -> None:
        """Hold the answer back: the client does not read as fast as it is written."""
        super().pause_writing()
        self.slot.idle()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self.slot.busy()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell what waits for this connection that it has ended."""
        super().connection_lost(exc)
        self._forget()
        self.slot.closed()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Give the connection to a protocol of its own kind; its slot stays idle until an agent said hello there."""
        self._forget()
        self.upgraded = True
        self.ws_protocol_class = partial(_Protocol, self.slot)  # type: ignore[assignment]
        super().handle_websocket_upgrade(event)

    def _await_request(self) -> None:
        """Have the wait for a complete request end in time, if it is not here yet."""
        if self.upgraded:
            return
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
            self.slot.busy()
            return
        self.slot.idle()
        if self.deadline is None:
            self.deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _forget(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class _Protocol(WebSocketsSansIOProtocol):
    """WebSocket connection that is written to without a task that waits, and given up without its peer's consent."""

    def __init__(self, slot: Slot, **settings: Any) -> None:
        super().__init__(**settings)
        self.slot = slot
        self.received_at = self.loop.time()  # when bytes last arrived, pongs included
        self.probe: tuple[bytes, asyncio.Future[bool]] | None = None  # an unanswered ping, and what it says

    def data_received(self, data: bytes) -> None:
        """The handshake came, whole, or something after it. A handshake that cannot be read is the end."""
        self.received_at = self.loop.time()
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Hand a message on. Text that is not UTF-8 ends the connection (RFC 6455, section 8.1) without an error here.

        What comes after a close was sent is discarded (section 1.4), whatever it is.
        """
        is_open = self.conn.state is State.OPEN and not self.close_sent
        if is_open and self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.conn.send_close(1007, "frame: not UTF-8")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Something broke the protocol: say what, and read on for a while, unheard.

        To close while more comes makes the kernel reset the connection, and lose what was said (RFC 1122, 4.2.2.13).
        """
        if not self.close_sent and (close := self.conn.close_sent) is not None:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.resume_reading()
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def handle_ping(self) -> None:
        """Answer a ping, unless the other end reads no answers: they would pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_connect(self, event: Request) -> None:
        """Hand this to the application, in the connection's state, as the gateway's `Peer`."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"]["peer"] = weakref.proxy(self)  # no cycle: what a connection held is freed with it

    async def send(self, message: Any) -> None:
        """Send what the application says. A denial ends the handshake too, or uvicorn would log that nothing did.

        Raises ClientDisconnected after a close that this protocol sent by itself, which the application cannot know of.
        """
        if self.handshake_complete and self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent

    def write(self, frame: str) -> int:
        """Send a text frame without waiting; how many bytes are unsent then. Nothing is sent once the end has begun."""
        if self.close_sent or self.conn.state is not State.OPEN or self.transport.is_closing():
            return 0
        self.conn.send_text(frame.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Give the connection up at once: to close it would wait for a peer that may never read what is unsent."""
        self.transport.abort()

    def keep(self) -> None:
        """Keep the connection even when there are too many: it is an agent's."""
        self.slot.busy()

    async def answers_ping(self, within_s: float) -> bool:
        """Whether the other end answers a ping in that time. One of which we have yet to take what it said counts as
        one that does, since its pong may stand behind that."""
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
            return self.read_paused

    def handle_pong(self, event: Frame) -> None:
        """A pong came, perhaps to a ping of `answers_ping`."""
        if self.probe is not None and bytes(event.data) == self.probe[0]:
            self._end_probe(answered=True)
        else:
            super().handle_pong(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell what waits for this connection that it has ended."""
        self._end_probe(answered=False)
        super().connection_lost(exc)
        self.slot.closed()

    def _end_probe(self, *, answered: bool) -> None:
        if self.probe is not None:
            self.probe[1].set_result(answered)
            self.probe = None

    def keepalive_timeout(self) -> None:
        """No pong came."""
        self.transport.abort()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Uvicorn(uvicorn.Server):
    """Uvicorn as a part of our process, which has signal handlers of its own, on connections that are bounded."""

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        self.servers = []
        self._listener.start(partial(_Http, config=self.config, server_state=self.server_state, app_state={}))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests end for `SHUTDOWN_S`, then drop what is left."""
        self._listener.stop()
        await super().shutdown(sockets)
        self._listener.drop_all()


@asynccontextmanager
async def serving(app: ASGIApp, listener: Listener) -> AsyncIterator[None]:
    """Serve an application while entered."""
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
