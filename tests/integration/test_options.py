"""Each option of a spec does what it says, with every restic that there is, and a restic that lacks it is known to."""

import json
import os
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.restic.runner import Runner
from server.jobs import arguments as commands
from server.resources import restic as options
from server.resources.manifests import parse_repository, parse_schedule
from server.resources.restic import OPTIONS, Option, repository_options
from tests.conftest import NewRepository
from tests.restics import WHICH, Program, programs
from wire.messages import CommandRun, JobFinished, JobLog, JobReport, Repository

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Host:
    """A host with some files, a repository, and one of the restics."""

    def __init__(self, program: Program, folder: Path, new_repository: NewRepository) -> None:
        self.program = program
        self.data = folder / "data"
        self.data.mkdir()
        self.repository = Repository("r1", "ns/main", str(folder / "repository"), PASSWORD)
        new_repository(Path(self.repository.url), PASSWORD)
        self.cache = folder / "agent" / "cache"
        self.lines: list[str] = []

    def write(self, name: str, content: bytes = b"x") -> Path:
        path = self.data / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    async def run(
        self,
        kind: str = "backup",
        restic: str = "",
        of: dict[str, Any] | None = None,
        name: str = "ns/it",
        **spec: Any,
    ) -> Any:
        """Run a Schedule with this spec. `of`: the Repository's options. Of kind backup there is ns/it alone."""
        if kind == "backup":
            spec["backup"] = {"paths": [str(self.data)], **spec.get("backup", {})}
        manifest = {"kind": kind, "cron": "@daily", "repositoryRef": {"name": "main"}, **spec}
        its = parse_schedule({"metadata": {"name": "it"}, "spec": manifest}).spec
        where = parse_repository({"metadata": {"name": "main"}, "spec": {"url": "/srv", **(of or {})}}).spec
        args = commands.run_args(its, name, "node-1", ["ns/it"])
        command = CommandRun(
            "j1",
            kind,
            args,
            "r1",
            lock_wait_s=0,
            verify=commands.verify_part(its),
            options=repository_options(where),
            nice=its.nice,
            io_class=its.io_class or "",
        )
        return await Runner(restic or self.program.path, self.cache, lambda: datetime.now(UTC)).run(
            command, self.repository, self._hear
        )

    def _hear(self, news: JobReport) -> None:
        if isinstance(news, JobLog):
            self.lines += news.lines

    def ask(self, *args: str) -> list[Any]:
        """What restic says in lines of JSON."""
        env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": self.repository.url, "RESTIC_PASSWORD": PASSWORD}
        argv = [self.program.path, "--no-cache", "--json", *args]
        told = subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout
        return [json.loads(line) for line in told.splitlines()]

    def files(self) -> dict[str, Any]:
        """The files of the latest snapshot, by path below the data."""
        nodes = (it for it in self.ask("ls", "latest") if it.get("type") == "file")
        return {str(Path(it["path"]).relative_to(self.data)): it for it in nodes}

    def left(self) -> dict[str, int]:
        """How many snapshots there are, by the Schedule that made them."""
        [found] = self.ask("snapshots")
        return dict(Counter(tag.removeprefix("lamplighter=") for it in found for tag in it["tags"] if "=" in tag))

    def packs(self) -> list[int]:
        """The sizes of the files in the repository that hold data."""
        return [it.stat().st_size for it in Path(self.repository.url, "data").rglob("*") if it.is_file()]


@pytest.fixture(params=programs(), ids=str)
def host(request: pytest.FixtureRequest, tmp_path: Path, new_repository: NewRepository) -> Host:
    return Host(request.param, tmp_path, new_repository)


def went_well(end: JobFinished) -> bool:
    assert (end.status, end.error) == ("succeeded", "")
    return True


def known(host: Host, *names: str) -> bool:
    return all(host.program.version[:2] >= it.since for it in OPTIONS if it.field in names)


# What the table of options says of restic's versions.


def options_of(option: Option) -> list[tuple[str, options.Version]]:
    """Arguments for an option, each with the version that first knows it."""
    values = {"--read-data-subset": "1/7", "--exclude-larger-than": "1", "--compression": "auto", "--group-by": "host"}
    flags = {"no-scan", "skip-if-unchanged", "with-atime", "one-file-system", "exclude-caches", "cleanup-cache"}
    flags |= {"stdin-from-command"}
    plain = option.name if option.name[2:] in flags else f"{option.name}={values.get(option.name, '5')}"
    return [(plain, option.since), *((f"{option.name}={value}", since) for value, since in option.values.items())]


