"""Promises 1 to 4, as agents see them: the server pushes, answers fires and refuses strangers, over real sockets."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from httpx import AsyncClient
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from server.agents import hub
from server.app import Running
from server.gateway import endpoint
from server.resources import manifests as resources
from server.store import engine as stores
from server.store.declared import upsert_repositories, upsert_schedules
from server.store.engine import Store
from server.store.rows import RepositoryRow, ScheduleRow
from server.transport import connections
from tests.integration.clock import Clock, due
from tests.integration.conftest import PATIENCE_S, Agent, Connect, Declare, Until
from wire import variables

pytestmark = pytest.mark.anyio

DUE = due()
SECRET = {"password": "correct horse", "env": {"AWS_SECRET_ACCESS_KEY": "battery staple"}}


@pytest.fixture
def synced(api: AsyncClient, until: Until) -> Callable[..., Awaitable[Any]]:
    """Waits until REST shows that a host holds what it should."""

    async def synced(version: int, host: str = "node-1") -> Any:
        async def told() -> Any:
            it = (await api.get(f"/hosts/{host}")).json()
            return it if it["in_sync"] and it["applied_version"] == version else None

        return await until(told)

    return synced


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Holds the first frame that the server writes, from when it is about to be written until it is let go."""
    held, let_go, write = asyncio.Event(), asyncio.Event(), WebSocket.send_text

    async def send_text(socket: WebSocket, frame: str) -> None:
        if not held.is_set():
            held.set()
            await let_go.wait()
        await write(socket, frame)

    monkeypatch.setattr(WebSocket, "send_text", send_text)
    return held, let_go


async def jobs(api: AsyncClient, **filters: Any) -> Any:
    return (await api.get("/jobs", params=filters)).json()["items"]


async def job_ended(api: AsyncClient, until: Until, status: str) -> Any:
    async def ended() -> list[Any]:
        return [job for job in await jobs(api) if job["status"] == status]

    return (await until(ended))[0]


# What is pushed.


