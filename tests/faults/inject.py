"""How each kind of fault is brought about and ended."""

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from bench.fleet import Fleet as Storm
from bench.fleet import until
from tests.faults import finding, plan
from tests.faults.fleet import Fleet, Part, can_mount
from tests.faults.hostile import Hostile, invented
from tests.faults.link import Side
from tests.faults.plan import Fault, Plan
from wire.messages import PROTOCOL

KILL_WITHIN_S = 2.0
"""Seconds that a fault waits for a restic to kill."""
FRAMES = 3
"""Frames of invented fires."""


class NotNowError(Exception):
    """The fault cannot be brought about now: its target is down, or under another fault."""


Injection = Callable[[Fleet, Fault], AbstractAsyncContextManager[None]]


async def inject(fleet: Fleet, planned: Plan, done: Counter[str]) -> None:
    """Bring all faults of a plan about, each in its time, and end them; `done` counts them by kind."""

    async def bring_about(fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        with suppress(NotNowError):
            async with KINDS[fault.kind](fleet, fault):
                done[fault.kind] += 1
                await asyncio.sleep(fault.lasts)

    async with asyncio.TaskGroup() as tasks:
        for fault in planned.faults:
            tasks.create_task(bring_about(fault))


@asynccontextmanager
async def _held(part: Part) -> AsyncIterator[int]:
    """A part that runs and that no other fault of this kind has got hold of; its process."""
    if part.busy or part.pid is None:
        raise NotNowError
    part.busy = True
    try:
        yield part.pid
    finally:
        part.busy = False


@asynccontextmanager
async def _kill(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    part = fleet.parts[fault.target]
    async with _held(part):
        await part.kill()
        try:
            yield
        finally:
            part.release()


@asynccontextmanager
async def _pause(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    async with _held(fleet.parts[fault.target]) as pid:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _kill_restic(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """Kill what the agent has started by then, or starts soon after."""
    part, end = fleet.part_of(fault.target), time.monotonic() + KILL_WITHIN_S
    while part.pid is None or not (children := children_of(part.pid)):
        if time.monotonic() > end:
            raise NotNowError
        await asyncio.sleep(0.01)
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield


def children_of(parent: int) -> list[int]:
    """The processes that a process has started and that are not over (proc(5))."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(path.parent.name))
    return found


@asynccontextmanager
async def _cut(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    link = fleet.links[fault.target]
    link.up = False
    link.cut()
    try:
        yield
    finally:
        link.up = True


@asynccontextmanager
async def _delay(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    link = fleet.links[fault.target]
    link.delay = float(fault.how)
    try:
        yield
    finally:
        link.delay = 0.0


@asynccontextmanager
async def _stall(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    link = fleet.links[fault.target]
    link.stall()
    try:
        yield
    finally:
        link.flow()


@asynccontextmanager
async def _half_open(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """What is said is lost; one side may learn at once that its connection is gone, the other never by that."""
    link = fleet.links[fault.target]
    link.deaf = True
    if fault.how != "both":
        link.cut(cast(Side, fault.how))
    try:
        yield
    finally:
        link.cut()  # a connection that lost something never goes on
        link.deaf = False


@asynccontextmanager
async def _duplicate(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    link, side = fleet.links[fault.target], cast(Side, fault.how)
    link.twice.add(side)
    try:
        yield
    finally:
        link.twice.discard(side)


@asynccontextmanager
async def _disk_full(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """Fill the part's disk; where it has none of its own, have its process write no byte more (setrlimit(2))."""
    part, filler = fleet.parts[fault.target], fleet.data(fault.target) / "filler"
    if not can_mount():
        async with _limited(part):
            yield
        return
    if filler.exists():
        raise NotNowError
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        yield
    finally:
        filler.unlink()


@asynccontextmanager
async def _limited(part: Part) -> AsyncIterator[None]:
    async with _held(part) as pid:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@asynccontextmanager
async def _busy(fleet: Fleet, _: Fault) -> AsyncIterator[None]:
    with closing(sqlite3.connect(fleet.database, isolation_level=None, timeout=0)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise NotNowError from error
        yield


@asynccontextmanager
async def _older(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """Copy the server's database as docs/operations.md says, and put the copy back when the fault is over."""
    part, copy = fleet.parts[fault.target], fleet.folder / "copy.db"
    try:
        await asyncio.to_thread(_copy, fleet.database, copy)
    except sqlite3.Error as error:
        raise NotNowError from error
    yield
    async with fleet.edits, _held(part):
        await part.kill()
        try:
            fleet.lost |= {job.id: job for job in finding.jobs(fleet.database)}
            _put_back(copy, fleet.database)
        finally:
            part.release()


def _copy(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database, timeout=0)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _put_back(copy: Path, database: Path) -> None:
    """Put a copy in a database's place, unless its disk has no room for it."""
    beside = database.with_name("put-back.db")
    try:
        shutil.copyfile(copy, beside)
    except OSError:
        beside.unlink()
        return
    for kind in ("-wal", "-shm"):
        database.with_name(database.name + kind).unlink(missing_ok=True)
    beside.rename(database)


@asynccontextmanager
async def _clock(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    fleet.clocks.move(fault.target, timedelta(hours=float(fault.how.split()[0])))
    try:
        yield
    finally:
        fleet.clocks.move(fault.target, timedelta())


@asynccontextmanager
async def _edit(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    await edit(fleet, fault)
    yield


@asynccontextmanager
async def _edit_offline(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    async with _cut(fleet, fault):
        await edit(fleet, fault)
        yield


async def edit(fleet: Fleet, fault: Fault) -> None:
    """Have somebody change what is declared; a server that is down is told when it is back."""
    async with fleet.edits:
        match fault.how.split(maxsplit=3):
            case ["put", schedule, group, cron]:
                selector = {"matchLabels": {"group": group}}
                await fleet.put_schedule(schedule, "backup", cron, hostSelector=selector)
            case ["delete", schedule]:
                await fleet.ask("DELETE", f"/schedules/faults/{schedule}")
            case ["relabel", group]:
                await fleet.label(fault.target, group)


@asynccontextmanager
async def _storm(fleet: Fleet, _: Fault) -> AsyncIterator[None]:
    """Many agents connect at once, lose their connections at once, and come back; they stay until all is quiet."""
    if fleet.storm is not None:
        raise NotNowError
    url, token = fleet.gateway
    fleet.storm = Storm(url, token, plan.STORM)
    fleet.storm.clock.set(fleet.clocks.right())
    await fleet.storm.start()
    await fleet.storm.stop()
    fleet.storm = Storm(url, token, plan.STORM, [agent.core.state for agent in fleet.storm.agents])
    fleet.storm.clock.set(fleet.clocks.right())
    await fleet.storm.start()
    yield


@asynccontextmanager
async def _second_agent(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """Another process says again and again that it is this host. It gets in while the host's own is away, does nothing
    that it is told, and is gone when the fault is over."""
    url, token = fleet.gateway

    async def come_in() -> None:
        hello = {"host": fault.target, "instance": "second", "capabilities": ["ask"]}
        headers = {"Authorization": f"Bearer {token}"}
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                protocol = [Subprotocol(PROTOCOL)]
                async with connect(url, subprotocols=protocol, additional_headers=headers, proxy=None) as socket:
                    await socket.send(json.dumps({"type": "hello", "payload": hello}))
                    async for _ in socket:
                        pass
            await asyncio.sleep(0.1)

    coming = asyncio.create_task(come_in())
    try:
        yield
    finally:
        coming.cancel()
        await asyncio.wait([coming])


@asynccontextmanager
async def _invented(fleet: Fleet, fault: Fault) -> AsyncIterator[None]:
    """A host fires due times that are none of its own, many in a frame; its agent stays until all is quiet."""
    if fleet.hostile is not None:
        raise NotNowError
    fleet.hostile = hostile = Hostile(*fleet.gateway)
    hostile.clock.set(fleet.clocks.right())
    fleet.hostile_runs = asyncio.create_task(hostile.run())
    await until(hostile, lambda: hostile.version > 0)
    rng = random.Random(f"fires {fault}")
    for _ in range(FRAMES):
        hostile.fire(invented(list(fleet.schedules.values()), fleet.clocks.right(), rng))
    yield


KINDS: Mapping[str, Injection] = {
    "kill server": _kill,
    "kill agent": _kill,
    "kill restic": _kill_restic,
    "pause": _pause,
    "cut": _cut,
    "delay": _delay,
    "stall": _stall,
    "half-open": _half_open,
    "frames twice to": _duplicate,
    "disk full": _disk_full,
    "database busy": _busy,
    "older database": _older,
    "clock": _clock,
    "clock ahead": _clock,
    "invented fires": _invented,
    "edit": _edit,
    "edit while offline": _edit_offline,
    "storm": _storm,
    "second agent": _second_agent,
}
