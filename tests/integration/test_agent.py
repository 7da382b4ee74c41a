"""The agent's parts do not hold each other up, and it ends cleanly, over a real socket and a real journal."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from msgspec import Raw
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from agent import link as links
from agent import scheduler as schedulers
from agent import service as services
from agent.core import effects, pushes
from agent.core.state import Accepted, AgentState, Fired
from agent.journal import Journal, encode
from agent.restic.reporter import Report
from agent.restic.version import Installed
from agent.service import Config, Service
from tests.restics import Program, programs
from wire import codec
from wire.entries import encode_entry
from wire.messages import (
    PROTOCOL,
    CommandCancel,
    CommandRun,
    Entry,
    FromAgent,
    Hello,
    JobAccepted,
    JobConfirmed,
    JobEnd,
    JobFinished,
    JobReason,
    Repository,
    ScheduleAck,
    ScheduleFire,
    ScheduleRefused,
    ScheduleSet,
)

pytestmark = pytest.mark.anyio

BEGAN = datetime(2026, 3, 28, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls again after hundredths of a second."""
    monkeypatch.setattr(links, "FIRST_DELAY_S", 0.01)


class Clock:
    """Goes as clocks go, from any time that it is set to."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def set(self, at: datetime) -> None:
        self.ahead = at - datetime.now(UTC)


class Jobs:
    """Jobs that go on until they are stopped."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future[JobEnd]] = {}

    async def run(
        self, command: CommandRun, repository: Repository | None, report: Report, source: Repository | None
    ) -> JobFinished:
        end = self.ends.setdefault(command.job_id, asyncio.get_running_loop().create_future())
        return JobFinished(command.job_id, await end, datetime.now(UTC))

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        end = self.ends.setdefault(job_id, asyncio.get_running_loop().create_future())
        if not end.done():
            end.set_result(status)


Message = TypeVar("Message", bound=FromAgent)


class Peer:
    """The server's end of a connection."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self._heard: list[FromAgent] = []

    async def say(self, *messages: Any) -> None:
        await self.socket.send(codec.encode(messages))

    async def hear(self, kind: type[Message]) -> Message:
        """The next message, which must be of that kind."""
        while not self._heard:
            frame = await asyncio.wait_for(self.socket.recv(), 10)
            self._heard += [message for message, _ in codec.from_agent.read(frame)]
        message = self._heard.pop(0)
        assert isinstance(message, kind), message
        return message


@pytest.fixture
async def server() -> AsyncIterator[SimpleNamespace]:
    """Waits for agents; `next` is the next connection."""
    sockets: asyncio.Queue[Any] = asyncio.Queue()

    async def handle(socket: ServerConnection) -> None:
        await sockets.put(socket)
        await socket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, subprotocols=[Subprotocol(PROTOCOL)]) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield SimpleNamespace(port=port, next=lambda: asyncio.wait_for(_peer(sockets), 10))


async def _peer(sockets: asyncio.Queue[Any]) -> Peer:
    return Peer(await sockets.get())


class Agent(Service):
    """An agent whose clock can be set."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        memory: AgentState,
        jobs: Jobs,
        clock: Clock,
        restic: Installed | None = None,
    ) -> None:
        super().__init__(config, journal, memory, jobs, clock=clock, restic=restic)
        self.clock = clock


@pytest.fixture
def make(server: SimpleNamespace, tmp_path: Path) -> Callable[..., "Agent"]:
    """An agent, with what its journal holds."""

    def made(jobs: Jobs | None = None, restic: Installed | None = None) -> "Agent":
        journal, memory = Journal.open(tmp_path / "journal.jsonl")
        config = Config("node-1", f"ws://127.0.0.1:{server.port}/agent")
        clock = Clock()
        clock.set(BEGAN + 12 * MINUTE / 24)
        return Agent(config, journal, memory, jobs or Jobs(), clock, restic)

    return made


