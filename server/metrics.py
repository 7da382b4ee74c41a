"""What Prometheus is told of a server. Names and units follow Prometheus' practices; no label has values without bound.

Counts and times are noted as things happen; how things stand is read from the control plane when it is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import server

if TYPE_CHECKING:
    from server.control import Control
    from server.host import NewJob
    from server.store import Store

MAX_SERIES = 20_000
"""Pairs of schedule and host whose last success is told; beyond that, those that are oldest."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ended = ["kind", "status"]
        self._jobs = _children(Counter("lamplighter_jobs", "Jobs that ended.", ended, registry=registry))
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

    def fired(self, jobs: Iterable["NewJob"]) -> None:
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

    def watch(self, control: "Control", store: "Store") -> None:
        """Tell how a control plane and its store stand, from now on."""
        self.registry.register(_State(control, store))


class _State(Collector):
    """How things stand. Another thread than the loop's may ask: live state is copied in single steps."""

    def __init__(self, control: "Control", store: "Store") -> None:
        self._control = control
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus-client asks for them."""
        control = self._control
        info = GaugeMetricFamily("lamplighter_build_info", "The version that runs.", labels=["version"])
        info.add_metric([server.__version__], 1)
        yield info
        hosts = list(control.hosts.values())
        yield _gauge("lamplighter_hosts", "Hosts that are known.", len(hosts))
        connected = sum(control.is_connected(host.name) for host in hosts)
        yield _gauge("lamplighter_hosts_connected", "Hosts whose agent is connected.", connected)
        in_sync = sum(host.in_sync for host in hosts)
        yield _gauge("lamplighter_hosts_in_sync", "Hosts that hold what is declared for them.", in_sync)
        yield _gauge("lamplighter_schedules", "Schedules that are declared.", len(control.schedules))
        yield _gauge("lamplighter_jobs_open", "Jobs that have not ended.", len(control.jobs.queue.jobs))
        waiting = control.jobs.queue.waiting_count
        yield _gauge("lamplighter_jobs_waiting", "Jobs that wait for their turn, their host or a retry.", waiting)
        yield _gauge("lamplighter_store_queue_length", "Writes that wait for the store.", self._store.waiting)
        yield self._successes()

    def _successes(self) -> Metric:
        family = GaugeMetricFamily(
            "lamplighter_last_success_timestamp_seconds",
            "When a schedule last went well on a host.",
            labels=["namespace", "schedule", "host"],
        )
        names = {row.id: (row.namespace, row.name) for row in list(self._control.schedules.values())}
        for schedule_id, host, at in _oldest(self._control.jobs.outcomes.successes(), MAX_SERIES):
            if schedule_id in names:
                family.add_metric([*names[schedule_id], host], at.timestamp())
        return family


def _children(counter: Counter) -> Callable[..., Counter]:
    """Answers the child for some values of labels, which prometheus-client looks up anew each time."""
    return cache(counter.labels)


def _oldest(found: Sequence[tuple[str, str, datetime]], limit: int) -> Sequence[tuple[str, str, datetime]]:
    return found if len(found) <= limit else sorted(found, key=lambda it: it[2])[:limit]


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
