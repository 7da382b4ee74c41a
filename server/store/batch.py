"""Many rows in one SQL statement: they are passed as one JSON parameter, and results are returned as JSON.

SQLite's driver releases the GIL around every row, and then waits for the event loop to release it again: 10,000 rows by
executemany take a tenth of a second alone, and most of a minute beside a busy loop. Here the database goes through the
rows in one step while the loop runs. PostgreSQL has the same functions under other names.

Statements are compiled once, into the words of the database's driver: compiling one again, or binding the constants in
it, would cost several times what the database needs to execute it.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from server.store.tables import UtcDateTime, stored

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Row = TypeVar("Row", bound=tuple[Any, ...])


class _Parameter(sa.ColumnElement[str]):
    """The parameter `rows`."""

    type = sa.Text()
    inherit_cache = True


class _Rows(FunctionElement[Any]):
    """The elements of a JSON array as rows."""

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


@compiles(_Parameter)
def _parameter(_element: _Parameter, compiler: SQLCompiler, **options: Any) -> str:
    """As the driver reads it in a prepared statement, which has its values in its text; else as SQLAlchemy binds it."""
    if options.get("literal_binds"):
        return ":rows" if compiler.dialect.name == "sqlite" else "%(rows)s"
    return compiler.process(sa.bindparam("rows", type_=sa.Text), **options)


FEW = "(SELECT value FROM (SELECT value FROM {} LIMIT (SELECT 1000000)) AS every LIMIT (SELECT 1000000))"
"""A table of which PostgreSQL expects one row, whatever it is, since it takes a limit that it does not know yet for a
tenth of what it limits: it looks for each of its rows by a key, and never goes through the other table instead."""

_named(_Rows, "json_each", FEW.format("json_array_elements(CAST(%s AS json))"))
_named(_Gathered, "json_group_array", "CAST(json_agg(%s) AS text)")
_named(_Tuple, "json_array", "json_build_array(%s)")


def parameter(rows: Iterable[Sequence[object]]) -> dict[str, str]:
    """The parameter of the statements here: rows of plain values, in the order of the statement's columns."""
    plain = [[stored(value) if type(value) is datetime else value for value in row] for row in rows]
    return {"rows": _encode(plain).decode()}


_DIALECTS: dict[str, sa.Dialect] = {"sqlite": sqlite.dialect(), "postgresql": postgresql.psycopg.dialect()}  # type: ignore[no-untyped-call]


def prepared(dialect: str, statement: sa.ClauseElement) -> str:
    """The text of a statement whose one parameter is `rows`."""
    return str(statement.compile(dialect=_DIALECTS[dialect], compile_kwargs={"literal_binds": True}))


def execute(conn: sa.Connection, statement: str, rows: Iterable[Sequence[object]]) -> sa.CursorResult[Any]:
    """Execute a prepared statement with these rows as its parameter."""
    return conn.exec_driver_sql(statement, parameter(rows))


def gather(dialect: str, found: sa.Subquery) -> str:
    """Select the rows of a subquery, in its order, as one JSON array of arrays."""
    return prepared(dialect, sa.select(_Gathered(_Tuple(*found.c))))


def gathered_names(column: "sa.Column[str]") -> sa.ColumnElement[str]:
    """The values of a text column in a group of rows, as one JSON array."""
    return _Gathered(column)


def gathered(conn: sa.Connection, statement: str, rows: Iterable[Sequence[object]]) -> list[Any]:
    """Execute a `gather` statement with these rows as its parameter; return the rows that it finds, as lists."""
    found = execute(conn, statement, rows).scalar()
    return _decode(found) if found else []


def whole(conn: sa.Connection, columns: Sequence[sa.Column[Any]], kind: type[Row]) -> list[Row]:
    """All rows of a table, as tuples of type `kind`, whose fields are `columns`. Each row is one JSON array."""
    decode = msgspec.json.Decoder(kind).decode
    return [decode(text) for text in conn.execute(_whole(conn.dialect.name, tuple(columns))).scalars()]


@cache
def _whole(dialect: str, columns: tuple[sa.Column[Any], ...]) -> sa.Executable:
    return sa.select(sa.cast(_Tuple(*(plain(dialect, column) for column in columns)), sa.Text))


