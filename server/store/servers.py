"""Statements on the servers that share a store: each keeps a row alive, and the rows of dead ones are removed."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store.ownership import OwnershipError
from server.store.tables import CONNECTIONS, SERVERS

_S = SERVERS.c


class ServerRow(NamedTuple):
    """A server. `revision`, `news`: up to where it has followed the change log and the news."""

    id: str
    name: str
    started_at: datetime
    seen_at: datetime
    revision: int = 0
    news: int = 0
    stopping: bool = False

    @property
    def is_starting(self) -> bool:
        """Whether it still loads: it has given no sign of life since it took its row."""
        return self.seen_at == self.started_at


class Beat(NamedTuple):
    """A server says that it lives. Its fields are those of `ServerRow`."""

    id: str
    seen_at: datetime
    revision: int = 0
    news: int = 0
    stopping: bool = False


def join(conn: Connection, items: Sequence[ServerRow]) -> list[None]:
    """Servers begin."""
    conn.execute(sa.insert(SERVERS), [item._asdict() for item in items])
    return [None] * len(items)


def beat(conn: Connection, items: Sequence[Beat]) -> list[bool]:
    """Servers live. Whether each still has its row: others took one without a row for dead."""
    return [
        conn.execute(sa.update(SERVERS).where(_S.id == item.id).values(**item._asdict())).rowcount == 1
        for item in items
    ]


def leave(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Servers end; their hosts have been told."""
    conn.execute(sa.delete(SERVERS).where(_S.id.in_(ids)))
    return [None] * len(ids)


def bury(conn: Connection, items: Sequence[tuple[str, datetime]]) -> list[bool]:
    """Remove the rows of dead servers. Whether each was still as it was when last seen, at that time.

    One that stands still has its direct connection still, and with it the leader's lock: PostgreSQL ends that.
    """
    buried = [
        conn.execute(sa.delete(SERVERS).where(_S.id == id_, _S.seen_at == seen_at)).rowcount == 1
        for id_, seen_at in items
    ]
    for (id_, _), is_buried in zip(items, buried, strict=True):
        if is_buried and conn.dialect.name != "sqlite":
            conn.execute(_END_SESSIONS, {"name": session_name(id_)})
    return buried


def session_name(server: str) -> str:
    """How PostgreSQL calls the session of a server's direct connection (application_name)."""
    return f"lamplighter server {server}"


_END_SESSIONS = sa.text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = :name AND datname = current_database() AND usename = current_user
""")
"""Everybody may end sessions of their own user."""


def keep(conn: Connection, server: str) -> None:
    """Have nobody bury this server until the transaction ends. Raises OwnershipError if that was done.

    What a dead server stored of its hosts would stay: those that buried it have seen to them already.
    """
    if conn.dialect.name != "sqlite" and not conn.execute(_KEEP, {"id": server}).scalar():
        raise OwnershipError(BURIED)


BURIED = "the other servers took this one for dead, since it was not heard of: start it again"
_KEEP = sa.text("SELECT 1 FROM servers WHERE id = :id FOR KEY SHARE")


def living(conn: Connection) -> list[ServerRow]:
    """All servers, by their ids."""
    return [ServerRow(*row) for row in conn.execute(sa.select(*(_S[it] for it in ServerRow._fields)).order_by(_S.id))]


def without_row(conn: Connection) -> list[str]:
    """Servers that have hosts by their connections, but no row: they were killed while the store was of one server, or
    while they ended."""
    server = CONNECTIONS.c.server
    gone = sa.select(server).distinct().where(server.is_not(None), server.not_in(sa.select(_S.id)))
    return list(conn.execute(gone).scalars())


def connection_counts(conn: Connection) -> dict[str, int]:
    """How many hosts each server has."""
    server = CONNECTIONS.c.server
    counted = sa.select(server, sa.func.count()).where(server.is_not(None)).group_by(server)
    return {row[0]: row[1] for row in conn.execute(counted)}
