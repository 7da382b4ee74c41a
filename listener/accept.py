"""Accepts connections on a socket, no more at a time than the process has descriptors for.

asyncio's own servers hold as many as come, do not show a connection before its TLS handshake is done, and meet a lack
of descriptors with as many log lines as their backlog is long (CPython's `BaseSelectorEventLoop._accept_connection`).
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
"""Connections that the kernel keeps until they are accepted."""
BATCH = 16
"""Connections that are accepted before those that were dropped for them are closed."""
RESERVED = 128
"""Descriptors that connections leave to the store, files, programs and probes."""
HANDSHAKE_S = 10.0
"""Seconds that a TLS handshake may take."""
STALLED_S = 60.0
"""Seconds after which the kernel gives up a connection whose other end takes nothing of what is to be sent (tcp(7))."""
RETRY_S = 0.5
"""Seconds until the next try after a connection could not be accepted."""
CLOSED_S = 0.01
"""Seconds until the next try when connections were dropped to make room."""
TOLD_S = 60.0
"""Seconds between two log lines of the same kind."""
OUT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What accept(2) answers when the process or the machine has no room for another connection."""


class ListenError(Exception):
    """An address cannot be listened on; the message says which, and why."""


def bind(host: str, port: int, option: str) -> socket.socket:
    """A socket that is bound and listens. Raises ListenError, which names the option that gave the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"{option} {host}:{port}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # For each connection that is accepted here.
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
    """How many connections this process may hold: its limit of descriptors without those that are reserved."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(BATCH, soft - RESERVED)


class Slot:
    """A connection's place, with which its protocol tells how it stands."""

    __slots__ = ("_slots", "socket")

    def __init__(self, slots: "Slots[Slot]", connected: socket.socket) -> None:
        self._slots = slots
        self.socket = connected

    def busy(self) -> None:
        """The server works for it: it is not dropped."""
        self._slots.busy(self)

    def idle(self) -> None:
        """It waits for its client: it is dropped before others that came later."""
        self._slots.idle(self)

    def closed(self) -> None:
        """It has ended."""
        self._slots.remove(self)


Factory = Callable[[Slot], asyncio.BaseProtocol]
"""Makes the protocol of a connection, which tells its slot how it stands, and of its end."""


class Listener:
    """Accepts on a bound socket. Where connections exceed `limit`, the one that is idle longest is dropped."""

    def __init__(self, listening: socket.socket, limit: int, secure: ssl.SSLContext | None = None) -> None:
        self._listening = listening
        self._secure = secure
        self._slots: Slots[Slot] = Slots(limit)
        self._connecting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")

    def start(self, factory: Factory) -> None:
        """Accept from now on, on the running event loop."""
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listening, self._accept)

    def stop(self) -> None:
        """Accept no more, and close the socket that is listened on. Connections stay."""
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
                self._tell("too many connections: one that waits is dropped for each that comes")
                _drop(dropped)
            task = self._loop.create_task(self._connect(slot))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, slot: Slot) -> None:
        """Give a connection its protocol, after its TLS handshake where there is one."""
        timeout = None if self._secure is None else HANDSHAKE_S
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._factory(slot), slot.socket, ssl=self._secure, ssl_handshake_timeout=timeout
            )
        except (OSError, asyncio.CancelledError):  # no handshake, or dropped
            slot.closed()
            slot.socket.close()

    def _pause(self, error: OSError) -> None:
        """Make room for other connections where there is none, and wait for it: the socket stays readable meanwhile."""
        dropped = [slot for _ in range(BATCH) if error.errno in OUT and (slot := self._slots.drop_oldest()) is not None]
        for slot in dropped:
            _drop(slot)
        self._tell("a connection cannot be accepted: the limit of open files may be too low", error)
        self._loop.remove_reader(self._listening)
        wait_s = CLOSED_S if dropped else RETRY_S
        self._retry = self._loop.call_later(wait_s, self._loop.add_reader, self._listening, self._accept)

    def _tell(self, what: str, error: OSError | None = None) -> None:
        """Log at most once in TOLD_S: who causes this could else fill the log."""
        now = self._loop.time()
        if now - self._told_at >= TOLD_S:
            self._told_at = now
            reason = {} if error is None else {"reason": str(error)}
            log.warning(what, extra={"connections": len(self._slots), "limit": self._slots.limit, **reason})


def _drop(slot: Slot) -> None:
    """End a connection, whatever its protocol waits for: its transport reads the end, and closes."""
    with suppress(OSError):  # its client was faster
        slot.socket.shutdown(socket.SHUT_RDWR)
