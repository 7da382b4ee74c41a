"""What people look at of hosts, schedules and repositories is answered by REST, as it is at that moment."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.clock import Clock, due
from tests.integration.conftest import SQLITE, Connect, Declare, Until

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("database", [SQLITE, "postgresql"], indirect=True)


async def read(api: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await api.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def states(api: httpx.AsyncClient) -> dict[str, str]:
    return {it["schedule"]: it["state"] for it in (await read(api, "/hosts/node-1/entries"))["items"]}


async def test_the_due_times_of_a_schedule_are_told_with_the_hosts_that_are_due(
    api: httpx.AsyncClient, declare: Declare, clock: Clock
) -> None:
    clock.reach(datetime.fromisoformat(due()) - timedelta(hours=2))  # not between the first and the last host's time
    await declare("etc", cron="0 2 * * *", spreadSeconds=1800)
    for number in range(30):
        await api.put(f"/hosts/web-{number}", json={"labels": {}})
    asked = clock()
    found = await read(api, "/schedules/ns/etc/due")
    begin, end = (datetime.fromisoformat(found[name]) for name in ("begin", "end"))
    assert (end - begin, begin.second, begin.microsecond) == (timedelta(hours=24), 0, 0)
    assert asked <= begin < asked + timedelta(minutes=2)  # a minute that has begun tells what is over
    assert found["hosts"] == 30
    assert [it[11:16] for it in found["times"]] == ["02:00"]
    assert sum(it["hosts"] for it in found["minutes"]) == 30
    assert {it["at"][11:13] for it in found["minutes"]} == {"02"}
    assert found["most"]["hosts"] == max(it["hosts"] for it in found["minutes"])
    assert len((await read(api, "/schedules/ns/etc/due", hours=48))["times"]) == 2


async def test_nothing_is_due_of_a_disabled_schedule(api: httpx.AsyncClient, declare: Declare) -> None:
    await declare("etc", enabled=False)
    found = await read(api, "/schedules/ns/etc/due")
    assert (found["times"], found["minutes"], found["most"]) == ([], [], None)


@pytest.mark.parametrize("hours", ["0", "49", "one", "1.5"])
async def test_hours_are_bounded(api: httpx.AsyncClient, declare: Declare, hours: str) -> None:
    await declare("etc")
    answer = await api.get("/schedules/ns/etc/due", params={"hours": hours})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "hours")


async def test_what_differs_on_a_host_is_told_entry_by_entry(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    for name in ("etc", "home", "old"):
        await declare(name)
    assert await states(api) == {"ns/etc": "ToAdd", "ns/home": "ToAdd", "ns/old": "ToAdd"}
    async with connect() as agent:
        await agent.follow()

        async def in_force() -> bool:
            return set((await states(api)).values()) == {"InForce"}

        await until(in_force)
    await declare("home", cron="0 3 * * *")
    await declare("new")
    await api.delete("/schedules/ns/old")
    assert await states(api) == {"ns/etc": "InForce", "ns/home": "ToChange", "ns/new": "ToAdd", "ns/old": "ToRemove"}
    by_name = {it["schedule"]: it for it in (await read(api, "/hosts/node-1/entries"))["items"]}
    home = by_name["ns/home"]
    assert (home["desired"]["cron"], home["applied"]["cron"]) == ("0 3 * * *", "0 2 * * *")
    assert "cron" in home["differs"]
    assert (home["kind"], home["nextDue"][11:19]) == ("backup", "03:00:00")
    assert by_name["ns/old"]["desired"] is None


async def test_entries_are_paged_by_name(api: httpx.AsyncClient, declare: Declare) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    for name in ("c", "a", "b"):
        await declare(name)
    first = await read(api, "/hosts/node-1/entries", limit=2)
    rest = await read(api, "/hosts/node-1/entries", limit=2, cursor=first["next"])
    assert [it["schedule"] for it in (*first["items"], *rest["items"])] == ["ns/a", "ns/b", "ns/c"]
    assert rest["next"] is None
    assert (await api.get("/hosts/nowhere/entries")).status_code == 404


async def test_a_left_out_entry_and_the_last_run_are_told(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    uid = await declare("etc")
    async with connect() as agent:
        await agent.follow()
        job_id = await agent.fires(uid, due())
        failed = {"status": "failed", "error": "the disk is full", "finished_at": due()}
        await agent.say("job.finished", job_id=job_id, **failed)
        await agent.hears("job.confirmed")
        left_out = [{"schedule_id": uid, "reason": "its zone is unknown"}]
        await agent.say("schedule.ack", version=agent.version, digest=agent.digest, left_out=left_out)

        async def told() -> bool:
            return await states(api) == {"ns/etc": "LeftOut"}

        await until(told)
        entry = (await read(api, "/hosts/node-1/entries"))["items"][0]
    assert entry["reason"] == "its zone is unknown"
    assert (entry["lastRun"]["status"], entry["lastRun"]["why"]) == ("failed", "failed: the disk is full")
    assert entry["lastRun"]["succeededAt"] is None
    job = await read(api, f"/jobs/{job_id}")
    assert (job["schedule"], job["repository"]) == ("ns/etc", "ns/main")


@BOTH
async def test_a_lane_tells_who_has_a_slot_and_who_waits(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    await api.put("/repositories/ns/main", json={"spec": {"url": "/backup", "init": False, "maxConcurrentJobs": 1}})
    uid = await declare("etc", concurrencyPolicy="Allow")
    async with connect() as agent:
        await agent.follow()
        ids = []
        for days in range(3):
            await agent.say("schedule.fire", schedule_id=uid, scheduled_at=due(days))
            ids.append((await agent.hear())["payload"].get("job_id"))
        lane = await read(api, "/repositories/ns/main/lane")
    assert (lane["limit"], lane["per_host"], lane["waits"]) == (1, False, 2)
    assert [it["id"] for it in lane["running"]] == ids[:1]
    assert [it["waits_for"] for it in lane["waiting"]] == [
        "1 job before it in repository ns/main",
        "2 jobs before it in repository ns/main",
    ]


async def test_the_schedules_that_use_a_repository_are_listed_by_name(api: httpx.AsyncClient, declare: Declare) -> None:
    for name, repository in (("c", "main"), ("a", "main"), ("b", "other"), ("d", "main")):
        await declare(name, repository)
    first = await read(api, "/repositories/ns/main/schedules", limit=2)
    rest = await read(api, "/repositories/ns/main/schedules", limit=2, cursor=first["next"])
    assert [it["metadata"]["name"] for it in (*first["items"], *rest["items"])] == ["a", "c", "d"]
    assert rest["next"] is None


@BOTH
async def test_the_days_of_a_schedule_and_of_its_repository_are_counted_as_jobs_end(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, clock: Clock
) -> None:
    first, second = await declare("etc"), await declare("home")
    proof = {"kind": "verify", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}}
    third = (await api.put("/schedules/ns/proof", json={"spec": proof})).json()["metadata"]["uid"]
    good = {"status": "succeeded", "snapshot_id": "ab" * 4, "bytes_processed": 500, "bytes_added": 100}
    async with connect() as agent:
        await agent.follow()
        bad = {"status": "failed"}
        ends: list[tuple[str, dict[str, Any]]] = [
            (first, good),
            (first, good),
            (first, bad),
            (second, good),
            (third, good),
        ]
        for days, (uid, end) in enumerate(ends):
            job_id = await agent.fires(uid, due(days))
            clock.reach(datetime.fromisoformat(due(days, minute=1)))
            times = {"started_at": due(days), "finished_at": due(days, minute=1)}
            await agent.say("job.finished", job_id=job_id, **times, **end)
            await agent.hears("job.confirmed")
    days_of_schedule = (await read(api, "/schedules/ns/etc/history"))["items"]
    assert [it["day"] for it in days_of_schedule] == [due(days)[:10] for days in range(3)]
    seconds, longest = (days_of_schedule[0].pop(name) for name in ("seconds", "longest"))
    assert 50 <= seconds == longest <= 60
    expected = {"day": due()[:10], "succeeded": 1, "warned": 0, "failed": 0, "backups": 1}
    assert days_of_schedule[0] == {**expected, "bytes_processed": 500, "bytes_added": 100}
    assert (days_of_schedule[2]["failed"], days_of_schedule[2]["backups"]) == (1, 0)
    of_repository = (await read(api, "/repositories/ns/main/history", days=3))["items"]
    assert [(it["day"], it["backups"], it["bytes_added"]) for it in of_repository] == [
        (due(2)[:10], 0, 0),
        (due(3)[:10], 1, 100),
        (due(4)[:10], 0, 100),
    ]
    assert (await api.get("/schedules/ns/etc/history?days=91")).status_code == 400


async def test_the_last_lines_of_a_log_are_read_in_order(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    uid = await declare("etc")
    async with connect() as agent:
        await agent.follow()
        job_id = await agent.fires(uid, due())
        await agent.say("job.log", job_id=job_id, lines=["one", "two", "three"])

        async def lines() -> list[str]:
            return [it["line"] for it in (await read(api, f"/jobs/{job_id}/log", last=2))["items"]]

        assert await until(lines) == ["two", "three"]
