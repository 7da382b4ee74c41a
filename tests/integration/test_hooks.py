"""Hooks run only where the host's operator allows the program, and their end decides how the job ends."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.restic import hooks as rules
from agent.restic.context import Timing
from agent.restic.runner import Runner
from wire.messages import CommandRun, Hooks, JobEnd, JobFinished, JobLog, JobReport, Repository

RESTIC = shutil.which("restic") or "restic"
pytestmark = pytest.mark.anyio

PASSWORD = "correct horse battery"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Host:
    """A host with programs on it, and what a job with hooks does there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository("r1", "ns/main", str(folder / "repository"), PASSWORD)
        self.told: list[JobReport] = []
        self.allowed: list[str] = []
        self.runner: Runner

    def program(self, name: str, script: str, *, allow: bool = True) -> str:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.allowed += [str(path)] * allow
        return str(path)

    async def run(
        self,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        *,
        restic: str = "restic",
        env: dict[str, str] | None = None,
        **command: Any,
    ) -> JobFinished:
        self.runner = Runner(
            restic,
            self.folder / "cache",
            lambda: datetime.now(UTC),
            env=env,
            allow_hooks=self.allowed,
            timing=Timing(progress_s=0.01, grace_s=5),
        )
        hooks = Hooks(list(before), list(after), "ns/etc")
        args = ["backup", "--json", "--", "/etc/hostname"]
        wanted = CommandRun("j1", "backup", args, "r1", init=["init"], hooks=hooks, **command)
        return await self.runner.run(wanted, self.repository, self.told.append)

    @property
    def lines(self) -> list[str]:
        return [line for news in self.told if isinstance(news, JobLog) for line in news.lines]

    @property
    def snapshots(self) -> int:
        if not Path(self.repository.url).exists():
            return 0
        argv = [RESTIC, "--no-cache", "--repo", self.repository.url, "snapshots", "--json"]
        env = {**os.environ, "RESTIC_PASSWORD": PASSWORD}
        return len(json.loads(subprocess.run(argv, env=env, check=True, capture_output=True).stdout) or ())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_hooks_run_around_the_job_with_their_arguments_as_they_stand(host: Host) -> None:
    say = host.program("say", 'echo "$#:$1:$LAMPLIGHTER_STATUS"')
    end = await host.run([say, "a b; $(id)"], [say, "*"])
    assert (end.status, end.error, host.snapshots) == ("succeeded", "", 1)
    told = [line for line in host.lines if line[1:2] == ":"]
    assert told == ["1:a b; $(id):", "1:*:succeeded"]


