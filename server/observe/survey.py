"""Gathers the facts of the overview and of the fleet's page from those who know them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from heapq import nsmallest
from typing import NamedTuple

import msgspec

from server.agents.hub import Hub
from server.agents.session import Session
from server.changes.alerts import selects_any
from server.events import DeclarationChanged, Event
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import HostState, Placement
from server.jobs.active import ActiveAttempts
from server.jobs.outcomes import Health
from server.observe import fleet, overview
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader, HostGroup, OnHosts, group_by_set
from server.observe.fleet import DAYS, Fleet, FleetHost, FleetQuery, State
from server.observe.host_days import HostDays
from server.observe.overview import (
    HANGS,
    MAX_ITEMS,
    MAX_LISTED,
    NOT_IN_SYNC,
    STARTING,
    Counts,
    Day,
    Facts,
    HostTroubles,
    Overview,
    RepositoryFacts,
    RunningJob,
    ScheduleFacts,
    no_backup,
    not_connected,
    section_of,
)
from server.observe.problems import AlertFacts, Problem, problems_of_repository
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector
from server.store import alerts, days
from server.store import hosts as host_statements
from server.store import jobs as job_statements
from server.store.alerts import AlertStanding
from server.store.engine import Store
from server.store.ownership import probe
from server.store.rollouts import Pause
from server.store.rows import RepositoryRow, ScheduleRow

FREE_S = 0.005
"""A survey that takes less is made anew for each request."""
SHARE = 10
"""How many times as long as it took a longer survey is used again, unless something was declared meanwhile.

So pages that many people look at take a tenth of a processor, and show what is about a second old.
"""
MAX_KEPT = 50
"""How many namespaces' surveys are kept."""
AT_ONCE = 2_000
"""Hosts that are looked at before other tasks may run."""


class Survey(NamedTuple):
    """How everything stands that a namespace declares, or all namespaces.

    `hosts`: those of the namespace, by name; `connected`: how many of them are; `awaited`: those that have not come
    back since the server started, and may do so still. `stands`: how schedules stand on their hosts, by id.
    `suspects`: hosts whose agents may have a problem. `backed`: hosts that an enabled Schedule of kind backup selects.
    """

    at: datetime
    rows: Sequence[ScheduleRow]
    groups: Sequence[HostGroup]
    stands: Mapping[str, OnHosts]
    hosts: Mapping[str, HostState]
    suspects: Sequence[Session]
    backed: frozenset[str]
    connected: int
    awaited: frozenset[str]
    by_state: Mapping[State, frozenset[str]]


class Kept(NamedTuple):
    """A survey that may be used again until a moment (of `time.monotonic`)."""

    survey: Survey
    until: float
    declared: int


