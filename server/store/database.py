"""Connections to the database: SQLAlchemy engines that begin transactions as the store needs them."""

import os
import sqlite3
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Engine

BUSY_TIMEOUT_MS = 5000
"""Milliseconds that SQLite waits for a lock of another process, such as one that copies the database."""

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


def engine(url: sa.URL, connections: int, *, writes: bool) -> Engine:
    """An engine with up to this many connections. `writes`: whether its transactions write."""
    backend = url.get_backend_name()
    made = sa.create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        hide_parameters=True,  # errors must not contain values, which may be credentials
        pool_pre_ping=backend != "sqlite",  # a database elsewhere may have been restarted
    )
    if backend == "sqlite":
        sa.event.listen(made, "connect", _prepare_sqlite)
    if (begin := _BEGINS.get((backend, writes))) is not None:
        sa.event.listen(made, "begin", partial(Connection.exec_driver_sql, statement=begin))
    return made


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
