"""The herd of a schedule: how many of its hosts are due in each minute to come, with the spread included.

The cost is bounded, however many hosts there are: their offsets are counted by minute first, and then moved to each due
time.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

import cron
from server.store.rows import Timing

_MINUTE = timedelta(minutes=1)


class Minute(NamedTuple):
    """A minute, and how many hosts are due in it. A host that is due twice counts twice."""

    at: datetime
    hosts: int


class Herd(NamedTuple):
    """`times`: the due times without the spread. `minutes`: those in which a host is due, in order."""

    times: list[datetime]
    minutes: list[Minute]


def offsets(schedule_id: str, hosts: Iterable[str], spread_s: int) -> Counter[int]:
    """How many hosts have each offset, in seconds after a due time."""
    if spread_s == 0:
        return Counter({0: sum(1 for _ in hosts)})
    return Counter(int(cron.spread(host, schedule_id, spread_s).total_seconds()) for host in hosts)


def herd(timing: Timing, spread: Counter[int], begin: datetime, end: datetime) -> Herd:
    """The herd of the minutes from that of `begin` up to that of `end`, which is left out.

    `spread`: from `offsets`. Due times up to the beginning of the timing do not count. Raises CronError.
    """
    begin, end = _minute(begin), _minute(end)
    expression, zone = cron.parse_all(timing.cron), cron.zone(timing.time_zone)
    first = max(begin - timedelta(seconds=timing.spread_s), timing.since + timedelta.resolution)
    counts = [0] * int((end - begin) / _MINUTE)
    times: list[datetime] = []
    by_minute: dict[int, Counter[int]] = {}
    for due in cron.due_times(expression, zone, first - timedelta.resolution, end - timedelta.resolution):
        if due >= begin:
            times.append(due)
        if due.second not in by_minute:  # due times have seconds only at some zones' clock changes
            by_minute[due.second] = _by_minute(spread, due.second)
        base = int((_minute(due) - begin) / _MINUTE)
        for minute, hosts in by_minute[due.second].items():
            if 0 <= base + minute < len(counts):
                counts[base + minute] += hosts
    return Herd(times, [Minute(begin + at * _MINUTE, hosts) for at, hosts in enumerate(counts) if hosts])


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def _by_minute(spread: Counter[int], second: int) -> Counter[int]:
    """How many hosts are due in each minute after that of a due time at this second."""
    found: Counter[int] = Counter()
    for offset, hosts in spread.items():
        found[(second + offset) // 60] += hosts
    return found
