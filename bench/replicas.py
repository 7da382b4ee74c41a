"""Rows on PostgreSQL: what a fire costs the server and the database, and what several servers on one database reach."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import postgresql
from bench.cpu import Spent
from bench.fires import EACH, STORED, minutely, reached_rate
from bench.load import PROCESSES, Load, loading
from bench.postgresql import Postgresql
from bench.result import Limits, Result, Row, Size, cpu_figures, median, runs
from bench.servers import LEAPING, Server, serving

SERVERS = (1, 2, 3)


@asynccontextmanager
async def replicas(count: int, command: Sequence[str] = LEAPING) -> AsyncIterator[tuple[Postgresql, list[Server]]]:
    """Some servers over one PostgreSQL, with the same keys and tokens, while entered."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgresql.running())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="lamplighter-bench-")))
        servers = []
        for number in range(count):
            more = ("--database", database.url, *(("--replica-name", f"server-{number}") if count > 1 else ()))
            servers.append(await Server.at(folder, command=command, more=more))
            stack.push_async_callback(servers[-1].stop)
        yield database, servers


async def on_postgresql(row: str, size: Size) -> Sequence[Result]:
    """Measure a herd on PostgreSQL beside one on SQLite, by CPU time: of the server, and of PostgreSQL."""
    fires = size.agents * EACH
    async with serving(LEAPING) as server, loading() as load:
        await minutely(server, load, size.agents, EACH)
        spent = Spent({"server_sqlite": server.cpu})
        for run in range(1, size.runs + 1):
            await load.burst()
            await server.until_stored(STORED, run * fires)
        sqlite = spent()
    async with replicas(1) as (database, (server,)), loading() as load:
        await minutely(server, load, size.agents, EACH)
        spent, took = Spent({"server": server.cpu, "postgresql": database.cpu, "load": load.cpu}), []
        for run in range(1, size.runs + 1):
            took.append(max(await load.burst()))
            await database.until(STORED, run * fires)
        here = spent()
        batch = max(1, round(size.runs * fires / await _batches(database)))
        bare = [await asyncio.to_thread(database.insert, fires, batch) for _ in range(size.runs)]
    floor = {name: median([its[name] for _, its in bare]) for name in bare[0][1]}
    each = cpu_figures(here | sqlite, size.runs * fires) | cpu_figures(floor, fires)
    note = f"the last answer: {runs(took)}; psycopg alone: {runs([took for took, _ in bare])}, {batch} rows a commit"
    of_server = f"a fire on PostgreSQL ({fires:,} at once over {size.agents:,} hosts): CPU of the server"
    is_server, is_postgresql = "on SQLite", "psycopg inserting one row a fire, in the same batches"
    server_s, sqlite_s = each["cpu_s.server.each"], each["cpu_s.server_sqlite.each"]
    ours, theirs = each["cpu_s.postgresql.each"], each["cpu_s.postgresql_bare.each"]
    return [
        Result(row, of_server, "us", server_s, sqlite_s, is_server, Limits(None, 1.5), note, each),
        Result(row, "the same: CPU of PostgreSQL", "us", ours, theirs, is_postgresql, Limits()),
    ]


async def _batches(database: Postgresql) -> int:
    """The transactions that stored that jobs began: each gave its rows the same `xmin`. Those that recorded the jobs
    before had as many rows, or more."""
    return int(await database.value("SELECT count(DISTINCT id) FROM (SELECT xmin::text AS id FROM jobs) AS recorded"))


async def several(row: str, size: Size) -> Sequence[Result]:
    """Measure what one, two and three servers reach under the same kind of load: fires that begin and end jobs."""
    counts = SERVERS if size.runs > 1 else SERVERS[1:2]
    return [await _reached(row, size, count) for count in counts]


async def _reached(row: str, size: Size, count: int) -> Result:
    async with replicas(count) as (database, servers), loading(max(PROCESSES, count)) as load:
        await _spread(servers, load, max(size.agents, len(SERVERS)))
        reached = await reached_rate(load, size.seconds / 4)
        clocks = {f"server_{at}": server.cpu for at, server in enumerate(servers)}
        spent = Spent(clocks | {"postgresql": database.cpu, "load": load.cpu})
        took = await load.paced(reached / 2, size.seconds)
        figures = cpu_figures(spent(), len(took)) | {"reached_per_s": reached}
    what = f"a fire on PostgreSQL with {count} {'server' if count == 1 else 'servers'}: CPU of all servers"
    total = sum(figures[f"cpu_s.{name}.each"] for name in clocks)
    note = f"{reached:,.0f} fires a second are reached; at half of that p50 {statistics.median(took) * 1e3:.1f} ms"
    return Result(row, what, "us", total, None, "", Limits(), note, figures)


async def _spread(servers: Sequence[Server], load: Load, hosts: int) -> None:
    """Connect the hosts of each process of the load with one server, in turn."""
    first, *others = servers
    await minutely(first, load, hosts, 1, ends=True, ports=[server.port for server in servers])
    for server in others:
        await server.leap()


ROWS = (
    Row("fire-postgresql", on_postgresql, needs_postgresql=True),
    Row("servers", several, needs_postgresql=True),
)
