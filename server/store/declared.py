"""Statements on schedules and repositories, and on when hosts got schedules."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import LabelCondition, all_rows, labels_match, one_row
from server.store.rows import Joined, Pair, RepositoryRow, Row, ScheduleRow
from server.store.tables import HOST_SCHEDULES, JOBS, REPOSITORIES, SCHEDULES


def upsert_schedules(conn: Connection, rows: Sequence[ScheduleRow]) -> list[None]:
    """Put schedules by id. Raises IntegrityError when another id has that namespace and name."""
    return batch.put_rows(conn, SCHEDULES, ScheduleRow._fields, rows, keep=("created_at",))


def delete_schedules(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Delete schedules; their jobs stay."""
    return batch.delete_rows(conn, SCHEDULES, "id", ids)


def upsert_repositories(conn: Connection, rows: Sequence[RepositoryRow]) -> list[None]:
    """Put repositories by id. Raises IntegrityError when another id has that namespace and name."""
    return batch.put_rows(conn, REPOSITORIES, RepositoryRow._fields, rows, keep=("created_at",))


def delete_repositories(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Delete repositories."""
    return batch.delete_rows(conn, REPOSITORIES, "id", ids)


def upsert_joined(conn: Connection, rows: Sequence[Joined]) -> list[None]:
    """Put when hosts got schedules, by schedule and host."""
    if rows:
        last = {(row.schedule_id, row.host): row for row in rows}
        statement = batch.upsert(conn.dialect.name, HOST_SCHEDULES, Joined._fields)
        batch.execute(conn, statement, last.values())
    return [None] * len(rows)


def delete_joined(conn: Connection, pairs: Sequence[Pair]) -> list[None]:
    """Delete the rows of (schedule id, host) pairs."""
    if pairs:
        given = batch.Given(conn.dialect.name, [HOST_SCHEDULES.c.schedule_id, HOST_SCHEDULES.c.host])
        key = sa.tuple_(HOST_SCHEDULES.c.schedule_id, HOST_SCHEDULES.c.host)
        conn.execute(sa.delete(HOST_SCHEDULES).where(key.in_(given.select())), batch.parameter(pairs))
    return [None] * len(pairs)


def get_resource(conn: Connection, table: sa.Table, namespace: str, name: str) -> Row | None:
    """A schedule (with `last_due`, the due time of its newest job) or a repository (without credentials), or None."""
    return one_row(conn, sa.select(*_public(table)).where(table.c.namespace == namespace, table.c.name == name))


def get_resources(conn: Connection, table: sa.Table, ids: Sequence[str]) -> list[Row]:
    """Schedules or repositories by id, as from `get_resource`, ordered by namespace and name."""
    key = table.c.id
    given = batch.Given(conn.dialect.name, [key]).select()
    found = sa.select(*_public(table)).where(key.in_(given)).order_by(table.c.namespace, table.c.name)
    return [row._asdict() for row in conn.execute(found, batch.parameter((id_,) for id_ in ids))]


def list_resources(
    conn: Connection,
    table: sa.Table,
    after: tuple[str, str] | None,
    limit: int,
    namespace: str | None = None,
    labels: Iterable[LabelCondition] = (),
) -> list[Row]:
    """Schedules or repositories, as from `get_resource`, ordered by namespace and name, starting after that pair.

    `namespace`: None for all. `labels`: what their labels must satisfy.
    """
    found = sa.select(*_public(table)).order_by(table.c.namespace, table.c.name).limit(limit)
    found = found.where(*labels_match(table.c.labels, labels))
    if namespace is not None:
        found = found.where(table.c.namespace == namespace)
    key = sa.tuple_(table.c.namespace, table.c.name)
    return all_rows(conn, found if after is None else found.where(key > sa.tuple_(*after)))


def _public(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    columns: list[sa.ColumnElement[Any]] = [
        column for column in table.c if column.name not in ("credentials", "earlier", "ping")
    ]
    if table is not SCHEDULES:
        return columns
    runs = sa.select(JOBS.c.scheduled_at).where(JOBS.c.scheduled_id == SCHEDULES.c.id, JOBS.c.scheduled_at.is_not(None))
    newest = runs.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(1)
    return [*columns, newest.correlate(SCHEDULES).scalar_subquery().label("last_due")]
