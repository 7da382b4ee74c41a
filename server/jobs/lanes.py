"""Which jobs may run now, and what the others wait for: all open jobs, as a state machine without I/O.

Each repository has a lane. Jobs start in the order of their positions; none overtakes another. A lane has as many slots
as the repository's concurrency limit allows. An exclusive job waits until all slots are free, and holds back the jobs
behind it. Jobs that cannot start (host offline, earlier job of the Schedule not ended) leave the lane and keep their
position. A failed job rejoins the lane when its next attempt is due.

A job is `waiting` until it is to be sent, `sent` until its host has accepted it, then `running`. Sent and running jobs
hold a slot. After a crash, all of this follows from what is stored and from what hosts report in their hello.

No method takes long, however many jobs a host or a repository has: it updates some jobs at once, and leaves the others
to `take` and `tick`, which also work in pieces.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from server.jobs.job import UNLIMITED, ConcurrencyLimit, Job, State
from server.jobs.lane import Lane, ScheduleJobs
from server.jobs.pieces import PIECE, Updates
from server.jobs.timers import RunningJobs, Timers

LATE_AGAIN = timedelta(minutes=1)
"""After this, `tick` returns a late job once more: its end could not be stored."""


class Lanes:
    """All open jobs.

    After each change, call `take` for the jobs that may be sent, again while `has_more`. Call `tick` at `wake_at`.
    `piece`: maximum jobs handled by one call.
    """

    def __init__(self, piece: int = PIECE) -> None:
        self._piece = piece
        self.jobs: dict[str, Job] = {}
        self._limits: dict[str, ConcurrencyLimit] = {}
        self._lanes: dict[str, Lane] = {}
        self._of_schedule: dict[tuple[str, str], ScheduleJobs] = {}  # by Schedule and host
        self._of_repository: dict[str, dict[str, Job]] = {}
        self._of_host: dict[str, dict[str, Job]] = {}
        self._waiting = 0
        self._online: set[str] = set()
        self._changed: dict[str, None] = {}  # lanes that may have a free slot; ordered, so that a seed repeats
        self._updates = Updates(lambda job: self.jobs.get(job.id) is job)
        self._running = RunningJobs()
        self._timers = Timers()

    # What is open.

    def find(self, host: str, wire_id: str) -> Job | None:
        """The open job of this host whose current attempt has this id."""
        job = self.jobs.get(wire_id.partition(".")[0])
        return job if job is not None and job.host == host and job.wire_id == wire_id else None

    def is_open(self, job_id: str) -> bool:
        """Whether a job has not ended."""
        return job_id in self.jobs

    def is_of_another_host(self, host: str, wire_id: str) -> bool:
        """Whether an id names an open job of another host than this one."""
        job = self.jobs.get(wire_id.partition(".")[0])
        return job is not None and job.host != host

    def of_host(self, host: str) -> list[Job]:
        """A host's stored jobs, in the order in which they were added."""
        return [job for job in self._of_host.get(host, {}).values() if job.recorded]

    def count_of(self, host: str) -> int:
        """How many open jobs a host has."""
        return len(self._of_host.get(host, ()))

    def is_online(self, host: str) -> bool:
        """Whether a host is connected and its hello was answered."""
        return host in self._online

    def of_schedule(self, schedule_id: str, host: str) -> Collection[Job]:
        """A Schedule's jobs on a host, in the order in which they were added; jobs of no Schedule for ""."""
        found = self._of_schedule.get((schedule_id, host))
        return () if found is None else found.jobs.values()

    @property
    def waiting_count(self) -> int:
        """How many jobs wait."""
        return self._waiting

    def hanging(self, now: datetime) -> list[Job]:
        """The running jobs that their hosts should have stopped by now. Any thread may ask."""
        return [job for job_id in self._running.hanging(now) if (job := self.jobs.get(job_id)) is not None]

    def waits_for(self, job_id: str, repository: str) -> str:
        """What a job waits for, as text for users; empty if it does not wait.

        `repository`: the name of its repository, NAMESPACE/NAME.
        """
        job = self.jobs.get(job_id)
        if job is None or job.state != "waiting":
            return ""
        if job.deferred:
            return f"retry at {job.since:%Y-%m-%dT%H:%M:%SZ}" if job.attempt > 1 else "its end: it is too late to begin"
        if job.host not in self._online:
            return f"host {job.host} to connect"
        if not job.queued:
            return f"the run before it on host {job.host}"
        ahead = self._lanes[job.lane].ahead_of(job)
        return f"{ahead} job{'s' * (ahead != 1)} before it in repository {repository}"

    # What changes.

    def limit(self, repository: str, limit: ConcurrencyLimit) -> None:
        """Set a repository's limit. Jobs that hold a slot keep it."""
        if self._limit_of(repository) == limit:
            return
        if limit == ConcurrencyLimit():
            del self._limits[repository]
        else:
            self._limits[repository] = limit
        jobs = self._of_repository.get(repository, {}).values()
        self._changed.update(dict.fromkeys(job.lane for job in jobs))
        self._update_each(("repository", repository), jobs, self._change_lane)

    def add(self, jobs: Sequence[Job]) -> list[Job]:
        """Add jobs that are about to be stored, or that were open before a crash. Jobs that are open are skipped.

        Returns the jobs that may be sent now, as `take` does; the new ones among them only once they are stored.
        """
        for job in jobs:
            if job.id in self.jobs:
                continue
            self.jobs[job.id] = job
            self._of_host.setdefault(job.host, {})[job.id] = job
            self._of_repository.setdefault(job.repository, {})[job.id] = job
            self._of_schedule.setdefault((job.command.schedule_id, job.host), ScheduleJobs()).jobs[job.id] = job
            self._enter(job)
            self._running.add(job)
        taken = self.take(len(jobs))
        for job in jobs:
            self._set_timer(job)
        return taken

    def remove(self, job_id: str) -> Job | None:
        """Remove a job that has ended, or could not be stored. Returns it; None if it was not open."""
        job = self.jobs.pop(job_id, None)
        if job is None:
            return None
        self._leave(job)
        self._set_running_since(job, None)
        _discard(self._of_host, job.host, job)
        _discard(self._of_repository, job.repository, job)
        others = self._siblings(job)
        del others.jobs[job.id]
        if others.jobs:
            self._update_first(others)
        else:
            del self._of_schedule[job.command.schedule_id, job.host]
        return job

    def accepted(self, job: Job, now: datetime) -> None:
        """A host accepted a job. One that it had accepted before keeps its `running_since`."""
        self._set_running_since(job, job.running_since or now)
        self._set_state(job, "running")

    def retry(self, job: Job, at: datetime) -> None:
        """An attempt failed, and the next one is due at `at`."""
        self._leave(job)
        job.attempt, job.state, job.since, job.deferred = job.attempt + 1, "waiting", at, True
        self._set_running_since(job, None)
        self._enter(job)
        self._set_timer(job)
        self._update_first(self._siblings(job))

    def requeue(self, job: Job) -> None:
        """A job that `take` returned was not sent: it waits at its position again."""
        if job.state == "sent" and self.jobs.get(job.id) is job:
            self._set_state(job, "waiting")
            self._set_timer(job)

    def connected(self, host: str, running: Collection[str]) -> None:
        """A host said hello, and reports that it has these attempts."""
        self._online.add(host)
        jobs = self._of_host.get(host, {}).values()
        # A job that is being stored was not sent yet, and jobs that are sent from now on are not lost.
        unknown = {job.wire_id for job in jobs if job.state == "sent" and job.recorded}.difference(running)
        self._update_each(("host", host), jobs, partial(self._compare, frozenset(running), unknown))

    def _compare(self, running: Collection[str], unknown: Collection[str], job: Job) -> None:
        """Set a job's state from its host's hello. `unknown`: attempts sent to the host that it does not have."""
        if job.wire_id in running:
            self._set_state(job, "running")
        elif job.wire_id in unknown:
            self.requeue(job)
        elif job.state == "waiting":
            self._update_queued(job)
        elif not self._holds_slot(job):  # it lost its slot while its host was disconnected
            self._set_state(job, job.state)

    def disconnected(self, host: str) -> bool:
        """A host disconnected: its waiting jobs leave their lanes; the others keep their slots until `release_slots`.

        Returns whether any holds one.
        """
        self._online.discard(host)
        jobs = self._of_host.get(host, {}).values()
        self._update_each(("host", host), jobs, self._update_queued)
        return any(job.state != "waiting" for job in jobs)

    def release_slots(self, host: str) -> None:
        """Release the slots of a host that has been disconnected for too long."""
        self._update_each(("host", host), self._of_host.get(host, {}).values(), self._release_slot)

    def _update_each(self, changed: tuple[str, str], jobs: Iterable[Job], apply: Callable[[Job], None]) -> None:
        self._updates.start(changed, jobs, apply, self._piece)

    # Who may go.

    @property
    def has_more(self) -> bool:
        """Whether `take` has more to do."""
        return bool(self._updates or self._changed)

    def take(self, most: int | None = None) -> list[Job]:
        """Jobs that may be sent now. They count as sent from here on: each is returned once. Lanes take turns.

        `most`: maximum jobs; `piece` when None.
        """
        most = self._piece if most is None else most
        self._updates.advance(most)
        taken: list[Job] = []
        while self._changed and len(taken) < most:
            key = next(iter(self._changed))
            del self._changed[key]
            if (lane := self._lanes.get(key)) is None:
                continue
            first = self.jobs[lane.waiting[0][1]] if lane.waiting else None
            if first is not None and lane.has_slot_for(first, self._limit_of(first.repository).limit):
                self._set_state(first, "sent")  # which marks the lane as changed again
                taken.append(first)
            elif lane.is_empty:
                del self._lanes[key]
        return taken

    def _limit_of(self, repository: str) -> ConcurrencyLimit:
        return self._limits.get(repository, ConcurrencyLimit())

    # Time.

    @property
    def wake_at(self) -> datetime | None:
        """When `tick` has work to do; None while nothing is timed. It stays in the past until all work is done."""
        return self._timers.next_at

    def tick(self, now: datetime) -> list[Job]:
        """Have attempts that are due rejoin their lanes. Returns jobs that missed `start_by`, for the caller to end."""
        late = []
        for _ in range(self._piece):
            if (job := self._timers.pop(now)) is None:
                break
            if self.jobs.get(job.id) is not job or job.state != "waiting":
                continue
            if job.start_by is not None and job.attempt == 1 and job.start_by <= now:
                self._set_deferred(job, deferred=True)
                late.append(job)
                self._timers.set(job, now + LATE_AGAIN)
            elif job.deferred and job.since <= now:
                self._set_deferred(job, deferred=False)
        return late

    def clock_set_back(self, now: datetime) -> None:
        """The clock was wrong, and shows `now`: jobs that wait for a later time are due, time limits count anew."""
        for job in [job for job in self.jobs.values() if job.state == "waiting" and job.since > now]:
            self._leave(job)
            job.since = now
            self._enter(job)
            self._set_timer(job)
            self._update_first(self._siblings(job))
        for job in self.jobs.values():
            if job.running_since is not None and job.running_since > now:
                self._set_running_since(job, now)

    def _set_deferred(self, job: Job, *, deferred: bool) -> None:
        self._count(job, -1)
        job.deferred = deferred
        self._count(job, 1)
        self._update_queued(job)
        self._update_first(self._siblings(job))

    def _set_timer(self, job: Job) -> None:
        """Have `tick` handle a waiting job when its next attempt is due, or when it misses `start_by`."""
        if job.state == "waiting":
            if job.deferred:
                self._timers.set(job, job.since)
            elif job.start_by is not None and job.attempt == 1:
                self._timers.set(job, job.start_by)

    def _set_running_since(self, job: Job, since: datetime | None) -> None:
        self._running.remove(job)
        job.running_since = since
        self._running.add(job)

    # Slots and positions.

    def _key(self, job: Job) -> str:
        """The key of the lane that a job belongs to by its repository's limit."""
        if job.command.kind in UNLIMITED:
            return ""
        return f"{job.repository}/{job.source_host}" if self._limit_of(job.repository).per_host else job.repository

    def _change_lane(self, job: Job) -> None:
        """Move a job to the lane that it belongs to."""
        if job.lane != self._key(job) and (job.state == "waiting" or self._holds_slot(job)):
            self._leave(job)
            self._enter(job)
            self._update_first(self._siblings(job))

    def _set_state(self, job: Job, state: State) -> None:
        if job.state == "sent" and state == "running" and self._holds_slot(job):
            job.state = state
            return
        self._leave(job)
        job.state = state
        self._enter(job)
        self._update_first(self._siblings(job))

    def _enter(self, job: Job) -> None:
        """Put a job into the lane that it belongs to: to wait, or with a slot, as its state says."""
        job.lane = self._key(job)
        self._count(job, 1)
        if job.state == "waiting":
            self._update_queued(job)
        else:
            self._lanes.setdefault(job.lane, Lane()).take_slot(job)

    def _leave(self, job: Job) -> None:
        self._count(job, -1)
        self._release_slot(job)
        if job.queued:
            self._unqueue(job)

    def _release_slot(self, job: Job) -> None:
        """Release a job's slot, if it holds one."""
        if self._holds_slot(job):
            self._lanes[job.lane].release_slot(job)
            self._changed[job.lane] = None

    def _holds_slot(self, job: Job) -> bool:
        lane = self._lanes.get(job.lane)
        return lane is not None and job.id in lane.active

    def _update_queued(self, job: Job) -> None:
        """Have a job wait in its lane if it could start there, and leave it otherwise."""
        others = self._siblings(job)
        ready = job.state == "waiting" and not job.deferred and job.host in self._online and not others.blocks(job)
        if ready and not job.queued:
            self._lanes.setdefault(job.lane, Lane()).join(job)
            job.queued = True
            others.set_queued(job, queued=True)
            self._changed[job.lane] = None
        elif job.queued and not ready:
            self._unqueue(job)

    def _unqueue(self, job: Job) -> None:
        self._lanes[job.lane].leave(job)
        job.queued = False
        self._changed[job.lane] = None
        self._siblings(job).set_queued(job, queued=False)

    def _siblings(self, job: Job) -> ScheduleJobs:
        """The open jobs of the same Schedule on the same host, with this one."""
        return self._of_schedule[job.command.schedule_id, job.host]

    def _count(self, job: Job, by: Literal[1, -1]) -> None:
        """Count a job in, or out before its state, `since` or `deferred` changes."""
        self._waiting += by * (job.state == "waiting")
        self._siblings(job).count(job, by)

    def _update_first(self, jobs: ScheduleJobs) -> None:
        """Queue the first due job of a Schedule on a host; another serial one that is queued leaves its lane."""
        if jobs.queued is not None:
            self._update_queued(jobs.queued)
        if (first := jobs.first_due) is not None:
            self._update_queued(first)


def _discard(groups: dict[str, dict[str, Job]], name: str, job: Job) -> None:
    group = groups[name]
    del group[job.id]
    if not group:
        del groups[name]
