"""Repositories elsewhere than in a folder: what restic is given opens them, and all else is the same."""

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import sys
from datetime import UTC, datetime

import httpx
import pytest

from agent.job import Pace
from agent.runner import Runner
from wire.messages import CommandRun, JobLog, Repository, Restore, Verify

RESTIC = shutil.which("restic")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(RESTIC is None, reason="restic is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="no S3 server: pip install 'moto[server]'"),
]

KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "hunter2-hunter2", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def bucket():
    """The URL of a bucket on an S3 server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"PATH": os.environ["PATH"]}
    argv = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    devnull = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(*argv, env=env, stdout=devnull, stderr=devnull)
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(60):
            while True:
                try:
                    (await client.put(f"http://127.0.0.1:{port}/backups")).raise_for_status()
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield f"s3:http://127.0.0.1:{port}/backups"
    finally:
        server.kill()
        await server.wait()


async def test_a_backup_to_s3_is_made_verified_and_restored_and_its_key_is_shown_nowhere(bucket, tmp_path):
    repository = Repository("r1", "ns/main", f"{bucket}/node-1", "correct horse battery", KEYS)
    runner = Runner("restic", tmp_path / "agent" / "cache", lambda: datetime.now(UTC), pace=Pace(progress_s=0.1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter").write_text("a letter")
    told = []

    async def run(kind, args, **parts):
        command = CommandRun("j1", kind, args, "r1", **parts)
        return await runner.run(command, repository, told.append)

    data, back = str(tmp_path / "data"), tmp_path / "back"
    ends = [
        await run("backup", ["backup", "--json", "--host=node-1", "--", data], init=["init"]),
        await run("check", ["check"]),
        await run("verify", ["ls", "--json", "--host=node-1", "--", "latest"], verify=Verify(5, 1000)),
        await run("restore", [], restore=Restore(str(back), source_host="node-1")),
        await run("forget", ["forget", "--host=node-1", "--keep-last=1", "--prune"]),
        await run("unlock", ["unlock"]),
    ]
    assert [(end.status, end.error) for end in ends] == [("succeeded", "")] * 6
    assert (back / data.lstrip("/") / "letter").read_text() == "a letter"
    assert "hunter2" not in f"{ends}{told}"
    told.clear()
    await run("snapshots", ["snapshots", "--json"])
    [line] = [line for news in told if isinstance(news, JobLog) for line in news.lines]
    assert json.loads(line)["hostname"] == "node-1"
