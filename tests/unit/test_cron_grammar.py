"""Promise 5: `cron` reads every expression as a second, independent reading of the grammar does."""

import os
import random
import re
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from cron import CronError, next_due, parse, zone

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
WEEKDAYS = "sun mon tue wed thu fri sat"
VALUES = {
    "minute": (range(60), {}),
    "hour": (range(24), {}),
    "day of month": (range(1, 32), {}),
    "month": (range(1, 13), {name: number for number, name in enumerate(MONTHS.split(), start=1)}),
    "day of week": (range(8), {name: number for number, name in enumerate(WEEKDAYS.split())}),
}
Window = list[tuple[datetime, int, int, int, int, int]]
TRIED = 1000 * int(os.environ.get("LAMPLIGHTER_FUZZ", "1"))
"""Random expressions: 20,000 in `make faults`."""


def named(said: str, about: str) -> set[int] | None:
    """The numbers that a field names; None where it is none of the grammar."""
    parts = [part_named(part, *VALUES[about]) for part in said.split(",")]
    numbers = {it for part in parts if part is not None for it in part}
    return None if None in parts else {it % 7 if about == "day of week" else it for it in numbers}


def part_named(part: str, values: range, names: dict[str, int]) -> set[int] | None:
    head, slash, step = part.partition("/")
    first, dash, last = head.partition("-")
    one, other = (names[it] if it in names else int(it) if re.fullmatch("[0-9]+", it) else -1 for it in (first, last))
    if slash and not re.fullmatch("0*[1-9][0-9]*", step):
        return None
    if head == "*":
        found = list(values)
    elif dash:
        found = [it for it in values if one <= it <= other] if {one, other} <= set(values) else []
    elif not slash:
        found = [one] if one in values else []
    else:
        found = [it for it in values if one <= it and (len(values), it) != (8, 7)] if one in values else []
    return set(found[:: int(step or 1)]) or None


def understood(said: str, about: str) -> set[int] | None:
    """The numbers by `parse`; None where it refuses the field."""
    at = list(VALUES).index(about)
    fields = ["0", "0", "*", "*", "*"]
    fields[at] = said
    try:
        found = parse(" ".join(fields))
    except CronError:
        return None
    times = [{time % 60 for time in found.times}, {time // 60 for time in found.times}]
    return set([*times, found.month_days, found.months, found.weekdays][at])


PARTS = {
    "minute": "* */7 */60 */0 0 5 59 60 0-0 5-5 5-5/3 5-9 5-29/3 0-59 0-60 9-5 58-59/3 5/9 59/2 0/60 x 5-",
    "hour": "* */5 */ 0 7 23 24 7-7 0-23 0-24 7-19/6 22-2 23-23/2 7/8",
    "day of month": "* */2 */31 0 1 31 32 1-1 1-31 0-5 8-14 9-20/4 3/9",
    "month": "* */3 0 1 12 13 jan dec sun mar-3/9 3-mar feb-11/2 2-2 dec-jan 4/4 nov/2",
    "day of week": "* */2 */7 0 6 7 8 sun sat 3-3 0-0 7-7 0-7 5-7 6-7/2 1-7/2 0-6/3 fri-mon mon-5 5/2 sun/3 7/2",
}


@pytest.mark.parametrize("about", PARTS)
def test_each_list_of_up_to_three_parts_names_what_plain_sets_name(about: str) -> None:
    for length in (1, 2, 3):
        for parts in product(PARTS[about].split(), repeat=length):
            said = ",".join(parts)
            assert understood(said, about) == named(said, about), said


@pytest.mark.parametrize(
    ("about", "letters"), [("minute", "*-/,15"), ("day of month", "*-/,03"), ("day of week", "*-/,67")]
)
def test_each_text_of_up_to_five_characters_is_read_or_refused_as_plain_sets_say(about: str, letters: str) -> None:
    for length in range(1, 6):
        for said in map("".join, product(letters, repeat=length)):
            assert understood(said, about) == named(said, about), said


MINUTE = timedelta(minutes=1)
DAYS = ["2024-02-29", "2025-02-28", "2025-12-31", "2026-03-31", "2026-06-13", "2026-08-14", "2027-01-01", "2028-04-30"]


def minutes_from(day: str) -> list[Any]:
    """Two days of minutes, each with its numbers in the order of the fields."""
    moments = [datetime.fromisoformat(day).replace(tzinfo=UTC) + step * MINUTE for step in range(2 * 24 * 60)]
    return [(at, at.minute, at.hour, at.day, at.month, at.isoweekday() % 7) for at in moments]


def test_random_expressions_are_due_in_the_minutes_that_plain_sets_name_and_in_no_other() -> None:
    rng = random.Random(8)
    windows = [minutes_from(day) for day in DAYS]
    for _ in range(TRIED):
        fields = [random_field(rng, about) for about in VALUES]
        window = rng.choice(windows)
        assert dues_within(" ".join(fields), window) == dues_by_sets(fields, window)[:3], " ".join(fields)


def dues_by_sets(fields: list[str], window: Window) -> list[datetime]:
    minutes, hours, days, months, weekdays = (
        named(said, about) or set() for said, about in zip(fields, VALUES, strict=True)
    )
    both = fields[2].startswith("*") or fields[4].startswith("*")
    return [
        at
        for at, minute, hour, day, month, weekday in window
        if minute in minutes
        and hour in hours
        and month in months
        and (day in days and weekday in weekdays if both else day in days or weekday in weekdays)
    ]


def dues_within(text: str, window: Window) -> list[datetime] | CronError:
    """The first three due times within a window."""
    try:
        expression = parse(text)
    except CronError as error:
        return [] if "never comes" in str(error) else error
    found: list[datetime] = []
    due = window[0][0] - MINUTE
    while len(found) < 3 and (due := next_due(expression, zone("UTC"), due)) <= window[-1][0]:
        found.append(due)
    return found


def random_field(rng: random.Random, about: str) -> str:
    """A star, or a list of up to three parts of all forms."""
    values, names = VALUES[about]
    number = dict(zip(map(str, values), values, strict=True)) | names

    def part() -> str:
        first, last = sorted(rng.choices(list(number), k=2), key=number.__getitem__)
        step = rng.choice(["", f"/{rng.randint(1, len(values) + 2)}"])
        single = first if (about, number[first]) == ("day of week", 7) else first + step
        return rng.choice([f"*{step}", f"{first}-{last}{step}", f"{first}-{first}{step}", single])

    return "*" if rng.random() < 0.4 else ",".join(part() for _ in range(rng.randint(1, 3)))
