"""Promise 10: whatever breaks at three in the morning is told by the overview, by `lamplighter status`, by a metric, by
an alert and by a notification.

Each situation is made of real trouble, on a real server with a real agent and restic. `CHANNELS` are the ways by which
somebody is told; whoever adds another way of telling adds it there, and every situation is told by it as well.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from click.testing import CliRunner

from agent.journal import Journal
from agent.restic.runner import Runner
from agent.service import Config as AgentConfig
from agent.service import Service
from cli.main import main
from server.app import Config, Running, serving
from server.notify import notifier
from server.observe.overview import TITLES, SectionName
from tests.chart import values
from tests.conftest import NewRepository
from tests.integration.clock import Clock
from tests.integration.conftest import Until
from tests.integration.receivers import Receiver, receiving
from tests.plain import NO_TLS
from tests.prometheus import rules

pytestmark = pytest.mark.anyio

PASSWORD = "correct horse battery"
BACKUP = {"kind": "backup", "cron": "0 2 * * *", "hostSelector": {"matchLabels": {"role": "db"}}}


class World:
    """A server with a host whose only backup has just gone well. Trouble is made of its parts."""

    def __init__(self, folder: Path, running: AsyncExitStack, on_call: Receiver, heart: Receiver) -> None:
        self.folder, self.clock, self.agents_clock = folder, Clock(), Clock()
        self.data, self.repository, self.restic = folder / "server", folder / "repository", folder / "restic"
        self.running, self.agents = running, AsyncExitStack()
        self.server: Running
        self.api: httpx.AsyncClient
        self.on_call, self.heart = on_call, heart
        self.beats_at = folder / "heartbeat-url"
        self.beats_at.write_text(self.heart.url)

    async def serve(self) -> None:
        config = Config(self.data, port=0, heartbeat_url_file=self.beats_at, heartbeat_seconds=0.2)
        self.server = await self.running.enter_async_context(serving(config, self.clock))
        headers = {"authorization": f"Bearer {self.server.admin_token}"}
        url = f"http://127.0.0.1:{self.server.port}/api/v1"
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=60, verify=NO_TLS)
        self.api = await self.running.enter_async_context(client)

    async def connect(self) -> None:
        """Start the agent of host node-1, which keeps its journal from before."""
        await self.agents.enter_async_context(self._agent())
        await self.until(lambda found: found["counts"]["hosts_connected"])

    @asynccontextmanager
    async def _agent(self) -> AsyncIterator[None]:
        data = self.folder / "agent"
        journal, memory = Journal.open(data / "journal.jsonl")
        config = AgentConfig("node-1", f"ws://127.0.0.1:{self.server.port}/agent", self.server.agent_token)
        runner = Runner(str(self.restic), data / "cache", lambda: datetime.now(UTC))
        service = Service(config, journal, memory, runner, clock=self.agents_clock)
        task = asyncio.create_task(service.run())
        try:
            yield
        finally:
            await service.stop()
            await task

    async def stop_agent(self) -> None:
        await self.agents.aclose()
        self.agents = AsyncExitStack()

    async def put(self, path: str, body: Any) -> None:
        (await self.api.put(path, json=body)).raise_for_status()

    async def declare(self, **spec: Any) -> None:
        paths = {"paths": [str(self.folder / "data")]}
        wanted = BACKUP | {"repositoryRef": {"name": "main"}, "backup": paths} | spec
        await self.put("/schedules/ns/etc", {"spec": wanted})

    async def open_repository(self, **spec: Any) -> None:
        body = {"spec": {"url": str(self.repository), **spec}, "credentials": {"password": PASSWORD}}
        await self.put("/repositories/ns/main", body)

    async def alert(self) -> None:
        """Tell a receiver of webhooks what is wrong anywhere."""
        spec = {"secretRef": {"name": "on-call"}, "scope": "Fleet", "after": "1s"}
        await self.put("/alerts/ns/on-call", {"spec": spec, "credentials": {"urls": [self.on_call.url]}})

    async def run(self) -> None:
        """Run the schedule now."""
        (await self.api.post("/schedules/ns/etc/run")).raise_for_status()

    async def run_to_end(self) -> None:
        [job] = (await self.api.post("/schedules/ns/etc/run")).raise_for_status().json()["items"]
        await self.until(lambda _: self.status_of(job["id"]), lambda status: status not in ("pending", "running"))

    async def status_of(self, job_id: str) -> Any:
        return (await self.api.get(f"/jobs/{job_id}")).json()["status"]

    async def overview(self) -> Any:
        return (await self.api.get("/overview")).raise_for_status().json()

    async def until(self, ask: Callable[[Any], Any], is_so: Callable[[Any], bool] = bool) -> Any:
        """Wait for what is asked of the overview."""
        async with asyncio.timeout(60):
            while True:
                found = ask(await self.overview())
                found = await found if isinstance(found, Awaitable) else found
                if is_so(found):
                    return found
                await asyncio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path, new_repository: NewRepository, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name, soon in {"QUIET": timedelta(), "EVERY_S": 0.2, "LEAST_S": 0.05, "RATIO": 1}.items():
        monkeypatch.setattr(notifier, name, soon)
    with receiving() as on_call, receiving() as heart:
        async with AsyncExitStack() as running:
            world = World(tmp_path, running, on_call, heart)
            try:
                yield await well(world, new_repository)
            finally:
                await world.stop_agent()


async def well(world: World, new_repository: NewRepository) -> World:
    """The world once all is well."""
    (world.folder / "data").mkdir()
    (world.folder / "data" / "letter").write_text("dear reader")
    world.restic.symlink_to(shutil.which("restic") or "/usr/bin/restic")
    new_repository(world.repository, PASSWORD)
    await world.serve()
    await world.put("/hosts/node-1", {"labels": {"role": "db"}})
    await world.open_repository()
    await world.declare()
    await world.connect()
    await world.run_to_end()
    await world.until(lambda found: found["answer"] == "yes")
    await world.alert()
    return world


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


# The trouble.


async def agent_stopped(world: World) -> None:
    await world.stop_agent()


async def clock_wrong(world: World) -> None:
    await world.stop_agent()
    world.agents_clock.ahead = timedelta(hours=-2)
    await world.connect()


async def password_changed(world: World) -> None:
    new, old = world.folder / "new", world.folder / "old"
    new.write_text("another password")
    old.write_text(PASSWORD)
    where = f"--repo={world.repository}", f"--password-file={old}"
    await asyncio.to_thread(call, "restic", "--no-cache", *where, "key", "passwd", f"--new-password-file={new}")
    await world.run_to_end()


async def disk_full(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    kept = world.folder / "kept"
    world.repository.rename(kept)
    world.repository.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(world.repository))
    world.running.callback(call, "umount", "--lazy", str(world.repository))
    await asyncio.to_thread(shutil.copytree, kept, world.repository, dirs_exist_ok=True)
    (world.folder / "data" / "big").write_bytes(os.urandom(4_000_000))
    await world.run_to_end()


async def label_renamed(world: World) -> None:
    await world.put("/hosts/node-1", {"labels": {"roll": "db"}})


async def suspended_by_a_colleague(world: World) -> None:
    await world.declare(enabled=False)


async def restic_removed(world: World) -> None:
    world.restic.unlink()
    await world.run_to_end()


async def server_restarted_on_an_empty_folder(world: World) -> None:
    """Its tokens are kept, as in a cluster, where they are not the server's own; else no agent could connect."""
    await world.stop_agent()
    await world.running.aclose()
    tokens = {name: (world.data / name).read_text() for name in ("admin-token", "agent-token")}
    world.data = world.folder / "empty"
    world.data.mkdir(mode=0o700)
    for name, token in tokens.items():
        (world.data / name).write_text(token)
        (world.data / name).chmod(0o600)
    await world.serve()
    await world.connect()
    await world.until(lambda found: found["answer"] == "no")
    assert await is_silent(world), "the Alert is gone with the store, so that the heartbeat alone tells"
    await world.alert()  # as the controller of a cluster does


