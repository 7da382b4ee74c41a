"""Promise 8, on the real kernel: whatever links and mounts are planted, a job reaches only what is granted.

`RESTIC` names the program to try, in place of the one on PATH.
"""

import asyncio
import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.restic.runner import Runner
from agent.sandbox import landlock
from tests.conftest import NewRepository
from tests.integration.crafted import Crafted, link
from wire.messages import CommandRun, JobFinished, JobLog, JobReport, Repository, Restore, Verify

RESTIC = shutil.which(os.environ.get("RESTIC", "restic")) or ""
PASSWORD = "correct horse battery"
NOBODY = 65534
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not RESTIC, reason="restic is not installed"),
    pytest.mark.skipif(landlock.abi() == 0, reason="the kernel has no Landlock"),
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others, or mount")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def restic(repository: Path, *args: str | Path, may_fail: bool = False) -> bytes:
    env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": PASSWORD}
    argv = [RESTIC, "--no-cache", *map(str, args)]
    return subprocess.run(argv, env=env, capture_output=True, check=not may_fail).stdout


def run(*argv: str | Path, at: Path | None = None) -> None:
    subprocess.run(argv, cwd=at, check=True)


def state(folder: Path) -> dict[Path, tuple[int, int, int, int, bytes]]:
    """All that can be told of a folder and what is below it."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[path.relative_to(folder)] = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns, content)
    return found


class Tenant:
    """A namespace that is granted one folder of a host, with a repository in it, beside what is not granted."""

    def __init__(self, folder: Path, new_repository: NewRepository) -> None:
        self.granted, self.secret, self.state = folder / "granted", folder / "secret", folder / "agent"
        for made in (self.granted, self.secret):
            made.mkdir()
        (self.secret / "key").write_text("not yours")
        (self.secret / "key").chmod(0o600)
        self.repository = self.granted / "repository"
        new_repository(self.repository, PASSWORD)
        self.told: list[JobReport] = []
        self.runner = Runner(RESTIC, self.state / "cache", lambda: datetime.now(UTC))

    async def run(
        self, kind: str, *args: str | Path, url: Path | None = None, within: Sequence[Path] | None = None, **more: Any
    ) -> JobFinished:
        """Run a job; `within`: what is granted, the tenant's folder when None, all for nothing."""
        granted = [self.granted] if within is None else within
        command = CommandRun("j1", kind, list(map(str, args)), "r1", within=list(map(str, granted)), **more)
        held = Repository("r1", "ns/main", str(url or self.repository), PASSWORD)
        return await self.runner.run(command, held, self.told.append)

    async def backup(self, *paths: Path, **more: Any) -> JobFinished:
        return await self.run("backup", "backup", "--json", "--host=node-1", "--", *paths, **more)

    async def restore(
        self, target: Path | str, *paths: Path | str, within: Sequence[Path] | None = None, **more: Any
    ) -> JobFinished:
        wanted = Restore(str(target), paths=list(map(str, paths)), **{"overwrite": True} | more)
        return await self.run("restore", lock_wait_s=0, restore=wanted, within=within)

    def snapshot(self, *paths: Path) -> None:
        """Back up by hand, as root."""
        restic(self.repository, "backup", "--host=node-1", "--", *paths)

    @property
    def lines(self) -> list[Any]:
        return [line for news in self.told if isinstance(news, JobLog) for line in news.lines]


@pytest.fixture
def tenant(tmp_path: Path, new_repository: NewRepository) -> Tenant:
    return Tenant(tmp_path, new_repository)


def swapping(path: Path, other: Path) -> AbstractContextManager[None]:
    """Have a path and another one change places again and again, as fast as can be, meanwhile."""
    names, libc = (os.fsencode(path), os.fsencode(other)), ctypes.CDLL(None)
    return repeating(lambda: libc.renameat2(-100, names[0], -100, names[1], 2))  # AT_FDCWD, RENAME_EXCHANGE


def replacing(folder: Path, other: Path) -> AbstractContextManager[None]:
    """Have each file that comes into a folder replaced by a link to another one, as fast as can be, meanwhile."""

    def replace() -> None:
        for path in folder.iterdir():
            with suppress(OSError):
                (folder / ".link").symlink_to(other)
                (folder / ".link").rename(path)
        time.sleep(0.001)  # others need the interpreter, too

    return repeating(replace)


