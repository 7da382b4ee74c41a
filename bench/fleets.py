"""Rows of a large fleet: the server's memory for each agent, one change for all, and recovery after a kill."""

import asyncio
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from bench import floors
from bench.cpu import Spent
from bench.load import Load, loading
from bench.pushes import IN_SYNC, casts, declare_two, diff_frame, roll_out, rollout_result
from bench.result import Limits, Result, Row, Size, cpu_figures
from bench.servers import Process, Server, serving
from server.store.tables import stored

BACK = f"{IN_SYNC} AND last_seen > ?"


async def fleet(row: str, size: Size) -> Sequence[Result]:
    """Measure 10,000 hosts, connected twice, and as many bare connections."""
    hosts, last = size.fleet, 1 + size.runs + 2  # the version after the first push, the changes, and two of diff_frame
    async with serving() as server, loading() as load:
        await declare_two(server)
        before = await _settled(server, size)
        await load.hosts(hosts)
        spent, begin = Spent({"server": server.cpu}), time.perf_counter()
        await load.open(server.port, "/agent", server.agent_token)
        await server.until_stored(IN_SYNC, hosts, 1)
        enrolled, first = time.perf_counter() - begin, spent()
        each = (await _settled(server, size) - before) / hosts
        rolled = await roll_out(server, load, hosts, size.runs)
        frame = await diff_frame(server, "one-more")
        await server.until_stored(IN_SYNC, hosts, last)
        await server.stop(signal.SIGKILL)
        await load.drop()
        back, figures = await _back(server, load, hosts, last)
    async with floors.serving("cast") as bare, loading() as load:
        before = await _settled(bare, size)
        await load.bare(hosts, frame)
        spent = Spent({"bare": bare.cpu})
        handshakes = await load.open(bare.port)
        figures |= cpu_figures(spent(), hosts)
        bare_each = (await _settled(bare, size) - before) / hosts
        floor = await casts(bare, frame, hosts, size.runs)
    note = f"{hosts / back:,.0f} a second, bare {hosts / handshakes:,.0f}; the first time: {enrolled:.1f} s"
    figures |= cpu_figures({"server_first_hello": first["server"]}, hosts)
    what = f"{hosts:,} hosts back in sync after the server was killed"
    memory = f"server memory for an idle host that is in sync ({hosts:,} of them)"
    return [
        Result(row, memory, "KiB", each, bare_each, "a bare connection", Limits(32 << 10, 1.25)),
        rollout_result(row, hosts, rolled, floor, 2.0),
        Result(row, what, "s", back, handshakes, "as many bare handshakes", Limits(None, 1 / 0.7), note, figures),
    ]


async def _back(server: Server, load: Load, hosts: int, last: int) -> tuple[float, dict[str, float]]:
    """Start a killed server again: seconds until its hosts, with what they held, are in sync; and the CPU time."""
    again = await Server.at(server.data, server.port)
    try:
        since, spent = stored(datetime.now(UTC)), Spent({"server": again.cpu, "load": load.cpu})
        begin = time.perf_counter()
        await load.open(again.port, "/agent", again.agent_token)
        await again.until_stored(BACK, hosts, last, since)
        return time.perf_counter() - begin, cpu_figures(spent(), hosts)
    finally:
        await again.stop()


async def _settled(process: Process, size: Size) -> int:
    await asyncio.sleep(size.settled_s)
    return process.resident


ROWS = (Row("fleet", fleet),)
