"""When what a Schedule has due may begin, by its windows."""

from datetime import datetime, timedelta
from functools import lru_cache
from math import ceil

import cron
from cron import windows
from server.resources.specs import ScheduleSpec, Window

_DAYS = {"Sun": 0, "Mon": 1, "Tue": 2, "Wed": 3, "Thu": 4, "Fri": 5, "Sat": 6}


def begins_at(spec: ScheduleSpec, at: datetime) -> datetime:
    """When a run may begin that is due at this time, or asked for then: then, or when its next window opens."""
    if not spec.windows:
        return at
    try:
        return windows.opens_at(parsed(spec.windows), cron.zone(spec.time_zone), at)
    except cron.CronError:  # another release accepted the zone: no host fires what it has due
        return at


def stops_after(spec: ScheduleSpec, at: datetime) -> int | None:
    """For how many seconds a run may go on from this time, by `stopAtEnd`: 0 outside all windows, None for ever."""
    if not (spec.stop_at_end and spec.windows):
        return None
    try:
        closes = windows.closes_at(parsed(spec.windows), cron.zone(spec.time_zone), at)
    except cron.CronError:
        return None
    return 0 if closes is None else ceil((closes - at).total_seconds())


def longest_wait(spec: ScheduleSpec) -> timedelta:
    """The longest time for which a run may wait for a window, by the wall clock."""
    return windows.longest_closed(parsed(spec.windows)) if spec.windows else timedelta()


@lru_cache(maxsize=1 << 10)
def parsed(declared: tuple[Window, ...]) -> windows.Windows:
    """Windows as `cron.windows` reads them."""
    return tuple(
        windows.Window(_minutes(it.begin), _minutes(it.end), frozenset(map(_DAYS.__getitem__, it.days)))
        for it in declared
    )


def _minutes(time: str) -> int:
    hours, minutes = time.split(":")
    return 60 * int(hours) + int(minutes)
