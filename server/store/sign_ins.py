"""Statements on sign-ins to the pages: links that work once, and sessions that were ended before they expired."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import ENDED_SESSIONS, SIGN_IN_LINKS

MAX_LINKS = 1000
"""Maximum unused links; the first to expire are deleted."""


class LinkRow(NamedTuple):
    """A link that signs in once. `digest`: of its code; `sealed`: the token that it signs in with, by the vault."""

    digest: str
    sealed: str
    expires_at: datetime


class EndedRow(NamedTuple):
    """A session that was ended before it expires. `digest`: of its id. `now`: when; not stored."""

    digest: str
    expires_at: datetime
    now: datetime


def put_links(conn: Connection, rows: Sequence[LinkRow]) -> list[None]:
    """Put links, and delete the first to expire beyond MAX_LINKS."""
    batch.put_rows(conn, SIGN_IN_LINKS, LinkRow._fields, rows, ())
    table = SIGN_IN_LINKS.c
    last = sa.select(table.digest).order_by(table.expires_at.desc(), table.digest).limit(MAX_LINKS)
    conn.execute(sa.delete(SIGN_IN_LINKS).where(table.digest.not_in(last)))
    return [None] * len(rows)


def use_links(conn: Connection, digests: Sequence[str]) -> list[LinkRow | None]:
    """Take links, each of which one caller gets; None for those that are gone."""
    columns = [SIGN_IN_LINKS.c[name] for name in LinkRow._fields]
    found = []
    for digest in digests:
        taken = sa.delete(SIGN_IN_LINKS).where(SIGN_IN_LINKS.c.digest == digest).returning(*columns)
        row = conn.execute(taken).one_or_none()
        found.append(None if row is None else LinkRow(*row))
    return found


def end_sessions(conn: Connection, rows: Sequence[EndedRow]) -> list[None]:
    """Note that sessions have ended, and forget those that have expired by themselves."""
    conn.execute(sa.delete(ENDED_SESSIONS).where(ENDED_SESSIONS.c.expires_at < max(row.now for row in rows)))
    batch.put_rows(conn, ENDED_SESSIONS, ("digest", "expires_at"), [row[:2] for row in rows], ())
    return [None] * len(rows)


def is_ended(conn: Connection, digest: str) -> bool:
    """Whether a session was ended."""
    return conn.execute(sa.select(sa.literal(1)).where(ENDED_SESSIONS.c.digest == digest)).one_or_none() is not None
