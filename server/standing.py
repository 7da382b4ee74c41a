"""What Prometheus is told of how a server stands, read from the control plane and the store when it asks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import server
from server.control import Control
from server.expected import Expected
from server.store import Store
from server.trouble import repository_troubles

MAX_SERIES = 20_000
"""Series that one metric may have; beyond that, those that are nearest to being overdue are told."""


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
        idle = control.hosts_without_schedules()
        yield _gauge("lamplighter_hosts_without_schedules", "Hosts that no enabled Schedule selects.", idle)
        yield self._host_problems()
        yield _gauge("lamplighter_schedules", "Schedules that are declared.", len(control.schedules))
        yield _gauge("lamplighter_jobs_open", "Jobs that have not ended.", len(control.jobs.queue.jobs))
        waiting = control.jobs.queue.waiting_count
        yield _gauge("lamplighter_jobs_waiting", "Jobs that wait for their turn, their host or a retry.", waiting)
        yield _gauge("lamplighter_store_queue_length", "Writes that wait for the store.", self._store.waiting)
        failing = self._store.failing
        yield _gauge("lamplighter_store_failing", "Whether the last write to the store failed: 0 or 1.", failing)
        hanging = len(control.jobs.queue.hanging(control.now()))
        yield _gauge("lamplighter_jobs_hanging", "Jobs that run for longer than their timeoutSeconds.", hanging)
        yield self._controllers()
        yield from _expectations(control.expected())
        yield from self._repositories()

    def _host_problems(self) -> Metric:
        """On how many hosts something is wrong, by what it is: the reasons are few."""
        family = GaugeMetricFamily("lamplighter_hosts_with_problem", "Hosts that have a problem.", labels=["reason"])
        now = self._control.now()
        found = Counter(it.reason for host in list(self._control.hosts.values()) for it in host.problems(now, {}))
        for reason, count in found.items():
            family.add_metric([reason], count)
        return family

    def _controllers(self) -> Metric:
        """What keeps controllers from following their folders."""
        family = GaugeMetricFamily(
            "lamplighter_controller_problem",
            "How many things keep a controller from following its folder.",
            labels=["controller", "reason"],
        )
        states = self._control.controller_states()
        found = Counter((state.name, it.reason) for state in states for it in state.problems)
        for labels, count in found.items():
            family.add_metric(labels, count)
        return family

    def _repositories(self) -> Iterator[Metric]:
        """What is wrong with repositories, and when those were verified that must be."""
        control, names = self._control, ["namespace", "repository"]
        health, now = control.jobs.health, control.now()
        trouble = GaugeMetricFamily(
            "lamplighter_repository_problem",
            "1 for each thing that is wrong with a Repository.",
            labels=[*names, "reason"],
        )
        verified = GaugeMetricFamily(
            "lamplighter_last_verified_timestamp_seconds",
            "When a Repository with verifyWithinDays was last verified, or since when it should be.",
            labels=names,
        )
        for row in list(control.repositories.values())[:MAX_SERIES]:
            days, at = row.spec.get("verifyWithinDays"), health.verified(row.id)
            access = control.access(row.id)
            for it in repository_troubles(access, health.problem(row.id), days, at, row.created_at, now):
                trouble.add_metric([row.namespace, row.name, it.reason], 1)
            if days is not None:
                verified.add_metric([row.namespace, row.name], (at or row.created_at).timestamp())
        yield trouble
        yield verified


def _expectations(found: Sequence[Expected]) -> Iterator[Metric]:
    """What should succeed: each schedule that is enabled, on each of its hosts, and none else."""
    yield _gauge(
        "lamplighter_schedules_without_hosts", "Enabled Schedules that no host has.", sum(not it.since for it in found)
    )
    overdue = sum(len(it.overdue) for it in found)
    yield _gauge("lamplighter_overdue", "Pairs of a Schedule and a host without a success in time.", overdue)
    names = ["namespace", "schedule"]
    last = GaugeMetricFamily(
        "lamplighter_last_success_timestamp_seconds",
        "When a schedule last went well on a host, or since when it should.",
        labels=[*names, "host"],
    )
    pairs = ((at.timestamp() + it.within.total_seconds(), it, host) for it in found for host, at in it.since.items())
    for _, it, host in nsmallest(MAX_SERIES, pairs, key=lambda pair: pair[0]):
        last.add_metric([it.namespace, it.schedule, host], it.since[host].timestamp())
    yield last
    within = GaugeMetricFamily(
        "lamplighter_success_within_seconds", "How long ago a host's last success of a schedule may be.", labels=names
    )
    late = GaugeMetricFamily(
        "lamplighter_overdue_hosts", "Hosts without a success of a schedule in time.", labels=names
    )
    failed = GaugeMetricFamily("lamplighter_failed_hosts", "Hosts on which a schedule's last run failed.", labels=names)
    warned = GaugeMetricFamily(
        "lamplighter_incomplete_hosts", "Hosts on which a schedule's last run left something undone.", labels=names
    )
    for it in nsmallest(MAX_SERIES, found, key=lambda it: (-len(it.overdue), -it.failed, -it.warned)):
        within.add_metric([it.namespace, it.schedule], it.within.total_seconds())
        late.add_metric([it.namespace, it.schedule], len(it.overdue))
        failed.add_metric([it.namespace, it.schedule], it.failed)
        warned.add_metric([it.namespace, it.schedule], it.warned)
    yield from (within, late, failed, warned)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
