"""What queries share: they return rows as dicts by column name."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

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


LabelCondition = tuple[str, Literal["In", "NotIn", "Exists", "DoesNotExist"], Sequence[str]]
"""A condition on one label, as in a label selector: key, operator, values."""


def labels_match(column: sa.Column[Any], conditions: Iterable[LabelCondition]) -> Iterable[sa.ColumnElement[bool]]:
    """Conditions on a column of labels. NotIn holds for a label that is absent, as in Kubernetes."""
    for key, operator, values in conditions:
        label = column[key].as_string()
        match operator:
            case "In":
                yield label.in_(values)
            case "NotIn":
                yield sa.or_(label.is_(None), label.not_in(values))
            case "Exists":
                yield label.is_not(None)
            case "DoesNotExist":
                yield label.is_(None)