@contextmanager
def repeating(attack: Callable[[], Any] | Callable[[], None]) -> Iterator[None]:
    """Have this done again and again meanwhile."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            attack()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# What is read.


async def test_no_path_that_is_swapped_while_it_is_backed_up_leads_out(tenant: Tenant) -> None:
    folder, link = tenant.granted / "a", tenant.granted / "b"
    folder.mkdir()
    (folder / "key").write_text("ours")
    link.symlink_to(tenant.secret)
    for _ in range(8):
        with swapping(folder, link):
            await tenant.backup(folder, folder / "key")
    back = tenant.secret.parent / "back"
    for snapshot in json.loads(restic(tenant.repository, "snapshots", "--json")):
        restic(tenant.repository, "restore", snapshot["id"], "--target", back / snapshot["id"])
    assert "not yours" not in [path.read_text() for path in back.rglob("key") if path.is_file()]


@pytest.mark.parametrize("path", ["../secret", "way", "way/key", "up/secret", "missing/../../secret", "../granted-not"])
async def test_no_link_and_no_dots_lead_a_backup_out(tenant: Tenant, path: str) -> None:
    (tenant.granted / "way").symlink_to("../secret")
    (tenant.granted / "up").symlink_to("..")
    end = await tenant.backup(tenant.granted / path)
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert "which is not granted to the namespace" in end.error


async def test_a_link_in_the_grant_that_stays_in_it_is_followed(tenant: Tenant) -> None:
    (tenant.granted / "data").mkdir()
    (tenant.granted / "data" / "letter").write_text("ours")
    (tenant.granted / "current").symlink_to("data")
    end = await tenant.backup(tenant.granted / "current" / "letter")
    assert (end.status, end.error) == ("succeeded", "")


async def test_a_verification_compares_no_file_beyond_the_grant(tenant: Tenant) -> None:
    folder = tenant.granted / "data"
    folder.mkdir()
    (folder / "key").write_text("not yours")
    tenant.snapshot(folder)
    shutil.rmtree(folder)
    folder.symlink_to(tenant.secret)
    end = await tenant.run("verify", "ls", "--json", "--host=node-1", "--", "latest", verify=Verify(5, 100))
    assert (end.status, end.error) == ("succeeded", "")
    assert "0 were also compared with their unchanged source" in tenant.lines[-1]


# Where a grant lies.


@as_root
async def test_a_link_above_a_granted_folder_is_followed_where_root_made_it_and_nobody_else_can_replace_it(
    tenant: Tenant, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tenant.granted)
    (tenant.granted / "letter").write_text("ours")
    path = tmp_path / "link" / "letter"
    end = await tenant.backup(path, within=[tmp_path / "link"])
    assert (end.status, end.error) == ("succeeded", "")
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    end = await tenant.backup(path, within=[tmp_path / "link"])
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert "through a symbolic link that users other than root can replace" in end.error


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts, and unmounts after the test."""
    made = []

    def mount(*args: Any) -> None:
        args[-1].mkdir(exist_ok=True)
        done = subprocess.run(["mount", *map(str, args)], capture_output=True, check=False)  # noqa: S607
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        made.append(args[-1])

    yield mount
    for path in reversed(made):
        run("umount", path)


@as_root
async def test_a_mount_belongs_to_where_it_is_mounted_and_opens_nothing_around_it(
    tenant: Tenant, tmp_path: Path, mount: Callable[..., None]
) -> None:
    inside, elsewhere = tenant.granted / "mounted", tmp_path / "elsewhere"
    mount("--bind", tenant.secret, inside)
    mount("--bind", tenant.granted, elsewhere)
    assert (await tenant.backup(inside)).status == "succeeded"
    assert (await tenant.backup(inside / ".." / ".." / "secret")).reason == "NotGranted"
    assert (await tenant.backup(elsewhere / ".." / "secret")).reason == "NotGranted"
    inner = tenant.secret / "link"
    inner.symlink_to(tmp_path / "agent")
    assert (await tenant.backup(inside / "link" / "cache")).reason == "NotGranted"


# Where a restore writes.


