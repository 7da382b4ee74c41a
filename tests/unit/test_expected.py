"""Promise 10: it is known how recent a success must be, and since when that counts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cron
from server.fleet.expected import ExpectedSince, duration, overdue, success_within
from server.jobs.outcomes import LastOutcome, Outcomes
from server.resources.specs import ScheduleSpec
from server.store.rows import Joined
from tests.specs import BACKUP, changed

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
UTC_ZONE = cron.zone("UTC")


def spec(**changes: Any) -> ScheduleSpec:
    base = {"timeZone": "UTC", "enabled": True, "hostSelector": {}, "concurrencyPolicy": "Forbid"}
    base |= {"missedRunPolicy": "RunOnce", "spreadSeconds": 0, "retry": {"limit": 0, "backoffSeconds": 60}}
    return msgspec.convert(changed(base | BACKUP, backup=..., **changes), ScheduleSpec)


@pytest.mark.parametrize(
    ("expression", "within"),
    [
        ("* * * * *", timedelta(minutes=2)),
        ("@hourly", timedelta(hours=2)),
        ("0 2 * * *", timedelta(days=2)),
        ("0 2,3 * * *", timedelta(days=1)),
        ("0,10 2 * * *", timedelta(days=1)),
        ("*/10 8-17 * * *", timedelta(hours=14, minutes=20)),
        ("0 2 * * 1-5", timedelta(days=4)),
        ("0 2 * * 0", timedelta(days=14)),
        ("0 2 1 * *", timedelta(days=62)),
        ("0 2 31 * *", timedelta(days=122)),
        ("0 0 29 2 *", timedelta(days=2 * 1461)),
    ],
)
def test_two_periods_are_the_longest_that_follow_each_other(expression: str, within: timedelta) -> None:
    assert success_within(spec(cron=expression)) == within
    assert success_within(spec(cron=expression, spreadSeconds=90)) == within + timedelta(seconds=90)
    assert success_within(spec(cron=expression, spreadSeconds=90, successWithin="36h")) == timedelta(hours=36)


numbers = {"minute": (0, 59), "hour": (0, 23), "day": (1, 28), "month": (1, 12), "weekday": (0, 6)}
fields = [
    st.one_of(
        st.just("*"),
        st.lists(st.integers(low, high), min_size=1, max_size=4, unique=True).map(lambda it: ",".join(map(str, it))),
    )
    for low, high in numbers.values()
]


@settings(max_examples=60, deadline=None)
@given(st.tuples(*fields).map(" ".join), st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))
def test_two_due_times_pass_before_a_host_is_overdue(expression: Any, start: datetime) -> None:
    parsed, within = cron.parse(expression), cron.two_periods(cron.parse(expression))
    first = cron.next_due(parsed, UTC_ZONE, start.replace(tzinfo=UTC))
    for _ in range(20):
        second = cron.next_due(parsed, UTC_ZONE, first)
        third = cron.next_due(parsed, UTC_ZONE, second)
        assert third - first <= within
        first = second


@pytest.mark.parametrize(
    ("crons", "within"),
    [
        (["0 2 * * *", "0 14 * * *"], timedelta(days=1)),
        (["0 2 * * *", "0 2 * * *"], timedelta(days=2)),
        (["0 2 * * 1-5", "0 12 * * 0,6"], timedelta(days=2, hours=10)),
        (["0 2 1 * *", "0 0 29 2 *"], timedelta(days=62)),
        (["0 0 * * 1", "0 20 * * 3", "0 10 * * 4"], timedelta(days=6, hours=10)),
        (["0 3 * * 0", "0 4 * * 0"], timedelta(days=7)),
    ],
)
def test_two_periods_of_several_crons_are_those_of_all_of_them_together(crons: list[str], within: timedelta) -> None:
    assert success_within(spec(cron=..., crons=crons)) == within


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*fields).map(" ".join), min_size=2, max_size=3), st.datetimes(datetime(2024, 1, 1)))
def test_several_crons_have_their_third_due_time_within_two_periods(crons: list[str], start: datetime) -> None:
    start = start.replace(year=2024, tzinfo=UTC)
    parsed = cron.parse_all(cron.joined(crons))
    within, due = cron.two_periods(parsed), [cron.next_due(parsed, UTC_ZONE, start)]
    for _ in range(12):
        due.append(cron.next_due(parsed, UTC_ZONE, due[-1]))
    assert all(third - first <= within for first, third in zip(due, due[2:], strict=False))


DAYS = [datetime(2000, 1, 1) + timedelta(days=day) for day in range(84 * 1461 // 4)]


@settings(max_examples=15, deadline=None)
@given(fields[2], fields[3], fields[4], st.sampled_from(["2", "2,5", "0,7,23"]))
def test_no_shorter_time_would_do(day: str, month: str, weekday: str, hour: Any) -> None:
    """Against all due times of 84 years, one by one."""
    parsed = cron.parse(f"30 {hour} {day} {month} {weekday}")
    due = [day + timedelta(minutes=it) for day in DAYS if parsed.names_day(day.date()) for it in parsed.times]
    assert cron.two_periods(parsed) == max(third - first for first, third in zip(due, due[2:], strict=False))


@pytest.mark.parametrize(
    ("text", "time"),
    [("36h", timedelta(hours=36)), ("1w2d3h4m5s", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5))],
)
def test_durations_are_read(text: str, time: timedelta) -> None:
    assert duration(text) == time


def test_a_pair_counts_from_when_the_last_of_what_it_needs_was_there() -> None:
    at = [NOW + timedelta(hours=n) for n in range(5)]
    begins = ExpectedSince()
    begins.put_schedule("s", at[1])
    begins.put_host("early", at[0])
    begins.put_host("late", at[2])
    assert begins.since("s", ["early", "late", "gone"]) == {"early": at[1], "late": at[2]}
    begins.join([Joined("s", "early", at[3])])
    assert begins.since("s", ["early"]) == {"early": at[3]}
    begins.put_schedule("s", at[4])  # enabled anew
    assert begins.since("s", ["early"]) == {"early": at[4]}
    assert begins.since("unknown", ["early"]) == {}


def test_those_that_are_overdue_are_told_the_worst_first() -> None:
    hours = {"a": 49, "b": 47, "c": 80, "d": 48}
    since = {host: NOW - timedelta(hours=n) for host, n in hours.items()}
    assert overdue(since, timedelta(hours=48), NOW) == ["c", "a"]


def test_how_hosts_stand_is_told_of_those_that_were_asked_for() -> None:
    outcomes, day = Outcomes(), timedelta(days=1)
    for host, status, succeeded_at in (
        ("fine", "succeeded", NOW),
        ("long ago", "succeeded", NOW - 3 * day),
        ("failed since", "failed", NOW - day),
        ("warned", "warning", NOW),
        ("failed always", "failed", None),
        ("another", "failed", NOW - 9 * day),
    ):
        outcomes.remember("s", host, LastOutcome(status, NOW, succeeded_at))
    asked = frozenset(["fine", "long ago", "failed since", "warned", "failed always", "silent"])
    stands = outcomes.standing("s", asked, NOW - 2 * day)
    assert (sorted(stands.failed), stands.warned) == (["failed always", "failed since"], ["warned"])
    assert sorted(stands.late) == ["failed always", "long ago", "silent"]
    assert (stands.never_succeeded, stands.oldest_success) == (2, NOW - 3 * day)
    unknown = outcomes.standing("unknown", asked, NOW)
    assert (frozenset(unknown.late), unknown.never_succeeded, unknown.oldest_success) == (asked, len(asked), None)
