"""Promise 5: what an expression says, and when it is due in its zone, by crontab(5), cron(8) and PEP 495."""

import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cron import CronError, Missed, catch_up, due_times, is_due, joined, next_due, parse, parse_all, spread, zone
from cron.expression import Expression

BERLIN, NEW_YORK, UTC_ZONE = zone("Europe/Berlin"), zone("America/New_York"), zone("UTC")
MINUTE = timedelta(minutes=1)


def at(text: str, name: str = "UTC") -> datetime:
    """A moment, by the wall clock of a zone; a `*` after it is the second time that the clock shows it."""
    moment = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=zone(name), fold=int(text.endswith("*")))
    return moment.astimezone(UTC)


def dues(text: str, after: str, count: int, name: str = "UTC") -> list[str]:
    """The next due times, as the wall clock of the zone shows them."""
    shown, moment = [], at(after, name)
    for _ in range(count):
        moment = next_due(parse(text), zone(name), moment)
        local = moment.astimezone(zone(name))
        shown.append(f"{local:%Y-%m-%d %H:%M}{'*' * local.fold}")
    return shown


# What an expression says.


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@midnight", "0 0 * * *"),
        ("@annually", "0 0 1 1 *"),
        (" @daily ", "0 0 * * *"),
        ("0 0 * jan,Mar-MAY sun", "0 0 * 1,3-5 0"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * mon-fri", "0 0 * * 1-5"),
        ("*/20 8-18/5 * * *", "0,20,40 8,13,18 * * *"),
        ("5/15 0 1/10 11/1 *", "5,20,35,50 0 1,11,21,31 11,12 *"),
        ("0-59/99 0 * * *", "0 0 * * *"),
        ("1,1,*/30 0 * * *", "0,1,30 0 * * *"),
        ("0  0\t* * *", "0 0 * * *"),
        ("00 02 09 * *", "0 2 9 * *"),
        ("  0 2 * * * ", "0 2 * * *"),
        ("007 2 * * */007", "7 2 * * 0"),
        ("0 2 * * 3-3", "0 2 * * 3"),
        ("5-5 * * * *", "5 * * * *"),
        ("0 0 * mar-3/9 *", "0 0 * 3 *"),
        ("0-0/9 0-0 * * sun-0", "0 0 * * 0"),
        ("0 0 * * 7-7/1", "0 0 * * 0"),
        ("0 0 * * 6-7/2", "0 0 * * 6"),
        ("0 0 * * 5/2,2/2", "0 0 * * 2,4,5,6"),
        ("*/100 */24 * * *", "0 0 * * *"),
    ],
)
def test_names_ranges_steps_lists_and_macros_name_numbers(text: str, same: str) -> None:
    one, other = parse(text), parse(same)
    names = ("times", "month_days", "months", "weekdays", "either", "hourly")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("60 * * * *", "minute '60' does not exist: give 0 to 59"),
        ("* 24 * * *", "hour '24' does not exist: give 0 to 23"),
        ("* * 0 * *", "day of month '0' does not exist: give 1 to 31"),
        ("* * * 13 *", "month '13' does not exist: give 1 to 12 (or jan to dec)"),
        ("* * * * 8", "day of week '8' does not exist: give 0 to 7 (or sun to sat)"),
        ("* * * sun *", "month 'sun' does not exist"),
        ("0 0 * * monday", "day of week 'monday' is not understood"),
        ("a * * * *", "minute 'a' is not understood"),
        ("-1 * * * *", "minute '-1' is not understood"),
        ("1, * * * *", "minute '' is not understood"),
        ("*/ * * * *", "minute '*/' is not understood"),
        ("*/0 * * * *", "minute '*/0' has a step of 0: give 1 or more"),
        ("1-2-3 * * * *", "minute '1-2-3' is not understood"),
        ("1.5 * * * *", "minute '1.5' is not understood"),
        ("٣ * * * *", "minute '٣' is not understood"),
        ("* 22-2 * * *", "hour '22-2' ends before it begins: write it as two ranges"),
        ("* * * * sat-sun", "day of week 'sat-sun' ends before it begins"),
        ("* 22-2 * * *", "hour '22-2' ends before it begins: write it as two ranges, 22-23,0-2"),
        ("* * * * fri-mon", "day of week 'fri-mon' ends before it begins: write it as two ranges, 5-7,0-1"),
        ("* * * dec-jan/2 *", "month 'dec-jan/2' ends before it begins: write it as two ranges, 12,1"),
        ("* * * * 7/2", "day of week '7/2' goes on after the week's end: for Sunday and on, write 0/2"),
        ("mar-3/9 * * * *", "minute 'mar' does not exist"),
        ("100 * * * *", "minute '100' does not exist: give 0 to 59"),
        ("* * * * mon-fri-sun", "day of week 'mon-fri-sun' is not understood"),
        ("*-5 * * * *", "minute '*-5' is not understood"),
        ("*/5/5 * * * *", "minute '*/5/5' is not understood"),
        ("5~9 * * * *", "minute '5~9' is not understood"),
        ("+5 * * * *", "minute '+5' is not understood"),
        ("0 0 * * *\n", "day of week '*\\n' is not understood"),
        ("0\u00a00 * * *", "has 4 fields"),
        ("@Daily", "'@Daily' is not known: use one of @hourly, @daily"),
        ("@every 15m", "for example */15 * * * * in place of @every 15m"),
        ("@Every 15m", "for example */15 * * * * in place of @every 15m"),
        ("@reboot", "a host that was down runs what it missed without it"),
        ("@REBOOT", "a host that was down runs what it missed without it"),
        ("CRON_TZ=UTC 0 0 * * *", "one with '=': leave TZ= and CRON_TZ= out, and set timeZone"),
        ("* * L * *", "day of month 'l' is not understood"),
        ("* * ? * *", "day of month '?' is not understood"),
        ("* * * * 5#2", "day of week '5#2' is not understood"),
        ("H * * * *", "minute 'h' is not understood"),
        ("* * * *", "has 4 fields: give minute, hour, day of month, month and day of week"),
        ("0 * * * * *", "has 6 fields"),
        ("", "has 0 fields"),
        ("@reboot", "'@reboot' is not known: use one of @hourly, @daily, @weekly, @monthly, @yearly, or five fields"),
        ("@every 5m", "'@every 5m' is not known"),
        ("TZ=UTC 0 0 * * *", "has 6 fields"),
        ("0 0 30 2 *", "never comes: month 2 has no day 30"),
        ("0 0 31 4,6,sep,11 *", "never comes: month 4,6,sep,11 has no day 31"),
        ("0 0 " + "1," * 500_000 + "1 * *", "has 1000009 characters: give at most 256"),
    ],
)
def test_what_is_no_expression_is_refused_with_its_field_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(CronError, match=re.escape(says)) as refused:
        parse(text)
    assert len(str(refused.value)) < 300


