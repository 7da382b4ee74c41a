"""The agents' gateway: their WebSocket connections, and the hub that finds a host's connection.

A connection is one task, which reads. The first push is written straight to the connection that was just accepted,
before the hub can find it. Whatever is sent later is handed to its transport, which keeps what the kernel does not take
yet, so that nobody waits for a slow reader and an idle connection costs nothing more.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import NoReturn, Protocol

import msgspec
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import pushes, records
from server.buckets import Buckets
from server.control import Control, Needed
from server.dispatch import stored, then
from server.host import Accepted, Acked, Effect, Finish, Host, News, Record, Send
from server.problems import Problem, Unauthorized, Unavailable
from server.pushes import Push
from server.queue import pieces
from server.selectors import is_dns_name
from server.store import Store, StoreClosedError
from wire import codec
from wire.messages import HOST_HEADER, PROTOCOL, FromAgent, Hello, JobLog, ScheduleRefused

log = logging.getLogger(__name__)

HELLO_S = 10.0
"""Seconds within which a connection must say hello."""
MAX_UNSENT = 64 << 20
"""Bytes that may wait for a slow agent before its connection is given up."""
USES_S, USES_AT_ONCE = 2_000.0, 20_000.0
"""What a host may say: each message, and each KiB, counts as one use. So many a second, and so many at once; a host
that says more is heard more slowly, and loses nothing."""
HELLOS_S, HELLOS_AT_ONCE = 2.0, 30.0
"""How often a host may connect: so often in a second, and so often at once. It is told to try again later. Each
thousand jobs that it has open count as one more connection, for they are looked at and may be sent again."""
BUSY = 1013
"""Close code for what is to be tried again later (RFC 6455, 11.7: registered by IANA)."""
REPLACED = 4000
"""Close code for a connection that another one of the same host has replaced (RFC 6455, 7.4.2: private use)."""

REFUSED = 4001
"""Close code for a connection whose token is not good any more."""
DUPLICATE = 4002
"""Close code for the connection of a second agent of a host whose first one answers."""
SEEN_S = 300.0
"""Seconds between two times of storing when connected hosts were last heard of, for a server that is killed later."""
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


class Connection:
    """One agent's connection: frames leave in the order in which they are given."""

    __slots__ = ("_heard_at", "_peer", "host", "instance", "pushed_at", "reader", "repositories", "session")

    def __init__(self, peer: Peer, host: Host, session: int, instance: str) -> None:
        self.host = host
        self.instance = instance
        self.session = session
        self.pushed_at = 0.0  # when a push was written that is yet to be acked, by the loop's clock
        self.reader = asyncio.current_task()
        self.repositories: tuple[Needed, ...] = ()  # those whose credentials it was told
        self._peer = peer
        self._heard_at = peer.heard_at

    @property
    def heard_at(self) -> float:
        """When anything last came from its host, by the loop's clock."""
        with suppress(ReferenceError):  # it is gone
            self._heard_at = self._peer.heard_at
        return self._heard_at

    def send(self, frame: str) -> None:
        """Send a frame. A host that does not read loses its connection before it costs memory without bound."""
        if self._peer.write(frame) > MAX_UNSENT:
            log.error("host reads too slowly: connection given up", extra={"host": self.host.name})
            self._peer.abort()  # a close frame would wait behind what is not read

    async def is_alive(self) -> bool:
        """Whether the agent at the other end answers."""
        try:
            return await self._peer.answers(PROBE_S)
        except ReferenceError:  # it is gone
            return False

    def replace(self) -> None:
        """End the connection soon: its reader closes it, so that its agent connects again if it still listens."""
        if self.reader is not None:
            self.reader.cancel()


