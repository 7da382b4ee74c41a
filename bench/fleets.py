"""The rows of a large fleet: what each agent costs the server, one change for all, and all back after a kill."""

import asyncio
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from bench import floors
from bench.fleet import CONNECTING, Fleet, still
from bench.pushes import IN_SYNC, cast, declare_two, diff_frame, rolled_out, rollout_result
from bench.result import Limits, Result, Row
from bench.servers import Process, Server, serving
from server.models import stored

AGENTS = 10_000
RUNS = 3
LAST = 1 + RUNS + 2
"""The version of the set after the first push, the changes, and those that show the frame of one."""
SETTLED_S = 1.0
BACK = f"{IN_SYNC} AND last_seen > ?"


async def fleet(row: str) -> Sequence[Result]:
    """10,000 agents, connected twice, and as many bare connections."""
    async with serving() as server:
        await declare_two(server)
        before = await _settled(server)
        agents = Fleet(server.gateway, server.agent_token, AGENTS)
        begin = time.perf_counter()
        await agents.start()
        await server.until_stored(IN_SYNC, AGENTS, 1)
        enrolled = time.perf_counter() - begin
        each = (await _settled(server) - before) / AGENTS
        async with still():
            took = [await rolled_out(server, agents, 1 + run) for run in range(1, RUNS + 1)]
        frame = await diff_frame(server, "one-more")
        await server.until_stored(IN_SYNC, AGENTS, LAST)
        await server.stop(signal.SIGKILL)
        await agents.stop()
        back = await _back(server, agents)
    async with floors.serving("cast") as bare:
        before = await _settled(bare)
        begin = time.perf_counter()
        async with floors.connected(bare.port, AGENTS, CONNECTING) as clients, still():
            handshakes = time.perf_counter() - begin
            bare_each = (await _settled(bare) - before) / AGENTS
            floor = [await cast(bare.port, clients, frame) for _ in range(RUNS)]
    note = f"{AGENTS / back:,.0f} a second, bare {AGENTS / handshakes:,.0f}; the first time: {enrolled:.1f} s"
    what = "10,000 agents back in sync after the server was killed"
    memory = f"server memory for an idle agent that is in sync ({AGENTS:,} of them)"
    return [
        Result(row, memory, "KiB", each, bare_each, "a bare connection", Limits(32 << 10, 1.25)),
        rollout_result(row, AGENTS, took, floor, 2.0),
        Result(row, what, "s", back, handshakes, "as many bare handshakes", Limits(None, 1 / 0.7), note),
    ]


async def _back(server: Server, agents: Fleet) -> float:
    """Start a killed server again: seconds that its agents, with what they remember, take to be in sync with it."""
    again = await Server.at(server.data, server.port)
    try:
        memories = [agent.core.memory for agent in agents.agents]
        second = Fleet(again.gateway, again.agent_token, AGENTS, memories)
        async with still():
            since = stored(datetime.now(UTC))
            begin = time.perf_counter()
            await second.start()
            await again.until_stored(BACK, AGENTS, LAST, since)
            took = time.perf_counter() - begin
        await second.stop()
        return took
    finally:
        await again.stop()


async def _settled(process: Process) -> int:
    await asyncio.sleep(SETTLED_S)
    return process.resident


ROWS = (Row("fleet", fleet),)
