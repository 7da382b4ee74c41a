"""The way of a job: stored when it is recorded, sent when the queue says so, followed until its end is stored.

What is in memory changes once it is stored, also when whoever asked for it is gone by then: methods answer a future of
what they store, which nobody has to await. A job is sent only after it is stored that it may be, so that a server that
was killed knows which jobs may be running.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection

from server.agents.session import Effect, Send, Session
from server.errors import Unavailable
from server.events import (
    AttemptEnded,
    ClockSetBack,
    DeclarationChanged,
    Event,
    Events,
    FireRefused,
    HostDisconnected,
    JobsChanged,
    JobsRecorded,
    RecordedJob,
)
from server.fleet.expected import span
from server.fleet.placement import PlacedSchedule, Placement
from server.jobs import fires, resume
from server.jobs.fires import NewJob
from server.jobs.lanes import LOOKS, Job, Lanes, pieces
from server.jobs.repositories import RepositoryStates
from server.store.engine import StoreClosedError
from server.store.jobs import jobs_accepted, jobs_cancelled, jobs_finished, jobs_retried, jobs_sent, record_jobs
from server.store.logs import log_lines
from server.store.rows import JobRow, OpenJob, Retry
from wire.messages import CommandCancel, CommandRun, JobFinished, JobProgress, ScheduleFire, ScheduleRefused

log = logging.getLogger(__name__)

LONGEST = timedelta(hours=24)
"""The longest time between two attempts, however often a job has failed."""
LOOK_S = 60.0
"""The clock is looked at so often at least: it may have been set."""
MAX_HEARD = 10_001
"""Lines that are heard of a look: what an agent tells at most, and one that says how many it left out."""
PROGRESS = timedelta(seconds=0.5)
"""Within this, a job tells its progress once: agents tell it each second."""
HOLD_S = 1800.0
"""How long a job keeps its place while its host is offline; restic takes a lock that old for stale, too."""
AGAIN_S = 5.0
"""When what could not be stored is tried again."""

Result = TypeVar("Result")
Submit = Callable[[Callable[[Connection, Sequence[Any]], Sequence[Any]], Any], "asyncio.Future[Any]"]
CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Heard(NamedTuple):
    """What a look has told so far, and how it ended once it has."""

    lines: list[str]
    end: "asyncio.Future[JobFinished]"


class Agents(Protocol):
    """How hosts are reached: the hub."""

    def session(self, host: str) -> Session | None:
        """The session of a host; None for one that is not known."""

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write to a host that is online."""


