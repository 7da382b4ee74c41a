"""When an expression is due in a zone, by the rules of cron(8) for days on which clocks are changed.

An expression that leaves out some hours is of wall-clock times: one that a change of clocks skips is due as soon as
clocks have moved on, and one that comes twice is due the first time ("jobs that would have run in the interval that has
been skipped will be run immediately … if time has moved backward, those jobs will not be run twice"). One that names
every hour goes by elapsed time: it is due whenever the wall clock shows one of its minutes.
"""

import calendar
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cron.expression import Expression

ON_TIME = timedelta(minutes=1)
"""A fire within its own minute, cron's grain, is on time; later it is a missed one."""
_MINUTE = timedelta(minutes=1)
_FARTHEST_BACK = timedelta(hours=3)
"""No clock is set back by more, as far as cron(8) and the zones of the last decades go."""


class Missed(NamedTuple):
    """Due times that have passed: the latest of them, and how many `times` it was due."""

    due: datetime
    times: int


@lru_cache(maxsize=1 << 12)
def next_due(expression: Expression, zone: ZoneInfo, after: datetime) -> datetime:
    """The first due time after an aware time, in UTC: to the minute, but for changes of clocks at odd seconds."""
    return _next(expression, zone, after)


def is_due(expression: Expression, zone: ZoneInfo, at: datetime) -> bool:
    """Whether an aware time is a due time: whether `next_due` gives it. Takes no longer for rare expressions."""
    local = at.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if _offset(at - timedelta.resolution, zone) < _offset(at, zone):  # the moment that skipped times are due at
        return _next(expression, zone, at - timedelta.resolution) == at
    minute, times = 60 * wall.hour + wall.minute, expression.times
    place = bisect_left(times, minute)
    named = times[place : place + 1] == (minute,) and expression.names_day(wall.date())
    return named and not (wall.second or wall.microsecond) and (expression.hourly or not local.fold)


@lru_cache(maxsize=1 << 10)
def catch_up(expression: Expression, zone: ZoneInfo, after: datetime, now: datetime, limit: int) -> Missed | None:
    """The latest due time after `after` and up to `now`, and how many there are; counted up to `limit` (1 or more)."""
    latest, count = after, 0
    while (due := _next(expression, zone, latest)) <= now:
        if count == limit:
            return Missed(_latest(expression, zone, latest, now), limit)
        latest, count = due, count + 1
    return Missed(latest, count) if count else None


def spread(host: str, schedule_id: str, width_s: int) -> timedelta:
    """A host's own offset after each due time: whole seconds below `width_s`, ever the same for host and schedule."""
    digest = hashlib.blake2b(f"{host}\n{schedule_id}".encode(), digest_size=8).digest()
    return timedelta(seconds=int.from_bytes(digest, "big") % width_s) if width_s > 0 else timedelta()


def _next(expression: Expression, zone: ZoneInfo, after: datetime) -> datetime:
    local = after.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if expression.hourly:
        return _next_shown(expression, zone, after, wall)
    return next(due for at in _walls(expression, wall) if (due := _first(at, zone)) > after)


def _next_shown(expression: Expression, zone: ZoneInfo, after: datetime, wall: datetime) -> datetime:
    """The next time at which the wall clock shows one of the expression's times."""
    found: list[datetime] = []
    # A clock that is about to be set back will show again what it shows now.
    back = max(timedelta(), _offset(after, zone) - _offset(after + _FARTHEST_BACK, zone))
    for at in _walls(expression, wall - back):
        shown = (_instant(at, zone, fold) for fold in (0, 1))
        found += [due for due in shown if due > after and due.astimezone(zone).replace(tzinfo=None, fold=0) == at]
        if found and at > wall:
            break
    return min(found)


def _latest(expression: Expression, zone: ZoneInfo, after: datetime, now: datetime) -> datetime:
    """The latest due time up to `now`, where there is one after `after`: by halving, since there may be millions."""
    seconds = range(int((now - after).total_seconds()) + 1)
    begins = bisect_left(seconds, True, key=lambda s: _next(expression, zone, after + timedelta(seconds=s)) > now)
    return _next(expression, zone, after + timedelta(seconds=begins - 1))


def _walls(expression: Expression, after: datetime) -> Iterator[datetime]:
    """The wall-clock times, without zone, that the expression names after one."""
    first = after.replace(second=0, microsecond=0) + _MINUTE
    times = expression.times
    at = bisect_left(times, 60 * first.hour + first.minute)
    for day in _days(expression, first.date()):
        midnight = datetime(day.year, day.month, day.day)
        for minute in times if day != first.date() else times[at:]:
            yield midnight + timedelta(minutes=minute)


def _days(expression: Expression, first: date) -> Iterator[date]:
    """The days that the expression names, from one on."""
    year, month, day = first.year, first.month, first.day
    while True:
        if month in expression.months:
            for number in range(day, calendar.monthrange(year, month)[1] + 1):
                if expression.names_day(date(year, month, number)):
                    yield date(year, month, number)
        year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)


def _first(wall: datetime, zone: ZoneInfo) -> datetime:
    """When clocks first show a wall-clock time, or the moment that they skip it (PEP 495)."""
    due, begin = _instant(wall, zone, 0), _instant(wall, zone, 1)
    if due <= begin:
        return due
    # Skipped: as if the clock had been set already, the time lies before the change, and the other way after it.
    before = _offset(begin, zone)
    seconds = range(int((due - begin).total_seconds()) + 1)
    return begin + timedelta(
        seconds=bisect_right(seconds, False, key=lambda s: _offset(begin + timedelta(seconds=s), zone) != before)
    )


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()
