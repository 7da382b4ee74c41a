"""The agent's connection to the server: connect, read, write, and connect again with exponential backoff and jitter.

The read loop only passes messages on; it never waits for what they cause. `send` gives a frame to the transport at
once, and the transport keeps, in order, what the kernel does not take yet. A lost connection loses those frames: after
the next hello, the core sends all that the server has not answered.
"""

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidProxy, InvalidStatus
from websockets.protocol import State
from websockets.typing import Subprotocol

from agent.proxies import proxy_for
from wire import codec
from wire.messages import CHECK_PROTOCOL, HOST_HEADER, PROTOCOL, FromAgent, FromServer, Hello, HostExpected

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STEADY_S = 10.0
"""Seconds after which a connection counts as steady: when it breaks, the backoff starts from its beginning."""
RESTART = 1012
"""Close code of a server that restarts, or that has too many agents ("service restart", registered by IANA): the agent
connects again soon, as after a steady connection."""
BUSY = 1013
"""Close code of a server that asks the agent to try again later (registered by IANA)."""
BUSY_STATUSES = {429, 503}
"""Statuses whose Retry-After is obeyed (RFC 6585, section 4; RFC 9110, section 15.6.4)."""
LONGEST_ASKED_S = 3600.0
"""The longest wait in seconds that a server may ask for, or whatever else answers in its place."""
PING_S = 20.0
"""Seconds between pings (RFC 6455, section 5.5.2), and seconds to wait for any sign of life after each."""
OPEN_S = 10.0
MAX_UNSENT = 8 << 20
"""Bytes that may wait for a slow server before the agent drops the connection."""

ASK_S = 30.0
"""Seconds for a connection that only asks, from the handshake to the answer."""
CONNECTING_FAILS = (OSError, TimeoutError, ImportError, InvalidHandshake, InvalidProxy, ConnectionClosed)
"""What connecting and reading raise."""

MAX_REASON = 500
"""Bytes of a server's refusal that are logged."""


class AskError(Exception):
    """The server gave no answer; the message says why, and what to do."""


class Listener(Protocol):
    """Receives the events of the link."""

    def connected(self) -> None:
        """A connection is open and frames can be sent."""

    def received(self, messages: Sequence[FromServer]) -> None:
        """A frame with these messages arrived."""

    def disconnected(self) -> None:
        """The connection is lost."""


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after this many failures in a row (1 or more): full jitter under an exponential limit.

    Source: Amazon Builders' Library, "Timeouts, retries, and backoff with jitter".
    """
    limit: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 1, 16))
    return rng.uniform(0.1, 1.0) * limit


def asked_wait(retry_after: str, now: datetime) -> float:
    """Seconds that a Retry-After header asks to wait, as a number or as a time (RFC 9110, section 10.2.3).

    At most LONGEST_ASKED_S; 0 for anything else.
    """
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), LONGEST_ASKED_S)
    try:
        at = parsedate_to_datetime(retry_after)
        seconds = ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # malformed; of email.utils not all are ValueErrors
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_S)


def asked_wait_of_close(code: int | None, reason: str | None) -> float:
    """Seconds that a close frame asks to wait, at most LONGEST_ASKED_S; 0 where it names none."""
    named = _AGAIN_IN.search(reason or "") if code == BUSY else None
    return 0.0 if named is None else min(float(named[1]), LONGEST_ASKED_S)


_AGAIN_IN = re.compile(r"try again in ([0-9]+(?:\.[0-9]+)?) s\b")


def error_text(error: Exception) -> str:
    """An error's message; its class's name if the message is empty."""
    return str(error) or type(error).__name__


class Dialler:
    """Connects to a server.

    `token`: the bearer token, or a function that reads it, since service-account tokens are replaced every hour.
    `ca_file`: certificates, in PEM, to trust in place of the system's. Both are read for every connection.
    `host`: this agent's host, for the log of a server that refuses it. `explain`: turns a connection error into a
    message with a remedy.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str],
        *,
        ca_file: Path | None = None,
        host: str = "",
        explain: Callable[[Exception], str] = error_text,
    ) -> None:
        self.url = url
        self._token = token
        self._ca_file = ca_file
        self._claim = {HOST_HEADER: host} if host else {}
        self._explain = explain

    def dial(self, protocol: str = PROTOCOL) -> connect:
        """A connection to await. Raises OSError when the token or the certificates cannot be read."""
        token = self._token() if callable(self._token) else self._token
        secure = ssl.create_default_context(cafile=self._ca_file) if self.url.startswith("wss:") else None
        return connect(
            self.url,
            ssl=secure,
            subprotocols=[Subprotocol(protocol)],
            additional_headers=self._claim | ({"Authorization": f"Bearer {token}"} if token else {}),
            user_agent_header=None,
            compression=None,  # small frames: a context for each connection costs more than it saves
            max_size=codec.MAX_SERVER_FRAME,
            open_timeout=OPEN_S,
            create_connection=_Connection,
            ping_interval=PING_S,
            close_timeout=2,
            proxy=proxy_for(self.url),
        )

    def reason(self, error: Exception) -> str:
        """Why connecting failed, with the remedy."""
        if isinstance(error, InvalidStatus):
            body = (error.response.body or b"")[:MAX_REASON].decode(errors="replace").strip()
            return f"the server answered {error.response.status_code}{body and ': ' + body}"
        if isinstance(error, InvalidProxy):  # its text repeats the URL, which may hold a password
            return "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY holds no valid proxy URL: set it to one like http://proxy:3128"
        if isinstance(error, ImportError):
            return (
                "the proxy is a SOCKS proxy, for which python-socks is not installed: install it, or set an HTTP proxy"
            )
        return self._explain(error)

    async def ask(self, hello: Hello) -> HostExpected:
        """Ask what the host is to hold, on a connection that the server does not count as the host's.

        Raises AskError, with the remedy.
        """
        try:
            async with asyncio.timeout(ASK_S), self.dial(CHECK_PROTOCOL) as socket:
                await socket.send(codec.encode((hello,)))
                async for frame in socket:
                    for message, _ in codec.from_server.read(frame):
                        if isinstance(message, HostExpected):
                            return message
        except InvalidStatus as error:
            old = ": update the server, which is older than this agent" if error.response.status_code == 400 else ""
            raise AskError(f"{self.reason(error)}{old}") from None
        except ConnectionClosed as error:
            raise AskError(f"the server closed the connection: {error.rcvd.reason if error.rcvd else error}") from None
        except CONNECTING_FAILS as error:
            raise AskError(self.reason(error)) from None
        except codec.FrameError as error:
            raise AskError(f"the server broke the protocol: {error}") from None
        raise AskError(f"the server gave no answer: {socket.close_reason or socket.close_code}")


