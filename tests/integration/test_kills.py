"""Promises 1, 2 and 4 on real processes: whatever is killed or cut, each due time has one job, and its end is kept.

Schedules count from long ago here, so that the first set that an agent gets is due at once, for what was missed.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from agent.core.state import replay
from agent.journal import read
from bench.servers import free_port
from cli.up import this_machine
from controller.folder.follower import OWNER
from controller.reconcile import OWNER_LABEL
from server.resources import manifests as resources
from server.store.declared import upsert_repositories, upsert_schedules
from server.store.engine import Store
from server.store.hosts import upsert_hosts
from server.store.rows import HostRow, RepositoryRow, ScheduleRow
from tests.integration.conftest import DataFolders, Until
from tests.plain import NO_TLS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE_S = 60
"""What takes longer than this will not come."""

ROOT = Path(__file__).parents[2]
LONG_AGO = datetime(2020, 1, 1, 12, tzinfo=UTC)
OWNED = {OWNER_LABEL: OWNER}
LAMPLIGHTER = "from cli.main import main; main()"
DIES_AFTER_COMMIT = f"import os, server.jobs.fires; server.jobs.fires.answered = lambda *_: os._exit(9); {LAMPLIGHTER}"
"""The server that is gone between a job's row and its command."""

RESTIC = """#!{python} -IS
import json, os, sys
if sys.argv[1:] == ["version"]:
    sys.exit("no version")
if "snapshots" in sys.argv:
    sys.exit(print("[]"))
def note(what):
    with open("{folder}/runs", "a") as runs:
        print(what, os.getpid(), file=runs)
note("began")
try:
    if os.path.exists("{folder}/gate"):
        open("{folder}/gate").close()
except KeyboardInterrupt:
    note("interrupted")
    sys.exit(130)
print(json.dumps({{"message_type": "summary", "snapshot_id": "0123abcd", "total_files_processed": 1}}))
"""
"""Stands in for restic: notes its backups, and waits at a gate (a FIFO, until somebody opens its other end)."""


class Machine:
    """A server and an agent as processes, and restic's stand-in, with all of their files in one folder."""

    def __init__(self, folder: Path, until: Until, databases: DataFolders) -> None:
        self.folder, self.until, self._databases = folder, until, databases
        self.processes: list[Process] = []
        self.port = free_port()
        self.restic = folder / "restic"
        self.restic.write_text(RESTIC.format(python=sys.executable, folder=folder))
        self.restic.chmod(0o755)

    async def declare(self, cron: str = "0 0 1 1 *") -> None:
        """Have a store and a folder that declare the same: a host and a schedule which count from long ago."""
        backup = {"kind": "backup", "cron": cron, "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}
        repository = manifest("Repository", "main", {"url": str(self.folder / "repository")})
        schedule = manifest("Schedule", "etc", backup)
        (self.folder / "declared").mkdir()
        (self.folder / "declared" / "all.yaml").write_text(f"{json.dumps(repository)}\n---\n{json.dumps(schedule)}\n")
        url, spec = resources.parse_repository(repository).raw_spec, resources.parse_schedule(schedule).raw_spec
        times = LONG_AGO, LONG_AGO, LONG_AGO
        store = Store.open(self.folder / "lamplighter.db")
        await store.write(upsert_hosts, HostRow("node-1", this_machine("node-1"), *times[:2]))
        await store.write(upsert_repositories, RepositoryRow("r", "default", "main", OWNED, url, 1, *times[:2]))
        await store.write(upsert_schedules, ScheduleRow("s", "default", "etc", OWNED, spec, 1, *times))
        await store.close()

    # Its processes.

    async def server(self, program: str = LAMPLIGHTER) -> Process:
        server = await self._start("server", "--data-dir", self.folder, "--listen", self._address, program=program)
        await self.until(self._ready)
        return server

    async def agent(self, port: int | None = None) -> Process:
        return await self._start(
            *("agent", "--server", f"http://127.0.0.1:{port or self.port}", "--data-dir", self.folder / "agent"),
            *("--token-file", self.folder / "agent-token", "--host", "node-1", "--restic", self.restic),
        )

    async def up(self) -> Process:
        return await self._start(
            *("up", self.folder / "declared", "--data-dir", self.folder, "--listen", self._address),
            *("--host", "node-1", "--restic", self.restic),
        )

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _start(self, *args: str | Path, program: str = LAMPLIGHTER) -> Process:
        with (self.folder / "log").open("ab") as log:
            command = (sys.executable, "-c", program, *map(str, args))
            env = os.environ | self._databases.environment(self.folder)
            env |= {"TMPDIR": str(self.folder)}  # where the stand-in for restic may write
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stderr=log)
        self.processes.append(process)
        return process

    async def _ready(self) -> bool:
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(verify=NO_TLS) as client:
                return (await client.get(f"http://{self._address}/readyz")).is_success
        return False

    # What came of it.

    def rows(self, table: str) -> list[Any]:
        """A table of the store, whether or not a server runs on it."""
        return self._databases.rows(self.folder, table)

    async def job(self, status: str) -> Any:
        """The only job, once it is so far."""

        async def reached() -> list[Any]:
            jobs = self.rows("jobs")
            assert len(jobs) <= 1
            return [job for job in jobs if job["status"] == status]

        return (await self.until(reached))[0]

    def runs(self, what: str = "began") -> list[Any]:
        """The process ids of the runs of restic that began, or were interrupted."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(what)]

    # The gate at which restic waits.

    def shut_gate(self) -> None:
        os.mkfifo(self.folder / "gate")

    async def at_gate(self) -> Any:
        """Wait until restic has begun and the server knows it; its process id."""
        await self.job("running")

        async def began() -> Any:
            return self.runs()

        [pid] = await self.until(began)
        return pid

    async def open_gate(self) -> None:
        """Let the one through that waits, and all that come later."""
        gate = self.folder / "gate"
        waiting = await asyncio.to_thread(gate.open, "w")
        gate.unlink()
        waiting.close()

    async def gone(self, pid: int) -> None:
        """Wait until a process that is no child of ours has ended."""

        async def ended() -> bool:
            return has_ended(pid)

        await self.until(ended)

    async def agent_settled(self) -> None:
        """Wait until the agent's journal says that nothing is open: no fire, no job, no end that is not confirmed."""

        async def settled() -> bool:
            memory = replay(read((self.folder / "agent" / "journal.jsonl").read_bytes())[0])
            return not (memory.fires or memory.running or memory.ends)

        await self.until(settled)


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what is left of it until its parent looks (proc(5), state Z)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resources.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
async def machine(tmp_path: Path, until: Until, data_folders: DataFolders) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path, until, data_folders)
    yield machine
    for process in machine.processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    print((tmp_path / "log").read_text())  # noqa: T201 - shown for a test that failed