async def job_hangs(world: World) -> None:
    """restic goes on for ever, and the agent does not end it in time: here it is the time that goes by faster."""
    await world.declare(timeoutSeconds=3600)
    world.restic.unlink()
    world.restic.write_text("#!/bin/sh\nexec sleep 1000\n")
    world.restic.chmod(0o755)
    await world.run()
    await world.until(lambda found: found["running"])
    world.clock.ahead += timedelta(hours=2)


async def nobody_verified(world: World) -> None:
    await world.open_repository(verifyWithinDays=1)
    world.clock.ahead += timedelta(days=1, minutes=1)


async def nobody_verifies_at_all(_world: World) -> None:
    """Nothing happened: the repository was just never verified."""


# Who is told, and how.


class Situation(NamedTuple):
    """`tells`: section and reason in the overview; `metric`: a name and labels, whose sample is not 0 then.

    `about`: the object that messages name. `rule`: the chart's alert on that metric, "" where there is none. `red`:
    whether it is trouble for certain.
    """

    trouble: Callable[[World], Awaitable[None]]
    tells: tuple[SectionName, str]
    metric: str
    about: str
    rule: str
    labels: dict[str, str] = {}  # noqa: RUF012 - never changed
    red: bool = True


PROBLEM, OF_HOST = "lamplighter_repository_problem", "lamplighter_hosts_with_problem"
NOT_BACKED_UP = "lamplighter_hosts_without_backup", "Host//", "LamplighterHostWithoutBackup"
SCHEDULE, REPOSITORY, HOSTS = "Schedule/ns/etc", "Repository/ns/main", "Host//"
FAILING = "lamplighter_failed_hosts", SCHEDULE, "LamplighterJobsFailing"
OF_SCHEDULE = {"namespace": "ns", "schedule": "etc"}
SITUATIONS = [
    Situation(
        agent_stopped,
        ("offline", "NotConnected"),
        "lamplighter_hosts - lamplighter_hosts_connected",
        HOSTS,
        "LamplighterHostGone",
    ),
    Situation(
        clock_wrong, ("agents", "ClockSkew"), OF_HOST, HOSTS, "LamplighterHostHasProblem", {"reason": "ClockSkew"}
    ),
    Situation(
        password_changed,
        ("repositories", "WrongPassword"),
        PROBLEM,
        REPOSITORY,
        "LamplighterRepositoryInTrouble",
        {"reason": "WrongPassword"},
    ),
    Situation(disk_full, ("failed", "RunsFail"), *FAILING, OF_SCHEDULE),
    Situation(
        label_renamed,
        ("never_ran", "NoHosts"),
        "lamplighter_schedules_without_hosts",
        SCHEDULE,
        "LamplighterScheduleWithoutHosts",
    ),
    Situation(label_renamed, ("never_ran", "NoBackup"), *NOT_BACKED_UP),
    Situation(suspended_by_a_colleague, ("never_ran", "NoBackup"), *NOT_BACKED_UP),
    Situation(
        suspended_by_a_colleague,
        ("suspended", "Disabled"),
        "lamplighter_schedule_disabled",
        SCHEDULE,
        "LamplighterScheduleDisabled",
        OF_SCHEDULE,
    ),
    Situation(restic_removed, ("failed", "RunsFail"), *FAILING, OF_SCHEDULE),
    Situation(
        server_restarted_on_an_empty_folder,
        ("out_of_sync", "StoreEmpty"),
        OF_HOST,
        HOSTS,
        "LamplighterStoreEmpty",
        {"reason": "StoreEmpty"},
    ),
    Situation(job_hangs, ("failed", "RunsHang"), "lamplighter_jobs_hanging", SCHEDULE, "LamplighterJobsHanging"),
    Situation(
        nobody_verified,
        ("not_verified", "NotVerified"),
        PROBLEM,
        REPOSITORY,
        "LamplighterRepositoryInTrouble",
        {"reason": "NotVerified"},
    ),
    Situation(
        nobody_verifies_at_all,
        ("unverified", "NeverVerified"),
        "lamplighter_repositories_never_verified",
        REPOSITORY,
        "",
        red=False,
    ),
]
RULES = {it["alert"]: it["expr"] for group in rules(values("monitoring")) for it in group["rules"]}


