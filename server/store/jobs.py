"""Statements on jobs and their attempts."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import all_rows, one_row
from server.store.queue import WINDOW_CLOSED
from server.store.rows import JobRow, Retry, Row
from server.store.tables import JOB_ATTEMPTS, JOBS, OPEN, REPOSITORIES, SCHEDULES
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
    "deferred", "sent", "holds", "ready", "accepted_at", "hangs_at", "reason",
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
            (
                *(job_id, "pending", it.attempt + 1, it.not_before, it.not_before),
                *(True, False, False, False, None, None),
                WINDOW_CLOSED if it.end.reason == WINDOW_CLOSED else None,
            )
            for job_id, it in retries.items()
        ]
        batch.execute(conn, _update_jobs(conn.dialect.name, _AGAIN, OPEN), again)
    return [None] * len(batches)


def window_stops(conn: Connection, job_ids: Sequence[str]) -> dict[str, int]:
    """How many attempts of these jobs were stopped as their windows closed; jobs without one are left out."""
    if not job_ids:
        return {}
    its = JOB_ATTEMPTS.c.job_id.in_(job_ids), JOB_ATTEMPTS.c.reason == WINDOW_CLOSED
    found = sa.select(JOB_ATTEMPTS.c.job_id, sa.func.count()).where(*its).group_by(JOB_ATTEMPTS.c.job_id)
    return {str(job_id): int(count) for job_id, count in conn.execute(found).all()}


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


class RunningRow(NamedTuple):
    """A job that runs. `accepted_at`: since when."""

    id: str
    host: str
    kind: str
    scheduled_id: str | None
    accepted_at: datetime | None


class Page(NamedTuple):
    """Some of the jobs that were asked for, newest first, and the (created_at, id) after which there may be more."""

    rows: list[Row]
    next: tuple[datetime, str] | None


EXAMINED = 5000
"""How many jobs are examined for a page, of those that an index finds."""
LONG_PREFIX = 4
"""From this many characters on, the beginning of an id finds few jobs: one of 65,536."""
Conditions = list[sa.ColumnElement[bool]]
_ID_SIZE = 32
"""Characters of a repository's id, with which a lane begins."""
_NEWEST = (JOBS.c.created_at.desc(), JOBS.c.id.desc())


def list_jobs(
    conn: Connection,
    filters: Mapping[str, str],
    after: tuple[datetime, str] | None,
    limit: int,
    id_prefix: str = "",
    leave_out: Collection[str] = (),
    namespace: str | None = None,
) -> Page:
    """Jobs whose columns equal `filters`, newest first, starting after the job with (created_at, id) `after`.

    `id_prefix`: only jobs whose id begins so. `leave_out`: kinds to exclude. `namespace`: only jobs of Repositories and
    Schedules of this namespace that exist. The best index for what is asked has the
    jobs in order; what it cannot tell is looked for in up to EXAMINED of them. So there may be fewer than `limit`, or
    none, and more after them all the same.
    """
    indexed: Conditions
    if len(id_prefix) >= LONG_PREFIX:
        few = sa.select(JOBS.c.id).where(*_begins(JOBS.c.id, id_prefix)).limit(EXAMINED)
        indexed, rest = [JOBS.c.id.in_(few)], dict(filters)
    else:
        indexed, rest = _indexed(filters)
    left: Conditions = [_unindexed(JOBS.c[name]) == value for name, value in rest.items()]
    if leave_out:
        left.append(JOBS.c.kind.not_in(leave_out))
    if namespace is not None:
        left.append(_in_namespace(namespace))
    if 0 < len(id_prefix) < LONG_PREFIX:
        left += _begins(_unindexed(JOBS.c.id), id_prefix)
    if after is not None:
        indexed.append(_place() < _place(after))
    last = None
    if left:
        places = sa.select(JOBS.c.created_at, JOBS.c.id).where(*indexed).order_by(*_NEWEST)
        found = conn.execute(places.offset(EXAMINED - 1).limit(1)).one_or_none()
        last = None if found is None else (found.created_at, found.id)
        left += [] if last is None else [_place() >= _place(last)]
    rows = all_rows(conn, sa.select(JOBS).where(*indexed, *left).order_by(*_NEWEST).limit(limit + 1))
    if len(rows) > limit:
        rows, last = rows[:limit], (rows[limit - 1]["created_at"], rows[limit - 1]["id"])
    return Page(rows, last)


