"""The hub: the session of every host, and the connection of every host that is online.

Frames are written to the connection's transport, which buffers what the kernel does not accept yet. So no caller waits
for a slow agent, and an idle connection needs no task or queue for writing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from server.agents.session import Effect, Send, Session
from server.events import Events, HostDisconnected
from server.fleet import pushes
from server.fleet.pushes import Push
from wire import codec

log = logging.getLogger(__name__)

MAX_UNSENT = 64 << 20
"""Bytes that may be unsent on a connection before it is aborted."""
PROBE_S = 5.0
"""Seconds that a host's agent has to answer a ping before another process may take its place."""


class Peer(Protocol):
    """A WebSocket connection, as `transport` puts it into the WebSocket's `state`.

    `received_at`: when bytes last arrived, pongs included, by the loop's clock.
    """

    received_at: float

    def write(self, frame: str) -> int:
        """Write a text frame without waiting. Returns the bytes that are unsent then. A closing connection drops it."""

    def take_frames(self, take: Callable[[str], bool] | None) -> None:
        """Give each frame to this callback first; where it returns False, to the task that receives. None: no more."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a code, without waiting; its task receives a disconnect."""

    def abort(self) -> None:
        """Drop the connection at once, with what is unsent."""

    async def answers_ping(self, within_s: float) -> bool:
        """Whether the other end answers a ping within so many seconds."""

    def keep(self) -> None:
        """Exempt the connection from being closed when there are too many."""


class Credentials(Protocol):
    """The credentials of the repositories that hosts need."""

    def changed(self, host: str, sent: object) -> tuple[object, str] | None:
        """The repositories that a host needs, and the frame with their credentials; None if these equal `sent`."""


class Goodbye(NamedTuple):
    """With what a connection is closed (RFC 6455, section 7.4)."""

    code: int
    reason: str


SENT_AWAY = Goodbye(1012, "the server sends this host to another one, or it restarts")
"""1012 is "service restart" (registered by IANA): the agent connects again soon, and does not slow down."""


class NewestHello(NamedTuple):
    """The newest hello of a host that is known here. `session`: its number, which grows over all servers. `server`: the
    other one that has the host; None if none of the others has."""

    session: int
    server: str | None


class Connection:
    """One agent's connection. Frames are sent in the order in which they were given.

    `instance`: the id of the agent process. `number`: the number of its hello over all servers; 0 until that is stored.
    `reader`: the task that reads the connection. `repositories`: those whose
    credentials it was sent.
    """

    __slots__ = (
        "_peer",
        "_pushed_at",
        "_received_at",
        "instance",
        "number",
        "reader",
        "repositories",
        "session",
        "session_id",
    )

    def __init__(self, peer: Peer, session: Session, session_id: int, instance: str) -> None:
        self.session = session
        self.session_id = session_id
        self.instance = instance
        self.number = 0
        self.reader = asyncio.current_task()
        self.repositories: object = ()
        self._pushed_at = 0.0  # when the unacked push was written, by the loop's clock
        self._peer = peer
        self._received_at = peer.received_at

    @property
    def host(self) -> str:
        """The name of its host."""
        return self.session.name

    @property
    def received_at(self) -> float:
        """When bytes last arrived from the host, by the loop's clock."""
        with suppress(ReferenceError):  # the peer was freed: keep what it last said
            self._received_at = self._peer.received_at
        return self._received_at

    def send(self, frame: str) -> None:
        """Send a frame; one that has ended drops it. It is aborted when more than `MAX_UNSENT` is unsent."""
        with suppress(ReferenceError):  # the peer was freed
            if self._peer.write(frame) > MAX_UNSENT:
                log.error("host reads too slowly: connection aborted", extra={"host": self.host})
                self._peer.abort()  # a close frame would wait behind the unsent bytes

    def write(self, effect: Effect) -> None:
        """Write a `Send` or a `Push`. Other effects are not for the wire, and are ignored."""
        match effect:
            case Send(messages, answers):
                self.send(codec.encode(messages, answers))
            case Push():
                self.push_written()
                self.send(pushes.frame(effect))

    def push_written(self) -> None:
        """Note that a push is written now."""
        self._pushed_at = asyncio.get_running_loop().time()

    def push_acked(self) -> float | None:
        """Note that the last push was acked. Returns the seconds since it was written; None if no push was unacked."""
        if not self._pushed_at:
            return None
        pushed_at, self._pushed_at = self._pushed_at, 0.0
        return asyncio.get_running_loop().time() - pushed_at

    def credentials_sent(self, repositories: object) -> None:
        """Note that the credentials of these repositories are sent now."""
        self.repositories = repositories

    def set_number(self, number: int) -> None:
        """Its hello is stored, with this number."""
        self.number = number

    async def is_alive(self) -> bool:
        """Whether the agent answers a ping."""
        try:
            return await self._peer.answers_ping(PROBE_S)
        except ReferenceError:  # the peer was freed
            return False

    def take_frames(self, take: Callable[[str], bool]) -> None:
        """Have frames go to this callback first; where it returns False, to the reader."""
        self._peer.take_frames(take)

    def refuse(self, code: int, reason: str) -> None:
        """Close the connection now, as not all that the host said could be stored."""
        with suppress(ReferenceError):  # the peer was freed
            self._peer.close(code, reason)

    def close(self, goodbye: Goodbye | None = None) -> None:
        """Have the reader close the connection with a code, so that its agent connects again."""
        with suppress(ReferenceError):  # the peer was freed
            self._peer.take_frames(None)
        if self.reader is not None:
            self.reader.cancel(goodbye)


