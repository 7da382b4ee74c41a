"""What is written to and read from the tables, as functions on a connection: plain values in, plain values out.

The functions for `Store.write` are bulk functions: they take the items of many callers, and answer each, in order.
Each does its work in a fixed number of statements, however many items there are (see `bulk`).
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server import bulk
from server.expected import Joined, Pair
from server.models import (
    AUDIT,
    HOST_SCHEDULES,
    HOSTS,
    JOB_ATTEMPTS,
    JOB_LOGS,
    JOBS,
    OPEN,
    REPOSITORIES,
    SCHEDULES,
    STORE_OWNER,
)
from server.outcomes import GOOD
from server.timing import Timing
from wire.messages import JobFinished

if TYPE_CHECKING:
    from server.host import NewJob

MAX_LOG_LINES = 10_000
"""Lines kept of one job's log; what is beyond is dropped, and the last line says so."""
MAX_LOG_BYTES = 1 << 20
"""Bytes kept of one job's log, in UTF-8."""
BATCH = 200
"""Rows that one transaction deletes, with what belongs to them: others wait no longer than for that."""

Row = dict[str, Any]
"""A row by column name, as a query answers it: aware datetimes, JSON columns as plain values."""

_encode = msgspec.json.Encoder().encode


class _On(msgspec.Struct):
    """Of a command, which repository it is on; see `commands.repository_id`."""

    repository: str = ""


_on = msgspec.json.Decoder(_On)


class JobRow(NamedTuple):
    """A job that is about to be recorded. `command`: the JSON of its command.run payload. `sent`: it goes at once."""

    id: str
    host: str
    kind: str
    actor_kind: str
    actor_id: str
    scheduled_id: str | None
    scheduled_at: datetime | None
    missed: int
    command: str
    created_at: datetime
    sent: bool = False
    status: str = "pending"


class HostRow(NamedTuple):
    """A host as the control plane knows it; what its agent told is kept by `host_hello` and `host_acks`."""

    name: str
    labels: Mapping[str, str]
    created_at: datetime
    since: datetime
    desired_version: int = 0
    desired_digest: str = ""
    applied_version: int = 0
    applied_digest: str = ""
    agent_version: str = ""
    left_out: Mapping[str, Any] | None = None


class ScheduleRow(NamedTuple):
    """A schedule as accepted. `earlier`: its timings before the present one, newest first."""

    id: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    generation: int
    created_at: datetime
    since: datetime
    updated_at: datetime
    enabled_since: datetime | None = None
    earlier: tuple[Timing, ...] = ()


class RepositoryRow(NamedTuple):
    """A repository as accepted. `credentials`: as `Vault.seal` made them; its repr leaves them out."""

    id: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    generation: int
    created_at: datetime
    updated_at: datetime
    credentials: str | None = None

    def __repr__(self) -> str:
        return f"RepositoryRow(id={self.id!r}, namespace={self.namespace!r}, name={self.name!r})"


class AuditRow(NamedTuple):
    """Who did what to which object."""

    at: datetime
    actor_kind: str
    actor_id: str
    action: str
    object_kind: str
    object_name: str
    detail: Mapping[str, Any]


class OpenJob(NamedTuple):
    """A job without an end. `status`: pending or running; `command`: the JSON of its command.run payload."""

    host: str
    status: str
    command: str
    created_at: datetime
    sent: bool
    attempt: int
    not_before: datetime | None
    cancel_requested: bool
    accepted_at: datetime | None


class Retry(NamedTuple):
    """An attempt of a job that failed, and when the next one is due."""

    end: JobFinished
    attempt: int
    not_before: datetime


class Loaded(NamedTuple):
    """All that a server needs in memory when it starts.

    `last_ends`: (schedule id, host, status, when it ended, when one last went well, reason, error).
    """

    hosts: list[HostRow]
    schedules: list[ScheduleRow]
    repositories: list[RepositoryRow]
    last_ends: list[tuple[Any, ...]]
    open_jobs: list[OpenJob]
    joined: list[Joined]


