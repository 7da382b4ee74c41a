"""Statements on the rollouts of Schedules that pause: the hosts that failed, and the pauses until somebody resumes."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.rows import Pair
from server.store.tables import JOBS, OPEN, ROLLOUT_FAILURES, ROLLOUT_PAUSES

MAX_NAMED = 5
"""How many of the hosts that failed a pause names."""
_FAILED = ROLLOUT_FAILURES.c
_PAUSED = ROLLOUT_PAUSES.c


class Pause(NamedTuple):
    """Since when a Schedule is paused. `failed`: on how many hosts it had failed then; `hosts`: the first by name."""

    since: datetime
    failed: int
    hosts: Sequence[str]


def note_ends(conn: Connection, failed: Collection[Pair], others: Collection[Pair]) -> None:
    """Note that the newest run of each (schedule id, host) failed, or that it went otherwise."""
    if others:
        batch.execute(conn, _deleting(conn.dialect.name), set(others))
    if failed:
        batch.execute(conn, batch.insert_new(conn.dialect.name, ROLLOUT_FAILURES, ("schedule_id", "host")), set(failed))


def failing(conn: Connection, schedule_id: str) -> list[str]:
    """The hosts on which a schedule's newest run failed since it was last resumed, by name: without those on which
    another run of it is open, which may go well."""
    its = (JOBS.c.scheduled_id == schedule_id, JOBS.c.host == _FAILED.host, JOBS.c.status.in_(OPEN))
    found = sa.select(_FAILED.host).where(_FAILED.schedule_id == schedule_id, ~sa.exists().where(*its))
    return sorted(conn.execute(found).scalars())


def pause(conn: Connection, schedule_id: str, at: datetime, hosts: Sequence[str]) -> bool:
    """Pause a schedule that failed on these hosts. Returns False for one that is paused already, which stays so."""
    if paused(conn, [schedule_id]):
        return False
    row = (schedule_id, at, len(hosts), list(hosts[:MAX_NAMED]))
    batch.execute(conn, batch.insert_new(conn.dialect.name, ROLLOUT_PAUSES, tuple(_PAUSED.keys())), [row])
    return True


def paused(conn: Connection, schedule_ids: Iterable[str]) -> set[str]:
    """Those of these schedules, by id, that are paused."""
    found = batch.gathered(conn, _pausing(conn.dialect.name), ((it,) for it in schedule_ids))
    return {schedule_id for (schedule_id,) in found}


def pauses(conn: Connection) -> dict[str, Pause]:
    """All schedules that are paused, by id."""
    found = conn.execute(sa.select(_PAUSED.schedule_id, _PAUSED.paused_at, _PAUSED.failed, _PAUSED.hosts))
    return {schedule_id: Pause(*its) for schedule_id, *its in found}


def forget(conn: Connection, schedule_ids: Sequence[str]) -> None:
    """End the pauses of schedules, and count from 0 again on how many hosts they fail."""
    for table in (ROLLOUT_PAUSES, ROLLOUT_FAILURES):
        batch.delete_rows(conn, table, "schedule_id", schedule_ids)


def forget_hosts(conn: Connection, hosts: Sequence[str]) -> None:
    """Count these hosts, which are deleted, no more."""
    batch.delete_rows(conn, ROLLOUT_FAILURES, "host", hosts)


@cache
def _deleting(dialect: str) -> str:
    given = batch.Given(dialect, [_FAILED.schedule_id, _FAILED.host]).select()
    key = sa.tuple_(_FAILED.schedule_id, _FAILED.host)
    return batch.prepared(dialect, sa.delete(ROLLOUT_FAILURES).where(key.in_(given)))


@cache
def _pausing(dialect: str) -> str:
    given = batch.Given(dialect, [_PAUSED.schedule_id]).select()
    return batch.gather(dialect, sa.select(_PAUSED.schedule_id).where(_PAUSED.schedule_id.in_(given)).subquery())
