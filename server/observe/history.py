"""How long ended jobs and the audit log are kept: a slow loop that deletes what is older, a little at a time."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from server.errors import Unavailable
from server.store.engine import Store
from server.store.history import Past, delete_audit, delete_past, nth_newest_job

log = logging.getLogger(__name__)

EVERY_S = 3600.0
"""Seconds between two rounds."""
PAUSE_S = 0.2
"""Seconds between two transactions of a round, for others to write."""


class HistoryRetention(NamedTuple):
    """How many jobs are kept, and for how many days jobs and the audit log are."""

    jobs: int = 100_000
    days: int = 90


async def follow(store: Store, keep: HistoryRetention, clock: Callable[[], datetime]) -> None:
    """Delete what is older than that, for ever."""
    while True:
        try:
            await delete(store, keep, clock())
        except Unavailable as error:
            log.warning("history is deleted later", extra={"reason": error})
        await asyncio.sleep(EVERY_S)


async def delete(store: Store, keep: HistoryRetention, now: datetime, pause_s: float = PAUSE_S) -> None:
    """Delete once. Jobs that are open stay, and so do the last that ended of each schedule on each host, and the last
    that went well.

    Raises Unavailable.
    """
    oldest = now - timedelta(days=keep.days)
    least = await store.read(nth_newest_job, keep.jobs)
    past: Past | None = Past(oldest if least is None else max(oldest, least))
    while past is not None:
        after = await store.write(delete_past, past)
        past = None if after is None else past._replace(after=after)
        await asyncio.sleep(pause_s)
    while await store.write(delete_audit, oldest):
        await asyncio.sleep(pause_s)
