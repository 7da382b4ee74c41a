"""Which jobs may run now, and which wait for what: all jobs that have no end, as a state machine without I/O.

Each repository has a line. Within it, who came first goes first and nobody overtakes: at most so many jobs run at once
as the repository allows, and those for which restic locks it alone (EXCLUSIVE) wait for the others and hold off what
came later. Who cannot go anyway does not stand in line, and comes back to the place it had: a job whose host is
offline, or whose schedule's last run on that host is not over. A job that failed stands in line anew when it is due.

A job is `waiting` until it is to be sent, then `sent` until its host has accepted it, then `running`. Sent and running
jobs hold a place. After a crash all of this is known again from what is stored and from what hosts say in their hello.

However many jobs a host or a repository has, no method takes long: what concerns all of them is done for some at once,
and for the others, some at a time, by `take` and `tick`.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from wire.messages import CommandRun, JobProgress

EXCLUSIVE = frozenset({"forget", "prune", "check"})
"""The kinds for which restic locks a repository alone (restic: doc/design, "Locks")."""
LOOKS = frozenset({"snapshots", "ls"})
"""The kinds whose log is what was asked for, by somebody who waits for it."""
UNLIMITED = LOOKS | {"unlock"}
"""The kinds that stand in no line: they lock nothing, and are wanted just when others are stuck, or at once."""
LIMIT = timedelta(days=1)
"""How long a job may run whose command has no time limit, such as a restore."""
GRACE = timedelta(minutes=15)
"""How long a job may go on after its limit before that is told: its host waits for locks, and restic ends slowly."""
AGAIN = timedelta(minutes=1)
"""After this, a job that is too late is told again: its end could not be stored."""
SLICE = 200
"""Jobs that are dealt with in one piece, some milliseconds, before others have their turn on the event loop."""

T = TypeVar("T")


def pieces(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """What is to be dealt with, in pieces between which others have their turn on the event loop."""
    for begin in range(0, len(many), SLICE):
        yield many[begin : begin + SLICE]


State = Literal["waiting", "sent", "running"]
Place = tuple[datetime, str]
"""Where a job stands in line: since when, and its id."""


class ConcurrencyLimit(NamedTuple):
    """How many jobs may use a repository at once, and whether each host has one of its own under its name."""

    limit: int | None = None
    per_host: bool = False


class Job(Struct, eq=False):
    """A job that has no end. `since`: when it was recorded, or its next attempt is due.

    `alone`: not beside another run of its schedule on its host. `start_by`: when it is too late to begin with it.
    `cancelled`: why it is to end, once somebody wants that. `recorded`: whether it is stored. `off`: it stands in no
    line for now, because it is not due yet or too late. `key`: of its line. `progress`: what its
    host last told. `running_since`: when its host accepted the present attempt. `progress_at`: when `progress`
    came. `log_is_full`: whether no more lines of its log are kept.
    """

    command: CommandRun
    host: str
    since: datetime
    alone: bool = True
    start_by: datetime | None = None
    attempt: int = 1
    state: State = "waiting"
    cancelled: str = ""
    recorded: bool = True
    off: bool = False
    key: str = ""
    in_line: bool = False
    progress: JobProgress | None = None
    running_since: datetime | None = None
    watched: datetime | None = None
    progress_at: datetime | None = None
    log_is_full: bool = False

    @property
    def id(self) -> str:
        """The job's id, the same for all attempts."""
        return self.command.job_id

    @property
    def wire_id(self) -> str:
        """What agents call this attempt; they know nothing of attempts."""
        return self.id if self.attempt == 1 else f"{self.id}.{self.attempt}"

    @property
    def to_send(self) -> CommandRun:
        """The command of this attempt."""
        return self.command if self.attempt == 1 else msgspec.structs.replace(self.command, job_id=self.wire_id)

    @property
    def repository(self) -> str:
        """The id of its repository."""
        return self.command.repository.partition("/")[0]

    @property
    def whose(self) -> str:
        """The host whose name is in the repository's URL, where that holds one."""
        return self.command.repository.partition("/")[2] or self.host

    @property
    def exclusive(self) -> bool:
        """Whether it must have its repository to itself."""
        return self.command.kind in EXCLUSIVE

    @property
    def limit(self) -> timedelta:
        """How long it may run."""
        return LIMIT if self.command.timeout_s is None else timedelta(seconds=self.command.timeout_s)

    @property
    def hangs_at(self) -> datetime | None:
        """From when on it hangs: its host should have stopped it by then. None while it does not run."""
        return None if self.running_since is None else self.running_since + self.limit + GRACE

    def hangs(self, now: datetime) -> bool:
        """Whether it runs although its host should have stopped it by now."""
        return self.hangs_at is not None and self.hangs_at < now

    @property
    def place(self) -> Place:
        """Where it stands in its line."""
        return self.since, self.id


