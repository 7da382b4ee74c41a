"""Servers that share a PostgreSQL database write in turns: a transaction has one lock from its beginning to its end.

A transaction has the statements of many calls, about hosts, jobs and lanes in the order of these calls, and that of
another server is about the same ones in another order. With a lock for each of them, the two would wait for each other,
or give way again and again. A turn costs less: it is over in a few milliseconds, and holds all calls that came while
others had theirs. PostgreSQL gives turns in the order in which they were asked for, and ends one whose server has gone.

SQLite has one writer, which is the same.
"""

from sqlalchemy import Connection

WAIT_MS = 20_000
"""Milliseconds for which a transaction waits for its turn: longer than a server that stands still can keep one."""
_KEY = 0x5475726E
"""The first half of the lock's key: "Turn". The second is a hash of the schema's name."""
_TAKE = f"SELECT pg_advisory_xact_lock({_KEY}, hashtext(current_schema()))"


def take(conn: Connection) -> None:
    """Wait for the turn of the transaction that has just begun; it lasts until the transaction ends."""
    if conn.dialect.name != "sqlite":
        conn.exec_driver_sql(_TAKE)
