"""Server and agent tell systemd what they are, as real processes: started, ready, alive and stopping."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.servers import free_port
from tests.integration.conftest import PATIENCE_S, DataFolders

pytestmark = pytest.mark.anyio

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")


class Unit:
    """A process with a socket of systemd's, and what it told there."""

    def __init__(self, process: Process, manager: socket.socket) -> None:
        self.process = process
        self.told: list[str] = []
        self._manager = manager

    async def tells(self, assignment: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while assignment not in self.told:
                told = await asyncio.get_running_loop().sock_recv(self._manager, 4096)
                self.told.append(told.decode())

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await self.tells("STOPPING=1")
            return await self.process.wait()


@asynccontextmanager
async def unit(folder: Path, *arguments: str, **environ: str) -> AsyncIterator[Unit]:
    """`lamplighter` as a unit of Type=notify starts it, in a data folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(folder.with_suffix(".notify")))
        told = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000", "LAMPLIGHTER_DATA_DIR": str(folder)}
        process = await asyncio.create_subprocess_exec(
            LAMPLIGHTER, *arguments, env=os.environ | told | environ, stderr=DEVNULL
        )
        try:
            yield Unit(process, manager)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_server_and_agent_are_ready_when_they_say_so(tmp_path: Path, data_folders: DataFolders) -> None:
    at, folder = f"127.0.0.1:{free_port()}", tmp_path / "server"
    token = tmp_path / "token"
    token.write_text("not-yet\n")
    asks = ("agent", "--server", f"http://{at}", "--token-file", str(token), "--host", "db-1")
    async with unit(tmp_path / "agent", *asks) as agent:
        await agent.tells("READY=1")  # its schedules are in force, though there is no server yet
        await agent.tells("STATUS=not connected to the server")
        async with unit(folder, "server", "--listen", at, **data_folders.environment(folder)) as server:
            assert server.told == []
            await server.tells("READY=1")
            _, writer = await asyncio.open_connection(*at.split(":"))
            writer.close()
            await server.tells("WATCHDOG=1")
            assert await server.stop() == 0
        await agent.tells("WATCHDOG=1")
        assert await agent.stop() == 0
