"""From due times to fires: which ones are skipped, and how many due times one fire stands for."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import cron
from agent.core import timetable
from agent.core.timetable import Due
from wire.messages import Entry, ScheduleFire

log = logging.getLogger(__name__)

MAX_LOGGED = 20
"""Fires of one tick that are logged one by one. For a larger number, one line has the count."""


class Early(NamedTuple):
    """A fire that the server refused as too early.

    `past`: a fire for those of its due times that are past at `now`, the corrected time; None if there are none.
    """

    fire: ScheduleFire
    past: ScheduleFire | None
    now: datetime


def fire_for(due: Due, unanswered: ScheduleFire | None) -> ScheduleFire:
    """The fire for a due time. `unanswered`: the schedule's earlier fire, which this one replaces and counts as
    missed."""
    missed = due.missed if unanswered is None else max(1, unanswered.missed) + max(1, due.missed)
    return ScheduleFire(due.entry.id, due.at, missed)


def resent(fire: ScheduleFire, now: datetime) -> ScheduleFire:
    """A fire that waited for a connection, as it is sent now: it counts as missed once it is no longer on time."""
    late = now - fire.scheduled_at >= cron.ON_TIME
    return ScheduleFire(fire.schedule_id, fire.scheduled_at, max(fire.missed, int(late)))


def past_part(fire: ScheduleFire, entry: Entry | None, host: str, now: datetime) -> ScheduleFire | None:
    """A fire for those of a fire's due times that are past by now; None if there are none."""
    try:
        slot = timetable.slot(entry, host) if entry is not None else None
    except cron.CronError:
        slot = None
    if slot is None:
        return None
    to_come = max(1, slot.latest(now, fire.scheduled_at).times)
    late = slot.latest(slot.entry.since, now)
    times = max(1, fire.missed) - to_come
    return ScheduleFire(fire.schedule_id, late.due, times) if times > 0 and late.times else None


def skip_reason(entry: Entry, due: datetime, now: datetime) -> str:
    """Why a due time is skipped; empty when it is to run."""
    if entry.deadline_s is not None and now - due > timedelta(seconds=entry.deadline_s):
        return "startingDeadlineSeconds passed"
    if entry.missed_run_policy == "Skip" and now - due >= cron.ON_TIME:
        return "missedRunPolicy is Skip"
    return ""


def log_fires(due: Sequence[Due], fires: Sequence[ScheduleFire]) -> None:
    """Log up to MAX_LOGGED fires in a line each, or the number of them."""
    if len(fires) > MAX_LOGGED:
        log.info("fires", extra={"schedules": len(fires), "due": max(fire.scheduled_at for fire in fires)})
        return
    names = {late.entry.id: late.entry.name for late in due}
    for fire in fires:
        late = {"missed": fire.missed} if fire.missed else {}
        log.info("fire", extra={"schedule": names[fire.schedule_id], "due": fire.scheduled_at, **late})
