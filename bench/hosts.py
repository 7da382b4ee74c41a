"""`python -m bench.hosts` is one process of the load. It plays hosts, as each line of JSON on its input says.

A host answers as an agent does, with frames that were worked out once for all hosts of the process: a real agent's own
work would take more CPU than the server's. `bench.load` is the other end.
"""

import asyncio
import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from bench import line
from bench.line import framed
from wire import codec, entries
from wire.entries import EMPTY, Diff, EntrySet
from wire.messages import (
    CommandRun,
    FromServer,
    Hello,
    JobAccepted,
    JobFinished,
    ScheduleAck,
    ScheduleDiff,
    ScheduleFire,
    ScheduleRefused,
    ScheduleSet,
)

TIMEOUT_S = 300.0
MINUTE = timedelta(minutes=1)
FIRST_DUE = timedelta(minutes=30)
"""From now to the first due time that a host fires: by then the schedules are long in force."""


def encoded(*messages: Any) -> bytes:
    """The bytes of a frame with these messages."""
    return framed(codec.encode(messages).encode())


class Held(msgspec.Struct, frozen=True):
    """What a host holds, and the frame with its ack."""

    version: int = 0
    entries: EntrySet = EMPTY
    ack: bytes = b""


class Shared:
    """What all hosts of the process share. `took`: seconds from each fire to its answer."""

    def __init__(self, *, ends: bool = False) -> None:
        self.took: list[float] = []
        self.refused: list[str] = []
        self.first_due = datetime.now(UTC).replace(second=0, microsecond=0) + FIRST_DUE
        self.ends = ends
        self._pushed: dict[tuple[str, bytes], Held] = {}
        self._ticks: dict[tuple[str, int], bytes] = {}
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def pushed(self, held: Held, frame: bytes) -> Held:
        """What a host holds after a push."""
        key = (held.entries.digest, frame)
        if key not in self._pushed:
            ((message, _),) = codec.from_server.read(frame)
            assert isinstance(message, ScheduleSet | ScheduleDiff)
            if isinstance(message, ScheduleSet):
                new = entries.whole(message.schedules)
            else:
                new = entries.apply(held.entries, Diff(tuple(map(bytes, message.upsert)), tuple(message.remove)))
            self._pushed[key] = Held(message.version, new, encoded(ScheduleAck(message.version, new.digest)))
        return self._pushed[key]

    def tick(self, held: Held, number: int) -> bytes:
        """The frame with the fires of all schedules that a host holds, at one due time."""
        key = (held.entries.digest, number)
        if key not in self._ticks:
            due = self.first_due + number * MINUTE
            self._ticks[key] = encoded(*(ScheduleFire(id_, due) for id_ in held.entries.items))
        return self._ticks[key]

    def changed(self) -> None:
        """Wake those who wait, if what they wait for holds."""
        for holds, future in self._waiting:
            if not future.done() and holds():
                future.set_result(None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds`, which is checked whenever a host heard something."""
        if not holds():
            waiting = (holds, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await waiting[1]
            finally:
                self._waiting.remove(waiting)


class Peer:
    """One connection of the load. `asked`: when each unanswered fire was due to be sent."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.asked: deque[float] = deque()
        self.line: line.Line

    async def open(self, port: int, request: bytes) -> None:
        """Connect."""
        self.line = await line.dial(port, request, self.heard)

    def heard(self, frame: bytes) -> None:
        """Take a frame."""
        raise NotImplementedError

    def fire(self, due: float) -> None:
        """Send what is to be answered."""
        raise NotImplementedError

    def answered(self, count: int) -> None:
        """Note answers, of which each is to the oldest fire without one."""
        now = time.perf_counter()
        for _ in range(count):
            self.shared.took.append(now - self.asked.popleft())
        self.shared.changed()


class Bare(Peer):
    """A client of a bare server. A fire is `frames` copies of `frame`, each answered by one; it answers what it is
    told without having fired with `ack`."""

    def __init__(self, shared: Shared, frame: bytes, frames: int) -> None:
        super().__init__(shared)
        self._frame, self._frames = framed(frame), frames
        self._ack = encoded(ScheduleAck(2, "0" * 64))

    def heard(self, frame: bytes) -> None:
        if self.asked:
            self.answered(1)
        else:
            self.line.send(self._ack)

    def fire(self, due: float) -> None:
        for _ in range(self._frames):
            self.asked.append(due)
            self.line.send(self._frame)


class Host(Peer):
    """A host that holds what it is sent, and accepts each command; it ends the job at once where `Shared.ends`."""

    def __init__(self, shared: Shared, name: str) -> None:
        super().__init__(shared)
        self.name = name
        self.held = Held()
        self._ticks = 0

    async def open(self, port: int, request: bytes) -> None:
        await super().open(port, request)
        hello = Hello(self.name, "bench", self.held.version, self.held.entries.digest if self.held.version else "")
        self.line.send(encoded(hello))

    def heard(self, frame: bytes) -> None:
        if frame.startswith((b'{"type":"schedule.set"', b'{"type":"schedule.diff"')):
            self.held = self.shared.pushed(self.held, frame)
            self.line.send(self.held.ack)
            self.shared.changed()
        elif b'"command.run"' in frame or b'"schedule.refused"' in frame:
            self._told([message for message, _ in codec.from_server.read(frame)])

    def _told(self, messages: Sequence[FromServer]) -> None:
        jobs = [message.job_id for message in messages if isinstance(message, CommandRun)]
        answers = [it for it in messages if isinstance(it, ScheduleRefused) and it.reason != "Queued"]
        refused = [f"{it.reason}: {it.message}" for it in answers]  # a command follows one that is queued
        if jobs:
            ends: list[Any] = []
            if self.shared.ends:
                now = datetime.now(UTC)
                ends = [JobFinished(job, "succeeded", now) for job in jobs]
            self.line.send(encoded(*map(JobAccepted, jobs), *ends))
        self.shared.refused += refused
        self.answered(len(jobs) + len(refused))

    def fire(self, due: float) -> None:
        self.asked.extend([due] * len(self.held.entries))
        self.line.send(self.shared.tick(self.held, self._ticks))
        self._ticks += 1


class Worker:
    """Does what the lines of input say. Each answers with what is to be told."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._peers: list[Peer] = []

    def hosts(self, first: int, count: int, ends: bool) -> None:
        """Make hosts."""
        self._shared = Shared(ends=ends)
        self._peers = [Host(self._shared, f"host-{first + at}") for at in range(count)]

    def bare(self, count: int, frame: str, frames: int) -> None:
        """Make clients of a bare server."""
        self._shared = Shared()
        self._peers = [Bare(self._shared, frame.encode(), frames) for _ in range(count)]

    async def open(self, port: int, path: str, token: str, at_once: int) -> float:
        """Connect all, some at once. Returns the seconds that it took."""
        gate, request = asyncio.Semaphore(at_once), line.request(path, token)

        async def begin(peer: Peer) -> None:
            async with gate:
                await peer.open(port, request)

        begun = time.perf_counter()
        await asyncio.gather(*map(begin, self._peers))
        gc.collect()
        gc.freeze()
        gc.disable()  # a pause would delay all hosts at once, unlike real ones
        return time.perf_counter() - begun

    async def holding(self, version: int) -> None:
        """Wait until all hosts hold a version or a later one."""
        hosts = [peer for peer in self._peers if isinstance(peer, Host)]
        behind = len(hosts)

        def holds() -> bool:
            nonlocal behind  # from the end: each host is looked at until it holds the version, and then no more
            while behind and hosts[behind - 1].held.version >= version:
                behind -= 1
            return not behind

        await self._shared.until(holds)

    async def burst(self, at: float, ticks: int) -> list[float]:
        """All fire some times at a time of time.perf_counter. Returns the seconds until each answer."""
        await asyncio.sleep(at - time.perf_counter())
        self._shared.took.clear()
        for _ in range(ticks):
            for peer in self._peers:
                peer.fire(at)
        return await self._answers(sum(len(peer.asked) for peer in self._peers))

    async def paced(self, at: float, every: float, count: int) -> list[float]:
        """Fire `count` times, each in turn, at a steady rate from a time on. Returns seconds until each answer."""
        self._shared.took.clear()
        for number in range(count):
            due = at + number * every
            if (wait_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            elif number % 16 == 0:
                await asyncio.sleep(0)
            self._peers[number % len(self._peers)].fire(due)
        return await self._answers(len(self._shared.took) + sum(len(peer.asked) for peer in self._peers))

    async def alone(self, count: int, pause_s: float) -> list[float]:
        """The first fires again and again, each time a little after the answer. Returns seconds until each answer."""
        self._shared.took.clear()
        for number in range(count):
            await asyncio.sleep(pause_s)
            self._peers[0].fire(time.perf_counter())
            await self._answers(number + 1)
        return self._shared.took

    async def _answers(self, count: int) -> list[float]:
        took = self._shared.took
        await self._shared.until(lambda: len(took) >= count)
        refused = self._shared.refused
        assert not refused, f"{len(refused)} fires were refused: {refused[0]}"
        return took

    def drop(self) -> None:
        """Drop all connections, and keep what the hosts hold."""
        gc.enable()
        for peer in self._peers:
            with suppress(AttributeError):  # it never connected
                peer.line.abort()
            peer.asked.clear()

    def cpu(self) -> float:
        """CPU-seconds of this process."""
        return time.process_time()


async def main() -> None:
    worker, loop = Worker(), asyncio.get_running_loop()
    while text := await loop.run_in_executor(None, sys.stdin.readline):
        name, arguments = msgspec.json.decode(text)
        answer = getattr(worker, name)(*arguments)
        if asyncio.iscoroutine(answer):
            answer = await answer
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
