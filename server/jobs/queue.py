"""The queue of open jobs, decided in the transaction that records, ends, puts off or cancels a job.

Each method runs in the store's writer: it reads the rows that an event touches, has pure functions decide, and writes
what came of it. So the answer is the same whichever server asks, and a server that is killed has decided all of it or
nothing. Methods name the jobs that were given a slot: whoever has a job's host sends its command.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from itertools import chain
from typing import NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection

from server.agents.session import HelloFacts
from server.errors import Conflict
from server.fleet.placement import PlacedSchedule
from server.fleet.windows import begins_at
from server.jobs import attempts, counts, fires, notices
from server.jobs.fires import MAX_OPEN_JOBS, BackupsInto, NewJob
from server.jobs.kinds import EXCLUSIVE, ConcurrencyLimit, from_lane_of, hangs_at, lane_of, repository_of
from server.jobs.limits import GateLimit, GatesOf, gate_of_schedule, no_gates
from server.jobs.turn import MANY, Gates, GateState, LaneState, Waiting, turns
from server.store import connections, joins, news, queue, rollouts, servers
from server.store.audit import record_audit
from server.store.counts import counts_set_back
from server.store.days import count_ends
from server.store.hosts import undeclared
from server.store.jobs import (
    jobs_accepted,
    jobs_cancelled,
    jobs_finished,
    jobs_retried,
    lasting_job_id,
    record_jobs,
    window_stops,
)
from server.store.queue import Moved, OpenRow, Placed, ReadyRow
from server.store.rows import AuditRow, JobRow, Pair, Retry
from server.store.schedule_days import EndOf, count_schedule_ends
from server.store.tables import GOOD
from wire.messages import CommandRun, JobCounted, JobFinished

_NO_GATES: Mapping[str, GateLimit] = {}
JOINS_AGAIN = timedelta(seconds=1)
"""How soon to look again whether a connected host that joined a Schedule holds it."""
LimitOf = Callable[[str], ConcurrencyLimit]
"""The limit of a repository, by its id. The writer's thread asks."""
ScheduleOf = Callable[[str, str], PlacedSchedule | None]
"""A schedule, by a host and its id, where the host still has it. The writer's thread asks."""


class Lane(NamedTuple):
    """A lane as it stands. `waits`: whether any job is ready; `has_copies`: whether one of these needs another lane."""

    state: LaneState
    waits: bool
    has_copies: bool


class Recording(NamedTuple):
    """Jobs to record. `audit`: who asked for them, where somebody did."""

    jobs: Sequence[NewJob]
    now: datetime
    audit: AuditRow | None = None


class Outcome(NamedTuple):
    """What an event brought about, besides what was asked for.

    `recorded`: jobs of hosts that joined; `sent`: the jobs that were given a slot; `ended`: those that ended unbegun,
    or while their host was away; `asked`: those whose hosts are to end them; `more`: lanes whose front holds more than
    one transaction deals with; `wake_at`: when the first window opens for which jobs now wait.
    """

    recorded: Sequence[NewJob] = ()
    sent: Sequence[OpenRow] = ()
    ended: Sequence[tuple[OpenRow, JobFinished]] = ()
    asked: Sequence[OpenRow] = ()
    more: Collection[str] = ()
    wake_at: datetime | None = None


class Recorded(NamedTuple):
    """The result of a Recording.

    `new`: the ids of the jobs that were not stored before. `sendable`: those of them that were given slots. `refused`:
    why others were not stored, by id. `outcome`: what followed for other jobs.
    """

    new: Collection[str]
    sendable: Collection[str]
    refused: Mapping[str, str]
    outcome: Outcome


class Ending(NamedTuple):
    """What a host told of the ends of its attempts."""

    host: str
    ends: Sequence[JobFinished]
    now: datetime


class Ended(NamedTuple):
    """What became of an Ending: the jobs that are over, those that are tried again, and attempts of other hosts."""

    over: Sequence[tuple[OpenRow, JobFinished]]
    again: Sequence[tuple[OpenRow, Retry]]
    foreign: Collection[str]
    outcome: Outcome


class CountedBy(NamedTuple):
    """What a job on a host counted in its repository, told at `now`."""

    host: str
    command: CommandRun
    counted: JobCounted
    now: datetime


class Taken(NamedTuple):
    """The attempts that a host took, by what it calls them."""

    host: str
    wire_ids: Collection[str]
    now: datetime


class Accepted(NamedTuple):
    """What became of a Taken: the ids of the jobs that run now, and attempts of other hosts."""

    job_ids: Sequence[str]
    foreign: Collection[str]


class Arrival(NamedTuple):
    """A host's hello. `running`: the attempts that it has, and those that it was sent since. `instance`: the agent's
    process; `hello`: what it said of itself, where other servers want to know; `stops`: whether it begins nothing
    more."""

    host: str
    running: Collection[str]
    now: datetime
    instance: str = ""
    hello: HelloFacts | None = None
    stops: bool = False


class Arrived(NamedTuple):
    """What followed from an Arrival. `session`: the number of the hello; None where the host was deleted meanwhile.

    `put_back`: whether jobs that it was sent, and has not, wait again, some of them perhaps for too long. `joins`:
    whether hosts are to run what they joined.
    """

    outcome: Outcome
    session: int | None
    put_back: bool = False
    joins: bool = False


class Leading(NamedTuple):
    """What a server finds that begins to see to what is due. `lost`: the hosts that no server has and whose jobs have
    slots, each with the time since when."""

    outcome: Outcome
    lost: Sequence[tuple[str, datetime | None]]


class Cancelling(NamedTuple):
    """Jobs that somebody wants to end, and why."""

    job_ids: Collection[str]
    why: str
    now: datetime
    audit: AuditRow | None = None


class Resuming(NamedTuple):
    """A Schedule, by its id, that somebody has go on."""

    schedule_id: str
    now: datetime
    audit: AuditRow


Item = TypeVar("Item")
Result = TypeVar("Result")
Statement = Callable[["JobQueue", Connection, Sequence[Item]], list[Result]]


def _telling(statement: Statement[Item, Result]) -> Statement[Item, Result]:
    """Have a batch statement of the queue tell the other servers what happened in it."""

    @wraps(statement)
    def told(self: "JobQueue", conn: Connection, items: Sequence[Item]) -> list[Result]:
        return self.tell_after(conn, partial(statement, self, conn, items))

    return told


