"""A plain model of the queue of jobs: every job is looked at after every event, and nothing is remembered."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from server.jobs.fires import NewJob
from server.jobs.kinds import EXCLUSIVE, UNLIMITED, ConcurrencyLimit


@dataclass
class Known:
    """An open job."""

    job: NewJob
    queued_at: datetime
    status: str = "pending"
    sent: bool = False
    holds: bool = False
    deferred: bool = False
    cancelled: bool = False
    attempt: int = 1

    @property
    def position(self) -> tuple[datetime, str]:
        """Its place in its lane."""
        return self.queued_at, self.job.id

    @property
    def wire_id(self) -> str:
        """What its host calls its present attempt."""
        return self.job.id if self.attempt == 1 else f"{self.job.id}.{self.attempt}"

    @property
    def has_begun(self) -> bool:
        """Whether it may run."""
        return self.sent or self.status == "running"

    def is_due(self, now: datetime) -> bool:
        """Whether its present attempt may begin by the clock."""
        start_by = self.job.start_by
        return not self.deferred and (self.attempt > 1 or start_by is None or now < start_by)


@dataclass
class Model:
    """The open jobs. `over`: those that ended without their hosts. `asked`: those whose hosts are to end them."""

    limits: dict[str, ConcurrencyLimit]
    now: datetime
    jobs: dict[str, Known] = field(default_factory=dict)
    online: set[str] = field(default_factory=set)
    due_times: set[tuple[str, str, datetime]] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    # Rules.

    def lane(self, job: NewJob) -> str:
        """The lane of a job."""
        return "" if job.command.kind in UNLIMITED else self._lane(job.command.repository, job.host)

    def from_lane(self, job: NewJob) -> str:
        """The lane that a copy reads from."""
        return self._lane(job.command.from_repository, job.host) if job.command.from_repository else ""

    def _lane(self, repository: str, host: str) -> str:
        return f"{repository}/{host}" if self.limits[repository].per_host else repository

    def lanes(self, job: NewJob) -> list[str]:
        """The lanes in which a job needs a slot: its own first."""
        return [self.lane(job), *filter(None, [self.from_lane(job)])]

    def linked(self, lane: str) -> set[str]:
        """The lanes that copies which are ready link to this one."""
        found, before = {lane}, set[str]()
        while found != before:
            before = set(found)
            for it in self.jobs.values():
                if self.is_ready(it) and found.intersection(self.lanes(it.job)):
                    found.update(self.lanes(it.job))
        return found

    def runs(self, job: NewJob) -> list[Known]:
        """The open jobs of its schedule on its host, the oldest first; those of no schedule, if it has none."""
        pair = job.command.schedule_id, job.host
        found = [it for it in self.jobs.values() if (it.job.command.schedule_id, it.job.host) == pair]
        return sorted(found, key=lambda it: it.position)

    def is_ready(self, it: Known) -> bool:
        """Whether only its lane holds a job back."""
        if it.has_begun or not it.is_due(self.now) or it.job.host not in self.online:
            return False
        others = [other for other in self.runs(it.job) if other is not it] if it.job.command.schedule_id else []
        before = (other.has_begun or (other.is_due(self.now) and other.position < it.position) for other in others)
        return it.job.policy == "Allow" or not any(before)

    def may_go(self, it: Known, lane: str) -> bool:
        """Whether the first job of a lane has a slot there."""
        holders = [other for other in self.jobs.values() if other.holds and lane in self.lanes(other.job)]
        alone = {other.job.command.kind for other in [it, *holders]} & EXCLUSIVE
        limit = self.limits[lane.partition("/")[0]].limit if lane else None
        return not holders or (not alone and (limit is None or len(holders) < limit))

    def _going(self) -> Iterator[Known]:
        held_up: set[str] = set()
        for it in sorted(self.jobs.values(), key=lambda it: it.position):
            if not self.is_ready(it):
                continue
            own, *source = self.lanes(it.job)
            if own in held_up or not self.may_go(it, own):
                held_up.add(own)
            elif any(lane in held_up or not self.may_go(it, lane) for lane in source):
                held_up.update((own, *source))
            else:
                yield it

    def advance(self) -> set[str]:
        """The jobs that are sent now."""
        sent = set()
        while (it := next(self._going(), None)) is not None:
            it.sent = it.holds = True
            sent.add(it.job.id)
        return sent

    # Events.

    def record(self, jobs: Collection[NewJob]) -> tuple[set[str], set[str]]:
        """Jobs of one recording. Returns those that are stored, and those that are refused for others' sake."""
        stored: set[str] = set()
        refused: set[str] = set()
        replacing: list[NewJob] = []
        before, known = {job.id: list(self.runs(job)) for job in jobs}, set(self.due_times)
        came: list[tuple[str, str]] = []
        for job in jobs:
            pair, at = (job.command.schedule_id, job.host), job.command.scheduled_at
            in_the_way = job.policy != "Allow" and (pair in came or (job.policy == "Forbid" and before[job.id]))
            if at is not None and in_the_way:
                refused |= set() if (*pair, at) in known else {job.id}
                continue
            came.append(pair)
            if at is not None and (*pair, at) in self.due_times:
                continue
            self.due_times |= set() if at is None else {(*pair, at)}
            self.jobs[job.id] = Known(job, job.created_at)
            stored.add(job.id)
            if job.policy == "Replace":
                replacing.append(job)
        for job in replacing:
            self.cancel([it.job.id for it in before[job.id]])
        return stored, refused

    def cancel(self, job_ids: Collection[str]) -> None:
        """Somebody wants jobs to end."""
        for job_id in job_ids:
            if (it := self.jobs.get(job_id)) is None:
                continue
            if it.has_begun and it.job.host in self.online:
                it.cancelled = True
                self.asked.add(job_id)
            else:
                self.end(job_id)

    def end(self, job_id: str) -> None:
        """A job ends without its host."""
        del self.jobs[job_id]
        self.over.add(job_id)

    def accept(self, it: Known) -> None:
        """A host took a job."""
        it.status, it.sent, it.holds = "running", True, True

    def retry(self, it: Known, at: datetime) -> None:
        """An attempt failed, and the next one is due then."""
        it.status, it.sent, it.holds, it.deferred = "pending", False, False, True
        it.attempt, it.queued_at = it.attempt + 1, at

    def arrive(self, host: str, running: Collection[str]) -> None:
        """A host said hello, and which attempts it has."""
        self.online.add(host)
        for it in self.jobs.values():
            if it.job.host == host and it.has_begun:
                it.holds = it.status == "running" or it.wire_id in running
                it.sent = it.holds

    def give_up(self, host: str) -> None:
        """A host was gone for long."""
        for it in self.jobs.values():
            it.holds = it.holds and it.job.host != host

    def pass_time(self, now: datetime) -> None:
        """It is that time."""
        self.now = now
        for it in list(self.jobs.values()):
            it.deferred = it.deferred and it.queued_at > now
            start_by = it.job.start_by
            if not it.has_begun and it.attempt == 1 and start_by is not None and start_by <= now:
                self.end(it.job.id)

    def begin_anew(self) -> None:
        """A server begins. What was put back after the clock was set back may be queued in the future until then."""
        for it in self.jobs.values():
            if not it.has_begun and not (it.deferred and it.attempt > 1):
                it.queued_at = min(it.queued_at, self.now)

    def set_clock_back(self, now: datetime) -> None:
        """The clock was ahead."""
        self.now = now
        for it in self.jobs.values():
            if not it.has_begun:
                it.queued_at = min(it.queued_at, now)
