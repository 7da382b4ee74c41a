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

from server.expected import Pair
from server.selectors import selector_matches
from server.specs import LabelSelector, ScheduleSpec
from server.timing import Timing, timing
from wire import entries
from wire.entries import EMPTY, EntrySet, Item
from wire.messages import Entry


class Target(Struct, frozen=True):
    """A schedule as hosts are matched with it and jobs made from it. `repository_id`: of the one it refers to.

    `granted`: the hosts that its namespace may reach; `within`: the paths, all when empty.
    `host_identity`: whether restic may speak as the host. `since`, `earlier`: since when it is due as its spec says,
    and when it was before; see `server.timing`.
    """

    id: str
    name: str
    spec: ScheduleSpec
    repository_id: str
    init: list[str] | None
    item: Item
    granted: LabelSelector = LabelSelector()
    within: tuple[str, ...] = ()
    host_identity: bool = False
    since: datetime = datetime.fromtimestamp(0, UTC)
    earlier: tuple[Timing, ...] = ()

    @property
    def timing(self) -> Timing:
        """When it is due."""
        return timing(self.spec, self.since)

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels is to hold it: selected, and granted to its namespace."""
        return selector_matches(self.spec.host_selector, labels) and selector_matches(self.granted, labels)


class Member(Struct, frozen=True):
    """A host as schedules are matched with it. `since`: when it began, with the labels it has."""

    labels: Mapping[str, str]
    since: datetime
    held: EntrySet


class Plan(NamedTuple):
    """A change worked out: schedules put and removed, and the hosts whose sets become others."""

    put: Sequence[Target]
    remove: Sequence[str]
    sets: Mapping[str, EntrySet]


def entry_item(schedule_id: str, name: str, spec: ScheduleSpec, since: datetime, revision: str) -> Item:
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
    return entries.item(entries.encode_entry(entry))


class Fleet:
    """All schedules and all hosts, and which host should hold what."""

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}
        self.members: dict[str, Member] = {}
        self._alike: dict[bytes, dict[str, Item]] = {}
        self._shared: WeakValueDictionary[int, EntrySet] = WeakValueDictionary()

    def plan(self, put: Sequence[Target] = (), remove: Sequence[str] = ()) -> Plan:
        """Whose sets change, and to what, when these schedules are put and those removed."""
        sets: dict[str, EntrySet] = {}
        memo: dict[tuple[int, tuple[bool, ...]], EntrySet] = {}
        for host, member in self.members.items():
            wanted = tuple(target.selects(member.labels) for target in put)
            held = member.held
            new = memo.get((id(held), wanted))
            if new is None:
                upsert = {target.id: target.item for target, want in zip(put, wanted, strict=True) if want}
                drop = [target.id for target, want in zip(put, wanted, strict=True) if not want]
                new = memo[id(held), wanted] = self._share(entries.patched(held, upsert, [*remove, *drop]))
            if new.digest_sum != held.digest_sum:
                sets[host] = new
        return Plan(put, remove, sets)

    def match(self, labels: Mapping[str, str]) -> EntrySet:
        """The set of a host with these labels."""
        items: dict[str, Item] = {}
        for alike in self._alike.values():
            if self.targets[next(iter(alike))].selects(labels):
                items |= alike
        return self._share(entries.patched(EMPTY, items)) if items else EMPTY

    def matched(self, target: Target, hosts: Iterable[str] | None = None) -> list[str]:
        """The hosts, of those named or of all, that should hold a schedule."""
        names = self.members if hosts is None else hosts
        return [name for name in names if name in self.members and target.id in self.members[name].held.items]

    def put(self, targets: Iterable[Target]) -> None:
        """Take in schedules; sets that were matched before stay as they are."""
        for target in targets:
            self._drop(target.id)
            self.targets[target.id] = target
            self._alike.setdefault(_chosen(target), {})[target.id] = target.item

    def commit(self, plan: Plan) -> None:
        """Put a plan in force."""
        for schedule_id in plan.remove:
            self._drop(schedule_id)
        self.put(plan.put)
        for host, held in plan.sets.items():
            member = self.members[host]
            self.members[host] = Member(member.labels, member.since, held)

    def moved(self, plan: Plan) -> tuple[list[Pair], list[Pair]]:
        """The pairs of a schedule and a host, both there before, that a plan makes, and those that it ends."""
        joined: list[Pair] = []
        left: list[Pair] = []
        for target in plan.put:
            old = self.targets.get(target.id)
            if old is None or _chosen(old) == _chosen(target):
                continue
            for host, held in plan.sets.items():
                had, has = target.id in self.members[host].held.items, target.id in held.items
                if had != has:
                    (joined if has else left).append((target.id, host))
        return joined, left

    def _drop(self, schedule_id: str) -> None:
        if (target := self.targets.pop(schedule_id, None)) is not None:
            alike = self._alike[key := _chosen(target)]
            del alike[schedule_id]
            if not alike:
                del self._alike[key]

    def _share(self, held: EntrySet) -> EntrySet:
        return self._shared.setdefault(held.digest_sum, held)


def _chosen(target: Target) -> bytes:
    """What says which hosts are to hold a schedule: the many of a fleet that choose alike are matched as one."""
    return msgspec.json.encode((target.spec.host_selector, target.granted), order="deterministic")
