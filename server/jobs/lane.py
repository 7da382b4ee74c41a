"""One lane, and the open jobs of one Schedule on one host: in which order jobs go, and which must wait for others."""

from bisect import bisect_left, insort
from typing import Literal

from server.jobs.job import UNLIMITED, Job, Position


class Lane:
    """The jobs that share a repository.

    `active`: ids of the jobs that hold a slot, which `exclusive` of them may share with no other.
    `waiting`: positions of the jobs that wait, in order.
    """

    __slots__ = ("active", "exclusive", "waiting")

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.exclusive = 0
        self.waiting: list[Position] = []

    @property
    def is_empty(self) -> bool:
        """Whether no job holds a slot or waits."""
        return not self.active and not self.waiting

    def take_slot(self, job: Job) -> None:
        """Give a job a slot."""
        self.active.add(job.id)
        self.exclusive += job.exclusive

    def release_slot(self, job: Job) -> None:
        """Take a job's slot from it. Raises KeyError if it holds none."""
        self.active.remove(job.id)
        self.exclusive -= job.exclusive

    def join(self, job: Job) -> None:
        """Have a job wait at its position."""
        insort(self.waiting, job.position)

    def leave(self, job: Job) -> None:
        """Remove a waiting job."""
        del self.waiting[bisect_left(self.waiting, job.position)]

    def ahead_of(self, job: Job) -> int:
        """How many jobs hold a slot or wait at an earlier position."""
        return len(self.active) + bisect_left(self.waiting, job.position)

    def has_slot_for(self, job: Job, limit: int | None) -> bool:
        """Whether a job may start now. `limit`: maximum active jobs, None for any number."""
        if job.command.kind in UNLIMITED or not self.active:
            return True
        return not (self.exclusive or job.exclusive or (limit is not None and len(self.active) >= limit))


class ScheduleJobs:
    """The open jobs of one Schedule on one host.

    `jobs`: all of them, by id, in the order in which they were added.
    `active`: how many were sent or run.
    `due`: positions of those that wait and are not deferred, in order.
    `queued`: the serial job that waits in its lane; no other serial job does.
    """

    __slots__ = ("active", "due", "jobs", "queued")

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.active = 0
        self.due: list[Position] = []
        self.queued: Job | None = None

    @property
    def first_due(self) -> Job | None:
        """The first job in order that waits and is not deferred."""
        return self.jobs[self.due[0][1]] if self.due else None

    def count(self, job: Job, by: Literal[1, -1]) -> None:
        """Count a job in, or out before its state, `since` or `deferred` changes."""
        if job.state != "waiting":
            self.active += by
        elif not job.deferred:
            at = bisect_left(self.due, job.position)
            self.due[at : at + (by < 0)] = [job.position] if by > 0 else []

    def blocks(self, job: Job) -> bool:
        """Whether a job that is due must wait for another one of these."""
        return job.serial and (self.active > 0 or self.due[0] != job.position)

    def set_queued(self, job: Job, queued: bool) -> None:
        """A job joined its lane, or left it."""
        if job.serial:
            self.queued = job if queued else None
