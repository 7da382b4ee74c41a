"""Statements on jobs and their attempts."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    new = conn.execute(batch.insert_new(conn.dialect.name, JOBS, JobRow._fields), batch.parameter(rows)).rowcount
    if new == len(rows):
        return [{row.id for row in items} for items in batches]
    found = batch.gathered(conn, _ids(conn.dialect.name, ()), ((row.id,) for row in rows))
    there = {job_id for (job_id,) in found}
    return [{row.id for row in items if row.id in there} for items in batches]


@cache
def _ids(dialect: str, statuses: tuple[str, ...]) -> sa.Executable:
    """Select which of the given jobs exist, and have one of these statuses if there are any."""
    given = batch.Given(dialect, [JOBS.c.id]).select()
    found = sa.select(JOBS.c.id).where(JOBS.c.id.in_(given), *([JOBS.c.status.in_(statuses)] if statuses else []))
    return batch.gather(found.subquery())


def jobs_accepted(conn: Connection, batches: Sequence[Sequence[tuple[str, datetime]]]) -> list[set[str]]:
    """Mark pending jobs (id, time accepted) as running, and return their ids. Other jobs do not change."""
    accepted = {job_id: (job_id, "running", at) for job_id, at in chain.from_iterable(batches)}
    changed = _changed(conn, accepted, ("id", "status", "accepted_at"), ("pending",))
    return [{job_id for job_id, _ in items if job_id in changed} for items in batches]


_ENDED = (
    "id", "status", "finished_at", "started_at", "exit_code", "snapshot_id",
    "files_processed", "bytes_processed", "bytes_added", "error", "reason",
)  # fmt: skip


def jobs_finished(conn: Connection, batches: Sequence[Sequence[JobFinished]]) -> list[set[str]]:
    """Store the ends of open jobs, and return their ids. Only the first end of a job counts."""
    ends: dict[str, Sequence[object]] = {}
    firsts: list[set[str]] = []
    for items in batches:
        first = {end.job_id for end in items if end.job_id not in ends}  # `-` would iterate over all of `ends`
        firsts.append(first)
        for end in items:
            ends.setdefault(end.job_id, [end.job_id, *(getattr(end, name) for name in _ENDED[1:])])
    changed = _changed(conn, ends, _ENDED, OPEN)
    return [first & changed for first in firsts]


def _changed(
    conn: Connection, rows: Mapping[str, Sequence[object]], names: tuple[str, ...], statuses: tuple[str, ...]
) -> set[str]:
    """Update the jobs that have one of these statuses, and return their ids."""
    if not rows:
        return set()
    found = batch.gathered(conn, _ids(conn.dialect.name, statuses), ((job_id,) for job_id in rows))
    changed = {job_id for (job_id,) in found}
    if changed:
        statement = _update_jobs(conn.dialect.name, names, statuses)
        conn.execute(statement, batch.parameter(row for job_id, row in rows.items() if job_id in changed))
    return changed


@cache
def _update_jobs(dialect: str, names: tuple[str, ...], statuses: tuple[str, ...]) -> sa.Executable:
    return batch.update(dialect, JOBS, names, JOBS.c.status.in_(statuses))


def jobs_sent(conn: Connection, batches: Sequence[Sequence[str]]) -> list[None]:
    """Mark queued jobs as sent, before they are sent."""
    _set(conn, "sent", chain.from_iterable(batches))
    return [None] * len(batches)


def jobs_cancelled(conn: Connection, batches: Sequence[Sequence[str]]) -> list[None]:
    """Mark jobs whose hosts are asked to cancel them."""
    _set(conn, "cancel_requested", chain.from_iterable(batches))
    return [None] * len(batches)


def _set(conn: Connection, flag: str, job_ids: Iterable[str]) -> None:
    if ids := set(job_ids):
        statement = _update_jobs(conn.dialect.name, ("id", flag), OPEN)
        conn.execute(statement, batch.parameter((job_id, True) for job_id in ids))


_FAILED = ("job_id", "attempt", "status", "finished_at", "started_at", "exit_code", "snapshot_id", "error", "reason")


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
        conn.execute(batch.insert_new(conn.dialect.name, JOB_ATTEMPTS, _FAILED), batch.parameter(failed))
        names = ("id", "status", "attempt", "not_before", "sent", "accepted_at")
        again = [(job_id, "pending", it.attempt + 1, it.not_before, False, None) for job_id, it in retries.items()]
        conn.execute(_update_jobs(conn.dialect.name, names, OPEN), batch.parameter(again))
    return [None] * len(batches)


@cache
def _attempts(dialect: str) -> sa.Executable:
    """Select the current attempt of each given job that is open."""
    given = batch.Given(dialect, [JOBS.c.id]).select()
    found = sa.select(JOBS.c.id, JOBS.c.attempt).where(JOBS.c.id.in_(given), JOBS.c.status.in_(OPEN))
    return batch.gather(found.subquery())


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
