"""A cron expression: its text, and the minutes, days and months that it names.

The rules are those of crontab(5): five fields, with names, lists, ranges and steps. croniter works out what a field
names; here stands what it must look like, since croniter takes more than crontab(5) does.
"""

import re
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from croniter import croniter

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
MAX_TEXT = 256
"""Characters of an expression that are read."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class CronError(ValueError):
    """An expression or a zone that cannot be used; the message says what is wrong and what to write."""


class _Field(NamedTuple):
    """A field's name, the numbers it may hold, and the names that stand for the first of them."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)
_EVERY = tuple(frozenset(range(about.low, about.high + 1)) for about in _FIELDS)
"""What * names, shared by all expressions: thousands are kept in memory."""
_DAY = tuple(range(24 * 60))
"""The minutes of a day, shared likewise."""
_PART = re.compile(
    r"(?:\*|(?P<first>[0-9]{1,2}|[a-z]{3})(?:-(?P<last>[0-9]{1,2}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,2}))?"
)


@dataclass(frozen=True, slots=True)
class Expression:
    """What a cron text names. Two are the same when their texts are.

    `times`: minutes since midnight, in order. `weekdays`: 0 is Sunday. `either`: a day counts when its day of month or
    its day of week is named; otherwise both must be. `hourly`: every hour is named.
    """

    text: str
    times: tuple[int, ...] = field(compare=False)
    month_days: frozenset[int] = field(compare=False)
    months: frozenset[int] = field(compare=False)
    weekdays: frozenset[int] = field(compare=False)
    either: bool = field(compare=False)
    hourly: bool = field(compare=False)

    def names_day(self, day: date) -> bool:
        """Whether it is due at some time of this day."""
        of_month, of_week = day.day in self.month_days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (of_month or of_week if self.either else of_month and of_week)


@lru_cache(maxsize=1 << 12)
def parse(text: str) -> Expression:
    """The expression that a text says. Raises CronError for one that crontab(5) does not know, or that never comes.

    A step may also follow a single number, as in CronJobs: `5/15` is `5-59/15`. Names are read in any case.
    """
    if len(text) > MAX_TEXT:
        raise CronError(f"has {len(text)} characters: give at most {MAX_TEXT}, with ranges and steps in place of lists")
    fields = MACROS.get(text, text).lower().split()
    if text.startswith("@") and text not in MACROS:
        raise CronError(f"{text[:32]!r} is not known: use one of {', '.join(MACROS)}, or five fields")
    if len(fields) != len(_FIELDS):
        raise CronError(
            f"has {len(fields)} fields: give minute, hour, day of month, month and day of week, for example 0 2 * * *"
        )
    for said, about in zip(fields, _FIELDS, strict=True):
        _check(said, about)
    minutes, hours, month_days, months, weekdays = (
        every if "*" in named else frozenset(map(int, named))
        for named, every in zip(croniter.expand(" ".join(fields))[0], _EVERY, strict=True)
    )
    # crontab(5): either day matches "if both fields are restricted (i.e., don't contain the "*" character)".
    either = "*" not in fields[2] and "*" not in fields[4]
    times = tuple(_DAY[60 * hour + minute] for hour in sorted(hours) for minute in sorted(minutes))
    expression = Expression(text, times, month_days, months, weekdays, either, len(hours) == 24)
    if not _comes(expression):
        raise CronError(f"never comes: month {fields[3]} has no day {fields[2]}")
    return expression


def _check(said: str, about: _Field) -> None:
    """Raises CronError where a field is not one of crontab(5)."""
    for part in said.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise CronError(f"{about.name} {part[:32]!r} is not understood: give {_wanted(about)}")
        ends = [_number(end, about) for end in match.group("first", "last") if end is not None]
        if sorted(ends) != ends:
            raise CronError(f"{about.name} {part!r} ends before it begins: write it as two ranges")
        if match["step"] is not None and int(match["step"]) == 0:
            raise CronError(f"{about.name} {part!r} has a step of 0: give 1 or more")


def _number(said: str, about: _Field) -> int:
    """The number that one end of a range says. Raises CronError."""
    number = about.low + about.names.index(said) if said in about.names else int(said) if said.isdigit() else -1
    if not about.low <= number <= about.high:
        raise CronError(f"{about.name} {said!r} does not exist: give {_wanted(about)}")
    return number


def _wanted(about: _Field) -> str:
    names = f" (or {about.names[0]} to {about.names[-1]})" if about.names else ""
    return f"{about.low} to {about.high}{names}, *, a range such as 1-5, a step such as */2, or a list of these"


def _comes(expression: Expression) -> bool:
    """Whether it ever comes. Weekdays and leap days repeat within 40 years, a century without leap day included."""
    first = date(2000, 1, 1).toordinal()
    return any(expression.names_day(date.fromordinal(first + day)) for day in range(40 * 366))
