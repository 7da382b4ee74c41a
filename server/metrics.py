"""What Prometheus is told of what happens in a server, noted as it happens: counts and times.

Names and units follow Prometheus' practices; no label has values without bound. How things stand: `server.standing`.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.commands import KINDS
from server.host import NewJob
from wire.messages import JobEnd

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ended = ["kind", "status"]
        self._jobs = _children(Counter("lamplighter_jobs", "Jobs that ended.", ended, registry=registry))
        for kind, status in product((*KINDS, "restore"), get_args(JobEnd)):
            self._jobs(kind, status)  # from the beginning: increase() does not see the first of a series that appears
        self._attempts = _children(
            Counter("lamplighter_job_attempts", "Attempts of jobs that ended.", ended, registry=registry)
        )
        self._fires = _children(
            Counter("lamplighter_fires", "Fires of agents, by what came of them.", ["result"], registry=registry)
        )
        self._missed = Counter("lamplighter_missed_runs", "Due times that no run of their own had.", registry=registry)
        self._lateness = Histogram(
            "lamplighter_fire_lateness_seconds",
            "From a due time that was not missed to its job's row.",
            buckets=SECONDS,
            registry=registry,
        )
        self._acks = Histogram(
            "lamplighter_push_ack_seconds", "From a push to its ack.", buckets=SECONDS, registry=registry
        )

    def fired(self, jobs: Iterable[NewJob]) -> None:
        """Fires became jobs."""
        for job in jobs:
            due = job.command.scheduled_at
            if due is None:
                continue
            self._fires("Recorded").inc()
            if job.missed:
                self._missed.inc(job.missed)
            else:
                self._lateness.observe(max(0.0, (job.created_at - due).total_seconds()))

    def refused(self, reason: str) -> None:
        """A fire was refused; one whose job waits for its turn was recorded."""
        if reason != "Queued":
            self._fires(reason).inc()

    def ended(self, kind: str, status: str) -> None:
        """A job ended."""
        self._jobs(kind, status).inc()

    def attempted(self, kind: str, status: str) -> None:
        """An attempt of a job ended, the last one or not."""
        self._attempts(kind, status).inc()

    def acked(self, seconds: float) -> None:
        """A push was acked, so many seconds after it was written."""
        self._acks.observe(seconds)


def _children(counter: Counter) -> Callable[..., Counter]:
    """Answers the child for some values of labels, which prometheus-client looks up anew each time."""
    return cache(counter.labels)
