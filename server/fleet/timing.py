"""Which due times a schedule has on a host: by its present timing, and by those before it that hosts may still go by.

A host that was away while a timing changed says, once it is back, what was due by the timing that it knew. Until it is
known to hold the new one, what it fires by the old one counts; what came due before that counts for ever.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import cron
from server.resources.specs import ScheduleSpec
from server.store.rows import Timing

EARLY = timedelta(minutes=1)
"""How far ahead of the server's clock a due time may be that is fired: clocks of hosts differ by less, or are told."""
EARLIER_TIMINGS = 8
"""Timings of a schedule that are remembered besides the present one."""


def is_due(timing: Timing, host: str, schedule_id: str, at: datetime) -> bool:
    """Whether an aware time, in the years 2 to 9998, is a due time of a schedule on a host, by a timing of it."""
    at -= cron.spread(host, schedule_id, timing.spread_s)
    return cron.is_due(cron.parse(timing.cron), cron.zone(timing.time_zone), at)


def timing(spec: ScheduleSpec, since: datetime) -> Timing:
    """The timing that a schedule's spec says."""
    return Timing(since, spec.cron, spec.time_zone, spec.spread_seconds)


def superseded(old: Timing, earlier: Sequence[Timing]) -> tuple[Timing, ...]:
    """The earlier timings, newest first, once `old` is one of them. A timing that came back counts from its first
    beginning on."""
    if earlier and earlier[0][1:] == old[1:]:
        return tuple(earlier)
    return (old, *earlier)[:EARLIER_TIMINGS]


def why_not(
    present: Timing,
    earlier: Sequence[Timing],
    host: str,
    schedule_id: str,
    at: datetime,
    now: datetime,
    heard: datetime,
) -> str:
    """Why a time that a host fires is none of its due times, in words; empty where it is one.

    `heard`: when the host was known to hold the present timing; what it fires by an earlier one is of before that.
    A timing that begins after `now` was put while the server's clock was ahead: it counts at once, as on hosts.
    """
    if _counts(present, at, now) and is_due(present, host, schedule_id, at):
        return ""
    if at <= heard + EARLY and any(_counts(it, at, now) and is_due(it, host, schedule_id, at) for it in earlier):
        return ""
    since = min(it.since for it in (present, *earlier))
    if at <= since <= now:
        return f"its due times count from {since:%Y-%m-%dT%H:%M:%SZ} on"
    return f"it is not due then on {host}: cron {present.cron!r}, zone {present.time_zone}"


def _counts(timing: Timing, at: datetime, now: datetime) -> bool:
    return at > timing.since or timing.since > now


def most_missed(oldest: Timing, at: datetime) -> int:
    """How many due times a run of that time can stand for at most: none comes more often than every minute."""
    return max(1, int((at - oldest.since) / timedelta(minutes=1)) + 1)
