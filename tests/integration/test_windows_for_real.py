"""Windows for real: a server, an agent and restic. A run begins as its window opens, stops at its end, and goes on."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import Running
from tests.integration.clock import Clock
from tests.integration.conftest import Declare, Until

pytestmark = pytest.mark.anyio

LAMPLIGHTER = "from cli.main import main; main()"
ROOT = Path(__file__).parents[2]
SOON = timedelta(seconds=1.5)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def agent(server: Running, tmp_path: Path) -> AsyncIterator[None]:
    """The agent of node-1, in a process of its own."""
    (tmp_path / "token").write_text(server.agent_token)
    where = ("--server", f"http://127.0.0.1:{server.port}", "--data-dir", tmp_path / "agent", "--host", "node-1")
    command = (sys.executable, "-c", LAMPLIGHTER, "agent", *where, "--token-file", tmp_path / "token")
    process = await asyncio.create_subprocess_exec(*map(str, command), cwd=ROOT, env=dict(os.environ))
    yield
    process.kill()
    await process.wait()


def window(begin: datetime, end: datetime) -> list[dict[str, str]]:
    return [{"from": f"{begin:%H:%M}", "to": f"{end:%H:%M}"}]


def shown(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.usefixtures("agent")
async def test_a_backup_begins_with_its_window_stops_at_its_end_and_goes_on_in_the_next(
    api: httpx.AsyncClient, declare: Declare, until: Until, clock: Clock, tmp_path: Path
) -> None:
    repository, file = tmp_path / "repository", tmp_path / "source" / "file"
    file.parent.mkdir()
    file.write_bytes(os.urandom(4 << 20))  # a minute, at 64 KiB/s
    there = {"url": str(repository), "init": True, "limitUploadKiB": 64}
    said = {"spec": there, "credentials": {"password": "secret"}}
    (await api.put("/repositories/ns/main", json=said)).raise_for_status()
    opens = clock().replace(minute=0, second=0, microsecond=0) + 2 * HOUR

    async def put(begin: datetime, end: datetime) -> None:
        backup, stops = {"paths": [str(file.parent)]}, {"windows": window(begin, end), "stopAtEnd": True}
        await declare(cron="0 0 29 2 *", backup=backup, **stops)

    async def holds() -> bool:
        host = (await api.get("/hosts/node-1")).json()
        return bool(host.get("connected") and host["in_sync"] and host["schedules"])

    async def job() -> dict[str, Any]:
        found: dict[str, Any] = (await api.get(f"/jobs/{job_id}")).json()
        return found

    async def is_locked() -> bool:
        return repository.exists() and any((repository / "locks").glob("*"))

    async def stopped() -> bool:
        return bool((await job())["reason"] == "WindowClosed")

    async def over() -> bool:
        return (await job())["status"] not in ("pending", "running")

    await put(opens, opens + HOUR)
    await until(holds)
    clock.reach(opens - SOON)
    job_id = (await api.post("/schedules/ns/etc/run")).raise_for_status().json()["items"][0]["id"]
    assert (await job())["waits_for"] == f"its window, which opens at {shown(opens)}"
    await until(is_locked)  # by restic, which runs
    assert datetime.fromisoformat((await job())["accepted_at"]) >= opens

    closes = opens + MINUTE
    clock.reach(closes - SOON)
    await put(opens, closes)  # earlier than it was to close
    await until(stopped)
    assert clock() >= closes
    found = await job()
    why = "it was stopped at the end of the last one, and goes on then"
    assert found["status"] == "pending"
    assert found["waits_for"] == f"its window, which opens at {shown(opens + DAY)}: {why}"
    first = found["attempts"][0]
    assert (first["status"], first["reason"]) == ("interrupted", "WindowClosed")
    assert not await is_locked()

    file.write_bytes(b"less")
    again = closes + MINUTE
    clock.reach(again - SOON)
    await put(again, again + HOUR)
    await until(over)
    found = await job()
    assert (found["status"], found["attempt"], found["reason"]) == ("succeeded", 2, "")
    assert datetime.fromisoformat(found["accepted_at"]) >= again
    assert len(list((repository / "snapshots").iterdir())) == 1
