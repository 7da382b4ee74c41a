"""`lamplighter up` runs the quickstart as a person runs it: a real process, real restic and clock."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers import free_port
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
RESTIC = shutil.which("restic") or "restic"
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
PATIENCE_S = 30
PROMISED_S = 90
"""Seconds within which the quickstart has made a snapshot."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUICKSTART, tmp_path / "quickstart"))


class Up:
    """The process, what it logs, and its REST API."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.seen: list[Any] = []

    async def told(self, message: str, **facts: str) -> Any:
        """The next line that says this, with these facts."""
        async with asyncio.timeout(PATIENCE_S):
            assert self.process.stderr is not None
            while line := await self.process.stderr.readline():
                self.seen.append(record := json.loads(line))
                if record["message"] == message and facts.items() <= record.items():
                    return record
        raise AssertionError(f"ended without saying {message}: {self.seen}")

    async def ready(self, data: Path) -> None:
        url = (await self.told("ready"))["url"]
        headers = {"authorization": f"Bearer {(data / 'admin-token').read_text().strip()}"}
        self.api = httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, verify=NO_TLS)

    async def get(self, path: str) -> Any:
        answer = await self.api.get(path)
        return answer.json() if answer.is_success else None

    async def jobs(self) -> Any:
        return (await self.get("/jobs"))["items"]

    async def schedules(self) -> dict[str, Any]:
        return {it["metadata"]["name"]: it for it in (await self.get("/schedules"))["items"]}

    async def in_sync(self) -> Any:
        host = await self.get("/hosts/node-1")
        versions = [(host[f"{which}_version"], host[f"{which}_digest"]) for which in ("desired", "applied")]
        return host if versions[0] == versions[1] and host["in_sync"] else None

    async def stop(self) -> int | None:
        """Ctrl-C: the exit code."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            assert self.process.stderr is not None
            _, self.left = await asyncio.gather(self.process.wait(), self.process.stderr.read())
        return self.process.returncode


@asynccontextmanager
async def running(folder: Path, *options: str) -> AsyncIterator[Up]:
    """`lamplighter up` on a folder, in the folder above it, until it is left."""
    here = os.environ | {"LAMPLIGHTER_LOG_FORMAT": "json", "LAMPLIGHTER_HOST": "node-1"}
    process = await asyncio.create_subprocess_exec(
        LAMPLIGHTER, "up", folder.name, "--listen", "127.0.0.1:0", *options, cwd=folder.parent, env=here, stderr=-1
    )
    up = Up(process)
    try:
        await up.ready(folder.parent / ".lamplighter")
        async with up.api:
            yield up
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def eventually(
    probe: Callable[..., Awaitable[Any]] | Callable[..., Awaitable[str]], within_s: int = PATIENCE_S
) -> Any:
    """What the probe finds, once it finds something."""
    async with asyncio.timeout(within_s):
        while not (found := await probe()):
            await asyncio.sleep(0.05)
    return found


async def first(up: Up, status: str = "succeeded") -> Any:
    """The only job, once it has this status."""

    async def probe() -> list[Any]:
        jobs = await up.jobs()
        assert len(jobs) <= 1
        return [job for job in jobs if job["status"] == status]

    (job,) = await eventually(probe, PROMISED_S)
    return job


def restic(folder: Path, *args: Any) -> bytes:
    """restic on the quickstart's repository: what it prints."""
    repository = folder.parent / ".lamplighter" / "repository" / "node-1"
    env = os.environ | {"RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": "only-for-the-quickstart"}
    return subprocess.run([RESTIC, "--no-cache", *args], env=env, check=True, capture_output=True).stdout


