"""What a change of what is declared does to the coming day: due times, crowds, and runs that are made up for. No I/O.

Times are kept as whole seconds after the beginning of that day, for speed. A herd is counted by minute: the due times
of a schedule are a polynomial whose powers are minutes, the spread of its hosts is another, and their product has as
coefficients how many hosts are due in each minute. Both are long numbers, so that Python multiplies them at once.

What may take long is a generator. It yields how much work each step was (pairs of a schedule and a host, about), so
that the caller can let other tasks run in between, and can end what takes too long.
"""

import struct
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from msgspec import Struct

import cron
from server.agents.session import Session
from server.fleet.placement import HostState, PlacedSchedule, Placement
from server.jobs import fires
from server.jobs.kinds import UNLIMITED
from server.resources.specs import ScheduleSpec
from wire.entries import EMPTY, EntrySet
from wire.messages import ScheduleFire

Result = TypeVar("Result")
Work = Generator[int, None, Result]
"""Yields how much work each step was, and returns a result."""

DAY_S, MINUTES = 86400, 1440
MAX_NAMED = 100
"""Hosts, and runs, that an answer names; of more, it has the number."""
MAX_TIMES = 48
"""Due times that an answer names in one list."""
STEP = 500
"""Hosts that are dealt with in one step."""
_PRODUCT = 300
"""How much work it is to multiply two polynomials."""
_BITS = 32
"""Bits of a coefficient: it counts the jobs of a minute."""
_EARLIER = MINUTES
"""The minute 0 of the day, in a polynomial: due times before the day are due within it by a spread of up to a day."""
_MARGIN = timedelta(hours=3)
"""By how much clock changes can make the time between due times longer than the expression says."""


class Names(Struct, frozen=True):
    """Hosts: how many, and the names of the first ones."""

    count: int = 0
    first: list[str] = []


class MissedRun(Struct, frozen=True):
    """A due time on a host."""

    host: str
    due: datetime


class MissedRuns(Struct, frozen=True):
    """Due times on hosts: how many, and the first ones."""

    count: int = 0
    first: list[MissedRun] = []


class DueTimes(Struct, frozen=True):
    """The runs of a schedule in the coming day, a due time on a host being one.

    `before`, `after`: how many there are. `appearing`, `disappearing`: how many of them are new, and gone.
    `appear_at`, `disappear_at`: the first due times of these by the cron expression alone, without the spread.
    """

    before: int = 0
    after: int = 0
    appearing: int = 0
    disappearing: int = 0
    appear_at: list[datetime] = []
    disappear_at: list[datetime] = []


class ScheduleForecast(Struct, frozen=True):
    """What becomes of a schedule.

    `spread_seconds`: within how many seconds after a due time its hosts begin. `approximate`: the schedule is new and
    has a spread, so that which host begins when is known only once it is created.
    `made_up`: missed runs that are made up for because of the change, once the host is connected. `dropped`: missed
    runs that would be made up for without it. `joining`: hosts that join it, and run it once by `runOnJoin`, at once or
    when they connect, unless it selected them before.
    """

    namespace: str
    name: str
    hosts_before: int
    hosts_after: int
    gained: Names
    lost: Names
    due: DueTimes
    spread_seconds: int = 0
    approximate: bool = False
    made_up: MissedRuns = MissedRuns()
    dropped: MissedRuns = MissedRuns()
    joining: Names = Names()


class Peak(Struct, frozen=True):
    """The worst minute of a repository: how many jobs are due in it. `host`: whose, where each host has a lane."""

    at: datetime
    jobs: int
    host: str = ""


class Load(Struct, frozen=True):
    """A repository, before or after the change. `limit`: its maxConcurrentJobs. `peak`: None when nothing is due."""

    limit: int | None = None
    peak: Peak | None = None


class RepositoryForecast(Struct, frozen=True):
    """What becomes of a repository. `per_host`: whether each host has a lane, and the limit, of its own."""

    namespace: str
    name: str
    per_host: bool
    before: Load
    after: Load


class Seen(NamedTuple):
    """What is known of a host's agent. `at`: when it was last connected; None when it never was.

    `in_sync`: whether it then held the desired set. A host that is connected has no `Seen`.
    """

    at: datetime | None
    in_sync: bool


