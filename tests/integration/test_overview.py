"""Promise 10: the overview answers truthfully whether everything is backed up, and names everything that is wrong."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from server.app import Running
from server.observe import history
from server.store.days import by_day, hosts_of
from tests.integration.clock import Clock, due
from tests.integration.conftest import Agent, Connect, Declare, Until

pytestmark = pytest.mark.anyio


async def overview(api: httpx.AsyncClient, **query: Any) -> Any:
    return (await api.get("/overview", params=query)).raise_for_status().json()


async def fleet(api: httpx.AsyncClient, **query: Any) -> Any:
    return (await api.get("/fleet", params=query)).raise_for_status().json()


async def red(api: httpx.AsyncClient, **query: Any) -> dict[str, set[str]]:
    """By section, the reasons of what is red."""
    sections = (await overview(api, **query))["sections"]
    return {it["name"]: {item["reason"] for item in it["items"]} for it in sections if it["severity"] == "red"}


async def end(agent: Agent, schedule: str, days: int = 0, status: str = "succeeded", **more: Any) -> str:
    """Have a job of a schedule end on a host, at the due time of that day."""
    at = due(days)
    await agent.say("schedule.fire", schedule_id=schedule, scheduled_at=at)
    job_id: str = (await agent.hears("command.run"))["job_id"]
    await agent.say("job.finished", job_id=job_id, status=status, finished_at=at, **more)
    await agent.hears("job.confirmed")
    return job_id


async def test_the_answer_follows_what_happens_to_the_only_backup(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, clock: Clock, until: Until
) -> None:
    assert (await overview(api))["sentence"] == "Nothing is backed up: no Schedule of kind backup is declared."
    assert await red(api) == {"never_ran": {"NothingDeclared"}}
    schedule = await declare()
    assert (await overview(api))["sentence"] == "Nothing is backed up: there is no host."
    async with connect() as agent:
        await agent.follow()
        first = await until(lambda: _is_in_sync(api))
        assert (first["answer"], first["counts"]["hosts_waiting"]) == ("unknown", 1)
        assert first["sentence"].startswith("Not yet: the only host is without a backup still, and none is overdue")
        assert [it["schedule"] for it in first["due"]] == ["ns/etc"]
        await end(agent, schedule, bytes_added=2048)
        good = await overview(api)
        assert good["sentence"].startswith("Yes: the only host is backed up in time"), good
        assert (good["answer"], good["counts"]["hosts_backed_up"], good["running"]) == ("yes", 1, [])
        today = {"succeeded": 1, "warned": 0, "failed": 0, "bytes_added": 2048}
        assert good["days"][-1] == {"day": clock().date().isoformat()} | today
        assert len(good["days"]) == 14
        await end(agent, schedule, days=1, status="failed", reason="NoRepository", error="no such bucket")
        failed = await red(api)
        assert failed == {"failed": {"RunsFail"}, "repositories": {"NoRepository"}}
        [of_host] = (await fleet(api))["items"]
        assert (of_host["states"], of_host["days"][-3:]) == (["failed"], ["none", "succeeded", "failed"])
        clock.ahead += timedelta(days=3)
        assert await red(api) == {**failed, "overdue": {"Overdue"}}
        assert (await overview(api))["sentence"].startswith(
            "No: the only host is not backed up in time (1 run is overd"
        )
    await until(lambda: _is(api, "offline"))


async def _is_in_sync(api: httpx.AsyncClient) -> Any:
    found = await overview(api)
    return found if found["counts"]["hosts_in_sync"] and found["counts"]["hosts_connected"] else None


async def _is(api: httpx.AsyncClient, section: str) -> bool:
    return section in await red(api)


async def test_hosts_are_filtered_grouped_and_paged(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, server: Running
) -> None:
    for at in range(5):
        await api.put(f"/hosts/h{at}", json={"labels": {"zone": "east" if at % 2 else "west", "n": str(at)}})
    schedule = await declare(hostSelector={"matchLabels": {"zone": "east"}})
    async with connect("h1") as agent:
        await agent.follow()
        await end(agent, schedule, status="warning")
        assert [it["name"] for it in (await fleet(api))["items"]] == ["h0", "h1", "h2", "h3", "h4"]
        page = await fleet(api, limit=2)
        assert [it["name"] for it in page["items"]] == ["h0", "h1"]
        assert page["hosts"] == 5
        assert [it["name"] for it in (await fleet(api, limit=2, cursor=page["next"]))["items"]] == ["h2", "h3"]
        assert [it["name"] for it in (await fleet(api, labelSelector="zone=west,n notin (0,2)"))["items"]] == ["h4"]
        assert [it["name"] for it in (await fleet(api, schedule="ns/etc"))["items"]] == ["h1", "h3"]
        assert [it["name"] for it in (await fleet(api, state="incomplete"))["items"]] == ["h1"]
        assert [it["name"] for it in (await fleet(api, state="no_backup"))["items"]] == ["h0", "h2", "h4"]
        grouped = await fleet(api, group="zone", days=2)
        east, west = grouped["groups"]
        assert (east["value"], east["hosts"], west["value"], west["hosts"]) == ("east", 2, "west", 3)
        assert east["days"][-1] == {"succeeded": 0, "warned": 1, "failed": 0, "none": 1}
        assert {"zone", "n"} <= set(grouped["label_keys"])
    for wrong in ({"labelSelector": "a b"}, {"group": "-"}, {"days": 0}, {"state": "x"}):
        assert (await api.get("/fleet", params=wrong)).status_code == 400, wrong


async def test_a_namespace_learns_nothing_of_another_one(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, server: Running
) -> None:
    """Also where both have schedules on one host: what failed, what was left out, and on which other hosts."""
    await declare("etc")
    await api.put("/hosts/their-host", json={"labels": {"role": "db"}})
    body = {"spec": {"url": "/secret/{host}"}, "credentials": {"password": "open sesame"}}
    await api.put("/repositories/others/secret", json=body)
    spec = {"kind": "backup", "cron": "0 3 * * *", "backup": {"paths": ["/etc"]}}
    wanted = {"spec": {**spec, "repositoryRef": {"name": "secret"}}}
    theirs = (await api.put("/schedules/others/secret", json=wanted)).json()["metadata"]["uid"]
    await declare("etc", hostSelector={"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]})
    async with connect() as agent:
        await agent.follow()
        await agent.say("schedule.fire", schedule_id=theirs, scheduled_at=due(hour=3))
        job_id = (await agent.hears("command.run"))["job_id"]
        end: Any = {"status": "failed", "finished_at": due(hour=3), "bytes_added": 5, "error": "secret failure"}
        await agent.say("job.finished", job_id=job_id, **end)
        await agent.hears("job.confirmed")
        for path in ("/overview", "/fleet", "/fleet?group=zone"):
            everything = (await api.get(path)).text
            of_them = (await api.get(path, params={"namespace": "others"})).text
            ours = (await api.get(path, params={"namespace": "ns"})).text
            assert "secret" in everything + of_them or "fleet" in path
            assert not [it for it in ("secret", "others", "their-host") if it in ours], ours
        [host] = (await fleet(api, namespace="ns"))["items"]
        assert (host["name"], set(host["days"]), host["bytes_added"]) == ("node-1", {"none"}, 0)
        assert sum(it["failed"] + it["bytes_added"] for it in (await overview(api, namespace="ns"))["days"]) == 0
        assert sum(it["failed"] for it in (await overview(api, namespace="others"))["days"]) == 1
        [host] = (await fleet(api, schedule="ns/etc"))["items"]
        assert host["days"][-1] == "failed"
    nothing = await overview(api, namespace="nobody")
    assert nothing["sentence"] == "Nothing is backed up: no Schedule of kind backup is declared."


async def test_a_job_counts_once_on_the_day_that_it_ended_and_is_deleted_with_its_day(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, server: Running, clock: Clock
) -> None:
    """However many attempts it took, and however often its end is told; a restore or a list is none of them."""
    schedule = await declare(retry={"limit": 1, "backoffSeconds": 1})
    store = server.parts.services.store
    async with connect() as agent:
        await agent.follow()
        await fleet(api)  # from now on ends are added to the days that are known
        job_id = await end(agent, schedule, status="failed")
        clock.ahead += timedelta(seconds=2)
        assert (await agent.hears("command.run"))["job_id"] == f"{job_id}.2"
        again: Any = {
            "job_id": f"{job_id}.2",
            "status": "warning",
            "finished_at": clock().isoformat(),
            "bytes_added": 7,
        }
        for _ in range(2):
            await agent.say("job.finished", **again)
            await agent.hears("job.confirmed")
        [host] = (await fleet(api))["items"]
        assert (host["days"][-1], host["bytes_added"]) == ("warned", 7)
    rows = [(it.day, *it[1:]) for it in await store.read(by_day, clock().date(), "")]
    assert rows == [(clock().date(), 0, 1, 0, 7)]
    await history.delete(store, history.HistoryRetention(days=1), clock() + timedelta(days=1), pause_s=0)
    assert len(await store.read(by_day, clock().date(), "")) == 1
    await history.delete(store, history.HistoryRetention(days=1), clock() + timedelta(days=3), pause_s=0)
    assert await store.read(by_day, clock().date(), "") == []
    assert await store.read(hosts_of, clock().date()) == []
