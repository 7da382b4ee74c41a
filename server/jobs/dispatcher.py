"""The shell around the lanes: jobs are stored when recorded, sent when the lanes allow, and removed when they end.

What is in memory changes once it is stored, even if nobody waits for the answer any more. Methods return futures of
what they store; nobody has to await them. The database says that a job is sent before it is sent, so that a server that
restarts after a crash knows which jobs may be running.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from server.agents.session import Effect, Send, Session
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
from server.fleet.placement import Placement
from server.jobs import attempts, fires
from server.jobs.fires import NewJob
from server.jobs.job import Job
from server.jobs.lanes import Lanes
from server.jobs.repositories import RepositoryStates
from server.store.futures import Submit, store_unattended, then
from server.store.jobs import jobs_cancelled, jobs_finished, jobs_sent, record_jobs
from server.store.rows import JobRow, OpenJob, Retry
from wire.messages import CommandCancel, CommandRun, JobFinished, JobProgress, ScheduleRefused

MAX_SLEEP_S = 60.0
"""Maximum seconds between two calls of `advance` while jobs wait for a time: the clock may be set meanwhile."""
HOLD_S = 1800.0
"""Seconds that jobs keep their slots after their host disconnected. restic takes a lock of that age for stale."""
STORE_AGAIN_S = 5.0
"""Seconds after which a write that failed is tried again."""

CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Agents(Protocol):
    """How hosts are reached: the hub."""

    def session(self, host: str) -> Session | None:
        """The session of a host; None for an unknown one."""

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write to a host, if it is connected."""


