"""Coverage: how each schedule and host stands, worked out from the owners of the facts when somebody asks.

What hosts should hold is read from `Placement`, what they hold from their sessions, how jobs ended from `Outcomes`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from heapq import nsmallest
from itertools import chain, islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from server.agents.hub import Hub
from server.agents.session import Session
from server.errors import as_text
from server.fleet.catalog import Catalog
from server.fleet.expected import Expected, ExpectedSince, overdue, success_within
from server.fleet.placement import PlacedSchedule, Placement
from server.jobs.arguments import MAX_BACKUPS
from server.jobs.fires import command_for, timed
from server.jobs.outcomes import Outcomes, Standing
from server.observe import entries as host_entries
from server.observe.entries import HostEntry, LastRun
from server.observe.problems import MAX_NAMED, Access, Coverage, no_host
from server.resources.grants import NOTHING
from server.resources.selectors import selector_matches
from server.resources.specs import Hooks, LabelSelector, ScheduleSpec
from server.store import queue, rollouts
from server.store.engine import Store
from server.store.rollouts import Pause
from server.store.rows import Row
from wire.entries import EntrySet


class HostGroup:
    """Hosts that should hold the same set. `names`: the names of `hosts`."""

    def __init__(self, entries: EntrySet, hosts: Sequence[Session]) -> None:
        self.entries = entries
        self.hosts = hosts
        self.names = frozenset(host.name for host in hosts)
        self._out_of_sync: list[str] = []  # hosts of which no entry is known to be in force
        self._left_out: dict[str, list[str]] = {}  # other hosts, by id of a schedule that they left out
        for host in hosts:
            if not host.holds_desired or host.left_out.count != len(host.left_out.reasons):
                self._out_of_sync.append(host.name)
                continue
            for key in host.left_out.reasons:
                self._left_out.setdefault(key, []).append(host.name)

    @cached_property
    def alike(self) -> Sequence[Sequence[Session]]:
        """The hosts with the same programs together, which can run the same."""
        found: dict[Hashable, list[Session]] = {}
        for host in self.hosts:
            programs = host.agent_version, host.capabilities, host.restic_version, host.allowed_hooks
            found.setdefault(programs, []).append(host)
        return list(found.values())

    @property
    def not_in_sync(self) -> list[str]:
        """The hosts on which not the whole set is known to be in force."""
        return [*self._out_of_sync, *chain.from_iterable(self._left_out.values())]

    def out_of_sync(self, schedule_id: str) -> list[str]:
        """The hosts on which a schedule of the set is not known to be in force."""
        return [*self._out_of_sync, *self._left_out.get(schedule_id, ())]


def group_by_set(hosts: Iterable[Session]) -> list[HostGroup]:
    """Group hosts by their desired set."""
    groups: dict[EntrySet, list[Session]] = {}
    for host in hosts:
        groups.setdefault(host.desired.entries, []).append(host)
    return [HostGroup(entries, members) for entries, members in groups.items()]


class OnHosts(NamedTuple):
    """How a schedule stands on its hosts, by name. `ends`: how its last jobs ended.

    `overdue`: the hosts without a success in time, the longest first; `never_ran`: those of them on which no job has
    ended. Both are empty while it is disabled. `within`: how long ago a success may be.
    """

    hosts: frozenset[str]
    out_of_sync: Sequence[str]
    ends: Standing
    overdue: Sequence[str]
    never_ran: Sequence[str]
    within: timedelta


class CoverageReader:
    """Answers how schedules, repositories and hosts stand. It stores nothing but counts of enabled schedules."""

    def __init__(
        self,
        catalog: Catalog,
        placement: Placement,
        expected_since: ExpectedSince,
        hub: Hub,
        store: Store,
        outcomes: Outcomes,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._expected_since = expected_since
        self._hub = hub
        self._store = store
        self._outcomes = outcomes
        self._clock = clock
        self._enabled: WeakKeyDictionary[EntrySet, int] = WeakKeyDictionary()
        self._backups: WeakKeyDictionary[EntrySet, bool] = WeakKeyDictionary()

    async def schedules(self, schedule_ids: Collection[str]) -> dict[str, Coverage]:
        """The coverage of each of these schedules, by id.

        The time for one schedule grows with its hosts. So other tasks may run after each schedule.
        """
        now, found = self._clock(), {}
        groups = group_by_set(self._hub.sessions())
        hanging, pauses = await self.hanging(now), await self.pauses()
        for id_ in schedule_ids:
            await asyncio.sleep(0)
            having = [it for it in groups if id_ in it.entries.items]
            its = self._coverage(id_, having, hanging.get(id_, set()), now)
            found[id_] = its._replace(pause=pauses.get(id_))
        return found

    async def pauses(self) -> dict[str, Pause]:
        """The schedules that are paused, by id. One of which another server stored that, while it was changed to pause
        no more, is not."""
        found, schedules = await self._store.read(rollouts.pauses), self._placement.schedules
        may = {it.id for it in schedules.values() if it.spec.rollout and it.spec.rollout.pauses_after is not None}
        return {schedule_id: pause for schedule_id, pause in found.items() if schedule_id in may} if found else {}

    async def hanging(self, now: datetime) -> dict[str, set[str]]:
        """By id of a schedule, the hosts on which a job of it hangs."""
        found: dict[str, set[str]] = {}
        for schedule_id, host in await self._store.read(queue.hanging, now):
            found.setdefault(schedule_id, set()).add(host)
        return found

    def on_hosts(self, schedule_id: str, having: Sequence[HostGroup], now: datetime) -> OnHosts:
        """How a schedule stands on its hosts. `having`: the groups of hosts that should hold it."""
        schedule = self._placement.schedules.get(schedule_id)
        is_enabled = schedule is not None and schedule.spec.enabled
        names = having[0].names if len(having) == 1 else frozenset().union(*(it.names for it in having))
        within = success_within(schedule.spec) if schedule is not None else timedelta()
        ends = self._outcomes.standing(schedule_id, names, now - within)
        # A pair of which a job succeeded within the period is not overdue, whenever it began.
        late = overdue(self._since(schedule_id, ends.late), within, now) if is_enabled else []
        return OnHosts(
            names,
            list(chain.from_iterable(it.out_of_sync(schedule_id) for it in having)),
            ends,
            late,
            [it for it in late if not self._outcomes.has_ended(schedule_id, it)],
            within,
        )

    def _coverage(
        self, schedule_id: str, having: Sequence[HostGroup], hanging: Collection[str], now: datetime
    ) -> Coverage:
        """The coverage of a schedule. `having`: groups that should hold it. `hanging`: hosts where its jobs hang."""
        its = self.on_hosts(schedule_id, having, now)
        behind = [it for it in its.out_of_sync if self._hub.is_connected(it)]
        found = self.coverage(schedule_id, its, having, hanging)
        return found._replace(behind=len(behind), behind_names=nsmallest(MAX_NAMED, behind))

    def coverage(
        self, schedule_id: str, its: OnHosts, having: Sequence[HostGroup], hanging: Collection[str]
    ) -> Coverage:
        """The coverage of a schedule that stands so on its hosts, without what is `behind`."""
        schedule = self._placement.schedules.get(schedule_id)
        is_enabled = schedule is not None and schedule.spec.enabled
        names, ends, never_ran = its.hosts, its.ends, set(its.never_ran)
        failed, warned = nsmallest(MAX_NAMED, ends.failed), nsmallest(MAX_NAMED, ends.warned)
        not_granted = self._not_granted(schedule)
        return Coverage(
            hosts=len(names),
            in_sync=len(names) - len(its.out_of_sync),
            out_of_sync=nsmallest(MAX_NAMED, its.out_of_sync),
            failed=len(ends.failed),
            failed_names=failed,
            warned=len(ends.warned),
            warned_names=warned,
            errors={it: self._outcomes.why(schedule_id, it) for it in (*failed, *warned)},
            not_granted=len(not_granted),
            not_granted_names=not_granted[:MAX_NAMED],
            denied=self._denied(schedule),
            enabled=is_enabled,
            no_host=self._no_host(schedule) if schedule is not None and is_enabled and not names else "",
            has_password=schedule is None or all(self.access(it).has_password for it in schedule.repository_ids),
            overdue=len(its.overdue),
            overdue_names=its.overdue[:MAX_NAMED],
            within=its.within,
            hanging=sorted(names.intersection(hanging)),
            never_succeeded=ends.never_succeeded,
            oldest_success=ends.oldest_success,
            refused_hooks=_refused_hooks(schedule, having),
            forgets_too_little=self._forgets_too_little(schedule) if schedule is not None and is_enabled else "",
            unsupported=_unsupported(schedule, having),
            never_ran=len(its.never_ran),
            never_ran_names=its.never_ran[:MAX_NAMED],
            late_names=list(islice((it for it in its.overdue if it not in never_ran), MAX_NAMED)),
        )

    def _since(self, schedule_id: str, hosts: Iterable[str]) -> dict[str, datetime]:
        """By host, when a schedule last succeeded or when the pair began, whichever is later."""
        since = self._expected_since.since(schedule_id, hosts)
        for host, began in since.items():
            at = self._outcomes.succeeded_at(schedule_id, host)
            if at is not None and at > began:
                since[host] = at
        return since

    def expected(self) -> list[Expected]:
        """All enabled schedules, with what is expected of them. Any thread may call it."""
        now = self._clock()
        groups: dict[EntrySet, list[str]] = {}
        for session in self._hub.sessions():
            groups.setdefault(session.desired.entries, []).append(session.name)
        having: dict[str, list[str]] = {}
        for entries, names in groups.items():
            for schedule_id in entries.items:
                having.setdefault(schedule_id, []).extend(names)
        found = []
        for row in list(self._catalog.schedules.values()):
            schedule = self._placement.schedules.get(row.id)
            if schedule is not None and schedule.spec.enabled:
                outcomes, has = self._outcomes, set(having.get(row.id, ()))
                within, since = success_within(schedule.spec), self._since(row.id, has)
                ends = len(outcomes.failed(row.id, has)), len(outcomes.warned(row.id, has))
                found.append(Expected(row.namespace, row.name, within, since, overdue(since, within, now), *ends))
        return found

    def _denied(self, schedule: PlacedSchedule | None) -> str:
        """Why a schedule may not run on any host: its grant forbids its paths or its repository. Empty when it may."""
        if schedule is None or schedule.granted != NOTHING:
            return ""
        row = self._catalog.schedule(*schedule.name.split("/", 1))
        paths = schedule.spec.backup.paths if schedule.spec.backup else ()
        errors = self._catalog.forbidden(row.namespace, paths=paths, field="spec.backup.paths")
        source = self._catalog.from_resolved_of(row)
        return as_text(
            [*errors, *self._catalog.resolved_of(row).errors, *(source.errors if source is not None else ())]
        )

    def access(self, repository_id: str) -> Access:
        """Whether a repository can be used. A repository that was deleted meanwhile has no problem."""
        resolved = self._catalog.resolved(repository_id)
        if resolved is None:
            return Access("", has_password=True)
        return Access(as_text(resolved.errors), resolved.has_password)

    def host(self, name: str, left_out: Mapping[str, str]) -> Row:
        """The fields that REST adds to a host's row. `left_out`: reasons by id of schedule, from the row."""
        host, schedules = self._hub.session(name), self._placement.schedules
        names = {key: schedules[key].name if key in schedules else key for key in left_out}
        problems = host.problems(self._clock(), names) if host is not None else []
        return {
            "left_out": [{"schedule": names[key], "reason": why} for key, why in left_out.items()],
            "schedules": self._enabled_in(host.desired.entries) if host is not None else 0,
            "clock_skew_seconds": host.clock_skew_s if host is not None else None,
            "problems": [msgspec.structs.asdict(problem) for problem in problems],
        }

    def entries(
        self, host: Session, after: tuple[str, str], limit: int, *, in_force: bool | None = None
    ) -> list[HostEntry]:
        """Entries of what a host should hold and of what it holds, by name, after the (name, id) `after`.

        `in_force`: whether they must be in force; None for all.
        """
        desired, applied, placed = host.desired.entries, host.applied, self._placement.schedules
        found = host_entries.names(desired, applied, {id_: placed[id_].name for id_ in desired.items if id_ in placed})
        reasons = host.left_out.reasons
        compared = (
            host_entries.compared(id_, desired, applied, reasons.get(id_, ""))
            for name, id_ in found
            if (name, id_) > after
        )
        wanted = (it for it in compared if in_force is None or in_force == (it.state == "InForce"))
        return [self._entry(it, host.name) for it in islice(wanted, limit)]

    def _entry(self, entry: HostEntry, host: str) -> HostEntry:
        """An entry with the kind of its schedule, when it is next due there, and how its last job ended."""
        schedule, last = self._placement.schedules.get(entry.id), self._outcomes.last(entry.id, host)
        return msgspec.structs.replace(
            entry,
            kind="" if schedule is None else schedule.spec.kind,
            next_due=host_entries.next_due(entry.desired, host, entry.id, self._clock()),
            last_run=None if last is None else LastRun(last.status, last.finished_at, last.succeeded_at, last.why),
        )

    def hosts_without_schedules(self) -> int:
        """How many hosts have no enabled schedule. Any thread may call it."""
        return self._hosts_without(self._enabled_in)

    def hosts_without_backup(self) -> int:
        """How many hosts have no enabled schedule of kind backup. Any thread may call it."""
        return self._hosts_without(self._has_backup)

    def _hosts_without(self, has: Callable[[EntrySet], int]) -> int:
        """How many hosts have a set that has none of something."""
        groups = Counter(host.entries for host in list(self._placement.hosts.values()))
        return sum(hosts for entries, hosts in groups.items() if not has(entries))

    def _has_backup(self, entries: EntrySet) -> bool:
        """Whether a schedule of kind backup in a set is enabled. Found once for all hosts that share the set."""
        found = self._backups.get(entries)
        if found is None:
            specs = (it.spec for key in entries.items if (it := self._placement.schedules.get(key)) is not None)
            found = self._backups[entries] = any(it.enabled and it.kind == "backup" for it in specs)
        return found

    def _enabled_in(self, entries: EntrySet) -> int:
        """How many schedules of a set are enabled. Counted once for all hosts that share the set."""
        count = self._enabled.get(entries)
        if count is None:
            schedules = (self._placement.schedules.get(key) for key in entries.items)
            count = self._enabled[entries] = sum(it is not None and it.spec.enabled for it in schedules)
        return count

    def _forgets_too_little(self, schedule: PlacedSchedule) -> str:
        """Why a schedule of kind forget does not look at the snapshots that it is for; empty when it does."""
        retention = schedule.spec.retention
        if retention is None or retention.all_tags or retention.tags:
            return ""
        count = len(self._placement.backups_into(schedule.repository_id))
        if count == 0:
            used = f"uses Repository {schedule.spec.repository}, or one that is copied into it"
            return f"no Schedule of kind backup in its namespace {used}"
        return f"more than {MAX_BACKUPS} Schedules of kind backup use its Repository" if count > MAX_BACKUPS else ""

    def _no_host(self, schedule: PlacedSchedule) -> str:
        """Why a schedule selects none of the hosts that its namespace is granted."""
        labels = (it.labels for it in self._placement.hosts.values())
        return no_host(schedule.spec.host_selector, (it for it in labels if selector_matches(schedule.granted, it)))

    def _not_granted(self, schedule: PlacedSchedule | None) -> list[str]:
        """The hosts that a schedule selects and its namespace is not granted."""
        if schedule is None or schedule.granted == LabelSelector():
            return []
        wanted = schedule.spec.host_selector
        hosts = self._placement.hosts.items()
        return sorted(
            name for name, it in hosts if selector_matches(wanted, it.labels) and not schedule.selects(it.labels)
        )


