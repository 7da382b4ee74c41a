"""Writes how far the jobs of hosts that are connected here are, for the servers that do not have these hosts."""

import asyncio
from contextlib import suppress
from datetime import datetime

import msgspec

from server.errors import Unavailable
from server.jobs.active import ActiveAttempts
from server.store.engine import Store
from server.store.progress import ProgressRow, drop_progress, put_progress

EVERY_S = 5.0
"""Seconds between two writes, each of all jobs that moved."""


class ProgressWriter:
    """Writes what is new of all jobs together."""

    def __init__(self, store: Store, active: ActiveAttempts) -> None:
        self._store = store
        self._active = active
        self._written: dict[str, datetime] = {}  # up to when each job's is written

    async def follow(self) -> None:
        """Write every `EVERY_S`, until cancelled; nothing where there are no other servers."""
        while self._store.is_shared:
            await asyncio.sleep(EVERY_S)
            with suppress(Unavailable):
                await self.write()

    async def write(self) -> None:
        """Write once. Raises Unavailable."""
        moving = {it.job_id: it for it in self._active.all() if it.progress_at is not None}
        rows = [
            ProgressRow(it.job_id, it.progress_at, msgspec.json.encode(it.progress).decode())
            for it in moving.values()
            if it.progress_at is not None and self._written.get(it.job_id) != it.progress_at
        ]
        over = [job_id for job_id in self._written if job_id not in moving]
        if rows:
            await self._store.write(put_progress, rows)
        if over:
            await self._store.write(drop_progress, over)
        self._written = {job_id: at for job_id, at in self._written.items() if job_id in moving}
        self._written |= {row.job_id: row.at for row in rows}
