"""Parses cron expressions into the minutes, days and months that it names.

The grammar is in the docstring of `cron`. croniter accepts more than that, and misreads some of it: to croniter, the
range `5-5` is every value. So each field is checked here and rewritten in a form that croniter reads correctly;
croniter then computes the numbers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from croniter import croniter

from cron.errors import CronError

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_SYNONYMS = {"@midnight": "@daily", "@annually": "@yearly"}
MAX_TEXT = 256
"""The most characters of an expression."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class _Field(NamedTuple):
    """A field: its name, its lowest and highest number, the last number of `*`, and the names of its first numbers."""

    name: str
    low: int
    high: int
    end: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59, 59),
    _Field("hour", 0, 23, 23),
    _Field("day of month", 1, 31, 31),
    _Field("month", 1, 12, 12, _MONTHS),
    _Field("day of week", 0, 7, 6, _WEEKDAYS),
)
_EVERY = tuple(frozenset(range(about.low, about.end + 1)) for about in _FIELDS)
"""The numbers of `*` in each field. Expressions share them, since thousands are kept in memory."""
_DAY = tuple(range(24 * 60))
"""The minutes of a day, shared for the same reason."""
_BLANKS = " \t"
_PART = re.compile(r"(?:\*|(?P<first>[0-9]+|[a-z]{3})(?:-(?P<last>[0-9]+|[a-z]{3}))?)(?:/(?P<step>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. Two are equal when their texts are.

    `times`: minutes since midnight, in order. `weekdays`: 0 is Sunday. `either`: a day matches if its day of month or
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
        """Whether the expression is due on this day."""
        of_month, of_week = day.day in self.month_days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (of_month or of_week if self.either else of_month and of_week)


class AnyOf(NamedTuple):
    """Several expressions: due when any of them is, and once where several are. `text`: as `joined` writes them."""

    text: str
    parts: tuple[Expression, ...]


Times = Expression | AnyOf
"""When a Schedule is due."""
_BETWEEN = "; "


def joined(texts: Iterable[str]) -> str:
    """The text of several expressions, for `parse_all` and for people."""
    return _BETWEEN.join(texts)


def is_several(text: str) -> bool:
    """Whether a text for `parse_all` is of several expressions."""
    return _BETWEEN in text


@lru_cache(maxsize=1 << 12)
def parse_all(text: str) -> Times:
    """Parse an expression, or several that are `joined`. Raises CronError as `parse` does."""
    if not is_several(text):
        return parse(text)
    return AnyOf(text, tuple(map(parse, text.split(_BETWEEN))))


@lru_cache(maxsize=1 << 12)
def parse(text: str) -> Expression:
    """Parse an expression. Raises CronError if it does not follow the grammar in `cron`, or is never due."""
    if len(text) > MAX_TEXT:
        raise CronError(f"has {len(text)} characters: give at most {MAX_TEXT}, with ranges and steps in place of lists")
    fields = _fields(text.strip(_BLANKS))
    canonical = " ".join(
        ",".join(_canonical_part(part, about) for part in text.split(","))
        for text, about in zip(fields, _FIELDS, strict=True)
    )
    minutes, hours, month_days, months, weekdays = (
        every if "*" in named else frozenset(map(int, named))
        for named, every in zip(croniter.expand(canonical)[0], _EVERY, strict=True)
    )
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    times = tuple(_DAY[60 * hour + minute] for hour in sorted(hours) for minute in sorted(minutes))
    expression = Expression(text, times, month_days, months, weekdays, either, len(hours) == 24)
    if not _is_ever_due(expression):
        raise CronError(f"never comes: month {fields[3]} has no day {fields[2]}")
    return expression


def _fields(said: str) -> list[str]:
    """The five fields of a text or of a nickname. Raises CronError."""
    nickname = _SYNONYMS.get(said, said)
    if said.startswith("@") and nickname not in MACROS:
        raise CronError(f"{said[:32]!r} is not known: use one of {', '.join(MACROS)}, or five fields{_instead(said)}")
    fields = re.findall(f"[^{_BLANKS}]+", MACROS.get(nickname, said).lower())
    if "=" in said:
        raise CronError(f"has {len(fields)} fields, one with '=': leave TZ= and CRON_TZ= out, and set timeZone")
    if len(fields) != len(_FIELDS):
        raise CronError(
            f"has {len(fields)} fields: give minute, hour, day of month, month and day of week, for example 0 2 * * *"
        )
    return fields


def _instead(said: str) -> str:
    """The remedy for @every and @reboot, which name no times; empty for other nicknames."""
    said = said.lower()
    if said.startswith("@every"):
        times = _even_times(said.removeprefix("@every").strip(_BLANKS))
        if len(times) > 1:
            return f", or several in crons: {', '.join(map(repr, times))} in place of {said[:32]}"
        return f", for example {times[0]} in place of {said[:32]}" if times else _FOR_EXAMPLE
    return "; a host that was down runs what it missed without it" if said == "@reboot" else ""


_FOR_EXAMPLE = ", for example */15 * * * * in place of @every 15m; an interval must divide a day into equal parts"
_MAX_CRONS = 8  # as in crds/schedules.yaml


def _even_times(interval: str) -> list[str]:
    """The expressions for an interval such as 15m or 1h30m from midnight on; none where MAX_CRONS do not suffice."""
    sizes = {"h": 3600, "m": 60, "s": 1}
    if not re.fullmatch("([0-9]{1,6}[hms])+", interval):
        return []
    seconds = sum(int(number) * sizes[unit] for number, unit in re.findall("([0-9]+)([hms])", interval))
    if not seconds or seconds % 60 or 86400 % seconds:
        return []
    if 3600 % seconds == 0:
        return [f"{_stepped(range(0, 60, seconds // 60), 60)} * * * *"]
    hours: dict[int, list[int]] = {}
    for at in range(0, 24 * 60, seconds // 60):
        hours.setdefault(at % 60, []).append(at // 60)
    if len(hours) > _MAX_CRONS:
        return []
    return [f"{minute} {_stepped(its, 24)} * * *" for minute, its in sorted(hours.items())]


def _stepped(numbers: Sequence[int], count: int) -> str:
    """The field that names evenly spaced numbers below `count`."""
    if len(numbers) == 1:
        return str(numbers[0])
    step = numbers[1] - numbers[0]
    return "*" if step == 1 else f"{'*' if numbers[0] == 0 else numbers[0]}/{step}"


def _canonical_part(part: str, about: _Field) -> str:
    """One part of a field's list, in numbers that croniter reads correctly. Raises CronError."""
    match = _PART.fullmatch(part)
    if match is None:
        raise CronError(f"{about.name} {part[:32]!r} is not understood: give {_allowed(about)}")
    step = int(match["step"] or 1)
    if step == 0:
        raise CronError(f"{about.name} {part[:32]!r} has a step of 0: give 1 or more")
    first = about.low if match["first"] is None else _number(match["first"], about)
    last = about.end if match["step"] or match["first"] is None else first
    if match["last"] is not None:
        last = _number(match["last"], about)
        if last < first:
            raise CronError(
                f"{about.name} {part[:32]!r} ends before it begins: write it as two ranges, "
                f"{_range(first, about.high)},{_range(about.low, last)}"
            )
    elif last < first:  # day 7 with a step: crontab(5) has no such step, and CronJobs have no day 7
        raise CronError(f"{about.name} {part[:32]!r} goes on after the week's end: for Sunday and on, write 0/{step}")
    return f"{first}-{last}/{step}" if first + step <= last else str(first)  # croniter misreads a range of one value


def _range(first: int, last: int) -> str:
    return f"{first}-{last}" if first < last else str(first)


def _number(said: str, about: _Field) -> int:
    """The number of a name or of digits. Raises CronError."""
    number = about.low + about.names.index(said) if said in about.names else int(said) if said.isdigit() else -1
    if not about.low <= number <= about.high:
        raise CronError(f"{about.name} {said[:32]!r} does not exist: give {_allowed(about)}")
    return number


def _allowed(about: _Field) -> str:
    names = f" (or {about.names[0]} to {about.names[-1]})" if about.names else ""
    return f"{about.low} to {about.high}{names}, *, a range such as 1-5, a step such as */2, or a list of these"


def _is_ever_due(expression: Expression) -> bool:
    """Whether it is ever due. Weekdays and leap days repeat within 40 years, even across a century without a leap
    day."""
    first = date(2000, 1, 1).toordinal()
    return any(expression.names_day(date.fromordinal(first + day)) for day in range(40 * 366))
