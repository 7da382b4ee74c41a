"""Runs a child process, passes on its lines as they arrive, and stops it when the waiting task is cancelled.

SIGINT is the only signal on which every version of restic removes its lock before it exits (cmd/restic/cleanup.go;
SIGTERM only since 0.17). Only restic gets it: ssh or rclone must live until the lock is removed.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from agent.restic.output import MAX_LINE, Lines
from agent.sandbox.confine import Launch

log = logging.getLogger(__name__)

GRACE_S = 8.0
"""Seconds from SIGINT to SIGKILL, in which restic removes its lock."""
LINGER_S = 1.0
"""Seconds to wait for a killed process to exit, and for the pipes of one that exited to close."""

_PROGRAM = "import sys; sys.path.append({!r}); from agent.sandbox.{} import main; main(sys.argv[1:])"
"""Runs a module of agent.sandbox as a program: -I and -S remove its folder from the path, so it is added again."""

Take = Callable[[int, bytes], None]
"""Receives a line of stdout (1) or stderr (2), without its line break."""


def python(program: str, *arguments: str) -> list[str]:
    """The argv that runs `agent.sandbox.PROGRAM` without site-packages."""
    return [sys.executable, "-I", "-S", "-c", _PROGRAM.format(str(Path(__file__).parents[2]), program), *arguments]


def launched(how: Launch, argv: Sequence[str], note: Path | None = None) -> list[str]:
    """The argv that starts a program through `agent.sandbox.launch`.

    `note`: a file to pass `how` in, when it may be longer than one argument can be (128 KiB, execve(2)).
    """
    settings = json.dumps(how._asdict())
    if note is not None:
        note.write_text(settings)
        settings = f"@{note}"
    return [*python("launch", str(os.getpid()), settings), *argv]


async def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    take: Take,
    ended: Callable[[int | None], None],
    *,
    grace_s: float = GRACE_S,
    max_line: int = MAX_LINE,
) -> None:
    """Run a program, then call `ended` with its exit code: negative for a signal, None if SIGKILL did not end it.

    When cancelled, interrupt the program, kill it after `grace_s` seconds, call `ended`, and raise. Lines of stdout are
    cut to `max_line` bytes. Raises OSError, and ValueError for a NUL byte.
    """
    loop = asyncio.get_running_loop()
    transport, child = await loop.subprocess_exec(
        lambda: _Child(take, max_line),
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        env=env,
        start_new_session=True,  # Ctrl-C at the agent's terminal must reach only the agent
    )
    try:
        await child.ended.wait()
    except asyncio.CancelledError:
        child.interrupt(grace_s)
        await child.ended.wait()
        raise
    finally:
        child.close()
        ended(transport.get_returncode())


class _Child(asyncio.SubprocessProtocol):
    """A process: passes its lines on, and is `ended` at most LINGER_S after it exited or was killed."""

    def __init__(self, take: Take, max_line: int) -> None:
        self._take = take
        self._lines = {1: Lines(max_line), 2: Lines()}
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.SubprocessTransport
        self.ended = asyncio.Event()

    def interrupt(self, grace_s: float) -> None:
        """Send SIGINT, and SIGKILL if it has not ended after `grace_s` seconds."""
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                os.kill(self._transport.get_pid(), signal.SIGINT)
            self._timers.append(self._loop.call_later(grace_s, self._kill))

    def close(self) -> None:
        """Kill the process if it is still running, and close its pipes."""
        for timer in self._timers:
            timer.cancel()
        if not self.ended.is_set():
            self._kill_group()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process was started."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """The process wrote to stdout or stderr."""
        for line in self._lines[fd].feed(data):
            self._take(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The process, and all that share its pipe, closed stdout or stderr."""
        for line in self._lines[fd].rest():
            self._take(fd, line)

    def process_exited(self) -> None:
        """The process exited; a child of it may still hold the pipes."""
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def connection_lost(self, exc: Exception | None) -> None:
        """The process exited, and all that it wrote was read."""
        self.ended.set()

    def _kill(self) -> None:
        log.warning("program did not end on SIGINT: killed", extra={"pid": self._transport.get_pid()})
        self._kill_group()
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def _give_up(self) -> None:
        self._kill_group()
        self.ended.set()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), signal.SIGKILL)
