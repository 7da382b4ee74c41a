"""Every kind of job does what its Schedule says, and to nothing else, with real restic and repositories."""

import asyncio
import json
import os
import random
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.restic.runner import Runner
from agent.restic.verify import MAX_PATHS
from server.jobs import arguments as commands
from server.resources.manifests import parse_schedule
from tests.conftest import NewRepository
from wire.messages import CommandRun, JobLog, JobReport, Repository

RESTIC = shutil.which("restic") or "restic"
HOST = "node-1"
PASSWORD = "correct horse battery"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to back up."""
    made = tmp_path / "data"
    made.mkdir()
    for at in range(10):
        (made / f"file [{at}]*").write_bytes(os.urandom(1000 + at))
    return made


@pytest.fixture
def repository(tmp_path: Path, new_repository: NewRepository) -> Repository:
    made = Repository("r1", "ns/main", str(tmp_path / "repository"), PASSWORD)
    new_repository(Path(made.url), PASSWORD)
    return made


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner("restic", tmp_path / "agent" / "cache", lambda: datetime.now(UTC), rng=random.Random(1))


class Told:
    """What a job reported."""

    def __init__(self) -> None:
        self.news: list[JobReport] = []

    def __call__(self, news: JobReport) -> None:
        self.news.append(news)

    @property
    def lines(self) -> list[str]:
        return [line for news in self.news if isinstance(news, JobLog) for line in news.lines]


def restic(repository: Repository, *args: Any) -> str:
    env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": repository.url, "RESTIC_PASSWORD": PASSWORD}
    return subprocess.run([RESTIC, "--no-cache", *args], env=env, capture_output=True, check=True, text=True).stdout


def command(kind: str, host: str = HOST, **spec: Any) -> CommandRun:
    """The command that a Schedule with this spec becomes."""
    manifest = {"kind": kind, "cron": "@daily", "repositoryRef": {"name": "main"}, **spec}
    parsed = parse_schedule({"metadata": {"name": "it"}, "spec": manifest}).spec
    args = commands.run_args(parsed, "ns/it", host, ["ns/etc"])
    return CommandRun("j1", kind, args, "r1", lock_wait_s=0, verify=commands.verify_part(parsed))


def backup(repository: Repository, *paths: Path, host: str = HOST) -> None:
    restic(repository, "backup", f"--host={host}", f"--tag={commands.own_tag('ns/etc')}", *map(str, paths))


def hosts(repository: Repository) -> list[Any]:
    return sorted(it["hostname"] for it in json.loads(restic(repository, "snapshots", "--json")) or ())


def packs(repository: Repository) -> set[Any]:
    return {path.name for path in Path(repository.url, "data").rglob("*") if path.is_file()}


# forget.


async def test_forget_keeps_what_the_retention_says_and_leaves_other_hosts_alone(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    for host in (HOST, HOST, "node-2", "node-2"):
        backup(repository, folder, host=host)
    end = await runner.run(command("forget", retention={"keepLast": 1}), repository, Told())
    assert (end.status, hosts(repository)) == ("succeeded", [HOST, "node-2", "node-2"])
    end = await runner.run(command("forget", retention={"keepLast": 1, "allHosts": True}), repository, Told())
    assert (end.status, hosts(repository)) == ("succeeded", [HOST, "node-2"])


async def test_forget_keeps_tagged_snapshots(runner: Runner, repository: Repository, folder: Path) -> None:
    restic(repository, "backup", f"--host={HOST}", "--tag=kept", str(folder))
    for _ in range(2):
        backup(repository, folder)
    wanted = command("forget", retention={"keepLast": 1, "keepTags": ["kept"], "allTags": True})
    assert (await runner.run(wanted, repository, Told())).status == "succeeded"
    assert [it.get("tags") for it in json.loads(restic(repository, "snapshots", "--json"))] == [
        ["kept"],
        ["lamplighter=ns/etc"],
    ]


@pytest.mark.parametrize("prune", [False, True])
async def test_data_that_no_snapshot_needs_goes_at_once_only_where_that_is_asked_for(
    runner: Runner, repository: Repository, folder: Path, prune: bool
) -> None:
    backup(repository, folder)
    (folder / "big").write_bytes(os.urandom(3_000_000))
    backup(repository, folder)
    (folder / "big").unlink()
    backup(repository, folder)
    before = packs(repository)
    wanted = command("forget", retention={"keepLast": 1, "prune": prune})
    assert (await runner.run(wanted, repository, Told())).status == "succeeded"
    assert (before - packs(repository) != set()) == prune


# prune, check, unlock.


async def test_prune_removes_what_no_snapshot_needs(runner: Runner, repository: Repository, folder: Path) -> None:
    backup(repository, folder)
    restic(repository, "forget", json.loads(restic(repository, "snapshots", "--json"))[0]["id"])
    assert (await runner.run(command("prune"), repository, Told())).status == "succeeded"
    assert packs(repository) == set()


@pytest.mark.parametrize("spec", [{}, {"check": {"readDataSubset": "100%"}}])
async def test_check_finds_nothing_wrong_in_a_sound_repository(
    runner: Runner, repository: Repository, folder: Path, spec: dict[str, Any]
) -> None:
    backup(repository, folder)
    told = Told()
    assert (await runner.run(command("check", **spec), repository, told)).status == "succeeded"
    assert "no errors were found" in told.lines


def data_pack(repository: Repository) -> Path:
    """The pack that holds the files' content; the trees have the other one."""
    return max((it for it in Path(repository.url, "data").rglob("*") if it.is_file()), key=lambda it: it.stat().st_size)


