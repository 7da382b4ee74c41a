"""Jobs work alike on S3, REST and SFTP repositories: what restic is given opens them.

Each on a real server: moto for S3, rclone for restic's own protocol, asyncssh for SFTP, which OpenSSH's client asks.
"""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest

from agent.restic.context import Timing
from agent.restic.runner import Runner
from bench.servers import free_port
from tests.plain import NO_TLS
from wire.messages import CommandRun, JobFinished, JobLog, Repository, Restore, Verify

pytestmark = pytest.mark.anyio

SECRET = "hunter2-hunter2"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def running(*argv: str | int, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """A server, until it is not needed any more."""
    devnull = asyncio.subprocess.DEVNULL
    env = {"PATH": os.environ["PATH"]} | (env or {})
    server = await asyncio.create_subprocess_exec(*map(str, argv), env=env, stdout=devnull, stderr=devnull)
    try:
        yield server
    finally:
        server.kill()
        await server.wait()


async def listening(port: int) -> None:
    """Wait until a server lets us in."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return writer.close()


@asynccontextmanager
async def s3(_folder: Path) -> AsyncIterator[tuple[str, dict[str, str], dict[str, str]]]:
    host = f"127.0.0.1:{(port := free_port())}"
    async with running(sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", port):
        await listening(port)
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            (await client.put(f"http://{host}/backups")).raise_for_status()
        keys = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
        yield f"s3:http://{host}/backups/node-1", keys, {}


@asynccontextmanager
async def rest(folder: Path) -> AsyncIterator[tuple[str, dict[str, str], dict[str, str]]]:
    host = f"127.0.0.1:{(port := free_port())}"
    known = {"RCLONE_USER": "node-1", "RCLONE_PASS": SECRET}
    argv = "rclone", "serve", "restic", f"--addr=127.0.0.1:{port}", "--config=", str(folder)
    async with running(*argv, env=known):
        await listening(port)
        yield f"rest:http://node-1:{SECRET}@{host}/node-1/", {}, {}


class Files(asyncssh.SFTPServer):
    """Ends as OpenSSH's sftp-server does, with exit code 0: restic takes a command that ends otherwise for failed."""

    def exit(self) -> None:
        self.channel.exit(0)


@asynccontextmanager
async def sftp(folder: Path) -> AsyncIterator[tuple[str, dict[str, str], dict[str, str]]]:
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    allowed = asyncssh.import_authorized_keys(user.export_public_key().decode())
    options: dict[str, Any] = {"server_host_keys": [host], "authorized_client_keys": allowed, "sftp_factory": Files}
    async with asyncssh.listen("127.0.0.1", 0, **options) as server:
        port = server.get_port()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host.export_public_key().decode()}")
        user.write_private_key(folder / "user")
        (folder / "user").chmod(0o600)
        ssh_of_the_agent(folder)
        yield f"sftp://agent@127.0.0.1:{port}/{folder}/node-1", {}, {"PATH": f"{folder}:{os.environ['PATH']}"}


def ssh_of_the_agent(folder: Path) -> None:
    """A command `ssh` that knows the test's keys, where else it would take those of whoever runs the agent."""
    options = f"-F none -i {folder}/user -o UserKnownHostsFile={folder}/known"
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    (folder / "ssh").chmod(0o700)


@pytest.mark.parametrize("backend", [s3, rest, sftp])
async def test_a_repository_elsewhere_is_made_verified_and_restored_and_its_key_is_shown_nowhere(
    backend: Callable[..., AbstractAsyncContextManager[Any]], tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    async with backend(tmp_path / "server") as (url, keys, env):
        held = Repository("r1", "ns/main", url, "correct horse battery", keys)
        await every_kind(held, env, tmp_path, host_identity=backend is sftp)


async def every_kind(repository: Repository, env: Any, tmp_path: Path, **may: Any) -> None:
    pace = Timing(progress_s=0.1)
    cache = tmp_path / "agent" / "cache"
    runner = Runner("restic", cache, lambda: datetime.now(UTC), timing=pace, env=os.environ | env)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter").write_text("a letter")
    told: list[Any] = []

    async def run(kind: str, args: Any, **parts: Any) -> JobFinished:
        command = CommandRun("j1", kind, args, "r1", **{**may, **parts})
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
    assert SECRET not in f"{ends}{told}"
    told.clear()
    await run("snapshots", ["snapshots", "--json"])
    [line] = [line for news in told if isinstance(news, JobLog) for line in news.lines]
    assert json.loads(line)["hostname"] == "node-1"