# Jobs.


def job_row(job: "NewJob", *, sent: bool) -> JobRow:
    """A fire's or a run's job as it is recorded."""
    command = job.command
    return JobRow(
        id=command.job_id,
        host=job.host,
        kind=command.kind,
        actor_kind=job.actor_kind,
        actor_id=job.actor_id,
        scheduled_id=command.schedule_id or None,
        scheduled_at=command.scheduled_at,
        missed=job.missed,
        command=_encode(command).decode(),
        created_at=job.created_at,
        sent=sent,
    )


def record_jobs(conn: Connection, batches: Sequence[Sequence[JobRow]]) -> list[set[str]]:
    """Record jobs; the answers hold the ids that stand recorded.

    A job that has the host, schedule and due time of another, here or in the table, is left out: the first counts.
    """
    rows = list(chain.from_iterable(batches))
    if not rows:
        return [set() for _ in batches]
    new = conn.execute(bulk.insert_new(conn.dialect.name, JOBS, JobRow._fields), bulk.parameter(rows)).rowcount
    if new == len(rows):
        return [{row.id for row in batch} for batch in batches]
    found = bulk.gathered(conn, _ids(conn.dialect.name, ()), ((row.id,) for row in rows))
    there = {job_id for (job_id,) in found}
    return [{row.id for row in batch if row.id in there} for batch in batches]


@cache
def _ids(dialect: str, statuses: tuple[str, ...]) -> sa.Executable:
    """Which of the given jobs exist, in one of these states if any are named."""
    given = bulk.Given(dialect, [JOBS.c.id]).select()
    found = sa.select(JOBS.c.id).where(JOBS.c.id.in_(given), *([JOBS.c.status.in_(statuses)] if statuses else []))
    return bulk.gather(found.subquery())


def jobs_accepted(conn: Connection, batches: Sequence[Sequence[tuple[str, datetime]]]) -> list[set[str]]:
    """Pending jobs (id, when) become running; others stay as they are. Answers the ids that changed."""
    accepted = {job_id: (job_id, "running", at) for job_id, at in chain.from_iterable(batches)}
    changed = _changed(conn, accepted, ("id", "status", "accepted_at"), ("pending",))
    return [{job_id for job_id, _ in batch if job_id in changed} for batch in batches]


_ENDED = (
    "id", "status", "finished_at", "started_at", "exit_code", "snapshot_id",
    "files_processed", "bytes_processed", "bytes_added", "error", "reason",
)  # fmt: skip


def jobs_finished(conn: Connection, batches: Sequence[Sequence[JobFinished]]) -> list[set[str]]:
    """Open jobs end; of several ends of one job the first counts. Answers the ids of the jobs that these ended."""
    ends: dict[str, Sequence[object]] = {}
    firsts: list[set[str]] = []
    for batch in batches:
        first = {end.job_id for end in batch if end.job_id not in ends}  # `-` would walk all of `ends` each time
        firsts.append(first)
        for end in batch:
            ends.setdefault(end.job_id, [end.job_id, *(getattr(end, name) for name in _ENDED[1:])])
    changed = _changed(conn, ends, _ENDED, OPEN)
    return [first & changed for first in firsts]


def _changed(
    conn: Connection, rows: Mapping[str, Sequence[object]], names: tuple[str, ...], statuses: tuple[str, ...]
) -> set[str]:
    """Update those jobs that are in one of these states; answer which they are."""
    if not rows:
        return set()
    found = bulk.gathered(conn, _ids(conn.dialect.name, statuses), ((job_id,) for job_id in rows))
    changed = {job_id for (job_id,) in found}
    if changed:
        statement = _update_jobs(conn.dialect.name, names, statuses)
        conn.execute(statement, bulk.parameter(row for job_id, row in rows.items() if job_id in changed))
    return changed