@given(st.text(alphabet="0123456789*/-,@ lLw#?janmonday\t\0é", max_size=300) | st.text())
def test_any_text_is_either_understood_or_refused(text: Any) -> None:
    with suppress(CronError):
        assert parse(text).times


# Time zones.

ZONES = files("tzdata").joinpath("zones").read_text().split()


def test_every_zone_of_the_package_is_known_but_factory() -> None:
    assert [name for name in ZONES if name != "Factory" and zone(name).key != name] == []
    assert zone("Europe/Berlin") is zone("Europe/Berlin")  # due times are remembered by it


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "/etc/passwd", "../../etc/passwd", "Europe", "a" * 9999, "é\0"])
def test_a_zone_that_is_not_known_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(CronError, match="give an IANA name, for example Europe/Berlin") as refused:
        zone(name)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, ": give an IANA") for name in ("localtime", "posixrules", "Factory", "Local", "local", "PST", "Z")),
        *((name, "an offset, which") for name in ("+02:00", "-5", "UTC+2", "GMT-03:00", "gmt+2", "UTC0")),
        *((f"{folder}/Europe/Berlin", "did you mean Europe/Berlin?") for folder in ("posix", "right", "Africa")),
        *(
            (name, "did you mean Europe/Berlin?")
            for name in ("europe/berlin", "EUROPE/BERLIN", "Berlin", "Europe/Berln")
        ),
        *((name, "did you mean UTC?") for name in ("utc", "posix/UTC", "right/utc")),
        ("Europe/New_York", "did you mean America/New_York?"),
        ("etc/gmt+5", "did you mean Etc/GMT+5?"),
    ],
)
def test_a_name_that_only_some_machines_know_is_refused_with_the_nearest_one(name: str, says: str) -> None:
    with pytest.raises(CronError, match=re.escape(says)):
        zone(name)


