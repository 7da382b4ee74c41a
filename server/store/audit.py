"""Statements on the audit log."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import all_rows
from server.store.rows import AuditRow, Row
from server.store.tables import AUDIT


def record_audit(conn: Connection, rows: Sequence[AuditRow]) -> list[None]:
    """Append to the audit log."""
    if rows:
        batch.execute(conn, batch.insert_new(conn.dialect.name, AUDIT, AuditRow._fields), rows)
    return [None] * len(rows)


def list_audit(conn: Connection, before: int | None, limit: int, filters: Mapping[str, str] | None = None) -> list[Row]:
    """Lines of the audit log whose columns equal `filters`, newest first, with ids below `before`.

    An index has them in order by `object_kind` and `object_name`.
    """
    found = sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    found = found.where(*(AUDIT.c[name] == value for name, value in (filters or {}).items()))
    return all_rows(conn, found if before is None else found.where(AUDIT.c.id < before))
