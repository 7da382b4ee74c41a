"""The row of an agent's resident memory."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from bench.result import Limits, Result, Row, Size
from bench.servers import LAMPLIGHTER, QUIET, declare, resident, schedule, serving

IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = 1 AND applied_digest = desired_digest"
IMPORTS = "import cli.main, cli.logs, cli.agent, asyncio.base_events, encodings.idna, zoneinfo; "


async def of_an_agent(row: str, size: Size) -> Sequence[Result]:
    """Measure the resident memory of `lamplighter agent` with 100 schedules, connected and in sync."""
    count = max(1, size.schedules // 10)
    async with serving() as server, server.client() as client:
        await declare(client, [schedule(f"nightly-{at}", f"{at % 60} 2 * * *") for at in range(count)])
        with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
            url = f"http://127.0.0.1:{server.port}"
            options = ("--server", url, "--data-dir", folder, "--token-file", str(server.data / "agent-token"))
            async with _child(*LAMPLIGHTER, "agent", *options, "--host", "host", *QUIET) as pid:
                await server.until_stored(IN_SYNC, 1)
                await asyncio.sleep(size.settled_s)
                held = resident(pid)
    async with _child(sys.executable, "-c", IMPORTS + "import time; time.sleep(600)") as pid:
        await asyncio.sleep(size.settled_s)
        floor = resident(pid)
    what = f"an agent's resident memory with {count} schedules"
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