class Dispatcher:
    """Records, sends and ends jobs.

    `submit` stores as `Store.submit` does. `call_later` is an event loop's; that of the running loop when None.
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
        self._holds: dict[str, asyncio.TimerHandle] = {}  # of disconnected hosts whose jobs keep their slots
        self._closed = False

    def load(self, open_jobs: Iterable[OpenJob]) -> None:
        """Add the jobs that were open when the last server stopped. Their hosts count as disconnected."""
        jobs = [attempts.reopened(row, self._placement, self._clock()) for row in open_jobs]
        self._lanes.add(jobs)
        for host in dict.fromkeys(job.host for job in jobs):  # ordered, so that a seed repeats
            self._hold_slots(host)
        self.advance()

    def close(self) -> None:
        """Stop all timers."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for hold in self._holds.values():
            hold.cancel()

    # What is known of a job.

    def waits_for(self, job_id: str) -> str:
        """What a job waits for, as text for users; empty if it does not wait."""
        job = self._lanes.jobs.get(job_id)
        return "" if job is None else self._lanes.waits_for(job_id, self._repositories.name(job.repository))

    def problem_of(self, job_id: str) -> str:
        """What is wrong with a running job, as text for users; empty if nothing is."""
        job = self._lanes.jobs.get(job_id)
        if job is None or not job.hangs(self._clock()):
            return ""
        limit = span(job.time_limit)
        return f"runs for longer than its limit of {limit}: its agent may hang; cancel it, or restart the agent"

    def progress_of(self, job_id: str) -> JobProgress | None:
        """The progress that a job last reported; None if it is unknown."""
        job = self._lanes.jobs.get(job_id)
        return None if job is None else job.progress

    # From a fire or a request to a stored job.

    def record(
        self,
        jobs: Sequence[NewJob],
        store: Callable[[Sequence[JobRow]], "asyncio.Future[set[str]]"] | None = None,
    ) -> "asyncio.Future[set[str]]":
        """Store jobs, each once for its due time, and send those that may start. Returns the ids of those stored.

        `store`: stores them together with something else, and returns the same. Raises Unavailable.
        """
        opened = [Job(job.command, job.host, job.created_at, job.serial, job.start_by, recorded=False) for job in jobs]
        taken, ids = self._lanes.add(opened), {job.id for job in opened}
        sendable = {job.id for job in taken if job.id in ids and not self._obstacle(job.host, job.command)}
        self._send([job for job in taken if job.id not in ids])
        rows = [fires.job_row(job, sent=job.command.job_id in sendable) for job in jobs]
        try:
            future: asyncio.Future[set[str]] = self._submit(record_jobs, rows) if store is None else store(rows)
        except Exception:
            self._not_recorded(opened)
            raise
        return then(future, partial(self._recorded, jobs, opened, sendable), partial(self._not_recorded, opened))

    def _recorded(
        self, jobs: Sequence[NewJob], opened: Sequence[Job], sendable: Collection[str], new: set[str]
    ) -> None:
        """Jobs are stored. `sendable`: ids of those that go to their hosts at once; `new`: of those that were new."""
        by_host: dict[str, list[NewJob]] = defaultdict(list)
        for recorded, job in zip(jobs, opened, strict=True):
            by_host[job.host].append(recorded)
            job.recorded = True
        self._drop(job for job in opened if job.id not in new)
        sent = (job for job in opened if job.id in new and job.state == "sent")
        self._end(self._unsupported(job for job in sent if job.id not in sendable))
        for host, of_host in by_host.items():
            if (send := fires.answered(of_host, new, sendable)) is not None:
                self._agents.deliver(host, [send])
                self.publish_refused(host, send)
        stored = [job for job in jobs if job.command.job_id in new]
        published = [
            RecordedJob(it.command.job_id, it.host, it.command.scheduled_at, it.missed, it.created_at) for it in stored
        ]
        self._events.publish(JobsRecorded(published))
        for recorded in stored:
            if recorded.replaces:
                self._replace(recorded)
        self.advance()

    def _not_recorded(self, opened: Sequence[Job]) -> None:
        self._drop(opened)
        self.advance()

    def _drop(self, opened: Iterable[Job]) -> None:
        """Forget jobs that were not stored."""
        for job in opened:
            if self._lanes.jobs.get(job.id) is job:
                self._lanes.remove(job.id)

    def publish_refused(self, host: str, send: Send) -> None:
        """Publish the refusals among messages to a host."""
        for message in send.messages:
            if isinstance(message, ScheduleRefused):
                self._events.publish(FireRefused(host, message.schedule_id, message.reason))

    # To its host.

    def connected(self, host: str, running: Collection[str]) -> None:
        """A host can be written to and its hello is answered. `running`: ids of the attempts that it has."""
        self._cancel_hold(host)
        self._lanes.connected(host, running)
        self.advance()

    def on_event(self, event: Event) -> None:
        """Hear of a host that disconnected, of limits that may have changed, and of a clock that was wrong."""
        if isinstance(event, HostDisconnected):
            self.disconnected(event.host)
        elif isinstance(event, ClockSetBack):
            self._lanes.clock_set_back(event.now)
            self.advance()
        elif isinstance(event, DeclarationChanged) and (event.repositories or event.deleted_repositories):
            self.advance()

    def disconnected(self, host: str) -> None:
        """A host disconnected."""
        self._hold_slots(host)
        self.advance()

    def _hold_slots(self, host: str) -> None:
        """Have a host's jobs keep their slots for HOLD_S, by the loop's clock, which nobody can set."""
        self._cancel_hold(host)
        if self._lanes.disconnected(host) and not self._closed:
            self._holds[host] = self._later(HOLD_S, partial(self._release_slots, host))

    def _cancel_hold(self, host: str) -> None:
        if (timer := self._holds.pop(host, None)) is not None:
            timer.cancel()

    def _release_slots(self, host: str) -> None:
        del self._holds[host]
        self._lanes.release_slots(host)
        self.advance()

    def advance(self) -> None:
        """End jobs that missed their deadline, send those that may start, and set the timer for the next call.

        While there is more to do, the next call comes as soon as other tasks had the event loop.
        """
        now = self._clock()
        self._end(attempts.late_ends(self._lanes.tick(now), now))
        self._send(self._lanes.take())
        at = now if self._lanes.has_more else self._lanes.wake_at
        if at is not None:
            self._call_in(min(max((at - now).total_seconds(), 0.0), MAX_SLEEP_S))

    def _send(self, taken: Sequence[Job]) -> None:
        """Send jobs, once that is stored; end those without their Schedule and those that their hosts cannot run."""
        kept: list[Job] = []
        orphaned: list[Job] = []
        for job in taken:
            has_schedule = not job.command.schedule_id or attempts.current_schedule(job, self._placement) is not None
            (kept if has_schedule else orphaned).append(job)
        self._end(attempts.cancelled_ends(orphaned, self._clock(), _NO_SCHEDULE))
        self._end(unsupported := self._unsupported(kept))
        over = {end.job_id for end in unsupported}
        if sendable := [job for job in kept if job.id not in over]:
            ids = [job.id for job in sendable]
            sent, requeue = partial(self._sent, sendable), partial(self._requeue, sendable)
            store_unattended(self._submit, jobs_sent, ids, sent, requeue)

    def _obstacle(self, host: str, command: CommandRun) -> str:
        """Why a host cannot run a command, or is not granted it any more, as text for users; empty if it can."""
        session = self._agents.session(host)
        missing = "" if session is None else session.missing_capabilities(command)
        return missing or self._repositories.withdrawn(host, command)

    def _unsupported(self, jobs: Iterable[Job]) -> list[JobFinished]:
        """The ends of those jobs that their hosts cannot run."""
        found = ((job, self._obstacle(job.host, job.command)) for job in jobs)
        return [JobFinished(job.id, "failed", self._clock(), error=error) for job, error in found if error]

    def _sent(self, jobs: Sequence[Job], _: object) -> None:
        """It is stored that jobs are sent: write them to their hosts."""
        by_host: dict[str, list[Effect]] = defaultdict(list)
        for job in jobs:
            if self._lanes.jobs.get(job.id) is job and job.state == "sent" and not job.cancelled:
                by_host[job.host].append(Send((job.to_send,)))
        for host, sends in by_host.items():
            self._agents.deliver(host, sends)

    def _requeue(self, jobs: Iterable[Job]) -> None:
        """What concerns these jobs could not be stored: try again later."""
        for job in jobs:
            self._lanes.requeue(job)
        self._call_in(STORE_AGAIN_S)

    def _call_in(self, seconds: float) -> None:
        """Call `advance` after that time, unless an earlier call is set."""
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

    # Its end.

    def ends_of_host(self, host: str, error: str, now: datetime) -> list[JobFinished]:
        """The ends of all open jobs of a host that is to be deleted."""
        return attempts.cancelled_ends(self._lanes.of_host(host), now, error)

    def to_cancel(self, job_ids: Iterable[str], why: str) -> tuple[list[JobFinished], list[str]]:
        """How to cancel jobs: the ends of those that end at once, and the ids of those whose hosts are to stop them.

        A job ends at once if it was not sent, or if its host is offline.
        """
        ends, asked = [], []
        for job_id in job_ids:
            job = self._lanes.jobs.get(job_id)
            if job is None:
                continue
            if job.state != "waiting" and self._lanes.is_online(job.host):
                asked.append(job_id)
            else:
                when = "before it began" if job.state == "waiting" else "while its host was offline"
                ends += attempts.cancelled_ends([job], self._clock(), f"{why} {when}")
        return ends, asked

    def cancelled(self, ends: Sequence[JobFinished], asked: Sequence[str], why: str) -> None:
        """What `to_cancel` returned is stored: have hosts stop their jobs, now or after their next hello."""
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
        self._end(attempts.cancelled_ends([job], self._clock(), job.cancelled))

    def _replace(self, new: NewJob) -> None:
        """Cancel the jobs that a new one replaces."""
        why = f"replaced by job {new.command.job_id}"
        ends, asked = self.to_cancel(new.replaces, why)
        self._end(ends)
        if asked:
            cancelled = partial(self.cancelled, (), asked, why)
            store_unattended(self._submit, jobs_cancelled, asked, lambda _: cancelled(), lambda: None)

    def _end(self, ends: Sequence[JobFinished]) -> None:
        """Store the ends of jobs that do not run. If that fails, they are requeued and end later."""
        if ends:
            jobs = [job for end in ends if (job := self._lanes.jobs.get(end.job_id)) is not None]
            requeue = partial(self._requeue, jobs)
            store_unattended(self._submit, jobs_finished, ends, lambda _: self.ended(ends), requeue)

    def ended(self, ends: Sequence[JobFinished]) -> None:
        """The ends of jobs are stored."""
        hosts: dict[str, None] = {}
        for end in ends:
            if (job := self._lanes.remove(end.job_id)) is not None:
                self._attempt_ended(job, end, final=True)
                if not job.command.schedule_id:
                    hosts[job.host] = None
        for host in hosts:
            self._agents.deliver(host, ())  # it needs the credentials of that job no more
        if ends:
            self.advance()

    def retried(self, retries: Sequence[Retry]) -> None:
        """Failed attempts are stored, with the times of the next ones."""
        for end, attempt, at in retries:
            job = self._lanes.jobs.get(end.job_id)
            if job is not None and job.attempt == attempt:
                self._attempt_ended(job, end, final=False)
                self._lanes.retry(job, at)
                if job.cancelled:
                    self._end_cancelled(job)
        self._events.publish(JobsChanged([retry.end.job_id for retry in retries]))
        self.advance()

    def _attempt_ended(self, job: Job, end: JobFinished, *, final: bool) -> None:
        self._repositories.attempt_ended(job, end)
        self._events.publish(AttemptEnded(job.id, job.host, job.command.schedule_id, job.command.kind, end, final))


_NO_SCHEDULE = "its schedule was deleted, or does not select this host any more"