class Comparison(Struct, frozen=True):
    """Two states of a fleet. `schedules`: ids of those that differ. `hosts`: those that get another version."""

    before: Placement
    after: Placement
    schedules: Collection[str]
    hosts: Sequence[str]


def compared(before: Placement, after: Placement, seen: Mapping[str, Seen]) -> Work[Comparison]:
    """Find what differs between two states. `seen`: of the agents that are not connected.

    The whole set of a host whose agent never came differs with the host's `since`, from which on it missed runs.
    """
    old, new = before.schedules, after.schedules
    changed = {id_ for id_ in old.keys() | new.keys() if _differ(old.get(id_), new.get(id_))}
    hosts = []
    parted: dict[tuple[int, int], object] = {}
    for name in sorted(before.hosts.keys() | after.hosts.keys()):
        was, will = _set(before, name), _set(after, name)
        if was is not will and (id(was), id(will)) not in parted:
            parted[id(was), id(will)] = was, will
            changed |= was.items.keys() ^ will.items.keys()
            yield 1 + len(was) // 10
        if name in seen and seen[name].at is None and _since(before, name) != _since(after, name):
            changed |= was.items.keys() & will.items.keys()
            yield 1 + len(was) // 10
        if _version(before, name) != (_version(after, name) or _version(before, name)):
            hosts.append(name)
    return Comparison(before, after, changed, hosts)


def _differ(old: PlacedSchedule | None, new: PlacedSchedule | None) -> bool:
    return old is not new and old != new


def _set(placement: Placement, host: str) -> EntrySet:
    state = placement.hosts.get(host)
    return EMPTY if state is None else state.entries


def _since(placement: Placement, host: str) -> datetime | None:
    state = placement.hosts.get(host)
    return None if state is None else state.since


def _version(placement: Placement, host: str) -> int:
    state = placement.hosts.get(host)
    return 0 if state is None else state.version


def holders(placement: Placement, wanted: Collection[str]) -> Work[dict[str, list[str]]]:
    """The hosts that should hold each of these schedules."""
    alike: dict[int, tuple[list[str], list[str]]] = {}
    for name, state in placement.hosts.items():
        if (found := alike.get(id(state.entries))) is None:
            shown = [it for it in state.entries.items if it in wanted]
            found = alike[id(state.entries)] = (shown, [])
            yield 1 + len(state.entries) // 10
        found[1].append(name)
    held: dict[str, list[str]] = defaultdict(list)
    for shown, hosts in alike.values():
        for id_ in shown:
            held[id_] += hosts
        yield 1 + len(shown) // 10
    return dict(held)


# Due times.


