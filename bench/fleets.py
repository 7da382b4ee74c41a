"""Rows of a large fleet: the server's memory for each agent, one change for all, and recovery after a kill."""

import asyncio
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from bench import floors
from bench.fleet import CONNECTING, Fleet, still
from bench.pushes import IN_SYNC, cast, declare_two, diff_frame, rolled_out, rollout_result
from bench.result import Limits, Result, Row, Size
from bench.servers import Process, Server, serving
from server.store.tables import stored

BACK = f"{IN_SYNC} AND last_seen > ?"


async def fleet(row: str, size: Size) -> Sequence[Result]:
    """Measure 10,000 agents, connected twice, and as many bare connections."""
    last = 1 + size.runs + 2  # the set's version after the first push, the changes, and the two of diff_frame
    async with serving() as server:
        await declare_two(server)
        before = await _settled(server, size)
        agents = Fleet(server.gateway, server.agent_token, size.fleet)
        begin = time.perf_counter()
        await agents.start()
        await server.until_stored(IN_SYNC, size.fleet, 1)
        enrolled = time.perf_counter() - begin
        each = (await _settled(server, size) - before) / size.fleet
        async with still():
            took = [await rolled_out(server, agents, 1 + run) for run in range(1, size.runs + 1)]
        frame = await diff_frame(server, "one-more")
        await server.until_stored(IN_SYNC, size.fleet, last)
        await server.stop(signal.SIGKILL)
        await agents.stop()
        back = await _back(server, agents, last)
    async with floors.serving("cast") as bare:
        before = await _settled(bare, size)
        begin = time.perf_counter()
        async with floors.connected(bare.port, size.fleet, CONNECTING) as clients, still():
            handshakes = time.perf_counter() - begin
            bare_each = (await _settled(bare, size) - before) / size.fleet
            floor = [await cast(bare.port, clients, frame) for _ in range(size.runs)]
    note = f"{size.fleet / back:,.0f} a second, bare {size.fleet / handshakes:,.0f}; the first time: {enrolled:.1f} s"
    what = f"{size.fleet:,} agents back in sync after the server was killed"
    memory = f"server memory for an idle agent that is in sync ({size.fleet:,} of them)"
    return [
        Result(row, memory, "KiB", each, bare_each, "a bare connection", Limits(32 << 10, 1.25)),
        rollout_result(row, size.fleet, took, floor, 2.0),
        Result(row, what, "s", back, handshakes, "as many bare handshakes", Limits(None, 1 / 0.7), note),
    ]


async def _back(server: Server, agents: Fleet, last: int) -> float:
    """Start a killed server again: seconds until its agents, with their old state, are in sync."""
    again = await Server.at(server.data, server.port)
    try:
        memories = [agent.core.state for agent in agents.agents]
        second = Fleet(again.gateway, again.agent_token, len(memories), memories)
        async with still():
            since = stored(datetime.now(UTC))
            begin = time.perf_counter()
            await second.start()
            await again.until_stored(BACK, len(memories), last, since)
            took = time.perf_counter() - begin
        await second.stop()
        return took
    finally:
        await again.stop()


async def _settled(process: Process, size: Size) -> int:
    await asyncio.sleep(size.settled_s)
    return process.resident


ROWS = (Row("fleet", fleet),)
