"""Statements on jobs and their attempts."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import all_rows, one_row
from server.store.rows import JobRow, Retry, Row
from server.store.tables import JOB_ATTEMPTS, JOBS, OPEN, REPOSITORIES
from wire.messages import JobFinished


class _On(msgspec.Struct):
    """The one field of a stored command that is read here; see `server.jobs.arguments.repository_id`."""

    repository: str = ""


_on = msgspec.json.Decoder(_On)


def record_jobs(conn: Connection, batches: Sequence[Sequence[JobRow]]) -> list[set[str]]:
    """Record jobs; return the ids of those that are in the table afterwards.

    A job with the host, schedule and due time of an earlier one, in these batches or in the table, is not recorded.
    """
    rows = list(chain.from_iterable(batches))
    if not rows:
        return [set() for _ in batches]
    new = batch.execute(conn, batch.insert_new(conn.dialect.name, JOBS, JobRow._fields), rows).rowcount
    if new == len(rows):
        return [{row.id for row in items} for items in batches]
    found = batch.gathered(conn, _ids(conn.dialect.name), ((row.id,) for row in rows))
    there = {job_id for (job_id,) in found}
    return [{row.id for row in items if row.id in there} for items in batches]


@cache
def _ids(dialect: str) -> str:
    """Select which of the given jobs exist."""
    given = batch.Given(dialect, [JOBS.c.id]).select()
    return batch.gather(dialect, sa.select(JOBS.c.id).where(JOBS.c.id.in_(given)).subquery())


_ACCEPTED = ("id", "status", "sent", "holds", "ready", "accepted_at", "hangs_at")


def jobs_accepted(conn: Connection, batches: Sequence[Sequence[tuple[str, datetime, datetime]]]) -> list[None]:
    """Mark pending jobs (id, time accepted, time from when on it hangs) as running. Other jobs do not change."""
    accepted = {it[0]: (it[0], "running", True, True, False, *it[1:]) for it in chain.from_iterable(batches)}
    if accepted:
        batch.execute(conn, _update_jobs(conn.dialect.name, _ACCEPTED, ("pending",)), accepted.values())
    return [None] * len(batches)


_ENDED = (
    "id", "holds", "ready", "deferred", "status", "finished_at", "started_at", "exit_code", "snapshot_id",
    "files_processed", "bytes_processed", "bytes_added", "error", "reason",
)  # fmt: skip


def jobs_finished(conn: Connection, batches: Sequence[Sequence[JobFinished]]) -> list[None]:
    """Store the ends of open jobs. Only the first end of a job counts."""
    ends: dict[str, Sequence[object]] = {}
    for end in chain.from_iterable(batches):
        its = (getattr(end, name) for name in _ENDED[4:])
        ends.setdefault(end.job_id, [end.job_id, False, False, False, *its])
    if ends:
        batch.execute(conn, _update_jobs(conn.dialect.name, _ENDED, OPEN), ends.values())
    return [None] * len(batches)


@cache
def _update_jobs(dialect: str, names: tuple[str, ...], statuses: tuple[str, ...]) -> str:
    return batch.update(dialect, JOBS, names, JOBS.c.status.in_(statuses))


def jobs_cancelled(conn: Connection, batches: Sequence[Sequence[tuple[str, str]]]) -> list[None]:
    """Mark jobs (id, reason) whose hosts are asked to cancel them."""
    asked = {job_id: (job_id, True, why) for job_id, why in chain.from_iterable(batches)}
    if asked:
        statement = _update_jobs(conn.dialect.name, ("id", "cancel_requested", "cancel_reason"), OPEN)
        batch.execute(conn, statement, asked.values())
    return [None] * len(batches)


_FAILED = ("job_id", "attempt", "status", "finished_at", "started_at", "exit_code", "snapshot_id", "error", "reason")


_AGAIN = (
    "id", "status", "attempt", "not_before", "queued_at",
    "deferred", "sent", "holds", "ready", "accepted_at", "hangs_at",
)  # fmt: skip


def jobs_retried(conn: Connection, batches: Sequence[Sequence[Retry]]) -> list[None]:
    """Store failed attempts, and make their jobs pending again. Only the first end of an attempt counts."""
    ids = {retry.end.job_id for items in batches for retry in items}
    given = batch.gathered(conn, _attempts(conn.dialect.name), ((job_id,) for job_id in ids)) if ids else []
    at = dict(given)
    retries: dict[str, Retry] = {}
    for retry in chain.from_iterable(batches):
        if at.get(retry.end.job_id) == retry.attempt:
            retries.setdefault(retry.end.job_id, retry)
    if retries:
        failed = [
            [job_id, it.attempt, *(getattr(it.end, name) for name in _FAILED[2:])] for job_id, it in retries.items()
        ]
        batch.execute(conn, batch.insert_new(conn.dialect.name, JOB_ATTEMPTS, _FAILED), failed)
        again = [
            (job_id, "pending", it.attempt + 1, it.not_before, it.not_before, True, False, False, False, None, None)
            for job_id, it in retries.items()
        ]
        batch.execute(conn, _update_jobs(conn.dialect.name, _AGAIN, OPEN), again)
    return [None] * len(batches)


@cache
def _attempts(dialect: str) -> str:
    """Select the current attempt of each given job that is open."""
    given = batch.Given(dialect, [JOBS.c.id]).select()
    found = sa.select(JOBS.c.id, JOBS.c.attempt).where(JOBS.c.id.in_(given), JOBS.c.status.in_(OPEN))
    return batch.gather(dialect, found.subquery())


def get_job(conn: Connection, job_id: str) -> Row | None:
    """A job, or None when there is none with this id."""
    return one_row(conn, sa.select(JOBS).where(JOBS.c.id == job_id))


def get_jobs(conn: Connection, job_ids: Sequence[str]) -> list[Row]:
    """Jobs by id, in the order of the ids; unknown ids are skipped."""
    given = batch.Given(conn.dialect.name, [JOBS.c.id]).select()
    found = conn.execute(sa.select(JOBS).where(JOBS.c.id.in_(given)), batch.parameter((job_id,) for job_id in job_ids))
    rows = {row.id: row._asdict() for row in found}
    return [rows[job_id] for job_id in job_ids if job_id in rows]


def list_jobs(
    conn: Connection,
    filters: Mapping[str, str],
    after: tuple[datetime, str] | None,
    limit: int,
    id_prefix: str = "",
    leave_out: Collection[str] = (),
) -> list[Row]:
    """Jobs whose columns equal `filters`, newest first, starting after the job with (created_at, id) `after`.

    `id_prefix`: only jobs whose id begins so. `leave_out`: kinds to exclude.
    """
    found = sa.select(JOBS).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
    found = found.where(*(JOBS.c[name] == value for name, value in filters.items()))
    if leave_out:
        found = found.where(JOBS.c.kind.not_in(leave_out))
    if id_prefix:
        found = found.where(JOBS.c.id >= id_prefix, JOBS.c.id < id_prefix + "g")  # ids are hexadecimal digits
    if after is not None:
        at, job_id = sa.literal(after[0], JOBS.c.created_at.type), sa.literal(after[1])
        found = found.where(sa.tuple_(JOBS.c.created_at, JOBS.c.id) < sa.tuple_(at, job_id))
    return all_rows(conn, found)


def list_attempts(conn: Connection, job_id: str) -> list[Row]:
    """All attempts of a job but the current one, in order."""
    columns = [column for column in JOB_ATTEMPTS.c if column.name != "job_id"]
    return all_rows(conn, sa.select(*columns).where(JOB_ATTEMPTS.c.job_id == job_id).order_by(JOB_ATTEMPTS.c.attempt))


def job_namespace(conn: Connection, job_id: str) -> str | None:
    """The namespace of a job's repository; None when the job or the repository does not exist."""
    command: str | None = conn.execute(sa.select(JOBS.c.command).where(JOBS.c.id == job_id)).scalar()
    if command is None:
        return None
    id_ = _on.decode(command).repository.partition("/")[0]
    namespace: str | None = conn.execute(sa.select(REPOSITORIES.c.namespace).where(REPOSITORIES.c.id == id_)).scalar()
    return namespace


def lasting_job_id(*parts: str) -> str:
    """A job id derived from names, so that a repeated request gets the same job.

    The id is a hash of 32 hexadecimal digits, like any other job id, so its first digits tell jobs apart even when
    their names begin alike. `parts`: what identifies the job, such as namespace, name and host; none contains a space.
    """
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()
