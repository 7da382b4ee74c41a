"""What time does to open jobs: timers of those that wait, and which of those that run hang."""

import heapq
from bisect import bisect_left, insort
from datetime import datetime
from typing import NamedTuple

from server.jobs.job import Job


class _Timer(NamedTuple):
    at: datetime
    number: int
    job: Job


class Timers:
    """Timers of waiting jobs. A timer stays set when its job ends: the caller skips that job."""

    def __init__(self) -> None:
        self._heap: list[_Timer] = []
        self._last_set: dict[Job, datetime] = {}
        self._number = 0

    @property
    def next_at(self) -> datetime | None:
        """When the next timer expires; None if none is set."""
        return self._heap[0].at if self._heap else None

    def set(self, job: Job, at: datetime) -> None:
        """Set a timer, unless the last one that was set for this job has the same time."""
        if self._last_set.get(job) != at:  # a host that reconnects often has no more timers than one that stays
            self._last_set[job] = at
            self._number += 1
            heapq.heappush(self._heap, _Timer(at, self._number, job))

    def pop(self, now: datetime) -> Job | None:
        """Remove the earliest timer that has expired and return its job; None if none has."""
        if not self._heap or self._heap[0].at > now:
            return None
        job = heapq.heappop(self._heap).job
        self._last_set.pop(job, None)
        return job


class RunningJobs:
    """Running jobs in the order in which they begin to count as hanging (`Job.hangs_at`)."""

    def __init__(self) -> None:
        self._order: list[tuple[datetime, str]] = []

    def add(self, job: Job) -> None:
        """Add a job, if it runs."""
        if job.hangs_at is not None:
            insort(self._order, (job.hangs_at, job.id))

    def remove(self, job: Job) -> None:
        """Remove a job, if it runs. Its `running_since` must be what it was when the job was added."""
        if job.hangs_at is not None:
            del self._order[bisect_left(self._order, (job.hangs_at, job.id))]

    def hanging(self, now: datetime) -> list[str]:
        """The ids of the jobs that hang."""
        return [job_id for _, job_id in self._order[: bisect_left(self._order, (now, ""))]]
