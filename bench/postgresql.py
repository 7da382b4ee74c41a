"""A PostgreSQL for the rows that need one, and the floor of a fire on it: rows inserted by psycopg in batches."""

import asyncio
import importlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psycopg

from bench.cpu import Spent, of_family

POLL_S = 0.05
"""Seconds between two queries: each takes a little of the CPU time that is measured."""
FRAME = '{"type":"schedule.fire","payload":{"schedule_id":"%s","scheduled_at":"2026-01-01T00:00:00Z"}}' % ("0" * 32)


class Postgresql(NamedTuple):
    """A running PostgreSQL. `dsn`: for psycopg; `url`: for a server's --database. `pid`: of its first process."""

    dsn: str
    url: str
    pid: int

    def cpu(self) -> float:
        """CPU-seconds of all its processes."""
        return of_family(self.pid)

    async def value(self, question: str) -> Any:
        """What a query returns."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            return await _value(conn, question)

    async def until(self, question: str, wanted: object, timeout_s: float = 120) -> None:
        """Wait until a query returns `wanted`."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            async with asyncio.timeout(timeout_s):
                while await _value(conn, question) != wanted:
                    await asyncio.sleep(POLL_S)

    def insert(self, fires: int, batch: int) -> tuple[float, dict[str, float]]:
        """Insert a row for each fire, so many in a transaction: seconds, and the CPU time of both sides. Blocks."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS bare_fires (id bigserial PRIMARY KEY, frame text)")
            spent, begin = Spent({"postgresql_bare": self.cpu, "psycopg": time.thread_time}), time.perf_counter()
            for first in range(0, fires, batch):
                rows = [FRAME] * min(batch, fires - first)
                conn.execute("INSERT INTO bare_fires (frame) SELECT unnest(%s::text[])", (rows,))
            return time.perf_counter() - begin, spent()


async def _value(conn: psycopg.AsyncConnection[tuple[Any, ...]], question: str) -> Any:
    found = await (await conn.execute(question.encode())).fetchone()
    assert found is not None
    return found[0]


@asynccontextmanager
async def running() -> AsyncIterator[Postgresql]:
    """A PostgreSQL with an empty database and its settings as they come, while entered."""
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # it warns where there is none
        pgserver = importlib.import_module("pgserver")
        started = await asyncio.to_thread(pgserver.get_server, f"{folder}/data")
        try:
            where = started.get_uri().partition("?")[2]
            url = f"postgresql+psycopg://postgres:@/postgres?{where}"
            yield Postgresql(started.get_uri(), url, started.get_pid())
        finally:
            await asyncio.to_thread(started.cleanup)
