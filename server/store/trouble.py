"""What errors of the database mean: which of them pass by themselves, and what to do about the others."""

import sqlalchemy as sa

TRANSIENT = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATE of transactions that PostgreSQL rolled back for the sake of others: serialization_failure,
deadlock_detected and lock_not_available. The same transaction may succeed when it runs again (PostgreSQL's manual,
section 13.5)."""
READ_ONLY = "25006"
"""SQLSTATE read_only_sql_transaction."""

_FULL = ("too many clients", "too many connections", "connection slots", "no more connections allowed")
_PASSING = (
    *_FULL,
    "starting up",
    "shutting down",
    "recovery",
    "not yet accepting",
    "login has been failing",
    "timeout",
)
_PERMANENT = ("FATAL:", "password", "certificate", "SSL", "invalid")


def is_failure(error: Exception) -> bool:
    """Whether the database itself failed (locked, full, gone): the error is not about the statement or its values."""
    asked = (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError, sa.exc.NotSupportedError)
    return isinstance(error, sa.exc.DBAPIError) and not isinstance(error, asked)


def is_transient(error: Exception) -> bool:
    """Whether the transaction was rolled back for the sake of others and may run again."""
    return _sqlstate(error) in TRANSIENT


def is_read_only(error: Exception) -> bool:
    """Whether this PostgreSQL takes no writes."""
    return _sqlstate(error) == READ_ONLY or "session is read-only" in _text(error)


def is_away(error: sa.exc.DBAPIError) -> bool:
    """Whether PostgreSQL is not there yet, or not ready to write, and so may be later.

    An error of connecting has no SQLSTATE, only text.
    """
    text = _text(error)
    if is_read_only(error) or any(it in text for it in _PASSING):
        return True
    return isinstance(error.orig, Exception) and _connecting(error) and not any(it in text for it in _PERMANENT)


def explained(error: sa.exc.DBAPIError, connections: int) -> str:
    """What the database said, with the remedy where one is known. `connections`: how many a server needs."""
    text = _text(error)
    if is_read_only(error):
        return (
            f"{text}: this PostgreSQL only reads, as a standby does: name all hosts in the URL of --database, "
            "with ?host=HOST:PORT&host=HOST:PORT&target_session_attrs=read-write"
        )
    if any(it in text for it in _FULL):
        return f"{text}: each server needs {connections} connections: raise max_connections, or run fewer servers"
    return text


def _connecting(error: sa.exc.DBAPIError) -> bool:
    """Whether there was no session, or it ended."""
    return error.connection_invalidated or (error.statement is None and _sqlstate(error) is None)


def _sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _text(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip()