class Link:
    """The way from an agent to a server, which breaks once: on the first message of this type, which is lost."""

    def __init__(self, port: int, lost: bytes) -> None:
        self._port, self._lost = port, lost
        self._pushed = self.broken = False

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()  # since 3.12 its wait_closed would wait for the connections, which outlive this

    async def _carry(self, agent_reader: asyncio.StreamReader, agent_writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ways = (agent_reader, server_writer, self._breaks_up), (server_reader, agent_writer, self._breaks_down)
        carrying = [asyncio.create_task(_pipe(*way)) for way in ways]
        try:
            await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
        finally:  # the test may end first
            for task, writer in zip(carrying, (agent_writer, server_writer), strict=True):
                task.cancel()
                writer.transport.abort()
            await asyncio.gather(*carrying, return_exceptions=True)

    def _breaks_down(self, data: bytes) -> bool:
        self._pushed = self._pushed or b"schedule.set" in data
        return self._breaks(self._lost in data)

    def _breaks_up(self, data: bytes) -> bool:
        """Agents mask what they say: what follows a push of a schedule that is due at once is the ack and the fire."""
        return self._breaks(self._lost == b"schedule.fire" and self._pushed)

    def _breaks(self, breaks: bool) -> bool:
        breaks = breaks and not self.broken
        self.broken = self.broken or breaks
        return breaks


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter, breaks: Callable[[bytes], bool]) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            if breaks(data):
                return
            sink.write(data)
            await sink.drain()


def kill(*processes: Process, how: signal.Signals = signal.SIGKILL) -> asyncio.Future[list[Any]]:
    for process in processes:
        process.send_signal(how)
    return asyncio.gather(*(process.wait() for process in processes))


# Killed and cut.


async def test_the_server_is_killed_between_a_jobs_row_and_its_command(machine: Machine) -> None:
    await machine.declare()
    dying = await machine.server(DIES_AFTER_COMMIT)
    await machine.agent()
    assert await asyncio.wait_for(dying.wait(), PATIENCE_S) == 9
    assert (machine.runs(), (await machine.job("pending"))["actor_kind"]) == ([], "schedule")
    await machine.server()
    await machine.job("succeeded")
    assert len(machine.runs()) == 1