class Gateway:
    """Accepts agents and speaks with them.

    `authenticate`: the host that a token is for, "" for any; it raises Unauthorized, and Unavailable while it cannot
    tell.
    """

    def __init__(
        self,
        control: Control,
        store: Store,
        authenticate: Callable[[str], Awaitable[str]],
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._control = control
        self._store = store
        self._authenticate = authenticate
        self._clock = clock
        self._new_id = new_id
        self._sessions = itertools.count(1)
        self._latest: dict[str, Connection] = {}  # each host's newest connection, from its hello on
        self._hub: dict[str, Connection] = {}  # those that others may write to, from their first push on
        self._uses = Buckets(USES_S, USES_AT_ONCE)
        self._hellos = Buckets(HELLOS_S, HELLOS_AT_ONCE)
        self._ended = 0  # how often `disconnect` was called

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While entered, agents can connect; on leaving, what is still being sent is given up."""
        control = self._control
        control.deliver, control.is_connected, control.disconnect = self.deliver, self.connected, self.disconnect
        control.jobs.deliver, control.last_heard = self.deliver, self.last_heard
        noting = asyncio.create_task(self._note_seen())
        try:
            yield
        finally:
            noting.cancel()
            for host in list(self._latest):
                self._replace(host)

    def connected(self, host: str) -> bool:
        """Whether a host has a connection that pushes reach."""
        return host in self._hub

    def last_heard(self, host: str) -> datetime | None:
        """When a host that is connected last gave a sign of life, whatever it was; None for one that is not."""
        connection = self._hub.get(host)
        return None if connection is None else self._seen(connection)

    def _seen(self, connection: Connection) -> datetime:
        return self._clock() - timedelta(seconds=asyncio.get_running_loop().time() - connection.heard_at)

    async def _note_seen(self) -> None:
        """Store from time to time when connected hosts were last heard of."""
        while True:
            await asyncio.sleep(SEEN_S)
            seen = [(name, self._seen(connection)) for name, connection in self._hub.items()]
            with suppress(Unavailable):
                await self._store.write(records.hosts_seen, seen)

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write to a host that is online, after the credentials that this may need; one that is offline learns it at
        its next hello."""
        if (connection := self._hub.get(host)) is not None:
            for frame in self._credentials(connection):
                connection.send(frame)
            for effect in effects:
                self._write(connection, effect)

    def disconnect(self, host: str) -> None:
        """End a host's connection, if it has one, even if it has yet to say hello: then it shows again who it is."""
        self._ended += 1
        self._replace(host)

    def _replace(self, host: str) -> None:
        if (connection := self._latest.get(host)) is not None:
            self._forget(connection)
            connection.replace()

    async def endpoint(self, websocket: WebSocket) -> None:
        """One connection, from handshake to close."""
        ended = self._ended
        try:
            allowed = await self._allowed(websocket)
        except Problem as problem:
            log.warning("agent refused", extra={**_claim(websocket), "reason": str(problem)})
            denial = PlainTextResponse(f"{problem}\n", problem.status, dict(problem.headers))
            await websocket.send_denial_response(denial)
            return
        if PROTOCOL not in websocket.scope["subprotocols"]:
            await websocket.send_denial_response(PlainTextResponse(f"the subprotocol {PROTOCOL} is needed\n", 400))
            return
        await websocket.accept(PROTOCOL)
        try:
            await self._serve(websocket, allowed, ended)
        except WebSocketDisconnect:
            return
        except codec.FrameError as error:
            log.warning("connection closed: malformed frame", extra={**_claim(websocket), "reason": str(error)})
            code, reason = 1007, codec.close_reason(error)
        except Unavailable as error:  # what was said is not stored: it is said again on the next connection
            code, reason = BUSY, codec.close_reason(error)
        except asyncio.CancelledError:  # by `Connection.replace`
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            code, reason = REPLACED, "another connection of this host has come, or it was deleted"
        with suppress(WebSocketDisconnect):
            await websocket.close(code, reason)

    async def _allowed(self, websocket: WebSocket) -> str:
        """The host that a connection's token is for, "" for any. Raises Unauthorized, Unavailable."""
        scheme, _, token = websocket.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("this needs the header 'Authorization: Bearer TOKEN', with the token of an agent")
        return await self._authenticate(token.strip())

    async def _check_again(self, websocket: WebSocket, ended: int) -> None:
        """Whoever says hello after someone's right has ended may be that one. Raises WebSocketDisconnect."""
        while ended != self._ended:
            ended = self._ended
            try:
                await self._allowed(websocket)
            except Problem as problem:
                log.warning("agent refused", extra={**_claim(websocket), "reason": str(problem)})
                await websocket.close(REFUSED, codec.close_reason(problem))
                raise WebSocketDisconnect(REFUSED) from None

    async def _first(self, websocket: WebSocket, allowed: str) -> Hello:
        """The hello. Raises FrameError when something else comes, or nothing in time, or another host's."""
        try:
            async with asyncio.timeout(HELLO_S):
                messages = codec.from_agent.read(await _frame(websocket))
        except TimeoutError:
            raise codec.FrameError(f"no hello within {HELLO_S:.0f} s") from None
        if len(messages) != 1 or not isinstance(hello := messages[0][0], Hello):
            raise codec.FrameError("the first frame must be one hello")
        if allowed not in ("", hello.host):
            raise codec.FrameError(f"this token is not for host {hello.host!r}")
        return hello

    async def _refuse_duplicate(self, websocket: WebSocket, hello: Hello) -> None:
        """Have a second agent of a host wait until the first one is gone. Raises WebSocketDisconnect.

        A process that connects anew replaces its old connection at once. Another one takes the place of a connection
        whose agent answers no ping, as that of a process that died with its machine.
        """
        while (first := self._latest.get(hello.host)) is not None:
            if hello.instance in ("", first.instance) or not first.instance:
                return  # the same process, or an agent that does not say which it is
            if not await first.is_alive():
                if self._latest.get(hello.host) is first:
                    return
            elif self._latest.get(hello.host) is first:
                self._tell_duplicate(first.host)
                log.warning("second agent of a host refused: stop it, or name it otherwise", extra=_claim(websocket))
                await websocket.close(
                    DUPLICATE, "another agent of this host is connected: stop one of them, or rename it"
                )
                raise WebSocketDisconnect(DUPLICATE)

    def _tell_duplicate(self, host: Host) -> None:
        """Tell of a host's second agent for a while, and then that it is told of no more."""
        now = self._clock()
        told, host.duplicate_at = host.is_duplicate(now), now
        if not told:
            self._control.news.changed("hosts")
            self._forget_duplicate(host)

    def _forget_duplicate(self, host: Host) -> None:
        self._control.news.changed("hosts")
        if host.is_duplicate(self._clock()):
            asyncio.get_running_loop().call_later(30.0, self._forget_duplicate, host)

    async def _serve(self, websocket: WebSocket, allowed: str, ended: int) -> NoReturn:
        hello = await self._first(websocket, allowed)
        await self._refuse_duplicate(websocket, hello)
        await self._check_again(websocket, ended)
        await self._refuse_haste(websocket, hello.host)
        websocket.state.peer.keep()
        host = await self._control.host(hello.host)
        connection = Connection(websocket.state.peer, host, next(self._sessions), hello.instance)
        self._replace(host.name)
        self._latest[host.name] = connection
        try:
            await self._welcome(connection, hello, websocket)
            del hello  # most connections are idle: they keep nothing that they need no more
            while True:
                frame = await _frame(websocket)
                messages = codec.from_agent.read(frame)
                uses = len(messages) + len(frame) // 1024
                del frame
                await self._hear(connection, messages)
                del messages
                await self._slow_down(host.name, uses)
        finally:
            self._forget(connection)

    async def _refuse_haste(self, websocket: WebSocket, host: str) -> None:
        """Have a host that connects too often wait. Raises WebSocketDisconnect."""
        now = asyncio.get_running_loop().time()
        if wait_s := self._hellos.wait(host, now, 1):
            await websocket.close(BUSY, f"this host connects too often: try again in {wait_s:.1f} s")
            raise WebSocketDisconnect(BUSY)
        self._hellos.use(host, 1 + self._control.jobs.queue.count_of(host) / 1000, now)

    async def _slow_down(self, host: str, uses: float) -> None:
        """Read on only when a host may say more: until then the kernel holds it up (RFC 9293, 3.8.6)."""
        if wait_s := self._uses.use(host, uses, asyncio.get_running_loop().time()):
            await asyncio.sleep(wait_s)

    def _forget(self, connection: Connection) -> None:
        """A connection is over, or another one of its host has come: its place may be taken already."""
        name = connection.host.name
        connection.host.lost(connection.session)
        if self._latest.get(name) is connection:
            del self._latest[name]
        if self._hub.get(name) is connection:
            del self._hub[name]
            self._control.jobs.departed(name)
            with suppress(Unavailable, StoreClosedError):
                then(self._store.submit(records.hosts_seen, [(name, self._seen(connection))]), lambda _: None)
            self._control.news.changed("hosts")
            log.info("host disconnected", extra={"host": name})

    async def _welcome(self, connection: Connection, hello: Hello, websocket: WebSocket) -> None:
        """Answer a hello: the first push goes straight to the connection, which only then can be found by others.

        Another connection of this host ends this one wherever it waits here.
        """
        host, now = connection.host, self._clock()
        effects = host.hello(connection.session, hello, now, empty=not self._control.schedules)
        connection.pushed_at = asyncio.get_running_loop().time()
        first = [pushes.frame(effect) for effect in effects if isinstance(effect, Push)]
        for frame in [*self._credentials(connection), *first]:
            await websocket.send_text(frame)
        self._hub[host.name] = connection
        self._control.news.changed("hosts")
        self.deliver(host.name, host.registered())
        await self._perform(connection, [effect for effect in effects if not isinstance(effect, Push)])
        await self._resume(connection, hello.running_jobs)
        self._control.jobs.arrived(host.name, hello.running_jobs)
        await self._store.write(records.host_hello, (host.name, hello.agent_version, now))

    async def _resume(self, connection: Connection, running: Collection[str]) -> None:
        """Compare the jobs that a host has with those that are open here."""
        host, unknown = connection.host, set(running)
        for some in pieces(self._control.jobs.queue.of_host(host.name)):
            its = unknown.intersection(job.wire_id for job in some)
            unknown -= its
            await self._perform(connection, host.resumed(its, some, self._clock()))
            await asyncio.sleep(0)  # others come between
        await self._perform(connection, host.resumed(unknown, (), self._clock()))

    def _credentials(self, connection: Connection) -> list[str]:
        """The frame that opens what the host needs; none where that is nothing, or what it was told of."""
        needed = self._control.repositories_of(connection.host.name)
        if needed == connection.repositories:
            return []
        connection.repositories = needed
        return [codec.encode((self._control.credentials(connection.host.name, needed),))]

    async def _hear(self, connection: Connection, messages: Sequence[tuple[FromAgent, str]]) -> None:
        if any(isinstance(message, Hello) for message, _ in messages):
            raise codec.FrameError("a connection says hello once")
        for some in pieces(messages):
            await self._hear_some(connection, some)
            await asyncio.sleep(0)  # others come between

    async def _hear_some(self, connection: Connection, messages: Sequence[tuple[FromAgent, str]]) -> None:
        ids = [self._new_id() for _ in messages]
        host = connection.host
        control = self._control
        targets, queue = control.fleet.targets, control.jobs.queue
        await self._perform(connection, host.received(messages, targets, queue, self._clock(), ids))

    async def _perform(self, connection: Connection, effects: Sequence[Effect]) -> None:
        """Do what the host's core asks for. What is stored shares a commit with what other connections store."""
        host, jobs, now = connection.host, self._control.jobs, self._clock()
        for effect in effects:
            match effect:
                case Record(new):
                    await stored(jobs.record(new))
                case Finish(ends):
                    await stored(*jobs.finish(host.name, ends))
                    await self._perform(connection, host.finished(ends))
                case Accepted(job_ids):
                    await stored(*jobs.accept(host.name, job_ids))
                case Acked(version, digest, left_out):
                    await self._store.write(records.host_acks, (host.name, version, digest, now))
                    if left_out is not None:
                        kept = msgspec.structs.asdict(left_out) if left_out.count else None
                        await self._store.write(records.host_left_out, (host.name, kept))
                    self._control.news.changed("hosts", "schedules")
                    if connection.pushed_at and host.proved:
                        self._control.metrics.acked(asyncio.get_running_loop().time() - connection.pushed_at)
                        connection.pushed_at = 0.0
                case News(news):
                    for item in news:
                        if isinstance(item, JobLog):
                            await stored(*jobs.log(host.name, item.job_id, item.lines))
                        else:
                            jobs.progress(host.name, item)
                case _:
                    self._write(connection, effect)

    def _write(self, connection: Connection, effect: Effect) -> None:
        match effect:
            case Send(messages, answers):
                for message in messages:
                    if isinstance(message, ScheduleRefused):
                        self._control.metrics.refused(message.reason)
                connection.send(codec.encode(messages, answers))
            case Push():
                connection.pushed_at = asyncio.get_running_loop().time()
                connection.send(pushes.frame(effect))


async def _frame(websocket: WebSocket) -> str:
    """The next frame. Raises WebSocketDisconnect when the connection ends, FrameError for one that is binary or holds
    a NUL, which no file's name has and PostgreSQL does not store."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
    text: str | None = message.get("text")
    if text is None:
        raise codec.FrameError("binary frame: frames are text")
    if "\\u0000" in text and _NUL.search(text):
        raise codec.FrameError("frame: holds a NUL")
    return text


def _claim(websocket: WebSocket) -> dict[str, str]:
    """Who a connection says that it is, and where it comes from; nothing of it was proved."""
    claimed = websocket.headers.get(HOST_HEADER, "")
    known = {"claims": claimed if is_dns_name(claimed) else "what is no name of a host"}
    address = websocket.client.host if websocket.client is not None else ""
    return {**(known if claimed else {}), "address": address}


_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")
"""A NUL in JSON, rather than a backslash that `u0000` follows."""
