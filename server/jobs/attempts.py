"""Attempts of a job: when they end, whether another follows, and when that is due. No I/O."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from server.resources.specs import Retry
from wire.messages import JobFinished

MAX_PAUSE = timedelta(hours=24)
"""Maximum pause before the next attempt, however often a job has failed."""


def next_attempt(retry: Retry | None, attempt: int, end: JobFinished, now: datetime) -> datetime | None:
    """When the next attempt of a job is due after this end; None if there is none.

    `retry`: None if the job's Schedule was deleted or does not select its host any more, or if the job was cancelled.
    """
    if retry is None or end.reason == "OutcomeUnknown" or end.status not in ("failed", "timed_out", "interrupted"):
        return None
    return now + pause(retry, attempt) if attempt <= retry.limit else None


def pause(retry: Retry, attempt: int) -> timedelta:
    """How long after the end of a failed attempt the next one is due: it doubles with each attempt."""
    return timedelta(seconds=min(retry.backoff_seconds * 2 ** (attempt - 1), MAX_PAUSE.total_seconds()))


def by_our_clock(end: JobFinished, job_id: str, since: datetime, now: datetime) -> JobFinished:
    """The end of a job, with times between its earliest start and now, whatever its host's clock shows."""
    first = min(since, now)
    finished = min(max(end.finished_at, first), now)
    started = end.started_at and min(max(end.started_at, first), finished)
    return msgspec.structs.replace(end, job_id=job_id, finished_at=finished, started_at=started)


def late_ends(job_ids: Iterable[str], now: datetime) -> list[JobFinished]:
    """The ends of jobs that did not start within their Schedule's startingDeadlineSeconds."""
    error = "it waited for longer than its schedule's startingDeadlineSeconds"
    return [JobFinished(job_id, "failed", now, error=error, reason="DeadlineExceeded") for job_id in job_ids]
