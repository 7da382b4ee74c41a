"""The pages of single things show what REST answers, and their forms do what REST does, for whom it lets."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from server.app import Running
from server.jobs.arguments import KINDS
from server.store.tables import ACTOR_KINDS, JOB_STATUSES
from tests.integration.clock import Clock, due
from tests.integration.conftest import PATIENCE_S, Connect, Declare, Until
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio


@pytest.fixture
async def visitor(server: Running, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which the administrator is signed in, as far as headers go.

    It is the minute before the first due time, since sessions end after some hours.
    """
    clock.reach(datetime.fromisoformat(due()) - timedelta(minutes=1))
    url = f"http://127.0.0.1:{server.port}"
    headers = {"sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS, follow_redirects=True
    ) as client:
        await client.post("/sign-in", data={"token": server.admin_token})
        yield client


async def seen(visitor: httpx.AsyncClient, path: str, status: int = 200) -> str:
    """What a page says, without markup."""
    answer = await visitor.get(path)
    assert answer.status_code == status, answer.text
    assert not re.search(r"<style|style=|<script(?![^>]* src=)|\son\w+=|javascript:", answer.text)
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())


async def send(visitor: httpx.AsyncClient, page: str, to: str, **fields: str) -> httpx.Response:
    """Send a form of a page."""
    token = re.search(r'name="form_token" value="([^"]+)"', (await visitor.get(page)).text)
    assert token
    return await visitor.post(to, data={"form_token": token[1], **fields})


async def test_a_copy_shows_both_its_repositories(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare
) -> None:
    (await api.put("/repositories/ns/far", json={"spec": {"url": "/far"}})).raise_for_status()
    await declare("copied", kind="copy", backup=None, copy={"fromRepositoryRef": {"name": "far"}})
    assert "Repository ns/main Copied from ns/far" in await seen(visitor, "/schedules/ns/copied")
    for name in ("main", "far"):
        assert "copied" in await seen(visitor, f"/repositories/ns/{name}")