def test_the_rules_are_those_of_the_package_and_not_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "Europe").mkdir()
    for name in ("Europe/Berlin", "Mars"):
        (tmp_path / name).write_bytes(files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").read_bytes())
    berlin = "cron.zone('Europe/Berlin').utcoffset(datetime.datetime.min)"
    program = f"import cron, datetime; print({berlin}); cron.zone('Mars')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONTZPATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "0:53:28\n"  # Berlin's local mean time
    assert "'Mars' is not a time zone" in run.stderr


# On which days.


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 0 13 * *", [13]),
        ("0 0 * * fri", [6, 13, 20, 27]),
        ("0 0 13 * fri", [6, 13, 20, 27]),
        ("0 0 1,15 * fri", [1, 6, 13, 15, 20, 27]),
        ("0 0 */10 * fri", []),  # Debian's cron: a field that begins with * is not restricted, and then both must match
        ("0 0 */2 * fri", [13, 27]),
        ("0 0 *,13 * fri", [6, 13, 20, 27]),
        ("0 0 13,*/10 * fri", [1, 6, 11, 13, 20, 21, 27, 31]),  # the * must come first
        ("0 0 13 * 5,*/7", [1, 6, 8, 13, 15, 20, 22, 27, 29]),
        ("0 0 8-14 * */5", [8, 13]),  # Sundays and Fridays of the second week
        ("0 0 1-31 * fri", list(range(1, 32))),
    ],
)
def test_either_day_counts_when_both_are_restricted_and_else_both(text: str, days: list[int]) -> None:
    expression = parse(text)
    assert [day for day in range(1, 32) if expression.names_day(date(2026, 3, day))] == days


def test_a_leap_day_is_waited_for_also_over_the_century_that_has_none() -> None:
    assert dues("0 0 29 2 *", "2026-01-01 00:00", 2) == ["2028-02-29 00:00", "2032-02-29 00:00"]
    assert dues("0 0 29 2 *", "2096-02-29 00:00", 1) == ["2104-02-29 00:00"]
    assert dues("0 0 29 2 */7", "2088-02-29 00:00", 1) == ["2128-02-29 00:00"]  # Sundays: none for 40 years


def test_months_that_lack_the_day_are_passed_over() -> None:
    assert dues("0 0 31 * *", "2026-01-31 00:00", 3) == ["2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00"]


# On the days on which clocks are changed.


