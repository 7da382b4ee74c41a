"""The log of changes: an entry for each change of what is declared, in the order in which they were made.

The head is the revision of the newest entry. The transaction of a change moves the head on from the revision at which
the change was planned. So servers that share a database change it one after the other, each knowing what the others
changed before.
"""

from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import CHANGE_HEAD, CHANGE_LOG

MAX_ENTRIES = 16
"""Maximum entries that are read at once: the entry of a change that concerns 100,000 hosts has some MB."""


class Following(NamedTuple):
    """What follows a revision. `entries`: the oldest entries after it, each with its revision, oldest first."""

    head: int
    entries: list[tuple[int, str]]


def append(conn: Connection, base: int, at: datetime, body: str) -> int | None:
    """Append the entry of a change that was planned at revision `base`. Returns the entry's revision.

    Returns None, and writes nothing, when other changes came after `base`. The head stays locked until the transaction
    ends.
    """
    dialect, revision = conn.dialect.name, base + 1
    move = batch.update(dialect, CHANGE_HEAD, ("revision", "revision"))
    if not batch.execute(conn, move, [(base, revision)]).rowcount:
        return None
    batch.execute(conn, batch.upsert(dialect, CHANGE_LOG, ("revision", "at", "body")), [(revision, at, body)])
    conn.info["wakes"] = True
    return revision


def head(conn: Connection) -> int:
    """The revision of the newest change; 0 before the first."""
    revision: int = conn.execute(sa.select(CHANGE_HEAD.c.revision)).scalar_one()
    return revision


def after(conn: Connection, revision: int) -> Following:
    """What follows a revision: up to MAX_ENTRIES entries."""
    newer = CHANGE_LOG.c.revision > revision
    found = sa.select(CHANGE_HEAD.c.revision, CHANGE_LOG.c.revision, CHANGE_LOG.c.body)
    both = found.select_from(CHANGE_HEAD.outerjoin(CHANGE_LOG, newer))
    rows = conn.execute(both.order_by(CHANGE_LOG.c.revision).limit(MAX_ENTRIES)).all()
    return Following(rows[0][0], [(at, body) for _, at, body in rows if body is not None])


def trim(conn: Connection, revision: int) -> None:
    """Delete the entries up to and including a revision, which every server has followed."""
    conn.execute(sa.delete(CHANGE_LOG).where(CHANGE_LOG.c.revision <= revision))
