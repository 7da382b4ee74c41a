"""Deletes old jobs, audit lines and days, in small transactions with pauses between them."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from server.errors import Unavailable
from server.store.days import delete_days
from server.store.engine import Store
from server.store.history import Past, delete_audit, delete_past, nth_newest_job
from server.store.schedule_days import delete_schedule_days

log = logging.getLogger(__name__)

EVERY_S = 3600.0
"""Seconds between two rounds."""
PAUSE_S = 0.2
"""Seconds between two transactions of a round, in which others can write."""


class HistoryRetention(NamedTuple):
    """How many jobs are kept, and for how many days jobs, audit lines and the counts of each day are kept."""

    jobs: int = 100_000
    days: int = 90


async def follow(store: Store, keep: HistoryRetention, clock: Callable[[], datetime]) -> None:
    """Delete old history every `EVERY_S` seconds, until cancelled."""
    while True:
        try:
            await delete(store, keep, clock())
        except Unavailable as error:
            log.warning("history is deleted later", extra={"reason": error})
        await asyncio.sleep(EVERY_S)


async def delete(store: Store, keep: HistoryRetention, now: datetime, pause_s: float = PAUSE_S) -> None:
    """Delete old history once. `pause_s`: seconds between two transactions. Raises Unavailable.

    Open jobs stay. For each schedule on each host, so do the job that ended last and the last one that succeeded.
    """
    oldest = now - timedelta(days=keep.days)
    least = await store.read(nth_newest_job, keep.jobs)
    past: Past | None = Past(oldest if least is None else max(oldest, least))
    while past is not None:
        after = await store.write(delete_past, past)
        past = None if after is None else past._replace(after=after)
        await asyncio.sleep(pause_s)
    while await store.write(delete_days, oldest.date()):
        await asyncio.sleep(pause_s)
    while await store.write(delete_schedule_days, oldest.date()):
        await asyncio.sleep(pause_s)
    while await store.write(delete_audit, oldest):
        await asyncio.sleep(pause_s)
