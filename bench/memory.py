"""Rows of memory: what an idle agent costs the server, and what an agent holds itself."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from bench import floors
from bench.fleet import CONNECTING, Fleet
from bench.result import Limits, Result, Row
from bench.servers import LAMPLIGHTER, QUIET, Process, declare, resident, schedule, serving

FIRST, MORE = 500, 4_000
"""Connections that warm a server up, and those that are counted."""
HELD = 3
SCHEDULES = 100
SETTLED_S = 2.0
IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = 1 AND applied_digest = desired_digest"
IMPORTS = "import cli.main, cli.logs, cli.agent, asyncio.base_events, encodings.idna, zoneinfo; "


async def for_an_agent(row: str) -> Sequence[Result]:
    """The server's memory for each agent that is connected and in sync."""
    async with serving() as server:
        async with server.client() as client:
            await declare(client, [schedule(f"nightly-{at}", "0 2 * * *") for at in range(HELD)])
        fleet = Fleet(server.gateway, server.agent_token, FIRST + MORE)
        agents, fleet.agents = fleet.agents, fleet.agents[:FIRST]
        await fleet.start()
        await server.until_stored(IN_SYNC, FIRST)
        before = await _settled(server)
        fleet.agents = agents[FIRST:]
        await fleet.start()
        await server.until_stored(IN_SYNC, FIRST + MORE)
        each = (await _settled(server) - before) / MORE
        await fleet.stop()
    async with floors.serving("keep") as bare, floors.connected(bare.port, FIRST, CONNECTING):
        before = await _settled(bare)
        async with floors.connected(bare.port, MORE, CONNECTING):
            floor = (await _settled(bare) - before) / MORE
    what = f"server memory for an idle agent that is in sync ({MORE:,} of them)"
    return [Result(row, what, "KiB", each, floor, "a bare connection", Limits(32 << 10, 1.25))]


async def _settled(process: Process) -> int:
    await asyncio.sleep(SETTLED_S)
    return process.resident


async def of_an_agent(row: str) -> Sequence[Result]:
    """What `lamplighter agent` holds with 100 schedules, connected and in sync."""
    async with serving() as server, server.client() as client:
        await declare(client, [schedule(f"nightly-{at}", f"{at % 60} 2 * * *") for at in range(SCHEDULES)])
        with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
            url = f"http://127.0.0.1:{server.port}"
            options = ("--server", url, "--data-dir", folder, "--token-file", str(server.data / "agent-token"))
            async with _child(*LAMPLIGHTER, "agent", *options, "--host", "host", *QUIET) as pid:
                await server.until_stored(IN_SYNC, 1)
                await asyncio.sleep(SETTLED_S)
                held = resident(pid)
    async with _child(sys.executable, "-c", IMPORTS + "import time; time.sleep(600)") as pid:
        await asyncio.sleep(SETTLED_S)
        floor = resident(pid)
    what = f"an agent's resident memory with {SCHEDULES} schedules"
    return [Result(row, what, "MiB", held, floor, "python with the same imports", Limits(30 << 20, 1.15))]


@asynccontextmanager
async def _child(*argv: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


ROWS = (Row("memory-server", for_an_agent), Row("memory-agent", of_an_agent))
