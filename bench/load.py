"""The load: processes of `bench.hosts`, which share the hosts among them."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec

from bench.cpu import of_process

PROCESSES = 2
CONNECTING = 256
"""Hosts that connect at once; a server's backlog holds as many."""
AHEAD_S = 0.2
"""Seconds in which all processes have heard when they are to begin."""
LINE = 1 << 26
"""Bytes of the longest answer of a process."""


class Load:
    """Hosts, or clients of a bare server, in some processes."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    def cpu(self) -> float:
        """CPU-seconds of all its processes."""
        return sum(of_process(process.pid) for process in self._processes)

    async def hosts(self, count: int, *, ends: bool = False) -> None:
        """Play this many hosts, which hold nothing yet. `ends`: whether they end each job at once."""
        await self._ask("hosts", [(first, share, ends) for first, share in self._shares(count)])

    async def bare(self, count: int, frame: str, frames: int = 1) -> None:
        """Play clients of a bare server, whose fire is `frames` copies of a frame."""
        await self._ask("bare", [(share, frame, frames) for _, share in self._shares(count)])

    async def open(self, ports: int | Sequence[int], path: str = "/", token: str = "") -> float:
        """Connect all, with a port for each process in turn. Returns the seconds until the last had connected."""
        to, each = [ports] if isinstance(ports, int) else ports, CONNECTING // len(self._processes)
        begin = time.perf_counter()
        await self._ask("open", [(to[at % len(to)], path, token, each) for at in range(len(self._processes))])
        return time.perf_counter() - begin

    async def holding(self, version: int) -> None:
        """Wait until all hosts hold a version or a later one."""
        await self._all("holding", version)

    async def burst(self, ticks: int = 1) -> list[float]:
        """All fire at once, for so many due times each. Returns the seconds until each answer."""
        return _joined(await self._all("burst", time.perf_counter() + AHEAD_S, ticks))

    async def paced(self, rate: float, seconds: float) -> list[float]:
        """Fire so often a second, each in turn. Returns the seconds until each answer."""
        every = len(self._processes) / rate
        begin, count = time.perf_counter() + AHEAD_S, max(1, int(seconds / every))
        asked = [(begin + at / rate, every, count) for at in range(len(self._processes))]
        return _joined(await self._ask("paced", asked))

    async def alone(self, count: int, pause_s: float) -> list[float]:
        """One fires `count` times, each so many seconds after the last answer. Returns seconds until each answer."""
        (first, *_) = self._processes
        return list(await _answer(first, "alone", (count, pause_s)))

    async def drop(self) -> None:
        """Drop all connections; hosts keep what they hold, and `open` connects them again."""
        await self._all("drop")

    async def _all(self, name: str, *arguments: object) -> list[Any]:
        return await self._ask(name, [arguments] * len(self._processes))

    async def _ask(self, name: str, arguments: Sequence[Sequence[object]]) -> list[Any]:
        asked = zip(self._processes, arguments, strict=True)
        return await asyncio.gather(*(_answer(process, name, its) for process, its in asked))

    def _shares(self, count: int) -> Iterator[tuple[int, int]]:
        """The first number and how many, for each process. Each has at least one."""
        assert count >= len(self._processes), f"{count} hosts for {len(self._processes)} processes"
        bounds = [count * at // len(self._processes) for at in range(len(self._processes) + 1)]
        return ((first, last - first) for first, last in pairwise(bounds))


async def _answer(process: asyncio.subprocess.Process, name: str, arguments: Sequence[object]) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode((name, arguments)) + b"\n")
    answer = await process.stdout.readline()
    assert answer, f"a process of the load ended during {name!r}"
    return msgspec.json.decode(answer)


def _joined(answers: Sequence[list[float]]) -> list[float]:
    return [took for answer in answers for took in answer]


@asynccontextmanager
async def loading(processes: int = PROCESSES) -> AsyncIterator[Load]:
    """A load, while entered."""
    argv, pipe = (sys.executable, "-m", "bench.hosts"), asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, limit=LINE) for _ in range(processes)
    ]
    try:
        yield Load(started)
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()
