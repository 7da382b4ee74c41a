"""Counters and histograms of what happens in a server, updated by events. Gauges are in `server.observe.state`.

Names and units follow Prometheus' practices, https://prometheus.io/docs/practices/naming/. Every label has a bounded
number of values.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.events import AttemptEnded, Event, FireRefused, HostAcked, JobsRecorded, RecordedJob
from server.jobs.arguments import KINDS
from wire.messages import JobEnd

Labelled = TypeVar("Labelled", Counter, Histogram)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)


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
        self._durations = _children(
            Histogram(
                "lamplighter_job_duration_seconds",
                "From the start of an attempt to its end, by the host's clock.",
                ["kind"],
                buckets=JOB_SECONDS,
                registry=registry,
            )
        )
        for kind in (*KINDS, "restore"):
            self._durations(kind)
        self._added = Counter("lamplighter_backup_added_bytes", "Bytes that backups added.", registry=registry)
        self._processed = Counter("lamplighter_backup_processed_bytes", "Bytes that backups read.", registry=registry)
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
                self._ended(event)
            case HostAcked(_, _, seconds) if seconds is not None:
                self._acks.observe(seconds)

    def _ended(self, event: AttemptEnded) -> None:
        end = event.end
        self._attempts(event.kind, end.status).inc()
        if event.final:
            self._jobs(event.kind, end.status).inc()
        if end.started_at is not None:
            self._durations(event.kind).observe(max(0.0, (end.finished_at - end.started_at).total_seconds()))
        if event.kind == "backup":
            self._added.inc(end.bytes_added)
            self._processed.inc(end.bytes_processed)

    def _recorded(self, job: RecordedJob) -> None:
        if job.due is None:
            return
        self._fires("Recorded").inc()
        if job.missed:
            self._missed.inc(job.missed)
        else:
            self._lateness.observe(max(0.0, (job.created_at - job.due).total_seconds()))


def _children(metric: Labelled) -> Callable[..., Labelled]:
    """Return a cached `metric.labels`: looking a child up costs prometheus-client more than counting."""
    return cache(metric.labels)