@asynccontextmanager
async def running(service: "Agent") -> AsyncIterator["Agent"]:
    task = asyncio.create_task(service.run())
    try:
        yield service
        await asyncio.wait_for(service.stop(), 20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def entry(key: str = "s1", cron: str = "* * * * *") -> Raw:
    return Raw(encode_entry(Entry(key, f"ns/{key}", cron, BEGAN, "1")))


def whole(version: int, *held: Raw) -> ScheduleSet:
    return ScheduleSet(version, list(held), BEGAN)


async def in_force(server: SimpleNamespace, *held: Raw) -> Any:
    """A connection of an agent that has these schedules."""
    peer = await server.next()
    await peer.hear(Hello)
    await peer.say(whole(1, *held))
    assert (await peer.hear(ScheduleAck)).version == 1
    return peer


async def test_what_is_pushed_is_in_force_acked_fired_run_and_ended(
    server: SimpleNamespace, make: Callable[..., "Agent"]
) -> None:
    async with running(make()) as agent:
        peer = await in_force(server, entry())
        agent.clock.set(BEGAN + MINUTE)
        agent.perform(())
        fire = await peer.hear(ScheduleFire)
        assert (fire.schedule_id, fire.scheduled_at) == ("s1", BEGAN + MINUTE)
        await peer.say(CommandRun("j1", "backup", [], schedule_id="s1", scheduled_at=fire.scheduled_at))
        assert await peer.hear(JobAccepted) == JobAccepted("j1")
        await peer.say(CommandCancel("j1"))
        assert (await peer.hear(JobFinished)).status == "cancelled"
        await peer.say(JobConfirmed("j1"))


async def test_a_slow_push_holds_up_no_other_message(
    server: SimpleNamespace, make: Callable[..., "Agent"], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, let_go, built = threading.Event(), threading.Event(), pushes.build

    def slow(*args: Any) -> pushes.Built | str:
        began.set()
        assert let_go.wait(10)
        return built(*args)

    async with running(make()):
        peer = await in_force(server)
        monkeypatch.setattr(schedulers, "THREAD_ENTRIES", 0)
        monkeypatch.setattr(pushes, "build", slow)
        await peer.say(whole(2, entry()))
        await peer.say(whole(3, entry(), entry("s2")))
        await asyncio.to_thread(began.wait, 10)
        await peer.say(CommandCancel("j1"))
        assert (await peer.hear(JobFinished)).job_id == "j1"
        await peer.say(JobConfirmed("j1"))
        let_go.set()
        assert [(await peer.hear(ScheduleAck)).version for _ in range(2)] == [2, 3]


async def test_the_cron_goes_on_without_a_connection_and_tells_the_next_one_once(
    server: SimpleNamespace, make: Callable[..., "Agent"]
) -> None:
    async with running(make()) as agent:
        first = await in_force(server, entry())
        first.socket.transport.abort()
        await first.socket.wait_closed()
        second = await server.next()
        await second.hear(Hello)
        agent.clock.set(BEGAN + MINUTE)
        agent.perform(())
        assert await second.hear(ScheduleFire) == ScheduleFire("s1", BEGAN + MINUTE)
        await second.say(ScheduleRefused("s1", BEGAN + MINUTE, "Duplicate"), CommandCancel("j1"))
        await second.hear(JobFinished)
        await second.say(JobConfirmed("j1"))
        agent.clock.set(BEGAN + 2 * MINUTE)
        agent.perform(())
        assert await second.hear(ScheduleFire) == ScheduleFire("s1", BEGAN + 2 * MINUTE)


async def test_a_clock_that_was_set_is_noticed_without_an_event(
    server: SimpleNamespace, make: Callable[..., "Agent"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers, "CLOCK_CHECK_S", 0.01)
    async with running(make()) as agent:
        peer = await in_force(server, entry(cron="0 0 * * *"))
        agent.clock.set(BEGAN + timedelta(days=3, hours=1))
        assert await peer.hear(ScheduleFire) == ScheduleFire("s1", BEGAN + timedelta(days=3), 3)


async def test_a_fire_whose_schedule_was_lost_from_the_journal_is_still_told(
    server: SimpleNamespace, make: Callable[..., "Agent"], tmp_path: Path
) -> None:
    lost = ScheduleFire("s1", BEGAN)
    (tmp_path / "journal.jsonl").write_bytes(encode(Fired([lost])))
    async with running(make()):
        peer = await server.next()
        assert (await peer.hear(Hello)).digest == ""
        assert (await peer.hear(ScheduleFire)).schedule_id == "s1"


async def test_another_restic_in_its_place_is_told_with_another_hello(
    server: SimpleNamespace, make: Callable[..., "Agent"], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(services, "CLOCK_S", 0.05)
    place, newer = tmp_path / "restic", tmp_path / "newer"
    place.symlink_to("/usr/bin/restic")
    async with running(make(restic=Installed(str(place)))):
        first = await server.next()
        assert (await first.hear(Hello)).restic_version == str(programs()[0])
        newer.write_text("#!/bin/sh\necho restic 99.1.2 compiled with go1.99 on linux/amd64\n")
        newer.chmod(0o755)
        newer.rename(place)
        again = await server.next()
        assert (await again.hear(Hello)).restic_version == "99.1.2"
        assert first.socket.close_code == 1000


@pytest.mark.parametrize("restic", programs(), ids=str)
async def test_every_restic_tells_its_version(restic: Program) -> None:
    assert await Installed(restic.path).version() == str(restic)


async def test_where_no_restic_runs_there_is_no_version(tmp_path: Path) -> None:
    assert await Installed(str(tmp_path / "none")).version() == ""
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho borg 1.2\n")
    other.chmod(0o755)
    assert await Installed(str(other)).version() == ""


# How it ends.


async def test_a_stop_ends_running_jobs_as_interrupted_and_waits_until_that_is_confirmed(
    server: SimpleNamespace, make: Callable[..., "Agent"], tmp_path: Path
) -> None:
    agent = make()
    async with running(agent):
        peer = await in_force(server)
        await peer.say(CommandRun("j1", "backup", []))
        await peer.hear(JobAccepted)
        stops = [asyncio.create_task(agent.stop()) for _ in range(2)]
        assert (await peer.hear(JobFinished)).status == "interrupted"
        assert not any(stop.done() for stop in stops)
        await peer.say(JobConfirmed("j1"))
        await asyncio.wait_for(asyncio.gather(*stops), 10)
    journal, memory = Journal.open(tmp_path / "journal.jsonl")
    journal.close()
    assert (memory.running, memory.ends, list(memory.done)) == ({}, {}, ["j1"])


async def test_a_stop_waits_for_the_push_that_is_being_applied(
    server: SimpleNamespace, make: Callable[..., "Agent"], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    began, let_go, built = threading.Event(), threading.Event(), pushes.build

    def slow(*args: Any) -> pushes.Built | str:
        began.set()
        assert let_go.wait(10)
        return built(*args)

    agent = make()
    async with running(agent):
        peer = await in_force(server)
        monkeypatch.setattr(schedulers, "THREAD_ENTRIES", 0)
        monkeypatch.setattr(pushes, "build", slow)
        await peer.say(whole(2, entry()))
        await asyncio.to_thread(began.wait, 10)
        stop = asyncio.create_task(agent.stop())
        let_go.set()
        await peer.hear(ScheduleAck)
        await asyncio.wait_for(stop, 10)
    journal, memory = Journal.open(tmp_path / "journal.jsonl")
    journal.close()
    assert memory.version == 2


async def test_a_stop_that_comes_before_the_start_ends_it(make: Callable[..., "Agent"]) -> None:
    agent = make()
    stop = asyncio.create_task(agent.stop())
    await asyncio.sleep(0)
    await asyncio.wait_for(agent.run(), 10)
    await stop


async def test_what_ran_when_the_last_process_ended_is_told_as_interrupted(
    server: SimpleNamespace, make: Callable[..., "Agent"], tmp_path: Path
) -> None:
    (tmp_path / "journal.jsonl").write_bytes(encode(Accepted("j1")))
    async with running(make()):
        peer = await server.next()
        assert (await peer.hear(Hello)).running_jobs == ["j1"]
        assert (await peer.hear(JobFinished)).status == "interrupted"
        await peer.say(JobConfirmed("j1"))


@pytest.mark.parametrize("part", ["tick", "applied", "message_received", "job_ended"])
async def test_a_defect_in_any_part_ends_the_agent_and_is_raised(
    server: SimpleNamespace, make: Callable[..., "Agent"], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    agent = make()
    task = asyncio.create_task(agent.run())
    peer = await in_force(server, entry())
    await peer.say(CommandRun("j1", "backup", []))
    await peer.hear(JobAccepted)
    monkeypatch.setattr(agent.core, part, lambda *_: 1 / 0)
    if part == "job_ended":
        agent.perform([effects.StopJob("j1", "cancelled")])
    else:
        await peer.say(whole(2, entry()), CommandCancel("j1"))
        agent.clock.set(BEGAN + MINUTE)
        agent.perform(())
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(task, 10)
    assert raised.group_contains(ZeroDivisionError)
    await asyncio.wait_for(peer.socket.wait_closed(), 10)
    make()._journal.close()  # the folder is free again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_well(server: SimpleNamespace, tmp_path: Path, number: signal.Signals) -> None:
    argv: list[str | Path] = [
        sys.executable,
        "-c",
        "from cli.main import main; main()",
        "agent",
        "--data-dir",
        tmp_path,
        "--host",
        "node-1",
    ]
    (tmp_path / "token").write_text("t0ken")
    options: list[str | Path] = ["--server", f"http://127.0.0.1:{server.port}", "--token-file", tmp_path / "token"]
    process = await asyncio.create_subprocess_exec(*argv, *options, stderr=subprocess.PIPE)
    peer = await in_force(server)
    process.send_signal(number)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, b"Traceback" in said) == (0, False)
    assert peer.socket.close_code == 1001
