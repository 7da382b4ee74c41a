"""Starts the server that is measured, as `lamplighter server` in its own process, and observes it from outside."""

import asyncio
import os
import random
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from bench.cpu import of_process

READY_S = 60.0
POLL_S = 0.01
"""Seconds between two queries of the database."""
LAMPLIGHTER = (sys.executable, "-c", "from cli.main import main; main()")
LEAPING = (sys.executable, "-m", "bench.leaping")
QUIET = ("--log-level", "warning")


def free_port() -> int:
    """A free port below those that the system assigns itself (ip(7), ip_local_port_range)."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311
        with closing(socket.socket()) as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes (proc(5), VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


class Process:
    """A child process that serves on a port of this machine."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @classmethod
    async def start(cls, argv: Sequence[str], port: int, ready_s: float = READY_S) -> Self:
        """Start it and wait until it answers, with any status."""
        process = await asyncio.create_subprocess_exec(*argv)
        async with asyncio.timeout(ready_s), httpx.AsyncClient() as client:
            while True:
                with suppress(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{port}/healthz")
                    return cls(process, port)
                assert process.returncode is None, f"{argv} ended with {process.returncode}"
                await asyncio.sleep(0.02)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()

    @property
    def resident(self) -> int:
        """Its resident memory, in bytes."""
        return resident(self.process.pid)

    def cpu(self) -> float:
        """The CPU-seconds that it has used."""
        return of_process(self.process.pid)


class Server(Process):
    """A `lamplighter server`."""

    data: Path

    @classmethod
    async def at(
        cls, data: Path, port: int | None = None, command: Sequence[str] = LAMPLIGHTER, more: Sequence[str] = ()
    ) -> Self:
        """Start one on a data folder, with more options."""
        port = port or free_port()
        argv = (*command, "server", "--data-dir", os.fspath(data), "--listen", f"127.0.0.1:{port}", *QUIET, *more)
        server = await cls.start(argv, port)
        server.data = data
        return server

    async def leap(self) -> None:
        """Move the server's clock a month ahead; it must run with LEAPING."""
        self.process.send_signal(signal.SIGUSR1)
        async with httpx.AsyncClient() as client:  # the thread that answers has taken the signal first
            await client.get(f"http://127.0.0.1:{self.port}/healthz")

    @property
    def gateway(self) -> str:
        """The URL at which agents connect."""
        return f"ws://127.0.0.1:{self.port}/agent"

    @property
    def agent_token(self) -> str:
        """The agents' token."""
        return (self.data / "agent-token").read_text().strip()

    def client(self) -> httpx.AsyncClient:
        """A client of its REST API."""
        token = (self.data / "admin-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}/api/v1", headers=headers, timeout=60)

    async def until_stored(self, question: str, wanted: object, *values: object, timeout_s: float = 300) -> None:
        """Wait until a query on its SQLite returns `wanted`. A second connection sees only what is committed."""
        with closing(sqlite3.connect(f"file:{self.data}/lamplighter.db?mode=ro", uri=True)) as database:
            async with asyncio.timeout(timeout_s):
                while database.execute(question, values).fetchone()[0] != wanted:
                    await asyncio.sleep(POLL_S)


@asynccontextmanager
async def serving(
    command: Sequence[str] = LAMPLIGHTER, more: Sequence[str] = (), prepare: Callable[[Path], None] = lambda _: None
) -> AsyncIterator[Server]:
    """A server on a folder, while entered. `more`: options. `prepare`: called first, with the empty folder."""
    with tempfile.TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        await asyncio.to_thread(prepare, Path(folder))
        server = await Server.at(Path(folder), command=command, more=more)
        try:
            yield server
        finally:
            await server.stop()


def _manifest(kind: str, name: str, spec: Mapping[str, object]) -> dict[str, object]:
    metadata = {"namespace": "bench", "name": name}
    return {"apiVersion": "lamplighter.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def repository(slots: int | None = None) -> dict[str, object]:
    """A Repository with a password: one for each host, or one for all, with so many jobs at a time."""
    spec: dict[str, object] = {"url": "s3:https://s3.example.org/backups/{host}"}
    if slots is not None:
        spec = {"url": "s3:https://s3.example.org/backups", "maxConcurrentJobs": slots}
    return _manifest("Repository", "main", spec) | {"credentials": {"password": "a password"}}


def schedule(name: str, cron: str = "* * * * *", paths: Sequence[str] = ("/etc", "/home")) -> dict[str, object]:
    """A Schedule that selects every host."""
    backup = {"paths": list(paths), "tags": ["bench"]}
    spec = {"kind": "backup", "cron": cron, "repositoryRef": {"name": "main"}, "backup": backup}
    return _manifest("Schedule", name, spec | {"concurrencyPolicy": "Allow"})


async def declare(
    client: httpx.AsyncClient, schedules: Sequence[Mapping[str, object]], slots: int | None = None
) -> None:
    """Create a Repository, see `repository`, and these Schedules on the server."""
    for path, manifest in [("/repositories", repository(slots)), *(("/schedules", it) for it in schedules)]:
        (await client.post(path, json=manifest)).raise_for_status()


async def change(client: httpx.AsyncClient, manifest: Mapping[str, Any]) -> None:
    """Put a changed Schedule to the server."""
    (await client.put(f"/schedules/bench/{manifest['metadata']['name']}", json=manifest)).raise_for_status()
