"""Rows of what one host can cost others: a hello with many open jobs, and a frame of refused fires."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.fleet import Clock, still
from bench.result import Limits, Result, Row, Size, median, runs, slope
from bench.servers import declare, schedule
from server.app import Config, Running, serving
from server.jobs.fires import MAX_OPEN_JOBS
from server.store.queue import count_of_host
from wire import codec
from wire.messages import PROTOCOL, Hello, ScheduleFire

LATE_S = 0.05
"""Limit of the event loop's lateness, in seconds."""
LINEAR = 1.15
"""Limit of an exponent that should be 1: a measured one is never exact."""
SCHEDULES = 5


class Lateness:
    """Measures the event loop's greatest lateness while entered, in seconds."""

    most = 0.0

    async def __aenter__(self) -> "Lateness":
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


class _Taken(NamedTuple):
    """What one frame cost: seconds until the last answer, the loop's greatest lateness, and CPU-seconds."""

    seconds: float
    late: float
    cpu: float


async def bounds(row: str, size: Size) -> Sequence[Result]:
    """Measure the loop's greatest lateness, beside the time to decode the same bytes; and how the costs grow."""
    count = SCHEDULES * min(MAX_OPEN_JOBS, size.agents)
    counts = (max(1, count // 10), count)
    clock = Clock()
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        async with serving(Config(Path(folder), port=0), clock) as server:
            ids = await _declared(server)
            async with still():
                refused = {it: [await _refused(server, ids, it) for _ in range(size.runs)] for it in counts}
                sent: list[str] = []
                hellos = {}
                for it in counts:
                    await _open_jobs(server, ids, clock, f"host-{it}", it)
                    hellos[it] = [await _hello(server, f"host-{it}", it, sent) for _ in range(size.runs)]
    frame = _frame(ids, count, timedelta(days=-4000))
    decoded = [_decoded(codec.from_agent, [frame]) for _ in range(size.runs)]
    decoded_hello = [_decoded(codec.from_server, sent) for _ in range(size.runs)]
    return [
        *_results(row, f"a frame of {count:,} refused fires", "answered", refused, median(decoded)),
        *_results(row, f"a hello with {count:,} open jobs", "all sent", hellos, median(decoded_hello)),
    ]


def _results(
    row: str, what: str, done: str, taken: Mapping[int, Sequence[_Taken]], decoded: float
) -> tuple[Result, Result]:
    few, many = sorted(taken)
    cpu = {count: median([it.cpu for it in its]) for count, its in taken.items()}
    late, note = median([it.late for it in taken[many]]), f"{done}: {runs([it.seconds for it in taken[many]])}"
    grows = f"{what}: the exponent by which its CPU time grows, from {few:,}"
    figures = {"cpu_s.server_and_client": cpu[many], "cpu_s.server_and_client.each": cpu[many] / many}
    return (
        Result(
            row, f"{what}: the loop's lateness", "ms", late, decoded, "the same bytes decoded", Limits(LATE_S), note
        ),
        Result(row, grows, "slope", slope(cpu), None, "", Limits(LINEAR), "", figures),
    )


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


async def _refused(server: Running, ids: Sequence[str], count: int) -> _Taken:
    """Send refused fires, and wait until all are answered."""
    async with _connected(server, Hello("host", "1", 0, "")) as client:
        await _heard(client, "schedule.set", 1)
        frame = _frame(ids, count, timedelta(days=-4000))
        async with Lateness() as lateness:
            begin, cpu = time.perf_counter(), time.process_time()
            await client.send(frame)
            await _heard(client, "schedule.refused", count)
            return _Taken(time.perf_counter() - begin, lateness.most, time.process_time() - cpu)


async def _open_jobs(server: Running, ids: Sequence[str], clock: Clock, host: str, count: int) -> None:
    """Open `count` jobs on a host, with due times in the days after its hello, which has come before those days."""
    clock.shift = timedelta()
    async with _connected(server, Hello(host, "1", 0, "")) as client:
        await _heard(client, "schedule.set", 1)
        clock.shift = timedelta(days=3)
        await client.send(_frame(ids, count, timedelta(days=1)))
        await _heard(client, "command.run", 1)
    store = server.parts.services.store
    async with asyncio.timeout(60):
        while await store.read(count_of_host, host, count) < count:
            await asyncio.sleep(0.01)


async def _hello(server: Running, host: str, count: int, sent: list[str]) -> _Taken:
    """Send a hello that names none of the open jobs, and wait until all are sent again. `sent`: gets the frames."""
    async with Lateness() as lateness:
        begin, cpu = time.perf_counter(), time.process_time()
        async with _connected(server, Hello(host, "1", 0, "")) as client:
            sent[:] = await _heard(client, "command.run", count)
            return _Taken(time.perf_counter() - begin, lateness.most, time.process_time() - cpu)


ROWS = (Row("bounds", bounds),)
