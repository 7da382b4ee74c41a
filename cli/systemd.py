"""Tells systemd how a part is: that it is ready, what it waits for, that its loop is alive, and that it stops.

Source: sd_notify(3) and sd_watchdog_enabled(3). A part that systemd did not start, or whose unit is not of Type=notify,
has no NOTIFY_SOCKET in its environment, and tells nothing.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager

from cli.metrics import ANSWER_S, Ready, always_ready

log = logging.getLogger(__name__)

STARTING_S = 0.2
"""Seconds between two questions whether a part that starts is ready."""
STATUS_S = 30.0
"""Seconds between two questions what a part waits for."""


class Notifier:
    """A socket of systemd. `address`: a path, or a name in the abstract namespace that begins with "@"."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False

    def tell(self, assignment: str) -> bool:
        """Send one assignment, such as "READY=1", without waiting. Returns whether systemd has it.

        What fails is logged once, since it is sent again at the next occasion.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(assignment.encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("systemd was not told", extra={"told": assignment, "reason": str(error)})
            self._failed = True
            return False
        self._failed = False
        return True


def notifier(environ: MutableMapping[str, str]) -> Notifier | None:
    """What tells systemd; None if it does not listen. Takes NOTIFY_SOCKET out of the environment.

    So only one part of a process tells systemd, and no program that the process starts does.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        return Notifier(address)
    if address:
        log.warning("NOTIFY_SOCKET is no socket that this can tell", extra={"address": address})
    return None


def watchdog_s(environ: MutableMapping[str, str], pid: int) -> float | None:
    """Seconds without a sign of life after which systemd ends this process; None for ever."""
    microseconds, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    if not microseconds.isascii() or not microseconds.isdecimal() or whose != str(pid):
        return None
    return int(microseconds) / 1e6 or None


@asynccontextmanager
async def supervised(
    status: Ready,
    started: Ready | None = None,
    healthy: Ready = always_ready,
    environ: MutableMapping[str, str] = os.environ,
    *,
    stop_s: float | None = None,
) -> AsyncIterator[None]:
    """Tell systemd how a part is while entered, and on leaving that it stops.

    `status`: says what the part waits for, for `systemctl status`. `started`: says what it waits for before systemd
    counts it as started; `status` if None. `healthy`: says what only a restart can repair. While it says something, and
    while this loop does not run, systemd gets no sign of life, and restarts the part. `stop_s`: seconds that stopping
    may take; None for what the unit says (TimeoutStopSec).
    """
    told = notifier(environ)
    if told is None:
        yield
        return
    limit_s = watchdog_s(environ, os.getpid())
    tasks = [asyncio.create_task(_report(told, status, started or status), name="status for systemd")]
    if limit_s is not None:
        tasks.append(asyncio.create_task(_beat(told, healthy, limit_s / 2), name="watchdog of systemd"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        told.tell("STOPPING=1")
        if stop_s is not None:
            told.tell(f"EXTEND_TIMEOUT_USEC={int(stop_s * 1e6)}")


async def _report(told: Notifier, status: Ready, started: Ready) -> None:
    """Tell what the part waits for, and once that it has started."""
    has_started, said = False, ""
    while True:
        if not has_started and not await _answer(started):
            has_started = told.tell("READY=1")
        if (now := await _answer(status) or "ready") != said and told.tell(f"STATUS={_line(now)}"):
            said = now
        await asyncio.sleep(STATUS_S if has_started else STARTING_S)


async def _beat(told: Notifier, healthy: Ready, every_s: float) -> None:
    """Tell that the loop is alive."""
    while True:
        if not await healthy():
            told.tell("WATCHDOG=1")
        await asyncio.sleep(every_s)


async def _answer(question: Ready) -> str:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await question()
    except TimeoutError:
        return f"no answer within {ANSWER_S:.0f} s"


def _line(text: str) -> str:
    return " ".join(text.split())