@pytest.mark.parametrize(
    ("name", "text", "after", "comes"),
    [
        # Europe/Berlin 2026-03-29: 02:00 → 03:00; 2026-10-25: 03:00 → 02:00.
        (
            "Europe/Berlin",
            "0 2 * * *",
            "2026-03-28 00:00",
            ["2026-03-28 02:00", "2026-03-29 03:00", "2026-03-30 02:00"],
        ),
        ("Europe/Berlin", "0 2 * * *", "2026-10-24 12:00", ["2026-10-25 02:00", "2026-10-26 02:00"]),
        ("Europe/Berlin", "59 2 * * *", "2026-10-24 12:00", ["2026-10-25 02:59", "2026-10-26 02:59"]),
        ("Europe/Berlin", "30 2,3 * * *", "2026-03-28 12:00", ["2026-03-29 03:00", "2026-03-29 03:30"]),
        ("Europe/Berlin", "*/30 2 * * *", "2026-03-28 12:00", ["2026-03-29 03:00", "2026-03-30 02:00"]),
        ("Europe/Berlin", "0 3 * * *", "2026-03-28 12:00", ["2026-03-29 03:00", "2026-03-30 03:00"]),
        ("Europe/Berlin", "0 * * * *", "2026-03-29 00:30", ["2026-03-29 01:00", "2026-03-29 03:00"]),
        (
            "Europe/Berlin",
            "0 * * * *",
            "2026-10-25 01:30",
            ["2026-10-25 02:00", "2026-10-25 02:00*", "2026-10-25 03:00"],
        ),
        ("Europe/Berlin", "55 * * * *", "2026-10-25 02:56", ["2026-10-25 02:55*", "2026-10-25 03:55"]),
        # America/New_York 2026-03-08: 02:00 → 03:00; 2026-11-01: 02:00 → 01:00.
        ("America/New_York", "30 2 * * *", "2026-03-07 12:00", ["2026-03-08 03:00", "2026-03-09 02:30"]),
        ("America/New_York", "30 1 * * *", "2026-10-31 12:00", ["2026-11-01 01:30", "2026-11-02 01:30"]),
        ("America/New_York", "30 1 1 11 *", "2026-11-01 01:15*", ["2027-11-01 01:30"]),
        # Australia/Lord_Howe, by half an hour: 2026-10-04: 02:00 → 02:30; 2026-04-05: 02:00 → 01:30.
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", ["2026-10-04 02:30", "2026-10-05 02:15"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04 12:00", ["2026-04-05 01:45", "2026-04-06 01:45"]),
        ("Australia/Lord_Howe", "0 * * * *", "2026-10-04 01:00", ["2026-10-04 03:00", "2026-10-04 04:00"]),
        ("Australia/Lord_Howe", "45 * * * *", "2026-04-05 01:00", ["2026-04-05 01:45", "2026-04-05 01:45*"]),
        # At midnight: America/Havana 2026-03-08: 00:00 → 01:00; 2026-11-01: 01:00 → 00:00.
        ("America/Havana", "@daily", "2026-03-07 12:00", ["2026-03-08 01:00", "2026-03-09 00:00"]),
        ("America/Havana", "@daily", "2026-10-31 12:00", ["2026-11-01 00:00", "2026-11-02 00:00"]),
        ("America/Havana", "0 0 8 3 *", "2026-03-01 00:00", ["2026-03-08 01:00", "2027-03-08 00:00"]),
        # Back over midnight, so that a day begins twice: Africa/Cairo 2026-10-30: 00:00 → 2026-10-29 23:00.
        ("Africa/Cairo", "@daily", "2026-10-28 12:00", ["2026-10-29 00:00", "2026-10-30 00:00", "2026-10-31 00:00"]),
        ("Africa/Cairo", "30 23 * * *", "2026-10-29 12:00", ["2026-10-29 23:30", "2026-10-30 23:30"]),
        # A whole day that clocks skipped: Pacific/Apia 2011-12-30.
        ("Pacific/Apia", "0 9 * * *", "2011-12-29 00:00", ["2011-12-29 09:00", "2011-12-31 00:00", "2011-12-31 09:00"]),
        # Elsewhere the offset is no whole hour, and clocks stay.
        ("Asia/Kathmandu", "0 2 * * *", "2026-03-28 12:00", ["2026-03-29 02:00", "2026-03-30 02:00"]),
    ],
)
def test_a_time_that_is_skipped_comes_at_the_change_and_one_that_repeats_comes_once(
    name: str, text: str, after: str, comes: list[str]
) -> None:
    assert dues(text, after, len(comes), name) == comes


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"])
def test_a_daily_time_comes_once_on_each_day_of_a_year(name: str) -> None:
    for hour in range(4):
        comes = dues(f"30 {hour} * * *", "2025-12-31 12:00", 365, name)
        assert len({shown[:10] for shown in comes}) == 365