async def test_the_server_is_killed_while_restic_runs_and_told_the_end_when_it_is_back(machine: Machine) -> None:
    await machine.declare()
    machine.shut_gate()
    server, _ = await machine.server(), await machine.agent()
    restic = await machine.at_gate()
    await kill(server)
    await machine.open_gate()
    await machine.gone(restic)
    await machine.server()
    assert (await machine.job("succeeded"))["snapshot_id"] == "0123abcd"
    assert len(machine.runs()) == 1


async def test_the_agent_is_killed_after_it_accepted_a_job(machine: Machine) -> None:
    await machine.declare()
    machine.shut_gate()
    _, agent = await machine.server(), await machine.agent()
    restic = await machine.at_gate()
    await kill(agent)
    await machine.gone(restic)
    await machine.agent()
    assert (await machine.job("interrupted"))["error"] == "the agent stopped while the job ran"
    assert len(machine.runs()) == 1


async def test_both_are_killed_while_restic_runs(machine: Machine) -> None:
    await machine.declare()
    machine.shut_gate()
    server, agent = await machine.server(), await machine.agent()
    restic = await machine.at_gate()
    await kill(server, agent)
    await machine.gone(restic)
    await machine.server()
    await machine.agent()
    await machine.job("interrupted")
    assert len(machine.runs()) == 1


@pytest.mark.parametrize("lost", [b"schedule.fire", b"command.run", b"job.confirmed"])
async def test_the_link_is_cut_and_what_was_said_is_lost(machine: Machine, lost: bytes) -> None:
    await machine.declare()
    await machine.server()
    async with Link(machine.port, lost) as link:
        await machine.agent(link.port)
        await machine.job("succeeded")
        await machine.agent_settled()
    assert (link.broken, len(machine.runs())) == (True, 1)


# Stopped.


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_an_agent_that_is_stopped_stops_restic_and_says_that_the_job_was_interrupted(
    machine: Machine, how: signal.Signals
) -> None:
    await machine.declare()
    machine.shut_gate()
    server, agent = await machine.server(), await machine.agent()
    restic = await machine.at_gate()
    assert await kill(agent, how=how) == [0]
    assert machine.runs("interrupted") == [restic]
    await machine.job("interrupted")
    assert await kill(server, how=how) == [0]


async def test_an_agent_that_is_stopped_without_a_server_tells_it_later(machine: Machine) -> None:
    await machine.declare()
    machine.shut_gate()
    server, agent = await machine.server(), await machine.agent()
    restic = await machine.at_gate()
    assert await kill(server, how=signal.SIGTERM) == [0]
    assert await kill(agent, how=signal.SIGTERM) == [0]
    assert (machine.runs("interrupted"), machine.rows("jobs")[0]["status"]) == ([restic], "running")
    await machine.server()
    await machine.agent()
    await machine.job("interrupted")
    assert len(machine.runs()) == 1


@pytest.mark.sqlite("`up` has no other database")
async def test_up_ends_at_once_and_carries_on_and_runs_a_minute_that_it_missed_once(machine: Machine) -> None:
    await machine.declare("* * * * *")
    machine.shut_gate()
    while datetime.now(UTC).second > 40:  # the first run is to begin well within a minute
        await asyncio.sleep(0.1)
    up = await machine.up()
    await machine.at_gate()
    before = machine.rows("hosts")
    assert await kill(up, how=signal.SIGINT) == [0]
    interrupted = machine.rows("jobs")
    assert {job["status"] for job in interrupted} == {"interrupted"}
    assert machine.runs("interrupted") == machine.runs()
    (machine.folder / "gate").unlink()

    missed_after = datetime.now(UTC)
    while datetime.now(UTC).minute == missed_after.minute:
        await asyncio.sleep(0.1)
    await machine.up()

    async def ran() -> list[Any]:
        return [job for job in machine.rows("jobs") if job["status"] == "succeeded"]

    [job, *_] = await machine.until(ran)
    assert job["scheduled_at"] > missed_after
    jobs = machine.rows("jobs")
    assert len({job["scheduled_at"] for job in jobs}) == len(jobs) == len(machine.runs())
    assert jobs[: len(interrupted)] == interrupted
    unchanged = [(row["name"], row["desired_version"], row["desired_digest"]) for row in machine.rows("hosts")]
    assert unchanged == [(row["name"], row["desired_version"], row["desired_digest"]) for row in before]