async def test_a_host_shows_what_differs(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    await declare("etc")
    async with connect(agent_version="9.8.7", restic_version="0.17.3") as agent:
        await agent.follow()

        async def in_force() -> bool:
            return "Every schedule is in force" in await seen(visitor, "/hosts/node-1")

        await until(in_force)
        assert "connected" in await seen(visitor, "/hosts/node-1")
        found = await seen(visitor, "/hosts/node-1")
        assert "9.8.7" in found
        assert "restic 0.17.3" in found
    await declare("etc", cron="0 4 * * *")
    found = await seen(visitor, "/hosts/node-1")
    assert "to change ns/etc 0 4 * * * UTC 0 2 * * * UTC cron, what it runs" in found
    assert "offline" in found
    assert "there is no host" in await seen(visitor, "/hosts/nowhere", 404)


async def test_what_differs_is_shown_also_where_it_is_on_a_later_page_of_entries(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    for number in range(101):
        await declare(f"s{number:03}")
    async with connect() as agent:
        await agent.follow()

        async def in_force() -> bool:
            return "Every schedule is in force" in await seen(visitor, "/hosts/node-1")

        await until(in_force)
    await declare("s100", cron="0 4 * * *")
    found = await seen(visitor, "/hosts/node-1")
    assert "to change ns/s100 0 4 * * * UTC 0 2 * * * UTC cron, what it runs" in found
    differing, others = [
        (await api.get(f"/hosts/node-1/entries?in_force={it}&limit=200")).json() for it in ("false", "true")
    ]
    assert ([it["schedule"] for it in differing["items"]], len(others["items"])) == (["ns/s100"], 100)


async def test_a_schedule_shows_its_herd_and_runs_now(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc")
    for host in ("node-1", "node-2"):
        await api.put(f"/hosts/{host}", json={"labels": {}})
    found = await seen(visitor, "/schedules/ns/etc")
    assert "2 runs in 24 hours; at most 2 hosts in one minute, at 02:00 UTC" in found
    assert "All start at once: spec.spreadSeconds would spread them." in found
    assert "Run now on 2 hosts" in found
    answer = await send(visitor, "/schedules/ns/etc", "/schedules/ns/etc/run", host="node-2")
    assert answer.url.path.startswith("/jobs/")
    [job] = (await api.get("/jobs")).json()["items"]
    assert (job["host"], job["actor_kind"], job["id"] in str(answer.url)) == ("node-2", "user", True)
    answer = await send(visitor, "/schedules/ns/etc", "/schedules/ns/etc/run")
    assert (answer.url.path, answer.url.params["schedule"]) == ("/jobs", "ns/etc")


async def test_a_job_is_cancelled_and_run_again(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    uid = await declare("etc")
    async with connect() as agent:
        await agent.follow()
        job_id = await agent.fires(uid, due())
        await agent.say("job.accepted", job_id=job_id)
        await agent.say("job.log", job_id=job_id, lines=["<b>opening</b> the repository"])
        await agent.say("job.progress", job_id=job_id, fraction=0.5, bytes_done=1024, bytes_total=2048)
        await agent.say("schedule.resync", have=0)
        await agent.hears("schedule.set")  # so all of the above was heard
        page = f"/jobs/{job_id}"
        found = await seen(visitor, page)
        assert "by its schedule ns/etc , due" in found or "by its schedule ns/etc, due" in found
        assert "50 %: 1.0 KiB of 2.0 KiB" in found
        answer = await send(visitor, page, f"{page}/cancel")
        assert (answer.status_code, answer.url.path) == (200, page)
        assert (await agent.hears("command.cancel"))["job_id"] == job_id
        await agent.say("job.finished", job_id=job_id, status="cancelled", finished_at=due())
        await agent.hears("job.confirmed")
        assert "Run again on node-1" in await seen(visitor, page)
        again = await send(visitor, page, f"{page}/again")
        assert (await agent.hears("command.run"))["job_id"] == again.url.path.rpartition("/")[2] != job_id
    refused = await send(visitor, page, f"{page}/cancel")
    assert (refused.status_code, "has ended already" in refused.text) == (409, True)
    log = (await visitor.get(f"{page}/log")).text
    assert ("&lt;b&gt;opening" in log, "<b>opening" in log) == (True, False)


@pytest.mark.parametrize("path", ["/jobs/{}/cancel", "/jobs/{}/again", "/schedules/ns/etc/run"])
async def test_a_form_without_the_token_of_the_session_changes_nothing(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare, path: str
) -> None:
    await declare("etc")
    await api.put("/hosts/node-1", json={"labels": {}})
    job_id = (await api.post("/schedules/ns/etc/run")).json()["items"][0]["id"]
    before = (await api.get("/jobs")).json()["items"]
    assert (await visitor.post(path.format(job_id), data={"form_token": "a guess"})).status_code == 403
    assert (await api.get("/jobs")).json()["items"] == before


async def test_a_repository_shows_who_uses_it_and_who_waits(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc")
    found = await seen(visitor, "/repositories/ns/main")
    assert "/backup/{host}" in found
    assert "ns/etc" in found
    assert "Last verified never" in found
    assert "0 jobs wait for a slot" in found


async def test_snapshots_ask_for_the_host_and_say_who_could_answer(
    visitor: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc")
    assert "name the host" in await seen(visitor, "/snapshots/ns/main")
    assert "no host can read ns/main now" in await seen(visitor, "/snapshots/ns/main?host=node-1", 504)


async def test_a_file_is_found_and_its_restore_previewed_before_it_is_asked_for(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    await declare("etc")
    node = {"path": "/etc/<b>", "type": "file", "size": 2048, "mode": 0o644, "mtime": "2026-03-01T10:22:31.123456789Z"}
    folder = {"path": "/etc/ssh", "type": "dir", "mtime": "2026-03-01T10:22:31Z"}
    snapshot = {"id": "ab" * 32, "time": "2026-03-02T12:00:00Z", "hostname": "node-1", "paths": ["/etc"]}
    page = f"/snapshots/ns/main/{snapshot['id']}"
    form = {"source": "node-1", "target": "/srv/out", "path": "/etc/<b>"}
    async with connect() as agent:
        await agent.follow()

        async def answered(asking: Awaitable[httpx.Response], *items: dict[str, Any]) -> tuple[list[str], str]:
            """What the host was asked, and what the page then says."""
            task = asyncio.ensure_future(asking)
            command = await agent.hears("command.run")
            lines = [json.dumps(it) for it in items]
            await agent.say("job.log", job_id=command["job_id"], lines=lines)
            await agent.say("job.finished", job_id=command["job_id"], status="succeeded", finished_at=due())
            await agent.hears("job.confirmed")
            answer = await task
            assert answer.status_code == 200, answer.text
            return command["args"], answer.text

        _, text = await answered(visitor.get("/snapshots/ns/main?host=node-1"), snapshot)
        assert f'href="{page}?host=node-1"' in text
        _, text = await answered(visitor.get(f"{page}?host=node-1&path=/etc"), folder, node)
        assert f'href="{page}?host=node-1&amp;path=%2Fetc%2Fssh"' in text
        assert ("2.0 KiB" in text, "/etc/<b>" in text) == (True, False)
        args, text = await answered(visitor.get(f"{page}?host=node-1&name=b"), node)
        assert (args[0], "/etc/&lt;b&gt;" in text) == ("find", True)
        token = re.search(r'name="form_token" value="([^"]+)"', text)
        assert token
        asking = visitor.post(f"{page}/preview", data={"form_token": token[1], **form})
        args, text = await answered(asking, node)
        assert ("--recursive" in args, "/srv/out/etc/&lt;b&gt;" in text) == (True, True)
        id_ = re.search(r'name="id" value="([0-9a-f]+)"', text)
        assert id_
        sent = {"form_token": token[1], "id": id_[1], **form}
        first, second = [await visitor.post(f"{page}/restore", data=sent) for _ in range(2)]
        restore = (await agent.hears("command.run"))["restore"]
        assert (restore["target"], restore["paths"], restore["snapshot"]) == ("/srv/out", ["/etc/<b>"], snapshot["id"])
        assert first.url == second.url
        wrong = await visitor.post(f"{page}/preview", data={**sent, "target": "here"})
        assert (wrong.status_code, "spec.target" in wrong.text) == (422, True)


async def test_jobs_are_filtered_and_what_cannot_be_is_said(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc")
    await api.put("/hosts/node-1", json={"labels": {}})
    await api.post("/schedules/ns/etc/run")
    assert "node-1" in await seen(visitor, "/jobs?host=node-1&status=pending")
    assert "There is no such job" in await seen(visitor, "/jobs?status=failed")
    assert "There is no such job" in await seen(visitor, "/jobs?namespace=another")
    assert "must be one of" in await seen(visitor, "/jobs?status=odd", 400)
    offered = set(re.findall(r"<option[^>]*>([^<]*)", (await visitor.get("/jobs")).text))
    assert offered == {"any", "restore", *KINDS, *JOB_STATUSES, *ACTOR_KINDS}


async def test_the_audit_trail_and_the_problems_are_shown(
    visitor: httpx.AsyncClient, api: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc")
    found = await seen(visitor, "/audit?object_kind=Schedule")
    assert ("create Schedule ns/etc" in found, "Repository ns/main" in found) == (True, False)
    assert "there is no host" in (await seen(visitor, "/problems")).lower()
    assert "Schedule ns/etc" in await seen(visitor, "/problems")
