"""Gauges of the server's state, read when Prometheus scrapes. Counters of events are in `server.observe.metrics`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from heapq import nsmallest
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

import server
from server.agents.hub import Hub
from server.errors import Unavailable
from server.fleet.catalog import Catalog
from server.fleet.expected import Expected
from server.jobs.outcomes import Health
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader
from server.observe.problems import problems_of_repository
from server.resources.manifests import is_enabled, may_pause
from server.store import alerts, queue, rollouts
from server.store.engine import Store, StoreClosedError

MAX_SERIES = 20_000
"""The most series that one metric has. Of more, those that are overdue soonest are exported."""


class StateCollector(Collector):
    """Collects the gauges. It may run in a thread beside the event loop: it copies live state in single steps.

    `leads`: whether this server tells of the whole fleet. Of several servers one does, so that sums are right.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        hub: Hub,
        health: Health,
        coverage: CoverageReader,
        controllers: Controllers,
        leads: Callable[[], bool],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._hub = hub
        self._health = health
        self._coverage = coverage
        self._controllers = controllers
        self._leads = leads
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """All metric families, for prometheus-client."""
        info = GaugeMetricFamily("lamplighter_build_info", "The version that runs.", labels=["version"])
        info.add_metric([server.__version__], 1)
        yield info
        yield _gauge("lamplighter_store_queue_length", "Writes that wait for the store.", self._store.waiting)
        failing = self._store.failing
        yield _gauge("lamplighter_store_failing", "Whether the last write to the store failed: 0 or 1.", failing)
        yield from self._commits()
        leads = self._leads()
        yield _gauge("lamplighter_server_leads", "Whether this server tells of the whole fleet: 0 or 1.", leads)
        if leads:
            yield from self._fleet()

    def _commits(self) -> Iterator[Metric]:
        """How long commits take. One that hangs has not failed, so its duration alone tells."""
        commits = self._store.commits
        yield SummaryMetricFamily("lamplighter_store_commit_seconds", "How long commits took.", *commits[:2])
        about = "For how long the present commit has been running; 0 when there is none."
        yield _gauge("lamplighter_store_commit_running_seconds", about, commits.running_s)

    def _fleet(self) -> Iterator[Metric]:
        """What is the same on each server."""
        hosts = self._hub.sessions()
        yield _gauge("lamplighter_hosts", "Hosts that are known.", len(hosts))
        connected = sum(self._hub.is_connected(host.name) for host in hosts)
        yield _gauge("lamplighter_hosts_connected", "Hosts whose agent is connected.", connected)
        in_sync = sum(host.in_sync for host in hosts)
        yield _gauge("lamplighter_hosts_in_sync", "Hosts that hold what is declared for them.", in_sync)
        idle = self._coverage.hosts_without_schedules()
        yield _gauge("lamplighter_hosts_without_schedules", "Hosts that no enabled Schedule selects.", idle)
        bare = self._coverage.hosts_without_backup()
        yield _gauge("lamplighter_hosts_without_backup", "Hosts that no enabled Schedule of kind backup selects.", bare)
        yield self._host_problems()
        yield _gauge("lamplighter_schedules", "Schedules that are declared.", len(self._catalog.schedules))
        yield self._disabled()
        yield from self._paused()
        yield from self._jobs()
        yield from self._notifications()
        yield self._controller_problems()
        yield from _expectations(self._coverage.expected())
        yield from self._repositories()

    def _disabled(self) -> Metric:
        """The schedules that are disabled: nobody is told when they have no success."""
        family = GaugeMetricFamily(
            "lamplighter_schedule_disabled", "1 for each Schedule that is disabled.", labels=["namespace", "schedule"]
        )
        disabled = (it for it in list(self._catalog.schedules.values()) if not is_enabled(it.spec))
        for row in islice(disabled, MAX_SERIES):
            family.add_metric([row.namespace, row.name], 1)
        return family

    def _paused(self) -> Iterator[Metric]:
        """The schedules that are paused. Nothing while the store cannot be read."""
        with suppress(Unavailable, StoreClosedError):
            about = "1 for each Schedule that is paused, since it failed on too many hosts."
            family = GaugeMetricFamily("lamplighter_schedule_paused", about, labels=["namespace", "schedule"])
            paused = self._store.read_blocking(rollouts.pauses)
            its = (it for it in list(self._catalog.schedules.values()) if it.id in paused and may_pause(it.spec))
            for row in islice(its, MAX_SERIES):
                family.add_metric([row.namespace, row.name], 1)
            yield family

    def _jobs(self) -> Iterator[Metric]:
        """How many jobs are open. Nothing while the store cannot be read, which other metrics tell."""
        with suppress(Unavailable, StoreClosedError):
            counts = self._store.read_blocking(queue.counts, self._clock())
            yield _gauge("lamplighter_jobs_open", "Jobs that have not ended.", counts.open)
            waiting = "Jobs that wait for their turn, their host or a retry."
            yield _gauge("lamplighter_jobs_waiting", waiting, counts.waiting)
            hanging = "Jobs that run for longer than their timeoutSeconds."
            yield _gauge("lamplighter_jobs_hanging", hanging, counts.hanging)

    def _notifications(self) -> Iterator[Metric]:
        """The Alerts whose receivers do not take their messages. Nothing while the store cannot be read."""
        with suppress(Unavailable, StoreClosedError):
            about, labels = "1 for each Alert whose last message did not arrive.", ["namespace", "alert"]
            family = GaugeMetricFamily("lamplighter_alert_undelivered", about, labels=labels)
            for namespace, name in self._store.read_blocking(alerts.undelivered)[:MAX_SERIES]:
                family.add_metric([namespace, name], 1)
            yield family

    def _host_problems(self) -> Metric:
        """The number of hosts with a problem, by reason."""
        family = GaugeMetricFamily("lamplighter_hosts_with_problem", "Hosts that have a problem.", labels=["reason"])
        now = self._clock()
        found = Counter(it.reason for host in self._hub.sessions() for it in host.problems(now, {}))
        for reason, count in found.items():
            family.add_metric([reason], count)
        return family

    def _controller_problems(self) -> Metric:
        """The number of problems of each controller, by reason."""
        family = GaugeMetricFamily(
            "lamplighter_controller_problem",
            "How many things keep a controller from following its folder.",
            labels=["controller", "reason"],
        )
        states = self._controllers.states()
        found = Counter((state.name, it.reason) for state in states for it in state.problems)
        for labels, count in found.items():
            family.add_metric(labels, count)
        return family

    def _repositories(self) -> Iterator[Metric]:
        """Problems of repositories, and when those with verifyWithinDays were last verified."""
        health, now, names = self._health, self._clock(), ["namespace", "repository"]
        problems = GaugeMetricFamily(
            "lamplighter_repository_problem",
            "1 for each thing that is wrong with a Repository.",
            labels=[*names, "reason"],
        )
        verified = GaugeMetricFamily(
            "lamplighter_last_verified_timestamp_seconds",
            "When a Repository with verifyWithinDays was last verified, or since when it should be.",
            labels=names,
        )
        never = 0
        for row in list(self._catalog.repositories.values())[:MAX_SERIES]:
            days, at = row.spec.get("verifyWithinDays"), health.verified(row.id)
            access = self._coverage.access(row.id)
            for it in problems_of_repository(health, access, row.id, row.spec, row.created_at, now):
                problems.add_metric([row.namespace, row.name, it.reason], 1)
            never += at is None
            if days is not None:
                verified.add_metric([row.namespace, row.name], (at or row.created_at).timestamp())
        yield problems
        yield verified
        about = "Repositories that no job of kind verify has ever verified."
        yield _gauge("lamplighter_repositories_never_verified", about, never)


def _expectations(found: Sequence[Expected]) -> Iterator[Metric]:
    """Gauges of what is expected of enabled schedules on their hosts."""
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
