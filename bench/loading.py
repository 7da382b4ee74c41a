"""Rows of loading 100,000 schedules with few distinct expressions, in an agent and in a server."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from croniter import croniter
from msgspec import Raw

from agent.core import pushes
from agent.core.state import AgentState
from bench.result import Limits, Result, Row, Size, median, runs
from bench.servers import repository, schedule
from server.access.identity import Files
from server.access.vault import Vault
from server.app import assemble, new_id, utc_now
from server.resources import manifests as resources
from server.store.declared import upsert_repositories, upsert_schedules
from server.store.engine import Store
from server.store.hosts import upsert_hosts
from server.store.rows import HostRow, RepositoryRow, ScheduleRow
from wire import entries
from wire.messages import Entry, ScheduleSet

CRONS = ("0 2 * * *", "*/15 * * * *", "30 3 * * 1-5", "0 0 1 * *", "@hourly", "15 4 * * sun")
ZONES = ("UTC", "Europe/Berlin", "America/New_York")


async def by_agent(row: str, size: Size) -> Sequence[Result]:
    """Measure an agent that receives a set: decoding, digest and timetable."""
    push = ScheduleSet(1, [Raw(raw) for raw in _entries(size.loaded)])
    took = []
    for _ in range(size.runs):
        begin = time.perf_counter()
        built = pushes.build(AgentState(), push, "host", datetime.now(UTC))
        took.append(time.perf_counter() - begin)
        assert isinstance(built, pushes.Built)
        assert len(built.table) == size.loaded
    return [_result(row, size.loaded, "schedules loaded by an agent: digest and timetable", took)]


async def by_server(row: str, size: Size) -> Sequence[Result]:
    """Measure a server that loads its store, with one host that holds all schedules."""
    took = []
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        store = await asyncio.to_thread(Store.open, Path(folder) / "lamplighter.db")
        await _fill(store, size.loaded)
        for _ in range(size.runs):
            parts = assemble(store, Vault([Vault.new_key()]), utc_now, new_id, Files("admin", "agent"))
            begin = time.perf_counter()
            await parts.loader.load(store, Vault([Vault.new_key()]))
            took.append(time.perf_counter() - begin)
            assert len(parts.services.placement.hosts["host"].entries) == size.loaded
        await store.close()
    return [_result(row, size.loaded, "schedules loaded by the server: rows, sets and digests", took)]


def _result(row: str, count: int, what: str, took: Sequence[float]) -> Result:
    now = datetime.now(UTC)
    begin = time.perf_counter()
    for at in range(count):
        croniter(CRONS[at % len(CRONS)], now)
    floor = time.perf_counter() - begin
    return Result(
        row, f"{count:,} {what}", "s", median(took), floor, "croniter's constructors alone", Limits(1.0), runs(took)
    )


def _entries(count: int) -> Iterator[bytes]:
    began = datetime.now(UTC)
    for at in range(count):
        zone = ZONES[at % len(ZONES)]
        yield entries.encode_entry(Entry(f"{at:032x}", f"bench/{at}", CRONS[at % len(CRONS)], began, "1", zone))


async def _fill(store: Store, count: int) -> None:
    now = datetime.now(UTC)
    main = resources.parse_repository(repository())
    await store.write(
        upsert_repositories,
        RepositoryRow(new_id(), main.namespace, main.name, main.labels, main.raw_spec, 1, now, now),
    )
    parsed = [resources.parse_schedule(schedule("any", cron)) for cron in CRONS]
    specs = (
        it.raw_spec | {"backup": it.raw_spec["backup"] | {"paths": [f"/srv/{at}"]}}
        for at, it in zip(range(count), cycle(parsed), strict=False)
    )
    rows = (
        ScheduleRow(new_id(), "bench", f"nightly-{at}", {}, spec, 1, now, now, now) for at, spec in enumerate(specs)
    )
    await asyncio.gather(*(store.write(upsert_schedules, row) for row in rows))
    await store.write(upsert_hosts, HostRow("host", {}, now, now))


ROWS = (Row("load-agent", by_agent), Row("load-server", by_server))
