"""What every host should hold: schedules matched with hosts, as plain data.

A change is planned first (whose sets become what), stored by others, and only then put in force with `commit`: when
storing fails, nothing here has changed. Sets are immutable, and hosts that hold the same share one.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

import cron
from server.fleet.timing import timing
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector, ScheduleSpec
from server.store.rows import Pair, Timing
from wire import entries
from wire.entries import EMPTY, EncodedEntry, EntrySet
from wire.messages import Entry

_EPOCH = datetime.fromtimestamp(0, UTC)


class PlacedSchedule(Struct, frozen=True):
    """A schedule as hosts are matched with it and jobs made from it. `repository_id`: of the one it refers to.

    `init`: whether a backup may create the repository. `granted`: the hosts that its namespace may reach; `within`: the
    paths, all when empty.
    `host_identity`: whether restic may speak as the host. `since`, `earlier`: since when it is due as its spec says,
    and when it was before; see `server.fleet.timing`.
    """

    id: str
    name: str
    spec: ScheduleSpec
    repository_id: str
    init: bool
    item: EncodedEntry
    granted: LabelSelector = LabelSelector()
    within: tuple[str, ...] = ()
    host_identity: bool = False
    since: datetime = _EPOCH
    earlier: tuple[Timing, ...] = ()

    @property
    def timing(self) -> Timing:
        """When it is due."""
        return timing(self.spec, self.since)

    def next_due(self, now: datetime) -> datetime | None:
        """When it is due next, spread aside; None while it is disabled, or where it never is.

        It never is where an older release, or one with another tzdata, stored what is no expression or zone here.
        """
        if not self.spec.enabled:
            return None
        try:
            return cron.next_due(cron.parse(self.spec.cron), cron.zone(self.spec.time_zone), now)
        except cron.CronError:
            return None

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels is to hold it: selected, and granted to its namespace."""
        return selector_matches(self.spec.host_selector, labels) and selector_matches(self.granted, labels)


class HostState(Struct):
    """What is declared of a host, and the set of entries that follows. Placement alone changes it.

    `since`: when it began with the labels that it has. `version`: of `held`, the set that it should hold.
    `created_at`: when it was made known; no due time before that is its own.
    """

    name: str
    labels: Mapping[str, str]
    since: datetime
    version: int
    held: EntrySet
    created_at: datetime = _EPOCH

    @property
    def digest(self) -> str:
        """The digest of the set that it should hold."""
        return self.held.digest

    def holds(self, schedule_id: str) -> bool:
        """Whether it should hold a schedule."""
        return schedule_id in self.held.items


class Plan(NamedTuple):
    """A change worked out: schedules put and removed, and the hosts that become others.

    `sets`: the new set of each host whose set changes with these schedules. `put_hosts`: hosts that are new or have
    other labels, as they will be; `forget`: hosts that are forgotten.
    """

    put: Sequence[PlacedSchedule] = ()
    remove: Sequence[str] = ()
    sets: Mapping[str, EntrySet] = {}
    put_hosts: Sequence[HostState] = ()
    forget: Sequence[str] = ()


def entry_item(schedule_id: str, name: str, spec: ScheduleSpec, since: datetime, revision: str) -> EncodedEntry:
    """The entry that agents hold for a schedule, as the bytes that are sent to every one of them."""
    entry = Entry(
        schedule_id,
        name,
        spec.cron,
        since,
        revision,
        spec.time_zone,
        spec.enabled,
        spec.missed_run_policy,
        spec.starting_deadline_seconds,
        spec.spread_seconds,
    )
    return entries.encoded(entries.encode_entry(entry))


