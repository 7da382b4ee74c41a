"""The agent as a service: connects the core with its shells, from start to a clean stop."""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.core.effects import Apply, Effect, Persist, Send, StartJob, StopJob
from agent.core.machine import Core
from agent.core.state import AgentState
from agent.journal import Journal
from agent.link import Dialler, Link, error_text
from agent.metrics import Metrics
from agent.scheduler import Scheduler
from wire.messages import AgentClock, CommandRun, FromServer, JobEnd, JobFinished, JobReason, JobReport, Repository
from wire.version import __version__

log = logging.getLogger(__name__)

CONFIRM_S = 3.0
"""Seconds that a stop waits for the server to confirm the last ends. The journal keeps those it does not confirm."""


class Config(Struct, frozen=True):
    """The agent's host and its server. `url`: the server's, ws:// or wss://, with the path /agent.

    `token`, `ca_file`, `explain`: see `Link`. `allowed_hooks`: the programs that jobs may run as hooks, for the
    hello; None when they are not known. `max_jobs`: how many jobs the server is to have this host run at once.
    `drain_s`: seconds for which a stop waits for running jobs before it interrupts them.
    """

    host: str
    url: str
    token: str | Callable[[], str] = ""
    ca_file: Path | None = None
    explain: Callable[[Exception], str] = error_text
    allowed_hooks: Sequence[str] | None = None
    max_jobs: int | None = None
    drain_s: float = 0.0

    def __repr__(self) -> str:
        return f"Config(host={self.host!r}, url={self.url!r})"


class Restic(Protocol):
    """Knows which restic there is."""

    async def version(self) -> str:
        """The version of restic, such as 0.18.0; empty where none runs."""


class Jobs(Protocol):
    """Runs commands."""

    async def run(
        self,
        command: CommandRun,
        repository: Repository | None,
        report: Callable[[JobReport], None],
        source: Repository | None,
    ) -> JobFinished:
        """Run a command to its end; never raises for what the command does. `source`: what a copy reads from."""

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        """Stop a job, started or not, with this status."""


CLOCK_S = 60.0
"""Seconds between two reports of the host's time to the server, and between two looks at restic's version."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Service:
    """One agent. `run` it, and end it with `stop`."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        state: AgentState,
        jobs: Jobs,
        *,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
        restic: Restic | None = None,
    ) -> None:
        self.core = Core(config.host, state, __version__, uuid.uuid4().hex, config.allowed_hooks, config.max_jobs)
        self.metrics = Metrics(self.core)
        self._drain_s = config.drain_s
        self._clock = clock
        self._journal = journal
        self._jobs = jobs
        self._restic = restic
        self._scheduler = Scheduler(self.core, clock, self.perform)
        jitter = rng or random.Random()  # noqa: S311 - no secret
        dialler = Dialler(config.url, config.token, ca_file=config.ca_file, host=config.host, explain=config.explain)
        self._link = Link(dialler, self, jitter)
        self._tasks: asyncio.TaskGroup | None = None
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Run until `stop` or until cancelled. An exception in one part ends all parts and is raised."""
        try:
            await self._look_at_restic()
            async with asyncio.TaskGroup() as self._tasks:
                journal = self._tasks.create_task(self._journal.run(), name="journal")
                scheduler = self._tasks.create_task(self._scheduler.run(), name="scheduler")
                link = self._tasks.create_task(self._link.run(), name="link")
                clock = self._tasks.create_task(self._report_clock(), name="clock")
                self.perform(self.core.started(self._clock()))
                await self._stopping.wait()
                await self._drain()
                self._scheduler.stop()
                await scheduler
                await self._end_jobs()
                await self._journal.flush()  # messages that wait for a write are sent after it
                clock.cancel()
                link.cancel()
                journal.cancel()
        finally:
            self._journal.close()
            self._ended.set()

    async def stop(self) -> None:
        """Wait for running jobs for `drain_s`, interrupt those that are left, report their ends if the server is
        connected, and have `run` return.

        Idempotent. It may be called before `run`.
        """
        self._stopping.set()
        await self._ended.wait()

    async def _report_clock(self) -> None:
        """Report the host's time to the server, and say hello anew when restic is another: both may change."""
        while True:
            await asyncio.sleep(CLOCK_S)
            if self.core.connected:
                self._link.send([AgentClock(self._clock())])
            await self._look_at_restic()

    async def _look_at_restic(self) -> None:
        if self._restic is not None and self.core.restic_found(await self._restic.version()):
            await self._link.reconnect()

    async def _drain(self) -> None:
        """Begin nothing more, and let running jobs end, for `drain_s`."""
        if self._drain_s <= 0:
            return
        self.perform(self.core.drain(self._clock()))
        if running := self.core.running:
            log.info("waiting for running jobs to end", extra={"jobs": running, "seconds": self._drain_s})
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self.core.busy:
                    self._settled.clear()
                    await self._settled.wait()

    async def _end_jobs(self) -> None:
        self.perform(self.core.stop())
        with suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S if not self.core.busy else CONFIRM_S + 10):
                while not self.core.settled:
                    self._settled.clear()
                    await self._settled.wait()

    def perform(self, effects: Sequence[Effect]) -> None:
        """Perform the core's effects in order, without waiting, and set the timer for its next due time."""
        for effect in effects:
            match effect:
                case Send(messages):
                    self._link.send(messages)
                case Persist(records, then):
                    self.metrics.count(records, self._clock())
                    self._journal.append(records, partial(self.perform, then) if then else None)
                case StartJob(command):
                    assert self._tasks is not None  # noqa: S101 - effects come while running
                    self._tasks.create_task(self._run_job(effect), name=f"job {command.job_id}")
                case StopJob(job_id, status, reason):
                    self._jobs.stop(job_id, status, reason)
                case Apply(push):
                    self._scheduler.apply(push)
        self._journal.compact(self.core.state)
        self._scheduler.arm()
        self._settled.set()

    # Events of the link.

    def connected(self) -> None:
        """A connection is open."""
        self.perform(self.core.connection_made(self._clock()))

    def received(self, messages: Sequence[FromServer]) -> None:
        """A frame arrived."""
        self.perform(self.core.frame_received(messages, self._clock()))

    def disconnected(self) -> None:
        """The connection is lost."""
        self.perform(self.core.connection_lost())

    async def _run_job(self, start: StartJob) -> None:
        def report(it: JobReport) -> None:
            self.perform(self.core.job_reported(it))

        end = await self._jobs.run(start.command, start.repository, report, start.source)
        self.perform(self.core.job_ended(end))
