"""A host that joins a Schedule with runOnJoin runs it once, as soon as its agent holds it; no other host does."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from server.app import Running
from server.store import joins
from server.store.rows import Met
from server.store.tables import MET_HOSTS
from tests.integration.clock import Clock, due
from tests.integration.conftest import SQLITE, Agent, Connect, Declare, Until

pytestmark = pytest.mark.anyio
BOTH = pytest.mark.parametrize("database", [SQLITE, "postgresql"], indirect=True)
GROUP = {"matchLabels": {"pool": "a"}}


async def jobs(api: httpx.AsyncClient) -> list[Any]:
    found: list[Any] = (await api.get("/jobs")).json()["items"]
    return found


async def label(api: httpx.AsyncClient, pool: str, host: str = "node-1") -> None:
    (await api.put(f"/hosts/{host}", json={"labels": {"pool": pool}})).raise_for_status()


async def looked(server: Running, until: Until) -> None:
    """Wait until no host is due."""

    def due_hosts(conn: sa.Connection) -> list[Any]:
        return list(conn.execute(sa.select(MET_HOSTS.c.host).where(MET_HOSTS.c.due)))

    async def none_due() -> bool:
        return not await server.parts.services.store.read(due_hosts)

    await until(none_due)


async def ends(agent: Agent, job_id: str) -> None:
    await agent.say("job.accepted", job_id=job_id)
    await agent.say("job.finished", job_id=job_id, status="succeeded", finished_at=due())
    await agent.hears("job.confirmed")


@BOTH
async def test_a_host_that_is_new_runs_it_once_and_not_when_it_or_the_server_comes_again(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    schedule_id = await declare(runOnJoin=True)
    async with connect("node-1") as agent:
        await agent.follow()
        command = await agent.hears("command.run")
        assert (command["schedule_id"], command.get("scheduled_at")) == (schedule_id, None)
        (job,) = await jobs(api)
        assert (job["actor_kind"], job["actor_id"], job["status"]) == ("join", "ns/etc", "pending")
        await ends(agent, command["job_id"])
    async with connect("node-1") as agent:
        await agent.follow()
        await declare(runOnJoin=True, timeoutSeconds=60)
        await agent.follow()
        await looked(server, until)
    assert len(await jobs(api)) == 1


async def test_hosts_that_the_schedules_own_change_brings_in_do_not_run_it(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    async with connect("node-1") as agent:
        await agent.follow()
        await label(api, "a")
        await declare(hostSelector={"matchLabels": {"pool": "b"}}, runOnJoin=True)  # it is new, too
        await declare(hostSelector=GROUP, runOnJoin=True)
        await agent.follow()
        await declare("other", hostSelector=GROUP)
        await agent.follow()
        await declare("other", hostSelector=GROUP, runOnJoin=True)
        await label(api, "c")
        await agent.follow()
        await label(api, "a")  # back again, and known
        await agent.follow()
        await looked(server, until)
    assert await jobs(api) == []


async def test_a_host_whose_label_brings_it_in_runs_it_once_however_often_the_label_comes(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    await declare(hostSelector=GROUP, runOnJoin=True, enabled=False)
    await declare("etc", hostSelector=GROUP, runOnJoin=True)
    async with connect("node-1") as agent:
        await agent.follow()
        await label(api, "a")
        await agent.follow()
        await ends(agent, (await agent.hears("command.run"))["job_id"])
        for pool in ("b", "a"):
            await label(api, pool)
            await agent.follow()
        await looked(server, until)
    assert len(await jobs(api)) == 1


async def test_a_due_time_that_the_host_missed_is_its_run(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    schedule_id = await declare(runOnJoin=True, concurrencyPolicy="Allow")
    await label(api, "a")
    async with connect("node-1") as agent:
        await agent.hear()  # its set, which it does not ack before it has fired
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due(), missed=1)
        assert (await agent.hears("command.run"))["scheduled_at"] == due()
    async with connect("node-1") as agent:
        await agent.follow()
        await looked(server, until)
    (job,) = await jobs(api)
    assert job["actor_kind"] == "schedule"


async def test_it_waits_for_its_window_and_a_disabled_schedule_runs_on_nobody(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until, clock: Clock
) -> None:
    opens = clock().replace(minute=0) + timedelta(hours=2)
    window = {"from": f"{opens:%H:%M}", "to": f"{opens + timedelta(hours=1):%H:%M}"}
    await declare("off", runOnJoin=True, suspend=True)
    await declare(runOnJoin=True, windows=[window])
    async with connect("node-1") as agent:
        await agent.follow()
        await looked(server, until)
    (job,) = await jobs(api)
    assert (job["actor_id"], job["waits_for"]) == ("ns/etc", f"its window, which opens at {opens:%Y-%m-%dT%H:%M:00Z}")


@BOTH
async def test_a_host_that_is_deleted_and_created_again_runs_it_again(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    await declare(hostSelector=GROUP, runOnJoin=True)
    for _ in range(2):
        await label(api, "a")
        async with connect("node-1") as agent:
            await agent.follow()
            await ends(agent, (await agent.hears("command.run"))["job_id"])
            await looked(server, until)
        (await api.delete("/hosts/node-1")).raise_for_status()
    assert [it["actor_kind"] for it in await jobs(api)] == ["join", "join"]


@BOTH
async def test_what_a_host_may_not_run_any_more_holds_up_no_other(
    server: Running,
    api: httpx.AsyncClient,
    declare: Declare,
    connect: Connect,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joins, "MOST", 2)

    def withdrawn(conn: sa.Connection, items: Sequence[Met]) -> list[None]:
        joins.meet(conn, items)
        return [None] * len(items)

    async def is_held() -> bool:
        return bool((await api.get("/hosts/node-0")).json()["in_sync"])

    others = [await declare(f"other-{number}", hostSelector=GROUP) for number in range(5)]
    async with connect("node-0") as first, connect("node-1") as agent:
        await first.follow()
        await agent.follow()
        await until(is_held)
        for other in others:
            await server.parts.services.store.write(withdrawn, Met(other, "node-0", due=True))
        schedule_id = await declare("new", runOnJoin=True, hostSelector={"matchLabels": {"pool": "c"}})
        await label(api, "c")
        await agent.follow()
        assert (await agent.hears("command.run"))["schedule_id"] == schedule_id
