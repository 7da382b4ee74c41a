"""The local cron: a heap of due times. Plain data; the time comes in as an argument.

A timetable belongs to one set of entries. A push does not change it: the next set gets a timetable of its own.
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
"""A clock that is set back by more than this was wrong before, so the new time counts at once (cron(8), "Daylight
Saving Time and other time changes")."""
MISSED_LIMIT = 1000
"""Missed due times are counted up to this number."""
NEVER = datetime.max.replace(tzinfo=UTC)
_EPOCH = datetime.fromtimestamp(0, UTC)
"""Due times before it do not count: converting the first years of datetime's range to a zone would overflow."""


class Due(NamedTuple):
    """An entry that is due. `missed`: 0 on time, else how many due times this one stands for."""

    entry: Entry
    at: datetime
    missed: int


class Slot(NamedTuple):
    """An entry with its parsed expression, its zone and its spread on this host."""

    entry: Entry
    expression: cron.Times
    zone: ZoneInfo
    offset: timedelta

    def next(self, after: datetime) -> datetime:
        """The first due time after that time, this host's spread included."""
        return cron.next_due(self.expression, self.zone, after - self.offset) + self.offset

    def latest(self, after: datetime, now: datetime) -> cron.Missed:
        """The latest due time after `after` and up to `now`, and how many there were; `after` itself and 0 if none."""
        late = cron.catch_up(self.expression, self.zone, after - self.offset, now - self.offset, limit=MISSED_LIMIT - 1)
        return cron.Missed(late.due + self.offset, late.times) if late else cron.Missed(after, 0)


class Timetable:
    """The due times of one set of entries on one host. `problems`: why entries are left out, by schedule id."""

    def __init__(
        self, slots: Mapping[str, Slot], heap: list[tuple[datetime, str]], problems: Mapping[str, str]
    ) -> None:
        self._slots = slots
        self._heap = heap
        self.problems = problems

    @property
    def next_at(self) -> datetime:
        """The earliest due time; NEVER when there is none."""
        return self._heap[0][0] if self._heap else NEVER

    @property
    def next_entry(self) -> Entry | None:
        """The entry that is due at `next_at`."""
        return self._slots[self._heap[0][1]].entry if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def set_cursors(self, cursors: Mapping[str, datetime]) -> None:
        """Set the cursors of these schedules, also back to due times that were taken before."""
        kept = [item for item in self._heap if item[1] not in cursors]
        moved = [(self._slots[key].next(at), key) for key, at in cursors.items() if key in self._slots]
        self._heap = [*kept, *moved]
        heapq.heapify(self._heap)

    def take(self, now: datetime) -> list[Due]:
        """What is due by now, once for each schedule: its latest due time, and how many were missed."""
        taken = []
        heap = self._heap
        # Entries that are due together mostly have the same next due time.
        memo: dict[tuple[int, int, timedelta, datetime], datetime] = {}
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
    """An entry as it is due on this host. Raises CronError."""
    offset = cron.spread(host, entry.id, entry.spread_s) if entry.spread_s else timedelta()
    return Slot(entry, cron.parse_all(entry.cron), cron.zone(entry.time_zone), offset)


def build(held: entries.EntrySet, cursors: Mapping[str, datetime], host: str, now: datetime) -> Timetable:
    """The timetable of a set, without disabled entries. Entries that cannot be read are in `problems`, with the reason.

    `cursors`: for each schedule the time after which its due times count. A cursor in the past may give a missed due
    time, which the first `take` returns. A cursor more than CORRECTION in the future came from a wrong clock, and
    counts as now.
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
            placed = slot(entry, host)
        except (msgspec.DecodeError, cron.CronError) as error:
            problems[key] = str(error)
            continue
        after = max(cursors.get(key, now), entry.since, _EPOCH)
        if after > now + CORRECTION:
            after = now
        # Cursors of entries with one expression mostly lie between the same two due times: calculate those once.
        begin, due = upcoming.get((entry.cron, entry.time_zone), (NEVER, NEVER))
        if not begin <= after - placed.offset < due:
            begin, due = after - placed.offset, cron.next_due(placed.expression, placed.zone, after - placed.offset)
            upcoming[entry.cron, entry.time_zone] = begin, due
        slots[key] = placed
        heap.append((due + placed.offset, key))
    heapq.heapify(heap)
    return Timetable(slots, heap, problems)