async def test_a_hook_is_told_of_its_job_and_no_more_of_the_environment(host: Host) -> None:
    show = host.program("show", "env")
    env = {"PATH": os.environ["PATH"], "HOME": "/root", "LAMPLIGHTER_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    await host.run(after=[show], env=env)
    told = dict(line.split("=", 1) for line in host.lines if "=" in line)
    assert {name: value for name, value in told.items() if name.startswith("LAMPLIGHTER")} == {
        "LAMPLIGHTER_JOB": "j1",
        "LAMPLIGHTER_SCHEDULE": "ns/etc",
        "LAMPLIGHTER_STATUS": "succeeded",
    }
    assert not {"LAMPLIGHTER_TOKEN", "AWS_SECRET_ACCESS_KEY", "RESTIC_PASSWORD", "RESTIC_REPOSITORY"} & set(told)


async def test_a_failing_hook_before_skips_the_job_says_so_and_has_the_hook_after_run(host: Host) -> None:
    no, say = host.program("no", "echo not now; exit 7"), host.program("say", 'echo "it $LAMPLIGHTER_STATUS"')
    end = await host.run([no], [say])
    assert (end.status, end.reason, end.exit_code, host.snapshots) == ("failed", "HookFailed", None, 0)
    assert (
        end.error == f"the hook before the job failed: {no} ended with exit code 7: the job did not start; see its log"
    )
    assert host.lines == ["not now", end.error, "it failed"]


async def test_a_failing_hook_after_makes_a_success_a_warning_and_a_failure_no_better(host: Host) -> None:
    no = host.program("no", "exit 1")
    end = await host.run(after=[no])
    assert (end.status, end.reason, host.snapshots) == ("warning", "HookFailed", 1)
    assert end.error == f"the hook after the job failed: {no} ended with exit code 1: see the job's log"
    end = await host.run(after=[no], restic="/nowhere/restic")
    assert (end.status, end.reason) == ("failed", "")
    assert "restic was not found as" in end.error


@pytest.mark.parametrize(
    "argv", [["{folder}/other"], ["{folder}/./say"], ["say"], ["{folder}/say/../say"], ["/bin/sh"]]
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_the_agent_does_not_allow_by_its_exact_path_is_not_run_and_nor_is_the_job(
    host: Host, argv: list[str], when: str
) -> None:
    host.program("say", "touch $0.ran")
    host.program("other", "touch $0.ran", allow=False)
    hooks = [argv[0].format(folder=host.folder)]
    end = await (host.run(before=hooks) if when == "before" else host.run(after=hooks))
    assert (end.status, end.reason, host.snapshots) == ("failed", "HookFailed", 0)
    assert "start its agent with --allow-hook and the program's path, or remove the hook" in end.error
    assert not list(host.folder.glob("*.ran"))


async def test_a_hook_that_is_allowed_but_not_there_fails(host: Host) -> None:
    host.allowed.append("/nowhere/hook")
    end = await host.run(["/nowhere/hook"])
    assert (end.status, end.reason) == ("failed", "HookFailed")
    assert host.lines[0] == "/nowhere/hook cannot be run: No such file or directory"


async def test_a_hook_has_the_time_of_its_job(host: Host) -> None:
    wait = host.program("wait", "exec sleep 600")
    end = await host.run([wait], timeout_s=1)
    assert (end.status, host.snapshots) == ("timed_out", 0)


@pytest.mark.parametrize("status", ["cancelled", "interrupted"])
async def test_what_was_held_for_a_job_that_is_stopped_is_let_go(host: Host, status: JobEnd) -> None:
    hold = host.program("hold", "touch $0.held")
    held = Path(f"{hold}.held")
    go = host.program("go", 'rm "$1.held"; echo "let go: $LAMPLIGHTER_STATUS"')
    slow = host.program("restic", "echo began; exec sleep 600")
    running = asyncio.create_task(host.run([hold], [go, hold], restic=slow))
    while "began" not in host.lines:
        await asyncio.sleep(0.01)
    host.runner.stop("j1", status)
    end = await running
    assert (end.status, end.exit_code) == (status, -signal.SIGINT)
    assert host.lines[-1] == f"let go: {status}"
    assert held not in host.folder.iterdir()


async def test_a_window_that_closes_after_the_work_does_not_interrupt_the_hook_after(host: Host) -> None:
    slow = host.program("slow", "echo began; while [ ! -e $0.go ]; do sleep 0.02; done")
    running = asyncio.create_task(host.run(after=[slow]))
    while "began" not in host.lines:
        await asyncio.sleep(0.01)
    host.runner.stop("j1", "interrupted", "WindowClosed")
    Path(f"{slow}.go").touch()
    end = await running
    assert (end.status, end.reason, host.snapshots) == ("succeeded", "", 1)


async def test_a_window_that_closes_while_snapshots_are_counted_leaves_the_hook_after_its_time(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "AFTER_STOP_S", 0.1)
    waits = 'case "$*" in *snapshots*) echo counts >&2; while [ ! -e $0.go ]; do sleep 0.02; done;; esac'
    slow = host.program("restic", f'{waits}; exec {shutil.which("restic")} "$@"')
    running = asyncio.create_task(host.run(after=[host.program("after", "sleep 0.5; echo let go")], restic=slow))
    while "counts" not in host.lines:
        await asyncio.sleep(0.01)
    host.runner.stop("j1", "interrupted", "WindowClosed")
    Path(f"{slow}.go").touch()
    end = await running
    assert (end.status, end.reason, host.lines[-1]) == ("succeeded", "", "let go")


async def test_a_hook_after_a_stop_has_its_own_short_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "AFTER_STOP_S", 0.1)
    stuck = host.program("stuck", "exec sleep 600")
    end = await host.run(after=[stuck], restic=host.program("restic", "exec sleep 600"), timeout_s=1)
    assert end.status == "timed_out"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root (chroot(2))")
async def test_hooks_are_looked_up_in_the_hosts_own_file_system(host: Host) -> None:
    root = host.folder / "root"
    for folder in ("bin", "proc", "dev", "etc"):
        (root / folder).mkdir(parents=True)
    (root / "etc" / "who").write_text("the host itself")
    for program in (root / "bin" / "cat", host.folder / "true"):
        shutil.copy(shutil.which("busybox") or "busybox", program)
    restic, cache = str(host.folder / "true"), host.folder / "cache"
    runner = Runner(restic, cache, lambda: datetime.now(UTC), root=root, allow_hooks=["/bin/cat"])
    command = CommandRun("j1", "unlock", [], "r1", hooks=Hooks(["/bin/cat", "/etc/who"]))
    end = await runner.run(command, host.repository, host.told.append)
    assert (end.status, host.lines) == ("succeeded", ["the host itself"])
