"""A job waits for what it needs, and no host is asked for what its agent cannot do, over real connections."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx import AsyncClient

from tests.integration.clock import due
from tests.integration.conftest import Agent, Connect, Declare, Until

pytestmark = pytest.mark.anyio

DUE = due()


@pytest.fixture
def shared(api: AsyncClient, declare: Declare) -> Callable[..., Awaitable[str]]:
    """Declares a schedule into one repository of all hosts, which is created where it is missing."""

    async def shared(**spec: Any) -> str:
        there = {"spec": {"url": "/backup", "init": True}}
        (await api.put("/repositories/ns/main", json=there)).raise_for_status()
        for host in ("node-1", "node-2", "node-3"):
            (await api.put(f"/hosts/{host}", json={"labels": {}})).raise_for_status()
        return await declare(**spec)

    return shared


async def fire(agent: Agent, schedule_id: str) -> None:
    await agent.follow()
    await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)


@pytest.mark.parametrize(
    ("type_", "told"),
    [
        ("job.progress", {"fraction": 0.1}),
        ("job.finished", {"status": "succeeded", "finished_at": DUE}),
        ("job.finished", {"status": "failed", "finished_at": DUE}),
    ],
)
async def test_while_a_repository_may_have_to_be_created_one_host_at_a_time_uses_it(
    connect: Connect, shared: Callable[..., Awaitable[str]], type_: str, told: dict[str, Any]
) -> None:
    schedule = await shared()
    async with connect("node-1") as one, connect("node-2") as other, connect("node-3") as third:
        await fire(one, schedule)
        command = await one.hears("command.run")
        assert command["init"] == ["init"]
        await fire(other, schedule)
        assert (await other.hears("schedule.refused"))["reason"] == "Queued"
        await fire(third, schedule)
        assert (await third.hears("schedule.refused"))["reason"] == "Queued"
        await one.say("job.accepted", job_id=command["job_id"])
        await one.say(type_, job_id=command["job_id"], **told)
        following = await other.hears("command.run")
        if told.get("status") == "failed":  # nobody has seen the repository yet
            await other.say("job.progress", job_id=following["job_id"], fraction=0.1)
        await third.hears("command.run")


async def test_a_forget_is_asked_for_what_the_backups_beside_it_made_and_tells_where_there_is_none(
    api: AsyncClient, connect: Connect, declare: Declare
) -> None:
    (await api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    await declare("keep", kind="forget", backup=None, retention={"keepLast": 1})

    async def told() -> list[str]:
        return [it["reason"] for it in (await api.get("/schedules/ns/keep")).json()["status"]["problems"]]

    assert await told() == ["ForgetsTooLittle"]
    for name, where in (("b", "main"), ("a", "main"), ("other", "elsewhere")):
        await declare(name, repository=where)
    assert await told() == []
    async with connect("node-1", restic_version="0.14.0") as agent:
        await agent.follow()
        (await api.post("/schedules/ns/keep/run", json={})).raise_for_status()
        asked = (await agent.hears("command.run"))["args"]
        assert asked == ["forget", "--host=node-1", *MADE_BY_A_AND_B, "--keep-last=1"]
    for name in ("a", "b"):
        (await api.delete(f"/schedules/ns/{name}")).raise_for_status()
    assert "ForgetsTooLittle" in await told()


MADE_BY_A_AND_B = ["--tag=lamplighter=ns/a", "--tag=lamplighter=ns/b"]


@pytest.mark.parametrize(
    ("capabilities", "spec", "error"),
    [
        (["prune"], {}, "agent 9.9 does not run backup: update the agent of node-1"),
        (["backup"], {"hooks": {"before": ["/bin/true"]}}, "agent 9.9 does not run hooks: update the agent of node-1"),
        (["backup"], {"nice": 5}, "agent 9.9 does not run spec.nice and spec.ioClass: update the agent of node-1"),
        (
            ["backup", "unchanged"],
            {"backup": {"paths": ["/etc"], "skipIfUnchanged": True}},
            "restic 0.14.0 does not know spec.backup.skipIfUnchanged, which needs 0.17: "
            "remove the field, or update the restic program of node-1",
        ),
    ],
)
async def test_what_an_agent_does_not_run_it_is_not_asked_for_and_the_job_says_why(
    api: AsyncClient,
    connect: Connect,
    declare: Declare,
    until: Until,
    capabilities: list[str],
    spec: dict[str, Any],
    error: str,
) -> None:
    schedule = await declare(**spec)
    said = {"agent_version": "9.9", "restic_version": "0.14.0", "capabilities": capabilities}
    async with connect("node-1", **said) as agent:
        await fire(agent, schedule)
        await agent.hears("schedule.refused")
        first = (await api.get("/schedules/ns/etc")).json()["status"]["problems"][0]
        told = f"its only host cannot run it, so each run there fails: node-1; {error.removesuffix(' of node-1')}"
        assert first == {"reason": "NotSupported", "message": told}

        async def ended(count: int) -> Any:
            jobs = (await api.get("/jobs")).json()["items"]
            return jobs if [job["status"] for job in jobs] == ["failed"] * count else None

        [job] = await until(lambda: ended(1))
        assert job["error"] == error
        (await api.post("/schedules/ns/etc/run", json={})).raise_for_status()
        assert [job["error"] for job in await until(lambda: ended(2))] == [error] * 2
        assert "command.run" not in agent.told
