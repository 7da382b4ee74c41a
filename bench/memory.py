"""The row of an agent's own memory."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from bench.result import Limits, Result, Row
from bench.servers import LAMPLIGHTER, QUIET, declare, resident, schedule, serving

SCHEDULES = 100
SETTLED_S = 2.0
IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = 1 AND applied_digest = desired_digest"
IMPORTS = "import cli.main, cli.logs, cli.agent, asyncio.base_events, encodings.idna, zoneinfo; "


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


ROWS = (Row("agent-memory", of_an_agent),)