class _Line:
    """One repository's line: who has a place, how many of them must be alone, and who stands in line, in order."""

    __slots__ = ("active", "exclusive", "waiting")

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.exclusive = 0
        self.waiting: list[Place] = []


class _Runs:
    """A schedule's open jobs on a host: how many were sent or run, and the places of those that wait and are due, in
    order. `standing`: of those that are to run alone, the one that stands in line."""

    __slots__ = ("active", "due", "jobs", "standing")

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.active = 0
        self.due: list[Place] = []
        self.standing: Job | None = None


class _Visits(NamedTuple):
    """Jobs that are yet to be dealt with after something that concerns all of them, and what is to be done for each."""

    jobs: Iterator[Job]
    visit: Callable[[Job], None]


class _Timer(NamedTuple):
    """A job to look at again."""

    at: datetime
    number: int
    job: Job


class Lanes:
    """All open jobs. After each change, `take` tells which may be sent; call it again while it `has_more`. When
    `wake_at` has come, call `tick`. `piece`: how many jobs are dealt with at once."""

    def __init__(self, piece: int = SLICE) -> None:
        self._piece = piece
        self.jobs: dict[str, Job] = {}
        self._limits: dict[str, ConcurrencyLimit] = {}
        self._lines: dict[str, _Line] = {}
        self._runs: dict[tuple[str, str], _Runs] = {}  # by schedule and host
        self._of_repository: dict[str, dict[str, Job]] = {}
        self._waiting = 0
        self._of_host: dict[str, dict[str, Job]] = {}
        self._online: set[str] = set()
        self._changed: dict[str, None] = {}  # lines to look at; in order, so that the same events give the same jobs
        self._visits: dict[tuple[str, str], _Visits] = {}  # by what they are for: kind and name
        self._hang: list[tuple[datetime, str]] = []  # when each job that runs begins to hang, and its id, in order
        self._timers: list[_Timer] = []
        self._number = 0

    # What is open.

    def find(self, host: str, wire_id: str) -> Job | None:
        """The open job of this host whose present attempt has this id."""
        job = self.jobs.get(wire_id.partition(".")[0])
        return job if job is not None and job.host == host and job.wire_id == wire_id else None

    def is_open(self, job_id: str) -> bool:
        """Whether a job has no end yet."""
        return job_id in self.jobs

    def is_anothers(self, host: str, wire_id: str) -> bool:
        """Whether an open job of another host has this id."""
        job = self.jobs.get(wire_id.partition(".")[0])
        return job is not None and job.host != host

    def of_host(self, host: str) -> list[Job]:
        """A host's stored jobs, those that were added first first."""
        return [job for job in self._of_host.get(host, {}).values() if job.recorded]

    def count_of(self, host: str) -> int:
        """How many open jobs a host has."""
        return len(self._of_host.get(host, ()))

    def is_online(self, host: str) -> bool:
        """Whether a host has said hello, and its connection is not gone."""
        return host in self._online

    def runs(self, schedule_id: str, host: str) -> Collection[Job]:
        """A schedule's jobs on a host, those that were added first first; for "", those of no schedule."""
        runs = self._runs.get((schedule_id, host))
        return () if runs is None else runs.jobs.values()

    @property
    def waiting_count(self) -> int:
        """How many jobs wait."""
        return self._waiting

    def hanging(self, now: datetime) -> list[Job]:
        """The jobs that run although their hosts should have stopped them by now. Any thread may ask."""
        over = self._hang[: bisect_left(self._hang, (now, ""))]
        return [job for _, job_id in over if (job := self.jobs.get(job_id)) is not None]

    def waits_for(self, job_id: str, repository: str) -> str:
        """What a job waits for, in words; empty when it does not. `repository`: what its repository is called."""
        job = self.jobs.get(job_id)
        if job is None or job.state != "waiting":
            return ""
        if job.off:
            return f"retry at {job.since:%Y-%m-%dT%H:%M:%SZ}" if job.attempt > 1 else "its end: it is too late to begin"
        if job.host not in self._online:
            return f"host {job.host} to connect"
        if not job.in_line:
            return f"the run before it on host {job.host}"
        line = self._lines[job.key]
        ahead = len(line.active) + bisect_left(line.waiting, job.place)
        return f"{ahead} job{'s' * (ahead != 1)} before it in repository {repository}"

    # What changes.

    def limit(self, repository: str, limit: ConcurrencyLimit) -> None:
        """A repository's limit is this from now on."""
        if self._limits.get(repository, ConcurrencyLimit()) == limit:
            return
        if limit == ConcurrencyLimit():
            del self._limits[repository]
        else:
            self._limits[repository] = limit
        jobs = self._of_repository.get(repository, {}).values()
        self._changed.update(dict.fromkeys(job.key for job in jobs))
        self._for_each(("repository", repository), jobs, self._move_line)

    def add(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs that are about to be stored take their places; those that may be sent once they are stored, and others
        whose turn has come.

        Also for jobs that are known from before a crash, which have the state that is stored. One that is open already
        is left out.
        """
        for job in jobs:
            if job.id in self.jobs:
                continue
            self.jobs[job.id], job.watched = job, None
            self._of_host.setdefault(job.host, {})[job.id] = job
            self._of_repository.setdefault(job.repository, {})[job.id] = job
            self._runs.setdefault((job.command.schedule_id, job.host), _Runs()).jobs[job.id] = job
            self._enter(job)
            self._watch_end(job)
        going = self.take(len(jobs))
        for job in jobs:
            self._watch(job)
        return going

    def recorded(self, job_id: str) -> None:
        """A job that was added is stored."""
        if (job := self.jobs.get(job_id)) is not None:
            job.recorded = True

    def remove(self, job_id: str) -> Job | None:
        """A job has ended, or was not stored; what it was, or None if it was not open."""
        job = self.jobs.pop(job_id, None)
        if job is None:
            return None
        self._leave(job)
        self._begin(job, None)
        _discard(self._of_host, job.host, job)
        _discard(self._of_repository, job.repository, job)
        runs = self._its(job)
        del runs.jobs[job.id]
        if runs.jobs:
            self._settle_first(runs)
        else:
            del self._runs[job.command.schedule_id, job.host]
        return job

    def accepted(self, job: Job, now: datetime) -> None:
        """Its host has it, since `now` unless that was known."""
        self._begin(job, job.running_since or now)
        self._move(job, "running")

    def retry(self, job: Job, at: datetime) -> None:
        """An attempt failed; the next one is due at that time."""
        self._leave(job)
        job.attempt, job.state, job.since, job.off = job.attempt + 1, "waiting", at, True
        self._begin(job, None)
        self._enter(job)
        self._watch(job)
        self._settle_first(self._its(job))

    def unsent(self, job: Job) -> None:
        """A job that was to be sent was not: it is back in its place."""
        if job.state == "sent" and self.jobs.get(job.id) is job:
            self._move(job, "waiting")
            self._watch(job)

    def arrived(self, host: str, running: Collection[str]) -> None:
        """A host said hello, and which attempts it has."""
        self._online.add(host)
        jobs = self._of_host.get(host, {}).values()
        # One that is being stored has yet to be sent, and those that are sent from now on are no loss.
        unheard = {job.wire_id for job in jobs if job.state == "sent" and job.recorded}.difference(running)
        self._for_each(("host", host), jobs, partial(self._meet, frozenset(running), unheard))

    def _meet(self, running: Collection[str], unheard: Collection[str], job: Job) -> None:
        """Put a job where it belongs after its host's hello. `unheard`: the attempts that it was sent, and has not."""
        if job.wire_id in running:
            self._move(job, "running")
        elif job.wire_id in unheard:
            self.unsent(job)
        elif job.state == "waiting":
            self._settle(job)
        elif not self._has_place(job):  # it was let go
            self._move(job, job.state)

    def disconnected(self, host: str) -> bool:
        """A host's connection is gone. Its jobs keep the places that they have until it is `given_up`, and stand in no
        line. Whether any has a place."""
        self._online.discard(host)
        jobs = self._of_host.get(host, {}).values()
        self._for_each(("host", host), jobs, self._settle)
        return any(job.state != "waiting" for job in jobs)

    def given_up(self, host: str) -> None:
        """A host that departed has been gone for so long that its jobs keep no others waiting."""
        self._for_each(("host", host), self._of_host.get(host, {}).values(), self._free)

    def _for_each(self, what: tuple[str, str], jobs: Iterable[Job], visit: Callable[[Job], None]) -> None:
        """Do something for some of these jobs, and have `take` do it for the others, in place of what is yet to be done
        for the same thing."""
        self._visits[what] = _Visits(iter(list(jobs)), visit)
        self._visit(what, self._piece)

    def _visit(self, what: tuple[str, str], most: int) -> int:
        """Do what is to be done for some jobs; how many they were. What is left comes after what others wait for."""
        visits = self._visits.pop(what)
        its = list(islice(visits.jobs, most))
        for job in its:
            if self.jobs.get(job.id) is job:
                visits.visit(job)
        if len(its) == most:
            self._visits[what] = visits
        return len(its)

    # Who may go.

    @property
    def has_more(self) -> bool:
        """Whether `take` has more to do."""
        return bool(self._visits or self._changed)

    def take(self, most: int | None = None) -> list[Job]:
        """Jobs that may be sent now, and are taken to be: each is told once. Lines take turns.

        `most`: how many; as many as are dealt with at once when None.
        """
        left = most = self._piece if most is None else most
        while self._visits and left > 0:
            left -= self._visit(next(iter(self._visits)), left)
        taken: list[Job] = []
        while self._changed and len(taken) < most:
            key = next(iter(self._changed))
            del self._changed[key]
            if (line := self._lines.get(key)) is None:
                continue
            if line.waiting and self._may_go(line, job := self.jobs[line.waiting[0][1]]):
                self._move(job, "sent")  # which has its line looked at again
                taken.append(job)
            elif not line.active and not line.waiting:
                del self._lines[key]
        return taken

    def _may_go(self, line: _Line, job: Job) -> bool:
        if job.command.kind in UNLIMITED or not line.active:
            return True
        limit = self._limits.get(job.repository, ConcurrencyLimit()).limit
        return not (line.exclusive or job.exclusive or (limit is not None and len(line.active) >= limit))

    # Time.

    @property
    def wake_at(self) -> datetime | None:
        """When `tick` has work to do."""
        return self._timers[0].at if self._timers else None

    def tick(self, now: datetime) -> list[Job]:
        """Time has come: attempts that are due stand in line. Answers those that are too late, whose end is due.

        Where there are many, `wake_at` stays in the past until all were looked at.
        """
        late = []
        for _ in range(self._piece):
            if not self._timers or self._timers[0].at > now:
                break
            job = heapq.heappop(self._timers).job
            job.watched = None
            if self.jobs.get(job.id) is not job or job.state != "waiting":
                continue
            if job.start_by is not None and job.attempt == 1 and job.start_by <= now:
                self._put_off(job, off=True)
                late.append(job)
                self._watch_until(job, now + AGAIN)
            elif job.off and job.since <= now:
                self._put_off(job, off=False)
        return late

    def clock_set_back(self, now: datetime) -> None:
        """What a wrong clock put off or saw begin after `now` is due now, and its limits count from now."""
        for job in [job for job in self.jobs.values() if job.state == "waiting" and job.since > now]:
            self._leave(job)
            job.since = now
            self._enter(job)
            self._watch(job)
            self._settle_first(self._its(job))
        for job in self.jobs.values():
            if job.running_since is not None and job.running_since > now:
                self._begin(job, now)

    def _put_off(self, job: Job, *, off: bool) -> None:
        """Have a waiting job stand in no line for now, or be due again."""
        self._count(job, -1)
        job.off = off
        self._count(job, 1)
        self._settle(job)
        self._settle_first(self._its(job))

    def _watch(self, job: Job) -> None:
        """Have `tick` look at a job that waits for a time."""
        if job.state == "waiting":
            if job.off:
                self._watch_until(job, job.since)
            elif job.start_by is not None and job.attempt == 1:
                self._watch_until(job, job.start_by)

    def _watch_until(self, job: Job, at: datetime) -> None:
        if job.watched != at:  # a host that comes and goes has no more timers set than one that stays
            job.watched = at
            self._number += 1
            heapq.heappush(self._timers, _Timer(at, self._number, job))

    # Places.

    def _key(self, job: Job) -> str:
        if job.command.kind in UNLIMITED:
            return ""
        repository = job.repository
        return f"{repository}/{job.whose}" if self._limits.get(repository, ConcurrencyLimit()).per_host else repository

    def _move_line(self, job: Job) -> None:
        """Put a job into the line that it belongs to by its repository's present rule."""
        if job.key != self._key(job) and (job.state == "waiting" or self._has_place(job)):
            self._leave(job)
            self._enter(job)
            self._settle_first(self._its(job))

    def _begin(self, job: Job, since: datetime | None) -> None:
        """Have a job run since then; None for one that does not."""
        if job.hangs_at is not None:
            del self._hang[bisect_left(self._hang, (job.hangs_at, job.id))]
        job.running_since = since
        self._watch_end(job)

    def _watch_end(self, job: Job) -> None:
        if job.hangs_at is not None:
            insort(self._hang, (job.hangs_at, job.id))

    def _move(self, job: Job, state: State) -> None:
        """Put a job where one of this state belongs."""
        if job.state == "sent" and state == "running" and self._has_place(job):
            job.state = state
            return
        self._leave(job)
        job.state = state
        self._enter(job)
        self._settle_first(self._its(job))

    def _enter(self, job: Job) -> None:
        job.key = self._key(job)
        self._count(job, 1)
        if job.state == "waiting":
            self._settle(job)
            return
        line = self._lines.setdefault(job.key, _Line())
        line.active.add(job.id)
        line.exclusive += job.exclusive

    def _leave(self, job: Job) -> None:
        self._count(job, -1)
        self._free(job)
        if job.in_line:
            self._step_out(job)

    def _free(self, job: Job) -> None:
        """Take a job's place from it, if it has one."""
        if self._has_place(job):
            line = self._lines[job.key]
            line.active.remove(job.id)
            line.exclusive -= job.exclusive
            self._changed[job.key] = None

    def _has_place(self, job: Job) -> bool:
        line = self._lines.get(job.key)
        return line is not None and job.id in line.active

    def _settle(self, job: Job) -> None:
        """Have a job stand in line, or not, as it should by now."""
        should = job.state == "waiting" and not job.off and job.host in self._online and not self._must_not_yet(job)
        if should and not job.in_line:
            insort(self._lines.setdefault(job.key, _Line()).waiting, job.place)
            job.in_line = True
            if job.alone:
                self._its(job).standing = job
            self._changed[job.key] = None
        elif job.in_line and not should:
            self._step_out(job)

    def _step_out(self, job: Job) -> None:
        waiting = self._lines[job.key].waiting
        del waiting[bisect_left(waiting, job.place)]
        job.in_line = False
        self._changed[job.key] = None
        if job.alone:
            self._its(job).standing = None

    def _its(self, job: Job) -> _Runs:
        return self._runs[job.command.schedule_id, job.host]

    def _count(self, job: Job, by: Literal[1, -1]) -> None:
        """Count a job among those of its schedule on its host, or no more, before that changes which of them it is."""
        runs = self._its(job)
        if job.state != "waiting":
            runs.active += by
            return
        self._waiting += by
        if not job.off:
            at = bisect_left(runs.due, job.place)
            runs.due[at : at + (by < 0)] = [job.place] if by > 0 else []

    def _settle_first(self, runs: _Runs) -> None:
        """Have the first job in order stand in line, if it may: of those that are to run alone, no other does."""
        if runs.standing is not None:
            self._settle(runs.standing)
        if runs.due:
            self._settle(runs.jobs[runs.due[0][1]])

    def _must_not_yet(self, job: Job) -> bool:
        """Whether a run of its schedule on its host goes before it."""
        runs = self._its(job)
        return job.alone and (runs.active > 0 or runs.due[0] != job.place)


def _discard(groups: dict[str, dict[str, Job]], name: str, job: Job) -> None:
    group = groups[name]
    del group[job.id]
    if not group:
        del groups[name]
