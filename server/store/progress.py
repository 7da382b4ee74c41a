"""Statements on how far running jobs are, for the servers that do not have their hosts."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from server.store import batch
from server.store.tables import JOBS, PROGRESS


class ProgressRow(NamedTuple):
    """How far a job is. `body`: the JSON of what its host reported."""

    job_id: str
    at: datetime
    body: str


def put_progress(conn: Connection, batches: Sequence[Sequence[ProgressRow]]) -> list[None]:
    """Put how far jobs are; what was deleted meanwhile is left out."""
    rows = {row.job_id: row for some in batches for row in some}
    if rows:
        batch.execute(conn, _put(conn.dialect.name), rows.values())
    return [None] * len(batches)


def drop_progress(conn: Connection, batches: Sequence[Sequence[str]]) -> list[None]:
    """Delete it of jobs that do not run any more."""
    batch.delete_rows(conn, PROGRESS, "job_id", [job_id for some in batches for job_id in some])
    return [None] * len(batches)


def progress_of(conn: Connection, job_ids: Sequence[str]) -> dict[str, ProgressRow]:
    """How far these jobs are, of those of which it is known."""
    found = sa.select(PROGRESS.c.job_id, PROGRESS.c.at, PROGRESS.c.body).where(PROGRESS.c.job_id.in_(job_ids))
    return {row.job_id: ProgressRow(*row) for row in conn.execute(found)}


@cache
def _put(dialect: str) -> str:
    given = batch.Given(dialect, [PROGRESS.c[name] for name in ProgressRow._fields])
    known = sa.exists().where(JOBS.c.id == given.values[0])
    rows = sa.select(*given.values).select_from(given.table).where(known)
    insert = postgresql.insert(PROGRESS) if dialect == "postgresql" else sqlite.insert(PROGRESS)
    put = insert.from_select(ProgressRow._fields, rows, include_defaults=False)
    changed = {"at": put.excluded.at, "body": put.excluded.body}
    return batch.prepared(dialect, put.on_conflict_do_update(index_elements=["job_id"], set_=changed))
