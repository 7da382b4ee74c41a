"""Nothing begins outside its windows, and what is due outside runs once in the next one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cron import zone
from cron.windows import DAY, Window, closes_at, longest_closed, opens_at
from server.fleet.expected import success_within
from server.fleet.windows import begins_at, stops_after
from server.jobs.fires import timed
from server.jobs.kinds import ConcurrencyLimit
from server.resources.manifests import parse_schedule
from server.resources.specs import Retry
from server.resources.specs import Window as Declared
from server.store import queue
from tests.jobqueue import HOSTS, NOON, Jobs, in_memory, job
from tests.specs import BACKUP, changed
from wire.messages import CommandRun

MINUTE = timedelta(minutes=1)
EVERY_DAY = frozenset(range(7))
NIGHT = (Window(22 * 60, 6 * 60, EVERY_DAY),)


def at(text: str, name: str = "Europe/Berlin") -> datetime:
    """A moment, by the wall clock of a zone; a `*` after it is the second time that the clock shows it."""
    moment = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=zone(name), fold=int(text.endswith("*")))
    return moment.astimezone(UTC)


def window(begin: str, end: str, days: str = "0123456") -> Window:
    (from_h, from_m), (to_h, to_m) = begin.split(":"), end.split(":")
    return Window(60 * int(from_h) + int(from_m), 60 * int(to_h) + int(to_m), frozenset(map(int, days)))


@pytest.mark.parametrize(
    ("windows", "due", "begins", "closes"),
    [
        # Over midnight.
        ([("22:00", "06:00")], "2026-05-04 12:00", "2026-05-04 22:00", None),
        ([("22:00", "06:00")], "2026-05-04 22:00", "2026-05-04 22:00", "2026-05-05 06:00"),
        ([("22:00", "06:00")], "2026-05-05 05:59", "2026-05-05 05:59", "2026-05-05 06:00"),
        ([("22:00", "06:00")], "2026-05-05 06:00", "2026-05-05 22:00", None),
        # Its days are those on which it opens: that of Friday goes on into Saturday.
        ([("22:00", "06:00", "5")], "2026-05-09 03:00", "2026-05-09 03:00", "2026-05-09 06:00"),
        ([("22:00", "06:00", "5")], "2026-05-09 07:00", "2026-05-15 22:00", None),
        ([("00:00", "24:00", "06"), ("22:00", "06:00")], "2026-05-09 04:00", "2026-05-09 04:00", "2026-05-11 06:00"),
        # Several that touch count as one.
        ([("20:00", "22:00"), ("22:00", "02:00")], "2026-05-04 21:00", "2026-05-04 21:00", "2026-05-05 02:00"),
        # Clocks go forward from 02:00 to 03:00.
        ([("02:30", "04:00")], "2026-03-29 00:00", "2026-03-29 03:00", None),
        ([("01:00", "02:30")], "2026-03-29 01:30", "2026-03-29 01:30", "2026-03-29 03:00"),
        ([("02:00", "03:00")], "2026-03-29 01:00", "2026-03-30 02:00", None),
        # Clocks go back from 03:00 to 02:00.
        ([("02:30", "04:00")], "2026-10-25 01:00", "2026-10-25 02:30", None),
        ([("02:30", "04:00")], "2026-10-25 02:15*", "2026-10-25 02:15*", "2026-10-25 04:00"),
        ([("01:00", "02:30")], "2026-10-25 02:15*", "2026-10-26 01:00", None),
    ],
)
def test_a_window_opens_and_closes_by_the_wall_clock(windows: Any, due: str, begins: str, closes: str | None) -> None:
    its = tuple(window(*it) for it in windows)
    assert opens_at(its, zone("Europe/Berlin"), at(due)) == at(begins)
    assert closes_at(its, zone("Europe/Berlin"), at(due)) == (at(closes) if closes else None)


windows = st.lists(
    st.builds(
        Window,
        st.integers(0, DAY - 1),
        st.integers(0, DAY),
        st.frozensets(st.integers(0, 6), min_size=1),
    ).filter(lambda it: it.begin != it.end),
    min_size=1,
    max_size=3,
).map(tuple)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
MOMENTS = st.one_of(
    st.datetimes(datetime(2026, 3, 27), datetime(2026, 3, 31)),
    st.datetimes(datetime(2026, 10, 23), datetime(2026, 11, 3)),
    st.datetimes(datetime(2011, 12, 28), datetime(2012, 1, 2)),
)


def is_open(its: tuple[Window, ...], name: str, moment: datetime) -> bool:
    """By the letter: whether a window's begin has come, as its wall clock first shows it, and its end has not."""

    def first_shown(wall: datetime) -> datetime:
        found = wall.replace(tzinfo=zone(name)).astimezone(UTC)
        if found.astimezone(zone(name)).replace(tzinfo=None) == wall:
            return found
        low, high = found - 25 * 60 * MINUTE, found + 25 * 60 * MINUTE  # skipped: the clock's first later time
        while high - low > MINUTE:
            middle = low + (high - low) // 2
            is_later = middle.astimezone(zone(name)).replace(tzinfo=None, fold=0) >= wall
            low, high = (low, middle) if is_later else (middle, high)
        return high

    day = moment.astimezone(zone(name)).date()
    for number in range(-3, 2):
        begins = day + timedelta(days=number)
        for it in its:
            if begins.isoweekday() % 7 in it.days:
                begin = datetime(begins.year, begins.month, begins.day) + it.begin * MINUTE
                if first_shown(begin) <= moment < first_shown(begin + it.minutes * MINUTE):
                    return True
    return False


