"""Jobs keep to a repository's limit, exclusive jobs run alone, and concurrencyPolicy holds, over real sockets."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import Config, Running, serving
from tests.integration.clock import Clock, due
from tests.integration.conftest import SQLITE, Agent, Connect, Declare, Until
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

DUE = [due(days) for days in range(4)]
BOTH = pytest.mark.parametrize("database", [SQLITE, "postgresql"], indirect=True)


@pytest.fixture
def limited(api: httpx.AsyncClient) -> Callable[..., Awaitable[None]]:
    """Declares the repository that schedules are on, with its limit."""

    async def limited(**spec: Any) -> None:
        answer = await api.put("/repositories/ns/main", json={"spec": {"url": "/backup", **spec}})
        answer.raise_for_status()

    return limited


async def fire(agent: Agent, schedule_id: str, due: str = DUE[0]) -> Any:
    """A due time comes: the command, or the reason why there is none now."""
    await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due)
    answer = await agent.hear()
    payload = answer["payload"]
    return payload["job_id"] if answer["type"] == "command.run" else payload["reason"]


async def ends(agent: Agent, job_id: str, status: str = "succeeded", **more: Any) -> None:
    await agent.say("job.accepted", job_id=job_id)
    await agent.say("job.finished", job_id=job_id, status=status, finished_at=DUE[0], **more)


async def hears_end_of(agent: Agent, job_id: str) -> None:
    assert (await agent.hears("job.confirmed"))["job_id"] == job_id


async def hears_command(agent: Agent) -> Any:
    """The next command, which may come after the confirmation of the end that made way for it."""
    while (answer := await agent.hear())["type"] != "command.run":
        assert answer["type"] == "job.confirmed"
    return answer["payload"]


async def waiting(api: httpx.AsyncClient) -> list[Any]:
    return [job["waits_for"] for job in (await api.get("/jobs")).json()["items"] if job["waits_for"]]


# Turns.


@BOTH
async def test_hosts_take_turns_at_a_repository_in_the_order_in_which_they_came(
    api: httpx.AsyncClient, limited: Callable[..., Awaitable[None]], declare: Declare, connect: Connect
) -> None:
    await limited(maxConcurrentJobs=1)
    schedule_id = await declare()
    async with connect("node-1") as first, connect("node-2") as second, connect("node-3") as third:
        for agent in (first, second, third):
            await agent.follow()
        job = await fire(first, schedule_id)
        assert [await fire(second, schedule_id), await fire(third, schedule_id)] == ["Queued", "Queued"]
        assert await waiting(api) == ["2 jobs before it in repository ns/main", "1 job before it in repository ns/main"]
        await ends(first, job)
        job = (await second.hears("command.run"))["job_id"]
        assert await waiting(api) == ["1 job before it in repository ns/main"]
        await ends(second, job)
        assert (await third.hears("command.run"))["schedule_id"] == schedule_id


@BOTH
async def test_a_limit_that_is_raised_lets_the_next_go(
    limited: Callable[..., Awaitable[None]], declare: Declare, connect: Connect
) -> None:
    await limited(maxConcurrentJobs=1)
    schedule_id = await declare()
    async with connect("node-1") as first, connect("node-2") as second:
        await first.follow()
        await second.follow()
        await fire(first, schedule_id)
        assert await fire(second, schedule_id) == "Queued"
        await limited(maxConcurrentJobs=2)
        assert {(await second.hear())["type"] for _ in range(2)} == {"schedule.diff", "command.run"}


@BOTH
async def test_a_prune_waits_for_backups_and_holds_off_later_ones(
    limited: Callable[..., Awaitable[None]], declare: Declare, connect: Connect
) -> None:
    await limited()
    backup, prune = await declare(), await declare("prune", kind="prune", backup=None)
    async with connect("node-1") as first, connect("node-2") as second, connect("node-3") as third:
        for agent in (first, second, third):
            await agent.follow()
        job = await fire(first, backup)
        assert [await fire(second, prune), await fire(third, backup)] == ["Queued", "Queued"]
        await ends(first, job)
        job = (await second.hears("command.run"))["job_id"]
        await ends(second, job)
        assert (await third.hears("command.run"))["kind"] == "backup"


@BOTH
async def test_a_host_that_leaves_the_queue_holds_up_nobody(
    api: httpx.AsyncClient, limited: Callable[..., Awaitable[None]], declare: Declare, connect: Connect, until: Until
) -> None:
    await limited(maxConcurrentJobs=1)
    schedule_id = await declare()
    await api.put("/hosts/node-2", json={"labels": {}})
    async with connect("node-1") as first, connect("node-3") as third:
        await first.follow()
        await third.follow()
        job = await fire(first, schedule_id)
        async with connect("node-2") as second:
            await second.follow()
            assert await fire(second, schedule_id) == "Queued"

        async def gone() -> Any:
            return await waiting(api) == ["host node-2 to connect"]

        await until(gone)
        assert await fire(third, schedule_id) == "Queued"
        await ends(first, job)
        await third.hears("command.run")


async def test_the_queue_is_the_same_after_a_restart(
    tmp_path: Path, connect: Connect, clock: Clock, until: Until
) -> None:
    async def declared(client: httpx.AsyncClient) -> Any:
        for path, spec in (
            ("/repositories/ns/main", {"url": "/backup", "maxConcurrentJobs": 1}),
            ("/schedules/ns/etc", {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}} | PATHS),
        ):
            (await client.put(path, json={"spec": spec})).raise_for_status()
        return (await client.get("/schedules/ns/etc")).json()["metadata"]["uid"]

    PATHS = {"backup": {"paths": ["/etc"]}}  # noqa: N806
    config = Config(tmp_path / "restarted", port=0)
    async with serving(config, clock) as server, rest(server) as client:
        schedule_id = await declared(client)
        async with (
            connect("node-1", to=server, token=server.agent_token) as first,
            connect("node-2", to=server, token=server.agent_token) as second,
        ):
            await first.follow()
            await second.follow()
            job = await fire(first, schedule_id)
            await first.say("job.accepted", job_id=job)
            assert await fire(second, schedule_id) == "Queued"
    async with serving(config, clock) as server, rest(server) as client:
        assert await waiting(client) == ["host node-2 to connect"]
        async with connect("node-2", to=server, token=server.agent_token) as second:
            await second.follow()
            async with connect("node-1", to=server, token=server.agent_token, running_jobs=[job]) as first:
                await first.follow()

                async def both_are_back() -> Any:
                    return await waiting(client) == ["1 job before it in repository ns/main"]

                await until(both_are_back)
                await ends(first, job)
                await second.hears("command.run")


def rest(server: Running) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/api/v1", headers=headers, verify=NO_TLS)


# Windows.


@BOTH
async def test_what_is_due_outside_its_windows_waits_until_other_windows_let_it_begin(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare(windows=[{"from": "05:00", "to": "06:00"}])
    async with connect() as agent:
        await agent.follow()
        assert await fire(agent, schedule_id, due(hour=2)) == "Queued"
        assert await waiting(api) == [f"its window, which opens at {due(hour=5)}"]
        await declare(windows=[{"from": "00:00", "to": "24:00"}])
        while (heard := await agent.hear())["type"] != "command.run":
            assert heard["type"] == "schedule.diff"


# concurrencyPolicy.


async def test_forbid_refuses_a_fire_while_the_last_run_is_not_over(declare: Declare, connect: Connect) -> None:
    schedule_id = await declare(concurrencyPolicy="Forbid")
    async with connect() as agent:
        await agent.follow()
        job = await fire(agent, schedule_id, DUE[1])
        assert await fire(agent, schedule_id, DUE[2]) == "Concurrent"
        await ends(agent, job)
        await hears_end_of(agent, job)
        assert await fire(agent, schedule_id, DUE[3]) != "Concurrent"


async def test_allow_runs_both(declare: Declare, connect: Connect) -> None:
    schedule_id = await declare(concurrencyPolicy="Allow")
    async with connect() as agent:
        await agent.follow()
        assert len({await fire(agent, schedule_id, due) for due in DUE[:3]} - {"Concurrent", "Queued"}) == 3


@BOTH
async def test_replace_ends_the_last_run_and_begins_the_new_one_after_it(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare(concurrencyPolicy="Replace")
    async with connect() as agent:
        await agent.follow()
        job = await fire(agent, schedule_id, DUE[1])
        await agent.say("job.accepted", job_id=job)
        assert await fire(agent, schedule_id, DUE[2]) == "Queued"
        assert (await agent.hears("command.cancel"))["job_id"] == job
        await ends(agent, job, "cancelled")
        new = await hears_command(agent)
        assert new["scheduled_at"] == DUE[2]
        assert (await api.get(f"/jobs/{job}")).json()["status"] == "cancelled"


@BOTH
async def test_a_run_that_somebody_asks_for_waits_for_the_last_one(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare(concurrencyPolicy="Forbid")
    async with connect() as agent:
        await agent.follow()
        job = await fire(agent, schedule_id)
        [asked] = (await api.post("/schedules/ns/etc/run")).json()["items"]
        assert asked["waits_for"] == "the run before it on host node-1"
        await ends(agent, job)
        assert (await hears_command(agent))["job_id"] == asked["id"]


# What hosts may say, and what must reach them.


async def test_a_host_may_not_touch_another_hosts_job(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare()
    async with connect("node-1") as first, connect("node-2") as second:
        await first.follow()
        await second.follow()
        job = await fire(first, schedule_id)
        await ends(second, job, "failed")
        await second.say("job.log", job_id=job, lines=["not mine"])
        assert await fire(second, schedule_id) != job  # all before it was heard
        assert (await api.get(f"/jobs/{job}")).json()["status"] == "pending"
        assert (await api.get(f"/jobs/{job}/log")).json()["items"] == []


@pytest.mark.parametrize("finished", ["9998-12-31T23:59:59Z", "0002-01-01T00:00:00Z"])
@pytest.mark.parametrize("started", ["9998-12-31T23:59:59Z", "0002-01-01T00:00:00Z", None])
async def test_an_end_is_of_a_time_between_the_jobs_beginning_and_now(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, finished: str, started: str | None, clock: Clock
) -> None:
    schedule_id = await declare()
    async with connect() as agent:
        await agent.follow()
        job_id = await fire(agent, schedule_id)
        await agent.say("job.finished", job_id=job_id, status="succeeded", finished_at=finished, started_at=started)
        await hears_end_of(agent, job_id)
    job = (await api.get(f"/jobs/{job_id}")).json()
    times = [job["created_at"], job["started_at"] or job["created_at"], job["finished_at"], clock().isoformat()]
    assert sorted(map(datetime.fromisoformat, times)) == list(map(datetime.fromisoformat, times))
    told = (await api.get("/schedules/ns/etc")).json()
    assert "9998" not in str(told)


@BOTH
async def test_a_cancel_survives_a_broken_link(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    schedule_id = await declare()
    async with connect() as agent:
        await agent.follow()
        job = await fire(agent, schedule_id)
        await agent.say("job.accepted", job_id=job)

        async def accepted() -> Any:
            return (await api.get(f"/jobs/{job}")).json()["status"] == "running"

        await until(accepted)
        assert (await api.post(f"/jobs/{job}/cancel")).json()["cancel_requested"] is True
        # The link breaks before the agent has read that.
    async with connect(applied_version=1, digest=agent.digest, running_jobs=[job]) as again:
        assert (await again.hears("command.cancel"))["job_id"] == job
        await ends(again, job, "cancelled")
        await hears_end_of(again, job)


@BOTH
async def test_a_job_of_a_schedule_that_is_gone_by_its_turn_is_not_run(
    api: httpx.AsyncClient, limited: Callable[..., Awaitable[None]], declare: Declare, connect: Connect, until: Until
) -> None:
    await limited(maxConcurrentJobs=1)
    first_id, gone_id = await declare("etc"), await declare("gone")
    async with connect() as agent:
        await agent.follow()
        job = await fire(agent, first_id)
        assert await fire(agent, gone_id) == "Queued"
        await api.delete("/schedules/ns/gone")
        await agent.follow()
        await ends(agent, job)

        async def over() -> Any:
            return (await api.get("/jobs", params={"schedule": gone_id})).json()["items"][0]["status"] == "cancelled"

        await until(over)
        assert "command.run" not in agent.told[agent.told.index("schedule.diff") :]