@cache
def _update_jobs(dialect: str, names: tuple[str, ...], statuses: tuple[str, ...]) -> sa.Executable:
    return bulk.update(dialect, JOBS, names, JOBS.c.status.in_(statuses))


def jobs_sent(conn: Connection, batches: Sequence[Sequence[str]]) -> list[None]:
    """Jobs that waited for their turn are about to be sent."""
    _set(conn, "sent", chain.from_iterable(batches))
    return [None] * len(batches)


def jobs_cancelled(conn: Connection, batches: Sequence[Sequence[str]]) -> list[None]:
    """Hosts are to end these jobs."""
    _set(conn, "cancel_requested", chain.from_iterable(batches))
    return [None] * len(batches)


def _set(conn: Connection, flag: str, job_ids: Iterable[str]) -> None:
    if ids := set(job_ids):
        statement = _update_jobs(conn.dialect.name, ("id", flag), OPEN)
        conn.execute(statement, bulk.parameter((job_id, True) for job_id in ids))


_FAILED = ("job_id", "attempt", "status", "finished_at", "started_at", "exit_code", "snapshot_id", "error", "reason")


def jobs_retried(conn: Connection, batches: Sequence[Sequence[Retry]]) -> list[None]:
    """Attempts failed and others follow; of several ends of one attempt the first counts."""
    ids = {retry.end.job_id for batch in batches for retry in batch}
    given = bulk.gathered(conn, _attempts(conn.dialect.name), ((job_id,) for job_id in ids)) if ids else []
    at = dict(given)
    retries: dict[str, Retry] = {}
    for retry in chain.from_iterable(batches):
        if at.get(retry.end.job_id) == retry.attempt:
            retries.setdefault(retry.end.job_id, retry)
    if retries:
        failed = [
            [job_id, it.attempt, *(getattr(it.end, name) for name in _FAILED[2:])] for job_id, it in retries.items()
        ]
        conn.execute(bulk.insert_new(conn.dialect.name, JOB_ATTEMPTS, _FAILED), bulk.parameter(failed))
        names = ("id", "status", "attempt", "not_before", "sent", "accepted_at")
        again = [(job_id, "pending", it.attempt + 1, it.not_before, False, None) for job_id, it in retries.items()]
        conn.execute(_update_jobs(conn.dialect.name, names, OPEN), bulk.parameter(again))
    return [None] * len(batches)


@cache
def _attempts(dialect: str) -> sa.Executable:
    """The present attempt of those of the given jobs that are open."""
    given = bulk.Given(dialect, [JOBS.c.id]).select()
    found = sa.select(JOBS.c.id, JOBS.c.attempt).where(JOBS.c.id.in_(given), JOBS.c.status.in_(OPEN))
    return bulk.gather(found.subquery())


def log_lines(conn: Connection, items: Sequence[tuple[str, datetime, Sequence[str]]]) -> list[bool]:
    """Append lines to jobs' logs, up to MAX_LOG_LINES and MAX_LOG_BYTES each; lines of unknown jobs are dropped.

    The answers say whether no more of that job's lines are kept.
    """
    found = bulk.gathered(
        conn, _log_ends(conn.dialect.name), ((job_id,) for job_id in {job_id for job_id, *_ in items})
    )
    ends: dict[str, tuple[int, int]] = {job_id: (seq or 0, size or 0) for job_id, seq, size in found}
    rows: list[tuple[str, int, datetime, str, int]] = []
    for job_id, at, lines in items:
        if job_id in ends:
            added = list(_log_rows(job_id, at, lines, *ends[job_id]))
            rows += added
            if added:
                ends[job_id] = (added[-1][1], added[-1][4])
    if rows:
        names = ("job_id", "seq", "at", "line", "total_bytes")
        conn.execute(bulk.insert_new(conn.dialect.name, JOB_LOGS, names), bulk.parameter(rows))
    return [job_id not in ends or _is_full(*ends[job_id]) for job_id, *_ in items]


