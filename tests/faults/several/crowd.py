"""`python -m tests.faults.several.crowd URL FOLDER FIRST COUNT`: many agents in a process, each the real service.

Its commands take a moment and do nothing. FOLDER/crowd-FIRST.runs gets a line for each run, and at SIGTERM
FOLDER/crowd-FIRST.held what each agent holds. The token is in FOLDER/agent-token.
"""

import asyncio
import json
import logging
import random
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

from agent.core.state import AgentState
from agent.journal import Journal
from agent.service import Config, Service
from bench.fleet import Forgetful, raise_file_limit
from wire.messages import CommandRun, JobEnd, JobFinished, JobReason

LONGEST_S = 3.0
"""Seconds that a run takes at most."""


class Brief:
    """Runs commands of one host: each is written down, and ends well after a moment, or as it is told to."""

    def __init__(self, host: str, runs: IO[str]) -> None:
        self._host = host
        self._runs = runs
        self._stops: dict[str, asyncio.Future[JobEnd]] = {}

    async def run(self, command: CommandRun, *_: object) -> JobFinished:
        """Run a command."""
        now = datetime.now(UTC)
        late = "" if command.scheduled_at is None else f"{(now - command.scheduled_at).total_seconds():.3f}"
        due = command.scheduled_at and command.scheduled_at.isoformat()
        self._runs.write(json.dumps([self._host, command.schedule_id, due, command.job_id, late]) + "\n")
        stopped = self._stops.setdefault(command.job_id, asyncio.get_running_loop().create_future())
        status: JobEnd = "succeeded"
        try:
            async with asyncio.timeout(random.uniform(0.1, LONGEST_S)):
                status = await stopped
        except TimeoutError:
            pass
        finally:
            del self._stops[command.job_id]
        return JobFinished(command.job_id, status, datetime.now(UTC), started_at=now)

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        """Stop a command, started or not."""
        future = self._stops.setdefault(job_id, asyncio.get_running_loop().create_future())
        if not future.done():
            future.set_result(status)


def agents(url: str, token: str, hosts: Sequence[str], runs: IO[str]) -> list[Service]:
    """The agents of these hosts."""
    return [
        Service(Config(host, url, token), cast(Journal, Forgetful()), AgentState(), Brief(host, runs)) for host in hosts
    ]


def held(service: Service) -> tuple[int, str, list[str]]:
    """What an agent holds: the version and the digest of its set, and what it has yet to tell."""
    memory = service.core.state
    left = (*memory.fires.values(), *memory.running.values(), *memory.ends.values())
    return memory.version, memory.digest, [str(it) for it in left]


async def main(url: str, folder: Path, first: int, count: int) -> None:
    """Run the agents until SIGTERM."""
    raise_file_limit()
    hosts = [f"host-{number:05}" for number in range(first, first + count)]
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set_result, None)
    with (folder / f"crowd-{first}.runs").open("a", buffering=1) as runs:
        its = agents(url, (folder / "agent-token").read_text().strip(), hosts, runs)
        tasks = [asyncio.create_task(it.run()) for it in its]
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
        found = {host: held(it) for host, it in zip(hosts, its, strict=True)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in failed:  # by itself: say why
            task.result()
    (folder / f"crowd-{first}.held").write_text(json.dumps(found))


if __name__ == "__main__":
    logging.disable()
    where, into, begin, many = sys.argv[1:]
    asyncio.run(main(where, Path(into), int(begin), int(many)))
