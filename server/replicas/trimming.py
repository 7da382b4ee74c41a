"""Deletes from the change log and the news what every server has followed."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection

from server.errors import Unavailable
from server.store import changelog, news, servers
from server.store.engine import Store

EVERY_S = 30.0
"""Seconds between two rounds."""
KEEP = timedelta(seconds=2 * news.GAP_S)
"""How long news are kept that all have read: a row that was committed late may come before one that is gone."""


class Past(NamedTuple):
    """What all have followed: the log up to a revision, and the news up to an id and from before a time."""

    revision: int
    news: int
    before: datetime


async def follow(store: Store, clock: Callable[[], datetime]) -> None:
    """Trim every `EVERY_S`, until cancelled."""
    while True:
        with suppress(Unavailable):
            await trim(store, clock())
        await asyncio.sleep(EVERY_S)


async def trim(store: Store, now: datetime) -> None:
    """Trim once. A server that still loads has followed nothing. Raises Unavailable."""
    if rows := await store.read(servers.living):
        past = Past(min(row.revision for row in rows), min(row.news for row in rows), now - KEEP)
        await store.write(delete_past, past)


def delete_past(conn: Connection, items: Sequence[Past]) -> list[None]:
    """A batch statement that deletes what all have followed."""
    for past in items:
        changelog.trim(conn, past.revision)
        news.trim(conn, [(past.news, past.before)])
    return [None] * len(items)