def _programs_of(spec: ScheduleSpec) -> dict[str, None]:
    """The programs of the host that runs of a schedule need, in order, each once."""
    hooks, command = spec.hooks or Hooks(), spec.backup.command if spec.backup is not None else ()
    return dict.fromkeys(argv[0] for argv in (hooks.before, hooks.after, command) if argv)


def _refused_hooks(schedule: PlacedSchedule | None, having: Iterable[HostGroup]) -> dict[str, list[str]]:
    """By program of an enabled schedule, of a hook or backup.command, the hosts whose agents do not allow it."""
    programs = _programs_of(schedule.spec) if schedule is not None and schedule.spec.enabled else ()
    refused: dict[str, list[str]] = {program: [] for program in programs}
    for hosts in chain.from_iterable(it.alike for it in having) if refused else ():
        allowed = hosts[0].allowed_hooks
        for program in () if allowed is None else refused.keys() - allowed:
            refused[program].extend(it.name for it in hosts)
    return {program: sorted(hosts) for program, hosts in refused.items() if hosts}


def _unsupported(schedule: PlacedSchedule | None, having: Iterable[HostGroup]) -> dict[str, list[str]]:
    """By why a host cannot run an enabled schedule, for its agent or its restic is too old, the hosts."""
    if schedule is None or not schedule.spec.enabled:
        return {}
    command = timed(command_for(schedule, "host", "job", None), schedule.spec, schedule.since)  # or at any other time
    found: dict[str, list[str]] = {}
    for hosts in chain.from_iterable(it.alike for it in having):
        if why := hosts[0].obstacle(command):
            found.setdefault(why, []).extend(it.name for it in hosts)
    return {why: sorted(names) for why, names in found.items()}
