"""The row of a server that was killed: its whole fleet connects again."""

import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from bench import floors
from bench.fleet import CONNECTING, Fleet, still
from bench.result import Limits, Result, Row
from bench.servers import Server, declare, schedule, serving
from server.models import stored

AGENTS = 10_000
IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = 1 AND applied_digest = desired_digest"
BACK = f"{IN_SYNC} AND last_seen > ?"


async def back(row: str) -> Sequence[Result]:
    """10,000 agents that were in sync call a server that was killed and started again: until each is known to be."""
    async with serving() as server:
        async with server.client() as client:
            await declare(client, [schedule("nightly", "0 2 * * *"), schedule("weekly", "@weekly")])
        first = Fleet(server.gateway, server.agent_token, AGENTS)
        begin = time.perf_counter()
        await first.start()
        await server.until_stored(IN_SYNC, AGENTS)
        enrolled = time.perf_counter() - begin
        await server.stop(signal.SIGKILL)
        await first.stop()
        again = await Server.at(server.data, server.port)
        try:
            memories = [agent.core.memory for agent in first.agents]
            second = Fleet(again.gateway, again.agent_token, AGENTS, memories)
            del first
            async with still():
                since = stored(datetime.now(UTC))
                begin = time.perf_counter()
                await second.start()
                await again.until_stored(BACK, AGENTS, since)
                took = time.perf_counter() - begin
            await second.stop()
        finally:
            await again.stop()
    floor = await _handshakes()
    note = f"{AGENTS / took:,.0f} a second, bare {AGENTS / floor:,.0f}; when none was known: {enrolled:.1f} s"
    what = "10,000 agents back in sync after the server was killed"
    return [Result(row, what, "s", took, floor, "as many bare handshakes", Limits(None, 1 / 0.7), note)]


async def _handshakes() -> float:
    async with floors.serving("keep") as server, still():
        begin = time.perf_counter()
        async with floors.connected(server.port, AGENTS, CONNECTING):
            return time.perf_counter() - begin


ROWS = (Row("back", back),)
