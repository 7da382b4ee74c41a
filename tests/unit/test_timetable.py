"""Promises 2 and 5: the local cron fires each due time at most once and never early, and counts what it missed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cron
from agent.core import timetable
from agent.core.timetable import CORRECTION, MISSED_LIMIT, NEVER
from wire import entries
from wire.messages import Entry

AT = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BEGAN = AT - 365 * DAY


def entry(key: str = "s1", expression: str = "0 * * * *", since: datetime = BEGAN, **others: Any) -> Entry:
    return Entry(key, f"ns/{key}", expression, since, "1", **others)


def build(
    *held: Entry | bytes, passed: dict[str, datetime] | tuple[()] = (), now: datetime = AT, host: str = "node-1"
) -> timetable.Timetable:
    raws = [each if isinstance(each, bytes) else entries.encode_entry(each) for each in held]
    return timetable.build(entries.whole(raws), dict(passed), host, now)


def taken(table: timetable.Timetable, now: datetime) -> list[Any]:
    return [(due.entry.id, due.at, due.missed) for due in table.take(now)]


# On time.


def test_nothing_is_due_before_its_time_and_all_that_is_due_comes_together() -> None:
    table = build(entry("s1"), entry("s2"), entry("s3", "30 * * * *"))
    assert table.next_at == AT + 30 * MINUTE
    assert taken(table, AT + HOUR - timedelta(microseconds=1)) == [("s3", AT + 30 * MINUTE, 1)]
    assert sorted(taken(table, AT + HOUR)) == [("s1", AT + HOUR, 0), ("s2", AT + HOUR, 0)]
    assert taken(table, AT + HOUR) == []


def test_an_empty_timetable_waits_for_nothing() -> None:
    table = build()
    assert (table.next_at, len(table), table.take(AT)) == (NEVER, 0, [])


def test_the_time_from_which_it_counts_is_not_due_itself() -> None:
    assert build(entry(), passed={"s1": AT}).next_at == AT + HOUR
    assert build(entry(since=AT + 90 * MINUTE), passed={"s1": AT}).next_at == AT + 2 * HOUR


def test_a_host_fires_later_by_its_own_spread_and_never_before_the_due_time() -> None:
    offsets = set()
    for number in range(50):
        table = build(entry(spread_s=600), host=f"node-{number}")
        offset = table.next_at - AT
        assert offset == cron.spread(f"node-{number}", "s1", 600) or offset == HOUR
        offsets.add(offset)
    assert len(offsets) > 25


def test_a_spread_due_time_that_began_before_now_is_still_to_come() -> None:
    offset = cron.spread("node-1", "s1", 600)
    table = build(entry(spread_s=600), passed={"s1": AT - MINUTE}, now=AT)
    assert offset > MINUTE
    assert taken(table, AT + offset) == [("s1", AT + offset, 0)]


# Late.


@pytest.mark.parametrize(
    ("late", "missed"),
    [
        (timedelta(seconds=59.9), 0),
        (MINUTE, 1),
        (HOUR - MINUTE, 1),
        (HOUR, 2),
        (5 * HOUR + MINUTE, 6),
        (41 * DAY, 41 * 24 + 1),
        (42 * DAY, MISSED_LIMIT),
    ],
)
def test_of_many_missed_due_times_the_latest_comes_with_their_number(late: timedelta, missed: int) -> None:
    table = build(entry(), passed={"s1": AT}, now=AT)
    due = AT + HOUR
    assert taken(table, due + late) == [("s1", due + late // HOUR * HOUR, missed)]
    assert table.next_at == due + late // HOUR * HOUR + HOUR


def test_what_was_missed_before_the_start_comes_at_the_first_look() -> None:
    table = build(entry(), passed={"s1": AT - 3 * HOUR}, now=AT + MINUTE)
    assert taken(table, AT + MINUTE) == [("s1", AT, 3)]


def test_a_schedule_that_passed_nothing_yet_counts_from_now_and_a_new_one_from_its_beginning() -> None:
    assert build(entry(), now=AT + MINUTE).next_at == AT + HOUR
    assert build(entry(since=AT - MINUTE), passed={"s1": AT - DAY}, now=AT + MINUTE).next_at == AT


# Clocks that are set.


def test_a_clock_that_jumps_ahead_makes_one_run_of_all_that_it_skipped() -> None:
    table = build(entry("s1"), entry("s2", "0 0 * * *"), passed={"s1": AT, "s2": AT})
    assert sorted(taken(table, AT + 10 * DAY)) == [("s1", AT + 10 * DAY, 240), ("s2", AT + 10 * DAY, 10)]


def test_a_clock_that_is_set_back_a_little_repeats_nothing() -> None:
    table = build(entry(), passed={"s1": AT}, now=AT)
    taken(table, AT + HOUR)
    assert taken(table, AT + HOUR - CORRECTION) == []
    assert build(entry(), passed={"s1": AT + HOUR}, now=AT + HOUR - CORRECTION).next_at == AT + 2 * HOUR


def test_a_time_from_a_clock_that_was_far_ahead_does_not_silence_a_schedule() -> None:
    assert build(entry(), passed={"s1": AT + 365 * DAY}).next_at == AT + HOUR
    assert build(entry(since=AT + 365 * DAY)).next_at == AT + HOUR


@pytest.mark.parametrize("since", [datetime.min, datetime.max])
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue", "UTC"])
def test_the_first_and_last_times_that_can_be_said_hurt_nobody(since: datetime, zone: str) -> None:
    since = since.replace(tzinfo=UTC)
    table = build(entry("s1", time_zone=zone, since=since), entry("s2"), passed={"s1": since, "s2": AT})
    assert len(table) == 2
    assert [key for key, _, _ in taken(table, AT + HOUR)] == ["s1", "s2"]


# What cannot be understood.


def test_entries_that_cannot_be_understood_are_reported_and_the_others_fire() -> None:
    table = build(
        entry("s1"),
        entry("cron", "61 * * * *"),
        entry("never", "0 0 30 2 *"),
        entry("zone", time_zone="Mars/Olympus"),
        b'{"id":"later","name":"ns/later","cron":"@daily","since":"2026-01-01T00:00:00Z","revision":"1",'
        b'"missed_run_policy":"Always"}',
        b'{"id":"torn"}',
    )
    assert taken(table, AT + HOUR) == [("s1", AT + HOUR, 0)]
    assert {key: problem.partition(":")[0] for key, problem in table.problems.items()} == {
        "cron": "minute '61' does not exist",
        "never": "never comes",
        "zone": "'Mars/Olympus' is not a time zone",
        "later": "Invalid enum value 'Always' - at `$.missed_run_policy`",
        "torn": "Object missing required field `name`",
    }


def test_disabled_entries_are_left_out_in_silence_whatever_they_say() -> None:
    table = build(entry("s1", enabled=False), entry("s2", "61 * * * *", enabled=False), entry("s3"))
    assert (len(table), table.problems) == (1, {})


# Any.


EXPRESSIONS = st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "15 3 * * 0", "0 0 1 * *"])
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
OFFSETS = st.integers(-36_000, 0).map(lambda seconds: timedelta(seconds=seconds))
SLOTS = st.lists(st.tuples(EXPRESSIONS, ZONES, st.sampled_from([0, 0, 90, 600]), OFFSETS), max_size=6)


@given(SLOTS, st.lists(st.integers(0, 7200), max_size=20))
def test_each_due_time_is_taken_or_counted_once_and_none_before_its_time(
    slots: list[tuple[str, str, int, timedelta]], steps: list[Any]
) -> None:
    held = [entry(f"s{at}", text, time_zone=name, spread_s=width) for at, (text, name, width, _) in enumerate(slots)]
    passed = {f"s{at}": AT + offset for at, (_, _, _, offset) in enumerate(slots)}
    table, now = build(*held, passed=passed), AT
    counted = dict.fromkeys(passed, 0)
    for step in [0, *steps]:
        now += timedelta(seconds=step)
        for due in table.take(now):
            assert passed[due.entry.id] < due.at <= now
            passed[due.entry.id] = due.at
            counted[due.entry.id] += max(1, due.missed)
        assert table.next_at > now
    for each, (text, name, _, offset) in zip(held, slots, strict=True):
        shift = cron.spread("node-1", each.id, each.spread_s)
        missed = cron.catch_up(cron.parse(text), cron.zone(name), AT + offset - shift, now - shift, 10**6)
        assert counted[each.id] == (missed.times if missed else 0)


@given(SLOTS)
def test_entries_of_one_expression_are_due_as_if_each_stood_alone(slots: list[tuple[str, str, int, timedelta]]) -> None:
    held = [entry(f"s{at}", text, time_zone=name, spread_s=width) for at, (text, name, width, _) in enumerate(slots)]
    passed = {f"s{at}": AT + offset for at, (_, _, _, offset) in enumerate(slots)}
    together = build(*held, passed=passed).take(AT + DAY)
    alone = [due for each in held for due in build(each, passed=passed).take(AT + DAY)]
    assert sorted((*due[1:], due.entry.id) for due in together) == sorted((*due[1:], due.entry.id) for due in alone)
