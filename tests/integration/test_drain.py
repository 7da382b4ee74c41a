"""A host is drained for real: a real agent, restic and SIGTERM; a backup that runs ends, and nothing is interrupted."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import Running
from tests.integration.conftest import Declare, Until

pytestmark = pytest.mark.anyio

LAMPLIGHTER = "from cli.main import main; main()"
ROOT = Path(__file__).parents[2]
GATE = """#!/bin/sh
touch {folder}/began
while [ ! -e {folder}/open ]; do sleep 0.05; done
"""


class Machine:
    """A host whose backups wait at a gate before restic runs, and people who ask the server about it."""

    def __init__(self, server: Running, api: httpx.AsyncClient, until: Until, folder: Path) -> None:
        self.api, self.until, self.folder = api, until, folder
        self.gate, self.source = folder / "gate", folder / "source"
        self.source.mkdir()
        (self.source / "file").write_text("data")
        self.gate.write_text(GATE.format(folder=folder))
        self.gate.chmod(0o755)
        (folder / "admin").write_text(server.admin_token)
        (folder / "token").write_text(server.agent_token)
        self._server = ("--server", f"http://127.0.0.1:{server.port}")
        self.processes: list[Process] = []

    async def _start(self, *args: object, **more: Any) -> Process:
        command = (sys.executable, "-c", LAMPLIGHTER, *map(str, args))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=dict(os.environ), **more)
        self.processes.append(process)
        return process

    async def agent(self) -> Process:
        where = ("--data-dir", self.folder / "agent", "--token-file", self.folder / "token", "--host", "node-1")
        return await self._start("agent", *self._server, *where, "--allow-hook", self.gate, "--drain-seconds", 60)

    async def cli(self, *args: str) -> Process:
        access = (*self._server, "--token-file", self.folder / "admin")
        return await self._start(*args, *access, stdout=PIPE, stderr=PIPE)

    async def run(self) -> str:
        answer = (await self.api.post("/schedules/ns/etc/run")).raise_for_status()
        (job,) = answer.json()["items"]
        return str(job["id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.api.get(f"/jobs/{job_id}")).json()
        return found

    async def begins(self) -> None:
        """Wait until a backup waits at the gate."""

        async def began() -> bool:
            return (self.folder / "began").exists()

        await self.until(began)

    async def succeeds(self, job_id: str) -> None:
        async def over() -> bool:
            return bool((await self.job(job_id))["status"] == "succeeded")

        await self.until(over)

    async def holds(self) -> None:
        """Wait until the host is connected, and has its Schedule."""

        async def held() -> bool:
            host = (await self.api.get("/hosts/node-1")).json()
            return bool(host.get("connected") and host["in_sync"] and host["schedules"])

        await self.until(held)

    async def drains(self, **drain: Any) -> None:
        """Wait until this is told of the host."""

        async def told() -> bool:
            return bool((await self.api.get("/hosts/node-1")).json().get("drain") == drain)

        await self.until(told)


@pytest.fixture
async def machine(
    server: Running, api: httpx.AsyncClient, declare: Declare, until: Until, tmp_path: Path
) -> AsyncIterator[Machine]:
    it = Machine(server, api, until, tmp_path)
    there = {"spec": {"url": str(tmp_path / "repository"), "init": True}, "credentials": {"password": "secret"}}
    (await api.put("/repositories/ns/main", json=there)).raise_for_status()
    await declare(backup={"paths": [str(it.source)]}, hooks={"before": [str(it.gate)]})
    yield it
    for process in it.processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_backup_ends_while_its_host_is_drained_and_while_its_agent_stops(machine: Machine) -> None:
    agent = await machine.agent()
    await machine.holds()
    first = await machine.run()
    await machine.begins()
    draining = await machine.cli("drain", "node-1")
    await machine.drains(reason="Asked", by="admin", jobs=1, done=False)
    second = await machine.run()
    assert (await machine.job(second))["waits_for"] == "host node-1, which is drained, until it is undrained"
    (machine.folder / "open").touch()
    said, told = await draining.communicate()
    assert (draining.returncode, said.decode()) == (0, "node-1 is drained: nothing runs there\n"), told
    assert b"node-1 still runs 1 job: backup of ns/etc" in told
    await machine.succeeds(first)
    assert (await machine.job(second))["status"] == "pending"
    (machine.folder / "open").unlink()
    (machine.folder / "began").unlink()
    assert (await machine.api.delete("/hosts/node-1/drain")).json()["drain"] is None

    await machine.begins()  # the second one
    agent.send_signal(signal.SIGTERM)
    await machine.drains(reason="AgentStops", by=None, jobs=1, done=False)
    third = await machine.run()
    (machine.folder / "open").touch()
    assert await agent.wait() == 0
    await machine.succeeds(second)
    assert (await machine.job(third))["status"] == "pending"
    await machine.agent()
    await machine.succeeds(third)


async def test_who_drains_a_host_that_went_away_with_jobs_is_told_so(machine: Machine) -> None:
    agent = await machine.agent()
    await machine.holds()
    await machine.run()
    await machine.begins()
    agent.kill()

    async def is_away() -> bool:
        return not (await machine.api.get("/hosts/node-1")).json()["connected"]

    await machine.until(is_away)
    draining = await machine.cli("drain", "node-1", "--timeout", "0.1")
    _, told = await draining.communicate()
    assert draining.returncode == 1
    assert b"node-1 is not connected, and tells their ends once it is back" in told
    assert b"Error: node-1 still runs 1 job: it stays drained" in told
