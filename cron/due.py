"""Due times of an expression in a zone, with the rules of cron(8) for days on which clocks change.

An expression that names only some hours is of wall-clock times. A time that a clock change skips is due right after the
change; a time that occurs twice is due the first time ("jobs that would have run in the interval that has been skipped
will be run immediately … if time has moved backward, those jobs will not be run twice"). An expression that names every
hour is due whenever the wall clock shows one of its minutes. Of several expressions, each follows its own rule.
"""

import calendar
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cron.expression import AnyOf, Expression, Times

ON_TIME = timedelta(minutes=1)
"""A fire within the minute of its due time is on time; a later one is missed."""
_MINUTE = timedelta(minutes=1)
_FARTHEST_BACK = timedelta(hours=3)
"""The most by which a clock change sets clocks back, by cron(8) and the zones of the last decades."""


class Missed(NamedTuple):
    """Due times in the past. `due`: the latest; `times`: how many there are."""

    due: datetime
    times: int


@lru_cache(maxsize=1 << 12)
def next_due(expression: Times, zone: ZoneInfo, after: datetime) -> datetime:
    """The first due time after an aware time, in UTC. It has seconds only where a zone's clock change has."""
    return _next(expression, zone, after)


def due_times(expression: Times, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    """The due times after `after` and up to `until`, in order, in UTC."""
    while (after := _next(expression, zone, after)) <= until:
        yield after


def is_due(expression: Times, zone: ZoneInfo, at: datetime) -> bool:
    """Whether an aware time is a due time, one that `next_due` returns. It is as fast for rare expressions."""
    if isinstance(expression, AnyOf):
        return any(is_due(part, zone, at) for part in expression.parts)
    local = at.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if _offset(at - timedelta.resolution, zone) < _offset(at, zone):  # skipped times are due at this moment
        return _next(expression, zone, at - timedelta.resolution) == at
    minute, times = 60 * wall.hour + wall.minute, expression.times
    place = bisect_left(times, minute)
    named = times[place : place + 1] == (minute,) and expression.names_day(wall.date())
    return named and not (wall.second or wall.microsecond) and (expression.hourly or not local.fold)


@lru_cache(maxsize=1 << 10)
def catch_up(expression: Times, zone: ZoneInfo, after: datetime, now: datetime, limit: int) -> Missed | None:
    """The due times after `after` and up to `now`; None if there are none. They are counted up to `limit` (1 or
    more)."""
    latest, count = after, 0
    while (due := _next(expression, zone, latest)) <= now:
        if count == limit:
            return Missed(_latest(expression, zone, latest, now), limit)
        latest, count = due, count + 1
    return Missed(latest, count) if count else None


def spread(host: str, schedule_id: str, width_s: int) -> timedelta:
    """A host's offset after each due time: whole seconds, 0 to `width_s` - 1, always the same for a host and a
    schedule."""
    digest = hashlib.blake2b(f"{host}\n{schedule_id}".encode(), digest_size=8).digest()
    return timedelta(seconds=int.from_bytes(digest, "big") % width_s) if width_s > 0 else timedelta()


def _next(expression: Times, zone: ZoneInfo, after: datetime) -> datetime:
    if isinstance(expression, AnyOf):
        return min(_next(part, zone, after) for part in expression.parts)
    local = after.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if expression.hourly:
        return _next_hourly(expression, zone, after, wall)
    return next(due for at in _wall_times(expression, wall) if (due := wall_moment(at, zone)) > after)


def _next_hourly(expression: Expression, zone: ZoneInfo, after: datetime, wall: datetime) -> datetime:
    """The next time at which the wall clock shows one of the times of an expression that names every hour."""
    found: list[datetime] = []
    # A clock that is set back soon will show the present time again.
    back = max(timedelta(), _offset(after, zone) - _offset(after + _FARTHEST_BACK, zone))
    for at in _wall_times(expression, wall - back):
        shown = (_instant(at, zone, fold) for fold in (0, 1))
        found += [due for due in shown if due > after and due.astimezone(zone).replace(tzinfo=None, fold=0) == at]
        if found and at > wall:
            break
    return min(found)


def _latest(expression: Times, zone: ZoneInfo, after: datetime, now: datetime) -> datetime:
    """The latest due time up to `now`, if there is one after `after`. Bisects, since there may be millions between."""
    seconds = range(int((now - after).total_seconds()) + 1)
    begins = bisect_left(seconds, True, key=lambda s: _next(expression, zone, after + timedelta(seconds=s)) > now)
    return _next(expression, zone, after + timedelta(seconds=begins - 1))


def _wall_times(expression: Expression, after: datetime) -> Iterator[datetime]:
    """The wall-clock times, without zone, that the expression names after a given one."""
    first = after.replace(second=0, microsecond=0) + _MINUTE
    times = expression.times
    at = bisect_left(times, 60 * first.hour + first.minute)
    for day in _days(expression, first.date()):
        midnight = datetime(day.year, day.month, day.day)
        for minute in times if day != first.date() else times[at:]:
            yield midnight + timedelta(minutes=minute)


def _days(expression: Expression, first: date) -> Iterator[date]:
    """The days that the expression names, from `first` on."""
    year, month, day = first.year, first.month, first.day
    while True:
        if month in expression.months:
            for number in range(day, calendar.monthrange(year, month)[1] + 1):
                if expression.names_day(date(year, month, number)):
                    yield date(year, month, number)
        year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)


def wall_moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """When clocks first show a wall-clock time; if they skip it, the moment of the change (PEP 495)."""
    due, begin = _instant(wall, zone, 0), _instant(wall, zone, 1)
    if due <= begin:
        return due
    # Skipped: with the offset after the change, the time is before the change; with the other offset, after it.
    before = _offset(begin, zone)
    seconds = range(int((due - begin).total_seconds()) + 1)
    return begin + timedelta(
        seconds=bisect_right(seconds, False, key=lambda s: _offset(begin + timedelta(seconds=s), zone) != before)
    )


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()