@settings(max_examples=60, deadline=None)
@given(windows, st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]), MOMENTS)
def test_what_is_due_begins_at_once_in_a_window_and_else_when_the_next_one_opens(
    its: tuple[Window, ...], name: str, due: datetime
) -> None:
    due = due.replace(second=0, microsecond=0, tzinfo=UTC)
    begins, closes = opens_at(its, zone(name), due), closes_at(its, zone(name), due)
    assert (begins == due) == is_open(its, name, due) == (closes is not None)
    assert begins - due <= timedelta(days=15)
    assert is_open(its, name, begins)
    for number in range(24):  # and not before
        assert begins == due or not is_open(its, name, due + number * (begins - due) / 24)
    if closes is not None:
        assert due < closes
        assert closes - due > timedelta(days=8) or not is_open(its, name, closes)


@settings(max_examples=60, deadline=None)
@given(windows, ZONES, MOMENTS)
def test_the_longest_time_without_a_window_bounds_every_wait_but_for_a_clock_change(
    its: tuple[Window, ...], name: str, due: datetime
) -> None:
    in_utc = opens_at(its, zone("UTC"), due.replace(tzinfo=UTC)) - due.replace(tzinfo=UTC)
    assert in_utc <= longest_closed(its)
    here = opens_at(its, zone(name), due.replace(tzinfo=UTC)) - due.replace(tzinfo=UTC)
    assert here <= longest_closed(its) + timedelta(days=9)


def test_a_schedule_has_windows_in_its_zone_and_longer_to_succeed() -> None:
    spec = changed(BACKUP, cron="@hourly", timeZone="Europe/Berlin", windows=[{"from": "22:00", "to": "06:00"}])
    parsed = parse_schedule({"metadata": {"name": "x"}, "spec": spec}).spec
    assert begins_at(parsed, at("2026-05-04 12:00")) == at("2026-05-04 22:00")
    assert begins_at(parsed, at("2026-05-04 23:00")) == at("2026-05-04 23:00")
    assert success_within(parsed) == timedelta(hours=2 + 16)


# The queue.

AT_ONE = Declared("13:00", "14:00")
OPENS, TOMORROW = NOON + 60 * MINUTE, NOON + (60 + DAY) * MINUTE


@pytest.fixture
def jobs() -> Jobs:
    """All hosts are online, one job at a time may use the repository, and schedules have a window at one o'clock."""
    jobs = Jobs(in_memory())
    jobs.limits["repo"] = ConcurrencyLimit(limit=1)
    jobs.windows = (AT_ONE,)
    for host in HOSTS:
        jobs.connected(host)
    return jobs


def test_a_job_that_is_due_outside_waits_and_begins_when_its_window_opens(jobs: Jobs) -> None:
    assert jobs.add(job("1", schedule="s", due=NOON, not_before=OPENS)) == []
    assert jobs.waits_for("1") == "its window, which opens at 2026-03-05T13:00:00Z"
    assert jobs.next_at == OPENS
    assert jobs.tick(59.9) == []
    assert jobs.tick(60) == ["1"]


def test_a_job_that_waits_for_its_window_holds_up_no_others(jobs: Jobs) -> None:
    assert jobs.add(job("1", schedule="s", due=NOON, not_before=OPENS), job("2"), job("3")) == ["2"]
    assert jobs.ends("2") == ["3"]
    assert jobs.tick(61) == []
    assert jobs.ends("3") == ["1"]


def test_a_job_whose_turn_comes_after_its_window_waits_for_the_next_and_keeps_its_place(jobs: Jobs) -> None:
    jobs.tick(60)
    assert jobs.add(job("long"), job("1", schedule="s", due=OPENS), job("2")) == ["long"]
    jobs.tick(130)
    assert jobs.ends("long") == ["2"]
    assert jobs.waits_for("1") == "its window, which opens at 2026-03-06T13:00:00Z"
    assert jobs.next_at == TOMORROW
    assert jobs.add(job("3", at=130)) == []
    assert jobs.tick(60 + DAY) == []
    assert jobs.ends("2") == ["1"]  # it came before 3


