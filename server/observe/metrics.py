"""Counters and histograms of what happens in a server, updated by events. Gauges are in `server.observe.state`.

Names and units follow Prometheus' practices, https://prometheus.io/docs/practices/naming/. Every label has a bounded
number of values.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.events import AttemptEnded, Event, FireRefused, HostAcked, JobsRecorded, RecordedJob
from server.jobs.arguments import KINDS
from wire.messages import JobEnd

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ended = ["kind", "status"]
        self._jobs = _children(Counter("lamplighter_jobs", "Jobs that ended.", ended, registry=registry))
        for kind, status in product((*KINDS, "restore"), get_args(JobEnd)):
            self._jobs(kind, status)  # export 0 at once: increase() ignores the first sample of a new series
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

    def on_event(self, event: Event) -> None:
        """Update the metrics for an event."""
        match event:
            case JobsRecorded(jobs):
                for job in jobs:
                    self._recorded(job)
            case FireRefused(_, _, reason) if reason != "Queued":  # a queued job was counted when it was recorded
                self._fires(reason).inc()
            case AttemptEnded():
                self._attempts(event.kind, event.end.status).inc()
                if event.final:
                    self._jobs(event.kind, event.end.status).inc()
            case HostAcked(_, _, seconds) if seconds is not None:
                self._acks.observe(seconds)

    def _recorded(self, job: RecordedJob) -> None:
        if job.due is None:
            return
        self._fires("Recorded").inc()
        if job.missed:
            self._missed.inc(job.missed)
        else:
            self._lateness.observe(max(0.0, (job.created_at - job.due).total_seconds()))


def _children(counter: Counter) -> Callable[..., Counter]:
    """Return a cached `counter.labels`: looking a child up costs prometheus-client more than counting."""
    return cache(counter.labels)
