"""Promise 11: servers over one database answer alike, and do for each other's hosts what is asked of any of them."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from server.app import Config, Running, serving
from server.gateway.endpoint import REPLACED
from server.jobs import notices
from server.jobs.progress import ProgressWriter
from server.store import news
from server.store.hosts import get_host
from tests.integration.clock import Clock, due
from tests.integration.conftest import PATIENCE_S, Connect, Declare, Until
from tests.integration.receivers import receiving
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

DUE = due()


class Replica:
    """A server, and its REST."""

    def __init__(self, running: Running, api: httpx.AsyncClient) -> None:
        self.running, self.api = running, api
        parts = running.parts
        self.store, self.hub, self.news = parts.services.store, parts.services.hub, parts.news

    async def get(self, path: str, **query: Any) -> Any:
        """What it answers."""
        answer = await self.api.get(path, params=query)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def started(folder: Path, database: str, clock: Clock) -> AsyncIterator[Replica]:
    folder.mkdir(exist_ok=True)
    async with serving(Config(folder, port=0, database=database), clock) as running:
        url, headers = f"http://127.0.0.1:{running.port}/api/v1", {"authorization": f"Bearer {running.admin_token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS) as api:
            yield Replica(running, api)


@pytest.fixture
async def replicas(tmp_path: Path, postgresql: str, clock: Clock) -> AsyncIterator[list[Replica]]:
    """Three servers, which have nothing in common but the database and the keys."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(started(tmp_path / "0", postgresql, clock))]
        for name in ("1", "2"):
            shutil.copytree(tmp_path / "0", tmp_path / name)
            found.append(await stack.enter_async_context(started(tmp_path / name, postgresql, clock)))
        yield found


@pytest.fixture
def server(replicas: list[Replica]) -> Running:
    """The first, which is declared to."""
    return replicas[0].running


async def same(until: Until, replicas: list[Replica], path: str, *leave_out: str) -> Any:
    """What all servers come to answer alike, but for some fields."""

    async def alike() -> Any:
        answers = [await it.get(path) for it in replicas]
        for answer in answers:
            for name in leave_out:
                answer.pop(name)
        return answers[0] if all(it == answers[0] for it in answers) else None

    return await until(alike)


async def run(replica: Replica, *hosts: str) -> list[str]:
    answer = await replica.api.post("/schedules/ns/etc/run", json={"hosts": [*hosts]})
    answer.raise_for_status()
    return [it["id"] for it in answer.json()["items"]]


async def test_a_job_asked_for_on_one_server_runs_on_a_host_of_another_and_all_answer_alike(
    replicas: list[Replica], connect: Connect, declare: Declare, until: Until
) -> None:
    one, other, third = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    await declare()
    said = {"agent_version": "9.9", "capabilities": ["backup"], "allowed_hooks": ["/bin/true"]}
    await same(until, replicas, "/hosts/node-1")  # what is declared is in force on all
    async with connect("node-1", to=other.running, **said) as agent:
        await agent.follow()
        host = await until(lambda: in_sync(one))
        assert (host["connected"], host["agent_version"]) == (True, "9.9")
        assert await same(until, replicas, "/hosts/node-1", "last_seen") is not None
        assert (await third.api.delete("/hosts/node-1")).status_code == 409
        (job,) = await run(one, "node-1")
        command = await agent.hears("command.run")
        assert command["job_id"] == job
        await agent.say("job.accepted", job_id=job)
        await agent.say("job.progress", job_id=job, fraction=0.25)
        await agent.say("job.log", job_id=job, lines=["hello"])
        await until(lambda: has_progress(other, job))
        await until(lambda: is_running(other, job))
        await ProgressWriter(other.store, other.running.parts.active).write()
        shown = await same(until, replicas, f"/jobs/{job}")
        assert (shown["status"], shown["progress"]["fraction"]) == ("running", 0.25)
        assert [it["line"] for it in (await same(until, replicas, f"/jobs/{job}/log"))["items"]] == ["hello"]
        (await third.api.post(f"/jobs/{job}/cancel")).raise_for_status()
        assert (await agent.hears("command.cancel"))["job_id"] == job
        await agent.say("job.finished", job_id=job, status="cancelled", finished_at=DUE, error="stopped")
        await until(partial(has_ended, third, job))
        assert (await same(until, replicas, f"/jobs/{job}"))["status"] == "cancelled"
        for replica in replicas:
            await until(partial(failed, replica))
    await until(lambda: gone(one))


