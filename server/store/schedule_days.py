"""Statements on how the jobs of each schedule went, by day: the history of schedules and of repositories."""

from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from typing import NamedTuple

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import GOOD, SCHEDULE_DAYS
from wire.messages import JobFinished

BATCH = 1000
"""Maximum rows that one transaction deletes, so that other writers do not wait long."""
_VALUES = [column.name for column in SCHEDULE_DAYS.c if not column.primary_key]


class EndOf(NamedTuple):
    """The end of a schedule's job, the id of the repository that it used, and whether it was a backup."""

    repository_id: str
    schedule_id: str
    end: JobFinished
    is_backup: bool


class PastDay(Struct, frozen=True):
    """How jobs of Schedules that ended on a day (UTC) went.

    `failed`: those with any end but `succeeded` and `warning`. `backups`: backups that made a snapshot. `seconds`: how
    long all took together; `longest`: how long the longest took. `bytes_processed`: of the files; `bytes_added`: to the
    repository.
    """

    day: date
    succeeded: int
    warned: int
    failed: int
    backups: int
    seconds: int
    longest: int
    bytes_processed: int
    bytes_added: int


def count_schedule_ends(conn: Connection, ends: Iterable[EndOf]) -> None:
    """Count the ends of schedules' jobs. Each end must be counted once."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for repository, schedule, end, is_backup in ends:
        key = (repository, end.finished_at.date().isoformat(), schedule)
        counts, is_good = found.setdefault(key, dict.fromkeys(_VALUES, 0)), end.status in GOOD
        counts["succeeded" if end.status == "succeeded" else "warned" if is_good else "failed"] += 1
        counts["backups"] += is_backup and is_good and bool(end.snapshot_id) and end.bytes_processed > 0
        seconds = 0 if end.started_at is None else max(0, int((end.finished_at - end.started_at).total_seconds()))
        counts["seconds"] += seconds
        counts["longest"] = max(counts["longest"], seconds)
        counts["bytes_processed"] = batch.plus(counts["bytes_processed"], end.bytes_processed)
        counts["bytes_added"] = batch.plus(counts["bytes_added"], end.bytes_added)
    if found:
        rows = ([*key, *(counts[name] for name in _VALUES)] for key, counts in found.items())
        batch.execute(conn, _adding(conn.dialect.name), rows)


@cache
def _adding(dialect: str) -> str:
    return batch.adding(dialect, SCHEDULE_DAYS, {"longest"})


def days_of_schedule(conn: Connection, schedule_id: str, since: date) -> list[PastDay]:
    """How a schedule's jobs went on each day from `since` on, on which one ended."""
    return _days(conn, SCHEDULE_DAYS.c.schedule_id == schedule_id, since)


def days_of_repository(conn: Connection, repository_id: str, since: date) -> list[PastDay]:
    """How the jobs of all schedules on a repository went on each day from `since` on, on which one ended."""
    return _days(conn, SCHEDULE_DAYS.c.repository_id == repository_id, since)


def _days(conn: Connection, which: sa.ColumnElement[bool], since: date) -> list[PastDay]:
    day = SCHEDULE_DAYS.c.day
    values = ((sa.func.max if name == "longest" else sa.func.sum)(SCHEDULE_DAYS.c[name]) for name in _VALUES)
    found = sa.select(day, *values).where(which, day >= since).group_by(day).order_by(day)
    return [PastDay(row[0], *map(int, row[1:])) for row in conn.execute(found)]


def delete_schedule_days(conn: Connection, items: Sequence[date]) -> list[bool]:
    """Delete days from before these, up to BATCH rows each; return whether there may be more."""
    return [_delete(conn, before) for before in items]


def _delete(conn: Connection, before: date) -> bool:
    key = list(SCHEDULE_DAYS.primary_key)
    old = sa.select(*key).where(SCHEDULE_DAYS.c.day < before).limit(BATCH)
    return conn.execute(sa.delete(SCHEDULE_DAYS).where(sa.tuple_(*key).in_(old))).rowcount == BATCH