def _is_full(seq: int, size: int) -> bool:
    """Whether a log whose last row is this one takes no more."""
    return seq >= MAX_LOG_LINES or size > MAX_LOG_BYTES


def _log_rows(
    job_id: str, at: datetime, lines: Iterable[str], seq: int, size: int
) -> Iterable[tuple[str, int, datetime, str, int]]:
    """The rows that these lines make after row `seq` at `size` bytes; the last row of a full log says that it is."""
    for text in lines:
        if _is_full(seq, size):
            return
        line = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL's text cannot hold it
        seq, size = seq + 1, size + len(line.encode(errors="replace"))
        if seq == MAX_LOG_LINES or size > MAX_LOG_BYTES:
            size = max(size, MAX_LOG_BYTES + 1)
            line = f"(log cut here: at most {MAX_LOG_LINES} lines and {MAX_LOG_BYTES} bytes are kept)"
        yield job_id, seq, at, line, size


@cache
def _log_ends(dialect: str) -> sa.Select[Any]:
    """The number and the size of the last line of each given job that exists."""
    given = bulk.Given(dialect, [JOBS.c.id]).select()
    logs = JOB_LOGS.alias()
    last = sa.select(sa.func.max(logs.c.seq)).where(logs.c.job_id == JOBS.c.id).correlate(JOBS).scalar_subquery()
    to_last = sa.and_(JOB_LOGS.c.job_id == JOBS.c.id, JOB_LOGS.c.seq == last)
    found = sa.select(JOBS.c.id, JOB_LOGS.c.seq, JOB_LOGS.c.total_bytes).select_from(JOBS.outerjoin(JOB_LOGS, to_last))
    return bulk.gather(found.where(JOBS.c.id.in_(given)).subquery())


# Hosts.


def host_acks(conn: Connection, items: Sequence[tuple[str, int, str, datetime]]) -> list[None]:
    """Store what hosts hold: (host, version, digest, when); the last of a host counts."""
    return _update_hosts(conn, ("name", "applied_version", "applied_digest", "last_seen"), items)


