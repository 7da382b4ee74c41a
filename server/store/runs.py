"""Queries on runs. A run has no table: it is the set of jobs whose actor it is."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store.queries import all_rows
from server.store.rows import Row
from server.store.tables import GOOD, JOBS, OPEN


def run_status(conn: Connection, run_id: str) -> Row:
    """The counts and times of a Run's status, named as there. `run_id`: NAMESPACE/ID, the actor of its jobs."""
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
    status = all_rows(conn, sa.select(*columns).where(*_of_run(run_id)))[0]
    if status["pending"] + status["running"]:
        status["completionTime"] = None
    return status


def run_failures(conn: Connection, run_id: str, limit: int) -> list[Row]:
    """Up to `limit` failed jobs of a run, ordered by host: host, status, reason, error."""
    columns = (JOBS.c.host, JOBS.c.status, JOBS.c.reason, JOBS.c.error)
    found = sa.select(*columns).where(*_of_run(run_id), JOBS.c.status.not_in((*OPEN, *GOOD)))
    return all_rows(conn, found.order_by(JOBS.c.host).limit(limit))


def _of_run(run_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition for a run's jobs, worded as in the partial index so that the index is used."""
    return sa.text("actor_kind = 'run'"), JOBS.c.actor_id == run_id  # type: ignore[return-value]
