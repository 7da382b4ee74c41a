"""Who has a store: a lock that ends with its holder, and a row that tells who had it last.

SQLite: one server, by flock(2) on a file beside the database, and its id in `store_owner`. PostgreSQL: any number of
servers, which share an advisory lock; the row tells that they do. Releases that knew of one server alone take that lock
for themselves, so old and new servers never work at the same time. The writing session has the lock, so that nothing
is written without it. A session that lost its connection takes the lock again when it reconnects. If an old server had
the lock in between, this one does not know its changes and must not go on: the row shows that.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from server.store.tables import STORE_OWNER
from server.store.turns import WAIT_MS

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""Seconds that a starting server waits for the previous one to end."""
START_S = 60.0
"""Seconds that a starting server waits for a database that is away, starting, or not promoted yet."""
PAUSE_S = 0.1
"""Seconds between two attempts to take the lock."""
KEY = 0x4C616D70
"""The first half of the advisory lock's key: "Lamp". The second is a hash of the schema's name."""
MIGRATING = KEY + 1
"""The first half of the key of the lock under which the tables are made."""
SHARED = "shared"
"""The owner in `store_owner` where servers share the store."""
SESSION = (
    ("tcp_keepalives_idle", "3"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "2"),
    ("tcp_user_timeout", "7000"),
    ("idle_in_transaction_session_timeout", "10000"),
    ("lock_timeout", str(WAIT_MS)),
)
"""With these, PostgreSQL ends the session of a vanished machine, and so frees its locks, after 7 seconds; and that of
a process that stands still within a transaction after 10. For the last one see `server.store.turns`."""

Taken = TypeVar("Taken")


class OwnershipError(Exception):
    """The store belongs to another server, or its files are not those that were opened. The message says what to do."""


class InUseError(OwnershipError):
    """Another server has the store now."""


class FileLock:
    """A lock on an SQLite database. The process holds it until `close`, or until it ends in any way."""

    def __init__(self, database: Path) -> None:
        """Raises InUseError, OSError."""
        self._database = Path(os.path.realpath(database))
        self._path = self._database.with_name(f"{self._database.name}.lock")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise
            raise InUseError(_in_use(str(database), holder)) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{this_server()}\n".encode(), 0)
        self._inodes = {path: _inode(path) for path in (self._path, self._database)}

    def check(self) -> None:
        """Raises OwnershipError when the database or the lock is no longer the file that was opened."""
        for path, inode in self._inodes.items():
            if _inode(path) != inode:
                raise OwnershipError(f"{path} was removed or replaced while the server ran: start it again")

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


class AwayError(Exception):
    """The database is away, starting, or not promoted yet."""


class SessionLock:
    """The lock of a PostgreSQL database. `take` is a listener of SQLAlchemy's event "connect".

    `known`: whether the row says that servers share the store.
    """

    def __init__(self, database: sa.URL, *, known: bool = False) -> None:
        self._database = database.render_as_string()
        self.known = known

    def claimed(self) -> None:
        """`claim` was committed: from now on the row must say what it says now."""
        self.known = True

    def take(self, connection: Any, _record: object) -> None:
        """Take the lock beside other servers that share it.

        Raises InUseError when an old server has it for itself, and OwnershipError when one had it in between.
        """
        with connection.cursor() as cursor:
            for name, value in (*SESSION, ("application_name", this_server()[:63])):
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            cursor.execute("SELECT pg_try_advisory_lock_shared(%s, hashtext(current_schema()))", (KEY,))
            if not cursor.fetchone()[0]:
                cursor.execute(_HOLDER, (KEY,))
                row = cursor.fetchone()
                connection.close()
                raise InUseError(_in_use(self._database, " from ".join(filter(None, row)) if row else ""))
            if self.known:
                cursor.execute("SELECT server FROM store_owner")
                if cursor.fetchone() != (SHARED,):
                    connection.close()
                    raise OwnershipError(f"{self._database}: another server used it in between: start this one again")
        connection.commit()


def wait_for_migrations(conn: sa.Connection) -> None:
    """Have no other server make or change the tables until this transaction ends; wait for one that does."""
    conn.execute(sa.text("SET LOCAL lock_timeout = 0"))
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key, hashtext(current_schema()))"), {"key": MIGRATING})


def claim(conn: sa.Connection, server: str) -> None:
    """Record this server as the owner of the store; with SHARED, that servers share it.

    It writes each time, so that a database that only reads is noticed.
    """
    if not conn.execute(sa.update(STORE_OWNER).values(server=server)).rowcount:
        conn.execute(sa.insert(STORE_OWNER).values(id=1, server=server))


def waited_for(take: Callable[[], Taken]) -> Taken:
    """Call `take` until it raises neither InUseError, for up to WAIT_S seconds, nor AwayError, for up to START_S.

    Raises what it raises.
    """
    began, told = time.monotonic(), ""
    while True:
        try:
            return take()
        except (InUseError, AwayError) as error:
            patience_s, what = (WAIT_S, "the store") if isinstance(error, InUseError) else (START_S, "the database")
            if time.monotonic() > began + patience_s:
                raise
            if str(error) != told:
                log.warning("waiting for %s", what, extra={"reason": error, "at_most_s": round(patience_s)})
            told = str(error)
            time.sleep(PAUSE_S)


def _in_use(what: str, holder: str) -> str:
    who = f" ({holder})" if holder else ""
    return f"{what} is in use by another server{who}: stop that, or choose another --data-dir or --database"


def this_server() -> str:
    """This process, as other servers' messages name it."""
    return f"lamplighter on {socket.gethostname()}, process {os.getpid()}"


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_HOLDER = """
    SELECT application_name, host(client_addr)
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND classid = CAST(%s AS oid) AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND objid = CAST(CAST(hashtext(current_schema()) AS bigint) & 4294967295 AS oid)
"""


def probe(conn: sa.Connection, items: Sequence[datetime]) -> list[None]:
    """A batch statement that only updates the time of the last probe: it succeeds if the database takes writes.

    The items are the times of the probes.
    """
    conn.execute(sa.update(STORE_OWNER).values(probed_at=max(items)))
    return [None] * len(items)