class JobQueue:
    """The queue. Its methods are batch statements of the store.

    `server`: the id of this server there. `is_shared`: whether others work on the store: then they are told what
    happens here, and what concerns hosts that they have is left to them. `url_of`: the URL of a repository, by its id;
    `namespace_of`: its namespace, empty for one that is not declared; `gates_of`: the gates of a job, by its host and
    its schedule; `backups_into`: see `fires.command_for`. The writer's thread asks.
    """

    def __init__(
        self,
        server: str,
        limit_of: LimitOf,
        schedule_of: ScheduleOf,
        url_of: Callable[[str], str] = lambda _: "",
        namespace_of: Callable[[str], str] = lambda _: "",
        gates_of: GatesOf = no_gates,
        *,
        backups_into: BackupsInto = fires.no_backups,
        is_shared: bool = False,
    ) -> None:
        self._server = server
        self._limit_of = limit_of
        self._schedule_of = schedule_of
        self._url_of = url_of
        self._namespace_of = namespace_of
        self._gates_of = gates_of
        self._backups_into = backups_into
        self.is_shared = is_shared
        self._notices: list[notices.AnyNotice] = []
        self._told_at = _NEVER

    def tell_after(self, conn: Connection, statement: Callable[[], list[Result]]) -> list[Result]:
        """Run a statement, and tell in one row what it noted."""
        self._notices = []
        result = statement()
        if self._notices:
            news.tell(conn, self._server, self._told_at, [notices.encode(self._notices)])
        return result

    def _note(self, now: datetime, *its: notices.AnyNotice) -> None:
        """Have the other servers told."""
        if self.is_shared and its:
            self._notices += its
            self._told_at = now

    def _finish(self, conn: Connection, ends: Sequence[tuple[OpenRow, JobFinished]]) -> None:
        """Store the ends of open jobs, and count those of Schedules' jobs, and what all left in their repositories."""
        jobs_finished(conn, [[end for _, end in ends]])
        commands = [(row, _command.decode(row.command), end) for row, end in ends]
        its = [
            (row.host, EndOf(repository_of(command), row.scheduled_id, end, command.kind == "backup"))
            for row, command, end in commands
            if row.scheduled_id
        ]
        count_ends(conn, ((host, self._namespace_of(it.repository_id), it.end) for host, it in its))
        count_schedule_ends(conn, (it for _, it in its))
        told = (
            counts.told_by_end(row.host, command, end, per_host=self._has_own(command))
            for row, command, end in commands
            if self._namespace_of(repository_of(command))
        )
        counts.note(conn, list(chain.from_iterable(told)))

    def counted(self, conn: Connection, items: Sequence[CountedBy]) -> list[None]:
        """Hosts counted snapshots."""
        rows = queue.rows(conn, {_job_id(it.counted.job_id) for it in items})
        begun = {row.id: row.accepted_at or row.queued_at for row in rows}
        told = (
            counts.told_by_count(
                it.host,
                it.command,
                it.counted,
                it.now,
                per_host=self._has_own(it.command),
                since=begun.get(_job_id(it.counted.job_id)),
            )
            for it in items
            if self._namespace_of(repository_of(it.command))
        )
        counts.note(conn, list(chain.from_iterable(told)))
        return [None] * len(items)

    def _has_own(self, command: CommandRun) -> bool:
        """Whether each host has a repository of its own where this command runs."""
        return self._limit_of(repository_of(command)).per_host

    def _pause(self, conn: Connection, ends: Sequence[tuple[OpenRow, JobFinished]], now: datetime) -> list[OpenRow]:
        """Pause the Schedules that have failed on too many hosts with these ends, which are stored. Returns the jobs of
        theirs that waited alone for their lanes: they keep their places at other gates no more."""
        failed: dict[Pair, bool] = {}
        most: dict[str, int] = {}
        for row, end in ends:
            for gate in self._gates_of_row(row):
                if gate.pauses_after is not None and _counts(row, end):
                    failed[gate.schedule_id, row.host] = end.status not in GOOD
                    most[gate.schedule_id] = gate.pauses_after
        pairs = {pair for pair, is_failed in failed.items() if is_failed}
        rollouts.note_ends(conn, pairs, failed.keys() - pairs)
        waiting: list[OpenRow] = []
        for schedule_id in sorted({schedule_id for schedule_id, _ in pairs}):
            failing = rollouts.failing(conn, schedule_id)
            hosts = [it for it in failing if self._schedule_of(it, schedule_id) is not None]
            if len(hosts) > most[schedule_id] and rollouts.pause(conn, schedule_id, now, hosts):
                waiting += queue.claiming(conn, schedule_id)
        queue.settle(conn, [row.id for row in waiting], now)
        return waiting

    def _note_ends(self, now: datetime, ends: Iterable[tuple[OpenRow, JobFinished]], *, final: bool = True) -> None:
        if self.is_shared:
            self._note(now, *(self._ended(row, end, final=final) for row, end in ends))

    def _ended(self, row: OpenRow, end: JobFinished, *, final: bool) -> notices.Ended:
        """The end of an attempt, as the other servers are told."""
        command, schedule_id = _command.decode(row.command), row.scheduled_id or ""
        id_ = repository_of(command)
        url = self._url_of(id_) if end.status in GOOD else ""
        return notices.Ended(end, row.host, schedule_id, command.kind, id_, row.attempt, final, row.created_at, url)

    def _sent(self, conn: Connection, rows: Sequence[OpenRow], now: datetime) -> list[OpenRow]:
        """Of jobs that were given slots, those that this server sends; the others' servers are told."""
        if not self.is_shared:
            return list(rows)
        away = connections.elsewhere(conn, {row.host for row in rows}, self._server)
        self._note_slots(now, ((row.host, row.id) for row in rows if row.host in away))
        return [row for row in rows if row.host not in away]

    def _note_slots(self, now: datetime, given: Iterable[tuple[str, str]]) -> None:
        """Have the servers of these hosts send these jobs, (host, id)."""
        by_host: dict[str, list[str]] = defaultdict(list)
        for host, job_id in given:
            by_host[host].append(job_id)
        if by_host:
            self._note(now, notices.SlotsGiven(by_host))

    def has_schedule(self, host: str, command: CommandRun) -> bool:
        """Whether the Schedule of a host's job still selects the host; true for a job of none."""
        return not command.schedule_id or self._schedule_of(host, command.schedule_id) is not None

    def timed(self, host: str, command: CommandRun, now: datetime) -> CommandRun:
        """A host's command as it is sent now: see `fires.timed`."""
        schedule = self._schedule_of(host, command.schedule_id) if command.schedule_id else None
        return command if schedule is None else fires.timed(command, schedule.spec, now)

    # Recording.

    @_telling
    def record(self, conn: Connection, items: Sequence[Recording]) -> list[Recorded]:
        """Record jobs, each once for its due time, and give slots to those that may go. Raises Conflict for a job that
        somebody asked for where too many are open, or whose host was deleted."""
        record_audit(conn, [item.audit for item in items if item.audit is not None])
        found: list[Recorded] = []
        wave: list[Recording] = []
        met: set[tuple[str, str]] = set()
        for item in items:
            its = {_pair(job) for job in item.jobs if job.command.schedule_id}
            if not met.isdisjoint(its):  # runs of one item are seen by the next
                found += self._record(conn, wave)
                wave, met = [], set()
            wave.append(item)
            met |= its
        return found + self._record(conn, wave)

    def _record(self, conn: Connection, items: Sequence[Recording]) -> list[Recorded]:
        now = items[-1].now
        jobs = [job for item in items for job in item.jobs]
        lanes = {job.id: self._lanes(job.command, job.host) for job in jobs}
        names = {name for its in lanes.values() for name in its} - {""}
        known, states = self._look(conn, {_pair(job) for job in jobs}, names, MAX_OPEN_JOBS)
        refused = self._in_the_way(conn, items, known) | _of_deleted_hosts(conn, jobs, known)
        replacing = [job for job in jobs if job.policy == "Replace" and job.id not in refused]
        old = queue.of_pairs(conn, {_pair(job) for job in replacing if known[_pair(job)].runs})
        rows = [fires.job_row(job, *lanes[job.id]) for job in jobs if job.id not in refused]
        firsts = {_pair(job): job.id for job in reversed(jobs) if not known[_pair(job)].runs and job.id not in refused}
        linked = {lane for lane, it in states.items() if it.has_copies}.union(
            *(it.lanes for it in rows if it.from_lane)
        )
        alone = {job.id for job in jobs if job.policy == "Allow" or firsts.get(_pair(job)) == job.id}
        alone -= {it.id for it in rows if it.from_lane}
        online = {pair[1]: it.server for pair, it in known.items() if it.server is not None and not it.drains}
        apart = {lane: it for lane, it in states.items() if lane not in linked}
        placed, gates = self._placed(conn, rows, alone, online, apart)
        (new,) = record_jobs(conn, [placed])
        self._hold_back(conn, gates)
        going = {row.id for row in placed if row.sent and row.id in new}
        away = [row for row in placed if row.id in going and online[row.host] != self._server] if self.is_shared else []
        self._note_slots(now, ((row.host, row.id) for row in away))
        stale = [row for row in placed if row.sent and row.id not in new]  # a slot that no job took
        waits = [row.id for row in placed if row.id not in alone and row.id in new]
        beside = {_pair(job) for job in jobs if job.id in going and job.policy == "Allow" and known[_pair(job)].runs}
        waits += queue.serial_ready(conn, beside)  # each waits for the one that began beside it
        whys = {_pair(job): f"replaced by job {job.id}" for job in replacing if job.id in new}
        replaced = [(row, why) for row in old if (why := whys.get((row.scheduled_id or "", row.host)))]
        first = self._end_or_ask(conn, replaced, now)
        lanes_again = linked.union(row.lane for row in stale)
        then = self._advance(conn, waits, now, lanes_again, freed=self._limits(stale))
        outcome = _joined(first, then)
        if new:
            self._note(now, notices.Recorded())
        going |= {row.id for row in outcome.sent if row.id in new}
        going -= {row.id for row in away}
        outcome = outcome._replace(sent=[row for row in outcome.sent if row.id not in new])
        return [
            Recorded(new & its, going & its, {key: refused[key] for key in its & refused.keys()}, said)
            for item, said in zip(items, _first(outcome, items), strict=True)
            if (its := {job.id for job in item.jobs}) is not None
        ]

    def _in_the_way(
        self, conn: Connection, items: Sequence[Recording], known: Mapping[tuple[str, str], queue.PairRow]
    ) -> dict[str, str]:
        """Why jobs are not to be recorded beside others of their schedules, by id. Raises Conflict."""
        found: dict[str, tuple[NewJob, str]] = {}
        for item in items:
            came: dict[tuple[str, str], int] = defaultdict(int)
            for job in item.jobs:
                pair = known[_pair(job)]
                why = fires.concurrent(job, pair.runs + came[_pair(job)], pair.first, same_frame=came[_pair(job)] > 0)
                if job.command.scheduled_at is None:
                    if pair.runs + came[_pair(job)] >= MAX_OPEN_JOBS:
                        raise Conflict(
                            f"{job.host} has {MAX_OPEN_JOBS} such open jobs: cancel some, or try again later"
                        )
                elif why:
                    found[job.id] = job, why
                    continue
                came[_pair(job)] += 1
        due = [
            (job.id, job.host, job.command.schedule_id, job.command.scheduled_at)
            for job, _ in found.values()
            if job.command.scheduled_at is not None
        ]
        repeated = set(queue.recorded(conn, due))  # whose due time has its job already, which is no refusal
        return {job_id: why for job_id, (_, why) in found.items() if job_id not in repeated}

    def _placed(
        self,
        conn: Connection,
        rows: Sequence[JobRow],
        alone: Collection[str],
        online: Collection[str],
        states: Mapping[str, Lane],
    ) -> tuple[list[JobRow], Gates]:
        """The rows with what they are recorded as: sent, where it is their turn, or else ready, or neither; and their
        gates, with those that are held back there.

        `states`: the lanes in which that can be told without looking at others.
        """
        come = [row for row in rows if row.id in alone and row.host in online and not row.deferred]
        waiting, limits = self._waiting(come)
        gates = self._gates(conn, limits)
        free = {lane: it.state for lane, it in states.items() if not it.waits} | {"": LaneState()}
        going = {it.id for it in turns(free, [it for it in waiting if it.lane in free], gates)}  # nobody overtakes
        ready = {row.id for row in come} - going - gates.held.keys()
        placed = [row._replace(sent=row.id in going, holds=row.id in going, ready=row.id in ready) for row in rows]
        return placed, gates

    def _lanes(self, command: CommandRun, host: str) -> tuple[str, str]:
        """The lane of a job, and that of the repository that a copy reads from."""
        own, source = self._limit_of(repository_of(command)), self._limit_of(command.from_repository)
        return lane_of(command, host, own), from_lane_of(command, host, source)

    # What hosts tell.

    @_telling
    def accept(self, conn: Connection, items: Sequence[Taken]) -> list[Accepted]:
        """Hosts took these attempts."""
        rows = {row.id: row for row in queue.rows(conn, {_job_id(it) for item in items for it in item.wire_ids})}
        taken: list[tuple[str, datetime, datetime]] = []
        told: list[Accepted] = []
        for item in items:
            its = [row for it in item.wire_ids if (row := _its(rows, item.host, it)) and row.status == "pending"]
            taken += [(row.id, item.now, hangs_at(_command.decode(row.command), item.now)) for row in its]
            told.append(Accepted([row.id for row in its], _foreign(rows, item.host, item.wire_ids)))
        jobs_accepted(conn, [taken])
        if taken:
            self._note(items[-1].now, notices.Changed())
        return told

    @_telling
    def finish(self, conn: Connection, items: Sequence[Ending]) -> list[Ended]:
        """Attempts ended: the first end of each counts, and is followed by another where the schedule says so."""
        rows = {row.id: row for row in queue.rows(conn, {_job_id(end.job_id) for item in items for end in item.ends})}
        stops = window_stops(conn, [row.id for row in rows.values() if row.attempt > 1])
        told: list[tuple[list[tuple[OpenRow, JobFinished]], list[tuple[OpenRow, Retry]], Collection[str]]] = []
        for item in items:
            over: list[tuple[OpenRow, JobFinished]] = []
            again: list[tuple[OpenRow, Retry]] = []
            told.append((over, again, _foreign(rows, item.host, [end.job_id for end in item.ends])))
            for end in item.ends:
                if (row := _its(rows, item.host, end.job_id)) is not None:
                    del rows[row.id]
                    its = attempts.by_our_clock(end, row.id, row.queued_at, item.now)
                    schedule = self._schedule_of(row.host, row.scheduled_id or "")
                    spec = None if schedule is None or row.cancel_requested else schedule.spec
                    if (at := attempts.next_attempt(spec, row.attempt - stops.get(row.id, 0), its, item.now)) is None:
                        why = (row.cancel_reason or "cancelled") if row.cancel_requested else None
                        over.append((row, attempts.last_end(its, why)))
                    else:
                        again.append((row, Retry(its, row.attempt, at)))
        jobs_retried(conn, [[retry for _, retry in again] for _, again, _ in told])
        ends = [it for over, _, _ in told for it in over]
        self._finish(conn, ends)
        waiting = self._pause(conn, ends, items[-1].now)
        for item, (over, again, _) in zip(items, told, strict=True):
            self._note_ends(item.now, over)
            self._note_ends(item.now, ((row, retry.end) for row, retry in again), final=False)
        touched = [row for over, again, _ in told for row, _ in (*over, *again)]
        outcome = self._after(conn, [*touched, *waiting], items[-1].now, settle=waiting)
        return [Ended(*it, said) for it, said in zip(told, _first(outcome, items), strict=True)]

    @_telling
    def cancel(self, conn: Connection, items: Sequence[Cancelling]) -> list[Outcome]:
        """Jobs are to end: those that have not begun, or whose hosts are away, end at once."""
        record_audit(conn, [item.audit for item in items if item.audit is not None])
        found = []
        for item in items:
            rows = queue.rows(conn, item.job_ids)
            found.append(self._end_or_ask(conn, [(row, item.why) for row in rows], item.now))
        return found

    @_telling
    def end(self, conn: Connection, items: Sequence[tuple[Sequence[JobFinished], datetime]]) -> list[Outcome]:
        """Jobs end that do not run, and are not tried again."""
        return [self._end(conn, over, now) for over, now in items]

    def _end(self, conn: Connection, over: Sequence[JobFinished], now: datetime) -> Outcome:
        rows = {row.id: row for row in queue.rows(conn, [end.job_id for end in over])}
        its = [(rows[end.job_id], end) for end in over if end.job_id in rows]
        self._finish(conn, its)
        waiting = self._pause(conn, its, now)
        self._note_ends(now, its)
        return _joined(Outcome(ended=its), self._after(conn, [*rows.values(), *waiting], now, settle=waiting))

    @_telling
    def end_host(self, conn: Connection, items: Sequence[tuple[str, str, datetime]]) -> list[Outcome]:
        """All open jobs of hosts end, which are to be deleted."""
        found = []
        for host, error, now in items:
            outcome = Outcome()
            while some := queue.of_host(conn, host):
                over = [JobFinished(row.id, "cancelled", now, error=error) for row in some]
                outcome = _joined(outcome, self._end(conn, over, now))
            found.append(outcome)
        return found

    def _end_or_ask(self, conn: Connection, its: Sequence[tuple[OpenRow, str]], now: datetime) -> Outcome:
        """End jobs that somebody wants to end, or have their hosts asked to."""
        if not its:
            return Outcome()
        known = queue.pairs(conn, {("", row.host) for row, _ in its}, 1)
        online = {it.host: it.server for it in known if it.server is not None}
        asked = [(row, why) for row, why in its if _has_begun(row) and row.host in online]
        over = [
            (row, JobFinished(row.id, "cancelled", now, error=f"{why} {_WHEN[_has_begun(row)]}"))
            for row, why in its
            if not (_has_begun(row) and row.host in online)
        ]
        jobs_cancelled(conn, [[(row.id, why) for row, why in asked]])
        self._finish(conn, over)
        self._note_ends(now, over)
        away = {row.id for row, _ in asked if online[row.host] != self._server} if self.is_shared else set()
        self._note(now, *(notices.EndAsked(row.host, wire_id(row), why) for row, why in asked if row.id in away))
        rows = [row._replace(cancel_requested=True, cancel_reason=why) for row, why in asked if row.id not in away]
        return _joined(Outcome(ended=over, asked=rows), self._after(conn, [row for row, _ in over], now))

    def to_tell(self, conn: Connection, items: Sequence[None]) -> list[list[OpenRow]]:
        """The jobs that this server's hosts were to be sent, and may not have been, or to be asked to end."""
        return [queue.to_tell(conn, self._server)] * len(items)

    @_telling
    def tell(self, conn: Connection, items: Sequence[tuple[notices.AnyNotice, datetime]]) -> list[None]:
        """Tell the other servers what is stored nowhere."""
        for notice, now in items:
            self._note(now, notice)
        return [None] * len(items)

    # Connections, time and limits.

    def begin(self, conn: Connection, items: Sequence[datetime]) -> list[list[str]]:
        """A server begins, and no host is connected where it is the only one. Returns the hosts whose jobs keep their
        slots for a while, by its timers."""
        now = items[-1]
        while some := queue.unplaced(conn):  # jobs that a release before the queue's recorded
            queue.place(conn, [self._place(row) for row in some])
        if self.is_shared:
            return [[] for _ in items]
        hosts = queue.disconnect_all(conn, now)
        self._mend_times(conn, now)
        return [hosts] * len(items)

    @_telling
    def lead(self, conn: Connection, items: Sequence[datetime]) -> list[Leading]:
        """This server sees to what is due from now on."""
        now = items[-1]
        moved = self._mend_times(conn, now)
        found = Leading(self._after(conn, moved, now, settle=moved), queue.lost_holders(conn))
        return [found, *[Leading(Outcome(), found.lost)] * (len(items) - 1)]

    def _mend_times(self, conn: Connection, now: datetime) -> list[OpenRow]:
        """The clock may have been set back while no server saw to what is due. Returns the waiting jobs that this
        concerns."""
        waiting = [row for row in queue.queued_since(conn, now) if not _has_begun(row)]
        late = [row for row in waiting if row.queued_at > self._latest(row, now)]
        queue.move(conn, [_moved(row, queued_at=self._latest(row, now)) for row in late])
        self._set_begun(conn, now)
        counts_set_back(conn, now)
        return late

    def _latest(self, row: OpenRow, now: datetime) -> datetime:
        """When a job came at the latest, or its next attempt is due: the clock may have been set back since."""
        schedule = self._schedule_of(row.host, row.scheduled_id or "")
        if schedule is None or not row.deferred or row.attempt == 1:
            return now
        return now + attempts.pause(schedule.spec.retry, row.attempt - 1)

    def _set_begun(self, conn: Connection, now: datetime) -> None:
        """What a clock that was ahead saw begin began now."""
        begun = queue.begun_after(conn, now)
        queue.set_begun(conn, [(row.id, now, hangs_at(_command.decode(row.command), now)) for row in begun])

    def _place(self, row: OpenRow) -> Placed:
        command = _command.decode(row.command)
        schedule = self._schedule_of(row.host, command.schedule_id)
        deadline = None if schedule is None else schedule.spec.starting_deadline_seconds
        start_by = None if deadline is None else (command.scheduled_at or row.created_at) + timedelta(seconds=deadline)
        serial = bool(command.schedule_id) and (schedule is None or schedule.spec.concurrency_policy != "Allow")
        has_begun = row.sent or row.status == "running"
        exclusive, deferred = command.kind in EXCLUSIVE, row.not_before is not None and not has_begun
        lane, _ = self._lanes(command, row.host)  # that release had no copies
        return Placed(row.id, lane, row.queued_at, start_by, exclusive, serial, has_begun, deferred)

    @_telling
    def arrived(self, conn: Connection, items: Sequence[Arrival]) -> list[Arrived]:
        """Hosts said hello: each of their open jobs is put where it belongs.

        What a host runs has its slot again, and what it was sent and has not goes back to its place. Raises
        OwnershipError where this server was buried: its hosts are to say hello to another one.
        """
        hellos = [
            connections.Hello(
                it.host, self._server, it.instance, None if it.hello is None else _facts(it.hello), it.stops
            )
            for it in items
        ]
        running = {it.host: it.running for it in items}
        busy = queue.with_jobs(conn, running)
        moved_here: set[str] = set()
        if self.is_shared:
            servers.keep(conn, self._server)
            moved_here = connections.elsewhere(conn, busy, self._server)
        sessions = connections.connect(conn, hellos)
        for it in items:
            if it.hello is not None and it.host in sessions:
                self._note(it.now, notices.Arrived(it.host, sessions[it.host], it.instance, it.hello))
        put_back: set[str] = set()
        asked: list[OpenRow] = []

        def move(row: OpenRow) -> Moved | None:
            moved = _met(running[row.host], row)
            if moved is not None and not moved.sent:
                put_back.add(row.host)
            elif row.cancel_requested and row.host in moved_here:  # perhaps since the hello was read, and asked there
                asked.append(row)
            return moved

        outcome = _joined(self._for_hosts(conn, busy, items[-1].now, move), Outcome(asked=asked))
        are_due = joins.are_due(conn)
        return [
            Arrived(said, sessions.get(it.host), it.host in put_back, are_due)
            for it, said in zip(items, _first(outcome, items), strict=True)
        ]

    @_telling
    def disconnected(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[tuple[Outcome, bool]]:
        """Hosts' connections to this server are gone: their jobs are ready no more, and keep the slots that they have.
        Returns, too, whether there are such. What another server has meanwhile stays as it is."""
        hosts = {host for host, _ in items}
        its = connections.of_server(conn, hosts, self._server) if self.is_shared else hosts
        connections.disconnect(conn, its, self._server, items[-1][1])
        if self.is_shared and conn.dialect.name != "sqlite":  # which has one writer
            now_at = connections.servers_of(conn, hosts)  # the statement before waited for hellos
            moved = {host for host, server in now_at.items() if server not in {None, self._server}}
            its = its - moved
            self._note_untaken(conn, moved, items[-1][1])
            left = its | (hosts - now_at.keys())  # the others may hear of the hello of a deleted host later
        else:
            left = its
        self._note(items[-1][1], *(notices.Left(host) for host in sorted(left)))
        outcome = self._for_hosts(conn, queue.with_jobs(conn, its), items[-1][1], lambda _: None)
        holders = queue.holders(conn, its)
        return [(said, host in holders) for (host, _), said in zip(items, _first(outcome, items), strict=True)]

    @_telling
    def drain(self, conn: Connection, items: Sequence[tuple[Sequence[tuple[str, bool]], datetime]]) -> list[Outcome]:
        """Nothing new is to begin on these hosts, or it is to again: (host, whether)."""
        connections.drain(conn, [it for hosts, _ in items for it in hosts])
        busy = queue.with_jobs(conn, {host for hosts, _ in items for host, _ in hosts})
        return _first(self._for_hosts(conn, busy, items[-1][1], lambda _: None), items)

    @_telling
    def agent_stops(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[Outcome]:
        """The agents of hosts that this server has begin nothing more."""
        hosts = connections.of_server(conn, {host for host, _ in items}, self._server)
        connections.agent_stops(conn, hosts)
        self._note(items[-1][1], notices.Changed())
        busy = queue.with_jobs(conn, hosts)
        return _first(self._for_hosts(conn, busy, items[-1][1], lambda _: None), items)

    def _note_untaken(self, conn: Connection, hosts: Collection[str], now: datetime) -> None:
        """Have the servers tell these hosts what this one may have told them in vain, while they said hello there."""
        busy = queue.with_jobs(conn, hosts)
        rows = [row for some in _pages(conn, busy) for row in some if row.holds]
        self._note_slots(now, ((row.host, row.id) for row in rows if row.status == "pending"))
        asked = (row for row in rows if row.cancel_requested)
        self._note(now, *(notices.EndAsked(row.host, wire_id(row), row.cancel_reason or "cancelled") for row in asked))

    @_telling
    def server_gone(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[tuple[Outcome, list[str]]]:
        """Servers have died, (id, time): no server has their hosts, whose jobs keep the slots that they have. Returns,
        too, the hosts with such jobs."""
        found = []
        for server, now in items:
            hosts = connections.all_of_server(conn, server)
            connections.disconnect(conn, hosts, server, now)
            self._note(now, notices.ServerGone(server))
            outcome = self._for_hosts(conn, queue.with_jobs(conn, hosts), now, lambda _: None)
            found.append((outcome, sorted(queue.holders(conn, hosts))))
        return found

    @_telling
    def given_up(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[Outcome]:
        """Hosts have been gone for so long that their jobs keep no others waiting; but for those that are back."""
        gone = connections.offline(conn, {host for host, _ in items})
        busy = queue.with_jobs(conn, gone)
        return _first(self._for_hosts(conn, busy, items[-1][1], partial(_moved, holds=False)), items)

    def _for_hosts(
        self, conn: Connection, busy: Mapping[str, int], now: datetime, move: Callable[[OpenRow], Moved | None]
    ) -> Outcome:
        """Put the open jobs of hosts where they belong, by statements about all of them: a hello or a lost connection
        seldom comes alone, and nobody else writes meanwhile. `busy`: by `queue.with_jobs`."""
        for some in _pages(conn, busy):
            queue.move(conn, [moved for row in some if (moved := move(row)) is not None])
        lanes: set[str] = set()
        freed: dict[str, GateLimit] = {}
        for some in _pages(conn, busy):  # all of them, before any is sent: what is ready is so by connections of before
            queue.settle(conn, [row.id for row in some if not _has_begun(row)], now)
            lanes.update(*(row.lanes for row in some))
            freed |= self._limits(some)
        return self._advance(conn, (), now, lanes, freed=freed)

    @_telling
    def tick(self, conn: Connection, items: Sequence[datetime]) -> list[tuple[Outcome, datetime | None]]:
        """Time has come: attempts that are due join their lanes, and jobs that are too late end. Returns when there is
        more to do."""
        now = items[-1]
        due = queue.due(conn, now)
        queue.move(conn, [_moved(row, deferred=False) for row in due])
        late = queue.late(conn, now)
        over = list(zip(late, attempts.late_ends((row.id for row in late), now), strict=True))
        self._finish(conn, over)
        self._note_ends(now, over)
        outcome = _joined(Outcome(ended=over), self._after(conn, [*due, *late], now, settle=due))
        if are_due := joins.are_due(conn):
            outcome, are_due = _joined(outcome, self._run_joins(conn, now)), joins.are_due(conn)
        times = [queue.next_at(conn), now + JOINS_AGAIN if are_due else None]
        next_at = min((at for at in times if at is not None), default=None)
        return [(outcome, next_at), *[(Outcome(), None)] * (len(items) - 1)]

    def _run_joins(self, conn: Connection, now: datetime) -> Outcome:
        """Have hosts that joined a Schedule with runOnJoin run it once, now that they hold it."""
        jobs: list[NewJob] = []
        passed = 0
        while len(jobs) < joins.MOST and (some := joins.due(conn, passed)):
            ran: list[Pair] = []
            for schedule_id, host, has_run in some:
                if (schedule := self._schedule_of(host, schedule_id)) is None:
                    continue  # a change that is not in force here yet, or a host that its namespace may not have now
                ran.append((schedule_id, host))
                if schedule.spec.enabled and not has_run:
                    id_, actor = lasting_job_id("join", schedule_id, host, now.isoformat()), ("join", schedule.name)
                    jobs.append(fires.new_job(schedule, host, id_, None, now, actor, self._backups_into))
            joins.ran(conn, ran)
            passed += len(some) - len(ran)
        if not jobs:
            return Outcome()
        (recorded,) = self._record(conn, [Recording(jobs, now)])
        its = queue.rows(conn, recorded.sendable)
        return _joined(Outcome(recorded=[it for it in jobs if it.id in recorded.new], sent=its), recorded.outcome)

    @_telling
    def clock_set_back(self, conn: Connection, items: Sequence[datetime]) -> list[Outcome]:
        """The clock was ahead: what it put off until after now is due now, and what it saw begin then began now."""
        now = items[-1]
        queue.put_forward(conn, now)
        counts_set_back(conn, now)
        self._set_begun(conn, now)
        return [
            self._after(conn, rows, now, settle=rows)
            for rows in (queue.queued_since(conn, now), *[()] * (len(items) - 1))
        ]

    @_telling
    def look_again(self, conn: Connection, items: Sequence[tuple[Collection[str], datetime]]) -> list[Outcome]:
        """Give slots of these lanes to the jobs whose turn it is."""
        return [self._advance(conn, (), now, lanes) for lanes, now in items]

    @_telling
    def relimit(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[Outcome]:
        """Repositories may have other limits now."""
        return [self._advance(conn, (), now, queue.waiting_lanes(conn, it)) for it, now in items]

    @_telling
    def windows_changed(self, conn: Connection, items: Sequence[tuple[Collection[str], datetime]]) -> list[None]:
        """These Schedules, by id, may have other windows now: what waits for one is looked at again by `tick`."""
        for schedule_ids, now in items:
            queue.put_windows_forward(conn, schedule_ids, now)
        return [None] * len(items)

    @_telling
    def move_lanes(self, conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[Outcome]:
        """Each host has a part of its own of these repositories, or has no more: their jobs change their lanes."""
        found = []
        for repository, now in items:
            after = ("", "")
            lanes = set(queue.waiting_lanes(conn, repository))
            while some := queue.of_repository(conn, repository, after):
                after = some[-1].host, some[-1].id
                changed = [(row.id, *self._lanes(_command.decode(row.command), row.host)) for row in some]
                queue.change_lanes(conn, changed)
                lanes.update(*((lane, source) for _, lane, source in changed))
            lanes -= {""}
            found.append(self._advance(conn, (), now, lanes))
        return found

    # What follows.

    def _after(
        self, conn: Connection, rows: Sequence[OpenRow], now: datetime, settle: Sequence[OpenRow] = ()
    ) -> Outcome:
        """What follows once these jobs began, ended or moved: the next runs of their schedules on their hosts, and the
        next jobs of their lanes and at their gates. `settle`: those that wait still."""
        pairs = {(row.scheduled_id, row.host) for row in rows if row.scheduled_id}
        lanes = {lane for row in rows for lane in row.lanes}
        known, states = self._look(conn, pairs, lanes, 1)
        ids = queue.first_of_pairs(conn, [pair for pair, it in known.items() if it.runs])
        settled = {*ids, *(row.id for row in settle if not _has_begun(row))}
        return self._advance(conn, settled, now, lanes, states, freed=self._limits(rows))

    def _advance(
        self,
        conn: Connection,
        job_ids: Collection[str],
        now: datetime,
        lanes: Collection[str] = (),
        states: Mapping[str, Lane] | None = None,
        *,
        freed: Mapping[str, GateLimit] = _NO_GATES,
    ) -> Outcome:
        """Work out which of these jobs are ready by now, and whose turn it is in their lanes and in those named.

        `states`: those lanes as they stand, where that was read already. `freed`: gates where there may be room now.
        """
        outcome, released = Outcome(), self._released(conn, freed, 1)
        for often in range(1, 5):
            outcome = _joined(outcome, self._turns(conn, {*job_ids, *released}, now, lanes, states, bool(released)))
            if not released or not (released := self._released(conn, freed, 10**often)):
                break  # who was let go may have to wait in a lane, and leave room for the next
            job_ids, lanes, states = (), (), None
        return outcome

    def _turns(
        self,
        conn: Connection,
        job_ids: Collection[str],
        now: datetime,
        lanes: Collection[str],
        states: Mapping[str, Lane] | None,
        are_released: bool,
    ) -> Outcome:
        if states is None:
            waiting = set(lanes)
        else:
            waiting = {lane for lane, it in states.items() if it.waits and not it.state.is_full}
        touched = waiting.union(queue.lanes_of(conn, job_ids))
        if not touched:
            return Outcome()
        if job_ids or states is None:
            queue.settle(conn, job_ids, now)
            _, states = self._look(conn, (), touched)
        states, copies = self._with_linked(conn, states)
        free = [lane for lane, it in states.items() if it.waits and (are_released or not it.state.is_full)]
        found = queue.ready(conn, free)
        ordered = _in_order(found, copies)
        shut = {row.id: opens for row in ordered if (opens := self._begins_at(row, now)) > now}
        front, limits = self._waiting(row for row in ordered if row.id not in shut)
        gates = self._gates(conn, limits, is_new=False)
        going = turns({lane: it.state for lane, it in states.items()}, _with_far(front, ordered, found), gates)
        self._hold_back(conn, gates)
        queue.defer(conn, list(shut.items()))
        gone = {*shut, *gates.held, *(it.id for it in going)}
        left = Counter(row.lane for row in ordered if row.id in gone)
        more = [lane for lane, jobs in left.items() if jobs >= queue.FRONT]
        sent = queue.send(conn, [it.id for it in going])
        outcome = Outcome(sent=self._sent(conn, sent, now), more=more, wake_at=min(shut.values(), default=None))
        beside = {(row.scheduled_id, row.host) for row in sent if row.scheduled_id and not row.serial}
        overtaken = queue.serial_ready(conn, beside)  # of before their schedules allowed others
        return _joined(outcome, self._advance(conn, overtaken, now)) if overtaken else outcome

    def _begins_at(self, row: queue.ReadyRow, now: datetime) -> datetime:
        """When a job may begin that is ready: now, or when the next window of its Schedule opens."""
        schedule = self._schedule_of(row.host, row.scheduled_id) if row.scheduled_id else None
        return now if schedule is None else begins_at(schedule.spec, now)

    # Gates.

    def _limits(self, rows: Iterable[JobRow | OpenRow | ReadyRow]) -> dict[str, GateLimit]:
        """The gates that these jobs have to pass, by name."""
        return {it.gate: it for row in rows for it in self._gates_of_row(row)}

    def _gates_of_row(self, row: JobRow | OpenRow | ReadyRow) -> Sequence[GateLimit]:
        """The gates of a job. Lists of snapshots, which belong to no lane and no schedule, have none."""
        if not row.lane and row.scheduled_id is None:
            return ()
        return self._gates_of(row.host, row.scheduled_id or "")

    def _waiting(self, rows: Iterable[JobRow | ReadyRow]) -> tuple[Sequence[Waiting], Mapping[str, GateLimit]]:
        """Jobs that are ready, in their order, and all gates that they have to pass."""
        waiting: list[Waiting] = []
        limits: dict[str, GateLimit] = {}
        for row in rows:
            its = self._gates_of_row(row)  # once: what is declared may change meanwhile
            limits |= {it.gate: it for it in its}
            gates = tuple((it.gate, row.host if it.schedule_id else row.id) for it in its)
            waiting.append(Waiting(row.id, row.exclusive, gates, row.lane, row.from_lane))
        return waiting, limits

    def _gates(self, conn: Connection, limits: Mapping[str, GateLimit], *, is_new: bool = True) -> Gates:
        """Gates as they stand. `is_new`: whether those that come are new, so that those that wait go first."""
        if not limits:
            return Gates()
        passed: dict[str, set[str]] = {gate: set() for gate in limits}
        for row in queue.passed_by_jobs(conn, ((it.gate, it.host) for it in limits.values() if it.host)):
            passed[row.gate].add(row.who)
        counted = ((it.gate, it.schedule_id) for it in limits.values() if it.schedule_id and it.limit is not None)
        for row in queue.passed_by_hosts(conn, counted):
            passed[row.gate].add(row.who)
        waits = queue.waited_at(conn, limits) if is_new else ()
        pausing = [it.schedule_id for it in limits.values() if it.pauses_after is not None]
        paused = rollouts.paused(conn, pausing) if pausing else set()
        return Gates(
            {
                it.gate: GateState(frozenset(passed[it.gate]), it.limit, it.gate in waits, it.schedule_id in paused)
                for it in limits.values()
            }
        )

    def _hold_back(self, conn: Connection, gates: Gates) -> None:
        queue.hold_back(conn, gates.held.items())
        queue.claim(conn, gates.claims)

    def _released(self, conn: Connection, freed: Mapping[str, GateLimit], times: int) -> list[str]:
        """The first jobs that are held back at gates with room: as many as there is room for, or times as many."""
        if not freed or not (waited := queue.waited_at(conn, freed)):
            return []
        limits = {gate: freed[gate] for gate in waited}
        gates = self._gates(conn, limits, is_new=False)
        room = {gate: min(gates.room(gate) * times, queue.FRONT) for gate in limits if gates.room(gate)}
        found: list[str] = []
        for row in queue.held(conn, room, max(room.values(), default=0)):
            if room[row.gate] > 0:
                room[row.gate] -= 1
                found.append(row.id)
        return found

    @_telling
    def open_gates(self, conn: Connection, items: Sequence[tuple[Collection[str], datetime]]) -> list[Outcome]:
        """Gates may have other limits now, or none any more: those that are held back there are looked at anew."""
        return [self._open_gates(conn, gates, now) for gates, now in items]

    def _open_gates(self, conn: Connection, gates: Collection[str], now: datetime) -> Outcome:
        outcome = Outcome()
        waiting = [row.id for row in queue.held(conn, gates, MANY)]
        for at in range(0, len(waiting), queue.FRONT):
            outcome = _joined(outcome, self._advance(conn, waiting[at : at + queue.FRONT], now))
        return outcome

    @_telling
    def resume(self, conn: Connection, items: Sequence[Resuming]) -> list[Outcome | None]:
        """Somebody has Schedules go on that are paused, which begin to count again. None for one that is not paused."""
        found: list[Outcome | None] = []
        for item in items:
            if rollouts.paused(conn, [item.schedule_id]):
                record_audit(conn, [item.audit])
                rollouts.forget(conn, [item.schedule_id])
                self._note(item.now, notices.Resumed(item.schedule_id))
                found.append(self._open_gates(conn, [gate_of_schedule(item.schedule_id).gate], item.now))
            else:
                found.append(None)
        return found

    def _with_linked(
        self, conn: Connection, states: Mapping[str, Lane]
    ) -> tuple[Mapping[str, Lane], list[queue.ReadyRow]]:
        """These lanes, with those in which copies of them need a slot, too; and the first of these copies."""
        copies: list[queue.ReadyRow] = []
        missing = {lane for lane, it in states.items() if it.has_copies}
        while missing:
            copies = queue.copies(conn, states)
            missing = {lane for row in copies for lane in (row.lane, row.from_lane)} - states.keys()
            states = {**states, **self._look(conn, (), missing)[1]}
        return states, copies

    def _look(
        self, conn: Connection, pairs: Collection[Pair], lanes: Collection[str], runs: int = 1
    ) -> tuple[dict[Pair, queue.PairRow], dict[str, Lane]]:
        """The open runs of each (schedule id, host), counted up to `runs`, and lanes as they stand, each with whether
        any job is ready in it."""
        limits = {lane: self._limit(lane) for lane in lanes}
        slots = 1 + max((limit or 1 for limit in limits.values()), default=1)
        known, states = queue.look(conn, pairs, lanes, runs, slots)
        return {(it.scheduled_id, it.host): it for it in known}, {
            it.lane: Lane(LaneState(it.active, it.exclusive, limits[it.lane]), it.waits, it.has_copies) for it in states
        }

    def _limit(self, lane: str) -> int | None:
        return self._limit_of(lane.partition("/")[0]).limit if lane else None


_command = msgspec.json.Decoder(CommandRun)
_NEVER = datetime.min.replace(tzinfo=UTC)


def _facts(hello: HelloFacts) -> str:
    return msgspec.json.encode(hello).decode()


_WHEN = {False: "before it began", True: "while its host was offline"}
"""When a job was cancelled that its host did not end, by whether it may have begun."""


def wire_id(row: OpenRow) -> str:
    """What agents call the present attempt of a job: they know nothing of attempts."""
    return row.id if row.attempt == 1 else f"{row.id}.{row.attempt}"


def _job_id(wire_id: str) -> str:
    return wire_id.partition(".")[0]


def _its(rows: Mapping[str, OpenRow], host: str, attempt: str) -> OpenRow | None:
    """The open job of this host whose present attempt is that one."""
    row = rows.get(_job_id(attempt))
    return row if row is not None and row.host == host and wire_id(row) == attempt else None


def _foreign(rows: Mapping[str, OpenRow], host: str, attempts: Iterable[str]) -> list[str]:
    """Those of these attempts that are of another host's open job."""
    return [it for it in attempts if (row := rows.get(_job_id(it))) is not None and row.host != host]


def _of_deleted_hosts(conn: Connection, jobs: Iterable[NewJob], known: Mapping[Pair, queue.PairRow]) -> dict[str, str]:
    """Why jobs are not to be recorded whose hosts another server deleted meanwhile, by id: nobody would end them.
    Raises Conflict where somebody asked for such a job."""
    away = [job for job in jobs if known[_pair(job)].server is None]
    deleted = undeclared(conn, {job.host for job in away}) if away else set()
    of_deleted = [job for job in away if job.host in deleted]
    if asked := [job.host for job in of_deleted if job.command.scheduled_at is None]:
        raise Conflict(f"{asked[0]} was deleted meanwhile")
    return dict.fromkeys((job.id for job in of_deleted), fires.DELETED)


def _in_order(ready: Sequence[ReadyRow], copies: Sequence[ReadyRow]) -> list[ReadyRow]:
    """The first jobs of some lanes in the order of the queue. `ready`: of each lane, `queue.FRONT` at most; `copies`:
    the first that need a slot of these lanes."""
    rows = [*copies, *(row for row in ready if not row.from_lane)]
    return sorted(rows, key=lambda row: (row.queued_at, row.id))


def _with_far(front: Sequence[Waiting], ordered: Sequence[ReadyRow], ready: Sequence[ReadyRow]) -> list[Waiting]:
    """Jobs in their order, with the copies marked before which more than `queue.FRONT` jobs wait in a lane."""
    counts = Counter(row.lane for row in ready)
    last = {row.lane: row.id for row in ready if counts[row.lane] >= queue.FRONT}
    beyond: set[str] = set()
    far: set[str] = set()
    for row in ordered:
        if row.from_lane and not beyond.isdisjoint((row.lane, row.from_lane)):
            far.add(row.id)
        beyond.update(lane for lane in (row.lane, row.from_lane) if last.get(lane) == row.id)
    return [job._replace(is_far=job.id in far) for job in front]


def _pair(job: NewJob) -> tuple[str, str]:
    return job.command.schedule_id, job.host


def _has_begun(row: OpenRow) -> bool:
    """Whether a job may run on its host."""
    return row.sent or row.status == "running"


def _counts(row: OpenRow, end: JobFinished) -> bool:
    """Whether the end of a job tells how its Schedule goes on its host: it began there, and nobody cancelled it, also
    not while its agent ended."""
    was_cancelled = end.status == "cancelled" or (end.status == "interrupted" and row.cancel_requested)
    return _has_begun(row) and not was_cancelled


def _met(running: Collection[str], row: OpenRow) -> Moved | None:
    """Where a job belongs after its host's hello, which has these attempts; None where it is."""
    if row.status == "running" or (row.sent and wire_id(row) in running):
        return None if row.holds else _moved(row, holds=True)
    return _moved(row, sent=False, holds=False) if row.sent else None


def _moved(
    row: OpenRow,
    *,
    sent: bool | None = None,
    holds: bool | None = None,
    deferred: bool | None = None,
    queued_at: datetime | None = None,
) -> Moved:
    """Where a job belongs that is moved: what is not given stays. `queued_at`: when its next attempt is due, too."""
    at = row.queued_at if queued_at is None else queued_at
    return Moved(
        row.id,
        row.status,
        row.sent if sent is None else sent,
        row.holds if holds is None else holds,
        row.deferred if deferred is None else deferred,
        row.attempt,
        at,
        at if row.not_before is not None else None,
        row.accepted_at,
    )


def _pages(conn: Connection, busy: Mapping[str, int]) -> Iterator[list[OpenRow]]:
    """The open jobs of hosts, `queue.FRONT` of them at a time at most. `busy`: by `queue.with_jobs`, counted so far."""
    for hosts in _together(busy):
        if len(hosts) > 1:
            yield queue.of_hosts(conn, hosts)
            continue
        after = ""
        while some := queue.of_host(conn, hosts[0], after, queue.FRONT):
            after = some[-1].id
            yield some


def _together(busy: Mapping[str, int]) -> Iterator[list[str]]:
    """Hosts that have `queue.FRONT` jobs together at most, or one that has more: no job is read for several pages."""
    hosts: list[str] = []
    jobs = 0
    for host, count in sorted(busy.items()):
        if hosts and jobs + count > queue.FRONT:
            yield hosts
            hosts, jobs = [], 0
        hosts.append(host)
        jobs += count
    if hosts:
        yield hosts


def _first(outcome: Outcome, items: Sequence[object]) -> list[Outcome]:
    """What a batch brought about, told to the first of its items: each of them is carried out once."""
    return [outcome, *[Outcome()] * (len(items) - 1)]


def _joined(one: Outcome, other: Outcome) -> Outcome:
    wake_at = min((at for at in (one.wake_at, other.wake_at) if at is not None), default=None)
    return Outcome(
        [*one.recorded, *other.recorded],
        [*one.sent, *other.sent],
        [*one.ended, *other.ended],
        [*one.asked, *other.asked],
        [*one.more, *other.more],
        wake_at,
    )