async def in_overview(world: World, it: Situation) -> bool:
    found = await world.overview()
    told = {(section["name"], item["reason"]) for section in found["sections"] for item in section["items"]}
    assert not (it.red and it.tells in told and found["answer"] != "no"), found["sentence"]
    return it.tells in told


async def in_status(world: World, it: Situation) -> bool:
    """By what it says, and by its exit code."""
    where = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{world.server.port}", "LAMPLIGHTER_DATA_DIR": str(world.data)}
    done = await asyncio.to_thread(CliRunner().invoke, main, ["status"], env=where)
    section, reason = it.tells
    assert done.exit_code in (0, 1), done.output
    return f"\n{TITLES[section]} (" in done.output and reason in done.output and done.exit_code == int(it.red)


async def in_metrics(world: World, it: Situation) -> bool:
    samples = [one for family in world.server.parts.registry.collect() for one in family.samples]

    def value(name: str) -> float:
        return sum(one.value for one in samples if one.name == name and it.labels.items() <= one.labels.items())

    one, _, less = it.metric.partition(" - ")
    return value(one) - value(less) > 0


async def in_alerts(world: World, it: Situation) -> bool:
    """By the Alert's own state, which counts what it told and is not over. The chart's rule is on the metric; that it
    fires on real samples of that is shown by the tests of alerts."""
    assert not it.rule or all(name in RULES[it.rule] for name in it.metric.split(" - "))
    answer = await world.api.get("/alerts/ns/on-call")
    last = {key: status for status, key in world.on_call.told()}
    fires = {key for key, status in last.items() if status != "resolved"}
    return f"{it.about}/{it.tells[1]}" in fires and answer.json()["status"]["firing"] == len(fires)


