"""The gateway: one agent's WebSocket connection, from its handshake to its close.

A frame is worked on as it comes, where that waits for nothing; a connection's one task reads the others. The first
push is written straight to the accepted connection, before the hub knows it, so that no other push can overtake it. All
later frames are written through the hub.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.agents.hub import Connection, Goodbye, Hub
from server.agents.session import Accepted, Acked, Effect, Ended, Fired, Reported, Session, Stops
from server.changes.hosts import Hosts
from server.errors import ApiException, NotFound, Unauthorized, Unavailable
from server.events import DuplicateAgent, Events, HostAcked, HostConnected
from server.fleet import pushes
from server.fleet.pushes import Push
from server.gateway.buckets import Buckets
from server.gateway.inflow import Inflow
from server.gateway.told import ToldHosts
from server.jobs import notices
from server.jobs.expected import Expectations
from server.jobs.pieces import pieces
from server.jobs.queue import Ended as JobsEnded
from server.jobs.queue import wire_id
from server.jobs.reports import Reports
from server.resources.selectors import is_dns_name
from server.store.engine import Store, StoreClosedError
from server.store.futures import stored, then
from server.store.hosts import get_host, host_hello
from server.store.queue import count_of_host, of_host
from wire import codec
from wire.messages import (
    CHECK_PROTOCOL,
    HOST_HEADER,
    PROTOCOL,
    FromAgent,
    Hello,
    JobCounted,
    JobFinished,
    JobLog,
    JobReport,
)

log = logging.getLogger(__name__)

HELLO_S = 10.0
"""Seconds from the handshake within which the hello must arrive."""
INPUT_RATE, INPUT_BURST = 2_000.0, 20_000.0
"""Input that is read from a host per second, and at once. Each message and each KiB counts as one. The rest is read
later, and nothing is lost."""
MAX_UNSTORED = 32
"""How many things that a host said may wait to be stored while its next frame is read."""
MAX_SHORT = 4096
"""Characters of the longest frame that is worked on at once, between those of other hosts."""
HELLO_RATE, HELLO_BURST = 2.0, 30.0
"""How often a host may connect per second, and at once. More are closed with BUSY. Each thousand open jobs of the host
count as one more hello, since each hello compares them all with the agent's."""
ALIVE_S = 30.0
"""Seconds without a sign of life from an agent after which another process of it is its successor. Pings come often
enough."""
ARRIVAL_RATE, ARRIVAL_BURST = 2_000.0, 4_000.0
"""How many connections a server admits per second, and at once; more are denied with 503. A hello takes a core more
than half a millisecond, so that one process never serves more than this, whatever comes; those that wait for it would
only use memory. Agents come again with a growing, random pause."""
BUSY = 1013
"""Close code for "try again later" (registered by IANA, RFC 6455, section 11.7)."""
REPLACED = 4000
"""Close code of a connection that a newer one of the same host replaced (private use, RFC 6455, section 7.4.2)."""
CLOSED = Goodbye(REPLACED, "this host connected again, or it was deleted, or its key was revoked")
REFUSED = 4001
"""Close code of a connection whose token is no longer valid."""
NOT_DECLARED = 4003
"""Close code of a connection that asks for a host that is not declared."""
DUPLICATE = 4002
"""Close code of a second agent's connection, while the first agent of its host answers pings."""


