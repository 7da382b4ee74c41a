"""A store belongs to one server: what each database has for a lock that dies with its holder, and who the holder is.

SQLite: flock(2) on a file beside the database. PostgreSQL: an advisory lock of the session that writes, so that nothing
is written but under the lock. A session that was cut takes the lock again when it reconnects; whether another server
had it meanwhile, of whose changes this one knows nothing, is told by the row in `store_owner`.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from server.models import STORE_OWNER

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""Seconds for which a server that starts waits for the one before it to be gone."""
PAUSE_S = 0.1
KEY = 0x4C616D70
"""The first half of the advisory lock's key: "Lamp"; the second is of the schema."""
KEEPALIVE = (("tcp_keepalives_idle", "10"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3"))
"""After how many seconds PostgreSQL ends the session, and frees the lock, of a server whose machine is gone: 25."""

Taken = TypeVar("Taken")


class OwnershipError(Exception):
    """The store belongs to another server, or is not the one that was opened; the message says which and what to do."""


class InUseError(OwnershipError):
    """Another server has the store now."""


class FileLock:
    """A lock on an SQLite database, which the process holds until it closes it, or ends however it may."""

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
        os.pwrite(self._fd, f"{_this_server()}\n".encode(), 0)
        self._inodes = {path: _inode(path) for path in (self._path, self._database)}

    def check(self) -> None:
        """Raises OwnershipError when the database, or this lock, is not the file any more that was opened."""
        for path, inode in self._inodes.items():
            if _inode(path) != inode:
                raise OwnershipError(f"{path} was removed or replaced while the server ran: start it again")

    def close(self) -> None:
        """Let the next one have it."""
        os.close(self._fd)


class SessionLock:
    """What a session of PostgreSQL that writes has to do first; see `sa.event.listen(engine, "connect", …)`."""

    def __init__(self, database: str, server: str) -> None:
        self._database = database
        self._server = server
        self.known = False  # whether the row of this server is there

    def take(self, connection: Any, _record: object) -> None:
        """Take the lock. Raises InUseError, and OwnershipError when another server had it meanwhile."""
        with connection.cursor() as cursor:
            for name, value in (*KEEPALIVE, ("application_name", _this_server()[:63])):
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            cursor.execute("SELECT pg_try_advisory_lock(%s, hashtext(current_schema()))", (KEY,))
            if not cursor.fetchone()[0]:
                cursor.execute(_HOLDER, (KEY,))
                row = cursor.fetchone()
                connection.close()
                raise InUseError(_in_use(self._database, " from ".join(filter(None, row)) if row else ""))
            if self.known:
                cursor.execute("SELECT server FROM store_owner")
                if cursor.fetchone() != (self._server,):
                    connection.close()
                    raise OwnershipError(f"{self._database}: another server had it meanwhile: start this one again")
        connection.commit()


def claim(conn: sa.Connection, server: str) -> None:
    """Write down that the store is this server's."""
    conn.execute(sa.delete(STORE_OWNER))
    conn.execute(sa.insert(STORE_OWNER).values(id=1, server=server))


def waited_for(take: Callable[[], Taken]) -> Taken:
    """What `take` answers, as soon as no other server has the store. Raises what it raises, InUseError after WAIT_S."""
    end, told = time.monotonic() + WAIT_S, False
    while True:
        try:
            return take()
        except InUseError as error:
            if time.monotonic() > end:
                raise
            if not told:
                log.warning("waiting for the store", extra={"reason": error})
            told = True
            time.sleep(PAUSE_S)


def _in_use(what: str, holder: str) -> str:
    who = f" ({holder})" if holder else ""
    return f"{what} is in use by another server{who}: stop that, or choose another --data-dir or --database"


def _this_server() -> str:
    return f"lamplighter on {socket.gethostname()}, process {os.getpid()}"


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file is at a path; None where none is."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_HOLDER = """
    SELECT application_name, host(client_addr)
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = CAST(%s AS oid) AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND objid = CAST(CAST(hashtext(current_schema()) AS bigint) & 4294967295 AS oid)
"""