def contents(root: Path) -> dict[str, Any]:
    """The bytes of every file below, links left out."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.slow
async def test_the_quickstart_becomes_a_snapshot_and_carries_on_after_a_restart(folder: Path, tmp_path: Path) -> None:
    async with running(folder) as up:
        job = await first(up)
        schedule = (await up.schedules())["etc"]
        due = datetime.fromisoformat(job["scheduled_at"])
        assert (job["actor_kind"], job["scheduled_id"]) == ("schedule", schedule["metadata"]["uid"])
        assert (due.second, due.microsecond) == (0, 0)
        before = await up.in_sync()
        assert before["desired_version"] == 1
        assert await up.stop() == 0

    (snapshot,) = json.loads(restic(folder, "snapshots", "--json"))
    assert snapshot["id"].startswith(job["snapshot_id"])
    restic(folder, "restore", job["snapshot_id"], "--target", str(tmp_path / "restored"))
    assert contents(tmp_path / "restored" / "etc" / "apt") == contents(Path("/etc/apt")) != {}

    missed = due + timedelta(minutes=1)
    while datetime.now(UTC) < missed:
        await asyncio.sleep((missed - datetime.now(UTC)).total_seconds())

    async with running(folder) as up:
        assert (await up.told("fire"))["due"] == missed.isoformat()
        assert "carrying on" in [line["message"] for line in up.seen]
        caught_up = await eventually(lambda: ended(up, 2))
        assert [datetime.fromisoformat(job["scheduled_at"]) for job in caught_up[-2:]] == [missed, due]
        after = await up.in_sync()
        assert (after["name"], after["applied_version"]) == (before["name"], before["applied_version"])
        assert await up.stop() == 0
    assert "pushed" not in [line["message"] for line in up.seen]


async def ended(up: Up, count: int) -> Any:
    """All jobs, once at least so many have succeeded."""
    jobs = await up.jobs()
    return jobs if [job["status"] for job in jobs].count("succeeded") >= count else None


async def test_files_that_change_are_followed_and_a_wrong_one_hurts_no_other(folder: Path) -> None:
    daily = (folder / "schedule.yaml").read_text().replace('"* * * * *"', '"0 2 * * *"')
    (folder / "schedule.yaml").write_text(daily)
    async with running(folder) as up:
        assert (await up.told("acked"))["version"] == 1

        (folder / "schedule.yaml").write_text(daily.replace("0 2 * * *", "0 3 * * *"))
        await up.told("schedule changed", schedule="default/etc", cron="0 3 * * *")
        assert (await up.told("acked"))["version"] == 2

        (folder / "more.yaml").write_text(daily.replace("name: etc", "name: more"))
        await up.told("schedule accepted", schedule="default/more")
        assert (await up.told("acked"))["version"] == 3

        (folder / "wrong.yaml").write_text(daily.replace("name: etc", "name: wrong").replace("0 2 * * *", "0 25 * * *"))
        refused = await up.told("schedule refused", schedule="default/wrong", field="spec.cron")
        assert refused["file"].startswith("wrong.yaml")
        assert "0 to 23" in refused["detail"]

        (folder / "more.yaml").unlink()
        await up.told("schedule deleted", schedule="default/more")
        assert (await up.told("acked"))["version"] == 4
        assert (await eventually(up.in_sync))["applied_version"] == 4
        assert {name: it["spec"]["cron"] for name, it in (await up.schedules()).items()} == {"etc": "0 3 * * *"}
        assert await up.stop() == 0


async def test_up_and_the_controller_of_a_folder_can_be_scraped_and_probed(folder: Path, tmp_path: Path) -> None:
    at = [f"127.0.0.1:{free_port()}" for _ in range(2)]

    async def asked(listen: str, path: str) -> str:
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            try:
                answer = await client.get(f"http://{listen}{path}")
            except httpx.RequestError:
                return ""  # not yet
            return answer.text if answer.is_success else ""

    async with running(folder, "--metrics-listen", at[0]) as up:
        assert "lamplighter_build_info" in await asked(at[0], "/metrics")
        assert await asked(at[0], "/readyz") == "ok\n"
        server = str(up.api.base_url.copy_with(path="/"))
        words = ("controller", folder.name, "--server", server, "--metrics-listen", at[1])
        controller = await asyncio.create_subprocess_exec(LAMPLIGHTER, *words, cwd=tmp_path)
        try:
            assert await eventually(lambda: asked(at[1], "/readyz")) == "ok\n"
            assert "lamplighter_folder_server_reached 1.0" in await asked(at[1], "/metrics")
        finally:
            controller.terminate()
            await controller.wait()


async def test_ctrl_c_ends_a_running_restic_and_its_job_as_interrupted(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # holes, which take no room but are long to read
    text = (folder / "schedule.yaml").read_text().replace('"* * * * *"', '"0 2 29 2 *"')
    (folder / "schedule.yaml").write_text(text.replace("- /etc/apt", f"- {tmp_path / 'large'}"))
    async with running(folder) as up:
        await up.told("acked")
        assert (await up.api.post("/schedules/default/etc/run")).status_code == 201
        await up.told("progress")
        assert await up.stop() == 0
    with sqlite3.connect(tmp_path / ".lamplighter" / "lamplighter.db") as store:
        assert store.execute("SELECT status FROM jobs").fetchall() == [("interrupted",)]
    store.close()
    assert restic(folder, "list", "locks") == b""


async def test_without_restic_it_says_so_at_once_and_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_RESTIC", "restic-that-is-not-there")
    async with running(folder) as up:
        assert "apt-get install restic" in (await up.told("restic is missing"))["remedy"]
        assert await up.stop() == 0