class Gateway:
    """Accepts the connections of agents, and performs the effects of their sessions.

    `authenticate`: returns the host that a token is for, "" for any host. It raises Unauthorized for a wrong token, and
    Unavailable when the token cannot be checked now.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a connection asks for many things
        self,
        hub: Hub,
        hosts: Hosts,
        reports: Reports,
        store: Store,
        events: Events,
        authenticate: Callable[[str], Awaitable[str]],
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        expectations: Expectations,
    ) -> None:
        self._hub = hub
        self._expectations = expectations
        self._hosts = hosts
        self._reports = reports
        self._store = store
        self._events = events
        self._authenticate = authenticate
        self._clock = clock
        self._new_id = new_id
        self.told_hosts = ToldHosts(store.server, is_shared=store.is_shared)
        self._session_ids = itertools.count(1)
        self._input = Buckets(INPUT_RATE, INPUT_BURST)
        self._hellos = Buckets(HELLO_RATE, HELLO_BURST)
        self._arrivals = Buckets(ARRIVAL_RATE, ARRIVAL_BURST)

    async def endpoint(self, websocket: WebSocket) -> None:
        """Run one connection, from its handshake to its close."""
        disconnects = self._hub.disconnects
        if not self._hub.accepts:
            await websocket.send_denial_response(PlainTextResponse("this server stops: connect again\n", 503))
            return
        now = asyncio.get_running_loop().time()
        if self._arrivals.wait("", now, 1):
            denial = PlainTextResponse("too many agents connect at once: try again later\n", 503, {"retry-after": "1"})
            await websocket.send_denial_response(denial)
            return
        self._arrivals.use("", 1, now)
        try:
            allowed = await self._allowed_host(websocket)
        except ApiException as error:
            log.warning("agent refused", extra={**_claim(websocket), "reason": str(error)})
            denial = PlainTextResponse(f"{error}\n", error.status, dict(error.headers))
            await websocket.send_denial_response(denial)
            return
        offered = websocket.scope["subprotocols"]
        if PROTOCOL not in offered and CHECK_PROTOCOL not in offered:
            await websocket.send_denial_response(PlainTextResponse(f"the subprotocol {PROTOCOL} is needed\n", 400))
            return
        await websocket.accept(PROTOCOL if PROTOCOL in offered else CHECK_PROTOCOL)
        try:
            if PROTOCOL in offered:
                await self._serve(websocket, allowed, disconnects)
            await self._tell_expected(websocket, allowed, disconnects)
        except WebSocketDisconnect:
            return
        except codec.FrameError as error:
            log.warning("connection closed: malformed frame", extra={**_claim(websocket), "reason": str(error)})
            code, reason = 1007, codec.close_reason(error)
        except Unavailable as error:  # not everything was stored: the agent sends it again on its next connection
            code, reason = BUSY, codec.close_reason(error)
        except NotFound as error:
            code, reason = NOT_DECLARED, codec.close_reason(error)
        except asyncio.CancelledError as error:  # by `Connection.close`
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            code, reason = next((it for it in error.args if isinstance(it, Goodbye)), CLOSED)
        with suppress(WebSocketDisconnect):
            await websocket.close(code, reason)

    async def _allowed_host(self, websocket: WebSocket) -> str:
        """The host that the token of a connection is for, "" for any host. Raises Unauthorized, Unavailable."""
        scheme, _, token = websocket.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("this needs the header 'Authorization: Bearer TOKEN', with the token of an agent")
        return await self._authenticate(token.strip())

    async def _check_again(self, websocket: WebSocket, disconnects: int) -> int:
        """Check the token again if any host was disconnected during the handshake: the token may be that host's.

        `disconnects`: `Hub.disconnects` at the check before; returns that at this one, since when nothing was awaited.
        Raises WebSocketDisconnect when the token is not valid now.
        """
        while disconnects != self._hub.disconnects:
            disconnects = self._hub.disconnects
            try:
                await self._allowed_host(websocket)
            except ApiException as error:
                log.warning("agent refused", extra={**_claim(websocket), "reason": str(error)})
                await websocket.close(REFUSED, codec.close_reason(error))
                raise WebSocketDisconnect(REFUSED) from None
        return disconnects

    async def _read_hello(self, websocket: WebSocket, allowed: str) -> Hello:
        """Read the hello. Raises FrameError for another message, for another host's hello and after `HELLO_S`."""
        try:
            async with asyncio.timeout(HELLO_S):
                _check_text(frame := await _frame(websocket))
                messages = codec.from_agent.read(frame)
        except TimeoutError:
            raise codec.FrameError(f"no hello within {HELLO_S:.0f} s") from None
        if len(messages) != 1 or not isinstance(hello := messages[0][0], Hello):
            raise codec.FrameError("the first frame must be one hello")
        if allowed not in ("", hello.host):
            raise codec.FrameError(f"this token is not for host {hello.host!r}")
        return hello

    async def _refuse_duplicate(self, websocket: WebSocket, hello: Hello) -> None:
        """Close the connection of a second agent while the first agent of its host answers pings.

        A process that connects again replaces its old connection at once. Another process does so when the old
        connection answers no ping, as after a crash of the machine. Raises WebSocketDisconnect after a refusal.
        """
        while (first := self._hub.newest(hello.host)) is not None:
            if hello.instance in ("", first.instance) or not first.instance:
                return  # the same process, or an agent that names no instance
            if not await first.is_alive():
                if self._hub.newest(hello.host) is first:
                    return
            elif self._hub.newest(hello.host) is first:
                if first.session.refuse_duplicate(self._clock()):
                    self._publish_duplicate(first.session)
                log.warning("second agent of a host refused: stop it, or name it otherwise", extra=_claim(websocket))
                await websocket.close(
                    DUPLICATE, "another agent of this host is connected: stop one of them, or rename it"
                )
                raise WebSocketDisconnect(DUPLICATE)

    def replaced_elsewhere(self, connection: Connection, instance: str) -> None:
        """A host said hello to another server, as this process of its agent. If another process of it was heard here a
        moment ago, the host has two agents."""
        idle_s = asyncio.get_running_loop().time() - connection.received_at
        if instance and connection.instance not in ("", instance) and idle_s < ALIVE_S:
            if connection.session.refuse_duplicate(self._clock()):
                self._publish_duplicate(connection.session)
            log.warning("two agents of a host connect in turn: stop one, or rename it", extra={"host": connection.host})

    def _publish_duplicate(self, session: Session) -> None:
        """Publish that a host has the DuplicateAgent problem, now and each 30 s until it has it no longer."""
        self._events.publish(DuplicateAgent(session.name))
        if session.duplicate_at is not None:
            self._reports.tell(notices.Duplicate(session.name, session.duplicate_at))
        if session.is_duplicate(self._clock()):
            asyncio.get_running_loop().call_later(30.0, self._publish_duplicate, session)

    async def _serve(self, websocket: WebSocket, allowed: str, disconnects: int) -> NoReturn:
        """Read the hello, then all frames. Raises WebSocketDisconnect, FrameError, Unavailable, CancelledError."""
        hello = await self._read_hello(websocket, allowed)
        await self._refuse_duplicate(websocket, hello)
        open_jobs = await self._limit_hellos(websocket, hello.host)
        disconnects = await self._check_again(websocket, disconnects)  # before its host may be created
        websocket.state.peer.keep()
        session = await self._hosts.session(hello.host, hello.applied_version)
        await self._check_again(websocket, disconnects)  # from here on, the hub closes the connection
        connection = Connection(websocket.state.peer, session, next(self._session_ids), hello.instance)
        self._hub.replace(connection)
        try:
            await self._welcome(connection, hello, websocket, has_jobs=bool(open_jobs or hello.running_jobs))
            del hello  # an idle connection should use little memory
            inflow = Inflow()
            connection.take_frames(partial(self._take, connection, inflow))
            while True:
                with inflow.released():
                    frame = await _frame(websocket)
                await inflow.until_stored()
                await self._receive(connection, frame)
        finally:
            self._hub.remove(connection)

    async def _tell_expected(self, websocket: WebSocket, allowed: str, disconnects: int) -> NoReturn:
        """Tell an agent that only asks what its host is to hold, and close.

        The connection of the host's agent, if there is one, stays: this one is no host's. Raises WebSocketDisconnect,
        FrameError, NotFound.
        """
        hello = await self._read_hello(websocket, allowed)
        await self._limit_hellos(websocket, hello.host)
        await self._check_again(websocket, disconnects)
        await websocket.send_text(codec.encode((self._expectations.of(hello.host),)))
        await websocket.close()
        raise WebSocketDisconnect

    async def _limit_hellos(self, websocket: WebSocket, host: str) -> int:
        """Close the connection of a host that connects too often. Raises WebSocketDisconnect then.

        Returns how many open jobs the host has, up to some number.
        """
        now = asyncio.get_running_loop().time()
        if wait_s := self._hellos.wait(host, now, 1):
            await websocket.close(BUSY, f"this host connects too often: try again in {wait_s:.1f} s")
            raise WebSocketDisconnect(BUSY)
        open_jobs = await self._store.read(count_of_host, host, int(1000 * HELLO_BURST))
        self._hellos.use(host, 1 + open_jobs / 1000, now)
        return open_jobs

    def _take(self, connection: Connection, inflow: Inflow, frame: str) -> bool:
        """Do what a frame asks for at once, and wait for nothing. Returns False where its connection's task is to.

        The task reads frames that are long or malformed, those with lines of logs, of which only the first are kept,
        those of a host that has used up its input, and those that come while much of what the host said is not stored
        yet: while it waits, nothing is read.
        """
        host, now = connection.host, asyncio.get_running_loop().time()
        if self._hub.newest(host) is not connection:
            return True  # a newer one came, perhaps to another server: the agent says it again there
        if not inflow.is_open(MAX_UNSTORED) or len(frame) > MAX_SHORT or self._input.wait(host, now) > 0:
            return False
        try:
            messages = _read(frame)
        except codec.FrameError:
            return False
        if any(isinstance(message, JobLog) for message, _ in messages):
            return False
        self._input.use(host, len(messages), now)
        try:
            begun = self._begin(connection, connection.session.received(messages, self._clock()))
        except (Unavailable, StoreClosedError) as error:
            connection.refuse(BUSY, codec.close_reason(error))
            return True
        inflow.add(len(begun) or 1)
        for future in begun:
            future.add_done_callback(partial(self._stored, connection, inflow))
        if not begun:
            asyncio.get_running_loop().call_soon(inflow.stored)  # so many frames in one turn of the loop
        return True

    def _stored(self, connection: Connection, inflow: Inflow, future: "asyncio.Future[Any]") -> None:
        """Something that a frame brought is stored. If it is not, the agent says it again on its next connection."""
        inflow.stored()
        if not future.cancelled() and (error := future.exception()) is not None:
            if not isinstance(error, Unavailable):
                log.error("what a host said cannot be stored", extra={"host": connection.host}, exc_info=error)
            connection.refuse(BUSY, codec.close_reason(Unavailable(str(error))))

    async def _receive(self, connection: Connection, frame: str) -> None:
        """Do what the messages of a frame ask for, and wait until the host may send more.

        While this waits nothing is read, so that TCP flow control stops the host (RFC 9293, section 3.8.6).
        """
        clock = asyncio.get_running_loop().time
        if wait_s := self._input.wait(connection.host, clock()):
            await asyncio.sleep(wait_s)
        messages = _read(frame)
        amount = len(messages) + len(frame) // 1024
        del frame
        for some in pieces(messages):
            await self._perform(connection, connection.session.received(some, self._clock()))
            await asyncio.sleep(0)  # let other tasks run
        del messages
        if wait_s := self._input.use(connection.host, amount, clock()):
            await asyncio.sleep(wait_s)

    async def _welcome(self, connection: Connection, hello: Hello, websocket: WebSocket, *, has_jobs: bool) -> None:
        """Answer a hello: write the first push, let the hub have the connection, compare jobs, store the hello.

        `has_jobs`: whether there were any, here or there; those that came since were not sent yet. A newer connection
        of this host may cancel it at each await.
        """
        session, now = connection.session, self._clock()
        if self._store.is_shared:  # another server may have had the host until now
            session.adopt_row(await self._store.read(get_host, session.name))
        effects = session.hello(connection.session_id, hello, now, empty=not self._hosts.schedules_are_declared())
        connection.push_written()
        first = [pushes.frame(effect) for effect in effects if isinstance(effect, Push)]
        for frame in [*self._hub.credentials(connection), *first]:
            await websocket.send_text(frame)
        self._hub.register(connection)
        self._events.publish(HostConnected(session.name))
        self._hub.deliver(session.name, session.registered())
        if has_jobs:
            await self._resume(connection, set(hello.running_jobs))
        arriving = self._reports.connected(session.name, hello.running_jobs, hello.instance, stops=hello.stops)
        arrived = await asyncio.shield(arriving)
        self._hub.numbered(connection, arrived.session or 0)
        facts = (session.name, connection.number, hello.agent_version, hello.restic_version, now)
        await self._store.write(host_hello, facts, session.name)
        await self._perform(connection, [effect for effect in effects if not isinstance(effect, Push)])

    async def _resume(self, connection: Connection, running: set[str]) -> None:
        """Compare the attempts that a host has with its open jobs, a part at a time."""
        session, after, unknown = connection.session, "", set(running)
        while some := await self._store.read(of_host, session.name, after):
            after = some[-1].id
            unknown.difference_update(map(wire_id, some))
            await self._perform(connection, self._reports.resume(session, running, some))
        await self._perform(connection, self._reports.resume_unknown(session, unknown))

    async def _perform(self, connection: Connection, effects: Sequence[Effect]) -> None:
        """Perform the effects of a session, and wait until they are stored. Raises Unavailable."""
        await stored(*self._begin(connection, effects))

    def _begin(self, connection: Connection, effects: Sequence[Effect]) -> "list[asyncio.Future[Any]]":
        """Perform the effects of a session. Returns what is being stored, in this order; rows that several connections
        store at once share a commit. What is answered is answered once it is stored. Raises Unavailable."""
        session, reports, now = connection.session, self._reports, self._clock()
        begun: list[asyncio.Future[Any]] = []
        for effect in effects:
            match effect:
                case Fired(fires):
                    ids = [self._new_id() for _ in fires]
                    begun += reports.fire(session, fires, ids, now, connection.write)
                case Ended(ends):
                    begun.append(then(reports.finish(session.name, ends), partial(_confirm, connection, ends)))
                case Stops():
                    begun.append(reports.stops(session.name))
                case Accepted(job_ids):
                    begun.append(reports.accept(session.name, job_ids))
                case Acked():
                    begun += self._acked(connection, effect, now)
                case Reported(messages):
                    begun += [it for message in messages for it in self._reported(session.name, message)]
                case _:
                    connection.write(effect)
        return begun

    def _reported(self, host: str, message: JobReport) -> "Sequence[asyncio.Future[Any]]":
        """Take what a host said of a running job. Returns what is being stored."""
        match message:
            case JobLog(job_id, lines):
                return self._reports.log(host, job_id, lines)
            case JobCounted():
                return self._reports.counted(host, message)
        self._reports.progress(host, message)
        return []

    def _acked(self, connection: Connection, acked: Acked, now: datetime) -> "list[asyncio.Future[Any]]":
        """Store an ack, and publish it with the time since its push."""
        session, begun = connection.session, []
        number, told = connection.number, self.told_hosts

        def publish(_: None) -> None:
            seconds = connection.push_acked() if session.holds_desired else None
            self._events.publish(HostAcked(session.name, acked.version, seconds))

        if acked.left_out is not None:
            left_out = (session.name, number, acked.left_out, now)
            begun.append(then(self._store.submit(told.left_out, left_out, session.name), lambda _: None))
        ack = (session.name, number, acked.version, acked.digest, now)
        begun.append(then(self._store.submit(told.acks, ack, session.name), publish))
        return begun


