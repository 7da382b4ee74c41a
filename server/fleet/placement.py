"""The desired set of every host: schedules matched with hosts by labels, without I/O.

A change takes three steps: `plan` works out the new sets, the caller stores them, and `commit` puts them in force. When
storing fails, nothing here has changed. Sets are immutable, and hosts with equal sets share one object.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

import cron
from server.fleet.timing import timing
from server.resources.selectors import selector_matches
from server.resources.specs import HostSpec, LabelSelector, ScheduleSpec
from server.store.rows import Met, Pair, Timing
from wire import entries
from wire.entries import EMPTY, EncodedEntry, EntrySet
from wire.messages import Entry

_EPOCH = datetime.fromtimestamp(0, UTC)
_encode = msgspec.json.Encoder(order="deterministic").encode


class PlacedSchedule(Struct, frozen=True):
    """A schedule with all that is needed to match it with hosts and to make jobs of it.

    `from_repository_id`: of the repository that a copy reads from; empty for other kinds.
    `init`: whether a backup or a copy may create the repository. `granted`: the hosts that the namespace may reach;
    `within`: the paths that it may reach, all when empty. `host_identity`: whether restic may use the host's identity,
    such as its SSH keys and instance role.
    `options`: restic's options for its repository.
    `since`: when the present timing began; `earlier`: the timings before it (see `server.fleet.timing`).
    """

    id: str
    name: str
    spec: ScheduleSpec
    repository_id: str
    init: bool
    entry: EncodedEntry
    granted: LabelSelector = LabelSelector()
    within: tuple[str, ...] = ()
    host_identity: bool = False
    since: datetime = _EPOCH
    earlier: tuple[Timing, ...] = ()
    options: tuple[str, ...] = ()
    from_repository_id: str = ""

    @property
    def repository_ids(self) -> tuple[str, ...]:
        """The repositories that its runs use."""
        return (self.repository_id, self.from_repository_id) if self.from_repository_id else (self.repository_id,)

    @property
    def timing(self) -> Timing:
        """Its present timing."""
        return timing(self.spec, self.since)

    def next_due(self, now: datetime) -> datetime | None:
        """Its next due time without the spread; None while it is disabled, or when there is none.

        There is none when this release cannot read the cron expression or the time zone: another release, or one with
        another tzdata, may have accepted it.
        """
        if not self.spec.enabled:
            return None
        try:
            return cron.next_due(cron.parse_all(self.spec.cron_text), cron.zone(self.spec.time_zone), now)
        except cron.CronError:
            return None

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels should hold it: its selector and the grant of its namespace both match."""
        return selector_matches(self.spec.host_selector, labels) and selector_matches(self.granted, labels)


class HostState(Struct):
    """The desired state of a host. Only `Placement` changes it.

    `entries`: the desired set, and `version` its version. `since`: when the host's labels last changed the set, or
    when the host became known. `created_at`: when the host became known; it has no due time before that. `spec`:
    that of its Host. `drained_by`: who asked for it to be drained; empty for nobody.
    """

    name: str
    labels: Mapping[str, str]
    since: datetime
    version: int
    entries: EntrySet
    created_at: datetime = _EPOCH
    spec: HostSpec = HostSpec()
    drained_by: str = ""

    @property
    def drains(self) -> bool:
        """Whether nothing new is to begin there."""
        return self.spec.drain or bool(self.drained_by)

    def declare(self, spec: HostSpec, drained_by: str) -> None:
        """Its Host says this now, and that is who asks for it to be drained."""
        self.spec, self.drained_by = spec, drained_by

    @property
    def digest(self) -> str:
        """The digest of the desired set."""
        return self.entries.digest

    def holds(self, schedule_id: str) -> bool:
        """Whether the desired set has a schedule."""
        return schedule_id in self.entries.items

    def entry(self, schedule_id: str) -> Entry | None:
        """What the desired set says of a schedule; None where it has none."""
        held = self.entries.items.get(schedule_id)
        return None if held is None else entries.parse_entry(held.raw)


class Plan(NamedTuple):
    """A planned change, for `Placement.commit`.

    `put`, `remove`: schedules, and ids of schedules. `sets`: the new set of each host whose set these schedules change.
    `put_hosts`: hosts that are new or have new labels, in their new state. `remove_hosts`: names of hosts.
    """

    put: Sequence[PlacedSchedule] = ()
    remove: Sequence[str] = ()
    sets: Mapping[str, EntrySet] = {}
    put_hosts: Sequence[HostState] = ()
    remove_hosts: Sequence[str] = ()