# For any expression.


def numbers(low: int, high: int) -> st.SearchStrategy[str | Any]:
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    steps = st.tuples(ranges | st.just("*"), st.integers(1, 30)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.just("*") | st.lists(number.map(str) | ranges | steps, min_size=1, max_size=3).map(",".join)


FIELDS = st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 28), numbers(1, 12), numbers(0, 6))
EXPRESSIONS = FIELDS.map(lambda fields: parse(" ".join(fields)))
DAILY = st.tuples(numbers(0, 59), numbers(0, 23)).map(lambda pair: parse(f"{pair[0]} {pair[1]} * * *"))
CHANGES = [
    (name, at(change))
    for name, change in [
        ("Europe/Berlin", "2026-03-29 01:00"),
        ("Europe/Berlin", "2026-10-25 01:00"),
        ("America/New_York", "2026-03-08 07:00"),
        ("America/New_York", "2026-11-01 06:00"),
        ("Australia/Lord_Howe", "2026-04-04 15:00"),
        ("Australia/Lord_Howe", "2026-10-03 15:30"),
        ("America/Havana", "2026-03-08 05:00"),
        ("America/Havana", "2026-11-01 05:00"),
        ("Africa/Cairo", "2026-10-29 21:00"),
        ("America/St_Johns", "2026-11-01 04:30"),
    ]
]
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


def read(expression: Any, name: Any, first: Any, last: Any) -> list[Any]:
    """The due times by the letter of cron(8): a clerk who looks at the wall clock every minute."""
    shown, due, seen = None, [], set()
    for minute in range(int((last - first) / MINUTE)):
        moment = first + minute * MINUTE
        wall = moment.astimezone(zone(name)).replace(tzinfo=None, fold=0)
        # Where clocks have been set forward, the clerk catches up with the times that they skipped.
        walls = [wall] if shown is None or wall <= shown else _minutes(shown, wall)
        shown = wall
        named = [each for each in walls if _names(expression, each)]
        if expression.hourly:
            due += [moment] if wall in named else []
        elif any(each not in seen for each in named):
            due.append(moment)
        seen.update(named)
    return due


def _minutes(after: Any, last: Any) -> list[Any]:
    return [after + step * MINUTE for step in range(1, int((last - after) / MINUTE) + 1)]


def _names(expression: Any, wall: Any) -> Any:
    return 60 * wall.hour + wall.minute in expression.times and expression.names_day(wall.date())


@settings(max_examples=150)
@given(EXPRESSIONS | DAILY, st.sampled_from(CHANGES), st.integers(0, 6 * 60))
def test_around_a_change_of_clocks_it_comes_as_a_minute_by_minute_reading_says(
    expression: Any, change: Any, back: int
) -> None:
    name, moment = change
    first, last = moment - timedelta(hours=12), moment + timedelta(hours=18)
    expected = [due for due in read(expression, name, first, last) if due > moment - back * MINUTE]
    comes, due = [], moment - back * MINUTE
    while (due := next_due(expression, zone(name), due)) < last:
        comes.append(due)
    assert comes == expected