async def in_messages(world: World, it: Situation) -> bool:
    """By a message that came, and by the silence of the heartbeat where it is trouble for certain."""
    if ("firing", f"{it.about}/{it.tells[1]}") not in world.on_call.told():
        return False
    return not it.red or await is_silent(world)


async def is_silent(world: World) -> bool:
    """Whether no heartbeat comes. It comes five times a second while all is well."""
    world.heart.calls.clear()
    await asyncio.sleep(0.5)
    return world.heart.calls == []


CHANNELS: list[Callable[[World, Situation], Awaitable[bool]]] = [
    in_overview,
    in_status,
    in_metrics,
    in_alerts,
    in_messages,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda it: f"{it.trouble.__name__}: {it.tells[1]}")
async def test_what_breaks_is_told(world: World, situation: Situation, until: Until) -> None:
    if situation.red:
        assert not [it.__name__ for it in CHANNELS if await it(world, situation)], "nothing is broken yet"
    await situation.trouble(world)
    for channel in CHANNELS:
        async with asyncio.timeout(60):
            while not await channel(world, situation):
                await asyncio.sleep(0.1)


async def test_a_server_that_is_restarted_neither_tells_again_nor_calls_over_what_lasts(world: World) -> None:
    async def told(key: str) -> None:
        async with asyncio.timeout(60):
            while ("firing", key) not in world.on_call.told():
                await asyncio.sleep(0.05)

    await agent_stopped(world)
    await told("Host///NotConnected")
    await world.running.aclose()
    await world.serve()
    await world.declare(hostSelector={"matchLabels": {"role": "none"}})
    await told("Schedule/ns/etc/NoHosts")
    assert [status for status, key in world.on_call.told() if key == "Host///NotConnected"] == ["firing"]


async def test_status_says_it_for_programs_too(world: World) -> None:
    where = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{world.server.port}", "LAMPLIGHTER_DATA_DIR": str(world.data)}
    for words, code in (((), 0), (("-n", "ns"), 0), (("-n", "other"), 1)):
        done = await asyncio.to_thread(CliRunner().invoke, main, ["status", "-o", "json", *words], env=where)
        assert (done.exit_code, json.loads(done.output)["answer"]) == (code, "no" if code else "yes")
    text = (await asyncio.to_thread(CliRunner().invoke, main, ["status"], env=where)).output
    assert text.startswith("Yes: the only host is backed up in time (1 repository was never verified).\n")
    assert "Due next\n  ns/etc" in text
    assert "in 14 days" in text
