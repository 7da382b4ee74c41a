"""What queries share: they return rows as dicts by column name."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store.rows import Row


def one_row(conn: Connection, found: sa.Select[Any]) -> Row | None:
    """The row that a query finds, or None. Raises MultipleResultsFound for more than one."""
    row = conn.execute(found).one_or_none()
    return None if row is None else row._asdict()


def all_rows(conn: Connection, found: sa.Select[Any]) -> list[Row]:
    """All rows that a query finds, in its order."""
    return [row._asdict() for row in conn.execute(found)]
