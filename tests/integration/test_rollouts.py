"""A Schedule that fails on too many hosts pauses for real: agents and restic, the store, REST, people who resume it."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.operations import OPERATIONS
from server.app import Running
from server.store import rollouts
from tests.integration.clock import Clock
from tests.integration.conftest import Agent, Connect, Declare, Until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LAMPLIGHTER = (sys.executable, "-c", "from cli.main import main; main()")
HOSTS = ("a", "b", "c")
GOES_WELL = """#!/bin/sh
test ! -e {0}/broken
"""


@asynccontextmanager
async def agents(server: Running, folder: Path, hook: Path) -> AsyncIterator[None]:
    """An agent as a process of its own for each host."""
    (folder / "token").write_text(server.agent_token)
    where = ("--server", f"http://127.0.0.1:{server.port}", "--token-file", folder / "token", "--allow-hook", hook)
    async with AsyncExitStack() as stack:
        for host in HOSTS:
            its = (*where, "--data-dir", folder / f"agent-{host}", "--host", host)
            process = await asyncio.create_subprocess_exec(*LAMPLIGHTER, "agent", *map(str, its), cwd=ROOT)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        yield


async def test_a_rollout_pauses_at_hosts_that_fail_and_goes_on_once_it_is_resumed(
    server: Running, api: httpx.AsyncClient, declare: Declare, until: Until, tmp_path: Path
) -> None:
    async def jobs() -> dict[str, str]:
        return {
            it["host"]: it["status"] for it in (await api.get("/jobs", params={"schedule": "ns/etc"})).json()["items"]
        }

    async def schedule() -> dict[str, Any]:
        return (await api.get("/schedules/ns/etc")).json()["status"]  # type: ignore[no-any-return]

    def becomes(**wanted: Any) -> Callable[[], Awaitable[bool]]:
        async def is_so() -> bool:
            found = await schedule()
            return all(found.get(name) == value for name, value in wanted.items())

        return is_so

    async def counts() -> list[str]:
        return sorted((await jobs()).values())

    hook, source = tmp_path / "hook", tmp_path / "source"
    hook.write_text(GOES_WELL.format(tmp_path))
    hook.chmod(0o755)
    source.mkdir()
    (source / "file").write_text("data")
    (tmp_path / "broken").touch()
    there = {"spec": {"url": str(tmp_path / "repository"), "init": True}, "credentials": {"password": "secret"}}
    (await api.put("/repositories/ns/main", json=there)).raise_for_status()
    rollout = {"maxConcurrentHosts": 1, "failurePolicy": "Pause", "maxFailures": 1}
    await declare(backup={"paths": [str(source)]}, hooks={"before": [str(hook)]}, rollout=rollout)
    async with agents(server, tmp_path, hook):
        await until(becomes(hosts=3, hostsInSync=3))
        (await api.post("/schedules/ns/etc/run")).raise_for_status()

        async def is_paused() -> bool:
            return (await schedule())["paused"] is not None

        await until(is_paused)
        assert await counts() == ["failed", "failed", "pending"]
        found = await schedule()
        assert (found["paused"]["failed"], found["hostsFailed"]) == (2, 2)
        assert set(found["paused"]["hosts"]) == {host for host, status in (await jobs()).items() if status == "failed"}
        assert [it["reason"] for it in found["problems"]] == ["Paused", "RunsFail"]
        (waiting,) = (await api.get("/jobs", params={"status": "pending"})).json()["items"]
        assert waiting["waits_for"].startswith("its Schedule to be resumed")
        overview = (await api.get("/overview")).json()
        (section,) = (it for it in overview["sections"] if it["name"] == "failed")
        assert "Paused" in {it["reason"] for it in section["items"]}

        (tmp_path / "broken").unlink()
        (tmp_path / "admin").write_text(server.admin_token)
        access = ("--server", f"http://127.0.0.1:{server.port}", "--token-file", str(tmp_path / "admin"))

        async def resume() -> str:
            command = (*LAMPLIGHTER, "resume", "ns/etc", *access)
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
            said, _ = await process.communicate()
            return said.decode()

        assert await resume() == "ns/etc goes on, and what waited begins\n"

        async def over() -> bool:
            return await counts() == ["failed", "failed", "succeeded"]

        await until(over)
        assert await resume() == "ns/etc was not paused\n"
        (await api.post("/schedules/ns/etc/run")).raise_for_status()
        await until(becomes(hostsFailed=0, paused=None, problems=[]))
    audit = (await api.get("/audit", params={"object_kind": "Schedule", "object_name": "ns/etc"})).json()["items"]
    assert [it["action"] for it in audit].count("resume") == 1


@pytest.mark.parametrize("change", ["resume", "Continue", "delete"])
async def test_what_waits_goes_on_when_it_is_resumed_or_need_not_pause_any_more(
    change: str, api: httpx.AsyncClient, declare: Declare, connect: Connect, clock: Clock
) -> None:
    async def fails(agent: Agent) -> None:
        while (heard := await agent.hear(credentials=False))["type"] != "command.run":
            pass  # what is declared
        job_id = heard["payload"]["job_id"]
        await agent.say("job.finished", job_id=job_id, status="failed", finished_at=clock().isoformat())
        await agent.hears("job.confirmed")

    await declare(rollout={"failurePolicy": "Pause"})
    async with connect("a") as agent:
        await agent.follow()
        (await api.post("/schedules/ns/etc/run")).raise_for_status()
        await fails(agent)
        (await api.post("/schedules/ns/etc/run")).raise_for_status()
        assert (await api.get("/schedules/ns/etc")).json()["status"]["paused"]["hosts"] == ["a"]
        await declare(rollout={"failurePolicy": "Pause", "maxFailures": 9})  # resumes nothing
        assert (await api.get("/schedules/ns/etc")).json()["status"]["paused"]["failed"] == 1
        if change == "resume":
            answer = (await api.post("/schedules/ns/etc/resume")).raise_for_status()
            assert answer.json()["status"]["paused"] is None
            await fails(agent)  # the one that waited: one of ten
        elif change == "Continue":
            await declare(rollout={"failurePolicy": "Continue"})
            await fails(agent)
            await declare(rollout={"failurePolicy": "Pause"})
        else:
            (await api.delete("/schedules/ns/etc")).raise_for_status()
            await declare(rollout={"failurePolicy": "Pause"})
        assert (await api.get("/schedules/ns/etc")).json()["status"]["paused"] is None


async def test_only_who_may_run_a_schedule_may_resume_it(api: httpx.AsyncClient, declare: Declare) -> None:
    await declare()
    needed = [it.needs for it in OPERATIONS if it.path.endswith(("/run", "/resume"))]
    assert [it and (it.verbs, it.resources) for it in needed] == [("create", "runs")] * 2
    assert (await api.post("/schedules/ns/other/resume")).status_code == 404


@pytest.mark.parametrize(("rollout", "series"), [({"failurePolicy": "Pause"}, 1), (None, 0)])
async def test_only_a_schedule_that_may_pause_is_said_to_be_paused(
    server: Running, api: httpx.AsyncClient, declare: Declare, clock: Clock, rollout: Any, series: int
) -> None:
    """Another server may store a pause while it does not know yet that the Schedule was changed to pause no more."""
    id_ = await declare("etc", **({"rollout": rollout} if rollout else {}))
    pause = rollouts.pause
    await server.parts.services.store.write(lambda conn, ids: [pause(conn, it, clock(), ["a"]) for it in ids], id_)
    status = (await api.get("/schedules/ns/etc")).json()["status"]
    assert (status["paused"] is not None) is bool(series)
    assert ("Paused" in {it["reason"] for it in status["problems"]}) is bool(series)
    of = "lamplighter_schedule_paused", {"namespace": "ns", "schedule": "etc"}
    assert (await asyncio.to_thread(server.parts.registry.get_sample_value, *of) or 0) == series
