"""The agent's connection to the server: connect, read, write, and connect again with exponential backoff and jitter.

The read loop only hands messages on and never waits for what they cause. Frames to be sent queue here, in order; the
queue belongs to one connection and goes with it, since the core says again what the server has not answered.
"""

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from wire import codec
from wire.messages import PROTOCOL, FromAgent, FromServer

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
STEADY_S = 30.0
"""A connection that lived this long starts the backoff anew when it breaks."""
PING_S = 20.0
"""Seconds between pings, and to wait for a pong (RFC 6455, section 5.5.2)."""
OPEN_S = 10.0
MAX_QUEUE = 8 << 20
"""Bytes that may wait for a slow server before the connection is given up."""

MAX_REASON = 500
"""Bytes that are shown of what a server says when it refuses a connection."""


class Listener(Protocol):
    """Who is told what happens on the link."""

    def connected(self) -> None:
        """A connection is open and frames can be sent."""

    def received(self, message: FromServer) -> None:
        """A message came."""

    def lost(self) -> None:
        """The connection is gone."""


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row (1 or more): full jitter under an exponential limit.

    Source: Amazon Builders' Library, "Timeouts, retries, and backoff with jitter".
    """
    limit: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 1, 16))
    return rng.uniform(0.1, 1.0) * limit


class Link:
    """Keeps one connection to a server alive while `run` runs.

    `token`: the bearer token, or what reads it, for those of service accounts are replaced every hour; `ca_file`: whom
    to trust instead of the system's authorities, in PEM. Both are read for every connection.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str],
        listener: Listener,
        rng: random.Random,
        *,
        ca_file: Path | None = None,
        user_agent: str | None = None,
    ) -> None:
        self._url = url
        self._token = token
        self._ca_file = ca_file
        self._listener = listener
        self._rng = rng
        self._user_agent = user_agent
        self._socket: ClientConnection | None = None
        self._queue: deque[str] = deque()
        self._queued = 0
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Connect and read, again and again, until cancelled; then close the connection. A listener's error ends it."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            opened = None
            try:
                async with self._connect() as socket:
                    opened = clock()
                    reason = await self._converse(socket)
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                reason = _reason(error)
            failures = 1 if opened is not None and clock() - opened > STEADY_S else failures + 1
            delay = backoff(failures, self._rng)
            log.warning("not connected", extra={"url": self._url, "reason": reason, "retry_s": round(delay, 1)})
            await asyncio.sleep(delay)

    def send(self, messages: Sequence[FromAgent]) -> None:
        """Send one frame on the connection there is; without one it is dropped."""
        if self._socket is None:
            return
        frame = codec.encode(messages)
        self._queue.append(frame)
        self._queued += len(frame)
        if self._queued > MAX_QUEUE:
            log.error("server reads too slowly: connection given up", extra={"bytes": self._queued})
            self._socket.transport.abort()
        else:
            self._more.set()

    def _connect(self) -> connect:
        """A connection to await. Raises OSError when the token or the authorities cannot be read."""
        token = self._token() if callable(self._token) else self._token
        secure = ssl.create_default_context(cafile=self._ca_file) if self._url.startswith("wss:") else None
        return connect(
            self._url,
            ssl=secure,
            subprotocols=[Subprotocol(PROTOCOL)],
            additional_headers={"Authorization": f"Bearer {token}"} if token else {},
            user_agent_header=self._user_agent,
            compression=None,  # small frames: a context for each connection costs more than it saves
            max_size=codec.MAX_SERVER_FRAME,
            open_timeout=OPEN_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=2,
            proxy=None,
        )

    async def _converse(self, socket: ClientConnection) -> str:
        """Write and read until the connection is gone, and say why it is."""
        self._socket = socket
        log.info("connected", extra={"url": self._url})
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_queued(socket), name="send")
                self._listener.connected()
                reason = await self._read(socket)
                sender.cancel()
        except asyncio.CancelledError:
            await socket.close(1001, "the agent stops")
            raise
        finally:
            self._socket = None
            self._queue.clear()
            self._queued = 0
            self._listener.lost()
        return reason

    async def _read(self, socket: ClientConnection) -> str:
        try:
            async for frame in socket:
                for message, _ in codec.from_server.read(frame):
                    self._listener.received(message)
        except codec.FrameError as error:
            await socket.close(1007, codec.close_reason(error))
            return f"the server broke the protocol: {error}"
        except ConnectionClosed as error:
            return _reason(error)
        return f"closed by the server: {socket.close_reason or socket.close_code}"

    async def _send_queued(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):  # the read loop says so
            while True:
                await self._more.wait()
                self._more.clear()
                while self._queue:
                    frame = self._queue.popleft()
                    await socket.send(frame)
                    self._queued -= len(frame)


def _reason(error: Exception) -> str:
    """What a person needs to know of a failed connection."""
    if isinstance(error, InvalidStatus):
        body = (error.response.body or b"")[:MAX_REASON].decode(errors="replace").strip()
        return f"the server answered {error.response.status_code}{body and ': ' + body}"
    return str(error) or type(error).__name__