@pytest.mark.parametrize("program", programs(), ids=str)
@pytest.mark.parametrize("command", sorted({it.command for it in OPTIONS}))
def test_each_restic_knows_the_options_that_its_version_is_said_to_have(program: Program, command: str) -> None:
    for option in OPTIONS:
        if option.command != command:
            continue
        for argument, since in options_of(option):
            told = subprocess.run([program.path, command, argument, "--help"], capture_output=True, check=False)
            has = program.version[:2] >= since
            assert (told.returncode == 0) is has, (argument, told.stderr)
            assert (options.unknown(str(program), [argument]) == "") is has, argument


def test_the_oldest_restic_and_the_newest_are_there() -> None:
    versions = [it.version[:2] for it in programs()]
    newest = max(since for it in OPTIONS for since in (it.since, *it.values.values()))
    if versions[0] > options.OLDEST or versions[-1] < newest:
        pytest.skip(f"{WHICH} names no restic {options.OLDEST} or none from {newest} on: there are {versions}")


# What is backed up.


async def test_a_backup_leaves_out_and_stores_what_it_says(host: Host) -> None:
    for name in ("kept", "LEFT.TMP", "none/.nobackup", "none/file", "tagged/TAG", "tagged/file", "other/TAG"):
        host.write(name)
    (host.data / "tagged" / "TAG").write_text("yes, indeed")
    host.write("large", bytes(2000))
    os.utime(host.data / "kept", (1_000_000_000, 1_500_000_000))
    said: dict[str, Any] = {
        "iexcludes": ["*.tmp"],
        "excludeLargerThan": "1Ki",
        "excludeIfPresent": [".nobackup", "TAG:yes"],
        "withAtime": True,
    }
    if known(host, "backup.noScan", "backup.readConcurrency"):
        said |= {"noScan": True, "readConcurrency": 4}
    assert went_well(await host.run(backup=said))
    files = host.files()
    assert sorted(files) == ["kept", "none/.nobackup", "other/TAG", "tagged/TAG"]
    [[found]] = host.ask("find", "kept")
    [kept] = found["matches"]
    assert datetime.fromisoformat(kept["atime"]).timestamp() == 1_000_000_000


async def test_a_snapshot_without_a_change_is_skipped_where_that_is_asked_for(host: Host) -> None:
    if not known(host, "backup.skipIfUnchanged"):
        pytest.skip(f"restic {host.program} cannot skip snapshots")
    host.write("file")
    skipping = {"skipIfUnchanged": True}
    first, second = await host.run(backup=skipping), await host.run(backup=skipping)
    assert went_well(first)
    assert went_well(second)
    assert (bool(first.snapshot_id), second.snapshot_id, second.files_processed) == (True, "", 1)
    assert host.lines[-1] == "nothing has changed since the last snapshot, so there is no new one"
    host.write("file", b"other")
    assert (await host.run(backup=skipping)).snapshot_id


# How it is stored, and carried there.


async def test_a_repository_says_how_data_is_packed_and_a_backup_may_say_otherwise(host: Host) -> None:
    host.write("hex", os.urandom(4_000_000).hex().encode())  # 8 MB, of which compression leaves half
    off = {"compression": "off", "packSize": "4Mi"}
    assert went_well(await host.run(of=off))
    stored = host.packs()
    assert sum(stored) > 8_000_000
    assert max(stored) < 7_000_000
    (host.data / "hex").write_bytes(os.urandom(4_000_000).hex().encode())
    assert went_well(await host.run(of=off, backup={"compression": "max", "packSize": "64Mi"}))
    added = sum(host.packs()) - sum(stored)
    assert added < 6_000_000
    assert len(host.packs()) - len(stored) <= 3  # one of folders, and one of data of each that packs them


async def test_each_job_sends_and_receives_no_faster_than_the_repository_says(host: Host) -> None:
    host.write("file", os.urandom(400_000))
    limits = {"limitUploadKiB": 150, "limitDownloadKiB": 150}
    for kind in ("backup", "verify"):
        began = time.monotonic()
        assert went_well(await host.run(kind, of=limits))
        assert time.monotonic() - began > 1.5  # a second's worth may go at once


