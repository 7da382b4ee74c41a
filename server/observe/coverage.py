"""On which hosts each schedule is, how it goes there, and who is overdue: read from what is declared, held and done."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from weakref import WeakKeyDictionary

import msgspec

from server.agents.hub import Hub
from server.agents.session import Session
from server.errors import in_words
from server.fleet.catalog import Catalog
from server.fleet.expected import Beginnings, Expected, overdue, success_within
from server.fleet.placement import PlacedSchedule, Placement
from server.jobs.lanes import Lanes
from server.jobs.outcomes import Outcomes
from server.observe.trouble import NAMED, Access, Coverage, no_host
from server.resources.grants import NOTHING
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector
from server.store.rows import Row
from wire.entries import EntrySet


class Alike:
    """Hosts that should hold the same set. `names`: those of all `hosts`."""

    def __init__(self, held: EntrySet, hosts: Sequence[Session]) -> None:
        self.held = held
        self.hosts = hosts
        self.names = frozenset(host.name for host in hosts)
        self._behind: list[str] = []  # those that have nothing in force, as far as is known
        self._left_out: dict[str, list[str]] = {}  # the others that left a schedule out, by its id
        for host in hosts:
            if not host.proved or host.left_out.count != len(host.left_out.reasons):
                self._behind.append(host.name)
                continue
            for key in host.left_out.reasons:
                self._left_out.setdefault(key, []).append(host.name)

    def behind(self, schedule_id: str) -> list[str]:
        """Those on which a schedule of the set is not known to be in force."""
        return [*self._behind, *self._left_out.get(schedule_id, ())]


def held_alike(hosts: Iterable[Session]) -> list[Alike]:
    """Hosts by the set that they should hold."""
    groups: dict[EntrySet, list[Session]] = {}
    for host in hosts:
        groups.setdefault(host.desired.held, []).append(host)
    return [Alike(held, its) for held, its in groups.items()]


class CoverageReader:
    """Works out coverage when somebody asks."""

    def __init__(
        self,
        catalog: Catalog,
        placement: Placement,
        beginnings: Beginnings,
        hub: Hub,
        lanes: Lanes,
        outcomes: Outcomes,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._beginnings = beginnings
        self._hub = hub
        self._lanes = lanes
        self._outcomes = outcomes
        self._clock = clock
        self._enabled: WeakKeyDictionary[EntrySet, int] = WeakKeyDictionary()

    async def schedules(self, schedule_ids: Collection[str]) -> dict[str, Coverage]:
        """On which hosts each of these schedules is, and how it is going there.

        Others have their turn on the event loop after each schedule, which takes as long as its hosts are many.
        """
        now, found = self._clock(), {}
        groups = held_alike(self._hub.sessions())
        hanging: dict[str, set[str]] = {}
        for job in self._lanes.hanging(now):
            hanging.setdefault(job.command.schedule_id, set()).add(job.host)
        for id_ in schedule_ids:
            await asyncio.sleep(0)
            having = [it for it in groups if id_ in it.held.items]
            found[id_] = self._coverage(id_, having, hanging.get(id_, set()), now)
        return found

    def _coverage(self, schedule_id: str, having: Sequence[Alike], hanging: Collection[str], now: datetime) -> Coverage:
        """How it is going with a schedule on the hosts that have it. `hanging`: where runs of it hang."""
        schedule = self._placement.schedules.get(schedule_id)
        names = set().union(*(it.names for it in having))
        behind = sorted(chain.from_iterable(it.behind(schedule_id) for it in having))
        failed, warned = self._outcomes.failed(schedule_id, names), self._outcomes.warned(schedule_id, names)
        within = success_within(schedule.spec) if schedule is not None else timedelta()
        kept_out = self._kept_out(schedule)
        late = overdue(self._since(schedule_id, names), within, now) if schedule and schedule.spec.enabled else []
        succeeded = [at for host, at in self._outcomes.succeeded(schedule_id).items() if host in names]
        return Coverage(
            len(names),
            len(names) - len(behind),
            behind[:NAMED],
            len(failed),
            failed[:NAMED],
            len(warned),
            warned[:NAMED],
            {host: self._outcomes.why(schedule_id, host) for host in (*failed[:NAMED], *warned[:NAMED])},
            len(kept_out),
            kept_out[:NAMED],
            self._denied(schedule),
            schedule is not None and schedule.spec.enabled,
            self._no_host(schedule) if schedule is not None and schedule.spec.enabled and not names else "",
            schedule is None or self.access(schedule.repository_id).opened,
            len(late),
            late[:NAMED],
            within,
            sorted(names.intersection(hanging)),
            len(names) - len(succeeded),
            min(succeeded, default=None),
            _refused_hooks(schedule, chain.from_iterable(it.hosts for it in having)),
        )

    def _since(self, schedule_id: str, hosts: Iterable[str]) -> dict[str, datetime]:
        """When a schedule last went well on each of these hosts, or since when it should, whichever is later."""
        since = self._beginnings.since(schedule_id, hosts)
        for host, at in self._outcomes.succeeded(schedule_id).items():
            if host in since and at > since[host]:
                since[host] = at
        return since

    def expected(self) -> list[Expected]:
        """Each enabled schedule with the hosts that should have a success of it. Any thread may ask."""
        now = self._clock()
        groups: dict[EntrySet, list[str]] = {}
        for known in self._hub.sessions():
            groups.setdefault(known.desired.held, []).append(known.name)
        having: dict[str, list[str]] = {}
        for held, names in groups.items():
            for schedule_id in held.items:
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
        """Why no host has a schedule, whatever its labels: what its namespace may not reach. Empty where it may."""
        if schedule is None or schedule.granted != NOTHING:
            return ""
        row = self._catalog.schedule(*schedule.name.split("/", 1))
        paths = schedule.spec.backup.paths if schedule.spec.backup else ()
        wrong = self._catalog.forbidden(row.namespace, paths=paths, field="spec.backup.paths")
        return in_words([*wrong, *self._catalog.resolved_of(row).wrong])

    def access(self, repository_id: str) -> Access:
        """Whether a repository can be used. One that was deleted meanwhile lacks nothing."""
        resolved = self._catalog.resolved(repository_id)
        return Access("", opened=True) if resolved is None else Access(in_words(resolved.wrong), resolved.opened)

    def host(self, name: str, left_out: Mapping[str, str]) -> Row:
        """What REST tells of a host beside its row. `left_out`: why, by the id of each that is not in force."""
        host, schedules = self._hub.session(name), self._placement.schedules
        names = {key: schedules[key].name if key in schedules else key for key in left_out}
        problems = host.problems(self._clock(), names) if host is not None else []
        return {
            "left_out": [{"schedule": names[key], "reason": why} for key, why in left_out.items()],
            "schedules": self._enabled_in(host.desired.held) if host is not None else 0,
            "clock_skew_seconds": host.clock_skew_s if host is not None else None,
            "problems": [msgspec.structs.asdict(problem) for problem in problems],
        }

    def hosts_without_schedules(self) -> int:
        """How many hosts no enabled schedule selects. Any thread may ask."""
        groups = Counter(host.held for host in list(self._placement.hosts.values()))
        return sum(hosts for held, hosts in groups.items() if not self._enabled_in(held))

    def _enabled_in(self, held: EntrySet) -> int:
        """How many schedules of a set are enabled; counted once for all hosts that hold the same."""
        count = self._enabled.get(held)
        if count is None:
            schedules = (self._placement.schedules.get(key) for key in held.items)
            count = self._enabled[held] = sum(it is not None and it.spec.enabled for it in schedules)
        return count

    def _no_host(self, schedule: PlacedSchedule) -> str:
        """Why no host has the labels that a schedule selects. Told are those of hosts that it may run on."""
        labels = (it.labels for it in self._placement.hosts.values())
        return no_host(schedule.spec.host_selector, (it for it in labels if selector_matches(schedule.granted, it)))

    def _kept_out(self, schedule: PlacedSchedule | None) -> list[str]:
        """The hosts that a schedule selects and that are not granted to its namespace."""
        if schedule is None or schedule.granted == LabelSelector():
            return []
        wanted = schedule.spec.host_selector
        members = self._placement.hosts.items()
        return sorted(
            name for name, it in members if selector_matches(wanted, it.labels) and not schedule.selects(it.labels)
        )


def _refused_hooks(schedule: PlacedSchedule | None, having: Iterable[Session]) -> dict[str, list[str]]:
    """The hooks of an enabled schedule that agents do not allow, each with the hosts whose agents said so."""
    hooks = schedule.spec.hooks if schedule is not None and schedule.spec.enabled else None
    programs = dict.fromkeys(argv[0] for argv in (hooks.before, hooks.after) if argv) if hooks is not None else ()
    if not programs:
        return {}
    said = [(host.name, host.allowed_hooks) for host in having if host.allowed_hooks is not None]
    refused = {program: sorted(name for name, allowed in said if program not in allowed) for program in programs}
    return {program: hosts for program, hosts in refused.items() if hosts}
