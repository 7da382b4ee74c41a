"""Promises 1 and 4 after an old copy of the store was put back: nothing runs twice or waits for ever."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bench.servers import free_port
from server.app import Config, Running, serving
from server.store.tables import Base
from tests.integration.conftest import ON_POSTGRESQL, PATIENCE_S, DataFolders, Until
from tests.integration.test_duplicates import Idle, agent
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio


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


class FileCopy:
    """A copy of a store in SQLite while it is in use, as docs/operations.md says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with (
            closing(sqlite3.connect(folder / "lamplighter.db")) as store,
            closing(sqlite3.connect(folder / "copy")) as copy,
        ):
            store.backup(copy)

    def put_back(self) -> None:
        for name in ("lamplighter.db-wal", "lamplighter.db-shm"):
            (self._folder / name).unlink(missing_ok=True)
        (self._folder / "copy").rename(self._folder / "lamplighter.db")


class RowsCopy:
    """The rows of a store in PostgreSQL in one snapshot, which is what pg_dump copies."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="REPEATABLE READ")
        with self._engine.connect() as conn:
            self._rows = [
                (it, [dict(row) for row in conn.execute(sa.select(it)).mappings()])
                for it in Base.metadata.sorted_tables
            ]

    def put_back(self) -> None:
        with self._engine.begin() as conn:
            for table, _ in reversed(self._rows):
                conn.execute(sa.delete(table))
            for table, rows in self._rows:
                if rows:
                    conn.execute(sa.insert(table), rows)


@pytest.fixture
def copied(data_folders: DataFolders) -> Callable[[Path], FileCopy | RowsCopy]:
    """Copies the store of a data folder."""
    return lambda folder: RowsCopy(data_folders.url(folder)) if ON_POSTGRESQL else FileCopy(folder)


async def declared(api: httpx.AsyncClient, *names: str) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    await api.put("/repositories/ns/main", json={"spec": {"url": "/backup"}})
    spec = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}
    for name in names:
        (await api.put(f"/schedules/ns/{name}", json={"spec": spec})).raise_for_status()


@pytest.mark.parametrize("state", ["waiting", "running"])
async def test_a_job_that_was_open_in_the_copy_ends_as_it_did_and_its_schedule_runs_on(
    tmp_path: Path, port: int, until: Until, copied: Callable[[Path], FileCopy | RowsCopy], state: str
) -> None:
    jobs = Idle()
    data = tmp_path / "data"
    async with served(data, port) as (server, api):
        await declared(api, "etc")
        if state == "waiting":  # its host is not there yet
            [job] = (await api.post("/schedules/ns/etc/run", json={})).json()["items"]
            copy = copied(data)

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
            copy = copied(data)
        jobs.over.set()
        assert await until(ended) == "succeeded"
        await declared(api, "etc", "home", "srv")  # of which the copy knows nothing
        await until(in_sync)
    copy.put_back()
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
