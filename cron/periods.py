"""The longest time between due times of an expression, over two periods in a row."""

from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache, lru_cache
from itertools import pairwise

from cron.expression import AnyOf, Expression, Times

_FIRST, _LAST = date(2000, 1, 1), date(2083, 12, 31)
"""Weekdays and leap days repeat every 28 years from 2000 to 2100. In three times 28 years, even a day that occurs once
in 28 years occurs three times."""
_DAYS = _LAST.toordinal() - _FIRST.toordinal() + 1
_DAY_MINUTES = 24 * 60
Kind = tuple[str, ...]
"""Which of several expressions name a day: "1" for each that does, "0" for the others."""


@lru_cache(maxsize=1 << 12)
def two_periods(expression: Times) -> timedelta:
    """The longest time between a due time and the second one after it, by the wall clock.

    Any longer time has at least two due times in it.
    """
    if isinstance(expression, AnyOf):
        return _two_periods_of_several(expression.parts)
    times = expression.times
    one, two = _longest_gaps(expression.months, expression.month_days, expression.weekdays, expression.either)
    if len(times) == 1:
        return timedelta(days=two)
    spans = [third - first for first, third in zip(times, times[2:], strict=False)]
    night = one * _DAY_MINUTES  # from a time of one day to the same time of the next day that is named
    spans += [night + times[0] - times[-2], night + times[1] - times[-1]]
    return timedelta(minutes=max(spans))


@lru_cache(maxsize=1 << 12)
def _longest_gaps(
    months: frozenset[int], month_days: frozenset[int], weekdays: frozenset[int], either: bool
) -> tuple[int, int]:
    """The most days between a named day and the next one, and between it and the second one after it."""
    named = _named_days(months, month_days, weekdays, either)
    gaps = [len(between) + 1 for between in f"{named:b}".split("1")[1:-1]]
    two = max((first + second for first, second in pairwise(gaps)), default=_DAYS)
    return max(gaps, default=_DAYS), two


def _named_days(months: frozenset[int], month_days: frozenset[int], weekdays: frozenset[int], either: bool) -> int:
    """The days from _FIRST to _LAST that are named, as bits.

    Each day is a bit of one long number, so that an expression takes a few operations in place of a loop over the days.
    """
    of_month, of_week = _any_of("day", month_days), _any_of("weekday", weekdays)
    return _any_of("month", months) & (of_month | of_week if either else of_month & of_week)


def _two_periods_of_several(parts: Sequence[Expression]) -> timedelta:
    """As `two_periods`. Days that the same expressions name have the same times, so few kinds of days are looked at."""
    named = [_named_days(it.months, it.month_days, it.weekdays, it.either) for it in parts]
    kinds = zip(*(f"{days:0{_DAYS}b}" for days in named), strict=True)
    days = [(day, kind) for day, kind in enumerate(kinds) if "1" in kind]
    follow = {
        (second - first, third - second, one, two, three)
        for (first, one), (second, two), (third, three) in zip(days, days[1:], days[2:], strict=False)
    }
    return timedelta(minutes=max((_longest_of(parts, it) for it in follow), default=_DAYS * _DAY_MINUTES))


def _longest_of(parts: Sequence[Expression], days: tuple[int, int, Kind, Kind, Kind]) -> int:
    """The most minutes from a time of the first of three days to the second time after it.

    `days`: how many days the second is after the first, and the third after the second; and the kind of each.
    """
    to_second, to_third, *kinds = days
    first, second, third = (_times_of(parts, kind) for kind in kinds)
    times = [*first, *(it + to_second * _DAY_MINUTES for it in second)]
    times += [it + (to_second + to_third) * _DAY_MINUTES for it in third]
    return max(later - at for at, later in zip(times[: len(first)], times[2:], strict=False))


def _times_of(parts: Sequence[Expression], kind: Kind) -> list[int]:
    """The minutes that these expressions name on a day of this kind, in order."""
    return sorted({minute for part, named in zip(parts, kind, strict=True) if named == "1" for minute in part.times})


def _any_of(field: str, numbers: frozenset[int]) -> int:
    named = 0
    for number in numbers:
        named |= _bits().get((field, number), 0)
    return named


@cache
def _bits() -> dict[tuple[str, int], int]:
    """For each month, day of month and weekday (0 is Sunday), the days from _FIRST to _LAST that have it, as bits."""
    days = [date.fromordinal(_FIRST.toordinal() + number) for number in range(_DAYS)]
    values = {"month": [it.month for it in days], "day": [it.day for it in days]}
    values["weekday"] = [it.isoweekday() % 7 for it in days]
    return {
        (field, number): int("".join("1" if it == number else "0" for it in has), 2)
        for field, has in values.items()
        for number in set(has)
    }
