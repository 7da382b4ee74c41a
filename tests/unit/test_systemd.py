"""systemd is told how a part is, and a loop that is stuck tells nothing; the units are ones that systemd takes."""

import asyncio
import configparser
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cli import logs, systemd
from cli.main import main

UNITS = sorted((Path(__file__).parents[2] / "contrib/systemd").glob("*.service"))
ANALYZE = shutil.which("systemd-analyze") or ""
needs_systemd = pytest.mark.skipif(not ANALYZE, reason="systemd-analyze is missing: apt-get install systemd")
TOO_EXPOSED, WATCHDOG_US = 4.0, 200_000


class Manager:
    """Stands in for systemd: a socket, and what was told there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def told(self) -> list[str]:
        """What was told since the last call."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    async def until(self, assignment: str) -> list[str]:
        """What was told up to this assignment."""
        found: list[str] = []
        async with asyncio.timeout(10):
            while assignment not in found:
                await asyncio.sleep(0.01)
                found += self.told()
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@lamplighter-test-{os.getpid()}"
    made = Manager(address)
    yield made
    made.close()


class Part:
    """A part, and what it waits for."""

    def __init__(self, waits_for: str = "", sick: str = "") -> None:
        self.waits_for, self.sick = waits_for, sick

    async def ready(self) -> str:
        return self.waits_for

    async def healthy(self) -> str:
        return self.sick


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(timed())


def test_a_part_is_ready_only_once_it_waits_for_nothing(manager: Manager) -> None:
    async def work() -> None:
        part = Part("the store is being upgraded")
        async with systemd.supervised(part.ready, environ={"NOTIFY_SOCKET": manager.address}, stop_s=90):
            assert await manager.until("STATUS=the store is being upgraded") == ["STATUS=the store is being upgraded"]
            part.waits_for = ""
            assert await manager.until("STATUS=ready") == ["READY=1", "STATUS=ready"]
        assert manager.told() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=90000000"]

    run(work)


def test_a_part_may_have_started_and_still_wait(manager: Manager) -> None:
    """An agent runs its schedules without a server."""

    async def work() -> None:
        part, server = Part(), Part("not connected\nto the server")
        async with systemd.supervised(server.ready, part.ready, environ={"NOTIFY_SOCKET": manager.address}):
            assert "READY=1" in await manager.until("STATUS=not connected to the server")

    run(work)


def test_a_loop_that_is_stuck_gives_no_sign_of_life(manager: Manager) -> None:
    async def work() -> None:
        part = Part()
        environ = {
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(WATCHDOG_US),
            "WATCHDOG_PID": str(os.getpid()),
        }
        async with systemd.supervised(part.ready, healthy=part.healthy, environ=environ):
            await manager.until("WATCHDOG=1")
            manager.told()
            time.sleep(2 * WATCHDOG_US / 1e6)  # noqa: ASYNC251 - the loop is stuck
            assert manager.told() == []
            await manager.until("WATCHDOG=1")
            part.sick = "a watch is not answered"
            manager.told()
            await asyncio.sleep(2 * WATCHDOG_US / 1e6)
            assert "WATCHDOG=1" not in manager.told()

    run(work)


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nowhere/notify"}]
)
def test_a_part_runs_alike_where_nobody_listens(environ: dict[str, str]) -> None:
    async def work() -> None:
        async with systemd.supervised(Part().ready, environ=environ):
            await asyncio.sleep(0)

    run(work)
    assert "NOTIFY_SOCKET" not in environ or environ == {"NOTIFY_SOCKET": ""}


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_of_the_process_that_it_names(environ: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_s(environ, 7) == seconds


def test_the_journal_gets_priorities_and_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        about = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        assert logs.formatter("text", journal).format(_record()).startswith("<4>agent      warning: not connected")
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino + 1}")
        assert re.match(r"\d\d:\d\d:\d\d agent ", logs.formatter("text", journal).format(_record()))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_command_with_options_that_there_are(unit: Path) -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    parsed.read_string(unit.read_text())
    service = parsed["Service"]
    command = main.commands[service["ExecStart"].split()[1]]
    variables = {it.envvar for it in command.params}
    assert service["Environment"].partition("=")[0] in variables
    assert service["Type"] == "notify"
    assert service["WatchdogSec"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_one_that_systemd_takes(unit: Path, tmp_path: Path) -> None:
    """`verify` wants the program to be there, so the copy names one that is."""
    program = tmp_path / "lamplighter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for each in UNITS:
        (tmp_path / each.name).write_text(each.read_text().replace("/usr/local/bin/lamplighter", str(program)))
    done = _analyze("verify", str(tmp_path / unit.name))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_confined(unit: Path) -> None:
    done = _analyze("security", "--offline=yes", "--no-pager", str(unit))
    exposed = re.search(rf"exposure level for {unit.name}: (\d+\.\d)", done.stdout)
    assert exposed, done.stderr
    assert float(exposed[1]) < TOO_EXPOSED


def _record() -> logging.LogRecord:
    return logging.LogRecord("agent.link", logging.WARNING, "", 0, "not connected", (), None)


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, check=False)
