"""Statements on lists of snapshots and files that are kept while their pages are read."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import LISTINGS

KEPT = 32
"""Maximum lists that are kept; the oldest are deleted."""


class KeptRow(NamedTuple):
    """A list. `body`: its JSON."""

    id: str
    at: datetime
    body: str


def keep_listings(conn: Connection, rows: Sequence[KeptRow]) -> list[None]:
    """Keep lists, and delete the oldest beyond KEPT."""
    batch.put_rows(conn, LISTINGS, KeptRow._fields, rows, ())
    newest = sa.select(LISTINGS.c.id).order_by(LISTINGS.c.at.desc(), LISTINGS.c.id).limit(KEPT)
    conn.execute(sa.delete(LISTINGS).where(LISTINGS.c.id.not_in(newest)))
    return [None] * len(rows)


def drop_listings(conn: Connection, ids: Sequence[str]) -> list[None]:
    """Delete these lists: their last pages are read."""
    return batch.delete_rows(conn, LISTINGS, "id", ids)


def kept_listing(conn: Connection, id_: str) -> str | None:
    """The JSON of a list; None if it is not kept any more."""
    body: str | None = conn.execute(sa.select(LISTINGS.c.body).where(LISTINGS.c.id == id_)).scalar()
    return body
