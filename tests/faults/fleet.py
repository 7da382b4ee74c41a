"""A fleet of real processes in a folder: a server or `up`, agents over links that can fail, and restic."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench.fleet import Fleet as Storm
from bench.servers import free_port
from tests.faults.checks import Job
from tests.faults.clock import Clocks
from tests.faults.hostile import Hostile
from tests.faults.link import Link
from tests.faults.plan import HOSTS, LINKED, Setup
from tests.plain import NO_TLS

ROOT = Path(__file__).parents[2]
BEGIN = datetime(2026, 3, 2, 12, tzinfo=UTC)
READY_S = 180
AGAIN_S = 0.2
"""Seconds after which a part that ended by itself is started again, as its supervisor would."""
DISK_BYTES = 24 << 20
PASSWORD = "a password of the tests"
REAL = {"kubernetes.io/os": "linux"}
"""A label of the hosts that have an agent of their own; those of a storm have none."""
KEPT = {"minutely": 1, "shared": 2}
"""Schedules that are never changed, and of which each due time is to run or be stood for: they come every so many
minutes."""
DUE = {**KEPT, "rare": 0, "unlock": 1, "prune": 5, "check": 5}
DUE |= {"alone-forbid": 1, "alone-replace": 3, "strict": 1, "skipping": 2}
"""Of each schedule, every how many minutes of the hour it is due; 0 for one that is never due meanwhile."""

RESTIC = """#!/bin/sh
case " $* " in *" snapshots "*) echo "[]"; exit ;; esac
for word in "$@"; do
    case $word in --host=*) host=${word#*=} ;; --tag=lamplighter=*) schedule=${word#*=lamplighter=*/} ;; esac
done
id=$(printf %08x $$)
[ "$1" = backup ] && printf '%s %s %s\\n' "$host" "$schedule" "$id" >> "FOLDER/runs"
case $schedule in alone-*)
    exec 9>> "FOLDER/$schedule.$host.lock"
    flock -n 9 || printf '%s %s\\n' "$host" "$schedule" >> "FOLDER/overlaps"
