"""An agent in a pod: restic sees the host's own paths, and just those that are granted."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.restic.runner import Runner
from tests.conftest import NewRepository
from wire.messages import CommandRun, JobFinished, Repository, Restore, Verify

RESTIC = shutil.which("restic") or "restic"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def backup(*paths: str | Path, within: Sequence[Path] = ()) -> CommandRun:
    args = ["backup", "--json", "--host=node-1", "--", *map(str, paths)]
    return CommandRun("j1", "backup", args, "r1", init=["init"], within=[str(path) for path in within])


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's file system as a pod has it mounted, with what restic needs to run in it."""
    if os.geteuid() != 0:
        pytest.skip("only root may change its root (chroot(2))")
    root = tmp_path / "host"
    linked = subprocess.run([shutil.which("ldd") or "ldd", RESTIC], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"/\S+", linked):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)
    for folder in ("srv/data", "var/lib/agent", "proc", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "srv/data/letter").write_text("of the host")
    return root


def restic(repository: Path, *args: str) -> bytes:
    env = {**os.environ, "RESTIC_PASSWORD": "a password"}
    argv: list[str | Path] = [RESTIC, "--repo", repository, "--no-cache", *args]
    return subprocess.run(argv, env=env, capture_output=True, check=True).stdout


@pytest.fixture
def cache(host: Path) -> Iterator[Path]:
    """A folder that has the same path in both views."""
    cache = Path("/var/lib/agent") / host.parent.name / "cache"
    (host / cache.relative_to("/")).mkdir(parents=True)
    cache.mkdir(parents=True)
    yield cache
    shutil.rmtree(cache.parent)


async def test_snapshots_carry_the_hosts_own_paths(host: Path, cache: Path) -> None:
    repository = Repository("r1", "ns/main", "/var/lib/agent/repository", "a password")
    runner = Runner("restic", cache, lambda: datetime.now(UTC), root=host)
    end = await runner.run(backup("/srv/data"), repository, lambda news: None)
    assert (end.status, end.error) == ("succeeded", "")
    kept = host / "var/lib/agent/repository"
    assert json.loads(restic(kept, "snapshots", "--json"))[0]["paths"] == ["/srv/data"]
    assert restic(kept, "dump", "latest", "/srv/data/letter") == b"of the host"


async def test_a_verification_and_a_restore_are_of_the_hosts_own_files(
    host: Path, cache: Path, new_repository: NewRepository
) -> None:
    new_repository(host / "var/lib/agent/repository", "a password")
    repository = Repository("r1", "ns/main", "/var/lib/agent/repository", "a password")
    runner = Runner("restic", cache, lambda: datetime.now(UTC), root=host)
    told: list[Any] = []
    await runner.run(backup("/srv/data"), repository, told.append)
    listing = ["ls", "--json", "--host=node-1", "--", "latest"]
    end = await runner.run(CommandRun("j2", "verify", listing, "r1", verify=Verify(5, 100)), repository, told.append)
    assert (end.status, end.error, end.files_processed) == ("succeeded", "", 1)
    assert "1 were also compared with their unchanged source" in told[-1].lines[-1]
    end = await runner.run(CommandRun("j3", "restore", [], "r1", restore=Restore("/srv/back")), repository, told.append)
    assert (end.status, end.error) == ("succeeded", "")
    assert (host / "srv/back/srv/data/letter").read_text() == "of the host"


@pytest.fixture
def granted(tmp_path: Path) -> Path:
    (tmp_path / "granted").mkdir()
    (tmp_path / "granted" / "letter").write_text("ours")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("not ours")
    return tmp_path / "granted"


async def run(tmp_path: Path, command: CommandRun) -> JobFinished:
    runner = Runner("restic", tmp_path / "cache", lambda: datetime.now(UTC))
    return await runner.run(command, Repository("r1", "ns/main", str(tmp_path / "repository"), "a password"), print)


async def test_what_lies_in_the_grant_is_backed_up(
    tmp_path: Path, granted: Path, new_repository: NewRepository
) -> None:
    new_repository(tmp_path / "repository", "a password")
    (granted / "way").symlink_to(granted / "letter")
    end = await run(tmp_path, backup(granted, granted / "way", within=[granted]))
    assert end.status == "succeeded"


@pytest.mark.parametrize("path", ["way/key", "way", "../secret", "../granted-too"])
async def test_no_symbolic_link_leads_out_of_the_grant(tmp_path: Path, granted: Path, path: str) -> None:
    (granted / "way").symlink_to(tmp_path / "secret")
    end = await run(tmp_path, backup(granted / path, within=[granted]))
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert "is not granted to the namespace: choose another path" in end.error
    assert not (tmp_path / "repository").exists()