def host_left_out(conn: Connection, items: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[None]:
    """Store what hosts could not put in force: (host, `Host.left_out`); the last of a host counts."""
    return _update_hosts(conn, ("name", "left_out"), items)


def host_hello(conn: Connection, items: Sequence[tuple[str, str, datetime]]) -> list[None]:
    """Store who called: (host, agent_version, when); the last of a host counts."""
    return _update_hosts(conn, ("name", "agent_version", "last_seen"), items)


def hosts_seen(conn: Connection, batches: Sequence[Sequence[tuple[str, datetime]]]) -> list[None]:
    """Store when hosts were last heard of: (host, when); the last of a host counts."""
    _update_hosts(conn, ("name", "last_seen"), list(chain.from_iterable(batches)))
    return [None] * len(batches)


def set_desired(conn: Connection, batches: Sequence[Sequence[tuple[str, int, str]]]) -> list[None]:
    """Store what hosts should hold: (host, version, digest); the last of a host counts."""
    _update_hosts(conn, ("name", "desired_version", "desired_digest"), list(chain.from_iterable(batches)))
    return [None] * len(batches)


def _update_hosts(conn: Connection, names: tuple[str, ...], items: Sequence[tuple[Any, ...]]) -> list[None]:
    if items:
        last = {item[0]: item for item in items}
        conn.execute(bulk.update(conn.dialect.name, HOSTS, names), bulk.parameter(last.values()))
    return [None] * len(items)


# What is declared.


def upsert_hosts(conn: Connection, rows: Sequence[HostRow]) -> list[None]:
    """Put hosts by name; of one that is there only labels and `since` change, for the rest has writers of its own."""
    return _upsert(conn, HOSTS, rows, keep=("created_at", *HostRow._fields[4:]))


def upsert_schedules(conn: Connection, rows: Sequence[ScheduleRow]) -> list[None]:
    """Put schedules by id. Raises IntegrityError when another id has that namespace and name."""
    return _upsert(conn, SCHEDULES, rows, keep=("created_at",))


def upsert_repositories(conn: Connection, rows: Sequence[RepositoryRow]) -> list[None]:
    """Put repositories by id. Raises IntegrityError when another id has that namespace and name."""
    return _upsert(conn, REPOSITORIES, rows, keep=("created_at",))


def _upsert(
    conn: Connection,
    table: sa.Table,
    rows: Sequence[HostRow] | Sequence[ScheduleRow] | Sequence[RepositoryRow],
    keep: tuple[str, ...],
) -> list[None]:
    if rows:
        last = {row[0]: row for row in rows}
        conn.execute(bulk.upsert(conn.dialect.name, table, rows[0]._fields, keep), bulk.parameter(last.values()))
    return [None] * len(rows)


def delete_hosts(conn: Connection, names: Sequence[str]) -> list[None]:
    """Delete hosts; their jobs stay."""
    return _delete(conn, HOSTS, "name", names)


def delete_schedules(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Delete schedules; their jobs stay."""
    return _delete(conn, SCHEDULES, "id", ids)


def delete_repositories(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Delete repositories."""
    return _delete(conn, REPOSITORIES, "id", ids)


def _delete(conn: Connection, table: sa.Table, key: str, values: Sequence[str]) -> list[None]:
    if values:
        conn.execute(bulk.delete(conn.dialect.name, table, key), bulk.parameter((value,) for value in values))
    return [None] * len(values)


def upsert_joined(conn: Connection, rows: Sequence[Joined]) -> list[None]:
    """Put since when hosts have schedules."""
    if rows:
        last = {(row.schedule_id, row.host): row for row in rows}
        statement = bulk.upsert(conn.dialect.name, HOST_SCHEDULES, Joined._fields)
        conn.execute(statement, bulk.parameter(last.values()))
    return [None] * len(rows)


def delete_joined(conn: Connection, pairs: Sequence[Pair]) -> list[None]:
    """Delete since when hosts have schedules."""
    if pairs:
        given = bulk.Given(conn.dialect.name, [HOST_SCHEDULES.c.schedule_id, HOST_SCHEDULES.c.host])
        key = sa.tuple_(HOST_SCHEDULES.c.schedule_id, HOST_SCHEDULES.c.host)
        conn.execute(sa.delete(HOST_SCHEDULES).where(key.in_(given.select())), bulk.parameter(pairs))
    return [None] * len(pairs)


def audit(conn: Connection, rows: Sequence[AuditRow]) -> list[None]:
    """Append to the audit log."""
    if rows:
        conn.execute(bulk.insert_new(conn.dialect.name, AUDIT, AuditRow._fields), bulk.parameter(rows))
    return [None] * len(rows)


# History.


class Past(NamedTuple):
    """Which ended jobs may be deleted: recorded before `before`, and beyond the one of (created_at, id) `after`."""

    before: datetime
    after: tuple[datetime, str] | None = None


def delete_past(conn: Connection, items: Sequence[Past]) -> list[tuple[datetime, str] | None]:
    """Delete ended jobs, oldest first, with their attempts and logs.

    Kept are the last that ended of each schedule on each host, and the last that went well. Each call looks at up to
    BATCH jobs; the answer is the last one of them, None when there are no more.
    """
    return [_delete_past(conn, item) for item in items]


def _delete_past(conn: Connection, past: Past) -> tuple[datetime, str] | None:
    place = sa.tuple_(JOBS.c.created_at, JOBS.c.id)
    old = sa.select(JOBS.c.created_at, JOBS.c.id).where(JOBS.c.created_at < past.before)
    if past.after is not None:
        at = sa.literal(past.after[0], JOBS.c.created_at.type)
        old = old.where(place > sa.tuple_(at, sa.literal(past.after[1])))
    seen = conn.execute(old.order_by(JOBS.c.created_at, JOBS.c.id).limit(BATCH)).all()
    if not seen:
        return None
    later = JOBS.alias()
    of_pair = (later.c.host == JOBS.c.host, later.c.scheduled_id == JOBS.c.scheduled_id)
    is_later = sa.tuple_(later.c.created_at, later.c.id) > place
    has_later = sa.exists().where(*of_pair, later.c.status.not_in(OPEN), is_later)
    has_later_good = sa.exists().where(*of_pair, later.c.status.in_(GOOD), is_later)
    is_not_last = sa.and_(has_later, sa.or_(JOBS.c.status.not_in(GOOD), has_later_good))
    ids = bulk.Given(conn.dialect.name, [JOBS.c.id]).select()
    may_go = sa.and_(JOBS.c.status.not_in(OPEN), sa.or_(JOBS.c.scheduled_id.is_(None), is_not_last))
    statement = sa.delete(JOBS).where(JOBS.c.id.in_(ids), may_go)
    conn.execute(statement, bulk.parameter((row.id,) for row in seen))
    return (seen[-1].created_at, seen[-1].id) if len(seen) == BATCH else None


def delete_audit(conn: Connection, items: Sequence[datetime]) -> list[bool]:
    """Delete what was audited before these times, oldest first, up to BATCH lines; whether there may be more."""
    more = []
    for before in items:
        oldest = conn.execute(sa.select(AUDIT.c.id, AUDIT.c.at).order_by(AUDIT.c.id).limit(BATCH)).all()
        ids = [row.id for row in oldest if row.at < before]
        if ids:
            conn.execute(bulk.delete(conn.dialect.name, AUDIT, "id"), bulk.parameter((id_,) for id_ in ids))
        more.append(len(ids) == BATCH)
    return more


# Queries, for `Store.read`.


def nth_newest_job(conn: Connection, number: int) -> datetime | None:
    """When the job was recorded before which there are only older ones than so many; None when there are no more."""
    newest = sa.select(JOBS.c.created_at).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc())
    at: datetime | None = conn.execute(newest.offset(number - 1).limit(1)).scalar()
    return at


def load_all(conn: Connection, now: datetime) -> Loaded:
    """All hosts, schedules and repositories (credentials sealed as stored), and how runs are and went by `now`."""
    hosts = bulk.whole(conn, [HOSTS.c[name] for name in HostRow._fields], HostRow)
    schedules = bulk.whole(conn, [SCHEDULES.c[name] for name in ScheduleRow._fields], ScheduleRow)
    repositories = bulk.whole(conn, [REPOSITORIES.c[name] for name in RepositoryRow._fields], RepositoryRow)
    joined = bulk.whole(conn, [HOST_SCHEDULES.c[name] for name in Joined._fields], Joined)
    is_open = sa.text("status IN ('pending', 'running')")  # in the words of the partial index, so that it is used
    open_jobs = conn.execute(sa.select(*(JOBS.c[name] for name in OpenJob._fields)).where(is_open))
    ends = [tuple(row) for row in _last_ends(conn, now)]
    return Loaded(hosts, schedules, repositories, ends, [OpenJob(*row) for row in open_jobs], joined)


def _last_ends(conn: Connection, now: datetime) -> Iterable[sa.Row[Any]]:
    """The last end of each schedule on each host. What is of a time to come is older: our clock was ahead then."""
    pair = (JOBS.c.scheduled_id, JOBS.c.host)
    newest_first = (sa.case((JOBS.c.created_at > now, 1), else_=0), JOBS.c.created_at.desc(), JOBS.c.id.desc())
    good, come = JOBS.c.status.in_(GOOD), JOBS.c.finished_at <= now
    latest = [
        sa.func.max(sa.case((of, JOBS.c.finished_at))).over(partition_by=pair) for of in (sa.and_(good, come), good)
    ]
    ended = sa.select(
        *pair,
        JOBS.c.status,
        JOBS.c.finished_at,
        sa.func.coalesce(*latest, type_=JOBS.c.finished_at.type).label("succeeded_at"),
        JOBS.c.reason,
        JOBS.c.error,
        sa.func.row_number().over(partition_by=pair, order_by=newest_first).label("place"),
    ).where(JOBS.c.scheduled_id.is_not(None), JOBS.c.status.not_in(OPEN))
    ends = ended.subquery()
    return conn.execute(sa.select(*list(ends.c)[:-1]).where(ends.c.place == 1))


def get_host(conn: Connection, name: str) -> Row | None:
    """A host, or None."""
    return _one(conn, sa.select(HOSTS).where(HOSTS.c.name == name))


def list_hosts(conn: Connection, after: str | None, limit: int) -> list[Row]:
    """Hosts in order of name, beyond `after`."""
    found = sa.select(HOSTS).order_by(HOSTS.c.name).limit(limit)
    return _all(conn, found if after is None else found.where(HOSTS.c.name > after))


def get_resource(conn: Connection, table: sa.Table, namespace: str, name: str) -> Row | None:
    """A schedule (with `last_due`, when it was last due and run) or a repository (without credentials), or None."""
    return _one(conn, sa.select(*_public(table)).where(table.c.namespace == namespace, table.c.name == name))


def list_resources(conn: Connection, table: sa.Table, after: tuple[str, str] | None, limit: int) -> list[Row]:
    """Schedules or repositories, as `get_resource` gives them, in order of namespace and name, beyond `after`."""
    found = sa.select(*_public(table)).order_by(table.c.namespace, table.c.name).limit(limit)
    key = sa.tuple_(table.c.namespace, table.c.name)
    return _all(conn, found if after is None else found.where(key > sa.tuple_(*after)))


def get_job(conn: Connection, job_id: str) -> Row | None:
    """A job, or None."""
    return _one(conn, sa.select(JOBS).where(JOBS.c.id == job_id))


def list_attempts(conn: Connection, job_id: str) -> list[Row]:
    """A job's attempts that were followed by another, in order."""
    columns = [column for column in JOB_ATTEMPTS.c if column.name != "job_id"]
    return _all(conn, sa.select(*columns).where(JOB_ATTEMPTS.c.job_id == job_id).order_by(JOB_ATTEMPTS.c.attempt))


def job_namespace(conn: Connection, job_id: str) -> str | None:
    """The namespace of the repository that a job is on, or None."""
    command: str | None = conn.execute(sa.select(JOBS.c.command).where(JOBS.c.id == job_id)).scalar()
    if command is None:
        return None
    id_ = _on.decode(command).repository.partition("/")[0]
    namespace: str | None = conn.execute(sa.select(REPOSITORIES.c.namespace).where(REPOSITORIES.c.id == id_)).scalar()
    return namespace


def lasting_job_id(*parts: str) -> str:
    """The id of a job that is asked for by a name: ever the same, so that whoever asks again gets the same job.

    It looks like any other id, 32 hexadecimal digits, so that the first of them tell jobs apart whatever their names
    have in common. `parts`: what makes it another job, such as namespace, name and host; none holds a space.
    """
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()


def run_status(conn: Connection, run_id: str) -> Row:
    """How far a run is, in the words of a Run's status. `run_id`: with its namespace, as its jobs' actor."""
    counts = {
        "pending": JOBS.c.status == "pending",
        "running": JOBS.c.status == "running",
        "succeeded": JOBS.c.status.in_(GOOD),
        "failed": JOBS.c.status.not_in((*OPEN, *GOOD)),
    }
    summed = [sa.func.coalesce(sa.func.sum(sa.cast(rule, sa.Integer)), 0).label(name) for name, rule in counts.items()]
    begun = sa.func.min(JOBS.c.created_at, type_=JOBS.c.created_at.type).label("startTime")
    over = sa.func.max(JOBS.c.finished_at, type_=JOBS.c.finished_at.type).label("completionTime")
    columns: list[sa.ColumnElement[Any]] = [sa.func.count().label("hosts"), *summed, begun, over]
    status = _all(conn, sa.select(*columns).where(*_of_run(run_id)))[0]
    if status["pending"] + status["running"]:
        status["completionTime"] = None
    return status


def run_failures(conn: Connection, run_id: str, limit: int) -> list[Row]:
    """The first jobs of a run that did not go well, by the host's name: host, status, reason, error."""
    columns = (JOBS.c.host, JOBS.c.status, JOBS.c.reason, JOBS.c.error)
    found = sa.select(*columns).where(*_of_run(run_id), JOBS.c.status.not_in((*OPEN, *GOOD)))
    return _all(conn, found.order_by(JOBS.c.host).limit(limit))


def _of_run(run_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Which jobs are a run's, in the words of the partial index, so that it is used."""
    return sa.text("actor_kind = 'run'"), JOBS.c.actor_id == run_id  # type: ignore[return-value]


def get_jobs(conn: Connection, job_ids: Sequence[str]) -> list[Row]:
    """Those of these jobs that exist, in this order."""
    given = bulk.Given(conn.dialect.name, [JOBS.c.id]).select()
    found = conn.execute(sa.select(JOBS).where(JOBS.c.id.in_(given)), bulk.parameter((job_id,) for job_id in job_ids))
    rows = {row.id: _plain(row) for row in found}
    return [rows[job_id] for job_id in job_ids if job_id in rows]


def list_jobs(
    conn: Connection,
    filters: Mapping[str, str],
    after: tuple[datetime, str] | None,
    limit: int,
    id_prefix: str = "",
    leave_out: Collection[str] = (),
) -> list[Row]:
    """Jobs whose columns equal `filters`, newest first, beyond the one of (created_at, id) `after`.

    `leave_out`: kinds that are not told.
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
    return _all(conn, found)


def list_log(conn: Connection, job_id: str, after: int, limit: int) -> list[Row]:
    """Lines of a job's log in order, beyond line number `after` (from 1)."""
    columns = (JOB_LOGS.c.seq, JOB_LOGS.c.at, JOB_LOGS.c.line)
    found = sa.select(*columns).where(JOB_LOGS.c.job_id == job_id, JOB_LOGS.c.seq > after)
    return _all(conn, found.order_by(JOB_LOGS.c.seq).limit(limit))


def list_audit(conn: Connection, before: int | None, limit: int) -> list[Row]:
    """The audit log, newest first, below the id `before`."""
    found = sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    return _all(conn, found if before is None else found.where(AUDIT.c.id < before))


def probe(conn: Connection, items: Sequence[datetime]) -> list[None]:
    """A write of no consequence: answered, it shows that the database can be written. The items are the time."""
    conn.execute(sa.update(STORE_OWNER).values(probed_at=max(items)))
    return [None] * len(items)


def _public(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    columns: list[sa.ColumnElement[Any]] = [
        column for column in table.c if column.name not in ("credentials", "earlier")
    ]
    if table is not SCHEDULES:
        return columns
    runs = sa.select(JOBS.c.scheduled_at).where(JOBS.c.scheduled_id == SCHEDULES.c.id, JOBS.c.scheduled_at.is_not(None))
    newest = runs.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(1)
    return [*columns, newest.correlate(SCHEDULES).scalar_subquery().label("last_due")]


def _plain(row: sa.Row[Any]) -> Row:
    return row._asdict()


def _one(conn: Connection, found: sa.Select[Any]) -> Row | None:
    row = conn.execute(found).one_or_none()
    return None if row is None else _plain(row)


def _all(conn: Connection, found: sa.Select[Any]) -> list[Row]:
    return [_plain(row) for row in conn.execute(found)]
