"""What a program prints becomes a snapshot only if the program succeeds; it runs only where the operator allowed it."""

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.restic.context import Timing
from agent.restic.runner import Runner
from tests.restics import Program, programs
from wire.messages import CommandRun, Hooks, JobFinished, JobLog, JobReport, Repository, Restore

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
KNOWN_SINCE = (0, 17)
KNOWING: list[Program | None] = [it for it in programs() if it.version >= KNOWN_SINCE]
NOT_KNOWING: list[Program] = [it for it in programs() if it.version < KNOWN_SINCE]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Host:
    """A host with programs on it, and jobs that back up what they print."""

    def __init__(self, folder: Path, restic: Program) -> None:
        self.folder = folder
        self.restic = restic
        self.repository = Repository("r1", "ns/main", str(folder / "repository"), PASSWORD)
        self.allowed: list[str] = []
        self.told: list[JobReport] = []
        self.runner: Runner

    def program(self, script: str, *, allow: bool = True) -> str:
        path = self.folder / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.allowed += [str(path)] * allow
        return str(path)

    async def backup(self, *command: str, **more: Any) -> JobFinished:
        args = ["backup", "--json", "--host=db-1", "--tag=nightly", "--stdin-from-command", "--stdin-filename=shop.sql"]
        hooks = Hooks(schedule="ns/shop")
        return await self.run(CommandRun("j1", "backup", args, "r1", init=["init"], hooks=hooks, **more), command)

    async def run(self, wanted: CommandRun, command: Sequence[str] = ()) -> JobFinished:
        env = {"PATH": os.environ["PATH"], "HOME": "/root", "AWS_SECRET_ACCESS_KEY": "x"}
        timing, clock = Timing(progress_s=0.01, grace_s=5), lambda: datetime.now(UTC)
        cache = self.folder / "cache"
        self.runner = Runner(self.restic.path, cache, clock, env=env, allow_hooks=self.allowed, timing=timing)
        wanted = msgspec.structs.replace(wanted, stdin_command=[*command])
        return await self.runner.run(wanted, self.repository, self.told.append)

    @property
    def lines(self) -> list[str]:
        return [line for news in self.told if isinstance(news, JobLog) for line in news.lines]

    def said(self, *args: str) -> bytes:
        argv = [self.restic.path, "--no-cache", "--repo", self.repository.url, *args]
        env = {**os.environ, "RESTIC_PASSWORD": PASSWORD}
        return subprocess.run(argv, env=env, check=True, capture_output=True).stdout

    @property
    def snapshots(self) -> list[Any]:
        return json.loads(self.said("snapshots", "--json")) or []


@pytest.fixture(params=KNOWING or [None], ids=str)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    if request.param is None:
        pytest.skip("no restic here knows --stdin-from-command: name one in LAMPLIGHTER_TEST_RESTICS")
    return Host(tmp_path, request.param)


async def test_what_a_program_prints_becomes_a_snapshot_that_restores(host: Host) -> None:
    dump = host.program('echo "$# $1"; echo to people >&2')
    end = await host.backup(dump, "a b; $(id)")
    assert (end.status, end.error, end.files_processed) == ("succeeded", "", 1)
    assert "to people" in host.lines
    [snapshot] = host.snapshots
    assert (snapshot["hostname"], snapshot["paths"], snapshot["tags"]) == ("db-1", ["/shop.sql"], ["nightly"])
    target = host.folder / "restored"
    restored = await host.run(CommandRun("j2", "restore", [], "r1", restore=Restore(str(target), source_host="db-1")))
    assert (restored.status, restored.error) == ("succeeded", "")
    assert (target / "shop.sql").read_text() == "1 a b; $(id)\n"


async def test_a_program_that_fails_makes_no_snapshot_however_much_it_printed(host: Host) -> None:
    dump = host.program("head -c 3000000 /dev/urandom; echo gone >&2; exit 7")
    end = await host.backup(dump)
    assert (end.status, end.reason) == ("failed", "CommandFailed")
    assert end.error.startswith(f"spec.backup.command failed: {dump} ended with exit code 7, so there is no snapshot")
    assert ("gone" in host.lines, host.snapshots) == (True, [])


@pytest.mark.parametrize("script", ["kill -9 $$", "exec /no/such/program"])
async def test_a_program_that_is_killed_or_cannot_be_run_makes_no_snapshot(host: Host, script: str) -> None:
    end = await host.backup(host.program(f"echo something; {script}"))
    assert (end.status, end.reason, host.snapshots) == ("failed", "CommandFailed", [])


async def test_a_program_that_prints_nothing_fails_the_job(host: Host) -> None:
    end = await host.backup(host.program("true"))
    assert (end.status, end.reason) == ("failed", "CommandFailed")
    assert "printed nothing" in end.error


async def test_a_program_that_the_operator_did_not_allow_is_not_run(host: Host) -> None:
    dump = host.program(f"touch {host.folder}/ran", allow=False)
    end = await host.backup(dump)
    assert (end.status, end.reason) == ("failed", "HookFailed")
    assert end.error.startswith(f"spec.backup.command is not run: {dump!r} is not allowed on this host")
    assert not (host.folder / "ran").exists()


async def test_a_program_gets_the_environment_of_a_hook_and_is_not_confined_as_restic_is(host: Host) -> None:
    (host.folder / "secret").write_text("of the host")
    dump = host.program(f"env; cat {host.folder}/secret")
    (host.folder / "granted").mkdir()
    host.repository = Repository("r1", "ns/main", str(host.folder / "granted/repository"), PASSWORD)
    end = await host.backup(dump, within=[str(host.folder / "granted")])
    assert (end.status, end.error) == ("succeeded", "")
    printed = host.said("dump", "latest", "/shop.sql").decode()
    told = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert (told["LAMPLIGHTER_JOB"], told["LAMPLIGHTER_SCHEDULE"]) == ("j1", "ns/shop")
    assert not {"AWS_SECRET_ACCESS_KEY", "RESTIC_PASSWORD", "RESTIC_REPOSITORY"} & set(told)
    assert printed.endswith("of the host")


async def test_a_program_does_not_start_where_restic_cannot_and_restics_failure_is_told(host: Host) -> None:
    await host.backup(host.program("echo one"))
    host.repository = Repository("r1", "ns/main", host.repository.url, "another password")
    end = await host.backup(host.program(f"touch {host.folder}/ran; echo two"))
    assert (end.status, end.reason, (host.folder / "ran").exists()) == ("failed", "WrongPassword", False)


async def test_a_job_that_is_stopped_stops_its_program_and_makes_no_snapshot(host: Host) -> None:
    dump = host.program(f"echo begin; echo $$ > {host.folder}/pid; exec sleep 600")
    job = asyncio.create_task(host.backup(dump))
    pid = host.folder / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        await asyncio.sleep(0.02)
    host.runner.stop("j1", "cancelled")
    assert ((await job).status, host.snapshots) == ("cancelled", [])
    while Path(f"/proc/{pid.read_text().strip()}").exists():
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("restic", NOT_KNOWING, ids=str)
async def test_an_older_restic_is_refused_by_name_and_runs_nothing(tmp_path: Path, restic: Program) -> None:
    host = Host(tmp_path, restic)
    end = await host.backup(host.program(f"touch {tmp_path}/ran"))
    assert (end.status, (tmp_path / "ran").exists()) == ("failed", False)
    assert end.error == (
        f"restic {restic} does not know spec.backup.command: install restic 0.17 or newer on this host"
    )
