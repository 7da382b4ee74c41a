"""Windows: times of day in which something may begin, by the wall clock of a zone.

A window begins on the days that it names, and may go over midnight. A wall-clock time that a clock change skips counts
as the moment of the change, and one that comes twice counts the first time, as for due times. So a window that a change
skips as a whole is empty on that day.
"""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cron.due import wall_moment

DAY = 24 * 60
"""Minutes of a day; as the end of a window, midnight."""
_WEEK = 7 * DAY
_AHEAD = 22
"""Days that are looked at: even if clock changes skip a weekly window twice, there is another one."""


class Window(NamedTuple):
    """A window, in minutes since midnight. It ends on the next day if `end` is not after `begin`.

    `days`: the weekdays on which it begins, 0 being Sunday.
    """

    begin: int
    end: int
    days: frozenset[int]

    @property
    def minutes(self) -> int:
        """How long it is by the wall clock."""
        return self.end - self.begin if self.end > self.begin else self.end + DAY - self.begin


Windows = tuple[Window, ...]


def opens_at(windows: Windows, zone: ZoneInfo, at: datetime) -> datetime:
    """When something that is due at an aware time may begin: then, if a window is open, or when the next one opens."""
    spans = _spans(windows, zone, at.astimezone(zone).date())
    place = bisect_right(spans, at, key=lambda span: span[1])
    begin = spans[place][0]
    return max(begin, at)


def closes_at(windows: Windows, zone: ZoneInfo, at: datetime) -> datetime | None:
    """When the window closes that is open at an aware time; None if none is open.

    Windows that follow each other without a gap count as one.
    """
    spans = _spans(windows, zone, at.astimezone(zone).date())
    begin, end = spans[bisect_right(spans, at, key=lambda span: span[1])]
    return end if begin <= at else None


@lru_cache(maxsize=1 << 10)
def longest_closed(windows: Windows) -> timedelta:
    """The longest time in which no window is open, by the wall clock."""
    starts = sorted((day * DAY + it.begin, it.minutes) for it in windows for day in it.days)
    longest, open_until = 0, max(start + minutes for start, minutes in starts) - _WEEK
    for start, minutes in starts:
        longest = max(longest, start - open_until)
        open_until = max(open_until, start + minutes)
    return timedelta(minutes=longest)


@lru_cache(maxsize=1 << 10)
def _spans(windows: Windows, zone: ZoneInfo, day: date) -> list[tuple[datetime, datetime]]:
    """When windows are open from the day before that day on, in order, without gaps of nothing."""
    joined: list[tuple[datetime, datetime]] = []
    for begin, end in sorted(_each(windows, zone, day)):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif begin < end:
            joined.append((begin, end))
    return joined


def _each(windows: Windows, zone: ZoneInfo, day: date) -> Iterator[tuple[datetime, datetime]]:
    for number in range(-2, _AHEAD):
        begins = day + timedelta(days=number)
        midnight = datetime(begins.year, begins.month, begins.day)
        for it in windows:
            if begins.isoweekday() % 7 in it.days:
                begin = midnight + timedelta(minutes=it.begin)
                yield wall_moment(begin, zone), wall_moment(begin + timedelta(minutes=it.minutes), zone)