class Placement:
    """All schedules and all hosts, and which host should hold what."""

    def __init__(self) -> None:
        self.schedules: dict[str, PlacedSchedule] = {}
        self.hosts: dict[str, HostState] = {}
        self._alike: dict[bytes, dict[str, EncodedEntry]] = {}
        self._shared: WeakValueDictionary[int, EntrySet] = WeakValueDictionary()

    def plan(self, put: Sequence[PlacedSchedule] = (), remove: Sequence[str] = ()) -> Plan:
        """Whose sets change, and to what, when these schedules are put and those removed."""
        sets: dict[str, EntrySet] = {}
        memo: dict[tuple[int, tuple[bool, ...]], EntrySet] = {}
        for host, state in self.hosts.items():
            wanted = tuple(schedule.selects(state.labels) for schedule in put)
            held = state.held
            new = memo.get((id(held), wanted))
            if new is None:
                upsert = {schedule.id: schedule.item for schedule, want in zip(put, wanted, strict=True) if want}
                drop = [schedule.id for schedule, want in zip(put, wanted, strict=True) if not want]
                new = memo[id(held), wanted] = self._share(entries.patched(held, upsert, [*remove, *drop]))
            if new.digest_sum != held.digest_sum:
                sets[host] = new
        return Plan(put, remove, sets)

    def match(self, labels: Mapping[str, str]) -> EntrySet:
        """The set of a host with these labels."""
        items: dict[str, EncodedEntry] = {}
        for alike in self._alike.values():
            if self.schedules[next(iter(alike))].selects(labels):
                items |= alike
        return self._share(entries.patched(EMPTY, items)) if items else EMPTY

    def plan_host(self, name: str, labels: Mapping[str, str], now: datetime) -> Plan:
        """A host made known, or given these labels in place of those it had."""
        held, old = self.match(labels), self.hosts.get(name)
        if old is None:
            return Plan(put_hosts=[HostState(name, dict(labels), now, int(held != EMPTY), held, now)])
        since, version = (old.since, old.version) if held == old.held else (now, old.version + 1)
        return Plan(put_hosts=[HostState(name, dict(labels), since, version, held, old.created_at)])

    def matched(self, schedule: PlacedSchedule, hosts: Iterable[str] | None = None) -> list[str]:
        """The hosts, of those named or of all, that should hold a schedule."""
        names = self.hosts if hosts is None else hosts
        found = ((name, self.hosts.get(name)) for name in names)
        return [name for name, state in found if state is not None and state.holds(schedule.id)]

    def desired(self, plan: Plan) -> list[tuple[str, int, str]]:
        """The hosts whose sets a plan changes, each with its new version and digest."""
        moved = [(host, self.hosts[host].version + 1, held.digest) for host, held in plan.sets.items()]
        put = [it for it in plan.put_hosts if (old := self.hosts.get(it.name)) is None or old.version != it.version]
        return [*moved, *((it.name, it.version, it.held.digest) for it in put)]

    def next_due(self, schedule_id: str, now: datetime) -> datetime | None:
        """When a schedule is due next; None for one that is disabled or unknown, or that never is."""
        schedule = self.schedules.get(schedule_id)
        return None if schedule is None else schedule.next_due(now)

    def put(self, schedules: Iterable[PlacedSchedule]) -> None:
        """Take in schedules; sets that were matched before stay as they are."""
        for schedule in schedules:
            self._drop(schedule.id)
            self.schedules[schedule.id] = schedule
            self._alike.setdefault(_chosen(schedule), {})[schedule.id] = schedule.item

    def commit(self, plan: Plan) -> None:
        """Put a plan in force."""
        for schedule_id in plan.remove:
            self._drop(schedule_id)
        self.put(plan.put)
        for host, held in plan.sets.items():
            state = self.hosts[host]
            state.version, state.held = state.version + 1, held
        for new in plan.put_hosts:
            state = self.hosts.setdefault(new.name, new)
            state.labels, state.since, state.version, state.held = new.labels, new.since, new.version, new.held
        for host in plan.forget:
            del self.hosts[host]

    def moved(self, plan: Plan) -> tuple[list[Pair], list[Pair]]:
        """The pairs of a schedule and a host, both there before, that a plan makes, and those that it ends."""
        joined: list[Pair] = []
        left: list[Pair] = []
        for schedule in plan.put:
            old = self.schedules.get(schedule.id)
            if old is None or _chosen(old) == _chosen(schedule):
                continue
            for host, held in plan.sets.items():
                had, has = self.hosts[host].holds(schedule.id), schedule.id in held.items
                if had != has:
                    (joined if has else left).append((schedule.id, host))
        for new in plan.put_hosts:
            if (state := self.hosts.get(new.name)) is not None:
                joined += [(id_, new.name) for id_ in new.held.items if id_ not in state.held.items]
                left += [(id_, new.name) for id_ in state.held.items if id_ not in new.held.items]
        return joined, left

    def _drop(self, schedule_id: str) -> None:
        if (schedule := self.schedules.pop(schedule_id, None)) is not None:
            alike = self._alike[key := _chosen(schedule)]
            del alike[schedule_id]
            if not alike:
                del self._alike[key]

    def _share(self, held: EntrySet) -> EntrySet:
        return self._shared.setdefault(held.digest_sum, held)


def _chosen(schedule: PlacedSchedule) -> bytes:
    """What says which hosts are to hold a schedule: the many of a fleet that choose alike are matched as one."""
    return msgspec.json.encode((schedule.spec.host_selector, schedule.granted), order="deterministic")
