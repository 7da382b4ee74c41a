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
from server.store.tables import MET_HOSTS

MOST = 500
"""Maximum hosts that one transaction has run what they joined."""


class JoinRow(NamedTuple):
    """A host that joined a schedule. `has_run`: whether it has a job of it already, from after it was created:
    jobs of a host of its name that was deleted do not count."""

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
        batch.execute(conn, _part(conn.dialect.name), pairs)


def ran(conn: Connection, pairs: Sequence[Pair]) -> None:
    """These hosts are due no more."""
    if pairs:
        batch.execute(conn, _ran(conn.dialect.name), pairs)


def due(conn: Connection, passed: int = 0) -> list[JoinRow]:
    """Connected hosts that are due and hold what is declared for them, MOST at most. `passed`: how many to leave out,
    the first in order."""
    found = conn.exec_driver_sql(f"{_DUE} LIMIT {MOST} OFFSET {passed:d}", {}).all()
    return [JoinRow(schedule_id, host, bool(has_run)) for schedule_id, host, has_run in found]


def are_due(conn: Connection) -> bool:
    """Whether a connected host is due."""
    return bool(conn.exec_driver_sql(_ARE_DUE, {}).scalar())


_ITS = """
    WITH its AS (
        SELECT met_hosts.schedule_id, met_hosts.host, hosts.created_at, NOT connections.drains
            AND hosts.applied_version = hosts.desired_version AND hosts.applied_digest = hosts.desired_digest AS may_run
        FROM met_hosts JOIN connections ON connections.host = met_hosts.host JOIN hosts ON hosts.name = met_hosts.host
        WHERE met_hosts.due AND connections.server IS NOT NULL)
"""
_ARE_DUE = f"{_ITS} SELECT EXISTS (SELECT 1 FROM its)"
_DUE = f"""{_ITS}
    SELECT schedule_id, host, EXISTS (
        SELECT 1 FROM jobs WHERE jobs.scheduled_id = its.schedule_id AND jobs.host = its.host
            AND jobs.created_at >= its.created_at)
    FROM its WHERE may_run ORDER BY host, schedule_id
"""


@cache
def _part(dialect: str) -> str:
    return batch.prepared(dialect, sa.delete(MET_HOSTS).where(_of_pairs(dialect), MET_HOSTS.c.due))


@cache
def _ran(dialect: str) -> str:
    return batch.prepared(dialect, sa.update(MET_HOSTS).values(due=sa.false()).where(_of_pairs(dialect)))


def _of_pairs(dialect: str) -> sa.ColumnElement[bool]:
    key = MET_HOSTS.c.schedule_id, MET_HOSTS.c.host
    return sa.tuple_(*key).in_(batch.Given(dialect, [*key]).select())