async def test_a_host_that_joins_on_any_server_runs_what_it_joined_once(
    replicas: list[Replica], connect: Connect, declare: Declare, until: Until
) -> None:
    *_, third = replicas  # which does not lead
    await declare(runOnJoin=True)
    await same(until, replicas, "/schedules/ns/etc")
    async with connect("node-1", to=third.running) as agent:
        await agent.follow()
        job = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job)
        await agent.say("job.finished", job_id=job, status="succeeded", finished_at=DUE)
        await agent.hears("job.confirmed")
        for replica in replicas:
            await until(partial(has_ended, replica, job))
        assert [it["id"] for it in (await same(until, replicas, "/jobs"))["items"]] == [job]


async def in_sync(replica: Replica) -> Any:
    host = await replica.get("/hosts/node-1")
    session = replica.hub.session("node-1")
    return host if host["in_sync"] and session is not None and session.in_sync and host["agent_version"] else None


async def has_progress(replica: Replica, job: str) -> bool:
    return (await replica.get(f"/jobs/{job}"))["progress"] is not None


async def is_running(replica: Replica, job: str) -> bool:
    return bool((await replica.get(f"/jobs/{job}"))["status"] == "running")


async def has_ended(replica: Replica, job: str) -> bool:
    return (await replica.get(f"/jobs/{job}"))["finished_at"] is not None


async def failed(replica: Replica) -> bool:
    shown = await replica.get("/schedules/ns/etc")
    return "stopped" in json.dumps(shown)


async def gone(replica: Replica) -> bool:
    return not (await replica.get("/hosts/node-1"))["connected"]


async def test_a_list_asked_for_on_one_server_comes_from_a_host_of_another_and_a_third_has_its_pages(
    replicas: list[Replica], connect: Connect, declare: Declare, until: Until
) -> None:
    one, other, third = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    await declare()
    path = "/repositories/ns/main/snapshots"
    await same(until, replicas, "/hosts/node-1")  # what is declared is in force on all
    async with connect("node-1", to=other.running) as agent:
        await agent.follow()
        await until(lambda: is_online(one))
        asked = asyncio.create_task(one.get(path, host="node-1", limit=1))
        job = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job)
        lines = [
            json.dumps({"id": f"{n}" * 8, "time": f"2026-01-0{n}T00:00:00Z", "hostname": "node-1", "paths": ["/etc"]})
            for n in (1, 2, 3)
        ]
        await agent.say("job.log", job_id=job, lines=lines[:2])
        await agent.say("job.log", job_id=job, lines=lines[2:])
        await agent.say("job.finished", job_id=job, status="succeeded", finished_at=DUE)
        pages = [await asked]
        for replica in (third, other):
            pages.append(await replica.get(path, host="node-1", limit=1, cursor=pages[-1]["next"]))
        assert [it["id"] for page in pages for it in page["items"]] == ["3" * 8, "2" * 8, "1" * 8]
        assert pages[-1]["next"] is None
        again = await one.api.get(path, params={"host": "node-1", "limit": 1, "cursor": pages[0]["next"]})
        assert again.status_code == 409


async def is_online(replica: Replica) -> bool:
    return replica.hub.is_connected("node-1")


async def test_of_a_host_that_moves_the_older_connection_is_closed_and_what_it_still_acks_is_not_stored(
    replicas: list[Replica], connect: Connect, declare: Declare, until: Until
) -> None:
    one, other, _ = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    await declare()
    await same(until, replicas, "/hosts/node-1")  # what is declared is in force on all
    async with connect("node-1", to=one.running) as before:
        push = (await before.hears("schedule.set"))["version"]
        older = one.hub.newest("node-1")
        assert older is not None
        await until(lambda: numbered(older))
        async with connect("node-1", to=other.running) as agent:
            await agent.follow()
            assert (await before.closed())[0] == REPLACED
            await until(lambda: in_sync_there(one))
            told = one.running.parts.gateway  # what the older connection's ack would store
            late = ("node-1", older.number, push - 1, "0" * 64, one.running.parts.services.clock())
            await one.store.write(told.told_hosts.acks, late)
            await until(lambda: in_sync_there(other))
            row = await one.store.read(get_host, "node-1")
            assert row is not None
            assert (row["applied_version"], row["applied_digest"]) == (agent.version, agent.digest)
            assert await in_sync_there(one)


