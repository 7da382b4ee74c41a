"""Accepts connections on a socket, and never more than the process has descriptors for.

asyncio's own servers have no such limit, do not report a connection before its TLS handshake is done, and, when
descriptors run out, log a line for each connection in the backlog (CPython's
`BaseSelectorEventLoop._accept_connection`).
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from listener.slots import Slots

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel queues until they are accepted."""
BATCH = 16
"""Connections that are accepted in one go; those that are dropped for them are closed only afterwards."""
RESERVED = 128
"""Descriptors reserved for the store, files, programs and probes."""
HANDSHAKE_S = 10.0
"""Seconds that a TLS handshake may take."""
STALLED_S = 60.0
"""Seconds after which the kernel closes a connection whose client acknowledges no data (TCP_USER_TIMEOUT, tcp(7))."""
RETRY_S = 0.5
"""Seconds until the next attempt after a connection could not be accepted."""
CLOSED_S = 0.01
"""Seconds until the next attempt after connections were dropped to make room."""
LOG_S = 60.0
"""Minimum seconds between two warnings of a listener."""
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""The errors of accept(2) when the process or the machine has no resources for another connection."""


class ListenError(Exception):
    """An address cannot be listened on; the message says which one, why, and what to do."""


def bind(host: str, port: int, option: str) -> socket.socket:
    """A socket that listens on this address. Raises ListenError. `option`: the option to name in errors."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"{option} {host}:{port}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        hint = f": is another server running? Choose another with {option}" if taken else ""
        raise ListenError(f"{option} {host}:{port}: {error.strerror}{hint}") from error
    return listening


def connection_limit() -> int:
    """The most connections for this process: its limit on descriptors, less RESERVED; at least BATCH."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(BATCH, soft - RESERVED)


class Slot:
    """A connection's place among `Slots`, by which its protocol reports its state."""

    __slots__ = ("_slots", "socket")

    def __init__(self, slots: "Slots[Slot]", connected: socket.socket) -> None:
        self._slots = slots
        self.socket = connected

    def busy(self) -> None:
        """The server is working on a request: do not drop the connection."""
        self._slots.busy(self)

    def idle(self) -> None:
        """The connection waits for its client, and may be dropped, the longest idle one first."""
        self._slots.idle(self)

    def closed(self) -> None:
        """The connection has ended."""
        self._slots.remove(self)


Factory = Callable[[Slot], asyncio.BaseProtocol]
"""Makes the protocol of a connection. The protocol must call `busy`, `idle` and `closed` on its slot."""


class Listener:
    """Accepts connections on a listening socket. Above `limit` it drops the connection that has been idle longest."""

    def __init__(self, listening: socket.socket, limit: int, secure: ssl.SSLContext | None = None) -> None:
        self._listening = listening
        self._secure = secure
        self._slots: Slots[Slot] = Slots(limit)
        self._connecting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at = float("-inf")

    def start(self, factory: Factory) -> None:
        """Start accepting, on the running event loop."""
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listening, self._accept)

    def stop(self) -> None:
        """Stop accepting, and close the listening socket. Open connections stay."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def drop_all(self) -> None:
        """Drop every connection."""
        for task in self._connecting:
            task.cancel()
        for slot in self._slots.all():
            _drop(slot)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                connected, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            connected.setblocking(False)
            slot = Slot(self._slots, connected)
            if (dropped := self._slots.add(slot)) is not None:
                self._warn("too many connections: dropping an idle one for each new one")
                _drop(dropped)
            task = self._loop.create_task(self._connect(slot))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, slot: Slot) -> None:
        """Do the TLS handshake, if there is one, and give the connection its protocol."""
        timeout = None if self._secure is None else HANDSHAKE_S
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._factory(slot), slot.socket, ssl=self._secure, ssl_handshake_timeout=timeout
            )
        except (OSError, asyncio.CancelledError):  # the handshake failed, or the connection was dropped
            slot.closed()
            slot.socket.close()

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a while, and drop idle connections if descriptors or memory ran out."""
        dropped = [
            slot for _ in range(BATCH) if error.errno in EXHAUSTED and (slot := self._slots.drop_oldest()) is not None
        ]
        for slot in dropped:
            _drop(slot)
        self._warn("a connection cannot be accepted: check the limit on open files", error)
        self._loop.remove_reader(self._listening)
        wait_s = CLOSED_S if dropped else RETRY_S
        self._retry = self._loop.call_later(wait_s, self._loop.add_reader, self._listening, self._accept)

    def _warn(self, message: str, error: OSError | None = None) -> None:
        """Log a warning, at most once in LOG_S seconds: a client could cause any number of them."""
        now = self._loop.time()
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            reason = {} if error is None else {"reason": str(error)}
            log.warning(message, extra={"connections": len(self._slots), "limit": self._slots.limit, **reason})


def _drop(slot: Slot) -> None:
    """End a connection in any state: its transport reads the end of the stream, and closes."""
    with suppress(OSError):  # the client has closed it already
        slot.socket.shutdown(socket.SHUT_RDWR)