def damage(pack: Path, *places: int) -> None:
    """Turn bits, as a failing disk does."""
    content = bytearray(pack.read_bytes())
    for at in places:
        content[at] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


async def test_check_that_reads_the_data_finds_a_bit_that_turned(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    backup(repository, folder)
    damage(data_pack(repository), 10)
    assert (await runner.run(command("check"), repository, Told())).status == "succeeded"
    end = await runner.run(command("check", check={"readDataSubset": "100%"}), repository, Told())
    assert (end.status, "Fatal: repository contains errors" in end.error) == ("failed", True)


def locks(repository: Repository) -> set[Any]:
    return {it.name for it in Path(repository.url, "locks").iterdir() if "-tmp-" not in it.name}


@pytest.fixture
def locker(repository: Repository, tmp_path: Path) -> Iterator[Callable[..., Awaitable[Any]]]:
    """Starts a restic that holds a lock and goes no further."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": repository.url, "RESTIC_PASSWORD": PASSWORD}
    started = []

    def start() -> subprocess.Popen[bytes]:
        argv = [RESTIC, "--no-cache", "backup", "--stdin"]
        started.append(subprocess.Popen(argv, stdin=pipe, env=env, stdout=subprocess.DEVNULL))
        return started[-1]

    async def locker() -> tuple[subprocess.Popen[bytes], Any]:
        before, holder = locks(repository), start()
        while not (new := locks(repository) - before):
            await asyncio.sleep(0.01)
        return holder, new.pop()

    yield locker
    os.close(pipe)
    for process in started:
        process.kill()
        process.wait()


async def test_unlock_removes_the_locks_of_the_dead_and_no_others(
    runner: Runner, repository: Repository, locker: Callable[..., Awaitable[Any]]
) -> None:
    dead, _ = await locker()
    dead.kill()
    dead.wait()
    _, of_the_living = await locker()
    end = await runner.run(command("unlock"), repository, Told())
    assert (end.status, locks(repository)) == ("succeeded", {of_the_living})


# verify.


async def test_verify_restores_a_sample_and_compares_it_with_its_source(
    runner: Runner, repository: Repository, folder: Path, tmp_path: Path
) -> None:
    backup(repository, folder)
    told = Told()
    end = await runner.run(command("verify", verify={"files": 5}), repository, told)
    assert (end.status, end.files_processed, end.error) == ("succeeded", 5, "")
    assert 5000 <= end.bytes_processed <= 5045
    assert len(end.snapshot_id) == 64
    assert "restored 5 of 10 files of snapshot" in told.lines[-1]
    assert told.lines[-1].endswith("0 differ; 5 were also compared with their unchanged source")
    assert list((tmp_path / "agent" / "scratch").iterdir()) == []


async def test_verify_takes_as_many_files_as_a_schedule_may_ask_for_with_long_paths(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    deep = folder.joinpath(*["*" * 250] * 2)
    deep.mkdir(parents=True)
    for at in range(500):
        (deep / f"{at:*>250}").touch()
    backup(repository, deep)
    told = Told()
    end = await runner.run(command("verify", verify={"files": 500}), repository, told)
    assert (end.status, end.error) == ("succeeded", "")
    length = len(str(deep)) + 251
    assert end.files_processed == min(500, MAX_PATHS // length) > 300
    assert f"{end.files_processed} were also compared with their unchanged source" in told.lines[-1]


async def test_verify_takes_the_latest_snapshot_of_its_own_host_and_keeps_to_its_bytes(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    backup(repository, folder)
    (folder / "big").write_bytes(os.urandom(5000))
    backup(repository, folder, host="node-2")
    told = Told()
    end = await runner.run(command("verify", verify={"maxBytes": "3Ki"}), repository, told)
    assert (end.status, end.files_processed) == ("succeeded", 3 if end.bytes_processed > 3000 else 2)
    assert "of 10 files" in told.lines[-1]


async def test_what_has_changed_since_is_compared_with_what_restic_says_alone(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    backup(repository, folder)
    for file in folder.iterdir():
        file.write_text("changed")
    told = Told()
    assert (await runner.run(command("verify"), repository, told)).status == "succeeded"
    assert "0 were also compared with their unchanged source" in told.lines[-1]


async def test_a_damaged_repository_does_not_verify_and_the_files_are_named(
    runner: Runner, repository: Repository, folder: Path, tmp_path: Path
) -> None:
    backup(repository, folder)
    damage(data_pack(repository), *range(0, 8000, 500))
    end = await runner.run(command("verify"), repository, Told())
    assert (end.status, end.reason) == ("failed", "VerificationFailed")
    assert f"{folder}/file [" in end.error
    assert list((tmp_path / "agent" / "scratch").iterdir()) == []


LIAR = """#!/bin/bash
restic "$@" || exit
[ "$1" = restore ] || exit 0
find "${3#--target=}" -type f -exec sh -c 'size=$(stat -c %s "$0"); head -c $size /dev/zero >"$0"' {} ";"
"""


async def test_content_that_differs_from_an_unchanged_source_does_not_verify(
    tmp_path: Path, repository: Repository, folder: Path
) -> None:
    """A restic that gives back other bytes of the same number, as one whose repository was tampered with might."""
    backup(repository, folder)
    program = tmp_path / "restic"
    program.write_text(LIAR)
    program.chmod(0o755)
    runner = Runner(str(program), tmp_path / "agent" / "cache", lambda: datetime.now(UTC), rng=random.Random(1))
    end = await runner.run(command("verify", verify={"files": 2}), repository, Told())
    assert (end.status, end.reason) == ("failed", "VerificationFailed")
    assert "the restored content differs from the source, which has not changed since the backup" in end.error


async def test_where_there_is_nothing_to_verify_it_fails_with_the_remedy(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    backup(repository, folder, host="node-2")
    end = await runner.run(command("verify"), repository, Told())
    assert (end.status, end.reason) == ("failed", "NoSnapshot")
    assert "run a Schedule of kind backup, or copy, into this Repository first" in end.error
    backup(repository, folder)
    end = await runner.run(command("verify", verify={"maxBytes": "10"}), repository, Told())
    assert "raise spec.verify.maxBytes" in end.error


def test_what_a_killed_agent_left_of_a_verification_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "agent" / "scratch" / "x" / "deep"
    left.mkdir(parents=True)
    (left / "secret").write_text("of the host")
    left.chmod(0o500)
    Runner("restic", tmp_path / "agent" / "cache", lambda: datetime.now(UTC))
    assert not (tmp_path / "agent" / "scratch").exists()


# What could not be read.


async def test_files_that_could_not_be_read_are_named_in_the_log_and_counted(
    runner: Runner, repository: Repository, folder: Path
) -> None:
    told = Told()
    there = [str(folder), str(folder / "gone"), str(folder / "away")]
    end = await runner.run(command("backup", backup={"paths": there}), repository, told)
    assert end.status == "warning"
    assert end.error.startswith("2 paths could not be read and are not in the snapshot: ")
    assert {path.rpartition("/")[2] for path in end.error.split(", ")} == {"gone", "away"}
    assert [line for line in told.lines if "gone" in line]
    assert [line for line in told.lines if "away" in line]
