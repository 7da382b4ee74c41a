"""Attempts of a job: as they are read back from the store, when they end, and when the next one is due. No I/O."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from server.fleet.placement import PlacedSchedule, Placement
from server.jobs.job import Job, State
from server.store.rows import OpenJob
from wire.messages import CommandRun, JobFinished

MAX_PAUSE = timedelta(hours=24)
"""Maximum pause before the next attempt, however often a job has failed."""

_command = msgspec.json.Decoder(CommandRun)


def reopened(row: OpenJob, placement: Placement, now: datetime) -> Job:
    """A job that was open when the last server stopped. Times after `now` come from a clock that was set back since."""
    command = _command.decode(row.command)
    schedule = placement.schedules.get(command.schedule_id)
    serial, deadline = bool(command.schedule_id), None
    if schedule is not None:
        serial, deadline = schedule.spec.concurrency_policy != "Allow", schedule.spec.starting_deadline_seconds
    start_by = None if deadline is None else (command.scheduled_at or row.created_at) + timedelta(seconds=deadline)
    latest = now if row.not_before is None or schedule is None else now + _pause(schedule, row.attempt - 1)
    since = min(row.not_before or row.created_at, latest)
    state: State = "running" if row.status == "running" else "sent" if row.sent else "waiting"
    return Job(
        command,
        row.host,
        since,
        serial,
        start_by,
        row.attempt,
        state,
        cancelled="cancelled" if row.cancel_requested else "",
        deferred=state == "waiting" and row.not_before is not None,
        running_since=row.accepted_at and min(row.accepted_at, now),
    )


def current_schedule(job: Job, placement: Placement) -> PlacedSchedule | None:
    """The Schedule of a job; None if it was deleted, does not select the job's host any more, or never was."""
    host = placement.hosts.get(job.host)
    if host is None or job.command.schedule_id not in host.entries.items:
        return None
    return placement.schedules.get(job.command.schedule_id)


def next_attempt(job: Job, end: JobFinished, placement: Placement, now: datetime) -> datetime | None:
    """When the next attempt of a job is due after this end; None if there is none."""
    schedule = current_schedule(job, placement)
    if (
        end.reason == "OutcomeUnknown"
        or job.cancelled
        or schedule is None
        or end.status not in ("failed", "timed_out", "interrupted")
    ):
        return None
    return now + _pause(schedule, job.attempt) if job.attempt <= schedule.spec.retry.limit else None


def _pause(schedule: PlacedSchedule, attempt: int) -> timedelta:
    """How long after the end of a failed attempt the next one is due: it doubles with each attempt."""
    return timedelta(seconds=min(schedule.spec.retry.backoff_seconds * 2 ** (attempt - 1), MAX_PAUSE.total_seconds()))


def by_our_clock(end: JobFinished, job: Job, now: datetime) -> JobFinished:
    """The end of a job, with times between its earliest start and now, whatever its host's clock shows."""
    first = min(job.since, now)
    finished = min(max(end.finished_at, first), now)
    started = end.started_at and min(max(end.started_at, first), finished)
    return msgspec.structs.replace(end, job_id=job.id, finished_at=finished, started_at=started)


def late_ends(jobs: Iterable[Job], now: datetime) -> list[JobFinished]:
    """The ends of jobs that did not start within their Schedule's startingDeadlineSeconds."""
    error = "it waited for longer than its schedule's startingDeadlineSeconds"
    return [JobFinished(job.id, "failed", now, error=error, reason="DeadlineExceeded") for job in jobs]


def cancelled_ends(jobs: Iterable[Job], now: datetime, error: str) -> list[JobFinished]:
    """The ends of jobs that are cancelled. `error`: why."""
    return [JobFinished(job.id, "cancelled", now, error=error) for job in jobs]
