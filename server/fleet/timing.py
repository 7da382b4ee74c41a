"""Which due times a schedule has on a host, by its present timing and by earlier ones.

A host that was offline while the timing changed fires by the old timing once it is back. So the due times of earlier
timings stay valid up to the moment from which on the host is known to hold the present one.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import cron
from server.resources.specs import ScheduleSpec
from server.store.rows import Timing

EARLY = timedelta(minutes=1)
"""How far ahead of the server's clock a fired due time may be. More than that is a ClockSkew problem of the host."""
EARLIER_TIMINGS = 8
"""How many earlier timings of a schedule are kept."""


def is_due(timing: Timing, host: str, schedule_id: str, at: datetime) -> bool:
    """Whether `at` is a due time of a schedule on a host, by one timing. `at` is aware, in the years 2 to 9998."""
    at -= cron.spread(host, schedule_id, timing.spread_s)
    return cron.is_due(cron.parse_all(timing.cron), cron.zone(timing.time_zone), at)


def timing(spec: ScheduleSpec, since: datetime) -> Timing:
    """The timing that a spec declares, which began at `since`."""
    return Timing(since, spec.cron_text, spec.time_zone, spec.spread_seconds)


def superseded(old: Timing, earlier: Sequence[Timing]) -> tuple[Timing, ...]:
    """The earlier timings, newest first, after `old` was replaced.

    When `old` differs from the newest of them only in its beginning, the earlier beginning counts.
    """
    if earlier and earlier[0][1:] == old[1:]:
        return tuple(earlier)
    return (old, *earlier)[:EARLIER_TIMINGS]


def why_not_due(
    present: Timing,
    earlier: Sequence[Timing],
    host: str,
    schedule_id: str,
    at: datetime,
    now: datetime,
    in_force_since: datetime,
) -> str:
    """Why a fired time is not a due time of the host, as text; empty when it is one.

    `in_force_since`: when the host was known to hold the present timing. Due times of earlier timings end there.
    A timing that begins after `now` was stored while the server's clock was ahead. It is valid at once, as on agents.
    """
    if _is_valid(present, at, now) and is_due(present, host, schedule_id, at):
        return ""
    valid = [it for it in earlier if at <= in_force_since + EARLY and _is_valid(it, at, now)]
    if any(is_due(it, host, schedule_id, at) for it in valid):
        return ""
    since = min(it.since for it in (present, *earlier))
    if at <= since <= now:
        return f"its due times count from {since:%Y-%m-%dT%H:%M:%SZ} on"
    return f"it is not due then on {host}: cron {present.cron!r}, zone {present.time_zone}"


def _is_valid(timing: Timing, at: datetime, now: datetime) -> bool:
    """Whether a timing was valid at a time (see `why_not_due` for timings after `now`)."""
    return at > timing.since or timing.since > now


def max_missed(oldest: Timing, at: datetime) -> int:
    """The most due times that a job of this due time can stand for: cron is due once a minute at most."""
    return max(1, int((at - oldest.since) / timedelta(minutes=1)) + 1)