@as_root
@pytest.mark.parametrize("where", ["target", "new", "part"])
async def test_a_restore_to_where_nothing_can_be_written_ends_at_once_with_one_error(
    tenant: Tenant, mount: Callable[..., None], where: str
) -> None:
    data, fixed = tenant.granted / "data", tenant.granted / "fixed"
    for folder in (data, fixed / "in"):
        folder.mkdir(parents=True)
        for number in range(200):
            (folder / f"file-{number}").write_text("of now")
    tenant.snapshot(data, fixed)
    mount("--bind", fixed, fixed)
    run("mount", "-o", "remount,bind,ro", fixed)
    target = {"target": fixed, "new": fixed / "new" / "er", "part": Path("/")}[where]
    tenant.told.clear()
    end = await tenant.restore(target, within=[] if where == "part" else None)
    assert (end.status, end.reason) == ("failed", "TargetNotWritable")
    assert all(it in end.error for it in (str(fixed), "Read-only file system", "agent.restorePaths"))
    assert len(tenant.lines) < 5
    assert not list(tenant.granted.rglob(".lamplighter*"))
    assert (await tenant.restore("/", data, within=[])).status == "succeeded"


@pytest.mark.parametrize("which", ["folder", "file", "target"])
async def test_a_link_that_a_restore_has_planted_is_not_followed_by_the_next(tenant: Tenant, which: str) -> None:
    data, back = tenant.granted / "data", tenant.granted / "back"
    data.mkdir()
    way = data / "way"
    way.symlink_to(tenant.secret if which != "file" else tenant.secret / "key")
    tenant.snapshot(data)
    assert (await tenant.restore(back)).status == "succeeded"
    way.unlink()
    if which == "file":
        way.write_text("of the attacker")
    else:
        way.mkdir(mode=0o777)
        (way / "key").write_text("of the attacker")
    tenant.snapshot(data)
    before = state(tenant.secret)
    planted = back / way.relative_to("/")
    end = await (tenant.restore(planted) if which == "target" else tenant.restore(back))
    assert state(tenant.secret) == before
    assert (end.reason if which == "target" else end.status) == ("NotGranted" if which == "target" else "succeeded")
    if which == "folder":
        assert (planted / "key").read_text() == "of the attacker"


async def test_no_folder_that_is_swapped_during_a_restore_leads_it_out(tenant: Tenant) -> None:
    data, back = tenant.granted / "data", tenant.granted / "back"
    (data / "in").mkdir(parents=True)
    for name in ("key", "new"):
        (data / "in" / name).write_text("of the attacker")
    tenant.snapshot(data)
    swapped = back / data.relative_to("/")
    swapped.mkdir(parents=True)
    (tenant.secret / "in").mkdir()
    link = tenant.granted / "link"
    link.symlink_to(tenant.secret)
    before = state(tenant.secret)
    for _ in range(3):
        with swapping(swapped, link):
            await tenant.restore(back)
        assert state(tenant.secret) == before
    assert not list(tenant.granted.rglob(".lamplighter*"))


async def test_what_is_not_in_the_snapshot_stays_and_a_link_of_roots_above_what_is_restored_is_followed(
    tenant: Tenant,
) -> None:
    data, back = tenant.granted / "data", tenant.granted / "back"
    data.mkdir(mode=0o750)
    (data / "letter").write_text("of then")
    tenant.snapshot(data)
    home = tenant.granted / "home"
    home.mkdir(mode=0o711)
    (home / "mine").write_text("stays")
    above = back / tenant.granted.relative_to("/")
    above.mkdir(parents=True)
    (above / "data").symlink_to(home)
    end = await tenant.restore(back, data / "letter")
    assert (end.status, end.error) == ("succeeded", "")
    assert {it.name: it.read_text() for it in home.iterdir()} == {"mine": "stays", "letter": "of then"}
    assert stat.S_IMODE(home.stat().st_mode) == 0o711


async def test_folders_come_back_as_deep_as_a_path_can_be(tenant: Tenant) -> None:
    """Deeper than Python calls itself unless told otherwise, and than a process has handles by default."""
    data, depth = tenant.granted / "data", 1050
    data.mkdir()
    restored = tenant.granted / "back"
    (restored / data.relative_to("/")).mkdir(parents=True)
    within = "d/" * depth
    try:
        run("mkdir", "-p", within, at=data)
        tenant.snapshot(data)
        assert (await tenant.restore(restored)).status == "succeeded"
        assert (restored / data.relative_to("/") / within).is_dir()
    finally:
        run("rm", "-rf", data, restored)


