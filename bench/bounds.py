"""Rows of what one host can cost others: a hello with many open jobs, and a frame of refused fires."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.fleet import Clock, still
from bench.result import Limits, Result, Row, Size, median, runs
from bench.servers import declare, schedule
from server.app import Config, Running, serving
from server.jobs.fires import MAX_OPEN_JOBS
from server.store.queue import of_host
from wire import codec
from wire.messages import PROTOCOL, Hello, ScheduleFire

LATE_S = 0.05
"""Limit of the event loop's lateness, in seconds."""
SCHEDULES = 5


class _Lateness:
    """Measures the event loop's greatest lateness while entered, in seconds."""

    most = 0.0

    async def __aenter__(self) -> "_Lateness":
        self._sampling = asyncio.create_task(self._sample())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.002)
        self._sampling.cancel()

    async def _sample(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.most, last = max(self.most, now - last - 0.001), now


async def bounds(row: str, size: Size) -> Sequence[Result]:
    """Measure the loop's greatest lateness, beside the time to decode the same bytes."""
    count = SCHEDULES * min(MAX_OPEN_JOBS, size.agents)
    clock = Clock()
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        async with serving(Config(Path(folder), port=0), clock) as server:
            ids = await _declared(server)
            async with still():
                fires = [await _refused(server, ids, count) for _ in range(size.runs)]
                few = [await _refused(server, ids, max(1, count // 4)) for _ in range(size.runs)]
                await _open_jobs(server, ids, clock, count)
                hellos = [await _hello(server, count) for _ in range(size.runs)]
    frame = _frame(ids, count, timedelta(days=-4000))
    decoded = [_decoded(codec.from_agent, [frame]) for _ in range(size.runs)]
    decoded_hello = [_decoded(codec.from_server, frames) for _, _, frames in hellos]
    note = f"answered: {runs([took for took, _ in fires])}; a quarter of them: {runs([took for took, _ in few])}"
    told = f"all sent: {runs([took for took, *_ in hellos])}"
    limits, floor_is = Limits(LATE_S), "the same bytes decoded"
    late, late_hello = median([it for _, it in fires]), median([it for _, it, _ in hellos])
    what, hello = (
        f"a frame of {count:,} refused fires: the loop's lateness",
        f"a hello with {count:,} open jobs: the same",
    )
    return [
        Result(row, what, "ms", late, median(decoded), floor_is, limits, note),
        Result(row, hello, "ms", late_hello, median(decoded_hello), floor_is, limits, told),
    ]


async def _declared(server: Running) -> list[str]:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    base = f"http://127.0.0.1:{server.port}/api/v1"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
        await declare(client, [schedule(f"every-minute-{at}") for at in range(SCHEDULES)])
        items = (await client.get("/schedules")).json()["items"]
    return [item["metadata"]["uid"] for item in items]


def _frame(ids: Sequence[str], count: int, off: timedelta) -> str:
    """A frame of `count` fires with different due times, which begin at `off` from now."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0) + off
    return codec.encode(
        [ScheduleFire(ids[at % len(ids)], minute + at // len(ids) * timedelta(minutes=1)) for at in range(count)]
    )


def _decoded(reader: codec.Reader[Any], frames: Sequence[str]) -> float:
    begin = time.perf_counter()
    for frame in frames:
        reader.read(frame)
    return time.perf_counter() - begin


@asynccontextmanager
async def _connected(server: Running, hello: Hello) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {server.agent_token}"}
    settings: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "additional_headers": headers}
    async with connect(f"ws://127.0.0.1:{server.port}/agent", subprotocols=[Subprotocol(PROTOCOL)], **settings) as it:
        await it.send(codec.encode([hello]))
        yield it


async def _heard(client: ClientConnection, word: str, count: int) -> list[str]:
    """Wait for `count` messages of a type, and return all frames until then."""
    frames = []
    while count > 0:
        frames.append(str(await client.recv()))
        count -= frames[-1].count(f'"type":"{word}"')
    return frames


async def _refused(server: Running, ids: Sequence[str], count: int) -> tuple[float, float]:
    """Send refused fires: seconds to the last refusal, and the loop's greatest lateness."""
    async with _connected(server, Hello("host", "1", 0, "")) as client:
        await _heard(client, "schedule.set", 1)
        frame = _frame(ids, count, timedelta(days=-4000))
        async with _Lateness() as lateness:
            begin = time.perf_counter()
            await client.send(frame)
            await _heard(client, "schedule.refused", count)
            return time.perf_counter() - begin, lateness.most


async def _open_jobs(server: Running, ids: Sequence[str], clock: Clock, count: int) -> None:
    """Open `count` jobs on the host, with due times in the next days, after moving the server's clock ahead."""
    clock.shift = timedelta(days=3)
    async with _connected(server, Hello("host", "1", 0, "")) as client:
        await _heard(client, "schedule.set", 1)
        await client.send(_frame(ids, count, timedelta(days=1)))
        await _heard(client, "command.run", 1)
    store = server.parts.services.store
    async with asyncio.timeout(60):
        while len(await store.read(partial(of_host, most=count), "host")) < count:
            await asyncio.sleep(0.01)


async def _hello(server: Running, count: int) -> tuple[float, float, list[str]]:
    """Send a hello that names none of the open jobs: seconds until all are sent again, lateness, and frames sent."""
    async with _Lateness() as lateness:
        begin = time.perf_counter()
        async with _connected(server, Hello("host", "1", 0, "")) as client:
            frames = await _heard(client, "command.run", count)
            return time.perf_counter() - begin, lateness.most, frames


ROWS = (Row("bounds", bounds),)
