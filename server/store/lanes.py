"""A query on the lanes of a repository, for people: who has a slot, and who waits for one."""

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store.queries import all_rows
from server.store.queue import MAX_AHEAD
from server.store.rows import Row
from server.store.tables import JOBS


class LaneJobs(NamedTuple):
    """The jobs of a repository's lanes. `holding`: with a slot. `ready`: the first that wait for one, in order.
    `waits`: how many wait for one, counted up to MAX_AHEAD."""

    holding: list[Row]
    ready: list[Row]
    waits: int


def in_lanes(conn: Connection, repository: str, limit: int) -> LaneJobs:
    """The jobs of a repository's lanes, up to `limit` of either kind."""
    last = f"{repository}0"  # REPOSITORY/HOST is one: "0" follows "/"
    own = sa.and_(JOBS.c.lane >= repository, JOBS.c.lane < last)
    of_copies = sa.and_(sa.text("from_lane <> ''"), JOBS.c.from_lane >= repository, JOBS.c.from_lane < last)
    # in the words of the partial indexes
    holds, ready = (sa.or_(sa.and_(sa.text(it), own), sa.and_(sa.text(it), of_copies)) for it in ("holds", "ready"))
    holding = sa.select(JOBS).where(holds).order_by(JOBS.c.lane, JOBS.c.id)
    waiting = sa.select(JOBS).where(ready).order_by(JOBS.c.lane, JOBS.c.queued_at, JOBS.c.id)
    counted = sa.select(JOBS.c.id).where(ready).limit(MAX_AHEAD).subquery()
    waits: int = conn.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one()
    return LaneJobs(all_rows(conn, holding.limit(limit)), all_rows(conn, waiting.limit(limit)), waits)