@given(EXPRESSIONS, st.sampled_from(CHANGES), st.lists(st.integers(-86400, 86400), min_size=2, max_size=9))
def test_the_next_due_time_is_later_and_grows_with_the_time_and_is_its_own_answer(
    expression: Expression, change: Any, offsets: list[Any]
) -> None:
    name, moment = change
    for earlier, later in pairwise(sorted(moment + timedelta(seconds=offset) for offset in offsets)):
        due = next_due(expression, zone(name), earlier)
        assert earlier < due <= next_due(expression, zone(name), later)
        assert next_due(expression, zone(name), due - timedelta(microseconds=1)) == due


@given(FIELDS, MOMENTS)
def test_in_utc_it_agrees_with_croniter(fields: tuple[Any, Any, Any, Any, Any], moment: datetime) -> None:
    assume(not re.search(r"\b(\d+)-\1\b", " ".join(fields)))  # to croniter, `5-5` is every minute
    assume("*" in (fields[2], fields[4]) or "*" not in fields[2] + fields[4])  # to croniter, `*/2` is a restriction
    assume(len(parse(" ".join(fields)).weekdays) < 7 or fields[4] == "*")  # and `0-6` is none
    text = " ".join(fields)
    assert next_due(parse(text), UTC_ZONE, moment) == croniter(text, moment).get_next(datetime)


# What was missed.


@given(EXPRESSIONS | DAILY, st.sampled_from(CHANGES), st.lists(st.integers(-6 * 60, 6 * 60), min_size=1, max_size=40))
def test_a_time_is_due_just_when_it_is_the_next_one_after_the_moment_before(
    expression: Any, change: Any, minutes: list[Any]
) -> None:
    name, moment = change
    about = [moment + minute * MINUTE for minute in minutes]
    for at in [*about, next_due(expression, zone(name), moment), *(it + timedelta.resolution for it in about)]:
        assert is_due(expression, zone(name), at) == (next_due(expression, zone(name), at - timedelta.resolution) == at)


@given(EXPRESSIONS | DAILY, st.sampled_from(CHANGES), st.integers(0, 2 * 86400), st.integers(1, 40))
def test_catching_up_is_going_from_one_due_time_to_the_next(
    expression: Any, change: Any, seconds: int, limit: int
) -> None:
    name, after = change[0], change[1] - timedelta(days=1)
    now = after + timedelta(seconds=seconds)
    latest, times = after, 0
    while (due := next_due(expression, zone(name), latest)) <= now:
        latest, times = due, times + 1
    missed = catch_up(expression, zone(name), after, now, limit)
    assert missed == (Missed(latest, min(times, limit)) if times else None)


def test_the_latest_of_millions_is_found_without_counting_them() -> None:
    now = at("2026-03-29 03:00:30", "Europe/Berlin")
    assert catch_up(parse("* * * * *"), BERLIN, at("1990-01-01 00:00"), now, 999) == Missed(now - MINUTE / 2, 999)
    assert catch_up(parse("0 2 * * *"), BERLIN, at("1990-01-01 00:00"), now, 9) == Missed(now - MINUTE / 2, 9)


def test_nothing_was_missed_up_to_the_minute_before() -> None:
    due, daily = at("2026-03-29 02:00"), parse("0 2 * * *")
    assert catch_up(daily, UTC_ZONE, due - timedelta(days=1), due - timedelta(microseconds=1), 9) is None
    assert catch_up(daily, UTC_ZONE, due - timedelta(days=1), due, 9) == Missed(due, 1)
    assert catch_up(daily, UTC_ZONE, due, due - timedelta(days=9), 9) is None


# Spread.


def test_a_host_keeps_its_offset_within_the_width() -> None:
    assert spread("node-1", "s1", 600) == spread("node-1", "s1", 600) == timedelta(seconds=427)
    assert spread("node-1", "s1", 0) == timedelta()
    assert spread("node-1", "s1", 1) == timedelta()


@given(st.text(), st.text(), st.integers(1, 10**6))
def test_any_offset_is_of_whole_seconds_below_the_width(host: str, schedule_id: str, width: int) -> None:
    offset = spread(host, schedule_id, width)
    assert timedelta() <= offset < timedelta(seconds=width)
    assert offset.microseconds == 0