_USUAL = {"status": "succeeded", "kind": "backup", "actor_kind": "schedule"}
"""What most jobs have: indexes on these columns have the other jobs alone, for whom they cost little."""


def _indexed(filters: Mapping[str, str]) -> tuple[Conditions, dict[str, str]]:
    """The conditions that one index is for, in the words of a partial one, and the filters that are left."""
    order = ["host", "scheduled_id", "kind", "actor_kind", "status"]
    if filters.get("status") in OPEN:
        order.insert(0, "status")
    for name in order:
        if name in filters and filters[name] != _USUAL.get(name):
            partial = [_unusual(name)] if name in _USUAL else []
            return [*partial, JOBS.c[name] == filters[name]], {k: v for k, v in filters.items() if k != name}
    return [], dict(filters)


def _unusual(name: str) -> sa.ColumnElement[bool]:
    return sa.text(f"{name} <> '{_USUAL[name]}'")  # type: ignore[return-value]


def _unindexed(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column as no index has it, so that the database uses the index that was chosen."""
    return sa.func.coalesce(column, "", type_=column.type)


def _in_namespace(namespace: str) -> sa.ColumnElement[bool]:
    """Whether a job's lane is of a Repository in the namespace, or where it has no lane, its Schedule is in there."""
    repositories = sa.select(REPOSITORIES.c.id).where(REPOSITORIES.c.namespace == namespace)
    schedules = sa.select(SCHEDULES.c.id).where(SCHEDULES.c.namespace == namespace)
    repository = sa.func.substr(JOBS.c.lane, 1, _ID_SIZE)
    return sa.or_(repository.in_(repositories), _unindexed(JOBS.c.scheduled_id).in_(schedules))


def _begins(column: sa.ColumnElement[Any], prefix: str) -> Conditions:
    return [column >= prefix, column < prefix + "g"]  # ids are hexadecimal digits


def _place(of: tuple[datetime, str] | None = None) -> sa.Tuple:
    """Where a job is in the order of the list: of this one, or of each row."""
    if of is None:
        return sa.tuple_(JOBS.c.created_at, JOBS.c.id)
    return sa.tuple_(sa.literal(of[0], JOBS.c.created_at.type), sa.literal(of[1]))


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


def running(conn: Connection, schedule_ids: Collection[str] | None, limit: int) -> tuple[list[RunningRow], int]:
    """The jobs that are to end first, up to `limit`, and how many run.

    `schedule_ids`: only of these schedules; None for all jobs. All jobs that run are looked at in any case.
    """
    its: Conditions = [sa.text("status = 'running'")]  # type: ignore[list-item]
    if schedule_ids is not None:
        given = batch.Given(conn.dialect.name, [JOBS.c.scheduled_id]).select()
        its.append(_unindexed(JOBS.c.scheduled_id).in_(given))
    ids = batch.parameter((it,) for it in schedule_ids or ())
    columns = (JOBS.c.id, JOBS.c.host, JOBS.c.kind, JOBS.c.scheduled_id, JOBS.c.accepted_at)
    found = conn.execute(sa.select(*columns).where(*its).order_by(JOBS.c.hangs_at, JOBS.c.id).limit(limit), ids)
    count = conn.execute(sa.select(sa.func.count()).select_from(JOBS).where(*its), ids).scalar_one()
    return [RunningRow(*row) for row in found], count
