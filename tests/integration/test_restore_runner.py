"""A restore brings back the right snapshot unchanged, and writes only where it is allowed to."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.restic import reporter as news_of_jobs
from agent.restic.runner import Runner
from server.jobs import arguments as commands
from server.resources.manifests import MAX_PATHS_BYTES
from tests.conftest import NewRepository
from wire.messages import CommandRun, JobFinished, JobLog, JobReport, Repository, Restore

RESTIC = shutil.which("restic") or "restic"
PASSWORD = "correct horse battery"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Host:
    """A host with something to back up, a repository, and room to restore into."""

    def __init__(self, folder: Path, new_repository: NewRepository) -> None:
        self.data, self.back = folder / "data", folder / "back"
        self.data.mkdir()
        self.repository = Repository("r1", "ns/main", str(folder / "repository"), PASSWORD)
        self.runner = Runner("restic", folder / "agent" / "cache", lambda: datetime.now(UTC))
        self.told: list[JobReport] = []
        new_repository(folder / "repository", PASSWORD)

    def restic(self, *args: str) -> str:
        env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": self.repository.url, "RESTIC_PASSWORD": PASSWORD}
        argv = [RESTIC, "--no-cache", *map(str, args)]
        return subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout

    def backup(self, *paths: Path, host: str = "node-1", time: str = "2026-01-01 12:00:00") -> Any:
        """Back up; the snapshot's id."""
        said = self.restic("backup", "--json", f"--host={host}", f"--time={time}", "--", *(paths or [self.data]))
        return json.loads(said.splitlines()[-1])["snapshot_id"]

    async def restore(
        self, *paths: Path, target: Path | None = None, within: Sequence[Path] = (), **wanted: Any
    ) -> JobFinished:
        part = Restore(str(target or self.back), paths=list(map(str, paths)), **{"source_host": "node-1"} | wanted)
        command = CommandRun("j1", "restore", [], "r1", within=list(map(str, within)), restore=part, lock_wait_s=0)
        return await self.runner.run(command, self.repository, self.told.append)

    async def list(self, kind: str, args: list[str]) -> JobFinished:
        return await self.runner.run(CommandRun("j2", kind, args, "r1"), self.repository, self.told.append)

    @property
    def lines(self) -> Sequence[str]:
        return [line for news in self.told if isinstance(news, JobLog) for line in news.lines]

    def came_back(self, path: Path) -> Path:
        return self.back / path.relative_to("/")


@pytest.fixture
def host(tmp_path: Path, new_repository: NewRepository) -> Host:
    return Host(tmp_path, new_repository)


# As it was.


