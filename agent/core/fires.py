"""Which due times are fired, and what one fire stands for."""

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
"""Fires of one tick that are logged one by one; of more, only their number is."""


class Early(NamedTuple):
    """A fire that came too early by the server's clock. `come`: what stands for those of its due times that have come
    at `now`; None where none has."""

    fire: ScheduleFire
    come: ScheduleFire | None
    now: datetime


def fire(due: Due, waiting: ScheduleFire | None) -> ScheduleFire:
    """The fire of a due time. `waiting`: the schedule's fire without an answer: one run stands for all missed times."""
    missed = due.missed if waiting is None else max(1, waiting.missed) + max(1, due.missed)
    return ScheduleFire(due.entry.id, due.at, missed)


def late_fire(fire: ScheduleFire, now: datetime) -> ScheduleFire:
    """A fire that waited for a connection, as it is sent now: one that is not on time any more counts as missed."""
    late = now - fire.scheduled_at >= cron.ON_TIME
    return ScheduleFire(fire.schedule_id, fire.scheduled_at, max(fire.missed, int(late)))


def come(fire: ScheduleFire, entry: Entry | None, host: str, now: datetime) -> ScheduleFire | None:
    """What stands for those of a fire's due times that have come by now; None where none has."""
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


def too_late(entry: Entry, due: datetime, now: datetime) -> str:
    """Why a due time is not run any more; empty when it is."""
    if entry.deadline_s is not None and now - due > timedelta(seconds=entry.deadline_s):
        return "startingDeadlineSeconds passed"
    if entry.missed_run_policy == "Skip" and now - due >= cron.ON_TIME:
        return "missedRunPolicy is Skip"
    return ""


def log_fires(due: Sequence[Due], fires: Sequence[ScheduleFire]) -> None:
    """Log fires, each in a line of its own up to MAX_LOGGED of them."""
    if len(fires) > MAX_LOGGED:
        log.info("fires", extra={"schedules": len(fires), "due": max(fire.scheduled_at for fire in fires)})
        return
    names = {late.entry.id: late.entry.name for late in due}
    for fire in fires:
        late = {"missed": fire.missed} if fire.missed else {}
        log.info("fire", extra={"schedule": names[fire.schedule_id], "due": fire.scheduled_at, **late})