def test_a_host_that_comes_back_outside_the_window_waits_for_the_next(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s", due=NOON, not_before=OPENS))
    jobs.disconnected("a")
    assert jobs.tick(70) == []
    jobs.now = NOON + 200 * MINUTE
    assert jobs.connected("a") == []
    assert jobs.waits_for("1") == "its window, which opens at 2026-03-06T13:00:00Z"
    assert jobs.tick(60 + DAY) == ["1"]


def test_a_retry_waits_for_a_window_too(jobs: Jobs) -> None:
    jobs.tick(119)
    assert jobs.add(job("1", schedule="s", due=OPENS)) == ["1"]
    jobs.retry = Retry(limit=1, backoff_seconds=120)
    ended, _ = jobs.finish("a", "1", "failed")
    assert [retry.not_before for _, retry in ended.again] == [TOMORROW]
    assert jobs.tick(130) == []
    assert jobs.tick(60 + DAY) == ["1"]


def test_other_windows_count_for_what_waits(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s", due=NOON, not_before=OPENS))
    assert jobs.change_windows(Declared("15:00", "16:00")) == []
    assert jobs.next_at == NOON + 180 * MINUTE
    assert jobs.change_windows() == ["1"]


def test_a_job_that_may_not_begin_before_its_deadline_fails_while_it_waits(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s", due=NOON, not_before=OPENS, start_by=NOON + 30 * MINUTE))
    assert jobs.tick(31) == []
    assert jobs.ended["1"].reason == "DeadlineExceeded"
    assert jobs.tick(61) == []


def test_more_jobs_than_one_transaction_looks_at_leave_the_lane_when_their_window_is_over(jobs: Jobs) -> None:
    jobs.tick(60)
    hosts = [HOSTS[at % len(HOSTS)] for at in range(queue.FRONT + 50)]
    own: Any = {"schedule": "s", "policy": "Allow"}
    many = [job(f"{at:03}", host, due=OPENS + at * MINUTE, **own) for at, host in enumerate(hosts)]
    assert jobs.add(job("long"), *many, job("last", at=300)) == ["long"]
    jobs.tick(130)
    assert jobs.ends("long") == ["last"]
    assert jobs.ready() == []


# stopAtEnd.


def test_a_run_that_was_stopped_as_its_window_closed_goes_on_in_the_next_and_uses_up_no_retry(jobs: Jobs) -> None:
    jobs.tick(60)
    jobs.retry = Retry(limit=1, backoff_seconds=60)
    assert jobs.add(job("1", schedule="s", due=OPENS)) == ["1"]
    jobs.tick(120)
    ended, _ = jobs.finish("a", "1", "interrupted", "WindowClosed")
    assert [retry.not_before for _, retry in ended.again] == [TOMORROW]
    assert jobs.row("1")["reason"] == "WindowClosed"
    assert jobs.waits_for("1") == (
        "its window, which opens at 2026-03-06T13:00:00Z: it was stopped at the end of the last one, and goes on then"
    )
    assert jobs.tick(60 + DAY) == ["1"]
    ended, _ = jobs.finish("a", "1.2", "failed")  # its first failure
    assert [retry.not_before for _, retry in ended.again] == [TOMORROW + MINUTE]
    assert jobs.row("1")["reason"] is None
    assert jobs.tick(61 + DAY) == ["1"]
    ended, _ = jobs.finish("a", "1.3", "failed")
    assert [(row.id, end.status) for row, end in ended.over] == [("1", "failed")]


@pytest.mark.parametrize(
    ("cancelled", "status", "reason", "error"),
    [(True, "cancelled", "", "me as its window closed"), (False, "interrupted", "WindowClosed", "does not go on")],
)
def test_a_run_that_goes_on_in_no_window_says_so(
    jobs: Jobs, cancelled: bool, status: str, reason: str, error: str
) -> None:
    jobs.tick(60)
    assert jobs.add(job("1", schedule="s", due=OPENS)) == ["1"]
    jobs.accepts("1")
    if cancelled:
        jobs.cancel("1")
    else:
        jobs.gone.add("s")
    jobs.tick(120)
    ended, _ = jobs.finish("a", "1", "interrupted", "WindowClosed")
    [(_, end)] = ended.over
    assert (end.status, end.reason) == (status, reason)
    assert error in end.error
    assert (jobs.row("1")["status"], jobs.row("1")["error"]) == (status, end.error)


def test_a_command_says_for_how_long_it_may_run_until_its_window_closes() -> None:
    spec = changed(BACKUP, timeZone="Europe/Berlin", windows=[{"from": "22:00", "to": "06:00"}])
    for stop, after in ((True, 8 * 3600), (False, None)):
        parsed = parse_schedule({"metadata": {"name": "x"}, "spec": spec | {"stopAtEnd": stop}}).spec
        assert stops_after(parsed, at("2026-05-04 22:00")) == after
        assert stops_after(parsed, at("2026-05-04 12:00")) == (0 if stop else None)
        assert timed(CommandRun("1", "backup", []), parsed, at("2026-05-04 22:00")).stop_after_s == after
