"""The query by which a server reads its state from the store when it starts."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch, changelog
from server.store.rows import HostRow, Joined, Loaded, RepositoryRow, ScheduleRow
from server.store.tables import GOOD, HOST_SCHEDULES, HOSTS, JOBS, OPEN, REPOSITORIES, SCHEDULES


def load_all(conn: Connection, now: datetime) -> Loaded:
    """All that is declared (credentials stay sealed), and the last end of each schedule on each host."""
    hosts = batch.whole(conn, [HOSTS.c[name] for name in HostRow._fields], HostRow)
    schedules = batch.whole(conn, [SCHEDULES.c[name] for name in ScheduleRow._fields], ScheduleRow)
    repositories = batch.whole(conn, [REPOSITORIES.c[name] for name in RepositoryRow._fields], RepositoryRow)
    joined = batch.whole(conn, [HOST_SCHEDULES.c[name] for name in Joined._fields], Joined)
    ends = [tuple(row) for row in _last_ends(conn, now)]
    return Loaded(hosts, schedules, repositories, ends, joined, changelog.head(conn))


def _last_ends(conn: Connection, now: datetime) -> Iterable[sa.Row[Any]]:
    """The last end of each schedule on each host.

    A job recorded after `now` counts as older than the others: the server's clock was ahead when it was recorded.
    """
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
        JOBS.c.created_at,
        JOBS.c.id,
        sa.func.row_number().over(partition_by=pair, order_by=newest_first).label("place"),
    ).where(JOBS.c.scheduled_id.is_not(None), JOBS.c.status.not_in(OPEN))
    ends = ended.subquery()
    return conn.execute(sa.select(*list(ends.c)[:-1]).where(ends.c.place == 1))
