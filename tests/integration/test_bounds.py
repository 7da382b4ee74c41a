"""Promise 9, over real sockets: what one host says and how often it connects costs others nothing."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.app import Running
from server.gateway import endpoint
from server.gateway.buckets import Buckets
from server.jobs import reports
from server.jobs.reports import PROGRESS
from server.store import logs
from server.store.jobs import jobs_retried, record_jobs
from server.store.logs import log_lines
from server.store.rows import JobRow, Retry
from tests.integration.clock import Clock, due
from tests.integration.conftest import Agent, Connect, Declare, Until
from wire.messages import CommandRun, JobFinished

pytestmark = pytest.mark.anyio


async def test_a_host_that_connects_too_often_is_told_to_try_again_and_others_are_not(
    connect: Connect, until: Until
) -> None:
    async def comes_in(host: str) -> Any:
        async with connect(host) as agent:
            try:
                return (await agent.hear())["type"]
            except ConnectionClosed as closed:
                return closed.rcvd

    found: list[Any] = []
    while not found or found[-1] == "schedule.set":
        found.append(await comes_in("node-1"))
        assert len(found) < 100 * endpoint.HELLO_BURST
    assert len(found) > endpoint.HELLO_BURST
    assert (found[-1].code, "connects too often: try again in" in found[-1].reason) == (endpoint.BUSY, True)
    assert await comes_in("node-2") == "schedule.set"

    async def again() -> Any:
        return await comes_in("node-1") == "schedule.set"

    await until(again)


async def test_a_host_of_many_open_jobs_may_connect_less_often(connect: Connect, server: Running) -> None:
    tomorrow = datetime.fromisoformat(due())
    command = msgspec.json.encode(CommandRun("", "backup", [], "main")).decode()
    row = JobRow("", "node-1", "backup", "user", "admin", None, None, 0, command, tomorrow)
    open_jobs = [row._replace(id=f"job{at}") for at in range(10_000)]
    store = server.parts.services.store
    await store.write(record_jobs, open_jobs)
    failed = [Retry(JobFinished(job.id, "failed", tomorrow), 1, tomorrow) for job in open_jobs]
    await store.write(jobs_retried, failed)

    async def comes_in_often() -> None:
        for _ in range(int(endpoint.HELLO_BURST / 2)):
            async with connect("node-1") as agent:
                await agent.hears("schedule.set")

    with pytest.raises(ConnectionClosed, match="connects too often"):
        await comes_in_often()


async def test_a_host_that_asks_for_its_set_again_and_again_gets_it_once(connect: Connect, declare: Declare) -> None:
    await declare()
    async with connect() as agent:
        await agent.follow()
        for _ in range(2):
            await agent.socket.send(json.dumps([{"type": "schedule.resync", "payload": {"have": 0}}] * 500))
        await agent.say("schedule.fire", schedule_id="0" * 32, scheduled_at=due())
        await agent.hears("schedule.set")
        await agent.hears("schedule.refused")


async def test_a_host_that_says_too_much_is_heard_later_and_others_at_once(connect: Connect, declare: Declare) -> None:
    schedule_id = await declare()
    progress = {"type": "job.progress", "payload": {"job_id": "x", "fraction": 0.5}}
    frame = json.dumps([progress] * 10_000)
    async with connect("node-1") as loud, connect("node-2") as other:
        await loud.follow()
        await other.follow()
        for _ in range(3):
            await loud.socket.send(frame)
        await loud.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due())
        later = asyncio.create_task(loud.hears("command.run"))
        await other.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due())
        await other.hears("command.run")
        assert not later.done()
        await later  # nothing of what it said is lost


async def running(agent: Agent, schedule_id: str) -> Any:
    await agent.follow()
    await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due())
    job_id = (await agent.hears("command.run"))["job_id"]
    await agent.say("job.accepted", job_id=job_id)
    return job_id


async def answered(agent: Agent) -> None:
    """Once what it said before was heard."""
    await agent.say("schedule.fire", schedule_id="none", scheduled_at=due())
    await agent.hears("schedule.refused")


async def test_a_full_log_costs_no_statement_for_what_is_not_kept(
    connect: Connect, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(conn: Connection, items: Sequence[Any]) -> list[bool]:
        calls.append(items)
        return log_lines(conn, items)

    monkeypatch.setattr(reports, "log_lines", counted)
    monkeypatch.setattr(logs, "MAX_LOG_LINES", 20)
    schedule_id = await declare()
    async with connect() as agent:
        job_id = await running(agent, schedule_id)
        for _ in range(50):
            await agent.say("job.log", job_id=job_id, lines=["x"] * 10)
        await answered(agent)
    assert len(calls) == 2


async def test_progress_that_comes_too_often_is_not_looked_at(
    connect: Connect, declare: Declare, server: Running, clock: Clock
) -> None:
    schedule_id = await declare()
    async with connect() as agent:
        job_id = await running(agent, schedule_id)
        frame = [
            {"type": "job.progress", "payload": {"job_id": job_id, "fraction": at / 1000}} for at in range(1, 1000)
        ]
        await agent.socket.send(json.dumps(frame))
        await answered(agent)
        attempt = server.parts.active.get(job_id)
        assert attempt is not None
        first = attempt.progress
        clock.reach(clock() + 2 * PROGRESS)
        await agent.say("job.progress", job_id=job_id, fraction=1)
        await answered(agent)
        second = attempt.progress
        assert first is not None
        assert second is not None
        assert (first.fraction, second.fraction) == (0.001, 1)


async def test_the_loop_is_free_between_the_schedules_of_a_list(server: Running, declare: Declare) -> None:
    for at in range(20):
        await declare(f"s{at}")
    turns, services = 0, server.parts.services

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    meanwhile = asyncio.create_task(others())
    await services.coverage.schedules([row.id for row in server.parts.catalog.schedules.values()])
    meanwhile.cancel()
    assert turns >= 19


async def test_agents_that_come_faster_than_a_server_answers_are_told_to_come_later(
    server: Running, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Buckets(0.001, 2)
    monkeypatch.setattr(server.parts.gateway, "_arrivals", few)
    async with connect("a"), connect("b"):
        with pytest.raises(InvalidStatus) as denied:
            async with connect("c"):
                pass
    answer = denied.value.response
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    few.use("", -1, asyncio.get_running_loop().time())
    async with connect("c") as agent:
        assert (await agent.hear())["type"] == "schedule.set"