class Surveyor:
    """Gathers facts. It keeps surveys of large fleets for a moment: see SHARE."""

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
        host_days: HostDays,
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
        self._host_days = host_days
        self._clock = clock
        self._started_at = clock()
        self._declared = 0
        self._kept: dict[str, Kept] = {}
        self._making = asyncio.Lock()

    def on_event(self, event: Event) -> None:
        """Use no survey again from before a change of what is declared."""
        if isinstance(event, DeclarationChanged):
            self._declared += 1

    async def overview(self, namespace: str = "") -> Overview:
        """The overview of one namespace, or of all. Raises Unavailable when the store cannot be read."""
        survey = await self.survey(namespace)
        now = survey.at
        hanging, pauses = await self._coverage.hanging(now), await self._coverage.pauses()
        running, count = await self._running(survey, namespace)
        shown = _days(now, DAYS)
        by_day = {it.day: it for it in await self._store.read(days.by_day, shown[0], namespace)}
        counts = self._counts(survey, namespace, count)
        facts = Facts(
            now,
            namespace,
            await self._store.refuses(probe, now),
            counts,
            len(survey.awaited),
            [self._schedule(survey, row, hanging.get(row.id, set()), pauses.get(row.id)) for row in survey.rows],
            [self._repository(row, now) for row in self._repositories(namespace)],
            await self._host_troubles(survey, namespace, hanging.get("", set())),
            [] if namespace else self._controller_problems(),
            running,
            [Day(*by_day[day]) if day in by_day else Day(day) for day in shown],
            [self._alert(it) for it in await self._store.read(alerts.standings, namespace)],
        )
        return overview.overview(facts)

    async def fleet(self, query: FleetQuery) -> Fleet:
        """A page of hosts, or of groups of hosts. Raises Unavailable when the store cannot be read."""
        survey = await self.survey(query.namespace)
        shown = _days(survey.at, query.days)
        await self._host_days.load(shown)
        names = self._selected(query, survey)
        labels = [survey.hosts[name].labels for name in names]
        found = Fleet(survey.at, shown, len(names), nsmallest(fleet.MAX_LABEL_KEYS, set().union(*labels)), [], [])
        if query.group:
            return self._grouped(query, survey, found, dict(zip(names, labels, strict=True)))
        page, more = fleet.page(names, query.after, query.limit)
        added = await self._store.read(days.bytes_added, page, shown[0], query.namespace)
        seen = await self._store.read(host_statements.last_seen, page)
        by_day = [self._host_days.of_day(day, query.namespace) for day in shown]
        items = [
            FleetHost(
                name,
                fleet.states_of(name, survey.by_state),
                self._hub.is_connected(name),
                self._hub.last_seen(name) or seen.get(name),
                [it.worst(number) for it in by_day],
                added.get(name, 0),
                f"/hosts/{name}",
            )
            for name in page
            if (number := self._host_days.number(name)) is not None
        ]
        return msgspec.structs.replace(found, items=items, next=page[-1] if more else None)

    def _grouped(
        self, query: FleetQuery, survey: Survey, found: Fleet, labels: Mapping[str, Mapping[str, str]]
    ) -> Fleet:
        groups: dict[str, list[str]] = defaultdict(list)
        for name, its in labels.items():
            groups[its.get(query.group, "")].append(name)
        page, more = fleet.page(groups, query.after, query.limit)
        by_day = [self._host_days.of_day(day, query.namespace) for day in found.days]
        shown = [
            fleet.group(it, frozenset(groups[it]), self._host_days.bits(groups[it]), survey.by_state, by_day)
            for it in page
        ]
        return msgspec.structs.replace(found, groups=shown, next=page[-1] if more else None)

    def _selected(self, query: FleetQuery, survey: Survey) -> list[str]:
        """The names of the hosts that are asked for."""
        names: Iterable[str] = survey.hosts
        if query.schedule:
            its = (survey.stands[it.id].hosts for it in survey.rows if full_name(it) == query.schedule)
            names = next(its, frozenset())
        if query.selector != LabelSelector():
            hosts = survey.hosts
            names = [it for it in names if selector_matches(query.selector, hosts[it].labels)]
        if query.state == fleet.GOOD_STATE:
            bad = frozenset().union(*survey.by_state.values())
            names = [it for it in names if it not in bad]
        elif query.state:
            its_state = next(hosts for state, hosts in survey.by_state.items() if state == query.state)
            names = [it for it in names if it in its_state]
        return list(names)

    # Surveys.

    async def survey(self, namespace: str) -> Survey:
        """A survey of a namespace, or of all, that is up to date, or was a moment ago where the fleet is large."""
        async with self._making:  # whoever waited uses the one that was made meanwhile
            kept = self._kept.get(namespace)
            if kept is not None and kept.declared == self._declared and time.monotonic() < kept.until:
                return kept.survey
            declared, begin = self._declared, time.monotonic()
            survey = await self._made(namespace)
            self._kept.pop(namespace, None)
            took = time.monotonic() - begin
            if took >= FREE_S:
                self._kept[namespace] = Kept(survey, begin + took * (1 + SHARE), declared)
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            return survey

    async def _made(self, namespace: str) -> Survey:
        now = self._clock()
        rows = [it for it in list(self._catalog.schedules.values()) if namespace in ("", it.namespace)]
        groups = group_by_set(self._hub.sessions())
        stands = {}
        for row in rows:
            await asyncio.sleep(0)
            having = [it for it in groups if row.id in it.entries.items]
            stands[row.id] = self._coverage.on_hosts(row.id, having, now)
        sessions = self._hub.sessions()
        out_of_sync = frozenset().union(*(it.not_in_sync for it in groups))
        if namespace:
            names = frozenset().union(*(it.hosts for it in stands.values()))
            sessions = [it for it in sessions if it.name in names]
            out_of_sync = frozenset().union(*(it.out_of_sync for it in stands.values()))
        connected = self._hub.connected_anywhere()
        hosts = {it.name: it.desired for it in sessions}
        suspects = await self._suspects(sessions)
        by_state = _by_state(stands.values())
        backups = [stands[it.id].hosts for it in rows if it.spec["kind"] == "backup" and self._is_enabled(it)]
        backed = frozenset().union(*backups)
        troubled = {it.name for it in suspects if any(_is_of_agent(one.reason) for one in it.problems(now, {}))}
        away = [it for it in sessions if it.name not in connected]
        is_early = now - self._started_at < STARTING
        by_state["offline"] = frozenset(it.name for it in away if not is_early or it.was_heard)
        by_state["out_of_sync"] = out_of_sync & hosts.keys()
        by_state["agents"] = frozenset(troubled)
        by_state["no_backup"] = frozenset(hosts) - backed
        online = len(hosts) - len(away)
        awaited = frozenset(it.name for it in away) - by_state["offline"]
        return Survey(now, rows, groups, stands, hosts, suspects, backed, online, awaited, by_state)

    async def _suspects(self, hosts: Sequence[Session]) -> list[Session]:
        """The hosts whose agents may have a problem."""
        found = []
        for at in range(0, len(hosts), AT_ONCE):
            await asyncio.sleep(0)
            found += [it for it in hosts[at : at + AT_ONCE] if it.may_have_problems]
        return found

    def _is_enabled(self, row: ScheduleRow) -> bool:
        schedule = self._placement.schedules.get(row.id)
        return schedule is not None and schedule.spec.enabled

    def _repositories(self, namespace: str) -> list[RepositoryRow]:
        return [it for it in list(self._catalog.repositories.values()) if namespace in ("", it.namespace)]

    # Facts.

    def _counts(self, survey: Survey, namespace: str, running: int) -> Counts:
        enabled = {it.id for it in survey.rows if self._is_enabled(it)}
        backups = [survey.stands[it.id] for it in survey.rows if it.spec["kind"] == "backup" and it.id in enabled]
        late = frozenset().union(*(it.overdue for it in backups))
        waiting = frozenset().union(*(it.ends.never for it in backups)) - late
        return Counts(
            hosts=len(survey.hosts),
            hosts_connected=survey.connected,
            hosts_in_sync=len(survey.hosts) - len(survey.by_state["out_of_sync"]),
            hosts_backed_up=len(survey.backed - late - waiting),
            hosts_waiting=len(waiting),
            schedules=len(survey.rows),
            schedules_disabled=len(survey.rows) - len(enabled),
            repositories=len(self._repositories(namespace)),
            jobs_running=running,
        )

    def _schedule(self, survey: Survey, row: ScheduleRow, hanging: set[str], pause: Pause | None) -> ScheduleFacts:
        stands = survey.stands[row.id]
        having = [it for it in survey.groups if row.id in it.entries.items]
        covers = self._coverage.coverage(row.id, stands, having, hanging)._replace(pause=pause)
        next_due = self._placement.next_due(row.id, survey.at)
        return ScheduleFacts(row.namespace, row.name, row.spec["kind"], covers, next_due)

    def _repository(self, row: RepositoryRow, now: datetime) -> RepositoryFacts:
        access = self._coverage.access(row.id)
        problems = problems_of_repository(self._health, access, row.id, row.spec, row.created_at, now)
        is_verified, must_be = self._health.verified(row.id) is not None, row.spec.get("verifyWithinDays") is not None
        return RepositoryFacts(row.namespace, row.name, problems, is_verified, must_be)

    def _alert(self, alert: AlertStanding) -> AlertFacts:
        selects = selects_any(self._catalog, alert.namespace, alert.spec)
        return AlertFacts(alert.namespace, alert.name, alert.failed_at, alert.error or "", selects)

    async def _host_troubles(self, survey: Survey, namespace: str, hanging: Collection[str]) -> list[HostTroubles]:
        """What is wrong with hosts. `hanging`: those on which a job of no schedule hangs."""
        by_reason: dict[str, dict[str, str]] = defaultdict(dict)
        names = {it.id: full_name(it) for it in survey.rows}
        for it in survey.suspects:
            for problem in it.problems(survey.at, names, within=bool(namespace)):
                by_reason[problem.reason][it.name] = problem.message
        found = [
            HostTroubles(reason, len(its), [(name, its[name]) for name in nsmallest(MAX_ITEMS, its)])
            for reason, its in by_reason.items()
        ]
        left_out = by_reason["EntriesLeftOut"].keys() | by_reason["StoreEmpty"].keys()
        away = survey.by_state["offline"]
        seen = await self._store.read(host_statements.last_seen, nsmallest(MAX_ITEMS, away)) if away else {}
        rest: Sequence[tuple[str, Collection[str], Callable[[str], str]]] = (
            ("RunsHang", () if namespace else hanging, lambda _: HANGS),
            ("NotInSync", survey.by_state["out_of_sync"] - left_out, lambda _: NOT_IN_SYNC),
            ("NotConnected", away, lambda name: not_connected(seen.get(name))),
            ("NoBackup", survey.by_state["no_backup"], lambda name: no_backup(self._disabled(survey, name))),
        )
        for reason, hosts, message in rest:
            named = [(name, message(name)) for name in nsmallest(MAX_ITEMS, hosts)]
            found += [HostTroubles(reason, len(hosts), named)] if named else []
        return found

    def _disabled(self, survey: Survey, host: str) -> list[str]:
        """The disabled schedules of kind backup that a host has."""
        backups = (it for it in survey.rows if it.spec["kind"] == "backup" and not self._is_enabled(it))
        return [full_name(it) for it in backups if host in survey.stands[it.id].hosts]

    def _controller_problems(self) -> list[tuple[str, list[Problem]]]:
        states = self._controllers.states()
        return [(it.name, [Problem(one.reason, one.message) for one in it.problems]) for it in states]

    async def _running(self, survey: Survey, namespace: str) -> tuple[list[RunningJob], int]:
        """Some of the jobs that run, and how many there are."""
        names = {it.id: full_name(it) for it in survey.rows}
        found, count = await self._store.read(job_statements.running, list(names) if namespace else None, MAX_LISTED)
        shown = []
        for job_id, host, kind, schedule_id, since in found:
            attempt, name = self._active.get(job_id), names.get(schedule_id or "")
            progress = None if attempt is None else attempt.progress
            fraction = None if progress is None else progress.fraction
            shown.append(RunningJob(job_id, host, name, kind, since, fraction, f"/jobs/{job_id}"))
        return shown, count


def _by_state(stands: Iterable[OnHosts]) -> dict[State, frozenset[str]]:
    """The hosts of schedules by what is wrong with their runs."""
    its = list(stands)
    never_ran = frozenset().union(*(it.never_ran for it in its))
    late = (frozenset(it.overdue).difference(it.never_ran) for it in its if it.overdue)
    return {
        "overdue": frozenset().union(*late),
        "never_ran": never_ran,
        "failed": frozenset().union(*(it.ends.failed for it in its)),
        "incomplete": frozenset().union(*(it.ends.warned for it in its)),
    }


def _is_of_agent(reason: str) -> bool:
    return section_of(reason, "agents") == "agents"


def _days(now: datetime, count: int) -> list[date]:
    """The last days, oldest first, of which the last is today (UTC)."""
    return [now.date() - timedelta(ago) for ago in reversed(range(count))]
