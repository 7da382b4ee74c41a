"""A child process: its lines are handed on as they come, and it ends with whoever waits for it.

SIGINT is the one signal on which every version of restic removes its lock and leaves (cmd/restic/cleanup.go: SIGTERM
only since 0.17). It goes to the child alone, so that the ssh or rclone that it speaks through outlives the lock.
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
"""Seconds from SIGINT, in which restic may remove its lock, to SIGKILL."""
LINGER_S = 1.0
"""Seconds to wait for a killed process to be gone, and for the pipes of one that is gone to be closed."""

_PROGRAM = "import sys; sys.path.append({!r}); from agent.sandbox.{} import main; main(sys.argv[1:])"
"""A program that is a module, where -I and -S leave out the folder that it is in."""

Take = Callable[[int, bytes], None]
"""Gets a line of stdout (1) or stderr (2), without its line break."""


def python(program: str, *arguments: str) -> list[str]:
    """The argv that runs `agent.sandbox.PROGRAM` without site-packages."""
    return [sys.executable, "-I", "-S", "-c", _PROGRAM.format(str(Path(__file__).parents[2]), program), *arguments]


def launched(how: Launch, argv: Sequence[str], note: Path | None = None) -> list[str]:
    """The argv that starts a program by `agent.sandbox.launch`.

    `note`: a file that holds `how`, where it may be longer than one argument can be (128 KiB, execve(2)).
    """
    told = json.dumps(how._asdict())
    if note is not None:
        note.write_text(told)
        told = f"@{note}"
    return [*python("launch", str(os.getpid()), told), *argv]


async def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    take: Take,
    ended: Callable[[int | None], None],
    *,
    grace_s: float = GRACE_S,
    max_line: int = MAX_LINE,
) -> None:
    """Run a program to its end, and call `ended` with its exit code: negative for a signal, None when even SIGKILL did
    not end it. When cancelled, interrupt it, and kill it when it does not end within `grace_s` seconds.

    Of lines of stdout longer than `max_line` bytes the rest is left out. Raises OSError, ValueError for a NUL byte.
    """
    loop = asyncio.get_running_loop()
    transport, child = await loop.subprocess_exec(
        lambda: _Child(take, max_line),
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        env=env,
        start_new_session=True,  # a Ctrl-C at the agent's terminal is the agent's to handle
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
    """A process: hands its lines on, and is `ended` at most LINGER_S after it was killed or is gone."""

    def __init__(self, take: Take, max_line: int) -> None:
        self._take = take
        self._lines = {1: Lines(max_line), 2: Lines()}
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.SubprocessTransport
        self.ended = asyncio.Event()

    def interrupt(self, grace_s: float) -> None:
        """Ask it to end, and kill it when it has not after `grace_s` seconds."""
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                os.kill(self._transport.get_pid(), signal.SIGINT)
            self._timers.append(self._loop.call_later(grace_s, self._kill))

    def close(self) -> None:
        """Let go of it, and kill it if it is still there."""
        for timer in self._timers:
            timer.cancel()
        if not self.ended.is_set():
            self._kill_group()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It wrote something."""
        for line in self._lines[fd].feed(data):
            self._take(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It will write no more."""
        for line in self._lines[fd].rest():
            self._take(fd, line)

    def process_exited(self) -> None:
        """It is gone; a child of its own may still hold the pipes."""
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and all that it wrote is read."""
        self.ended.set()

    def _kill(self) -> None:
        log.warning("program did not end when asked to: killed", extra={"pid": self._transport.get_pid()})
        self._kill_group()
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def _give_up(self) -> None:
        self._kill_group()
        self.ended.set()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), signal.SIGKILL)