@as_root
async def test_a_restore_across_file_systems_brings_all_back(tenant: Tenant, mount: Callable[..., None]) -> None:
    data, back = tenant.granted / "data", tenant.granted / "back"
    (data / "deep").mkdir(parents=True)
    (data / "deep" / "letter").write_text("ours")
    (data / "deep").chmod(0o750)
    (data / "deep" / "link").symlink_to("letter")
    os.chown(data / "deep" / "letter", NOBODY, NOBODY)
    tenant.snapshot(data)
    other = back / data.relative_to("/")
    other.mkdir(parents=True)
    mount("-t", "tmpfs", "tmpfs", other)
    assert (await tenant.restore(back)).status == "succeeded"
    assert [it[:4] for it in state(other / "deep").values()] == [it[:4] for it in state(data / "deep").values()]
    assert (other / "deep" / "link").read_text() == "ours"


# Snapshots that no restic writes.

CRAFTED = {
    "link then folder": lambda it, out: [link("way", out), it.folder("way", it.file("key"))],
    "folder then link": lambda it, out: [it.folder("way", it.file("key")), link("way", out)],
    "link, others, folder": lambda it, out: [link("way", out), it.folder("x"), it.folder("way", it.file("key"))],
    "link then file": lambda it, out: [link("way", out / "key"), it.file("way", mode=0o4777)],
    "file then link": lambda it, out: [it.file("way", mode=0o4777), link("way", out / "key")],
    "two links": lambda it, out: [link("way", "x"), link("way", out), it.folder("way")],
    "below a link by its name": lambda it, out: [link("way", out), it.file("way/key")],
    "folder below a link by its name": lambda it, out: [link("up", out.parent), it.folder(f"up/{out.name}")],
    "up": lambda it, out: [it.folder("..", it.file("key")), it.file(f"../{out.name}/key")],
    "far up": lambda it, out: [it.file("../" * 20 + str(out / "key").lstrip("/"))],
    "absolute": lambda it, out: [it.file(str(out / "key"))],
    "no name": lambda it, out: [it.folder("", link("way", out)), it.folder(".", it.folder("way", it.file("key")))],
    "hard link to a link": lambda it, out: [
        link("one", out / "key", inode=7, device_id=1, links=2),
        it.file("two", b"", mode=0o4777, inode=7, device_id=1, links=2),
    ],
    "hard link below a link": lambda it, out: [
        it.folder("way", it.file("key", inode=7, device_id=1, links=2)),
        link("way", out),
        it.file("two", mode=0o4777, inode=7, device_id=1, links=2),
    ],
    "hard links, of which one is a link": lambda it, out: [
        it.file("one", inode=7, device_id=1, links=2),
        link("one", out / "key"),
        it.file("two", mode=0o4777, inode=7, device_id=1, links=2),
    ],
    "deep": lambda it, out: [it.folder("a", it.folder("b", link("way", out), it.folder("way", it.file("key"))))],
}


@pytest.mark.parametrize("kind", CRAFTED)
async def test_no_snapshot_that_was_crafted_leads_a_restore_or_a_verification_out(tenant: Tenant, kind: str) -> None:
    crafted = Crafted(tenant.repository, PASSWORD)
    crafted.snapshot(*CRAFTED[kind](crafted, tenant.secret), crafted.file("plain"))
    assert b"plain" in restic(tenant.repository, "ls", "--json", "latest", may_fail=True)
    before = state(tenant.secret)
    await tenant.restore(tenant.granted / "back")
    await tenant.restore(tenant.granted / "back", "/way")
    await tenant.run("verify", "ls", "--json", "--host=node-1", "--", "latest", verify=Verify(5, 100))
    assert state(tenant.secret) == before
    assert not list(tenant.granted.rglob(".lamplighter*"))


# Repositories.