def described(folder: Path) -> dict[str, tuple[str, int, int, int, str]]:
    """All that is below a folder, as it can be compared."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        times = 0 if path.is_symlink() else facts.st_mtime_ns
        found[str(path.relative_to(folder))] = (
            stat.filemode(facts.st_mode),
            facts.st_uid,
            facts.st_gid,
            times,
            content,
        )
    return found


async def test_bytes_modes_owners_times_links_and_holes_come_back(host: Host) -> None:
    (host.data / "größe\n").write_text("a letter")
    (host.data / "empty").touch()
    (host.data / "deep" / "er").mkdir(parents=True)
    (host.data / "deep" / "er" / "program").write_bytes(os.urandom(300_000))
    (host.data / "deep" / "er" / "program").chmod(0o4751)
    (host.data / "deep").chmod(0o700)
    (host.data / "link").symlink_to("deep/er/program")
    (host.data / "nowhere").symlink_to("/no/where")
    os.link(host.data / "empty", host.data / "another name")
    os.mkfifo(host.data / "pipe")
    with (host.data / "holes").open("wb") as file:
        file.seek(50_000_000)
        file.write(b"the end")
    with (host.data / "large").open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
    if os.geteuid() == 0:
        os.chown(host.data / "empty", 1234, 5678)
        os.chown(host.data / "link", 1234, 5678, follow_symlinks=False)
        (host.data / "deep" / "er" / "program").chmod(0o4751)
    host.backup()
    end = await host.restore(setuid_and_devices=True)
    assert (end.status, end.error, end.reason) == ("succeeded", "", "")
    assert described(host.came_back(host.data)) == described(host.data)
    assert (end.files_processed, end.bytes_processed) == (6, 8 + 300_000 + 50_000_007 + (40 << 20))
    assert len(end.snapshot_id) == 64


async def test_parts_come_back_whatever_their_names_and_nothing_else_does(host: Host) -> None:
    for name in ("a[b]*", "ab", "a?", "--help", "back\\slash", "folder"):
        (host.data / name).mkdir()
        (host.data / name / "file").write_text(name)
    (host.data / "aXb").write_text("left out")
    host.backup()
    wanted = [host.data / name for name in ("a[b]*", "a?", "--help", "back\\slash")]
    end = await host.restore(*wanted, host.data / "folder" / "file")
    assert (end.status, end.files_processed) == ("succeeded", 5)
    assert sorted(it.name for it in host.came_back(host.data).iterdir()) == [
        *("--help", "a?", "a[b]*", "back\\slash", "folder")
    ]
    assert host.came_back(host.data / "a[b]*" / "file").read_text() == "a[b]*"


async def test_as_many_and_as_long_paths_as_may_be_asked_for_come_back(host: Host) -> None:
    folder = host.data.joinpath(*["*" * 250] * 3)
    folder.mkdir(parents=True)
    size = MAX_PATHS_BYTES // 256
    paths = [folder / f"{at:*>{size - len(str(folder)) - 1}}" for at in range(256)]
    for path in paths:
        path.touch()
    assert sum(len(str(path)) for path in paths) == MAX_PATHS_BYTES
    host.backup()
    end = await host.restore(*paths)
    assert (end.status, end.error, end.files_processed) == ("succeeded", "", 256)
    assert len(list(host.came_back(folder).iterdir())) == 256
    assert not list((host.runner._context.notes).iterdir())


# The right snapshot.


async def test_the_latest_before_a_time_of_that_host_that_holds_the_paths_is_restored(
    host: Host, tmp_path: Path
) -> None:
    letter, other = host.data / "letter", tmp_path / "other"
    other.mkdir()
    for day, content in (("01", "first"), ("02", "second"), ("03", "third")):
        letter.write_text(content)
        host.backup(time=f"2026-01-{day} 12:00:00")
    host.backup(other, time="2026-01-04 12:00:00")
    letter.write_text("another host's")
    host.backup(host="node-2", time="2026-01-05 12:00:00")

    async def restored(**wanted: Any) -> str:
        shutil.rmtree(host.back, ignore_errors=True)
        assert (await host.restore(letter, **wanted)).status == "succeeded"
        return host.came_back(letter).read_text()

    assert await restored() == "third"
    assert await restored(before=datetime(2026, 1, 3, 11, tzinfo=UTC)) == "second"
    assert await restored(source_host="") == "another host's"


async def test_an_id_names_a_snapshot_by_its_beginning(host: Host) -> None:
    (host.data / "letter").write_text("first")
    first = host.backup()
    (host.data / "letter").write_text("second")
    host.backup()
    end = await host.restore(snapshot=first)
    assert (end.status, host.came_back(host.data / "letter").read_text()) == ("succeeded", "first")


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"snapshot": "00000000"}, "there is no snapshot of host node-1 with id 00000000"),
        ({"source_host": "node-9"}, "there is no snapshot of host node-9"),
        ({"before": datetime(2000, 1, 1, tzinfo=UTC)}, "from before 2000-01-01T00:00:00Z"),
        ({"paths": ["/nowhere"]}, "there is no snapshot of host node-1 of /nowhere"),
    ],
)
async def test_where_there_is_no_such_snapshot_nothing_is_restored_and_what_to_do_is_told(
    host: Host, wanted: dict[str, Any], says: str
) -> None:
    host.backup()
    end = await host.restore(*wanted.pop("paths", []), **wanted)
    assert (end.status, end.reason) == ("failed", "NoSnapshot")
    assert says in end.error
    assert not host.back.exists()


async def test_a_path_that_the_snapshot_does_not_hold_is_a_failure_that_names_it(host: Host) -> None:
    host.backup()
    end = await host.restore(host.data / "missing", host.data)
    assert (end.status, end.reason) == ("failed", "NoSnapshot")
    assert f"does not hold {host.data}/missing: list its files" in end.error


# Where it may be put.


async def test_what_is_there_is_overwritten_only_where_that_is_asked_for(host: Host) -> None:
    (host.data / "letter").write_text("of then")
    host.backup()
    host.came_back(host.data).mkdir(parents=True)
    host.came_back(host.data / "letter").write_text("of now")
    end = await host.restore()
    assert (end.status, end.reason) == ("failed", "TargetNotEmpty")
    assert end.error == f"{host.back} is not empty: choose another folder, or set overwrite"
    assert host.came_back(host.data / "letter").read_text() == "of now"
    assert (await host.restore(overwrite=True)).status == "succeeded"
    assert host.came_back(host.data / "letter").read_text() == "of then"


async def test_an_empty_folder_is_restored_into_and_a_file_is_not(host: Host) -> None:
    (host.data / "letter").touch()
    host.backup()
    host.back.mkdir()
    assert (await host.restore()).status == "succeeded"
    end = await host.restore(target=host.data / "letter")
    assert (end.status, end.reason) == ("failed", "TargetNotEmpty")


@pytest.mark.parametrize("target", ["granted/way/in", "granted/../secret", "secret"])
async def test_no_symbolic_link_leads_a_restore_out_of_the_grant(host: Host, tmp_path: Path, target: str) -> None:
    granted, secret = tmp_path / "granted", tmp_path / "secret"
    granted.mkdir()
    secret.mkdir()
    (granted / "way").symlink_to(secret)
    host.backup()
    end = await host.restore(target=tmp_path / target, within=[granted])
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert list(secret.iterdir()) == []
    assert (await host.restore(target=granted / "new" / "folder", within=[granted])).status == "succeeded"


# A look at what there is.


async def test_snapshots_are_listed_one_on_a_line(host: Host) -> None:
    first, second = host.backup(), host.backup(host="node-2", time="2026-01-02 12:00:00")
    end = await host.list("snapshots", commands.snapshots_args(""))
    told = [json.loads(line) for line in host.lines]
    assert (end.status, [it["hostname"] for it in told]) == ("succeeded", ["node-2", "node-1"])
    assert [it["id"][:8] for it in told] == [second[:8], first[:8]]
    assert (told[1]["paths"], told[1]["time"][:10]) == ([str(host.data)], "2026-01-01")
    host.told.clear()
    await host.list("snapshots", commands.snapshots_args("node-9"))
    assert host.lines == []


async def test_the_files_of_a_snapshot_are_listed_one_on_a_line(host: Host) -> None:
    (host.data / "größe\n").write_text("a letter")
    snapshot = host.backup()
    end = await host.list("ls", commands.ls_args("", snapshot, str(host.data)))
    [itself, folder, file] = [json.loads(line) for line in host.lines]
    assert (end.status, itself["id"][:8], folder["type"]) == ("succeeded", snapshot[:8], "dir")
    assert (file["path"], file["type"], file["size"]) == (f"{host.data}/größe\n", "file", 8)
    end = await host.list("ls", commands.ls_args("", "00000000", "/"))
    assert (end.status, end.reason) == ("failed", "NoSnapshot")


async def test_a_list_is_bounded_and_says_what_is_left_out(host: Host) -> None:
    for at in range(news_of_jobs.MAX_LISTED_LINES + 10):
        (host.data / str(at)).touch()
    snapshot = host.backup()
    end = await host.list("ls", commands.ls_args("", snapshot, str(host.data)))
    assert (end.status, len(host.lines)) == ("succeeded", news_of_jobs.MAX_LISTED_LINES + 1)
    assert host.lines[-1] == "… 12 more lines are left out"
    assert msgspec.json.decode(host.lines[-2])["type"] == "file"