async def numbered(connection: Any) -> bool:
    return bool(connection.number)


async def in_sync_there(replica: Replica) -> bool:
    session = replica.hub.session("node-1")
    return session is not None and session.in_sync


async def test_what_a_server_told_before_it_was_killed_stays_told(
    tmp_path: Path, postgresql: str, clock: Clock, replicas: list[Replica], declare: Declare, until: Until
) -> None:
    one, other, _ = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    await declare()
    async with other.news._lock:  # the other one is slow, and hears of it when the teller is gone
        shutil.copytree(tmp_path / "0", tmp_path / "3")
        async with started(tmp_path / "3", postgresql, clock) as fourth:
            put = await fourth.api.put("/controllers/lamplighter-folder", json={"problems": []})
            put.raise_for_status()
            (job,) = await run(fourth, "node-1")
            (await fourth.api.post(f"/jobs/{job}/cancel")).raise_for_status()
    shown = await same(until, replicas, "/controllers")
    assert [it["name"] for it in shown["items"]] == ["lamplighter-folder"]
    for replica in replicas:
        await until(partial(last_cancelled, replica))


async def last_cancelled(replica: Replica) -> bool:
    return "cancelled" in json.dumps(await replica.get("/schedules/ns/etc"))


async def test_a_host_that_was_deleted_and_is_back_is_connected_on_a_server_that_hears_of_it_late(
    replicas: list[Replica], connect: Connect, until: Until
) -> None:
    one, other, third = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    async with third.news._lock:  # it is slow to hear of hosts, but follows what is declared
        for _ in range(2):
            async with connect("node-1", to=other.running):
                await until(lambda: is_online(one))
            await until(lambda: is_offline(one))
        (await one.api.delete("/hosts/node-1")).raise_for_status()
        assert (await third.api.get("/hosts/node-1")).status_code == 404
        (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
        await third.get("/hosts/node-1")
        stack = AsyncExitStack()
        await stack.enter_async_context(connect("node-1", to=other.running))
        await until(lambda: is_online(one))
    async with stack:
        await until(lambda: is_online(third))


async def is_offline(replica: Replica) -> bool:
    return not replica.hub.is_connected("node-1")


async def test_what_a_newer_release_tells_keeps_nobody_from_what_it_tells_beside_it(
    replicas: list[Replica], connect: Connect, until: Until
) -> None:
    """A row has all that one transaction brought about."""
    one, other, _ = replicas
    (await one.api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    async with connect("node-1", to=other.running):
        await until(lambda: is_online(one))
        server, now = other.store.server, other.running.parts.services.clock()
        body = f'[{{"is":"of tomorrow","host":1}},{notices.encode([notices.Left("node-1")])[1:]}'
        await other.store.write(told, (server, now, body))
        await until(lambda: is_offline(one))


def told(conn: sa.Connection, items: Sequence[tuple[str, datetime, str]]) -> list[None]:
    for server, now, body in items:
        news.tell(conn, server, now, [body])
    return [None] * len(items)


async def hears_of_alerts(stream: AsyncIterator[bytes]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while b'"alerts"' not in await anext(stream):
            pass


async def test_readers_of_every_server_hear_what_becomes_of_alerts_and_one_server_tells(
    replicas: list[Replica], declare: Declare
) -> None:
    streams = [it.running.parts.services.stream.stream() for it in replicas]
    for stream in streams:
        await anext(stream)  # all kinds, to begin with
    with receiving() as receiver:
        body = {"spec": {"secretRef": {"name": "s"}}, "credentials": {"urls": [receiver.url]}}
        (await replicas[1].api.put("/alerts/ns/on-call", json=body)).raise_for_status()
        await asyncio.gather(*map(hears_of_alerts, streams))  # that it is declared
        await declare(hostSelector={"matchLabels": {"tier": "db"}})
        await asyncio.gather(*map(hears_of_alerts, streams))  # that it has told, or that the message has arrived
        async with asyncio.timeout(PATIENCE_S):
            while not receiver.taken:
                await asyncio.sleep(0.05)
        assert ("firing", "Schedule/ns/etc/NoHosts") in receiver.told()
        assert receiver.copies == 0
