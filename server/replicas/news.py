"""Hears the news of other servers: brings copies up to date, and does what concerns hosts that are connected here."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic

import msgspec

from server.agents.hub import Hub, NewestHello
from server.agents.session import HelloFacts
from server.events import (
    AlertsDeclared,
    ControllerReported,
    DuplicateAgent,
    Events,
    HostAcked,
    HostConnected,
    HostDisconnected,
    JobsChanged,
    JobsRecorded,
    NotificationsChanged,
    ScheduleResumed,
)
from server.gateway.endpoint import Gateway
from server.jobs import notices
from server.jobs.dispatcher import Dispatcher
from server.jobs.notices import AnyNotice, SlotsGiven
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from server.observe.controllers import Controllers
from server.store import connections, news, queue
from server.store.connections import ConnectionRow
from server.store.engine import Store
from server.store.news import PAGE, NewsRow, Position

log = logging.getLogger(__name__)


class NewsFollower:
    """Follows what the other servers tell, from `begin` on. Each notice may come twice, or after later ones."""

    def __init__(  # noqa: PLR0913, PLR0917 - it tells each of them what it hears
        self,
        store: Store,
        hub: Hub,
        gateway: Gateway,
        dispatcher: Dispatcher,
        reports: Reports,
        repositories: RepositoryStates,
        controllers: Controllers,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._hub = hub
        self._gateway = gateway
        self._dispatcher = dispatcher
        self._reports = reports
        self._repositories = repositories
        self._controllers = controllers
        self._events = events
        self._clock = clock
        self._position = Position()
        self._lock = asyncio.Lock()

    @property
    def position(self) -> int:
        """The id up to which news are read, but for a few that may come yet."""
        return min((gap.id - 1 for gap in self._position.gaps), default=self._position.last)

    async def begin(self) -> None:
        """Read the news from here on. Call it before what they are about is loaded. Raises Unavailable."""
        if self._store.is_shared:
            self._position = await self._store.read(news.here, monotonic())

    async def load(self) -> None:
        """Take in what is not declared, from its rows, once all that is declared is known. Raises Unavailable."""
        await self._controllers.load()
        if self._store.is_shared:
            for row in await self._store.read(connections.all_connections):
                self._connection_loaded(row)

    def bury(self, server: str) -> None:
        """Another server has died, by its id in the store, and this one tells the others so."""
        self._dispatcher.server_gone(server)
        for host in self._hub.heard_end(server):
            self._left(host)

    async def follow(self) -> None:
        """Hear all news that there is. Raises Unavailable."""
        async with self._lock:
            while await self._page() >= PAGE:
                pass

    async def _page(self) -> int:
        """Hear a part of the news. Returns how many rows that was."""
        rows = await self._store.read(news.read, self._position, self._store.server)
        for row in rows:
            if row.server != self._store.server:
                await self._hear(row)
        self._position = self._position.after((row.id for row in rows), monotonic())
        return len(rows)

    async def _hear(self, row: NewsRow) -> None:
        """Hear a row. What a newer release tells, and this one does not know, is left out."""

        def left_out(error: msgspec.DecodeError) -> None:
            log.warning("news of another server left out", extra={"server": row.server, "reason": error})

        try:
            told = notices.decode(row.body, left_out)
        except msgspec.DecodeError as error:
            left_out(error)
            return
        given = [notice for notice in told if isinstance(notice, SlotsGiven)]
        await self._send(job_id for it in given for job_id in self._here(it))
        if any(isinstance(notice, notices.Reported) for notice in told):
            await self._controllers.load()
        for notice in told:
            self._hear_of_job(notice)
            self._hear_of_host(notice, row.server)

    def _here(self, given: SlotsGiven) -> Iterable[str]:
        return (it for host, ids in given.jobs.items() if self._hub.is_connected_here(host) for it in ids)

    async def _send(self, job_ids: Iterable[str]) -> None:
        """Send the jobs of hosts that are connected here, if they are to be sent still."""
        if ids := list(job_ids):
            rows = await self._store.read(queue.rows, ids)
            self._dispatcher.send_given(
                job for job in rows if job.sent and job.status == "pending" and self._hub.is_connected_here(job.host)
            )

    def _hear_of_job(self, notice: AnyNotice) -> None:
        match notice:
            case notices.Ended():
                self._dispatcher.heard_end(notice)
            case notices.EndAsked():
                self._dispatcher.ask_end(notice)
            case notices.Recorded():
                self._events.publish_heard(JobsRecorded(()))
            case notices.Changed():
                self._events.publish_heard(JobsChanged(()))
            case notices.Resumed(schedule_id):
                self._events.publish_heard(ScheduleResumed(schedule_id))
            case notices.Opened(repository, url):
                self._repositories.heard_opened(repository, url)
            case notices.Output(job_id, lines):
                self._reports.heard_output(job_id, lines)
            case notices.Reported(controller):
                self._events.publish_heard(ControllerReported(controller))
            case notices.Alerts(declared):
                self._events.publish_heard(AlertsDeclared() if declared else NotificationsChanged())

    def _hear_of_host(self, notice: AnyNotice, server: str) -> None:
        match notice:
            case notices.Arrived():
                self._arrived(notice, server)
            case notices.Left(host):
                if self._hub.heard_goodbye(host, server):
                    self._left(host)
            case notices.ServerGone(gone):
                for host in self._hub.heard_end(gone):
                    self._left(host)
            case notices.Acked():
                self._acked(notice)
            case notices.LeftOut(host, number, left_out):
                session = self._hub.session(host)
                if session is not None and self._hub.is_newest(host, number):
                    session.adopt_left_out(left_out)
            case notices.Duplicate(host, at):
                if (session := self._hub.session(host)) is not None:
                    session.adopt_duplicate(at)
                    self._events.publish_heard(DuplicateAgent(host))

    def _arrived(self, arrived: notices.Arrived, server: str) -> None:
        older = self._hub.newest(arrived.host)
        if not self._hub.heard_hello(arrived.host, NewestHello(arrived.session, server)):
            return
        if older is not None and older.number:
            self._gateway.replaced_elsewhere(older, arrived.instance)
        if (session := self._hub.session(arrived.host)) is not None:
            session.adopt_hello(arrived.hello)
        self._dispatcher.heard_arrival(arrived.host)
        self._events.publish_heard(HostConnected(arrived.host))

    def _left(self, host: str) -> None:
        self._dispatcher.heard_left(host)
        self._events.publish_heard(HostDisconnected(host, self._clock()))

    def _acked(self, acked: notices.Acked) -> None:
        for host, number in acked.hosts.items():
            session = self._hub.session(host)
            if session is not None and self._hub.is_newest(host, number):
                session.adopt_ack(acked.version, acked.digest)
        host = next(iter(acked.hosts))
        self._events.publish_heard(HostAcked(host, acked.version))  # once for all: readers are told the kind alone

    def _connection_loaded(self, row: ConnectionRow) -> None:
        self._hub.heard_hello(row.host, NewestHello(row.session, row.server))
        if (session := self._hub.session(row.host)) is not None and row.hello is not None:
            facts = msgspec.convert(row.hello, HelloFacts)
            session.adopt_hello(msgspec.structs.replace(facts, left_out=session.left_out))  # its own row is newer
