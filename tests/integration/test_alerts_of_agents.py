"""What happens to a real agent and to its restic at night is told by an alert, and ends when it is mended."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.journal import Journal
from agent.restic.runner import Runner
from agent.service import Config as AgentConfig
from agent.service import Service
from bench.servers import free_port
from cli import metrics
from server.app import Running
from tests.chart import values
from tests.conftest import NewRepository
from tests.integration.conftest import Declare, Until
from tests.prometheus import Prometheus, needs_prometheus, rules, running

pytestmark = [pytest.mark.anyio, needs_prometheus]

PASSWORD = "open sesame"
DISK_BYTES = 2 << 20


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def restic(tmp_path: Path) -> Path:
    """A link to restic, which can be removed."""
    link = tmp_path / "restic"
    link.symlink_to(shutil.which("restic") or "restic")
    return link


@pytest.fixture
async def prometheus(server: Running, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """One that scrapes the server."""
    listen = f"127.0.0.1:{free_port()}"
    async with (
        metrics.serving(listen, server.parts.registry, metrics.always_ready),
        running(tmp_path / "prometheus", rules(values("monitoring")), listen) as prometheus,
    ):
        yield prometheus


@pytest.fixture
async def agent(server: Running, tmp_path: Path, restic: Path) -> Callable[..., Any]:
    """Runs the agent of node-1 while entered, with a clock that may be wrong."""

    @asynccontextmanager
    async def agent(ahead: timedelta = timedelta()) -> AsyncIterator[None]:
        journal, memory = Journal.open(tmp_path / "agent" / "journal.jsonl")
        config = AgentConfig("node-1", f"ws://127.0.0.1:{server.port}/agent", server.agent_token)
        runner = Runner(str(restic), tmp_path / "agent" / "cache", now)
        service = Service(config, journal, memory, runner, clock=lambda: now() + ahead)
        task = asyncio.create_task(service.run())
        try:
            yield
            await service.stop()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return agent


class Night:
    """What is done at night, and what is told of it."""

    def __init__(self, api: httpx.AsyncClient, prometheus: Prometheus, until: Until) -> None:
        self._api, self._prometheus, self._until = api, prometheus, until

    async def run(self, schedule: str = "etc") -> str:
        """Run a Schedule now; how that ended."""
        [job] = (await self._api.post(f"/schedules/ns/{schedule}/run", json={})).raise_for_status().json()["items"]

        async def ended() -> Any:
            found = (await self._api.get(f"/jobs/{job['id']}")).json()
            return found["finished_at"] and found["status"]

        return str(await self._until(ended))

    async def set_password(self, password: str, url: str) -> None:
        await self._api.put("/hosts/node-1", json={"labels": {}})
        body = {"spec": {"url": url}, "credentials": {"password": password}}
        (await self._api.put("/repositories/ns/main", json=body)).raise_for_status()

    async def told(self, *wanted: str) -> None:
        """Wait until these alerts are told, each with what it is about, and no other."""

        async def are_told() -> bool:
            await self._prometheus.scraped()
            alerts = [it["labels"] for it in await self._prometheus.alerts()]
            said = {" ".join([it["alertname"], *([it["reason"]] if "reason" in it else [])]) for it in alerts}
            return said - {"LamplighterNotFollowing"} == set(wanted)

        await self._until(are_told)


@pytest.fixture
def night(api: httpx.AsyncClient, prometheus: Prometheus, until: Until) -> Night:
    return Night(api, prometheus, until)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What is backed up."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "noise").write_bytes(os.urandom(2 * DISK_BYTES))
    return tmp_path / "source"


async def test_a_password_that_changed_a_restic_that_is_gone_a_wrong_clock_and_an_agent_that_stopped(
    night: Night,
    agent: Callable[..., Any],
    declare: Declare,
    restic: Path,
    source: Path,
    tmp_path: Path,
    new_repository: NewRepository,
) -> None:
    new_repository(tmp_path / "repository", PASSWORD)
    url = str(tmp_path / "repository")
    await night.set_password(PASSWORD, url)
    await declare("etc", backup={"paths": [str(source)]})
    async with agent():
        assert await night.run() == "succeeded"
        await night.told()
        await night.set_password("another", url)
        assert await night.run() == "failed"
        await night.told("LamplighterJobsFailing", "LamplighterRepositoryInTrouble WrongPassword")
        await night.set_password(PASSWORD, url)
        assert await night.run() == "succeeded"
        await night.told()
        there = restic.readlink()
        restic.unlink()
        assert await night.run() == "failed"
        await night.told("LamplighterJobsFailing")
        restic.symlink_to(there)
        assert await night.run() == "succeeded"
        await night.told()
    await night.told("LamplighterHostGone")
    async with agent(ahead=timedelta(minutes=10)):
        await night.told("LamplighterHostHasProblem ClockSkew")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk (tmpfs(5)) that is smaller than what is backed up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk: run as root, with CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


async def test_a_repository_whose_disk_is_full(
    night: Night,
    agent: Callable[..., Any],
    declare: Declare,
    source: Path,
    small_disk: Path,
    new_repository: NewRepository,
) -> None:
    new_repository(small_disk / "repository", PASSWORD)
    await night.set_password(PASSWORD, str(small_disk / "repository"))
    await declare("etc", backup={"paths": [str(source)]})
    async with agent():
        assert await night.run() == "failed"
        await night.told("LamplighterJobsFailing")
        (source / "noise").write_bytes(b"little")
        for left in (small_disk / "repository" / "data").rglob("*-tmp-*"):
            left.unlink()
        assert await night.run() == "succeeded"
        await night.told()
