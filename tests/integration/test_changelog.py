"""Promise 3, with several servers on one real PostgreSQL: changes made at once on each end in the same state on all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy as sa

from server.access.identity import Files
from server.access.vault import Vault
from server.app import Config, Parts, Running, assemble, serving
from server.errors import Unavailable
from server.store import changelog
from server.store.audit import list_audit
from server.store.engine import Store
from server.store.tables import Actor
from tests.integration.conftest import Connect, Declare

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
KEY = Vault.new_key()
_ids = count(1)


class Server:
    """A server's parts on a store of its own."""

    def __init__(self, store: Store) -> None:
        vault = Vault([KEY])
        self.store = store
        self.parts: Parts = assemble(
            store, vault, lambda: datetime.now(UTC), lambda: f"id{next(_ids)}", Files("admin", "agent")
        )
        self.services, self.pipeline = self.parts.services, self.parts.pipeline
        self.loading = self.parts.loader.load(store, vault)

    async def repository(self, name: str = "main") -> None:
        manifest = {"metadata": {"namespace": "ns", "name": name}, "spec": {"url": "/backup"}}
        await self.services.repositories.put(ME, manifest)

    async def schedule(self, name: str, cron: str = "0 2 * * *") -> None:
        spec = {"kind": "backup", "cron": cron, "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": "main"}}
        await self.services.schedules.put(ME, {"metadata": {"namespace": "ns", "name": name}, "spec": spec})

    @property
    def state(self) -> Any:
        hosts = self.services.placement.hosts
        return {
            "schedules": dict(self.parts.catalog.schedules),
            "repositories": dict(self.parts.catalog.repositories),
            "hosts": {name: (it.labels, it.since, it.version, it.digest) for name, it in hosts.items()},
        }


@pytest.fixture
async def servers(postgresql: str) -> AsyncIterator[list[Server]]:
    """Three servers."""
    stores = [await asyncio.to_thread(Store.open, postgresql) for _ in range(3)]
    servers = [Server(store) for store in stores]
    for server in servers:
        await server.loading
    yield servers
    for store in stores:
        await store.close()


async def test_changes_made_at_once_are_counted_one_by_one_and_end_alike_on_every_server(servers: list[Server]) -> None:
    first = servers[0]
    await first.repository()
    await first.services.hosts.put(ME, "d", {})
    await asyncio.gather(
        *(server.schedule(f"s{at}-{n}") for at, server in enumerate(servers) for n in range(8)),
        *(server.schedule("same", f"{at} 3 * * *") for at, server in enumerate(servers)),
        *(server.services.hosts.session(f"n{n}") for n in range(8) for server in servers),
    )
    for server in servers:
        await server.pipeline.follow()
    assert servers[0].state == servers[1].state == servers[2].state
    assert first.services.placement.hosts["d"].version == 3 * 8 + 3
    assert sorted(first.services.placement.hosts) == ["d", *(f"n{n}" for n in range(8))]
    lines = await first.store.read(list_audit, None, 1000)
    assert len([line for line in lines if line["object_kind"] == "Schedule"]) == 3 * 8 + 3
    assert len([line for line in lines if line["object_kind"] == "Host"]) == 1 + 8
    restarted = Server(first.store)
    await restarted.loading
    assert restarted.state == first.state
    assert restarted.pipeline.revision == await first.store.read(changelog.head)


async def test_a_change_waits_for_one_that_is_not_committed_yet_and_is_made_after_it(
    servers: list[Server], postgresql: str
) -> None:
    first, second, _ = servers
    await first.repository()
    await second.pipeline.follow()
    with psycopg.connect(postgresql.replace("+psycopg", "")) as elsewhere:  # commits on leaving
        elsewhere.execute("SELECT revision FROM change_head FOR UPDATE")
        waiting = asyncio.create_task(second.repository("new"))
        await until_waiting(postgresql)
        body = '{"at":"2026-01-01T00:00:00Z"}'
        elsewhere.execute("INSERT INTO change_log SELECT revision + 1, now(), %s FROM change_head", (body,))
        elsewhere.execute("UPDATE change_head SET revision = revision + 1")
    await waiting
    assert second.pipeline.revision == first.pipeline.revision + 2


async def test_a_change_whose_commit_lost_its_connection_is_made_once(servers: list[Server], postgresql: str) -> None:
    """PostgreSQL ends the connection after the commit, before its answer, as a failover may."""
    first, second, _ = servers
    await first.repository()
    await first.services.hosts.put(ME, "d", {})
    done = False

    def lose(conn: sa.Connection) -> None:
        nonlocal done
        if not done and conn.info.get("wakes"):
            done = True
            raw: Any = conn.connection.driver_connection
            raw.execute("COMMIT")
            with suppress(psycopg.OperationalError):
                raw.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    engine = first.store._writer
    sa.event.listen(engine, "commit", lose)
    with pytest.raises(Unavailable):
        await first.schedule("etc")
    assert done
    await first.schedule("etc")
    await second.pipeline.follow()
    assert first.state == second.state
    assert first.services.placement.hosts["d"].version == 1
    lines = await first.store.read(list_audit, None, 10)
    assert len([line for line in lines if line["object_kind"] == "Schedule"]) == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_what_is_declared_on_one_server_is_pushed_by_the_one_that_has_the_host_and_is_seen_there(
    server: Running, database: str, api: httpx.AsyncClient, declare: Declare, connect: Connect, tmp_path: Path
) -> None:
    config = Config(tmp_path / "other", port=0, database=database, vault_key=tmp_path / "vault-key", drain_seconds=0)
    async with serving(config) as other, connect(to=other, token=other.agent_token) as agent:
        await agent.follow()
        await declare()
        push = await agent.follow()
        assert (push["version"], [entry["name"] for entry in push["upsert"]]) == (1, ["ns/etc"])
        there = str(api.base_url.copy_with(port=other.port))
        await api.delete("/schedules/ns/etc")
        headers = {"authorization": f"Bearer {other.admin_token}"}
        assert (await api.get(f"{there}schedules/ns/etc", headers=headers)).status_code == 404
        host = (await api.get(f"{there}hosts/node-1", headers=headers)).json()
        assert (host["desired_version"], host["schedules"]) == (2, 0)
        assert (await agent.follow())["remove"]


async def until_waiting(postgresql: str) -> None:
    """Wait until a transaction waits for the lock of another."""
    async with asyncio.timeout(60):
        with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as conn:
            while conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None:
                await asyncio.sleep(0.01)
