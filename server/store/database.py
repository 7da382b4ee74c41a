"""Connections to the database: SQLAlchemy engines that begin transactions as the store needs them."""

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Engine

if TYPE_CHECKING:
    import psycopg

BUSY_TIMEOUT_MS = 5000
"""Milliseconds that SQLite waits for a lock of another process, such as one that copies the database."""

CONNECT_TIMEOUT_S = 5
"""Seconds within which a host of PostgreSQL must answer; after that the next one of the URL is tried."""
_REACH = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""What libpq is told where the URL says nothing else: a machine that vanishes is noticed within 15 seconds."""
ROUNDS = 3
"""How often `is_pooled` looks."""

_BEGINS = {
    # sqlite3 begins transactions late and by its own rules, so it is told not to begin any.
    ("sqlite", True): "BEGIN IMMEDIATE",
    ("sqlite", False): "BEGIN",
    ("postgresql", False): "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
}
"""The statement that begins a transaction, by backend and whether it writes: each read has one snapshot."""


def make_private(path: Path) -> None:
    """Create an SQLite file and its folders for this user only. SQLite gives its other files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def engine(url: sa.URL, connections: int, *, writes: bool, pooled: bool = False) -> Engine:
    """An engine with up to this many connections.

    `writes`: whether its transactions write. `pooled`: whether a pooler gives each transaction another session.
    """
    backend = url.get_backend_name()
    made = sa.create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        hide_parameters=True,  # errors must not contain values, which may be credentials
        pool_pre_ping=backend != "sqlite",  # a database elsewhere may have been restarted
        connect_args=_connect_args(url, pooled=pooled),
    )
    if backend == "sqlite":
        sa.event.listen(made, "connect", _prepare_sqlite)
    elif writes and not pooled:
        sa.event.listen(made, "connect", _prepare_writer)
    if (begin := _BEGINS.get((backend, writes))) is not None:
        sa.event.listen(made, "begin", partial(Connection.exec_driver_sql, statement=begin))
    return made


def is_pooled(url: sa.URL) -> bool:
    """Whether a pooler stands before PostgreSQL that gives each transaction another session, such as pgbouncer.

    A connection without a transaction then loses its session to the transaction of another one. Raises DBAPIError.
    """
    made = sa.create_engine(url, poolclass=sa.NullPool, connect_args=_connect_args(url, pooled=True))
    try:
        with made.connect() as idle, made.connect() as busy:
            return any(_shares_session(idle, busy) for _ in range(ROUNDS))
    finally:
        made.dispose()


def _shares_session(idle: Connection, busy: Connection) -> bool:
    before = _session_of(idle)
    idle.rollback()
    try:
        return _session_of(busy) == before or _session_of(idle) != before
    finally:
        idle.rollback()
        busy.rollback()


def _session_of(conn: Connection) -> int:
    return int(conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def _connect_args(url: sa.URL, *, pooled: bool) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite" or url.get_driver_name() != "psycopg":
        return {}
    prepared = {"prepare_threshold": None} if pooled else {}  # a statement is prepared in one session only
    return {name: value for name, value in _REACH.items() if name not in url.query} | prepared


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_writer(connection: "psycopg.Connection[Any]", _record: object) -> None:
    """Have PostgreSQL find rows by their keys: each statement of the writer names the few rows that it is about.

    A plan is kept until the statistics of its tables change. One that was made while a table was small would read all
    of it for each row that is looked for, until the table is analyzed, a minute or more after it has grown. See
    `batch.FEW`, too.
    """
    for setting in ("enable_seqscan", "jit"):
        connection.execute(f"SET {setting} = off")
    connection.commit()
