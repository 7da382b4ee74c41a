"""Statements on the hosts that Schedules with runOnJoin have met, and on those that are to run them once.

A host is due until its agent holds the Schedule: what it missed before is recorded by then, and is its run.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.rows import Met, Pair
from server.store.tables import CONNECTIONS, HOSTS, JOBS, MET_HOSTS

MOST = 500
"""Maximum hosts that one transaction has run what they joined."""


class JoinRow(NamedTuple):
    """A host that joined a schedule. `has_run`: whether it has a job of it already."""

    schedule_id: str
    host: str
    has_run: bool


def meet(conn: Connection, met: Sequence[Met]) -> None:
    """Note hosts that schedules select. Those that are known stay as they are."""
    if met:
        batch.execute(conn, batch.insert_new(conn.dialect.name, MET_HOSTS, Met._fields), met)


def part(conn: Connection, pairs: Sequence[Pair]) -> None:
    """Forget those of these hosts that left before they ran what they joined: they join anew if they come back."""
    if pairs:
        its = _of_pairs(conn.dialect.name)
        conn.execute(sa.delete(MET_HOSTS).where(its, MET_HOSTS.c.due), batch.parameter(pairs))


def ran(conn: Connection, pairs: Sequence[Pair]) -> None:
    """These hosts are due no more."""
    if pairs:
        conn.execute(sa.update(MET_HOSTS).values(due=False).where(_of_pairs(conn.dialect.name)), batch.parameter(pairs))


def due(conn: Connection) -> list[JoinRow]:
    """Connected hosts that are due and hold what is declared for them, MOST at most."""
    in_sync = HOSTS.c.applied_version == HOSTS.c.desired_version, HOSTS.c.applied_digest == HOSTS.c.desired_digest
    its = _connected().where(*in_sync, ~CONNECTIONS.c.drains).order_by(MET_HOSTS.c.host, MET_HOSTS.c.schedule_id)
    return [JoinRow(it.schedule_id, it.host, bool(it.has_run)) for it in conn.execute(its.limit(MOST))]


def are_due(conn: Connection) -> bool:
    """Whether a connected host is due."""
    return conn.execute(_connected().limit(1)).first() is not None


@cache
def _connected() -> sa.Select[tuple[str, str, bool]]:
    of_pair = JOBS.c.scheduled_id == MET_HOSTS.c.schedule_id, JOBS.c.host == MET_HOSTS.c.host
    has_run = sa.exists().where(*of_pair).label("has_run")
    joined = MET_HOSTS.join(HOSTS, HOSTS.c.name == MET_HOSTS.c.host)
    joined = joined.join(CONNECTIONS, CONNECTIONS.c.host == MET_HOSTS.c.host)
    found = sa.select(MET_HOSTS.c.schedule_id, MET_HOSTS.c.host, has_run).select_from(joined)
    return found.where(sa.text("met_hosts.due"), CONNECTIONS.c.server.is_not(None))


def _of_pairs(dialect: str) -> sa.ColumnElement[bool]:
    key = MET_HOSTS.c.schedule_id, MET_HOSTS.c.host
    return sa.tuple_(*key).in_(batch.Given(dialect, [*key]).select())