@pytest.mark.parametrize("which", ["link", "link/repository", "data", "keys"])
@pytest.mark.parametrize("kind", ["prune", "snapshots", "backup"])
async def test_no_link_makes_a_repository_of_anothers(tenant: Tenant, which: str, kind: str) -> None:
    theirs = tenant.secret / "repository"
    shutil.copytree(tenant.repository, theirs)
    restic(theirs, "backup", tenant.secret / "key")
    if which in ("data", "keys"):
        shutil.rmtree(tenant.repository / which)
        (tenant.repository / which).symlink_to(theirs / which)
        url = tenant.repository
    else:
        (tenant.granted / "link").symlink_to(tenant.secret if "/" in which else theirs)
        url = tenant.granted / which
    before = state(theirs)
    args = {
        "prune": ["prune"],
        "snapshots": ["snapshots", "--json"],
        "backup": ["backup", "--json", "--", str(tenant.granted)],
    }[kind]
    end = await tenant.run(kind, *args, url=url, lock_wait_s=0)
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert state(theirs) == before
    assert not any("short_id" in line for line in tenant.lines)


async def test_a_repository_that_is_swapped_for_anothers_is_not_written_to(tenant: Tenant) -> None:
    theirs, link = tenant.secret / "repository", tenant.granted / "link"
    shutil.copytree(tenant.repository, theirs)
    restic(theirs, "backup", tenant.secret / "key")
    link.symlink_to(theirs)
    (tenant.granted / "letter").write_text("ours")
    before = state(theirs)
    for _ in range(4):
        with swapping(tenant.repository, link):
            await tenant.run(
                "backup", "backup", "--json", "--", tenant.granted / "letter", url=tenant.repository, lock_wait_s=0
            )
    assert state(theirs) == before


@pytest.mark.parametrize("args", [["prune"], ["forget", "--keep-last=1", "--prune"]])
async def test_no_link_in_the_place_of_a_pack_changes_a_file_elsewhere(tenant: Tenant, args: list[str]) -> None:
    """restic sets the mode of what it removes to 0666, by its path; a pack that nothing refers to is removed."""
    data = tenant.repository / "data" / "ab"
    data.mkdir(exist_ok=True)
    (data / ("ab" * 32)).symlink_to(tenant.secret / "key")
    tenant.snapshot(tenant.granted / "repository" / "config")
    tenant.snapshot(tenant.granted / "repository" / "config")
    before = state(tenant.secret)
    await tenant.run(args[0], *args, lock_wait_s=0)
    assert state(tenant.secret) == before


async def test_no_link_in_the_place_of_a_lock_changes_a_file_elsewhere(tenant: Tenant) -> None:
    (tenant.granted / "letter").write_text("ours")
    before = state(tenant.secret)
    with replacing(tenant.repository / "locks", tenant.secret / "key"):
        await tenant.backup(tenant.granted / "letter", lock_wait_s=0)
    assert state(tenant.secret) == before


async def test_no_link_in_the_place_of_a_lock_changes_a_file_elsewhere_while_a_restore_runs(tenant: Tenant) -> None:
    (tenant.granted / "letter").write_text("ours")
    tenant.snapshot(tenant.granted / "letter")
    before = state(tenant.secret)
    with replacing(tenant.repository / "locks", tenant.secret / "key"):
        assert (await tenant.restore(tenant.granted / "back")).status == "succeeded"
        await tenant.run("verify", "ls", "--json", "--host=node-1", "--", "latest", verify=Verify(5, 100))
    assert state(tenant.secret) == before
    assert "1 were also compared with their unchanged source" in tenant.lines[-1]


# What gives powers.


