"""The load: many agents in one process, each with the real service, core, cron and link, and a journal without a disk.

The bench moves their clock, so that due times come when it wants them.
"""

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from agent.core.state import AgentState, Record
from agent.journal import Journal
from agent.service import Config, Service
from wire.messages import CommandRun, FromServer, JobEnd, JobFinished, JobReason

CONNECTING = 256
"""Agents that connect at once; a server's backlog holds as many."""


def raise_file_limit() -> None:
    """Raise the limit of open files of this process and its children to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@asynccontextmanager
async def still() -> AsyncIterator[None]:
    """Turn garbage collection off while entered: its pauses would delay all agents at once, unlike real ones."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Clock:
    """The wall clock, shifted."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def set(self, at: datetime) -> None:
        """Shift the clock so that it is `at` now."""
        self.shift = at - datetime.now(UTC)


class Forgetful:
    """A journal without a disk, which confirms each write at once."""

    def append(self, records: Sequence[Record], then: Callable[[], None] | None = None) -> None:
        if then is not None:
            asyncio.get_running_loop().call_soon(then)

    def compact(self, memory: AgentState) -> bool:
        return False

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Endless:
    """A runner whose commands never end."""

    async def run(self, command: CommandRun, *_: object) -> JobFinished:
        never: asyncio.Future[JobFinished] = asyncio.get_running_loop().create_future()
        return await never

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        pass


class Agent(Service):
    """An agent that records when it received commands, and calls `on_change` when its state may have changed."""

    def __init__(self, host: str, url: str, token: str, memory: AgentState, clock: Clock) -> None:
        super().__init__(Config(host, url, token), cast(Journal, Forgetful()), memory, Endless(), clock=clock)
        self.clock = clock
        self.commands = 0
        self.asked_at = 0.0
        self.on_change: Callable[[], None] = lambda: None

    @property
    def version(self) -> int:
        return self.core.state.version

    def connected(self) -> None:
        super().connected()
        self.on_change()

    def received(self, messages: Sequence[FromServer]) -> None:
        if commands := sum(isinstance(message, CommandRun) for message in messages):
            self.commands += commands
            self.asked_at = time.perf_counter()
        super().received(messages)
        self.on_change()

    def perform(self, effects: Sequence[Any]) -> None:
        super().perform(effects)
        self.on_change()


class Fleet:
    """Agents that run until `stop`."""

    def __init__(self, url: str, token: str, size: int, memories: Sequence[AgentState] = ()) -> None:
        self.clock = Clock()
        held = memories or [AgentState() for _ in range(size)]
        self.agents = [Agent(f"host-{at}", url, token, memory, self.clock) for at, memory in enumerate(held)]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect all agents, CONNECTING at a time."""
        gate = asyncio.Semaphore(CONNECTING)

        async def begin(agent: Agent) -> None:
            async with gate:
                self._tasks.append(asyncio.create_task(agent.run()))
                await until(agent, lambda: agent.core.connected)

        await asyncio.gather(*map(begin, self.agents))

    async def stop(self) -> None:
        """Stop all at once, without telling the server."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_version(self, version: int) -> None:
        """Wait until all agents hold `version` or a later one."""
        for agent in self.agents:
            await until(agent, lambda agent=agent: agent.version >= version)  # type: ignore[misc]

    async def until_commands(self, total: int) -> None:
        """Wait until each agent has received its share of `total` commands."""
        for agent in self.agents:
            await until(agent, lambda agent=agent: agent.commands * len(self.agents) >= total)  # type: ignore[misc]

    def due_in(self, seconds: float) -> float:
        """Move the clock so that the next due time comes in `seconds`. Return when that is, by time.perf_counter."""
        due = min(agent.core.wake_at for agent in self.agents)
        at = time.perf_counter() + seconds
        self.clock.set(due - timedelta(seconds=seconds))
        for agent in self.agents:
            agent.perform(())
        return at


async def until(agent: Agent, holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until `holds` returns true, checked at each change of the agent."""
    if holds():
        return
    changed = asyncio.get_running_loop().create_future()

    def check() -> None:
        if not changed.done() and holds():
            changed.set_result(None)

    agent.on_change = check
    try:
        async with asyncio.timeout(timeout_s):
            await changed
    finally:
        agent.on_change = lambda: None


@asynccontextmanager
async def running(url: str, token: str, size: int) -> AsyncIterator[Fleet]:
    """A connected fleet while entered."""
    fleet = Fleet(url, token, size)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