def _confirm(connection: Connection, ends: Sequence[JobFinished], ended: JobsEnded) -> None:
    """Confirm ends that are stored, except those of other hosts' jobs."""
    if own := [end for end in ends if end.job_id not in ended.foreign]:
        for effect in connection.session.finished(own):
            connection.write(effect)


def _read(frame: str) -> list[tuple[FromAgent, str]]:
    """The messages of a frame after the hello. Raises FrameError."""
    _check_text(frame)
    messages = codec.from_agent.read(frame)
    if any(isinstance(message, Hello) for message, _ in messages):
        raise codec.FrameError("a second hello: only the first frame may be one")
    return messages


def _check_text(text: str) -> None:
    """Raise FrameError for a frame with a NUL: PostgreSQL stores none, and no name of a file has one."""
    if "\\u0000" in text and _NUL.search(text):
        raise codec.FrameError("frame: holds a NUL")


async def _frame(websocket: WebSocket) -> str:
    """The next frame. Raises WebSocketDisconnect at the end of the connection, and FrameError for a binary frame."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
    text: str | None = message.get("text")
    if text is None:
        raise codec.FrameError("binary frame: frames are text")
    return text


def _claim(websocket: WebSocket) -> dict[str, str]:
    """For logs: the host that a connection claims to be, unproved, and the address that it comes from."""
    claimed = websocket.headers.get(HOST_HEADER, "")
    known = {"claims": claimed if is_dns_name(claimed) else "an invalid name"}
    address = websocket.client.host if websocket.client is not None else ""
    return {**(known if claimed else {}), "address": address}


_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")
"""A NUL in JSON text, but not an escaped backslash before `u0000`."""