class Calendar:
    """The due times of schedules in the day from `begin` on, a whole minute."""

    def __init__(self, begin: datetime) -> None:
        self.begin = begin
        self.end = begin + timedelta(days=1)
        self._named: dict[tuple[str, str, int], tuple[int, ...]] = {}
        self._powers: dict[tuple[int, ...], int] = {}

    @classmethod
    def after(cls, now: datetime) -> "Calendar":
        """The day that begins with the next minute."""
        return cls(now.replace(second=0, microsecond=0) + timedelta(minutes=1))

    def named(self, spec: ScheduleSpec) -> Sequence[int]:
        """The due times by the cron expression alone, with those before the day that the spread moves into it."""
        if not spec.enabled:
            return ()
        key = spec.cron_text, spec.time_zone, spec.spread_seconds
        if key not in self._named:
            earliest = self.begin - timedelta(seconds=spec.spread_seconds)
            self._named[key] = tuple(map(self.second, due_between(spec, earliest, self.end)))
        return self._named[key]

    def prepare(self, spec: ScheduleSpec) -> int:
        """Work out the due times of a schedule. Returns how many are new."""
        known = len(self._named)
        named = self.named(spec)
        return len(named) if len(self._named) > known else 0

    def second(self, at: datetime) -> int:
        """A time in seconds after the day's beginning."""
        return int((at - self.begin).total_seconds())

    def time(self, second: int) -> datetime:
        """The time so many seconds after the day's beginning."""
        return self.begin + timedelta(seconds=second)

    def powers(self, spec: ScheduleSpec) -> int:
        """The polynomial of a schedule's due times by the cron expression alone."""
        named = tuple(self.named(spec))
        if named not in self._powers:
            self._powers[named] = _polynomial(Counter(_EARLIER + second // 60 for second in named))
        return self._powers[named]


def due_between(spec: ScheduleSpec, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The due times from `begin` until before `end`, by the cron expression alone."""
    try:
        expression, zone = cron.parse_all(spec.cron_text), cron.zone(spec.time_zone)
    except cron.CronError:  # another release accepted it; no host runs it
        return
    yield from cron.due_times(expression, zone, begin - timedelta.resolution, end - timedelta.resolution)


def offset(schedule: PlacedSchedule, host: str) -> int:
    """How many seconds after its due times a schedule begins on a host."""
    spread = schedule.spec.spread_seconds
    return int(cron.spread(host, schedule.id, spread).total_seconds()) if spread else 0


def _count(named: Sequence[int], late: int) -> int:
    """How many of these due times are within the day on a host that begins so many seconds late."""
    return bisect_left(named, DAY_S - late) - bisect_left(named, -late)


class _Counts:
    """Adds up the due times of one schedule over hosts."""

    def __init__(self, old: Sequence[int], new: Sequence[int]) -> None:
        self.old, self.new = old, new
        kept = set(old) & set(new)
        self.fresh = [it for it in new if it not in kept]
        self.stale = [it for it in old if it not in kept]
        self.before = self.after = self.appearing = self.disappearing = 0
        self.moved_in = self.moved_out = False

    def add(self, was: int | None, will: int | None) -> None:
        """Add a host. `was`, `will`: how late it begins, before and after; None where it does not hold the schedule."""
        before = _count(self.old, was) if was is not None else 0
        after = _count(self.new, will) if will is not None else 0
        self.before, self.after = self.before + before, self.after + after
        if was is not None and will is not None:
            if was == will:
                appearing, disappearing = _count(self.fresh, will), _count(self.stale, was)
            else:
                there = {it + was for it in self.old if 0 <= it + was < DAY_S}
                kept = sum(0 <= it + will < DAY_S and it + will in there for it in self.new)
                appearing, disappearing = after - kept, before - kept
        else:
            appearing, disappearing = after, before
        self.moved_in |= appearing > 0 and was != will
        self.moved_out |= disappearing > 0 and was != will
        self.appearing, self.disappearing = self.appearing + appearing, self.disappearing + disappearing

    def due(self, calendar: Calendar) -> DueTimes:
        """The sums."""
        appear, disappear = (self.new if self.moved_in else self.fresh), (self.old if self.moved_out else self.stale)
        return DueTimes(
            self.before,
            self.after,
            self.appearing,
            self.disappearing,
            _times(appear, calendar) if self.appearing else [],
            _times(disappear, calendar) if self.disappearing else [],
        )


def _times(seconds: Sequence[int], calendar: Calendar) -> list[datetime]:
    """The first of these times within the day; if there are none, the last ones before it."""
    within = [it for it in seconds if it >= 0] or seconds
    return [calendar.time(it) for it in within[:MAX_TIMES]]


# Runs that are made up for.


def latest_due(spec: ScheduleSpec, now: datetime) -> Sequence[datetime]:
    """The last due times up to now by the cron expression alone, among them the latest one on each host."""
    if not spec.enabled:
        return ()
    try:
        period = cron.two_periods(cron.parse_all(spec.cron_text))
    except cron.CronError:
        return ()
    begin = now - period - _MARGIN - timedelta(seconds=spec.spread_seconds)
    return list(due_between(spec, begin, now + timedelta.resolution))


def missed(
    schedule: PlacedSchedule, past: Sequence[datetime], state: HostState, since: datetime, now: datetime
) -> ScheduleFire | None:
    """What a host fires for the due times after `since` and up to now. `past`: `latest_due` of the schedule."""
    since = max(since, schedule.since)
    if since >= now:
        return None
    late = timedelta(seconds=offset(schedule, state.name))
    at = bisect_right(past, now - late)
    due = past[at - 1] + late if at else since
    is_late = now - due >= cron.ON_TIME
    return ScheduleFire(schedule.id, due, int(is_late)) if due > since else None


class _Makeup:
    """Which missed run of one schedule each host makes up for, before and after a change. `past`: `latest_due`."""

    def __init__(
        self,
        comparison: Comparison,
        schedule_id: str,
        now: datetime,
        past: Callable[[PlacedSchedule], Sequence[datetime]],
    ) -> None:
        self._before, self._after = comparison.before, comparison.after
        self._id, self._now, self._past = schedule_id, now, past
        self.made_up: list[MissedRun] = []
        self.dropped: list[MissedRun] = []

    def add(self, host: str, seen: Seen | None) -> None:
        """Add a host. `seen`: of its agent, None while it is connected."""
        before, after = self._before, self._after
        without, fired = None, self._new(after, host)
        if seen is not None and seen.at is None:  # its first set is the one that it gets when it comes
            without = self._accepted(before, self._new(before, host), host)
        elif self._holds(before, host):  # it goes on by the set that it has
            fired = self._old(host, seen)
            without = self._accepted(before, fired, host)
            fired = fired if without is not None else None  # its agent skips what the schedule skips
        made_up = self._accepted(after, fired, host)
        if made_up is not None and made_up != without:
            self.made_up.append(MissedRun(host, made_up))
        if without is not None and made_up != without:
            self.dropped.append(MissedRun(host, without))

    def _old(self, host: str, seen: Seen | None) -> ScheduleFire | None:
        """What a host that was connected before fires by its present set."""
        if seen is None or seen.at is None or not seen.in_sync:
            return None
        schedule, state = self._before.schedules[self._id], self._before.hosts[host]
        return missed(schedule, self._past(schedule), state, max(seen.at, state.since), self._now)

    def _new(self, side: Placement, host: str) -> ScheduleFire | None:
        """What a host fires for a schedule that comes to it."""
        if not self._holds(side, host):
            return None
        schedule, state = side.schedules[self._id], side.hosts[host]
        return missed(schedule, self._past(schedule), state, state.since, self._now)

    def _holds(self, side: Placement, host: str) -> bool:
        state = side.hosts.get(host)
        return state is not None and state.holds(self._id)

    def _accepted(self, side: Placement, fire: ScheduleFire | None, host: str) -> datetime | None:
        """The due time of a fire, when the server makes a job of it in that state."""
        if fire is None or (state := side.hosts.get(host)) is None:
            return None
        refused = fires.refusal(fire, Session(state), side.schedules, self._now)
        return fire.scheduled_at if refused is None else None


class Forecast:
    """Works out what a change does. `seen`: of the hosts that are not connected."""

    def __init__(self, comparison: Comparison, now: datetime, seen: Mapping[str, Seen]) -> None:
        self.calendar = Calendar.after(now)
        self._comparison = comparison
        self._now = now
        self._seen = seen
        self._offsets: dict[tuple[str, int], dict[str, int]] = {}
        self._past: dict[tuple[str, str, int, bool], Sequence[datetime]] = {}

    def schedule(self, id_: str, held_before: Collection[str], held_after: Collection[str]) -> Work[ScheduleForecast]:
        """What becomes of a schedule. `held_before`, `held_after`: the hosts that should hold it."""
        before, after = self._comparison.before, self._comparison.after
        old, new = before.schedules.get(id_), after.schedules.get(id_)
        counts = _Counts(*(self.calendar.named(it.spec) if it is not None else () for it in (old, new)))
        makeup = _Makeup(self._comparison, id_, self._now, self._latest_due)
        had, has = set(held_before), set(held_after)
        yield len(counts.old) + len(counts.new)
        for part in _parts(sorted(had | has)):
            for host in part:
                was = self._offset(old, host) if old is not None and host in had else None
                will = self._offset(new, host) if new is not None and host in has else None
                counts.add(was, will)
                makeup.add(host, self._seen.get(host))
            yield 2 * len(part)
        namespace, _, name = next(it.name for it in (new, old) if it is not None).partition("/")
        spread = 0 if new is None else new.spec.spread_seconds
        return ScheduleForecast(
            namespace,
            name,
            len(had),
            len(has),
            named_hosts(has - had),
            named_hosts(had - has),
            counts.due(self.calendar),
            spread,
            old is None and spread > 0,
            _runs(makeup.made_up),
            _runs(makeup.dropped),
            named_hosts(self._joining(old, new, has - had)),
        )

    def _joining(self, old: PlacedSchedule | None, new: PlacedSchedule | None, gained: Collection[str]) -> list[str]:
        """Those of the hosts that a schedule gains that join it: they are new or labelled, and it was not changed."""
        if old is None or new is None or not (old.spec.run_on_join and old.spec.enabled):
            return []
        after = self._comparison.after
        return [host for host in gained if old.selects(after.hosts[host].labels)]

    def peak(
        self, schedules: Sequence[PlacedSchedule], held: Mapping[str, Sequence[str]], *, per_host: bool
    ) -> Work[Peak | None]:
        """The worst minute of a repository. `schedules`: all that use it. `held`: the hosts of each, by its id."""
        queued = [it for it in schedules if it.spec.enabled and it.spec.kind not in UNLIMITED]
        for schedule in queued:
            yield 1 + self.calendar.prepare(schedule.spec)
        return (yield from self._each_host(queued, held)) if per_host else (yield from self._together(queued, held))

    def _together(self, schedules: Sequence[PlacedSchedule], held: Mapping[str, Sequence[str]]) -> Work[Peak | None]:
        total = 0
        for schedule in schedules:
            late: Counter[int] = Counter()
            for part in _parts(held.get(schedule.id, ())):
                late.update(self._offset(schedule, host) // 60 for host in part)
                yield len(part)
            total += self.calendar.powers(schedule.spec) * _polynomial(late)
            yield _PRODUCT if len(late) > 1 else 1
        return self._peak(total)

    def _each_host(self, schedules: Sequence[PlacedSchedule], held: Mapping[str, Sequence[str]]) -> Work[Peak | None]:
        of_host: dict[str, list[PlacedSchedule]] = defaultdict(list)
        for schedule in schedules:
            for host in held.get(schedule.id, ()):
                of_host[host].append(schedule)
        worst: Peak | None = None
        known: dict[tuple[tuple[str, int], ...], Peak | None] = {}
        for host, own in sorted(of_host.items()):
            late = tuple((it.id, self._offset(it, host) // 60) for it in own)
            if late not in known:
                shifted = zip(own, late, strict=True)
                known[late] = self._peak(sum(self.calendar.powers(it.spec) << _BITS * by for it, (_, by) in shifted))
                yield 10 * len(own)
            found = known[late]
            if found is not None and (worst is None or found.jobs > worst.jobs):
                worst = Peak(found.at, found.jobs, host)
        return worst

    def _peak(self, total: int) -> Peak | None:
        """The first of the minutes with the most jobs."""
        within = (total >> _BITS * _EARLIER) & ((1 << _BITS * MINUTES) - 1)
        jobs = struct.unpack(f"<{MINUTES}I", within.to_bytes(MINUTES * _BITS // 8, "little"))
        most = max(jobs)
        return Peak(self.calendar.time(60 * jobs.index(most)), most) if most else None

    def _latest_due(self, schedule: PlacedSchedule) -> Sequence[datetime]:
        """`latest_due`, worked out once for all schedules with the same timing."""
        spec = schedule.spec
        key = spec.cron_text, spec.time_zone, spec.spread_seconds, spec.enabled
        if key not in self._past:
            self._past[key] = latest_due(spec, self._now)
        return self._past[key]

    def _offset(self, schedule: PlacedSchedule, host: str) -> int:
        """`offset`, worked out once."""
        spread = schedule.spec.spread_seconds
        if not spread:
            return 0
        known = self._offsets.setdefault((schedule.id, spread), {})
        if host not in known:
            known[host] = offset(schedule, host)
        return known[host]


def named_hosts(hosts: Collection[str]) -> Names:
    """Hosts in order, as an answer names them."""
    return Names(len(hosts), sorted(hosts)[:MAX_NAMED])


def _runs(runs: Sequence[MissedRun]) -> MissedRuns:
    return MissedRuns(len(runs), list(runs[:MAX_NAMED]))


def _parts(hosts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (hosts[at : at + STEP] for at in range(0, len(hosts), STEP))


def _polynomial(coefficients: Mapping[int, int]) -> int:
    """The polynomial with these coefficients, by power, as one number."""
    return sum(count << _BITS * power for power, count in coefficients.items())


def users(placement: Placement, repositories: Collection[str]) -> dict[str, list[PlacedSchedule]]:
    """The schedules that use each of these repositories, by its id."""
    found: dict[str, list[PlacedSchedule]] = defaultdict(list)
    for schedule in placement.schedules.values():
        for id_ in schedule.repository_ids:
            if id_ in repositories:
                found[id_].append(schedule)
    return found