async def test_a_schedule_from_before_the_agent_is_pushed_on_hello_and_acked(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    schedule_id = await declare("etc", cron="*/5 * * * *")
    async with connect() as agent:
        await agent.follow()
        assert (agent.version, list(agent.entries)) == (1, [schedule_id])
        assert agent.entries[schedule_id]["cron"] == "*/5 * * * *"
        host = await synced(1)
        assert host["applied_digest"] == host["desired_digest"] == agent.digest


async def test_an_agent_from_before_the_schedule_gets_an_empty_set_and_then_a_diff(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    async with connect() as agent:
        push = await agent.follow()
        assert (push["version"], push["schedules"]) == (0, [])
        await synced(0)
        schedule_id = await declare()
        await agent.follow()
        assert (agent.version, list(agent.entries)) == (1, [schedule_id])
        await synced(1)


async def test_a_host_that_is_in_sync_is_pushed_nothing(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    await declare()
    async with connect() as agent:
        await agent.follow()
        await synced(1)
    async with connect(applied_version=1, digest=agent.digest) as again:
        again.version, again.entries = agent.version, agent.entries
        await again.hears("repo.credentials")  # its hello was heard
        await declare("home")
        await again.follow()
        assert again.told == ["repo.credentials", "schedule.diff"]
        await synced(2)


async def test_deleting_the_last_schedule_pushes_its_removal(
    api: AsyncClient, declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    schedule_id = await declare()
    async with connect() as agent:
        await agent.follow()
        await api.delete("/schedules/ns/etc")
        assert (await agent.follow())["remove"] == [schedule_id]
        assert (await synced(2))["applied_digest"] == "0" * 64


async def test_an_agent_that_cannot_apply_a_diff_gets_the_whole_set(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    await declare("etc")
    async with connect() as agent:
        await agent.follow()
        await declare("home")
        await agent.hears("schedule.diff")
        await agent.say("schedule.resync", have=0)
        push = await agent.follow()
        assert (push["version"], len(push["schedules"])) == (2, 2)
        await synced(2)


async def test_another_digest_is_answered_with_the_whole_set_once(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    await declare("etc")
    async with connect() as agent:
        await agent.follow(digest="f" * 64)
        assert len((await agent.follow(digest="e" * 64))["schedules"]) == 1
        await declare("home")  # the next change tries again
        assert len((await agent.follow())["upsert"]) == 1
        await synced(2)
    assert "host holds another set than it was sent" in caplog.text


async def test_a_slow_host_is_sent_what_it_missed_in_one_diff(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    async with connect() as agent:
        await agent.hears("schedule.set")
        for name in ("a", "b", "c"):
            await declare(name)
        await agent.say("schedule.ack", version=0, digest="0" * 64)
        assert len((await agent.follow())["upsert"]) == 3
        await synced(3)


@pytest.fixture
async def thousand(tmp_path: Path) -> None:
    """A data folder whose store holds a thousand schedules, for a server that is started after."""
    at, store = datetime(2026, 1, 1, tzinfo=UTC), Store.open(tmp_path / "lamplighter.db")
    spec = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}
    spec = resources.parse_schedule({"metadata": {"name": "any"}, "spec": spec}).raw_spec
    repository = {"url": "/backup", "init": False}
    await store.write(upsert_repositories, RepositoryRow("r", "ns", "main", {}, repository, 1, at, at))
    await asyncio.gather(
        *(
            store.write(upsert_schedules, ScheduleRow(f"id{n}", "ns", f"s{n}", {}, spec, 1, at, at, at))
            for n in range(1000)
        )
    )
    await store.close()


async def test_of_a_thousand_schedules_only_the_one_that_changed_crosses_the_wire(
    thousand: None, declare: Declare, connect: Connect
) -> None:
    async with connect() as agent:
        await agent.follow()
        await declare("s500", cron="*/7 * * * *")
        [changed] = (await agent.follow())["upsert"]
    whole, diff = map(len, agent.frames[-2:])
    assert (changed["id"], changed["cron"], len(agent.entries)) == ("id500", "*/7 * * * *", 1000)
    assert diff < 2 * len(json.dumps(changed)) < whole / 100


# The first push, and what happens while it is written.


async def test_the_first_push_is_written_before_others_can_find_the_connection(
    api: AsyncClient,
    gate: tuple[asyncio.Event, asyncio.Event],
    declare: Declare,
    connect: Connect,
    synced: Callable[..., Awaitable[Any]],
) -> None:
    held, let_go = gate
    async with connect() as agent:
        await held.wait()
        await declare("etc", credentials=SECRET)
        assert not (await api.get("/hosts/node-1")).json()["connected"]
        let_go.set()
        assert (await agent.follow())["version"] == 0
        assert (await agent.hears("repo.credentials"))["repositories"][0]["name"] == "ns/main"
        assert (await agent.follow())["version"] == 1
        assert (await synced(1))["connected"]


async def test_a_run_asked_for_while_the_first_push_is_written_is_sent(
    api: AsyncClient, gate: tuple[asyncio.Event, asyncio.Event], declare: Declare, connect: Connect
) -> None:
    held, let_go = gate
    await api.put("/hosts/node-1", json={"labels": {}})
    await declare()
    async with connect() as agent:
        await held.wait()
        [job] = (await api.post("/schedules/ns/etc/run")).json()["items"]
        let_go.set()
        await agent.follow()
        assert (await agent.hears("command.run"))["job_id"] == job["id"]


async def test_a_job_cancelled_while_the_first_push_is_written_is_not_begun(
    api: AsyncClient, gate: tuple[asyncio.Event, asyncio.Event], declare: Declare, connect: Connect
) -> None:
    held, let_go = gate
    await api.put("/hosts/node-1", json={"labels": {}})
    await declare()
    [job] = (await api.post("/schedules/ns/etc/run")).json()["items"]
    async with connect() as agent:
        await held.wait()
        assert (await api.post(f"/jobs/{job['id']}/cancel")).json()["status"] == "cancelled"
        let_go.set()
        await agent.follow()
        await agent.say("schedule.fire", "f", schedule_id=job["scheduled_id"], scheduled_at=DUE)
        assert (await agent.hears("command.run"))["job_id"] != job["id"]


async def test_a_host_deleted_while_the_first_push_is_written_calls_again(
    api: AsyncClient, gate: tuple[asyncio.Event, asyncio.Event], connect: Connect
) -> None:
    held, let_go = gate
    async with connect() as agent:
        await held.wait()
        assert (await api.delete("/hosts/node-1")).status_code == 204
        let_go.set()
        assert (await agent.closed())[0] == 4000
    async with connect() as again:
        await again.follow()
        assert (await api.get("/hosts/node-1")).status_code == 200


async def test_a_newer_connection_of_a_host_replaces_the_older(
    declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    async with connect() as old:
        await old.follow()
        async with connect() as new:
            await new.follow()
            assert (await old.closed())[0] == 4000
            await declare()
            await new.follow()
            await synced(1)


# Credentials.


async def test_a_host_is_told_the_credentials_that_its_schedules_need_and_no_others(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    await api.put("/hosts/node-1", json={"labels": {"role": "db"}})
    await declare("mine", "main", SECRET, hostSelector={"matchLabels": {"role": "db"}})
    await declare("theirs", "other", SECRET, hostSelector={"matchLabels": {"role": "web"}})
    async with connect() as agent:
        credentials = await agent.hears("repo.credentials")
    [repository] = credentials["repositories"]
    assert (repository["name"], repository["url"]) == ("ns/main", "/backup/node-1")
    assert {key: repository[key] for key in SECRET} == SECRET


async def test_credentials_come_before_the_set_that_needs_them_and_when_they_change(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    async with connect() as agent:
        await agent.follow()
        await declare("etc", credentials=SECRET)
        await agent.follow()
        await declare("home")  # the same repository: told already
        await agent.follow()
        assert agent.told == ["schedule.set", "repo.credentials", "schedule.diff", "schedule.diff"]
        body = {"spec": {"url": "/backup/{host}"}, "credentials": {"password": "another"}}
        assert (await api.put("/repositories/ns/main", json=body)).status_code == 200
        assert (await agent.hears("repo.credentials"))["repositories"][0]["password"] == "another"
        assert len((await agent.follow())["upsert"]) == 2


async def test_relabelling_a_host_tells_it_what_it_now_needs(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    await declare("etc", credentials=SECRET, hostSelector={"matchLabels": {"role": "db"}})
    async with connect() as agent:
        await agent.follow()
        await api.put("/hosts/node-1", json={"labels": {"role": "db"}})
        await agent.hears("repo.credentials")
        assert len((await agent.follow())["upsert"]) == 1


# Fires.


async def test_a_fire_is_answered_with_the_command_on_the_same_connection(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare("etc", timeoutSeconds=60, backup={"paths": ["/etc"], "tags": ["daily"]})
    async with connect() as agent, connect("node-2") as other:
        await agent.follow()
        await other.follow()
        await agent.say("schedule.fire", "fire-7", schedule_id=schedule_id, scheduled_at=DUE, missed=2)
        envelope = await agent.hear()
        [job] = await jobs(api)
        repository = (await api.get("/repositories/ns/main")).json()["metadata"]["uid"]
        assert envelope == {
            "type": "command.run",
            "id": "fire-7",
            "payload": {
                "job_id": job["id"],
                "kind": "backup",
                "args": [
                    *("backup", "--json", "--host=node-1", "--tag=lamplighter=ns/etc", "--tag=daily", "--", "/etc")
                ],
                "repository": repository,
                "timeout_s": 60,
                "schedule_id": schedule_id,
                "scheduled_at": DUE,
            },
        }
    told = [job[key] for key in ("host", "actor_kind", "actor_id", "scheduled_id", "missed", "status")]
    assert told == ["node-1", "schedule", "ns/etc", schedule_id, 2, "pending"]
    assert datetime.fromisoformat(job["scheduled_at"]) == datetime.fromisoformat(DUE)


async def test_fires_of_one_frame_are_answered_in_one_each_by_its_id(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    ids = [await declare(name) for name in ("a", "b")]
    async with connect() as agent:
        await agent.follow()
        fires = [
            {"type": "schedule.fire", "id": key, "payload": {"schedule_id": key, "scheduled_at": DUE}} for key in ids
        ]
        before = len(agent.frames)
        await agent.socket.send(json.dumps(fires))
        answers = [await agent.hear(), await agent.hear()]
        assert len(agent.frames) == before + 1
        assert [(it["id"], it["payload"]["schedule_id"]) for it in answers] == [(key, key) for key in ids]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hostSelector": {"matchLabels": {"role": "db"}}}, "NotThisHost"),
        ({"enabled": False}, "Disabled"),
        ({"startingDeadlineSeconds": 60}, "DeadlineExceeded"),
        ({"missedRunPolicy": "Skip"}, "Missed"),
    ],
)
async def test_a_fire_that_may_not_run_makes_no_job_and_is_refused_with_the_reason(
    api: AsyncClient, declare: Declare, connect: Connect, clock: Clock, spec: dict[str, Any], reason: str
) -> None:
    schedule_id = await declare(**spec)
    async with connect() as agent:
        await agent.follow()
        clock.reach(datetime.fromisoformat(DUE) + timedelta(minutes=2))
        await agent.say("schedule.fire", "f", schedule_id=schedule_id, scheduled_at=DUE, missed=1)
        refusal = await agent.hear()
    assert (refusal["type"], refusal["id"]) == ("schedule.refused", "f")
    assert (refusal["payload"]["schedule_id"], refusal["payload"]["reason"]) == (schedule_id, reason)
    assert "ns/etc" in refusal["payload"]["message"]
    assert await jobs(api) == []


async def test_a_fire_of_a_deleted_schedule_makes_no_job(api: AsyncClient, declare: Declare, connect: Connect) -> None:
    schedule_id = await declare()
    async with connect() as agent:
        await agent.hears("schedule.set")  # and never applied
        await api.delete("/schedules/ns/etc")
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)
        assert (await agent.hears("schedule.refused"))["reason"] == "NotFound"
    assert await jobs(api) == []


async def test_a_due_time_has_one_job_however_often_it_is_fired(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    schedule_id = await declare()
    fire = {"schedule_id": schedule_id, "scheduled_at": DUE}
    async with connect() as agent:
        await agent.follow()
        await agent.say("schedule.fire", **fire)
        await agent.hears("command.run")
        await agent.say("schedule.fire", **fire)
        assert (await agent.hears("schedule.refused"))["reason"] == "Duplicate"
        same = datetime.fromisoformat(DUE).astimezone(timezone(timedelta(hours=2)))
        await agent.say("schedule.fire", **fire | {"scheduled_at": same.isoformat()})
        assert (await agent.hears("schedule.refused"))["reason"] == "Duplicate"
    assert len(await jobs(api)) == 1


async def test_a_burst_of_fires_from_many_connections_shares_a_commit(
    server: Running, declare: Declare, connect: Connect, until: Until
) -> None:
    schedule_id, store = await declare(), server.parts.services.store
    commits, entered, let_go = [], threading.Event(), threading.Event()

    def hold(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        entered.set()
        assert let_go.wait(20)
        return [None] * len(items)

    def executed(conn: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        conn.info["records"] = conn.info.get("records", False) or statement.startswith("INSERT INTO jobs ")

    def committed(conn: sa.Connection) -> None:
        if conn.info.pop("records", False):  # the server writes for itself, too: it deletes old history, for example
            commits.append(conn)

    async def gathered() -> bool:
        return store.waiting >= 40

    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(connect(f"node-{n}")) for n in range(40)]
        for agent in agents:
            await agent.follow()
            await agent.say("schedule.resync", have=0)  # answered after the ack, whose commit is over by then
            await agent.hears("schedule.set")
        for event, noted in (("after_cursor_execute", executed), ("commit", committed)):
            sa.event.listen(sa.Engine, event, noted)
            stack.callback(sa.event.remove, sa.Engine, event, noted)
        stack.callback(let_go.set)
        held = asyncio.create_task(store.write(hold, None))
        await asyncio.to_thread(entered.wait)
        for agent in agents:
            await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)
        await until(gathered)
        let_go.set()
        await held
        for agent in agents:
            await agent.hears("command.run")
    assert len(commits) == 1  # for all


# Jobs.


@pytest.fixture
async def fired(declare: Declare, connect: Connect) -> AsyncIterator[tuple[Agent, Any]]:
    """An agent that was just told to run a job, and the job's id."""
    schedule_id = await declare()
    async with connect() as agent:
        await agent.follow()
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)
        yield agent, (await agent.hears("command.run"))["job_id"]


async def test_a_job_is_followed_from_accepted_to_its_confirmed_end(
    api: AsyncClient, fired: tuple[Agent, Any], until: Until
) -> None:
    agent, job_id = fired
    await agent.say("job.accepted", job_id=job_id)
    await agent.say("job.progress", job_id=job_id, fraction=0.5)
    await agent.say("job.log", job_id=job_id, lines=["one", "two"])
    await agent.say("job.log", job_id=job_id, lines=["three"])
    assert (await job_ended(api, until, "running"))["accepted_at"]
    end: dict[str, Any] = {
        "status": "succeeded",
        "finished_at": "2026-03-29T01:31:00Z",
        "snapshot_id": "abc",
        "bytes_added": 7,
    }
    await agent.say("job.finished", job_id=job_id, **end, exit_code=0)
    assert await agent.hears("job.confirmed") == {"job_id": job_id}
    job = (await api.get(f"/jobs/{job_id}")).json()
    assert [job[key] for key in ("status", "snapshot_id", "bytes_added", "exit_code")] == ["succeeded", "abc", 7, 0]
    log = (await api.get(f"/jobs/{job_id}/log")).json()["items"]
    assert [(it["seq"], it["line"]) for it in log] == [(1, "one"), (2, "two"), (3, "three")]


async def test_an_end_that_is_told_again_is_confirmed_again_and_the_first_counts(
    api: AsyncClient, fired: tuple[Agent, Any]
) -> None:
    agent, job_id = fired
    for status in ("failed", "succeeded"):
        await agent.say("job.finished", job_id=job_id, status=status, finished_at=DUE)
        await agent.hears("job.confirmed")
    assert (await api.get(f"/jobs/{job_id}")).json()["status"] == "failed"


async def test_a_job_that_was_not_accepted_is_sent_again_on_the_next_hello(
    connect: Connect, fired: tuple[Agent, Any]
) -> None:
    agent, job_id = fired
    await agent.socket.close()
    async with connect(applied_version=1, digest=agent.digest) as again:
        assert (await again.hears("command.run"))["job_id"] == job_id


async def test_a_job_that_the_agent_holds_is_not_sent_again(
    api: AsyncClient, connect: Connect, fired: tuple[Agent, Any], until: Until
) -> None:
    agent, job_id = fired
    await agent.socket.close()
    async with connect(applied_version=1, digest=agent.digest, running_jobs=[job_id]) as again:
        await job_ended(api, until, "running")
        await again.say("job.finished", job_id=job_id, status="warning", finished_at=DUE)
        assert (await again.hears("job.confirmed"))["job_id"] == job_id


async def test_a_job_that_the_agent_forgot_was_interrupted(
    api: AsyncClient, connect: Connect, fired: tuple[Agent, Any], until: Until
) -> None:
    agent, job_id = fired
    await agent.say("job.accepted", job_id=job_id)
    await job_ended(api, until, "running")
    await agent.socket.close()
    async with connect():
        job = await job_ended(api, until, "interrupted")
    assert (job["id"], "journal was lost" in job["error"]) == (job_id, True)


async def test_a_job_that_is_over_is_cancelled_at_an_agent_that_still_runs_it(connect: Connect) -> None:
    async with connect(running_jobs=["of-a-lost-database"]) as agent:
        await agent.follow()
        assert (await agent.hears("command.cancel"))["job_id"] == "of-a-lost-database"


async def test_run_now_reaches_a_host_at_once_or_at_its_next_hello(
    api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    await api.put("/hosts/node-2", json={"labels": {}})
    schedule_id = await declare()
    async with connect() as agent:
        await agent.follow()
        made = {it["host"]: it for it in (await api.post("/schedules/ns/etc/run")).json()["items"]}
        command = await agent.hears("command.run")
        assert (command["job_id"], command["schedule_id"]) == (made["node-1"]["id"], schedule_id)
        assert "scheduled_at" not in command
    async with connect("node-2") as late:
        await late.follow()
        assert (await late.hears("command.run"))["job_id"] == made["node-2"]["id"]


async def test_cancel_reaches_the_agent_which_tells_the_end(api: AsyncClient, fired: tuple[Agent, Any]) -> None:
    agent, job_id = fired
    assert (await api.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await agent.hears("command.cancel"))["job_id"] == job_id
    await agent.say("job.finished", job_id=job_id, status="cancelled", finished_at=DUE)
    await agent.hears("job.confirmed")
    assert (await api.get(f"/jobs/{job_id}")).json()["status"] == "cancelled"
    assert (await api.post(f"/jobs/{job_id}/cancel")).status_code == 409


async def test_a_job_of_a_host_that_is_offline_is_cancelled_at_once(
    api: AsyncClient, connect: Connect, fired: tuple[Agent, Any], until: Until
) -> None:
    agent, job_id = fired
    await agent.say("job.accepted", job_id=job_id)
    await job_ended(api, until, "running")
    await agent.socket.close()

    async def offline() -> bool:
        return not (await api.get("/hosts/node-1")).json()["connected"]

    await until(offline)
    assert (await api.post(f"/jobs/{job_id}/cancel")).json()["status"] == "cancelled"
    async with connect(applied_version=1, digest=agent.digest, running_jobs=[job_id]) as again:
        assert (await again.hears("command.cancel"))["job_id"] == job_id


# Who may speak, and how.


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic YTpi"])
async def test_a_handshake_without_an_agents_token_is_denied(server: Running, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with pytest.raises(InvalidStatus) as refused:
        await websocket(
            f"ws://127.0.0.1:{server.port}/agent",
            subprotocols=[Subprotocol("lamplighter.v1")],
            additional_headers=headers,
            proxy=None,
        )
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["www-authenticate"].startswith("Bearer")


async def test_a_users_token_is_not_an_agents(server: Running, connect: Connect) -> None:
    with pytest.raises(InvalidStatus, match="401"):
        async with connect(token=server.admin_token):
            pass


@pytest.mark.parametrize("offered", [(), ("lamplighter.v0", "chat")])
async def test_who_does_not_offer_the_subprotocol_is_denied_and_told_it(
    connect: Connect, offered: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(subprotocols=offered):
            pass
    assert refused.value.response.status_code == 400
    assert b"lamplighter.v1" in refused.value.response.body


def hello(host: str = "node-1", **said: str) -> dict[str, Any]:
    return {"type": "hello", "payload": {"host": host, **said}}


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ({"type": "schedule.ack", "payload": {"version": 0, "digest": ""}}, "the first frame must be one hello"),
        ([hello(), hello()], "the first frame must be one hello"),
        ({"type": "from.the.future"}, "the first frame must be one hello"),
        (hello("Not A Host"), "hello:"),
        ({"type": "hello"}, "hello:"),
    ],
)
async def test_what_is_not_a_hello_first_closes_the_connection_with_the_reason(
    api: AsyncClient, connect: Connect, first: dict[str, Any], reason: str
) -> None:
    async with connect(hello=False) as agent:
        await agent.socket.send(json.dumps(first))
        code, told = await agent.closed()
    assert told is not None
    assert (code, told[: len(reason)]) == (1007, reason)
    assert (await api.get("/hosts")).json()["items"] == []


async def test_a_hello_that_comes_late_is_not_awaited(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HELLO_S", 0)
    async with connect(hello=False) as agent:
        assert await agent.closed() == (1007, "no hello within 0 s")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        ("{", 1007, "frame: "),
        ("17", 1007, "frame: "),
        ("[]]", 1007, "frame: "),
        (nested(100_000), 1007, "frame: "),
        ('{"type": "schedule.ack", "payload": {"version": 1, "digest": "", "x": ' + nested(100_000) + "}}", 1007, ""),
        (b'{"type": "job.accepted", "payload": {"job_id": "1"}}', 1007, "binary frame"),
        ('"' + "x" * (1 << 20) + '"', 1009, ""),
        (json.dumps([{"type": "x"}] * 10_001), 1007, "frame of 10001 messages"),
        ('{"type": "schedule.ack", "payload": {"version": -1, "digest": ""}}', 1007, "schedule.ack: "),
        (json.dumps({"type": "job.log", "payload": {"job_id": "1", "lines": [0]}}), 1007, "job.log: "),
        (json.dumps({"type": "job.finished", "payload": {"status": "é" * 200}}), 1007, "job.finished: "),
        (json.dumps(hello()), 1007, "a second hello"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str | bytes) else None,
)
async def test_a_frame_that_breaks_the_protocol_closes_the_connection_with_the_reason(
    connect: Connect, frame: str | bytes, code: int, reason: str
) -> None:
    async with connect() as agent:
        await agent.follow()
        await agent.socket.send(frame)
        closed, told = await agent.closed()
    assert told is not None
    assert (closed, told[: len(reason)]) == (code, reason)


async def test_a_store_that_cannot_keep_up_has_agents_call_again(
    api: AsyncClient, declare: Declare, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire = {"schedule_id": await declare(), "scheduled_at": DUE}
    async with connect() as agent:
        await agent.follow()
        monkeypatch.setattr(stores, "MAX_WAITING", 0)
        await agent.say("schedule.fire", **fire)
        assert await agent.closed() == (1013, "the database cannot keep up: try again later")
    monkeypatch.undo()
    async with connect(applied_version=1, digest=agent.digest) as again:
        await again.say("schedule.fire", **fire)
        assert (await again.hears("command.run"))["job_id"] == (await jobs(api))[0]["id"]


@pytest.fixture
def pauses(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server calls of its connections' transports to stop reading, and to go on."""
    called: list[str] = []
    transport: Any = getattr(asyncio.selector_events, "_SelectorSocketTransport")  # noqa: B009 - a private name

    def noted(name: str) -> Callable[..., None]:
        act = getattr(transport, name)

        def note(self: Any) -> None:
            if self.get_extra_info("sockname")[1] == server.port:
                called.append(name)
            act(self)

        return note

    for name in ("pause_reading", "resume_reading"):
        monkeypatch.setattr(transport, name, noted(name))
    return called


async def refused(agent: Agent) -> None:
    """Have the server answer something that it does not store."""
    await agent.say("schedule.fire", schedule_id="unknown", scheduled_at=DUE)
    await agent.hears("schedule.refused")


async def welcomed(agent: Agent, pauses: list[str]) -> None:
    """Wait until the agent's hello is stored, and its frames are worked on as they come."""
    async with asyncio.timeout(PATIENCE_S):
        while pauses:
            pauses.clear()
            await refused(agent)


async def test_reading_goes_on_while_short_frames_come_and_are_stored(
    declare: Declare, connect: Connect, pauses: list[str]
) -> None:
    await declare()
    async with connect() as agent:
        await agent.follow()
        await welcomed(agent, pauses)
        for _ in range(10):  # acks may all be unstored at the end
            for _ in range(endpoint.MAX_UNSTORED // 2):
                await agent.say("schedule.fire", schedule_id="unknown", scheduled_at=DUE)
            await agent.say("schedule.ack", version=agent.version, digest=agent.digest)
            for _ in range(endpoint.MAX_UNSTORED // 2):
                await agent.hears("schedule.refused")
    assert [it for it in pauses if it == "pause_reading"] == []


async def test_reading_stops_while_much_of_what_a_host_said_is_not_stored(
    server: Running, declare: Declare, connect: Connect, until: Until, pauses: list[str]
) -> None:
    await declare()
    store, entered, let_go = server.parts.services.store, threading.Event(), threading.Event()

    def hold(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        entered.set()
        assert let_go.wait(20)
        return [None] * len(items)

    async def has_paused() -> bool:
        return pauses[-1:] == ["pause_reading"]

    async with connect() as agent:
        await agent.follow()
        await welcomed(agent, pauses)
        held = asyncio.create_task(store.write(hold, None))
        await asyncio.to_thread(entered.wait)
        try:
            for _ in range(3 * endpoint.MAX_UNSTORED):
                await agent.say("schedule.ack", version=agent.version, digest=agent.digest)
            await until(has_paused)
            assert store.waiting < 2 * endpoint.MAX_UNSTORED  # the server itself may write, too
        finally:
            let_go.set()
        await held
        await refused(agent)  # so all before it was read


async def test_what_came_while_the_server_stood_still_is_not_read_and_said_again(
    monkeypatch: pytest.MonkeyPatch, api: AsyncClient, declare: Declare, connect: Connect
) -> None:
    await declare()
    async with connect() as agent:
        await agent.follow()
        [schedule_id] = agent.entries
        monkeypatch.setattr(connections, "STALE_S", -1.0)  # whenever the last bytes came
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)
        with pytest.raises(ConnectionClosed):
            await agent.socket.recv()
    assert await jobs(api) == []
    monkeypatch.undo()
    async with connect() as agent:
        await agent.follow()
        assert await agent.fires(schedule_id, DUE) == (await jobs(api))[0]["id"]


async def test_what_is_not_known_is_tolerated(
    caplog: pytest.LogCaptureFixture, declare: Declare, connect: Connect, synced: Callable[..., Awaitable[Any]]
) -> None:
    caplog.set_level(logging.INFO)
    await declare()
    async with connect(colour="blue") as agent:
        await agent.socket.send('{"type": "from.the.future", "payload": {"a": [1]}, "trace": "t"}')
        await agent.follow()
        await synced(1)
    assert "messages of unknown type skipped" in caplog.text


async def test_an_agent_that_stops_reading_delays_nobody_and_is_given_up_at_the_bound(
    api: AsyncClient,
    declare: Declare,
    connect: Connect,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hub, "MAX_UNSENT", 1 << 20)
    large = dict.fromkeys(variables.ALLOWED, "x" * 4096)  # a fifth of a MiB, told anew at each change
    async with connect("slow") as slow, connect("node-1") as agent:
        await agent.follow()
        await slow.hears("schedule.set")
        slow.socket.transport.pause_reading()
        for change in range(60):
            await declare(credentials={"password": str(change), "env": large})
            assert (await agent.hears("repo.credentials"))["repositories"][0]["password"] == str(change)
            await agent.follow()

        async def given_up() -> bool:
            return not (await api.get("/hosts/slow")).json()["connected"]

        await until(given_up)
        slow.socket.transport.resume_reading()
        assert (await slow.closed())[0] == 1006
    assert "host reads too slowly" in caplog.text


JITTER = timedelta(milliseconds=20)
"""Between the clock of times and that of the loop, which a sign of life goes by."""


async def test_a_host_was_last_seen_when_anything_came_from_it_also_once_it_is_gone(
    connect: Connect, api: AsyncClient, until: Until
) -> None:
    async def last_seen() -> datetime:
        return datetime.fromisoformat((await api.get("/hosts/node-1")).json()["last_seen"])

    async def is_gone() -> bool:
        return not (await api.get("/hosts/node-1")).json()["connected"]

    async with connect() as agent:
        await agent.follow()
        await asyncio.sleep(2 * JITTER.total_seconds())
        begun = datetime.now(UTC)
        await (await agent.socket.ping())  # which any agent's library sends by itself, as it answers the server's

        async def is_later() -> bool:
            return await last_seen() > begun - JITTER

        await until(is_later)
        seen = await last_seen()
    await until(is_gone)

    async def is_stored() -> bool:
        return await last_seen() >= seen - JITTER

    await until(is_stored)
    assert await last_seen() < datetime.now(UTC)
