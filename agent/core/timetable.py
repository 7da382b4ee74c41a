"""When what is due: the local cron as a heap of due times. Plain data; the time comes in as an argument.

A timetable is built from a set of entries and never changed by a push: the next set gets a timetable of its own.
"""

import heapq
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

import cron
from wire import entries
from wire.messages import Entry

CORRECTION = timedelta(hours=3)
"""A clock set back by more than this was wrong before, and the new time counts at once (cron(8), "Daylight Saving
Time and other time changes")."""
MISSED_LIMIT = 1000
"""Missed due times are counted up to here."""
NEVER = datetime.max.replace(tzinfo=UTC)
_BEGIN = datetime.fromtimestamp(0, UTC)
"""No due time before it is thought of: the first years that a datetime can say are in no zone's reach."""


class Due(NamedTuple):
    """A schedule whose due time has come. `missed`: 0 on time, else how many due times this one stands for."""

    entry: Entry
    at: datetime
    missed: int


class Slot(NamedTuple):
    """An entry with its parsed expression, its zone and its spread on this host."""

    entry: Entry
    expression: cron.Expression
    zone: ZoneInfo
    offset: timedelta

    def next(self, after: datetime) -> datetime:
        """The first due time after that time, this host's spread included."""
        return cron.next_due(self.expression, self.zone, after - self.offset) + self.offset

    def latest(self, after: datetime, now: datetime) -> cron.Missed:
        """The latest due time after one that passed, up to now, and how many there were; `after` if there is none."""
        late = cron.catch_up(self.expression, self.zone, after - self.offset, now - self.offset, limit=MISSED_LIMIT - 1)
        return cron.Missed(late.due + self.offset, late.times) if late else cron.Missed(after, 0)


class Timetable:
    """The due times of one set of entries on one host."""

    def __init__(
        self, slots: Mapping[str, Slot], heap: list[tuple[datetime, str]], problems: Mapping[str, str]
    ) -> None:
        self._slots = slots
        self._heap = heap
        self.problems = problems

    @property
    def next_at(self) -> datetime:
        """The earliest due time; NEVER when nothing is to come."""
        return self._heap[0][0] if self._heap else NEVER

    @property
    def next_entry(self) -> Entry | None:
        """What is due at `next_at`."""
        return self._slots[self._heap[0][1]].entry if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def recount(self, cursors: Mapping[str, datetime]) -> None:
        """Set the cursors of these schedules, whatever was taken before."""
        kept = [item for item in self._heap if item[1] not in cursors]
        anew = [(self._slots[key].next(at), key) for key, at in cursors.items() if key in self._slots]
        self._heap = [*kept, *anew]
        heapq.heapify(self._heap)

    def take(self, now: datetime) -> list[Due]:
        """What is due, at most once for each schedule: its latest due time, and how many were missed. Never early."""
        taken = []
        heap = self._heap
        memo: dict[tuple[int, int, timedelta, datetime], datetime] = {}  # what is due together mostly is so again
        while heap and heap[0][0] <= now:
            at, key = heap[0]
            slot = self._slots[key]
            alike = id(slot.expression), id(slot.zone), slot.offset, at
            following = memo.get(alike) or memo.setdefault(alike, slot.next(at))
            missed = 0 if now - at < cron.ON_TIME else 1
            if following <= now:
                late = slot.latest(at, now)
                at, missed = late.due, 1 + late.times
                following = slot.next(at)
            taken.append(Due(slot.entry, at, missed))
            heapq.heapreplace(heap, (following, key))
        return taken


def slot(entry: Entry, host: str) -> Slot:
    """An entry on a host. Raises CronError."""
    offset = cron.spread(host, entry.id, entry.spread_s) if entry.spread_s else timedelta()
    return Slot(entry, cron.parse(entry.cron), cron.zone(entry.time_zone), offset)


def build(held: entries.EntrySet, cursors: Mapping[str, datetime], host: str, now: datetime) -> Timetable:
    """The timetable of a set: entries that are disabled are left out; so are those that cannot be understood, each
    with its reason in `problems`.

    `cursors`: for each schedule the time after which its due times count. One that lies in the past gives an overdue
    time, which the first `take` catches up; one that lies more than CORRECTION in the future came from a wrong clock.
    """
    slots: dict[str, Slot] = {}
    heap = []
    problems = {}
    upcoming: dict[tuple[str, str], tuple[datetime, datetime]] = {}
    for key, item in held.items.items():
        try:
            entry = entries.parse_entry(item.raw)
            if not entry.enabled:
                continue
            its = slot(entry, host)
        except (msgspec.DecodeError, cron.CronError) as error:
            problems[key] = str(error)
            continue
        after = max(cursors.get(key, now), entry.since, _BEGIN)
        if after > now + CORRECTION:
            after = now
        # Entries of one expression mostly lie between the same two due times: one calculation serves them all.
        begin, due = upcoming.get((entry.cron, entry.time_zone), (NEVER, NEVER))
        if not begin <= after - its.offset < due:
            begin, due = after - its.offset, cron.next_due(its.expression, its.zone, after - its.offset)
            upcoming[entry.cron, entry.time_zone] = begin, due
        slots[key] = its
        heap.append((due + its.offset, key))
    heapq.heapify(heap)
    return Timetable(slots, heap, problems)
