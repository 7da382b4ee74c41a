"""The agents' end of the wire: one WebSocket connection, from its handshake to its close.

A connection is one task, which reads. The first push is written straight to the connection that was just accepted,
before the hub can find it; whatever is sent later goes through the hub.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NoReturn

import msgspec
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.agents.hub import Connection, Hub
from server.agents.session import Accepted, Acked, Effect, Ended, Fired, Reported, Session
from server.changes.hosts import Hosts
from server.errors import ApiException, Unauthorized, Unavailable
from server.events import DuplicateAgent, Events, HostAcked, HostConnected
from server.fleet import pushes
from server.fleet.pushes import Push
from server.gateway.buckets import Buckets
from server.jobs.pieces import pieces
from server.jobs.reports import Reports
from server.resources.selectors import is_dns_name
from server.store.engine import Store
from server.store.futures import stored
from server.store.hosts import host_acks, host_hello, host_left_out
from wire import codec
from wire.messages import HOST_HEADER, PROTOCOL, FromAgent, Hello, JobLog

log = logging.getLogger(__name__)

HELLO_S = 10.0
"""Seconds within which a connection must say hello."""
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


class Gateway:
    """Accepts agents and speaks with them.

    `authenticate`: the host that a token is for, "" for any; it raises Unauthorized, and Unavailable while it cannot
    tell.
    """

    def __init__(
        self,
        hub: Hub,
        hosts: Hosts,
        reports: Reports,
        store: Store,
        events: Events,
        authenticate: Callable[[str], Awaitable[str]],
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._hub = hub
        self._hosts = hosts
        self._reports = reports
        self._store = store
        self._events = events
        self._authenticate = authenticate
        self._clock = clock
        self._new_id = new_id
        self._session_ids = itertools.count(1)
        self._uses = Buckets(USES_S, USES_AT_ONCE)
        self._hellos = Buckets(HELLOS_S, HELLOS_AT_ONCE)

    async def endpoint(self, websocket: WebSocket) -> None:
        """One connection, from handshake to close."""
        ended = self._hub.disconnects
        try:
            allowed = await self._allowed(websocket)
        except ApiException as problem:
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
        except asyncio.CancelledError:  # by `Connection.close`
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
        while ended != self._hub.disconnects:
            ended = self._hub.disconnects
            try:
                await self._allowed(websocket)
            except ApiException as problem:
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
        while (first := self._hub.newest(hello.host)) is not None:
            if hello.instance in ("", first.instance) or not first.instance:
                return  # the same process, or an agent that does not say which it is
            if not await first.is_alive():
                if self._hub.newest(hello.host) is first:
                    return
            elif self._hub.newest(hello.host) is first:
                self._tell_duplicate(first.session)
                log.warning("second agent of a host refused: stop it, or name it otherwise", extra=_claim(websocket))
                await websocket.close(
                    DUPLICATE, "another agent of this host is connected: stop one of them, or rename it"
                )
                raise WebSocketDisconnect(DUPLICATE)

    def _tell_duplicate(self, session: Session) -> None:
        """Tell of a host's second agent for a while, and then that it is told of no more."""
        if session.refuse_duplicate(self._clock()):
            self._forget_duplicate(session)

    def _forget_duplicate(self, session: Session) -> None:
        self._events.publish(DuplicateAgent(session.name))
        if session.is_duplicate(self._clock()):
            asyncio.get_running_loop().call_later(30.0, self._forget_duplicate, session)

    async def _serve(self, websocket: WebSocket, allowed: str, ended: int) -> NoReturn:
        hello = await self._first(websocket, allowed)
        await self._refuse_duplicate(websocket, hello)
        await self._check_again(websocket, ended)
        await self._refuse_haste(websocket, hello.host)
        websocket.state.peer.keep()
        session = await self._hosts.session(hello.host)
        connection = Connection(websocket.state.peer, session, next(self._session_ids), hello.instance)
        self._hub.replace(connection)
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
                await self._slow_down(session.name, uses)
        finally:
            self._hub.remove(connection)

    async def _refuse_haste(self, websocket: WebSocket, host: str) -> None:
        """Have a host that connects too often wait. Raises WebSocketDisconnect."""
        now = asyncio.get_running_loop().time()
        if wait_s := self._hellos.wait(host, now, 1):
            await websocket.close(BUSY, f"this host connects too often: try again in {wait_s:.1f} s")
            raise WebSocketDisconnect(BUSY)
        self._hellos.use(host, 1 + self._reports.count_of(host) / 1000, now)

    async def _slow_down(self, host: str, uses: float) -> None:
        """Read on only when a host may say more: until then the kernel holds it up (RFC 9293, 3.8.6)."""
        if wait_s := self._uses.use(host, uses, asyncio.get_running_loop().time()):
            await asyncio.sleep(wait_s)

    async def _welcome(self, connection: Connection, hello: Hello, websocket: WebSocket) -> None:
        """Answer a hello: the first push goes straight to the connection, which only then can be found by others.

        Another connection of this host ends this one wherever it waits here.
        """
        session, now = connection.session, self._clock()
        effects = session.hello(connection.session_id, hello, now, empty=not self._hosts.schedules_are_declared())
        connection.push_written()
        first = [pushes.frame(effect) for effect in effects if isinstance(effect, Push)]
        for frame in [*self._hub.credentials(connection), *first]:
            await websocket.send_text(frame)
        self._hub.register(connection)
        self._events.publish(HostConnected(session.name))
        self._hub.deliver(session.name, session.registered())
        await self._perform(connection, [effect for effect in effects if not isinstance(effect, Push)])
        await self._resume(connection, hello.running_jobs)
        self._reports.connected(session.name, hello.running_jobs)
        await self._store.write(host_hello, (session.name, hello.agent_version, now))

    async def _resume(self, connection: Connection, running: Collection[str]) -> None:
        """Compare the jobs that a host has with those that are open here, a piece at a time."""
        for effects in self._reports.resume(connection.session, running):
            await self._perform(connection, effects)
            await asyncio.sleep(0)  # others come between

    async def _hear(self, connection: Connection, messages: Sequence[tuple[FromAgent, str]]) -> None:
        if any(isinstance(message, Hello) for message, _ in messages):
            raise codec.FrameError("a connection says hello once")
        for some in pieces(messages):
            await self._perform(connection, connection.session.received(some, self._clock()))
            await asyncio.sleep(0)  # others come between

    async def _perform(self, connection: Connection, effects: Sequence[Effect]) -> None:
        """Do what the session asks for. What is stored shares a commit with what other connections store."""
        session, reports, now = connection.session, self._reports, self._clock()
        for effect in effects:
            match effect:
                case Fired(fires):
                    ids = [self._new_id() for _ in fires]
                    await stored(*reports.fire(session, fires, ids, now, connection.write))
                case Ended(ends):
                    own = reports.own_ends(session.name, ends)
                    await stored(*reports.finish(session.name, own))
                    await self._perform(connection, session.finished(own) if own else ())
                case Accepted(job_ids):
                    await stored(*reports.accept(session.name, job_ids))
                case Acked():
                    await self._acked(connection, effect, now)
                case Reported(messages):
                    for message in messages:
                        if isinstance(message, JobLog):
                            await stored(*reports.log(session.name, message.job_id, message.lines))
                        else:
                            reports.progress(session.name, message)
                case _:
                    connection.write(effect)

    async def _acked(self, connection: Connection, acked: Acked, now: datetime) -> None:
        """Store what a host holds, and tell how long its last push took."""
        session = connection.session
        await self._store.write(host_acks, (session.name, acked.version, acked.digest, now))
        if acked.left_out is not None:
            kept = msgspec.structs.asdict(acked.left_out) if acked.left_out.count else None
            await self._store.write(host_left_out, (session.name, kept))
        seconds = connection.push_acked() if session.holds_desired else None
        self._events.publish(HostAcked(session.name, acked.version, seconds))


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
