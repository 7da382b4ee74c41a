"""The herd of a schedule is what its hosts do: each is due at each due time, later by its offset of the spread."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cron
from server.fleet.herd import herd, offsets
from server.store.rows import Timing

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
"""On the day before clocks change in Berlin."""
HOSTS = [f"web-{number}" for number in range(40)]
MINUTE = timedelta(minutes=1)
LONG_AGO = NOON - timedelta(days=400)


def one_by_one(timing: Timing, begin: datetime, end: datetime) -> Counter[datetime]:
    """How many hosts are due in each minute, asked of each host for itself."""
    found: Counter[datetime] = Counter()
    for host in HOSTS:
        offset = cron.spread(host, "s1", timing.spread_s)
        at = begin - offset - timedelta.resolution
        while (at := cron.next_due(cron.parse(timing.cron), cron.zone(timing.time_zone), at)) + offset < end:
            if at > timing.since:
                found[(at + offset).replace(second=0, microsecond=0)] += 1
    return found


@given(
    cron_=st.sampled_from(["0 2 * * *", "*/20 * * * *", "30 2 * * *", "59 23 * * 6", "0 0 1 1 *"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    spread_s=st.sampled_from([0, 1, 59, 60, 3600, 86_400]),
    hours=st.integers(1, 48),
    since=st.sampled_from([LONG_AGO, NOON, NOON + timedelta(hours=9, minutes=20)]),
)
def test_hosts_count_where_they_are_due(cron_: str, zone: str, spread_s: int, hours: int, since: datetime) -> None:
    timing, end = Timing(since, cron_, zone, spread_s), NOON + timedelta(hours=hours)
    found = herd(timing, offsets("s1", HOSTS, spread_s), NOON, end)
    assert {it.at: it.hosts for it in found.minutes} == one_by_one(timing, NOON, end)
    assert [it.at for it in found.minutes] == sorted(it.at for it in found.minutes)


def test_the_cost_does_not_grow_with_hosts_times_due_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 10,000 hosts is due 1,440 times: their offsets are worked out once."""
    asked = 0

    def counted(host: str, schedule_id: str, width_s: int) -> timedelta:
        nonlocal asked
        asked += 1
        return spread(host, schedule_id, width_s)

    spread = cron.spread
    monkeypatch.setattr(cron, "spread", counted)
    hosts = [f"host-{number}" for number in range(10_000)]
    found = herd(
        Timing(LONG_AGO, "* * * * *", "UTC", 3600), offsets("s1", hosts, 3600), NOON, NOON + timedelta(hours=24)
    )
    assert asked == len(hosts)
    assert [it.hosts for it in found.minutes] == [10_000] * 1440