esac
printf '{"message_type":"summary","total_files_processed":1,"snapshot_id":"%s"}\\n' "$id"
exec sleep 0.25
"""
"""Stands in for restic, and writes down its runs. A run of `alone-…` holds a lock for as long as its process lives."""


class Part:
    """A process that is started again whenever it ends, unless it is held down."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, folder: Path = ROOT) -> None:
        self.name, self.argv, self.log, self.folder = name, argv, log, folder
        self.busy = False  # whether a fault already holds it down or still
        self.deaths: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._may_run = asyncio.Event()
        self._may_run.set()

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Keep it running, until cancelled."""
        try:
            while True:
                await self._may_run.wait()
                env = {**os.environ, "TMPDIR": str(self.log.parent)}  # where the stand-in for restic may write
                with self.log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *self.argv, cwd=self.folder, env=env, stdout=log, stderr=log
                    )
                code = await self._process.wait()
                if self._may_run.is_set():
                    if not self._refused():
                        self.deaths.append(f"{self.name} ended by itself with {code}: see {self.log}")
                    await asyncio.sleep(AGAIN_S)
        finally:
            await self.kill()

    def _refused(self) -> bool:
        """Whether it said that it cannot start, and why, as it does on a full disk."""
        lines = self.log.read_text(errors="replace").splitlines()
        return bool(lines) and lines[-1].startswith("Error: ")

    async def kill(self, number: int = signal.SIGKILL) -> int | None:
        """End it with a signal and hold it down until `release`; its exit code."""
        self._may_run.clear()
        if self.pid is None or self._process is None:
            return None
        self._process.send_signal(number)
        return await self._process.wait()

    def release(self) -> None:
        """Let it start again."""
        self._may_run.set()


class Fleet:
    """Parts, their links, clocks and disks, and what can be asked of the server.

    `begin`: since when all hosts hold what is kept; `until`: what was due by then is to be over. `lost`: jobs that were
    stored before an older database was put back, by id.
    """

    storm: Storm | None = None
    hostile: Hostile | None = None
    hostile_runs: "asyncio.Task[None]"

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup, self.folder = setup, folder
        self.parts: dict[str, Part] = {}
        self.links: dict[str, Link] = {}
        self.port = free_port()
        self.clocks = Clocks(folder, [setup.server, *setup.agents], BEGIN)
        self.begin = self.until = BEGIN
        self.schedules: dict[str, str] = {}
        self.lost: dict[str, Job] = {}
        self.edits = asyncio.Lock()
        self.api: httpx.AsyncClient

    @property
    def server(self) -> Part:
        """The part that serves."""
        return self.parts[self.setup.server]

    def part_of(self, host: str) -> Part:
        """The part that is a host's agent."""
        return self.parts.get(host) or self.server

    def data(self, part: str) -> Path:
        """A part's data folder."""
        return self.folder / "disks" / part

    @property
    def database(self) -> Path:
        """The server's."""
        return self.data(self.setup.server) / "lamplighter.db"

    def journal(self, host: str) -> Path:
        """The journal of a host's agent."""
        return (self.data(host) if host in self.setup.agents else self.data("up") / "agent") / "journal.jsonl"

    @property
    def gateway(self) -> tuple[str, str]:
        """Where agents connect, and what lets them in."""
        token = (self.data(self.setup.server) / "agent-token").read_text().strip()
        return f"ws://127.0.0.1:{self.port}/agent", token

    def repository(self, host: str = "") -> Path:
        """A host's own repository, or the shared one."""
        return self.folder / "repositories" / (host or "shared")

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Ask the server until it answers for good: while it is down or cannot write, it is asked again."""
        async with asyncio.timeout(READY_S):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self.api.request(method, path, json=body)
                    if answer.status_code < 500:
                        return answer
                await asyncio.sleep(0.1)

    async def declare(self, path: str, body: Mapping[str, Any]) -> None:
        """Have the server take this. Raises AssertionError where it refuses."""
        answer = await self.ask("PUT", path, body)
        assert answer.is_success, f"{path}: {answer.text}"

    async def put_schedule(self, name: str, kind: str, cron: str, repository: str = "own", **spec: Any) -> None:
        """Have the server take a Schedule, of the hosts that have a real agent unless told otherwise."""
        of_kind = {"backup": {"paths": [str(self.folder / "source")]}} if kind == "backup" else {}
        common = {"kind": kind, "cron": cron, "repositoryRef": {"name": repository}, **of_kind}
        await self.declare(
            f"/schedules/faults/{name}", {"spec": {**common, "hostSelector": {"matchLabels": REAL}, **spec}}
        )

    async def label(self, host: str, group: str) -> None:
        """Put a host into a group."""
        await self.declare(f"/hosts/{host}", {"labels": {**REAL, "kubernetes.io/hostname": host, "group": group}})

    # Its begin.

    def _prepare(self) -> None:
        """Write what its processes find when they start."""
        (self.folder / "source").mkdir()
        (self.folder / "source" / "file").write_text("what is backed up\n")
        (self.folder / "declared").mkdir()
        restic = shutil.which("restic") or "restic"
        program = f'#!/bin/sh\nexec "{restic}" "$@"\n' if self.setup.real else RESTIC
        (self.folder / "restic").write_text(program.replace("FOLDER", str(self.folder)))
        (self.folder / "restic").chmod(0o755)
        if self.setup.real:
            self.restic("init")  # which is slow on purpose: the others are its copies
            for host in HOSTS:
                shutil.copytree(self.repository(), self.repository(host))

    def restic(self, *args: str, host: str = "") -> str:
        """Real restic on a repository of the fleet: what it prints. Raises CalledProcessError."""
        env = {**os.environ, "RESTIC_REPOSITORY": str(self.repository(host)), "RESTIC_PASSWORD": PASSWORD}
        argv = ["restic", "--no-cache", *args]
        return subprocess.run(argv, env=env, check=True, text=True, stdout=-1, stderr=subprocess.STDOUT).stdout

    def _make_parts(self) -> None:
        server, listen = self.setup.server, ("--listen", f"127.0.0.1:{self.port}")
        restic = ("--restic", str(self.folder / "restic"))
        up = (str(self.folder / "declared"), "--host", HOSTS[0], *restic) if self.setup.up else ()
        self._add(server, server, *up, "--data-dir", str(self.data(server)), *listen)
        token = str(self.data(server) / "agent-token")
        for host in self.setup.agents:
            port = self.links[host].port if host in self.links else self.port
            at = ("--server", f"http://127.0.0.1:{port}", "--data-dir", str(self.data(host)), "--token-file", token)
            self._add(host, "agent", *at, "--host", host, *restic)

    def _add(self, name: str, *args: str) -> None:
        clock = str(self.folder / f"{name}.clock")
        argv = (sys.executable, "-m", "tests.faults.part", clock, *args)
        self.parts[name] = Part(name, argv, self.folder / f"{name}.log")

    async def _declare_all(self) -> None:
        for host in HOSTS:
            await self.label(host, "a")
        secret = {"credentials": {"password": PASSWORD}}
        own = {"spec": {"url": str(self.folder / "repositories" / "{host}")}}
        shared = {"spec": {"url": str(self.repository()), "maxConcurrentJobs": 2}}
        await self.declare("/repositories/faults/own", own | secret)
        await self.declare("/repositories/faults/shared", shared | secret)
        put = self.put_schedule
        await put("minutely", "backup", "* * * * *", concurrencyPolicy="Allow")
        retry = {"limit": 2, "backoffSeconds": 1}
        await put("shared", "backup", "*/2 * * * *", "shared", concurrencyPolicy="Allow", retry=retry)
        await put("rare", "backup", "0 0 29 2 *", hostSelector={})
        if self.setup.real:
            await put("unlock", "unlock", "* * * * *", "shared")
            await put("prune", "prune", "*/5 * * * *", "shared")
        else:
            await put("alone-forbid", "backup", "* * * * *", concurrencyPolicy="Forbid", retry=retry)
            await put("alone-replace", "backup", "*/3 * * * *", "shared", concurrencyPolicy="Replace")
            await put("strict", "backup", "* * * * *", concurrencyPolicy="Allow", startingDeadlineSeconds=90)
            await put("skipping", "backup", "*/2 * * * *", missedRunPolicy="Skip")
            await put("check", "check", "*/5 * * * *", "shared")
        for item in (await self.ask("GET", "/schedules")).json()["items"]:
            self.schedules[item["metadata"]["name"]] = item["metadata"]["uid"]


@asynccontextmanager
async def running(setup: Setup) -> AsyncIterator[Fleet]:
    """A fleet that has begun. Its processes, mounts and files are gone at the end, whatever happens; its files stay
    where something raises."""
    folder = Path(tempfile.mkdtemp(prefix="lamplighter-faults-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        fleet = Fleet(setup, folder)
        for name in (setup.server, *setup.agents):
            stack.callback(_unmount, _mounted(fleet.data(name)))
        await asyncio.to_thread(fleet._prepare)
        for host in LINKED:
            fleet.links[host] = await stack.enter_async_context(Link(fleet.port))
        fleet._make_parts()
        tasks = [asyncio.create_task(fleet.server.run())]
        stack.push_async_callback(_ended, tasks)
        stack.push_async_callback(calm, fleet)
        await _serves(fleet)
        headers = {"authorization": f"Bearer {(fleet.data(setup.server) / 'admin-token').read_text().strip()}"}
        base = f"http://127.0.0.1:{fleet.port}/api/v1"
        fleet.api = await stack.enter_async_context(
            httpx.AsyncClient(base_url=base, headers=headers, timeout=10, verify=NO_TLS)
        )
        await fleet._declare_all()
        tasks += [asyncio.create_task(fleet.parts[host].run()) for host in setup.agents]
        yield fleet


async def _serves(fleet: Fleet) -> None:
    """Wait until the server answers."""
    async with asyncio.timeout(READY_S), httpx.AsyncClient(verify=NO_TLS) as client:
        while True:
            with suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{fleet.port}/readyz")).is_success:
                    return
            await asyncio.sleep(0.05)


async def calm(fleet: Fleet) -> None:
    """Send those off who came with a fault."""
    if fleet.storm is not None:
        await fleet.storm.stop()
        fleet.storm = None
    if fleet.hostile is not None:
        await _ended([fleet.hostile_runs])
        fleet.hostile = None


async def _ended(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def can_mount() -> bool:
    """Whether this user may give a part a disk of its own."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _mounted(folder: Path) -> Path | None:
    """Make a folder, where possible a small disk of its own (tmpfs(5)); what there is to unmount."""
    folder.mkdir(parents=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    if can_mount() and subprocess.run(argv, check=False, capture_output=True).returncode == 0:
        return folder
    return None


def _unmount(folder: Path | None) -> None:
    if folder is not None:
        argv = ["umount", "--lazy", str(folder)]
        subprocess.run(argv, check=False)
