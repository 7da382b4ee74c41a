"""Gathers the facts of the overview and of the fleet's page from those who know them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple

from msgspec import Struct

from server.agents.hub import Hub
from server.agents.session import Session
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs.active import ActiveAttempts
from server.jobs.outcomes import Health
from server.observe import overview
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader, HostGroup, OnHosts, group_by_set
from server.observe.overview import (
    MAX_LISTED,
    Counts,
    Day,
    Facts,
    HostFacts,
    Overview,
    RepositoryFacts,
    RunningJob,
    ScheduleFacts,
)
from server.observe.problems import Problem, repository_problems
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector
from server.store import days, queue
from server.store import hosts as host_statements
from server.store.days import Worst
from server.store.engine import Store
from server.store.ownership import probe
from server.store.rows import RepositoryRow, ScheduleRow

State = Literal["overdue", "failed", "never_ran", "offline", "out_of_sync", "agents", "no_backup", "incomplete"]
STATES: tuple[State, ...] = (
    "overdue",
    "failed",
    "never_ran",
    "offline",
    "out_of_sync",
    "agents",
    "no_backup",
    "incomplete",
)
"""What may be wrong with a host, the worst first."""
GOOD_STATE = "good"
"""The state of a host with which nothing is wrong."""
Outcome = Worst | Literal["none"]
DAYS = 14
"""Days that are shown unless somebody asks for others."""
MAX_DAYS = 90


class FleetHost(Struct, frozen=True):
    """A host. `states`: what is wrong with it, the worst first; `good` alone if nothing is.

    `days`: the worst end of its jobs on each day, `none` where none ended. `bytes_added`: on these days together.
    """

    name: str
    group: str
    states: Sequence[str]
    connected: bool
    last_seen: datetime | None
    days: Sequence[Outcome]
    bytes_added: int
    path: str


class GroupDay(Struct, frozen=True):
    """On how many hosts of a group the worst end of a day was this one."""

    succeeded: int = 0
    warned: int = 0
    failed: int = 0
    none: int = 0


class FleetGroup(Struct, frozen=True):
    """The hosts whose label has the same value, empty for those without the label.

    `states`: how many hosts are in each state; a host may be in several. `days`: for each day.
    """

    value: str
    hosts: int
    states: Mapping[str, int]
    days: Sequence[GroupDay]


class Fleet(Struct, frozen=True):
    """Hosts by days. `days`: oldest first, in UTC. `hosts`: how many match. `label_keys`: labels by which hosts can be
    grouped. With a label to group by, `groups` has the page; else `items` has it."""

    at: datetime
    days: Sequence[date]
    hosts: int
    label_keys: Sequence[str]
    groups: Sequence[FleetGroup]
    items: Sequence[FleetHost]
    next: str | None = None


class FleetQuery(NamedTuple):
    """Which hosts are asked for. Empty fields ask for all. `schedule`: NAMESPACE/NAME.

    `after`: the last group or host of the page before.
    """

    namespace: str = ""
    selector: LabelSelector = LabelSelector()
    schedule: str = ""
    state: str = ""
    group: str = ""
    days: int = DAYS
    after: str | None = None
    limit: int = 100


class Surveyor:
    """Gathers facts, and stores nothing. `started_at`: when this server started."""

    def __init__(  # noqa: PLR0913, PLR0917 - it asks each of them
        self,
        catalog: Catalog,
        placement: Placement,
        hub: Hub,
        store: Store,
        health: Health,
        coverage: CoverageReader,
        controllers: Controllers,
        active: ActiveAttempts,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._hub = hub
        self._store = store
        self._health = health
        self._coverage = coverage
        self._controllers = controllers
        self._active = active
        self._clock = clock
        self._started_at = clock()

    async def overview(self, namespace: str = "") -> Overview:
        """The overview of one namespace, or of all. Raises Unavailable when the store cannot be read."""
        now = self._clock()
        rows = self._schedules(namespace)
        groups = group_by_set(self._hub.sessions())
        stands = await self._standings(rows, groups, now)
        hanging = await self._coverage.hanging(now)
        running, count = await self._running(rows, namespace)
        hosts = self._sessions(namespace, stands)
        by_day = {it.day: it for it in await self._store.read(days.by_day, now.date() - timedelta(DAYS - 1), namespace)}
        away = [it.name for it in hosts if not self._hub.is_connected(it.name)]
        seen = await self._store.read(host_statements.last_seen, sorted(away)[: overview.MAX_ITEMS])
        facts = Facts(
            now,
            self._started_at,
            namespace,
            await self._store.refuses(probe, now),
            self._counts(namespace, rows, hosts, stands, count),
            [
                ScheduleFacts(
                    row.namespace,
                    row.name,
                    row.spec["kind"],
                    self._coverage.coverage(row.id, stands[row.id], _having(row, groups), hanging.get(row.id, ())),
                    len(_waiting(stands[row.id])),
                    self._placement.next_due(row.id, now),
                )
                for row in rows
            ],
            [self._repository(row, now) for row in self._repositories(namespace)],
            self._host_facts(namespace, rows, hosts, stands, seen, now),
            [] if namespace else self._controller_facts(),
            running,
            [Day(*by_day[day]) if day in by_day else Day(day) for day in _days(now, DAYS)],
        )
        return overview.overview(facts)

    async def fleet(self, query: FleetQuery) -> Fleet:
        """A page of hosts, or of groups of hosts. Raises Unavailable when the store cannot be read."""
        now = self._clock()
        rows = self._schedules(query.namespace)
        stands = await self._standings(rows, group_by_set(self._hub.sessions()), now)
        hosts = self._selected(query, rows, stands)
        states = self._states(query.namespace, rows, hosts, stands, now)
        if query.state:
            hosts = [it for it in hosts if query.state in states[it.name]]
        label_keys = sorted({key for it in hosts for key in it.desired.labels})
        if query.group:
            return await self._grouped(query, now, hosts, states, label_keys)
        hosts.sort(key=lambda it: it.name)
        page = [it for it in hosts if query.after is None or it.name > query.after][: query.limit + 1]
        shown = page[: query.limit]
        names = [it.name for it in shown]
        found = await self._days_of(names, query, now)
        seen = await self._store.read(host_statements.last_seen, names)
        items = [
            FleetHost(
                it.name,
                "",
                states[it.name],
                self._hub.is_connected(it.name),
                self._hub.last_seen(it.name) or seen.get(it.name),
                [found.get(it.name, {}).get(day, _NO_DAY)[0] for day in _days(now, query.days)],
                sum(added for _, added in found.get(it.name, {}).values()),
                f"/hosts/{it.name}",
            )
            for it in shown
        ]
        next_ = shown[-1].name if len(page) > query.limit else None
        return Fleet(now, _days(now, query.days), len(hosts), label_keys, [], items, next_)

    async def _grouped(
        self,
        query: FleetQuery,
        now: datetime,
        hosts: Sequence[Session],
        states: Mapping[str, Sequence[str]],
        label_keys: Sequence[str],
    ) -> Fleet:
        groups: dict[str, list[str]] = defaultdict(list)
        for it in hosts:
            groups[it.desired.labels.get(query.group, "")].append(it.name)
        page = sorted(it for it in groups if query.after is None or it > query.after)[: query.limit + 1]
        shown, dates = page[: query.limit], _days(now, query.days)
        found = await self._days_of([name for it in shown for name in groups[it]], query, now)
        items = []
        for value in shown:
            names = groups[value]
            counts = [dict.fromkeys(("succeeded", "warned", "failed", "none"), 0) for _ in dates]
            for name in names:
                of_host = found.get(name, {})
                for at, day in enumerate(dates):
                    counts[at][of_host.get(day, _NO_DAY)[0]] += 1
            of_states: dict[str, int] = defaultdict(int)
            for name in names:
                for state in states[name]:
                    of_states[state] += 1
            items.append(FleetGroup(value, len(names), of_states, [GroupDay(**it) for it in counts]))
        next_ = shown[-1] if len(page) > query.limit else None
        return Fleet(now, dates, len(hosts), label_keys, items, [], next_)

    async def _days_of(
        self, hosts: Collection[str], query: FleetQuery, now: datetime
    ) -> dict[str, dict[date, tuple[Outcome, int]]]:
        since = _days(now, query.days)[0]
        found: dict[str, dict[date, tuple[Outcome, int]]] = defaultdict(dict)
        for it in await self._store.read(days.of_hosts, hosts, since, query.namespace):
            found[it.host][it.day] = it.worst, it.bytes_added
        return found

    # Schedules and hosts.

    def _schedules(self, namespace: str) -> list[ScheduleRow]:
        return [it for it in self._catalog.schedules.values() if namespace in ("", it.namespace)]

    def _repositories(self, namespace: str) -> list[RepositoryRow]:
        return [it for it in self._catalog.repositories.values() if namespace in ("", it.namespace)]

    async def _standings(
        self, rows: Sequence[ScheduleRow], groups: Sequence[HostGroup], now: datetime
    ) -> dict[str, OnHosts]:
        """How each schedule stands on its hosts, by id. Other tasks may run after each of them."""
        found = {}
        for row in rows:
            await asyncio.sleep(0)
            found[row.id] = self._coverage.on_hosts(row.id, _having(row, groups), now)
        return found

    def _sessions(self, namespace: str, stands: Mapping[str, OnHosts]) -> list[Session]:
        """The hosts that a namespace has: those of its schedules."""
        if not namespace:
            return self._hub.sessions()
        names = frozenset().union(*(it.hosts for it in stands.values()))
        return [it for it in self._hub.sessions() if it.name in names]

    def _selected(self, query: FleetQuery, rows: Sequence[ScheduleRow], stands: Mapping[str, OnHosts]) -> list[Session]:
        hosts = self._sessions(query.namespace, stands)
        if query.selector != LabelSelector():
            hosts = [it for it in hosts if selector_matches(query.selector, it.desired.labels)]
        if query.schedule:
            its = next((stands[it.id].hosts for it in rows if full_name(it) == query.schedule), frozenset())
            hosts = [it for it in hosts if it.name in its]
        return hosts

    def _states(
        self,
        namespace: str,
        rows: Sequence[ScheduleRow],
        hosts: Sequence[Session],
        stands: Mapping[str, OnHosts],
        now: datetime,
    ) -> dict[str, list[str]]:
        """What is wrong with each host."""
        sets: dict[str, set[str]] = {it: set() for it in STATES}
        for stand in stands.values():
            sets["overdue"].update(set(stand.overdue).difference(stand.never_ran))
            sets["never_ran"].update(stand.never_ran)
            sets["failed"].update(stand.ends.failed)
            sets["incomplete"].update(stand.ends.warned)
            sets["out_of_sync"].update(stand.out_of_sync)
        backed = self._with_backup(rows, stands)
        for it in hosts:
            if not self._hub.is_connected(it.name):
                sets["offline"].add(it.name)
            if not namespace and not it.in_sync:
                sets["out_of_sync"].add(it.name)
            if it.name not in backed:
                sets["no_backup"].add(it.name)
            if any(overview.section_of(problem.reason, "agents") == "agents" for problem in it.problems(now, {})):
                sets["agents"].add(it.name)
        return {it.name: [state for state in STATES if it.name in sets[state]] or [GOOD_STATE] for it in hosts}

    def _with_backup(self, rows: Sequence[ScheduleRow], stands: Mapping[str, OnHosts]) -> frozenset[str]:
        """The hosts that an enabled schedule of kind backup selects."""
        backups = (it for it in rows if it.spec["kind"] == "backup" and self._is_enabled(it))
        return frozenset().union(*(stands[it.id].hosts for it in backups))

    def _is_enabled(self, row: ScheduleRow) -> bool:
        schedule = self._placement.schedules.get(row.id)
        return schedule is not None and schedule.spec.enabled

    # Facts.

    def _counts(
        self,
        namespace: str,
        rows: Sequence[ScheduleRow],
        hosts: Sequence[Session],
        stands: Mapping[str, OnHosts],
        running: int,
    ) -> Counts:
        backups = [stands[it.id] for it in rows if it.spec["kind"] == "backup" and self._is_enabled(it)]
        having = frozenset().union(*(it.hosts for it in backups))
        late = frozenset().union(*(it.overdue for it in backups))
        waiting = frozenset().union(*map(_waiting, backups)) - late
        return Counts(
            hosts=len(hosts),
            hosts_connected=sum(self._hub.is_connected(it.name) for it in hosts),
            hosts_in_sync=len(hosts) - len(self._out_of_sync(namespace, hosts, stands)),
            hosts_backed_up=len(having - late - waiting),
            hosts_waiting=len(waiting),
            schedules=len(rows),
            schedules_disabled=sum(not self._is_enabled(it) for it in rows),
            repositories=len(self._repositories(namespace)),
            jobs_running=running,
        )

    def _out_of_sync(self, namespace: str, hosts: Sequence[Session], stands: Mapping[str, OnHosts]) -> Collection[str]:
        if not namespace:
            return {it.name for it in hosts if not it.in_sync}
        return frozenset().union(*(it.out_of_sync for it in stands.values()))

    def _repository(self, row: RepositoryRow, now: datetime) -> RepositoryFacts:
        must, at = row.spec.get("verifyWithinDays"), self._health.verified(row.id)
        access, failure = self._coverage.access(row.id), self._health.problem(row.id)
        problems = repository_problems(access, failure, must, at, row.created_at, now)
        return RepositoryFacts(row.namespace, row.name, problems, at is not None, must is not None)

    def _host_facts(
        self,
        namespace: str,
        rows: Sequence[ScheduleRow],
        hosts: Sequence[Session],
        stands: Mapping[str, OnHosts],
        seen: Mapping[str, datetime],
        now: datetime,
    ) -> list[HostFacts]:
        """The hosts with which something is wrong."""
        backed, names = self._with_backup(rows, stands), {it.id: full_name(it) for it in rows}
        out_of_sync = self._out_of_sync(namespace, hosts, stands)
        disabled = [it for it in rows if it.spec["kind"] == "backup" and not self._is_enabled(it)]
        found = []
        for it in hosts:
            problems = [Problem(one.reason, one.message) for one in it.problems(now, names, within=bool(namespace))]
            if it.name in out_of_sync and not it.left_out.count:
                problems.append(Problem("NotInSync", "its agent does not hold what is declared for it"))
            connected, suspended = self._hub.is_connected(it.name), None
            if it.name not in backed:
                suspended = [full_name(one) for one in disabled if it.name in stands[one.id].hosts]
            if problems or not connected or suspended is not None:
                found.append(HostFacts(it.name, problems, connected, seen.get(it.name), suspended))
        return found

    def _controller_facts(self) -> list[tuple[str, list[Problem]]]:
        states = self._controllers.states()
        return [(it.name, [Problem(one.reason, one.message) for one in it.problems]) for it in states]

    async def _running(self, rows: Sequence[ScheduleRow], namespace: str) -> tuple[list[RunningJob], int]:
        """Some of the jobs that run, and how many there are."""
        names = {it.id: full_name(it) for it in rows}
        found, count = await self._store.read(queue.running, list(names) if namespace else None, MAX_LISTED)
        shown = []
        for job_id, host, kind, schedule_id, since in found:
            attempt = self._active.get(job_id)
            progress = None if attempt is None else attempt.progress
            fraction = None if progress is None else progress.fraction
            name = names.get(schedule_id or "")
            shown.append(RunningJob(job_id, host, name, kind, since, fraction, f"/jobs/{job_id}"))
        return shown, count


_NO_DAY: tuple[Outcome, int] = ("none", 0)


def _having(row: ScheduleRow, groups: Sequence[HostGroup]) -> list[HostGroup]:
    """The groups of hosts that should hold a schedule."""
    return [it for it in groups if row.id in it.entries.items]


def _waiting(its: OnHosts) -> frozenset[str]:
    """The hosts on which a schedule has never succeeded, and is not overdue."""
    return frozenset(its.ends.never).difference(its.overdue)


def _days(now: datetime, count: int) -> list[date]:
    """The last days, oldest first, of which the last is today (UTC)."""
    return [now.date() - timedelta(ago) for ago in reversed(range(count))]