class Dispatcher:
    """All open jobs, and what sends, ends and retries them.

    `submit` stores as `Store.submit` does; `call_later` as an event loop's, that of the running loop when None.
    """

    def __init__(
        self,
        submit: Submit,
        lanes: Lanes,
        placement: Placement,
        agents: Agents,
        repositories: RepositoryStates,
        events: Events,
        clock: Callable[[], datetime],
        call_later: CallLater | None = None,
    ) -> None:
        self._submit = submit
        self._lanes = lanes
        self._placement = placement
        self._agents = agents
        self._repositories = repositories
        self._events = events
        self._clock = clock
        self._call_later = call_later
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = clock()
        self._holds: dict[str, asyncio.TimerHandle] = {}  # of hosts that are gone, and keep the places of their jobs
        self._closed = False
        self._heard: dict[str, Heard] = {}
        self._anothers: dict[str, int] = {}  # messages of connected hosts about jobs of other hosts

    def load(self, open_jobs: Iterable[OpenJob]) -> None:
        """Take in the jobs that were open when the last server ended: their hosts have yet to say what they know."""
        jobs = [self._loaded(row) for row in open_jobs]
        self._lanes.add(jobs)
        for host in dict.fromkeys(job.host for job in jobs):  # in order, so that a seed plays one story
            self._hold(host)
        self.advance()

    def _loaded(self, row: OpenJob) -> Job:
        command = _command.decode(row.command)
        target = self._placement.schedules.get(command.schedule_id)
        alone, deadline = bool(command.schedule_id), None
        if target is not None:
            alone, deadline = target.spec.concurrency_policy != "Allow", target.spec.starting_deadline_seconds
        start_by = None if deadline is None else (command.scheduled_at or row.created_at) + timedelta(seconds=deadline)
        now = self._clock()
        latest = now if row.not_before is None or target is None else now + _pause(target, row.attempt - 1)
        since = min(row.not_before or row.created_at, latest)  # our clock may have been set back since then
        job = Job(command, row.host, since, alone, start_by, row.attempt)
        job.state = "running" if row.status == "running" else "sent" if row.sent else "waiting"
        job.running_since = row.accepted_at and min(row.accepted_at, now)
        job.cancelled = "cancelled" if row.cancel_requested else ""
        job.off = job.state == "waiting" and row.not_before is not None
        return job

    def close(self) -> None:
        """Look at the clock no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for hold in self._holds.values():
            hold.cancel()

    def waits_for(self, job_id: str) -> str:
        """What a job waits for, in words; empty when it does not."""
        job = self._lanes.jobs.get(job_id)
        return "" if job is None else self._lanes.waits_for(job_id, self._repositories.name(job.repository))

    def problem_of(self, job_id: str) -> str:
        """What is wrong with a job that runs; empty where nothing is."""
        job = self._lanes.jobs.get(job_id)
        if job is None or not job.hangs(self._clock()):
            return ""
        return (
            f"runs for longer than its limit of {span(job.limit)}: its agent may hang; cancel it, or restart the agent"
        )

    def count_of(self, host: str) -> int:
        """How many open jobs a host has."""
        return self._lanes.count_of(host)

    # From a fire or a wish to its job.

    def decide(
        self, session: Session, fired: Sequence[tuple[ScheduleFire, str]], new_ids: Sequence[str], now: datetime
    ) -> tuple[list[NewJob], Send | None]:
        """What a host's due times become, each with the id of its envelope: the jobs to `record`, before anything else
        happens, and the refusals to send. `new_ids`: one for each due time."""
        jobs, refusals = fires.decide(fired, session, self._placement.schedules, self._lanes, now, new_ids)
        if refusals is not None:
            self._tell_refused(session.name, refusals)
        return jobs, refusals

    def _tell_refused(self, host: str, send: Send) -> None:
        for message in send.messages:
            if isinstance(message, ScheduleRefused):
                self._events.publish(FireRefused(host, message.schedule_id, message.reason))

    def record(
        self,
        jobs: Sequence[NewJob],
        store: Callable[[Sequence[JobRow]], "asyncio.Future[set[str]]"] | None = None,
    ) -> "asyncio.Future[set[str]]":
        """Store jobs, each once for its due time, and have those run that may. `store`: stores them with something
        else, and answers which are new. Raises Unavailable."""
        placed = [_placed(job) for job in jobs]
        taken, its = self._lanes.add(placed), {job.id for job in placed}
        going = {job.id for job in taken if job.id in its and not self._lacking(job.host, job.command)}
        self._send([job for job in taken if job.id not in its])
        rows = [fires.job_row(job, sent=job.command.job_id in going) for job in jobs]
        try:
            future: asyncio.Future[set[str]] = self._submit(record_jobs, rows) if store is None else store(rows)
        except Exception:
            self._not_recorded(placed)
            raise
        return then(future, partial(self._recorded, jobs, placed, going), partial(self._not_recorded, placed))

    def _recorded(self, jobs: Sequence[NewJob], placed: Sequence[Job], going: Collection[str], new: set[str]) -> None:
        by_host: dict[str, list[NewJob]] = defaultdict(list)
        for job, its in zip(jobs, placed, strict=True):
            by_host[job.host].append(job)
            its.recorded = True
        self._drop(job for job in placed if job.id not in new)
        sent = (job for job in placed if job.id in new and job.state == "sent")
        self._end(self._unsupported(job for job in sent if job.id not in going))
        for host, of_host in by_host.items():
            if (send := fires.answered(of_host, new, going)) is not None:
                self._agents.deliver(host, [send])
                self._tell_refused(host, send)
        self._events.publish(JobsRecorded([_recorded_job(job) for job in jobs if job.command.job_id in new]))
        for job in jobs:
            if job.replaces and job.command.job_id in new:
                self._replace(job)
        self.advance()

    def _not_recorded(self, placed: Sequence[Job]) -> None:
        self._drop(placed)
        self.advance()

    def _drop(self, placed: Iterable[Job]) -> None:
        for job in placed:
            if self._lanes.jobs.get(job.id) is job:
                self._lanes.remove(job.id)

    # To its host.

    def arrived(self, host: str, running: Collection[str]) -> None:
        """A host can be written to, and has these attempts: what it was told in its hello is dealt with."""
        self._release(host)
        self._lanes.arrived(host, running)
        self.advance()

    def resumed(self, session: Session, running: Collection[str]) -> Iterator[list[Effect]]:
        """What a hello's running jobs teach about the host's open jobs, piece by piece: what to send and to store."""
        unknown = set(running)
        for some in pieces(self._lanes.of_host(session.name)):
            its = unknown.intersection(job.wire_id for job in some)
            unknown -= its
            yield resume.resumed(session.capabilities, its, some, self._clock())
        yield resume.resumed(session.capabilities, unknown, (), self._clock())

    def on_event(self, event: Event) -> None:
        """Hear of a host whose connection is gone, of limits that may have changed, and of a clock that was wrong."""
        if isinstance(event, HostDisconnected):
            self.disconnected(event.host)
        elif isinstance(event, ClockSetBack):
            self._lanes.clock_set_back(event.now)
            self.advance()
        elif isinstance(event, DeclarationChanged) and (event.repositories or event.deleted_repositories):
            self.advance()

    def disconnected(self, host: str) -> None:
        """A host's connection is gone."""
        if (count := self._anothers.pop(host, 0)) > 1:
            log.warning(_ANOTHERS, extra={"host": host, "messages": count})
        self._hold(host)
        self.advance()

    def _hold(self, host: str) -> None:
        """A host is gone: its jobs keep their places for HOLD_S, by the loop's clock, which nobody can set."""
        self._release(host)
        if self._lanes.disconnected(host) and not self._closed:
            self._holds[host] = self._later(HOLD_S, partial(self._give_up, host))

    def _release(self, host: str) -> None:
        if (timer := self._holds.pop(host, None)) is not None:
            timer.cancel()

    def _give_up(self, host: str) -> None:
        del self._holds[host]
        self._lanes.given_up(host)
        self.advance()

    def advance(self) -> None:
        """Send what may be sent by now, end what is too late, and be called again when there is more to do: where there
        is much, as soon as others had their turn on the loop."""
        now = self._clock()
        self._end([_late(job, now) for job in self._lanes.tick(now)])
        self._send(self._lanes.take())
        self._look_again(now)

    def _send(self, taken: Sequence[Job]) -> None:
        """Send jobs whose turn it is, once that is stored; end those that lost their schedule or cannot be run."""
        now = self._clock()
        self._end([JobFinished(job.id, "cancelled", now, error=_GONE) for job in taken if self._is_gone(job)])
        self._end(unsupported := self._unsupported(job for job in taken if not self._is_gone(job)))
        over = {end.job_id for end in unsupported}
        going = [job for job in taken if not self._is_gone(job) and job.id not in over]
        ids = [job.id for job in going]
        self._submit_later(jobs_sent, ids, lambda _: self._sent(going), partial(self._unsent, going))

    def _lacking(self, host: str, command: CommandRun) -> str:
        """Why a host cannot run a command, or may not any more, in words; empty where it does."""
        session = self._agents.session(host)
        lacking = "" if session is None else session.missing_capabilities(command)
        return lacking or self._repositories.withdrawn(host, command)

    def _unsupported(self, jobs: Iterable[Job]) -> list[JobFinished]:
        """The ends of those of these jobs that their hosts' agents cannot run."""
        told = ((job, self._lacking(job.host, job.command)) for job in jobs)
        return [JobFinished(job.id, "failed", self._clock(), error=error) for job, error in told if error]

    def _sent(self, going: Sequence[Job]) -> None:
        by_host: dict[str, list[Effect]] = defaultdict(list)
        for job in going:
            if self._lanes.jobs.get(job.id) is job and job.state == "sent" and not job.cancelled:
                by_host[job.host].append(Send((job.to_send,)))
        for host, sends in by_host.items():
            self._agents.deliver(host, sends)

    def _unsent(self, going: Sequence[Job]) -> None:
        for job in going:
            self._lanes.unsent(job)
        self._call_in(AGAIN_S)

    def _look_again(self, now: datetime) -> None:
        at = now if self._lanes.has_more else self._lanes.wake_at
        if at is not None:
            self._call_in(min(max((at - now).total_seconds(), 0.0), LOOK_S))

    def _call_in(self, seconds: float) -> None:
        """Go on after that time, or sooner where that was asked for."""
        at = self._clock() + timedelta(seconds=seconds)
        if self._closed or (self._timer is not None and self._wakes_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = self._later(seconds, self._woken), at

    def _later(self, seconds: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        return (self._call_later or asyncio.get_running_loop().call_later)(seconds, do)

    def _woken(self) -> None:
        self._timer = None
        self.advance()

    def _is_gone(self, job: Job) -> bool:
        schedule_id = job.command.schedule_id
        return bool(schedule_id) and self._target(job) is None

    def _target(self, job: Job) -> PlacedSchedule | None:
        """The schedule of a job, if its host still has it."""
        host = self._placement.hosts.get(job.host)
        if host is None or job.command.schedule_id not in host.entries.items:
            return None
        return self._placement.schedules.get(job.command.schedule_id)

    # What its host says.

    def own_ends(self, host: str, ends: Sequence[JobFinished]) -> list[JobFinished]:
        """Those of the ends that a host told that are not of another host's open job: the others are not heard."""
        return [end for end in ends if not self._is_anothers(host, end.job_id)]

    def _find(self, host: str, wire_id: str) -> Job | None:
        """The open job of this host whose present attempt has this id."""
        return None if self._is_anothers(host, wire_id) else self._lanes.find(host, wire_id)

    def _is_anothers(self, host: str, wire_id: str) -> bool:
        """Whether a host speaks of another host's open job. That is counted, and told when its connection is gone."""
        if not self._lanes.is_anothers(host, wire_id):
            return False
        count = self._anothers[host] = self._anothers.get(host, 0) + 1
        if count == 1:
            log.warning(_ANOTHERS, extra={"host": host, "job": wire_id})
        return True

    def accept(self, host: str, wire_ids: Sequence[str]) -> "Sequence[asyncio.Future[Any]]":
        """A host took these attempts. Raises Unavailable."""
        jobs = [job for wire_id in wire_ids if (job := self._find(host, wire_id)) is not None]
        now = self._clock()
        for job in jobs:
            self._lanes.accepted(job, now)
        if not jobs:
            return []
        future = self._submit(jobs_accepted, [(job.id, now) for job in jobs])
        return [then(future, lambda _: self._events.publish(JobsChanged([job.id for job in jobs])))]

    def log(self, host: str, wire_id: str, lines: Sequence[str]) -> "Sequence[asyncio.Future[Any]]":
        """An attempt told something for people; a look tells who waits for it, and nothing of it is stored.

        Raises Unavailable.
        """
        job = self._find(host, wire_id)
        if job is None:
            return []
        if job.command.kind not in LOOKS:
            return [] if job.log_is_full else [self._log(job, lines)]
        if (heard := self._heard.get(job.id)) is not None:
            heard.lines.extend(lines[: MAX_HEARD - len(heard.lines)])
        return []

    def _log(self, job: Job, lines: Sequence[str]) -> "asyncio.Future[bool]":
        def mark(full: bool) -> None:
            job.log_is_full = full

        future: asyncio.Future[bool] = self._submit(log_lines, (job.id, self._clock(), lines))
        return then(future, mark)

    def progress(self, host: str, told: JobProgress) -> None:
        """An attempt told how far it is. What comes within PROGRESS after the last is not looked at."""
        now = self._clock()
        job = self._find(host, told.job_id)
        if job is not None and (job.progress_at is None or abs(now - job.progress_at) >= PROGRESS):
            job.progress, job.progress_at = told, now
            if self._repositories.mark_opened(job.repository):  # restic tells nothing before it has opened it
                self.advance()

    def progress_of(self, job_id: str) -> JobProgress | None:
        """How far a job is; None when that is not known."""
        job = self._lanes.jobs.get(job_id)
        return None if job is None else job.progress

    @contextmanager
    def listening(self, job_id: str) -> Iterator["Heard"]:
        """While entered, what a look tells is heard."""
        heard = self._heard[job_id] = Heard([], asyncio.get_running_loop().create_future())
        try:
            yield heard
        finally:
            del self._heard[job_id]

    def finish(self, host: str, ends: Sequence[JobFinished]) -> "Sequence[asyncio.Future[Any]]":
        """Attempts of a host's jobs ended: stored, and followed by others where the schedule says so. What ended before
        is left alone. Raises Unavailable."""
        over, again, futures = [], [], []
        now = self._clock()
        for end in ends:
            if (job := self._find(host, end.job_id)) is None:
                continue
            its = _by_our_clock(end, job, now)
            if (at := self._retry_at(job, its, now)) is None:
                over.append(its)
            else:
                again.append(Retry(its, job.attempt, at))
        if again:
            futures.append(then(self._submit(jobs_retried, again), lambda _: self._retried(again)))
        if over:
            futures.append(then(self._submit(jobs_finished, over), lambda _: self.ended(over)))
        return futures

    def _retry_at(self, job: Job, end: JobFinished, now: datetime) -> datetime | None:
        """When a job is tried again after this end; None when it is over."""
        target = self._target(job)
        if (
            end.reason == "OutcomeUnknown"
            or job.cancelled
            or target is None
            or end.status not in ("failed", "timed_out", "interrupted")
        ):
            return None
        return now + _pause(target, job.attempt) if job.attempt <= target.spec.retry.limit else None

    def _retried(self, retries: Sequence[Retry]) -> None:
        for end, attempt, at in retries:
            job = self._lanes.jobs.get(end.job_id)
            if job is not None and job.attempt == attempt:
                self._attempted(job, end, over=False)
                self._lanes.retry(job, at)
                if job.cancelled:
                    self._end_cancelled(job)
        self._events.publish(JobsChanged([retry.end.job_id for retry in retries]))
        self.advance()

    def _attempted(self, job: Job, end: JobFinished, *, over: bool) -> None:
        command = job.command
        self._repositories.attempted(job, end)
        self._events.publish(AttemptEnded(job.id, job.host, command.schedule_id, command.kind, end, over))

    # Its end.

    def ends_of_host(self, host: str, error: str, now: datetime) -> list[JobFinished]:
        """The ends of all open jobs of a host, which is to be deleted."""
        return [JobFinished(job.id, "cancelled", now, error=error) for job in self._lanes.of_host(host)]

    def to_cancel(self, job_ids: Iterable[str], why: str) -> tuple[list[JobFinished], list[str]]:
        """The ends of those of these jobs that end at once, because they have not begun or their host is offline; and
        those whose host is to say how they ended."""
        ends, asked = [], []
        for job_id in job_ids:
            job = self._lanes.jobs.get(job_id)
            if job is None:
                continue
            if job.state != "waiting" and self._lanes.is_online(job.host):
                asked.append(job_id)
            else:
                ends.append(JobFinished(job_id, "cancelled", self._clock(), error=f"{why} {_UNBEGUN[job.state]}"))
        return ends, asked

    def cancelled(self, ends: Sequence[JobFinished], asked: Sequence[str], why: str) -> None:
        """That jobs are to end is stored: have their hosts end them, at once or after their next hello."""
        self.ended(ends)
        for job_id in asked:
            if (job := self._lanes.jobs.get(job_id)) is None:
                continue
            job.cancelled = why
            if job.state == "waiting":
                self._end_cancelled(job)
            else:
                self._agents.deliver(job.host, [Send((CommandCancel(job.wire_id, why),))])

    def _end_cancelled(self, job: Job) -> None:
        self._end([JobFinished(job.id, "cancelled", self._clock(), error=job.cancelled)])

    def _replace(self, new: NewJob) -> None:
        """End the runs in whose place a new one is."""
        why = f"replaced by job {new.command.job_id}"
        ends, asked = self.to_cancel(new.replaces, why)
        self._end(ends)
        self._submit_later(jobs_cancelled, asked, lambda _: self.cancelled((), asked, why), lambda: None)

    def _end(self, ends: Sequence[JobFinished]) -> None:
        """End jobs that do not run. What cannot be stored now is tried again."""
        if ends:
            self._submit_later(jobs_finished, ends, lambda _: self.ended(ends), partial(self._not_ended, ends))

    def _not_ended(self, ends: Sequence[JobFinished]) -> None:
        self._unsent([job for end in ends if (job := self._lanes.jobs.get(end.job_id)) is not None])

    def ended(self, ends: Sequence[JobFinished]) -> None:
        """Jobs have ended, and that is stored."""
        unneeded: dict[str, None] = {}
        for end in ends:
            if (job := self._lanes.remove(end.job_id)) is not None:
                self._attempted(job, end, over=True)
                if not job.command.schedule_id:
                    unneeded[job.host] = None
                if (heard := self._heard.get(job.id)) is not None and not heard.end.done():
                    heard.end.set_result(end)
        for host in unneeded:
            self._agents.deliver(host, ())  # it needs the credentials no more
        if ends:
            self.advance()

    def _submit_later(
        self,
        function: Callable[[Connection, Sequence[Any]], Sequence[Any]],
        item: object,
        follow: Callable[[Any], None],
        failed: Callable[[], None],
    ) -> None:
        """Store something that nobody waits for."""
        if not item:
            return
        try:
            future = self._submit(function, item)
        except (Unavailable, StoreClosedError):
            failed()
        else:
            then(future, follow, failed)


def then(
    future: "asyncio.Future[Result]", follow: Callable[[Result], None], failed: Callable[[], None] = lambda: None
) -> "asyncio.Future[Result]":
    """Have something follow once it is stored; before whoever awaits that goes on."""

    def done(future: "asyncio.Future[Result]") -> None:
        if future.cancelled() or future.exception() is not None:
            failed()
        else:
            follow(future.result())

    future.add_done_callback(done)
    return future


async def stored(*futures: "asyncio.Future[Any]") -> None:
    """Wait until all of that is stored; to give up waiting changes nothing of it. Raises Unavailable."""
    for future in futures:
        await asyncio.shield(future)


def _placed(job: NewJob) -> Job:
    return Job(job.command, job.host, job.created_at, job.alone, job.start_by, recorded=False)


def _pause(schedule: PlacedSchedule, attempt: int) -> timedelta:
    """How long after a failed attempt the next one is due."""
    return timedelta(seconds=min(schedule.spec.retry.backoff_seconds * 2 ** (attempt - 1), LONGEST.total_seconds()))


def _by_our_clock(end: JobFinished, job: Job, now: datetime) -> JobFinished:
    """The end of a job's attempt, between the time that it could begin at and now, whatever its host's clock shows."""
    first = min(job.since, now)
    finished = min(max(end.finished_at, first), now)
    started = end.started_at and min(max(end.started_at, first), finished)
    return msgspec.structs.replace(end, job_id=job.id, finished_at=finished, started_at=started)


def _late(job: Job, now: datetime) -> JobFinished:
    error = "it waited for longer than its schedule's startingDeadlineSeconds"
    return JobFinished(job.id, "failed", now, error=error, reason="DeadlineExceeded")


def _recorded_job(job: NewJob) -> RecordedJob:
    return RecordedJob(job.command.job_id, job.host, job.command.scheduled_at, job.missed, job.created_at)


_ANOTHERS = "left out: what a host said of another host's job"
_GONE = "its schedule was deleted, or does not select this host any more"
_UNBEGUN = {"waiting": "before it began", "sent": "while its host was offline", "running": "while its host was offline"}
_command = msgspec.json.Decoder(CommandRun)
