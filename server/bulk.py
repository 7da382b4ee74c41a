"""Many rows in one statement: they go in as one JSON parameter, and what is asked comes out as JSON.

SQLite's driver lets go of the GIL around every row that it steps over, and has to wait for it again behind the event
loop: 10,000 rows by executemany take a tenth of a second alone and most of a minute beside a busy loop. Here the
database walks the rows in one step, so the loop runs on meanwhile. PostgreSQL has the same functions by other names.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from server.models import UtcDateTime, stored

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Row = TypeVar("Row", bound=tuple[Any, ...])


class _Rows(FunctionElement[Any]):
    """The elements of a JSON array, one a row."""

    inherit_cache = True


class _Gathered(FunctionElement[str]):
    """All rows of an expression, as one JSON array."""

    type = sa.Text()
    inherit_cache = True


class _Tuple(FunctionElement[str]):
    """Expressions as one JSON array."""

    inherit_cache = True


def _named(element: type[FunctionElement[Any]], sqlite_name: str, postgresql_call: str) -> None:
    def call(template: str) -> Any:
        def compile_call(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
            return template % compiler.process(element.clauses, **options)

        return compile_call

    compiles(element)(call(f"{sqlite_name}(%s)"))
    compiles(element, "postgresql")(call(postgresql_call))


_named(_Rows, "json_each", "json_array_elements(CAST(%s AS json))")
_named(_Gathered, "json_group_array", "CAST(json_agg(%s) AS text)")
_named(_Tuple, "json_array", "json_build_array(%s)")


def parameter(rows: Iterable[Sequence[object]]) -> dict[str, str]:
    """The parameter of every statement here: rows of plain values, in the order of the statement's columns."""
    plain = [[stored(value) if type(value) is datetime else value for value in row] for row in rows]
    return {"rows": _encode(plain).decode()}


def gather(found: sa.Subquery) -> sa.Select[Any]:
    """The rows of a subquery, in its order, as one JSON array of arrays."""
    return sa.select(_Gathered(_Tuple(*found.c)))


def gathered(conn: sa.Connection, statement: sa.Executable, rows: Iterable[Sequence[object]]) -> list[Any]:
    """The rows that a `gather` statement finds, as lists."""
    found = conn.execute(statement, parameter(rows)).scalar()
    return _decode(found) if found else []


def whole(conn: sa.Connection, columns: Sequence[sa.Column[Any]], kind: type[Row]) -> list[Row]:
    """All rows of a table, as this kind of tuple, whose fields are `columns`: each row crosses as one JSON array."""
    texts = conn.execute(_whole(conn.dialect.name, tuple(columns))).scalars()
    rows: list[Row] = msgspec.json.decode(f"[{','.join(texts)}]", type=list[kind])  # type: ignore[valid-type]
    return rows


@cache
def _whole(dialect: str, columns: tuple[sa.Column[Any], ...]) -> sa.Executable:
    return sa.select(sa.cast(_Tuple(*(_plain(dialect, column) for column in columns)), sa.Text))


def _plain(dialect: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column as a JSON value: times as `stored` writes them, JSON as what it says."""
    if dialect == "postgresql" and isinstance(column.type, UtcDateTime):
        return sa.func.to_char(sa.func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    return sa.func.json(column) if dialect == "sqlite" and isinstance(column.type, sa.JSON) else column


class Given:
    """The rows of the parameter as a table, to select from, insert from or update from."""

    def __init__(self, dialect: str, columns: Sequence[sa.Column[Any]]) -> None:
        table = _Rows(sa.bindparam("rows", type_=sa.Text)).table_valued(sa.column("value", sa.JSON)).alias("given")
        texts = [table.c.value[at].as_string() for at in range(len(columns))]
        self.table = table
        self.values: list[sa.ColumnElement[Any]] = [
            # A value extracted from JSON keeps its type in SQLite, and is text in PostgreSQL.
            text if dialect == "sqlite" else sa.cast(text, column.type)
            for text, column in zip(texts, columns, strict=True)
        ]

    def select(self) -> sa.Select[Any]:
        """All rows. The condition keeps SQLite from reading a following ON CONFLICT as that of a join."""
        return sa.select(*self.values).select_from(self.table).where(sa.true())


@cache
def insert_new(dialect: str, table: sa.Table, names: tuple[str, ...]) -> sa.Executable:
    """Insert rows of these columns, except those that break a unique key."""
    rows = Given(dialect, [table.c[name] for name in names]).select()
    if dialect == "postgresql":
        return postgresql.insert(table).from_select(names, rows, include_defaults=False).on_conflict_do_nothing()
    return sqlite.insert(table).from_select(names, rows, include_defaults=False).on_conflict_do_nothing()


@cache
def upsert(dialect: str, table: sa.Table, names: tuple[str, ...], keep: tuple[str, ...] = ()) -> sa.Executable:
    """Insert rows of these columns; where the primary key is there, update all columns but those of `keep`.

    No two rows may have the same key.
    """
    rows = Given(dialect, [table.c[name] for name in names]).select()
    keys = [column.name for column in table.primary_key]
    changed = [name for name in names if name not in keys and name not in keep]
    if dialect == "postgresql":
        into = postgresql.insert(table).from_select(names, rows, include_defaults=False)
        return into.on_conflict_do_update(index_elements=keys, set_={name: into.excluded[name] for name in changed})
    put = sqlite.insert(table).from_select(names, rows, include_defaults=False)
    return put.on_conflict_do_update(index_elements=keys, set_={name: put.excluded[name] for name in changed})


@cache
def update(dialect: str, table: sa.Table, names: tuple[str, ...], *only: sa.ColumnElement[bool]) -> sa.Executable:
    """Set columns from rows whose first column is the key, where `only` holds. No two rows may have the same key."""
    given = Given(dialect, [table.c[name] for name in names])
    key, *values = given.values
    changes = dict(zip(names[1:], values, strict=True))
    return sa.update(table).values(changes).where(table.c[names[0]] == key, *only)


@cache
def delete(dialect: str, table: sa.Table, name: str) -> sa.Executable:
    """Delete the rows whose column is among the given."""
    return sa.delete(table).where(table.c[name].in_(Given(dialect, [table.c[name]]).select()))
