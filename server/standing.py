"""What Prometheus is told of how a server stands, read from the control plane and the store when it asks."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import server
from server.control import Control
from server.store import Store

MAX_SERIES = 20_000
"""Pairs of schedule and host whose last success is told; beyond that, those that are oldest."""


class Standing(Collector):
    """How things stand. Another thread than the loop's may ask: live state is copied in single steps."""

    def __init__(self, control: Control, store: Store) -> None:
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


def _oldest(found: Sequence[tuple[str, str, datetime]], limit: int) -> Sequence[tuple[str, str, datetime]]:
    return found if len(found) <= limit else sorted(found, key=lambda it: it[2])[:limit]


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
