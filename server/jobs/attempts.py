"""Attempts of a job: when they end, whether another follows, and when that is due. No I/O."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from server.fleet.windows import begins_at
from server.resources.specs import Retry, ScheduleSpec
from server.store.queue import WINDOW_CLOSED
from wire.messages import JobFinished

MAX_PAUSE = timedelta(hours=24)
"""Maximum pause before the next attempt, however often a job has failed."""


def next_attempt(spec: ScheduleSpec | None, attempt: int, end: JobFinished, now: datetime) -> datetime | None:
    """When the next attempt of a job may begin after this end; None if there is none.

    A job that was stopped as its window closed goes on in the next one, which is no retry. `spec`: of its Schedule;
    None if that was deleted or does not select its host any more, or if the job was cancelled. `attempt`: which one it
    was, not counting those that were stopped by a window.
    """
    if spec is None or end.reason == "OutcomeUnknown" or end.status not in ("failed", "timed_out", "interrupted"):
        return None
    if end.reason == WINDOW_CLOSED:
        return begins_at(spec, now)
    return begins_at(spec, now + pause(spec.retry, attempt)) if attempt <= spec.retry.limit else None


def last_end(end: JobFinished, cancel_reason: str | None) -> JobFinished:
    """The end of a job after which there is no other attempt. `cancel_reason`: why somebody wanted it to end; None if
    nobody did."""
    if end.reason != WINDOW_CLOSED:
        return end
    if cancel_reason is not None:  # the window closed while its host was being asked
        return msgspec.structs.replace(
            end, status="cancelled", error=f"{cancel_reason} as its window closed", reason=""
        )
    return msgspec.structs.replace(end, error=_NO_OTHER_WINDOW)


_NO_OTHER_WINDOW = (
    "stopped at the end of its window, and does not go on: its schedule was deleted, or does not select this host any "
    "more"
)


def pause(retry: Retry, attempt: int) -> timedelta:
    """How long after the end of a failed attempt the next one is due: it doubles with each attempt."""
    return timedelta(seconds=min(retry.backoff_seconds * 2 ** (attempt - 1), MAX_PAUSE.total_seconds()))


def by_our_clock(end: JobFinished, job_id: str, since: datetime, now: datetime) -> JobFinished:
    """The end of a job, with times between its earliest start and now, whatever its host's clock shows."""
    first = min(since, now)
    finished = min(max(end.finished_at, first), now)
    started = end.started_at and min(max(end.started_at, first), finished)
    done = end.done_at and min(max(end.done_at, first), finished)
    return msgspec.structs.replace(end, job_id=job_id, finished_at=finished, started_at=started, done_at=done)


def late_ends(job_ids: Iterable[str], now: datetime) -> list[JobFinished]:
    """The ends of jobs that did not start within their Schedule's startingDeadlineSeconds."""
    error = "it waited for longer than its schedule's startingDeadlineSeconds"
    return [JobFinished(job_id, "failed", now, error=error, reason="DeadlineExceeded") for job_id in job_ids]
