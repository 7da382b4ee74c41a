"""Promises 1 and 4 after an old copy of the store was put back: nothing runs twice or waits for ever."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers import free_port
from server.app import Config, Running, serving
from tests.integration.conftest import PATIENCE_S, Until
from tests.integration.test_duplicates import Idle, agent
from tests.plain import NO_TLS

pytestmark = [pytest.mark.anyio, pytest.mark.sqlite]


@pytest.fixture
def port() -> int:
    """One that is free, for servers that follow each other."""
    return free_port()


@asynccontextmanager
async def served(folder: Path, port: int) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A server, and its API."""
    async with serving(Config(folder, port=port)) as running:
        headers = {"authorization": f"Bearer {running.admin_token}"}
        url = f"http://127.0.0.1:{port}/api/v1"
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=NO_TLS
        ) as api:
            yield running, api


def copied(folder: Path) -> None:
    """A copy of the store while it is in use, as docs/operations.md says."""
    with (
        closing(sqlite3.connect(folder / "lamplighter.db")) as store,
        closing(sqlite3.connect(folder / "copy")) as copy,
    ):
        store.backup(copy)


def put_back(folder: Path) -> None:
    for name in ("lamplighter.db-wal", "lamplighter.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "copy").rename(folder / "lamplighter.db")


async def declared(api: httpx.AsyncClient, *names: str) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    await api.put("/repositories/ns/main", json={"spec": {"url": "/backup"}})
    spec = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}
    for name in names:
        (await api.put(f"/schedules/ns/{name}", json={"spec": spec})).raise_for_status()


@pytest.mark.parametrize("state", ["waiting", "running"])
async def test_a_job_that_was_open_in_the_copy_ends_as_it_did_and_its_schedule_runs_on(
    tmp_path: Path, port: int, until: Until, state: str
) -> None:
    jobs = Idle()
    data = tmp_path / "data"
    async with served(data, port) as (server, api):
        await declared(api, "etc")
        if state == "waiting":  # its host is not there yet
            [job] = (await api.post("/schedules/ns/etc/run", json={})).json()["items"]
            copied(data)

        async def ended() -> Any:
            it = (await api.get(f"/jobs/{job['id']}")).json()
            return it["status"] if it["finished_at"] else None

        async def in_sync() -> Any:
            it = (await api.get("/hosts/node-1")).json()
            return it["connected"] and it["in_sync"]

        running = agent(server, tmp_path / "agent", jobs)
        await running.__aenter__()
        await until(in_sync)
        if state == "running":
            [job] = (await api.post("/schedules/ns/etc/run", json={})).json()["items"]

            async def runs() -> Any:
                return (await api.get(f"/jobs/{job['id']}")).json()["status"] == "running"

            await until(runs)
            copied(data)
        jobs.over.set()
        assert await until(ended) == "succeeded"
        await declared(api, "etc", "home", "srv")  # of which the copy knows nothing
        await until(in_sync)
    put_back(data)
    async with served(data, port) as (_, api):
        assert await until(ended) == "succeeded"
        assert jobs.begun == [job["id"]]
        await until(in_sync)
        assert (await api.get("/hosts/node-1")).json()["desired_version"] == 1
        [job] = (await api.post("/schedules/ns/etc/run", json={})).json()["items"]
        assert await until(ended) == "succeeded"
    await running.__aexit__(None, None, None)


async def test_a_server_on_an_empty_store_takes_nothing_from_agents_until_something_is_declared(
    tmp_path: Path, port: int, until: Until
) -> None:
    async with served(tmp_path / "data", port) as (server, api):
        await declared(api, "etc")
        running = agent(server, tmp_path / "agent")
        service = await running.__aenter__()

        async def held() -> int:
            return len(service.core.state.entries)

        await until(held)
    (tmp_path / "empty").mkdir()
    for token in ("admin-token", "agent-token"):
        (tmp_path / "empty" / token).write_bytes((tmp_path / "data" / token).read_bytes())
        (tmp_path / "empty" / token).chmod(0o600)
    async with served(tmp_path / "empty", port) as (_, api):

        async def told() -> Any:
            answer = await api.get("/hosts/node-1")
            return answer.is_success and answer.json()["problems"]

        assert [it["reason"] for it in await until(told)] == ["StoreEmpty"]
        assert await held() == 1
        old = list(service.core.state.entries.items)
        await declared(api, "home")

        async def replaced() -> bool:
            return list(service.core.state.entries.items) not in ([], old)

        await until(replaced)
        assert (await api.get("/hosts/node-1")).json()["problems"] == []
    await running.__aexit__(None, None, None)