def test_a_fleet_is_spread_evenly() -> None:
    minutes = Counter(spread(f"node-{n}", "s1", 600) // MINUTE for n in range(10_000))
    assert sorted(minutes) == list(range(10))
    assert all(850 < hosts < 1150 for hosts in minutes.values())  # 1,000 ± 5 standard deviations


def test_two_schedules_of_a_host_are_spread_apart_and_names_do_not_run_together() -> None:
    assert spread("node-1", "s1", 3600) != spread("node-1", "s2", 3600)
    assert spread("ab", "c", 10**6) != spread("a", "bc", 10**6)


# Several expressions.

SEVERAL = [
    "0 2 * * *",
    "30 2 * * *",
    "0 3 * * *",
    "*/15 * * * *",
    "0 * * * *",
    "30 1-3 * * 0",
    "15 14 1 * *",
    "@weekly",
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(SEVERAL), min_size=2, max_size=4),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
    st.sampled_from(
        ["2026-03-28 22:00", "2026-03-07 20:00", "2026-10-24 22:00", "2026-10-31 22:00", "2026-12-31 20:00"]
    ),
)
def test_several_expressions_are_due_when_any_is_and_once_for_a_time_that_they_share(
    texts: list[str], name: str, begin: str
) -> None:
    """On the days on which clocks change, too, where skipped times of several fall together."""
    several, start = parse_all(joined(texts)), at(begin)
    end = start + timedelta(hours=40)
    each = [set(due_times(parse(text), zone(name), start, end)) for text in texts]
    assert list(due_times(several, zone(name), start, end)) == sorted(set().union(*each))
    for quarter in range(1, 40 * 4):
        moment = start + 15 * quarter * MINUTE
        assert is_due(several, zone(name), moment) == any(moment in its for its in each)
    late = catch_up(several, zone(name), start, end, limit=1000)
    assert late == (max(set().union(*each)), len(set().union(*each))) if any(each) else late is None


def test_several_expressions_are_shown_in_one_line_and_each_must_be_right() -> None:
    assert joined(["0 2 * * *", "@weekly"]) == "0 2 * * *; @weekly"
    with pytest.raises(CronError, match="hour '24' does not exist"):
        parse_all(joined(["0 2 * * *", "0 24 * * *"]))


@pytest.mark.parametrize(
    ("interval", "instead"),
    [
        ("1m", ["* * * * *"]),
        ("15m", ["*/15 * * * *"]),
        ("60m", ["0 * * * *"]),
        ("6h", ["0 */6 * * *"]),
        ("24h", ["0 0 * * *"]),
        ("1h30m", ["0 */3 * * *", "30 1/3 * * *"]),
        ("45m", ["0 */3 * * *", "15 2/3 * * *", "30 1/3 * * *", "45 */3 * * *"]),
    ],
)
def test_an_interval_is_refused_with_the_expressions_that_are_due_as_often(interval: str, instead: list[str]) -> None:
    with pytest.raises(CronError, match="or five fields") as refused:
        parse(f"@every {interval}")
    assert all(text in str(refused.value) for text in instead)
    due = list(due_times(parse_all(joined(instead)), UTC_ZONE, at("2026-05-01 00:00") - MINUTE, at("2026-05-03 00:00")))
    assert len({later - earlier for earlier, later in pairwise(due)}) == 1
    assert due[0] == at("2026-05-01 00:00")


@pytest.mark.parametrize("interval", ["7m", "36h", "30s", "0m", "32m", "1x", "", "9999999h"])
def test_an_interval_that_divides_no_day_is_refused_with_an_example(interval: str) -> None:
    with pytest.raises(CronError, match=r"for example \*/15 \* \* \* \* in place of @every 15m"):
        parse(f"@every {interval}")
