"""The hub: every host's session, and the connection by which its agent is reached while it has one.

Whatever is sent is handed to the connection's transport, which keeps what the kernel does not take yet: nobody waits
for a slow reader, and an idle connection costs nothing more.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

from server.agents.session import Effect, Send, Session
from server.events import Events, HostDisconnected
from server.fleet import pushes
from server.fleet.pushes import Push
from wire import codec

log = logging.getLogger(__name__)

MAX_UNSENT = 64 << 20
"""Bytes that may wait for a slow agent before its connection is given up."""
PROBE_S = 5.0
"""Seconds that the agent of a host has to answer a ping, before another process may take its place."""


class Peer(Protocol):
    """The other end of a connection, as the WebSocket's `state` holds it.

    `heard_at`: when anything last came from there, answers to pings too, by the loop's clock.
    """

    heard_at: float

    def write(self, frame: str) -> int:
        """Send a text frame without waiting; how many bytes are unsent then. Nothing is sent once the end has begun."""

    def abort(self) -> None:
        """Give the connection up at once."""

    async def answers(self, within_s: float) -> bool:
        """Whether the other end answers a ping in that time."""

    def keep(self) -> None:
        """Keep the connection even when there are too many, from its hello on."""


class Credentials(Protocol):
    """What opens the repositories of a host."""

    def changed(self, host: str, told: object) -> tuple[object, str] | None:
        """What a host needs now, and the frame that opens it; None where that is what it was told."""


class Connection:
    """One agent's connection: frames leave in the order in which they are given."""

    __slots__ = ("_heard_at", "_peer", "_pushed_at", "instance", "reader", "repositories", "session", "session_id")

    def __init__(self, peer: Peer, session: Session, session_id: int, instance: str) -> None:
        self.session = session
        self.session_id = session_id
        self.instance = instance
        self._pushed_at = 0.0  # when a push was written that is yet to be acked, by the loop's clock
        self.reader = asyncio.current_task()
        self.repositories: object = ()  # those whose credentials it was told
        self._peer = peer
        self._heard_at = peer.heard_at

    @property
    def host(self) -> str:
        """The name of its host."""
        return self.session.name

    @property
    def heard_at(self) -> float:
        """When anything last came from its host, by the loop's clock."""
        with suppress(ReferenceError):  # the peer is gone
            self._heard_at = self._peer.heard_at
        return self._heard_at

    def send(self, frame: str) -> None:
        """Send a frame. A host that does not read loses its connection before it costs memory without bound."""
        if self._peer.write(frame) > MAX_UNSENT:
            log.error("host reads too slowly: connection given up", extra={"host": self.host})
            self._peer.abort()  # a close frame would wait behind what is not read

    def write(self, effect: Effect) -> None:
        """Send what an effect says. Effects that are not for the wire are left out."""
        match effect:
            case Send(messages, answers):
                self.send(codec.encode(messages, answers))
            case Push():
                self.pushes()
                self.send(pushes.frame(effect))

    def pushes(self) -> None:
        """A push is being written now."""
        self._pushed_at = asyncio.get_running_loop().time()

    def proved(self) -> float | None:
        """The host proved that it holds what it was pushed: seconds since that push; None where there was none."""
        if not self._pushed_at:
            return None
        pushed_at, self._pushed_at = self._pushed_at, 0.0
        return asyncio.get_running_loop().time() - pushed_at

    def knows(self, repositories: object) -> None:
        """The host is being told what opens these."""
        self.repositories = repositories

    async def is_alive(self) -> bool:
        """Whether the agent at the other end answers."""
        try:
            return await self._peer.answers(PROBE_S)
        except ReferenceError:  # the peer is gone
            return False

    def replace(self) -> None:
        """End the connection soon: its reader closes it, so that its agent connects again if it still listens."""
        if self.reader is not None:
            self.reader.cancel()


class Hub:
    """Sessions by host, and connections: the newest of each host, and those that others may write to.

    A connection is the newest from its hello on, and registered from its first push on.
    """

    def __init__(self, credentials: Credentials, events: Events, clock: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._events = events
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._newest: dict[str, Connection] = {}
        self._registered: dict[str, Connection] = {}
        self._disconnects = 0

    # Sessions.

    def session(self, host: str) -> Session | None:
        """The session of a host; None for one that is not known."""
        return self._sessions.get(host)

    def sessions(self) -> list[Session]:
        """The sessions of all hosts that are known. Any thread may ask."""
        return list(self._sessions.values())

    def add(self, session: Session) -> None:
        """A host is known."""
        self._sessions[session.name] = session

    def forget(self, host: str) -> None:
        """A host is known no more; what it has of a connection ends."""
        self._sessions.pop(host, None)
        self.disconnect(host)

    # Connections.

    @property
    def disconnects(self) -> int:
        """How often `disconnect` was called: whoever says hello meanwhile shows again who it is."""
        return self._disconnects

    def is_connected(self, host: str) -> bool:
        """Whether a host has a connection that pushes reach."""
        return host in self._registered

    def last_heard(self, host: str) -> datetime | None:
        """When a host that is connected last gave a sign of life, whatever it was; None for one that is not."""
        connection = self._registered.get(host)
        return None if connection is None else self._seen(connection)

    def seen(self) -> Iterator[tuple[str, datetime]]:
        """When each connected host last gave a sign of life."""
        return ((name, self._seen(connection)) for name, connection in list(self._registered.items()))

    def _seen(self, connection: Connection) -> datetime:
        return self._clock() - timedelta(seconds=asyncio.get_running_loop().time() - connection.heard_at)

    def newest(self, host: str) -> Connection | None:
        """A host's newest connection, from its hello on."""
        return self._newest.get(host)

    def replace(self, connection: Connection) -> None:
        """A host said hello on this connection: its older one, if it has one, ends."""
        self._end(connection.host)
        self._newest[connection.host] = connection

    def register(self, connection: Connection) -> None:
        """The first push was written to a connection: from now on others write to it, too."""
        self._registered[connection.host] = connection

    def credentials(self, connection: Connection) -> list[str]:
        """The frame that opens what the host needs; none where that is nothing, or what it was told of."""
        changed = self._credentials.changed(connection.host, connection.repositories)
        if changed is None:
            return []
        needed, frame = changed
        connection.knows(needed)
        return [frame]

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write to a host that is online, after the credentials that this may need; one that is offline learns it at
        its next hello."""
        if (connection := self._registered.get(host)) is not None:
            for frame in self.credentials(connection):
                connection.send(frame)
            for effect in effects:
                connection.write(effect)

    def disconnect(self, host: str) -> None:
        """End a host's connection, if it has one, even if it has yet to say hello: then it shows again who it is."""
        self._disconnects += 1
        self._end(host)

    def disconnect_all(self) -> None:
        """End all connections."""
        for host in list(self._newest):
            self._end(host)

    def _end(self, host: str) -> None:
        if (connection := self._newest.get(host)) is not None:
            self.remove(connection)
            connection.replace()

    def remove(self, connection: Connection) -> None:
        """A connection is over, or another one of its host has come: its place may be taken already."""
        host = connection.host
        connection.session.lost(connection.session_id)
        if self._newest.get(host) is connection:
            del self._newest[host]
        if self._registered.get(host) is connection:
            del self._registered[host]
            self._events.publish(HostDisconnected(host, self._seen(connection)))
            log.info("host disconnected", extra={"host": host})