@as_root
async def test_what_gives_powers_is_left_out_and_counted_unless_the_whole_host_is_granted_and_it_is_asked_for(
    tenant: Tenant,
) -> None:
    data, back = tenant.granted / "data", tenant.granted / "back"
    data.mkdir()
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("plain", 0o640)):
        (data / name).touch()
        (data / name).chmod(mode)
    os.setxattr(data / "plain", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(data / "pipe")
    tenant.snapshot(data)
    end = await tenant.restore(back, setuid_and_devices=True)  # the grant is not the whole host
    came = back / data.relative_to("/")
    assert (end.status, end.error) == ("succeeded", ""), "\n".join(tenant.lines)
    assert {it.name: stat.S_IMODE(it.stat().st_mode) for it in came.iterdir() if it.name != "pipe"} == {
        "setuid": 0o755,
        "setgid": 0o755,
        "plain": 0o640,
    }
    assert os.listxattr(came / "plain") == []
    said = [line for line in tenant.lines if line.startswith("left out")]
    assert said[0].startswith(
        "left out: setuid or setgid bits of 2 files, capabilities of 1 files: set setuidAndDevices"
    )
    assert said[1].startswith("left out: 1 devices: set setuidAndDevices")
    assert not [line for line in tenant.lines if "There were" in line or "Fatal" in line]
    tenant.told.clear()
    assert (await tenant.restore(back, setuid_and_devices=True, within=[])).status == "succeeded"
    assert state(came) == state(data)
    assert os.getxattr(came / "plain", "security.capability") == os.getxattr(data / "plain", "security.capability")
    assert not any("left out" in line for line in tenant.lines)


async def test_restic_may_read_its_job_and_what_it_needs_and_write_to_its_own_folders(
    tenant: Tenant, tmp_path: Path
) -> None:
    """The program stands for a restic that tries all it can."""
    program = tmp_path / "restic"
    tries = {
        "read granted": f"cat {tenant.granted}/letter",
        "read secret": f"cat {tenant.secret}/key",
        "list secret": f"ls {tenant.secret}",
        "read root's keys": "ls /root/.ssh /root/.aws",
        "read passwords": "cat /etc/shadow",
        "write granted": f"touch {tenant.granted}/new",
        "write secret": f"touch {tenant.secret}/new",
        "write cache": "touch $RESTIC_CACHE_DIR/new",
        "read cache of others": f"cat {tenant.state}/cache/others/snapshots",
        "list caches": f"ls {tenant.state}/cache",
        "write temp": "touch $TMPDIR/new",
        "write temp of others": f"touch {tmp_path}/temp/new",
        "write repository": f"touch {tenant.repository}/new",
        "read names": "cat /etc/passwd",
        "home is empty": '[ -d "$HOME" ] && [ -z "$(ls -A "$HOME")" ]',
        "write home": "touch $HOME/new",
    }
    lines = [f'( {what} ) >/dev/null 2>&1 && echo "{name}"' for name, what in tries.items()]
    made = '{"message_type":"summary","snapshot_id":"0123abcd","total_files_processed":1}'
    count = 'case " $* " in *" snapshots "*) echo "[]"; exit ;; esac'
    program.write_text("\n".join(["#!/bin/sh", count, *lines, f"echo '{made}'"]))
    program.chmod(0o755)
    (tenant.granted / "letter").touch()
    (tmp_path / "temp").mkdir()
    (tenant.state / "cache" / "others").mkdir(parents=True)
    (tenant.state / "cache" / "others" / "snapshots").touch()
    env = os.environ | {"TMPDIR": str(tmp_path / "temp")}
    tenant.runner = Runner(str(program), tenant.state / "cache", lambda: datetime.now(UTC), env=env)
    assert (await tenant.backup(tenant.granted)).status == "succeeded"
    allowed = {"read granted", "read names", "home is empty"}
    assert set(tenant.lines) == allowed | {"write cache", "write temp", "write repository"}


async def test_a_repository_that_says_it_is_anothers_has_a_cache_of_its_own_which_goes_when_nobody_uses_it(
    tenant: Tenant,
) -> None:
    """What a repository is, by which restic names its cache, is what whoever made it wrote."""
    theirs = tenant.granted / "theirs"
    shutil.copytree(tenant.repository, theirs)
    caches = tenant.state / "cache"

    async def run(id_: str, url: Path) -> dict[Path, Any]:
        command = CommandRun(
            "j1", "backup", ["backup", "--json", "--", str(tenant.granted)], id_, within=[str(tenant.granted)]
        )
        end = await tenant.runner.run(command, Repository(id_, "ns/main", str(url), PASSWORD), tenant.told.append)
        assert (end.status, end.error) == ("succeeded", "")
        return {it: state(it) for it in caches.iterdir()}

    first = await run("r1", theirs)
    both = await run("r2/node-2", tenant.repository)
    assert len(first) == 1
    assert len(both) == 2
    assert first.items() <= both.items()
    [old], [new] = first, both.keys() - first
    month = 31 * 86400
    os.utime(old, (time.time() - month, time.time() - month))
    Runner(RESTIC, caches, lambda: datetime.now(UTC))
    assert list(caches.iterdir()) == [new]


# Where it cannot be held.

ON_ANOTHER_MACHINE = """
import os, sys
from types import SimpleNamespace
os.uname = lambda: SimpleNamespace(machine=sys.argv[1])
from agent.sandbox import launch
from agent.sandbox.confine import Launch
launch._keep_modes(Launch(within=sys.argv[3:], unconfined=sys.argv[2] == "unconfined"))
"""


@pytest.mark.parametrize(
    ("machine", "how", "code"),
    [
        ("s390x", ["", "/srv"], 78),
        ("ppc64le", ["", "/srv"], 78),
        ("s390x", ["unconfined", "/srv"], 0),
        ("s390x", [""], 0),
        ("x86_64", ["", "/srv"], 0),
    ],
)
def test_where_modes_cannot_be_kept_the_machine_and_what_to_do_are_told(
    machine: str, how: list[str], code: int
) -> None:
    argv = [sys.executable, "-c", ON_ANOTHER_MACHINE, machine, *how]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code
    words = (f"machine of kind {machine}", "spec.url", "--allow-unconfined") if code else ()
    assert all(word in done.stderr for word in words), done.stderr


WITHOUT_LANDLOCK = """
import asyncio, ctypes, struct, sys
from datetime import UTC, datetime
from pathlib import Path
from agent.restic.runner import Runner
from wire.messages import CommandRun, Repository

# seccomp(2): system call 444, landlock_create_ruleset, fails with ENOSYS, as on a kernel that has none.
code = struct.pack("=" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 444, 0x06, 0, 0, 0x00050026, 0x06, 0, 0, 0x7FFF0000)
held = ctypes.create_string_buffer(code)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(held))) == 0

folder, restic, allow = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["allow"]
for within in ([str(folder)], []):
    args = ["backup", "--json", "--", str(folder / "secret")]
    command = CommandRun("j1", "backup", args, "r1", within=within)
    held = Repository("r1", "ns/main", str(folder / "granted" / "repository"), "correct horse battery")
    runner = Runner(restic, folder / "agent" / "cache", lambda: datetime.now(UTC), allow_unconfined=allow)
    end = asyncio.run(runner.run(command, held, lambda news: None))
    print(end.status, end.reason, "--allow-unconfined" in end.error)
"""


@pytest.mark.parametrize(("allow", "with_paths"), [([], "failed NotConfined True"), (["allow"], "succeeded  False")])
def test_where_the_kernel_cannot_confine_a_grant_of_paths_is_refused_unless_the_operator_says_otherwise(
    tenant: Tenant, tmp_path: Path, allow: list[str], with_paths: str
) -> None:
    argv: list[str | Path] = [sys.executable, "-c", WITHOUT_LANDLOCK, tmp_path, RESTIC, *allow]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [with_paths, "succeeded  False"], done.stderr


# What a restore leaves when it is killed.

RESTORE_AND_WAIT = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from agent.restic.runner import Runner
from wire.messages import CommandRun, Repository, Restore

folder = Path(sys.argv[1])
command = CommandRun("j1", "restore", [], "r1", restore=Restore(str(folder / "granted" / "back")))
held = Repository("r1", "ns/main", str(folder / "granted" / "repository"), "correct horse battery")
runner = Runner(str(folder / "restic"), folder / "agent" / "cache", lambda: datetime.now(UTC))
asyncio.run(runner.run(command, held, lambda news: None))
"""


async def test_what_a_killed_restore_has_left_is_gone_when_the_agent_starts_again(
    tenant: Tenant, tmp_path: Path
) -> None:
    (tenant.granted / "data").mkdir()
    tenant.snapshot(tenant.granted / "data")
    (tmp_path / "restic").write_text(f'#!/bin/sh\n[ "$1" = restore ] && exec sleep 600\nexec {RESTIC} "$@"\n')
    (tmp_path / "restic").chmod(0o755)
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", RESTORE_AND_WAIT, tmp_path)
    async with asyncio.timeout(60):
        while not (left := list(tenant.granted.glob(".lamplighter-restore-*/new"))):
            await asyncio.sleep(0.01)
    agent.send_signal(signal.SIGSTOP)  # neither it nor the program between it and restic is to clean up
    async with asyncio.timeout(60):
        while Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)
    for children in Path(f"/proc/{agent.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    agent.kill()
    await agent.wait()
    assert left[0].exists()
    Runner(RESTIC, tenant.state / "cache", lambda: datetime.now(UTC))
    assert not left[0].parent.exists()
    assert not (tenant.granted / "back").exists()