def encoded_entry(schedule_id: str, name: str, spec: ScheduleSpec, since: datetime, revision: str) -> EncodedEntry:
    """The entry of a schedule, encoded once for all agents."""
    entry = Entry(
        schedule_id,
        name,
        spec.cron_text,
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
    """All schedules and all hosts, with the desired set of each host."""

    def __init__(self) -> None:
        self.schedules: dict[str, PlacedSchedule] = {}
        self.hosts: dict[str, HostState] = {}
        self._by_selection: dict[bytes, dict[str, EncodedEntry]] = {}  # those that select the same hosts together
        self._backups: dict[str, dict[str, str]] = {}  # the names of those of kind backup, by repository
        self._copies: dict[str, dict[str, str]] = {}  # what those of kind copy read from, by what they write to
        self._shared: WeakValueDictionary[int, EntrySet] = WeakValueDictionary()

    def copy(self) -> "Placement":
        """A placement in the same state, whose changes do not touch this one. Both share the sets."""
        copied = Placement()
        copied.schedules = dict(self.schedules)
        copied.hosts = {name: copy(state) for name, state in self.hosts.items()}
        copied._by_selection = {key: dict(same) for key, same in self._by_selection.items()}
        copied._backups = {key: dict(names) for key, names in self._backups.items()}
        copied._copies = {key: dict(sources) for key, sources in self._copies.items()}
        return copied

    def plan(self, put: Sequence[PlacedSchedule] = (), remove: Sequence[str] = ()) -> Plan:
        """Work out the new set of each host that putting and removing these schedules changes."""
        sets: dict[str, EntrySet] = {}
        memo: dict[tuple[int, tuple[bool, ...]], EntrySet] = {}
        for host, state in self.hosts.items():
            wanted = tuple(schedule.selects(state.labels) for schedule in put)
            old = state.entries
            new = memo.get((id(old), wanted))
            if new is None:
                upsert = {schedule.id: schedule.entry for schedule, want in zip(put, wanted, strict=True) if want}
                drop = [schedule.id for schedule, want in zip(put, wanted, strict=True) if not want]
                new = memo[id(old), wanted] = self._share(entries.patched(old, upsert, [*remove, *drop]))
            if new.digest_sum != old.digest_sum:
                sets[host] = new
        return Plan(put, remove, sets)

    def match(self, labels: Mapping[str, str]) -> EntrySet:
        """The desired set of a host with these labels."""
        items: dict[str, EncodedEntry] = {}
        for same in self._by_selection.values():
            if self.schedules[next(iter(same))].selects(labels):
                items |= same
        return self._share(entries.patched(EMPTY, items)) if items else EMPTY

    def plan_host(self, name: str, labels: Mapping[str, str], now: datetime, spec: HostSpec | None = None) -> Plan:
        """Plan a new host, or new labels of a host, and its spec, unless that is to stay as it is."""
        new, old = self.match(labels), self.hosts.get(name)
        if old is None:
            spec = HostSpec() if spec is None else spec
            return Plan(put_hosts=[HostState(name, dict(labels), now, int(new != EMPTY), new, now, spec)])
        since, version = (old.since, old.version) if new == old.entries else (now, old.version + 1)
        spec = old.spec if spec is None else spec
        state = HostState(name, dict(labels), since, version, new, old.created_at, spec, old.drained_by)
        return Plan(put_hosts=[state])

    def plan_drain(self, name: str, drained_by: str) -> Plan:
        """Plan who asks for a known host to be drained; empty for nobody."""
        it = self.hosts[name]
        state = HostState(it.name, it.labels, it.since, it.version, it.entries, it.created_at, it.spec, drained_by)
        return Plan(put_hosts=[state])

    def matched(self, schedule: PlacedSchedule, hosts: Iterable[str] | None = None) -> list[str]:
        """The hosts that should hold a schedule, of the named hosts or of all. Unknown names are left out."""
        names = self.hosts if hosts is None else hosts
        found = ((name, self.hosts.get(name)) for name in names)
        return [name for name, state in found if state is not None and state.holds(schedule.id)]

    def schedule_of(self, host: str, schedule_id: str) -> PlacedSchedule | None:
        """A schedule that a host should have; None where it should not. Any thread may ask."""
        state = self.hosts.get(host)
        return self.schedules.get(schedule_id) if state is not None and state.holds(schedule_id) else None

    def desired(self, plan: Plan) -> list[tuple[str, int, str]]:
        """The name, new version and new digest of each host whose set a plan changes."""
        changed = [(host, self.hosts[host].version + 1, new.digest) for host, new in plan.sets.items()]
        put = [it for it in plan.put_hosts if (old := self.hosts.get(it.name)) is None or old.version != it.version]
        return [*changed, *((it.name, it.version, it.entries.digest) for it in put)]

    def backups_into(self, repository_id: str) -> list[str]:
        """The names of the schedules of kind backup whose snapshots come into a repository, sorted: of those that use
        it, or one that is copied into it. Any thread may ask."""
        found, names = [repository_id], set[str]()
        for it in found:  # grows meanwhile
            names.update(dict(self._backups.get(it, {})).values())
            found += set(dict(self._copies.get(it, {})).values()).difference(found)
        return sorted(names)

    def next_due(self, schedule_id: str, now: datetime) -> datetime | None:
        """The next due time of a schedule without the spread; None when it is unknown, disabled or never due."""
        schedule = self.schedules.get(schedule_id)
        return None if schedule is None else schedule.next_due(now)

    def put(self, schedules: Iterable[PlacedSchedule]) -> None:
        """Add or replace schedules, without matching them with hosts."""
        for schedule in schedules:
            self._drop(schedule.id)
            self.schedules[schedule.id] = schedule
            self._by_selection.setdefault(_selection(schedule), {})[schedule.id] = schedule.entry
            if schedule.spec.kind == "backup":
                self._backups.setdefault(schedule.repository_id, {})[schedule.id] = schedule.name
            if schedule.from_repository_id:
                self._copies.setdefault(schedule.repository_id, {})[schedule.id] = schedule.from_repository_id

    def commit(self, plan: Plan, versions: Mapping[str, int] | None = None) -> None:
        """Put a plan in force. The plan must have been made on the present state.

        `versions`: the new versions of hosts, by name; None for those of `desired`. They may name hosts whose set does
        not change here: another server gave them their versions.
        """
        if versions is None:
            versions = {host: version for host, version, _ in self.desired(plan)}
        for schedule_id in plan.remove:
            self._drop(schedule_id)
        self.put(plan.put)
        for host, new_set in plan.sets.items():
            state = self.hosts[host]
            state.entries = new_set
        for new in plan.put_hosts:
            state = self.hosts.setdefault(new.name, new)
            state.labels, state.since, state.version, state.entries = new.labels, new.since, new.version, new.entries
            state.declare(new.spec, new.drained_by)
        for host in plan.remove_hosts:
            del self.hosts[host]
        for host, version in versions.items():
            state = self.hosts[host]
            state.version = version

    def changed_pairs(self, plan: Plan) -> tuple[list[Pair], list[Pair]]:
        """The pairs of an existing schedule and an existing host that a plan joins, and the pairs that it parts."""
        joined: list[Pair] = []
        left: list[Pair] = []
        for schedule in plan.put:
            old = self.schedules.get(schedule.id)
            if old is None or _selection(old) == _selection(schedule):
                continue
            for host, new_set in plan.sets.items():
                had, has = self.hosts[host].holds(schedule.id), schedule.id in new_set.items
                if had != has:
                    (joined if has else left).append((schedule.id, host))
        for new in plan.put_hosts:
            if (state := self.hosts.get(new.name)) is not None:
                joined += [(id_, new.name) for id_ in new.entries.items if id_ not in state.entries.items]
                left += [(id_, new.name) for id_ in state.entries.items if id_ not in new.entries.items]
        return joined, left

    def met(self, plan: Plan) -> list[Met]:
        """The hosts that schedules with runOnJoin select by a plan, and did not select before.

        A host that is created or labelled joins. Those that a change of the schedule brings in do not.
        """
        found: list[Met] = []
        for schedule in plan.put:
            old = self.schedules.get(schedule.id)
            known = old is not None and old.spec.run_on_join and _selection(old) == _selection(schedule)
            if schedule.spec.run_on_join and not known:
                sets = ((host, plan.sets.get(host, state.entries)) for host, state in self.hosts.items())
                found += [Met(schedule.id, host, due=False) for host, its in sets if schedule.id in its.items]
        for new in plan.put_hosts:
            state = self.hosts.get(new.name)
            had = EMPTY if state is None else state.entries
            came = (self.schedules[id_] for id_ in new.entries.items if id_ not in had.items)
            found += [Met(it.id, new.name, due=it.spec.enabled) for it in came if it.spec.run_on_join]
        return found

    def _drop(self, schedule_id: str) -> None:
        if (schedule := self.schedules.pop(schedule_id, None)) is not None:
            same = self._by_selection[key := _selection(schedule)]
            del same[schedule_id]
            if not same:
                del self._by_selection[key]
            for its in (self._backups, self._copies):
                names = its.get(schedule.repository_id, {})
                if names.pop(schedule_id, None) is not None and not names:
                    del its[schedule.repository_id]

    def _share(self, new: EntrySet) -> EntrySet:
        """The set in use that equals this one, or else this one."""
        return self._shared.setdefault(new.digest_sum, new)


def _selection(schedule: PlacedSchedule) -> bytes:
    """A key for the hosts that a schedule selects. Most schedules of a fleet share few keys, and match as one."""
    return _encode((schedule.spec.host_selector, schedule.granted))