class Hub:
    """Sessions and connections by host.

    A connection is the newest of its host from its hello on. It is registered, so that pushes reach it, once its first
    push was written. Of hosts that say hello to several servers, the newest hello counts: the hub hears of those.
    """

    def __init__(self, credentials: Credentials, events: Events, clock: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._events = events
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._newest: dict[str, Connection] = {}
        self._registered: dict[str, Connection] = {}
        self._hellos: dict[str, NewestHello] = {}
        self._gone: set[str] = set()  # servers that are dead, of whose hellos some may be heard of later
        self._disconnects = 0
        self._accepts = True

    # Sessions.

    def session(self, host: str) -> Session | None:
        """The session of a host; None when the host is not known."""
        return self._sessions.get(host)

    def sessions(self) -> list[Session]:
        """The sessions of all known hosts. Any thread may call it."""
        return list(self._sessions.values())

    def add(self, session: Session) -> None:
        """Add the session of a host that became known."""
        self._sessions[session.name] = session

    def forget(self, host: str) -> None:
        """Remove a deleted host, and close its connection."""
        self._sessions.pop(host, None)
        self.disconnect(host)
        self._hellos.pop(host, None)

    # Connections.

    @property
    def disconnects(self) -> int:
        """How often `disconnect` was called. A handshake during which it grows checks its token again."""
        return self._disconnects

    @property
    def accepts(self) -> bool:
        """Whether agents may connect: not while the server stops."""
        return self._accepts

    def stop_accepting(self) -> None:
        """Let no agent connect any more."""
        self._accepts = False

    def connected(self) -> list[str]:
        """The hosts that are connected to this server."""
        return list(self._newest)

    def connected_anywhere(self) -> set[str]:
        """The hosts that are connected to this server or another one, as `is_connected` tells it."""
        return self._registered.keys() | {host for host, it in self._hellos.items() if it.server is not None}

    def is_connected(self, host: str) -> bool:
        """Whether a host has a connection that pushes reach, to this server or another one."""
        return host in self._registered or ((hello := self._hellos.get(host)) is not None and hello.server is not None)

    def is_connected_here(self, host: str) -> bool:
        """Whether a host has a connection to this server that pushes reach."""
        return host in self._registered

    def last_seen(self, host: str) -> datetime | None:
        """When the server last received anything from a connected host; None when it is not connected."""
        connection = self._registered.get(host)
        return None if connection is None else self._last_seen(connection)

    def last_seen_times(self) -> Iterator[tuple[str, int, datetime]]:
        """Every host that is connected here, the hello's number, and when the server last received anything from it."""
        return ((name, it.number, self._last_seen(it)) for name, it in list(self._registered.items()))

    def _last_seen(self, connection: Connection) -> datetime:
        return self._clock() - timedelta(seconds=asyncio.get_running_loop().time() - connection.received_at)

    def newest(self, host: str) -> Connection | None:
        """The newest connection of a host; None when it has none."""
        return self._newest.get(host)

    def replace(self, connection: Connection) -> None:
        """Make this the newest connection of its host, and close the older one."""
        self._close(connection.host)
        self._newest[connection.host] = connection

    def register(self, connection: Connection) -> None:
        """Let pushes reach a connection: its first push was written."""
        self._registered[connection.host] = connection

    def numbered(self, connection: Connection, number: int) -> None:
        """A connection's hello is stored with a number. If a newer one is known, the connection is closed."""
        connection.set_number(number)
        known = self._hellos.get(connection.host)
        if known is None or known.session < number:
            self._hellos[connection.host] = NewestHello(number, None)
        elif self._newest.get(connection.host) is connection:
            self._close(connection.host)

    # Connections to other servers.

    def heard_hello(self, host: str, hello: NewestHello) -> bool:
        """A host said hello to another server. If that is the newest, an older connection here is closed; one whose
        hello is not stored yet may be newer. Returns whether it is."""
        if not self.is_newest(host, hello.session):
            return False
        self._hellos[host] = hello._replace(server=None) if hello.server in self._gone else hello
        if (connection := self._newest.get(host)) is not None and connection.number:
            self._close(host)
        return True

    def is_newest(self, host: str, session: int) -> bool:
        """Whether no newer hello of a host is known than the one of this number."""
        return (known := self._hellos.get(host)) is None or known.session <= session

    def heard_goodbye(self, host: str, server: str) -> bool:
        """A host's connection to another server is gone. Returns whether that was its newest."""
        known = self._hellos.get(host)
        if known is None or known.server != server:
            return False
        self._hellos[host] = known._replace(server=None)
        return True

    def heard_end(self, server: str) -> list[str]:
        """Another server is gone. Returns the hosts that it had."""
        self._gone.add(server)
        hosts = [host for host, hello in self._hellos.items() if hello.server == server]
        return [host for host in hosts if self.heard_goodbye(host, server)]

    # Frames.

    def credentials(self, connection: Connection) -> list[str]:
        """The frame with the credentials that the host needs; none when it has them already."""
        changed = self._credentials.changed(connection.host, connection.repositories)
        if changed is None:
            return []
        needed, frame = changed
        connection.credentials_sent(needed)
        return [frame]

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write effects to a host that is online, after the credentials that they may need.

        A host that is offline gets nothing: its next hello brings it up to date.
        """
        if (connection := self._registered.get(host)) is not None:
            for frame in self.credentials(connection):
                connection.send(frame)
            for effect in effects:
                connection.write(effect)

    def disconnect(self, host: str) -> None:
        """Close the connection of a host whose right to connect may have ended. Handshakes under way check it again."""
        self._disconnects += 1
        self._close(host)

    def send_away(self, host: str) -> None:
        """Close the connection of a host, so that it connects again, perhaps to another server."""
        self._close(host, SENT_AWAY)

    def disconnect_all(self) -> None:
        """Close all connections."""
        for host in list(self._newest):
            self.send_away(host)

    def _close(self, host: str, goodbye: Goodbye | None = None) -> None:
        if (connection := self._newest.get(host)) is not None:
            self.remove(connection)
            connection.close(goodbye)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended. A newer connection of its host is left alone."""
        host = connection.host
        connection.session.disconnected(connection.session_id)
        if self._newest.get(host) is connection:
            del self._newest[host]
        if self._registered.get(host) is connection:
            del self._registered[host]
            self._events.publish(HostDisconnected(host, self._last_seen(connection), connection.number))
            log.info("host disconnected", extra={"host": host})