def plain(dialect: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column as a JSON value: times as `stored` writes them, JSON columns as nested values."""
    if dialect == "postgresql" and isinstance(column.type, UtcDateTime):
        return sa.func.to_char(sa.func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    return sa.func.json(column) if dialect == "sqlite" and isinstance(column.type, sa.JSON) else column


class Given:
    """The rows of the parameter as a table, for use in select, insert and update."""

    def __init__(self, dialect: str, columns: Sequence[sa.Column[Any]]) -> None:
        table = _Rows(_Parameter()).table_valued(sa.column("value", sa.JSON)).alias("given")
        texts = [table.c.value[at].as_string() for at in range(len(columns))]
        self.table = table
        self.values: list[sa.ColumnElement[Any]] = [
            # A value extracted from JSON keeps its type in SQLite, and is text in PostgreSQL.
            text if dialect == "sqlite" else sa.cast(text, column.type)
            for text, column in zip(texts, columns, strict=True)
        ]

    def select(self) -> sa.Select[Any]:
        """Select all rows. The condition keeps SQLite from parsing a following ON CONFLICT as part of a join."""
        return sa.select(*self.values).select_from(self.table).where(sa.true())


@cache
def insert_new(dialect: str, table: sa.Table, names: tuple[str, ...]) -> str:
    """Insert rows of these columns, except those that violate a unique key."""
    rows = Given(dialect, [table.c[name] for name in names]).select()
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    return prepared(dialect, insert.from_select(names, rows, include_defaults=False).on_conflict_do_nothing())


@cache
def upsert(dialect: str, table: sa.Table, names: tuple[str, ...], keep: tuple[str, ...] = ()) -> str:
    """Insert rows of these columns; of rows that exist, update all columns except those in `keep`.

    No two rows of the parameter may have the same key.
    """
    rows = Given(dialect, [table.c[name] for name in names]).select()
    keys = [column.name for column in table.primary_key]
    changed = [name for name in names if name not in keys and name not in keep]
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    put = insert.from_select(names, rows, include_defaults=False)
    excluded = {name: put.excluded[name] for name in changed}
    return prepared(dialect, put.on_conflict_do_update(index_elements=keys, set_=excluded))


@cache
def update(dialect: str, table: sa.Table, names: tuple[str, ...], *only: sa.ColumnElement[bool]) -> str:
    """Update rows that match `only`. `names`: the key, then the columns to set. No two rows may have the same key."""
    given = Given(dialect, [table.c[name] for name in names])
    key, *values = given.values
    changes = dict(zip(names[1:], values, strict=True))
    return prepared(dialect, sa.update(table).values(changes).where(table.c[names[0]] == key, *only))


@cache
def delete(dialect: str, table: sa.Table, name: str) -> str:
    """Delete the rows whose column `name` has one of the given values."""
    return prepared(dialect, sa.delete(table).where(table.c[name].in_(Given(dialect, [table.c[name]]).select())))


def put_rows(
    conn: sa.Connection, table: sa.Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]], keep: tuple[str, ...]
) -> list[None]:
    """`upsert` rows whose first column is the primary key; of several with one key the last counts."""
    if rows:
        last = {row[0]: row for row in rows}
        execute(conn, upsert(conn.dialect.name, table, names, keep), last.values())
    return [None] * len(rows)


def delete_rows(conn: sa.Connection, table: sa.Table, key: str, values: Sequence[str]) -> list[None]:
    """`delete` the rows whose column `key` has one of these values."""
    if values:
        execute(conn, delete(conn.dialect.name, table, key), ((value,) for value in values))
    return [None] * len(values)


MOST = 2**53
"""The greatest sum that is stored of numbers that hosts tell: none of them has the store refuse what others add."""


def plus(one: int, other: int) -> int:
    """The sum of two numbers, MOST at most."""
    return min(one + other, MOST)


def adding(dialect: str, table: sa.Table, greatest: Collection[str] = ()) -> str:
    """Insert rows of a table, or add their values to those of the rows with their keys, up to MOST; of the columns in
    `greatest`, the greater value stays. The parameter has all columns, in the table's order."""
    rows = Given(dialect, list(table.c)).select()
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    put = insert.from_select([column.name for column in table.c], rows, include_defaults=False)
    values: dict[str, sa.ColumnElement[int]] = {}
    for known in table.c:
        new = put.excluded[known.name]
        if known.name in greatest:
            values[known.name] = sa.case((new > known, new), else_=known)
        elif not known.primary_key:
            most = sa.literal_column(str(MOST), sa.BigInteger)
            values[known.name] = sa.case((known > most - new, most), else_=known + new)
    return prepared(dialect, put.on_conflict_do_update(index_elements=list(table.primary_key), set_=values))