async def test_only_old_caches_of_the_same_repository_are_removed(host: Host) -> None:
    assert went_well(await host.run("unlock"))
    [own] = host.cache.iterdir()
    other = host.cache / "other" / ("a" * 64)
    old, new = own / ("b" * 64), own / ("c" * 64)
    for folder in (other, old, new):
        folder.mkdir(parents=True)
    for folder in (other, old):
        os.utime(folder, (1, 1))
    assert went_well(await host.run("unlock", of={"cleanupCache": True}))
    assert [it.exists() for it in (other, old, new)] == [True, False, True]


async def test_a_job_runs_with_the_priority_that_its_schedule_says(host: Host, tmp_path: Path) -> None:
    restic = tmp_path / "restic"
    restic.write_text(f'#!/bin/sh\necho "as $(nice) $(ionice -p $$)" >&2\nexec {host.program.path} "$@"\n')
    restic.chmod(0o755)
    assert went_well(await host.run("unlock", str(restic)))
    assert went_well(await host.run("unlock", str(restic), nice=7, ioClass="Idle"))
    assert went_well(await host.run("unlock", str(restic), ioClass="BestEffort"))
    plain, idle, least = [it for it in host.lines if it.startswith("as ")]
    assert int(idle.split()[1]) == int(plain.split()[1]) + 7
    assert idle.endswith("idle")
    assert least.endswith("best-effort: prio 7")


# What is forgotten, and pruned.


async def test_a_forget_leaves_what_others_tagged_unless_it_is_told_otherwise(host: Host) -> None:
    host.write("file")
    for _ in range(2):
        assert went_well(await host.run())
        assert went_well(await host.run(name="ns/other", backup={"tags": ["x"]}))
    assert host.left() == {"ns/it": 2, "ns/other": 2}
    assert went_well(await host.run("forget", name="ns/keep", retention={"keepLast": 1}))
    assert host.left() == {"ns/it": 1, "ns/other": 2}
    assert went_well(await host.run("forget", retention={"keepLast": 1, "tags": ["nobody", "x"]}))
    assert host.left() == {"ns/it": 1, "ns/other": 1}
    both = {"keepLast": 1, "allTags": True}
    assert went_well(await host.run("forget", retention={**both, "groupBy": ["host", "tags"]}))
    assert host.left() == {"ns/it": 1, "ns/other": 1}
    assert went_well(await host.run("forget", retention=both))
    assert host.left() == {"ns/other": 1}


async def test_snapshots_of_other_paths_are_counted_apart_unless_nothing_groups_them(host: Host) -> None:
    for name in ("a/file", "b/file"):
        host.write(name)
        assert went_well(await host.run(backup={"paths": [str(host.data / name)]}))
    assert went_well(await host.run("forget", retention={"keepLast": 1}))
    assert host.left() == {"ns/it": 2}
    assert went_well(await host.run("forget", retention={"keepLast": 1, "groupBy": []}))
    assert host.left() == {"ns/it": 1}


async def test_a_prune_leaves_and_moves_as_much_as_it_says(host: Host) -> None:
    for at in range(20):  # many, since restic spreads them over a few packs
        host.write(f"kept{at}", os.urandom(50_000))
    gone = [host.write(f"gone{at}", os.urandom(50_000)) for at in range(20)]
    assert went_well(await host.run())
    for path in gone:
        path.unlink()
    assert went_well(await host.run())
    unlimited = {"maxUnused": "unlimited"}
    wanted = {"keepLast": 1, "prune": True}
    stays = host.program.version[:2] == options.OLDEST  # newer ones join packs as small as these whatever is unused
    assert went_well(await host.run("forget", retention=wanted, pruneOptions=unlimited))
    assert sum(host.packs()) > 2_000_000 or not stays
    assert went_well(await host.run("prune", pruneOptions={"maxUnused": "0", "maxRepackSize": "1"}))
    assert sum(host.packs()) > 2_000_000 or not stays
    assert went_well(await host.run("prune", pruneOptions={"maxUnused": "1Ki"}))
    assert sum(host.packs()) < 1_500_000
