"""The agent as one file runs on a bare Python, and does what an installed agent does."""

import asyncio
import subprocess
import sys
from asyncio.subprocess import DEVNULL
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from images import single_file
from server.app import Running
from tests.conftest import NewRepository
from tests.integration.conftest import Declare, Until
from wire.version import __version__

pytestmark = pytest.mark.anyio

PASSWORD = {"credentials": {"password": "open sesame"}}
BARE = [sys.executable, "-I", "-S"]
"""Python without packages."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "lamplighter"
    single_file.build(path, [])
    return path


def run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)


async def test_it_backs_up_and_restores_by_what_is_in_it_alone(
    file: Path,
    server: Running,
    declare: Declare,
    api: httpx.AsyncClient,
    until: Until,
    new_repository: NewRepository,
    tmp_path: Path,
) -> None:
    """Also what starts restic, confined, is in the file; a verification runs all of it."""
    new_repository(tmp_path / "repository", "open sesame")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("content")
    await api.put("/repositories/ns/main", json={"spec": {"url": str(tmp_path / "repository")}} | PASSWORD)
    await declare("kept", backup={"paths": [str(tmp_path / "kept")]})
    await declare("looked-at", kind="verify", backup=None)
    (tmp_path / "token").write_text(server.agent_token)
    at = ("--server", f"http://127.0.0.1:{server.port}", "--token-file", tmp_path / "token", "--host", "db-1")
    agent = await asyncio.create_subprocess_exec(
        *BARE, file.name, "agent", *at, "--data-dir", tmp_path / "agent", cwd=file.parent, stderr=DEVNULL
    )
    try:
        await until(lambda: connected(api))
        assert [await ended(api, until, name) for name in ("kept", "looked-at")] == ["succeeded", "succeeded"]
    finally:
        agent.terminate()
        assert await agent.wait() == 0


async def connected(api: httpx.AsyncClient) -> bool:
    answer = await api.get("/hosts/db-1")
    return answer.is_success and bool(answer.json()["in_sync"])


async def ended(api: httpx.AsyncClient, until: Until, schedule: str) -> str:
    [job] = (await api.post(f"/schedules/ns/{schedule}/run", json={})).raise_for_status().json()["items"]

    async def end() -> str:
        found = (await api.get(f"/jobs/{job['id']}")).json()
        return str(found["status"]) if found["finished_at"] else ""

    return await until(end)


def test_it_is_the_same_whenever_it_is_built(file: Path, tmp_path: Path) -> None:
    single_file.build(tmp_path / "again", [])
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o755


def test_it_says_its_version_and_what_else_a_command_needs(file: Path, tmp_path: Path) -> None:
    assert run(*BARE, file, "--version", cwd=tmp_path).stdout == f"lamplighter, version {__version__}\n"
    asked = run(*BARE, file, "get", "hosts", cwd=tmp_path)
    assert (asked.returncode, "the extra `cli`" in asked.stderr) == (1, True), asked.stderr


def test_a_python_for_which_it_was_not_built_is_named(file: Path, tmp_path: Path) -> None:
    with ZipFile(file) as packed, ZipFile(tmp_path / "other", "w") as other:
        for name in packed.namelist():
            if not name.endswith(single_file.COMPILED):
                other.writestr(name, packed.read(name))
    said = run(*BARE, tmp_path / "other", "--version", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (1, "")
    assert f"no msgspec._core for Python 3.{sys.version_info[1]} on " in said.stderr


def test_wheels_of_other_pythons_add_their_compiled_modules(file: Path, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("msgspec/_core.cpython-399-riscv64-linux-gnu.so", b"compiled")
        wheel.writestr("msgspec/__init__.py", b"")
    single_file.build(tmp_path / "more", [tmp_path / "other.whl"])
    with ZipFile(file) as one, ZipFile(tmp_path / "more") as more:
        added = set(more.namelist()) - set(one.namelist())
        assert added == {"msgspec/_core.cpython-399-riscv64-linux-gnu.so"}
        assert more.read("msgspec/__init__.py") == one.read("msgspec/__init__.py")