class Link:
    """Keeps one connection to a server alive while `run` runs."""

    def __init__(self, dialler: Dialler, listener: Listener, rng: random.Random) -> None:
        self._dialler = dialler
        self._listener = listener
        self._rng = rng
        self._socket: ClientConnection | None = None

    async def run(self) -> None:
        """Stay connected and read until cancelled, then close the connection. Raises what the listener raises."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            opened, sent_away, asked_s = None, False, 0.0
            try:
                async with self._dialler.dial() as socket:
                    opened = clock()
                    reason = await self._converse(socket)
                    sent_away = socket.close_code == RESTART
                    asked_s = asked_wait_of_close(socket.close_code, socket.close_reason)
            except CONNECTING_FAILS as error:
                reason = self._dialler.reason(error) if opened is None else error_text(error)
                asked_s = _asked_by(error)
            steady = sent_away or (opened is not None and clock() - opened > STEADY_S)
            failures = 1 if steady else failures + 1
            delay = asked_s + backoff(failures, self._rng)  # those that are asked alike do not come at once
            log.warning("not connected", extra={"url": self._dialler.url, "reason": reason, "retry_s": round(delay, 1)})
            await asyncio.sleep(delay)

    def send(self, messages: Sequence[FromAgent]) -> None:
        """Send one frame; without a connection it is dropped."""
        socket = self._socket
        if socket is None or socket.protocol.state is not State.OPEN:
            return
        socket.protocol.send_text(codec.encode(messages).encode())
        socket.send_data()
        if (unsent := socket.transport.get_write_buffer_size()) > MAX_UNSENT:
            log.error("server reads too slowly: connection given up", extra={"bytes": unsent})
            socket.transport.abort()

    async def reconnect(self) -> None:
        """Close the connection, so that another is opened and a new hello sent. Does nothing without a connection."""
        if (socket := self._socket) is not None:
            await socket.close(1000, "the agent has news to say hello with")

    async def _converse(self, socket: ClientConnection) -> str:
        """Read until the connection ends; returns why it ended."""
        self._socket = socket
        log.info("connected", extra={"url": self._dialler.url})
        try:
            self._listener.connected()
            return await self._read(socket)
        except asyncio.CancelledError:
            await socket.close(1001, "the agent stops")
            raise
        finally:
            self._socket = None
            self._listener.disconnected()

    async def _read(self, socket: ClientConnection) -> str:
        try:
            async for frame in socket:
                self._listener.received([message for message, _ in codec.from_server.read(frame)])
        except codec.FrameError as error:
            await socket.close(1007, codec.close_reason(error))
            return f"the server broke the protocol: {error}"
        except ConnectionClosed as error:
            if error.rcvd is None:  # the connection was cut
                return error_text(error)
        by = "server" if socket.protocol.close_rcvd_then_sent is not False else "agent"
        return f"closed by the {by}: {socket.close_reason or socket.close_code}"


class _Connection(ClientConnection):
    """Connection that is dropped when the server falls silent."""

    _received_at = 0.0  # when bytes last arrived, by the loop's clock

    def data_received(self, data: bytes) -> None:
        """Take bytes of frames."""
        self._received_at = self.loop.time()
        super().data_received(data)

    async def keepalive(self) -> None:
        """Ping the server, and drop the connection when nothing has arrived between two pings.

        Any bytes will do: a server whose store is slow reads no pings meanwhile, and still sends its own.
        """
        pinged_at = 0.0
        while self.protocol.state is State.OPEN:
            await asyncio.sleep(PING_S)
            if self._received_at < pinged_at:
                log.warning("the server is silent: connection given up")
                self.transport.abort()
                return
            pinged_at = self.loop.time()
            self.protocol.send_ping(b"")
            self.send_data()


def _asked_by(error: Exception) -> float:
    """Seconds that the answer to a handshake asks to wait; 0 where it asks for none."""
    if isinstance(error, InvalidStatus) and error.response.status_code in BUSY_STATUSES:
        with suppress(LookupError):  # no such header, or several
            return asked_wait(error.response.headers["Retry-After"], datetime.now(UTC))
    return 0.0
