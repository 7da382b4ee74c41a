"""Statements that delete jobs and audit lines beyond the retention of history."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import AUDIT, GOOD, JOBS, OPEN

BATCH = 200
"""Maximum rows that one transaction deletes, so that other writers do not wait long."""


class Past(NamedTuple):
    """Which ended jobs may be deleted: recorded before `before`, and after the job with (created_at, id) `after`."""

    before: datetime
    after: tuple[datetime, str] | None = None


def delete_past(conn: Connection, items: Sequence[Past]) -> list[tuple[datetime, str] | None]:
    """Delete ended jobs, oldest first, with their attempts and logs.

    The last ended job of each schedule on each host is kept, and the last successful one. Each call examines up to
    BATCH jobs and returns (created_at, id) of the last, or None when there are no more.
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
    # As no index has it: the jobs of the pair are found by their unique key, and not among those of all hosts.
    recorded_at = sa.func.coalesce(later.c.created_at, later.c.scheduled_at, type_=JOBS.c.created_at.type)
    is_later = sa.tuple_(recorded_at, later.c.id) > place
    has_later = sa.exists().where(*of_pair, later.c.status.not_in(OPEN), is_later)
    has_later_good = sa.exists().where(*of_pair, later.c.status.in_(GOOD), is_later)
    is_not_last = sa.and_(has_later, sa.or_(JOBS.c.status.not_in(GOOD), has_later_good))
    ids = batch.Given(conn.dialect.name, [JOBS.c.id]).select()
    may_go = sa.and_(JOBS.c.status.not_in(OPEN), sa.or_(JOBS.c.scheduled_id.is_(None), is_not_last))
    statement = sa.delete(JOBS).where(JOBS.c.id.in_(ids), may_go)
    conn.execute(statement, batch.parameter((row.id,) for row in seen))
    return (seen[-1].created_at, seen[-1].id) if len(seen) == BATCH else None


def delete_audit(conn: Connection, items: Sequence[datetime]) -> list[bool]:
    """Delete audit lines from before these times, oldest first, up to BATCH each; return whether there may be more."""
    more = []
    for before in items:
        oldest = conn.execute(sa.select(AUDIT.c.id, AUDIT.c.at).order_by(AUDIT.c.id).limit(BATCH)).all()
        ids = [row.id for row in oldest if row.at < before]
        if ids:
            batch.execute(conn, batch.delete(conn.dialect.name, AUDIT, "id"), ((id_,) for id_ in ids))
        more.append(len(ids) == BATCH)
    return more


def nth_newest_job(conn: Connection, number: int) -> datetime | None:
    """When the job at this position, counted from the newest (1), was recorded; None when there are fewer jobs."""
    newest = sa.select(JOBS.c.created_at).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc())
    at: datetime | None = conn.execute(newest.offset(number - 1).limit(1)).scalar()
    return at
