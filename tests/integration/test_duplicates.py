"""Of two agents with one name the first stays connected while it answers, and the second gets in once it does not."""

import asyncio
import logging
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import InvalidStatus

from agent.journal import Journal
from agent.link import Dialler, Link
from agent.restic.reporter import Report
from agent.service import Config, Service
from server.agents import hub
from server.app import Running
from server.gateway import endpoint
from tests.faults.link import Link as Proxy
from tests.integration.conftest import Connect, Declare, Until
from wire.messages import CommandRun, JobEnd, JobFinished, JobReason, Repository

pytestmark = pytest.mark.anyio


class Idle:
    """Runs commands that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.over = asyncio.Event()

    async def run(
        self, command: CommandRun, repository: Repository | None, report: Report, source: Repository | None
    ) -> JobFinished:
        self.begun.append(command.job_id)
        await self.over.wait()
        return JobFinished(command.job_id, "succeeded", datetime.now(UTC))

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        self.over.set()


@asynccontextmanager
async def agent(server: Running, folder: Path, jobs: Idle | None = None) -> AsyncIterator[Service]:
    """An agent of node-1 with a journal of its own."""
    journal, memory = Journal.open(folder / "journal.jsonl")
    config = Config("node-1", f"ws://127.0.0.1:{server.port}/agent", server.agent_token)
    service = Service(config, journal, memory, jobs or Idle(), rng=random.Random(1))
    running = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        await service.stop()
        await running


@pytest.fixture
def host(api: AsyncClient) -> Callable[..., Awaitable[Any]]:
    async def host() -> Any:
        return (await api.get("/hosts/node-1")).json()

    return host


async def test_a_second_agent_is_refused_while_the_first_answers_and_no_job_is_lost(
    server: Running,
    api: AsyncClient,
    declare: Declare,
    until: Until,
    host: Callable[..., Awaitable[Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    await declare()
    first, second = Idle(), Idle()
    async with agent(server, tmp_path / "first", first) as one:

        async def in_sync() -> Any:
            return one.core.connected and (await host())["in_sync"]

        await until(in_sync)
        [job] = (await api.post("/schedules/ns/etc/run", json={})).json()["items"]

        async def begun() -> list[Any]:
            return first.begun

        await until(begun)
        async with agent(server, tmp_path / "second", second):

            async def told() -> list[Any]:
                return [it["reason"] for it in (await host())["problems"]]

            assert await until(told) == ["DuplicateAgent"]
            assert one.core.connected
            assert second.begun == []
            first.over.set()

            async def ended() -> Any:
                it = (await api.get(f"/jobs/{job['id']}")).json()
                return it["status"] if it["finished_at"] else None

            assert await until(ended) == "succeeded"
    refusals = [record for record in caplog.records if "second agent" in record.message]
    assert refusals
    assert {vars(record)["claims"] for record in refusals} == {"node-1"}


async def test_a_process_that_connects_anew_replaces_its_old_connection_at_once(
    connect: Connect, until: Until, host: Callable[..., Awaitable[Any]]
) -> None:
    async with connect(instance="one") as old:
        await old.hears("schedule.set")
        async with connect(instance="one") as new:
            await new.hears("schedule.set")
            assert (await old.closed())[0] == endpoint.REPLACED
            assert (await host())["problems"] == []


async def test_a_second_process_is_told_why_it_is_refused(connect: Connect) -> None:
    async with connect(instance="one") as first:
        await first.hears("schedule.set")
        async with connect(instance="two") as second:
            code, reason = await second.closed()
            assert reason is not None
            assert (code, "another agent of this host" in reason) == (endpoint.DUPLICATE, True)


async def test_a_new_process_gets_in_as_soon_as_the_old_one_answers_no_more(
    server: Running, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a machine lost its power, or its network: nothing says that the connection is over."""
    monkeypatch.setattr(hub, "PROBE_S", 0.2)
    async with Proxy(server.port) as proxy, connect(instance="old", to=proxy) as old:
        await old.hears("schedule.set")
        proxy.stall()
        async with connect(instance="new") as new:
            await new.hears("schedule.set")
        proxy.flow()


async def test_a_new_process_gets_in_at_once_after_the_old_one_was_killed(
    server: Running, connect: Connect, until: Until, tmp_path: Path
) -> None:
    script = tmp_path / "agent.py"
    script.write_text(_OLD.format(port=server.port, token=server.agent_token))
    old = await asyncio.create_subprocess_exec(sys.executable, script, stdout=asyncio.subprocess.PIPE)
    assert old.stdout is not None
    assert await old.stdout.readline() == b"connected\n"
    old.send_signal(signal.SIGKILL)
    await old.wait()
    async with connect(instance="new") as new:
        await new.hears("schedule.set")


_OLD = """
import asyncio, json
from websockets.asyncio.client import connect
async def main():
    headers = {{"authorization": "Bearer {token}"}}
    url = "ws://127.0.0.1:{port}/agent"
    async with connect(url, subprotocols=["lamplighter.v1"], additional_headers=headers, proxy=None) as socket:
        await socket.send(json.dumps({{"type": "hello", "payload": {{"host": "node-1", "instance": "old"}}}}))
        await socket.recv()
        print("connected", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_that_there_were_two_is_told_for_a_while_only(
    server: Running, connect: Connect, host: Callable[..., Awaitable[Any]]
) -> None:
    async with connect(instance="one") as first:
        await first.hears("schedule.set")
        async with connect(instance="two") as second:
            await second.closed()
        known = server.parts.services.hub.session("node-1")
        assert [it["reason"] for it in (await host())["problems"]] == ["DuplicateAgent"]
        assert known is not None
        assert known.duplicate_at is not None
        known.duplicate_at -= timedelta(minutes=4)
        assert (await host())["problems"] == []


class Refused:
    """Who listens to a link that is refused."""

    def connected(self) -> None:
        raise AssertionError

    def received(self, messages: Any) -> None:
        raise AssertionError

    def disconnected(self) -> None:
        raise AssertionError


async def test_an_agent_that_is_refused_is_logged_by_the_name_that_it_claims(
    server: Running, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"ws://127.0.0.1:{server.port}/agent"
    task = asyncio.create_task(Link(Dialler(url, "wrong", host="db-1"), Refused(), random.Random(1)).run())

    async def refused() -> list[Any]:
        return [record for record in caplog.records if record.message == "agent refused"]

    [record, *_] = await until(refused)
    assert (vars(record)["claims"], record.address) == ("db-1", "127.0.0.1")
    assert record.levelno == logging.WARNING
    task.cancel()


@pytest.mark.parametrize("claims", ["Not_A_Name", "a" * 300, "db-1 and more", "db-1\tx"])
async def test_a_claim_that_is_no_name_is_not_repeated(
    server: Running, claims: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus):
        await websocket(
            f"ws://127.0.0.1:{server.port}/agent", additional_headers={"Lamplighter-Host": claims}, proxy=None
        )
    [record] = [record for record in caplog.records if record.message == "agent refused"]
    assert vars(record)["claims"] == "an invalid name"
