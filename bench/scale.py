"""The row of many sessions in one process: what each host costs in memory and CPU time, with and without a connection.

`python -m bench.scale HOSTS IDLE_S` measures one size and prints it as JSON. The server is the real one, from uvicorn's
protocols to the store. Only the sockets are not there: each connection has a transport in memory, whose other end
answers as a host does, which takes a few µs of the CPU time. A socket adds what the kernel and asyncio need for it; the
row `fleet` has real ones.
"""

import asyncio
import gc
import logging
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from bench.bounds import Lateness
from bench.fleet import Clock
from bench.growing import sizes
from bench.hosts import Held, Shared, encoded
from bench.line import PING, PONG, TEXT, Frames, framed, request
from bench.result import Limits, Result, Row, Size, slope
from bench.servers import repository, resident, schedule
from listener.accept import Factory, Listener, Slot
from listener.slots import Slots
from server.access.identity import Files
from server.access.vault import Vault
from server.api import routing
from server.app import GC_THRESHOLDS, Parts, application, assemble, new_id
from server.resources import manifests
from server.store.declared import upsert_repositories, upsert_schedules
from server.store.engine import Store
from server.store.rows import RepositoryRow, ScheduleRow
from server.store.tables import HOSTS, JOBS, Actor
from server.transport import connections
from wire import codec
from wire.messages import CommandRun, Hello, JobAccepted

SCHEDULES = 2
AT_ONCE = 500
"""Frames that come from hosts in one turn of the loop."""
CONNECTING = 256
"""Hosts that connect at once, as in the other rows: a hello must come within some seconds."""
TOGETHER = 10_000
"""The most hosts that fire, for what all would cost. More at once would keep one server busy for longer than a ping
waits for its pong."""
WAITING = 2_000
"""Calls that wait in the store, above which no more comes from hosts, as when a server reads no faster."""
IDLE = 10
"""Multiple of `Size.settled_s` for which connections are idle: in 20 s, each is pinged once."""
POLL_S = 0.25
"""Seconds between two looks at whether a step is over: each takes a little of the CPU time that is measured."""
LEAP = timedelta(days=30)
DEADLINE_S = 900.0

Figures = dict[str, float]
"""By name: bytes of memory, CPU-seconds, or seconds."""


class Wire:
    """What is on the way from hosts to the server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._coming: deque[tuple[Transport, bytes]] = deque()
        self._came = asyncio.Event()

    def send(self, transport: "Transport", data: bytes) -> None:
        """Send bytes of a host."""
        self._coming.append((transport, data))
        self._came.set()

    async def deliver(self) -> None:
        """Bring the bytes to the server, as fast as it can store what they say."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._coming:
                for _ in range(min(AT_ONCE, len(self._coming))):
                    transport, data = self._coming.popleft()
                    transport.arrived(data)
                await asyncio.sleep(0)
                while self._store.waiting > WAITING:
                    await asyncio.sleep(0.001)


class Transport(asyncio.Transport):
    """A connection in memory, with its host at the other end.

    `commands`: how many it was given. `welcome`: called with its first frame, which follows its hello.
    """

    __slots__ = (
        "_closed",
        "_frames",
        "_host",
        "_kept",
        "_open",
        "_paused",
        "_protocol",
        "commands",
        "held",
        "shared",
        "welcome",
        "wire",
    )

    def __init__(self, host: str, held: Held, shared: Shared, wire: Wire, welcome: Callable[[], None]) -> None:
        self._host = host
        self.held = held
        self.shared = shared
        self.wire = wire
        self.welcome: Callable[[], None] | None = welcome
        self.commands = 0
        self._protocol: Any = None
        self._frames = Frames()
        self._open = self._closed = self._paused = False
        self._kept: list[bytes] | None = None

    def connect(self, protocol: asyncio.BaseProtocol, token: str) -> None:
        """Begin the handshake."""
        self.set_protocol(protocol)
        protocol.connection_made(self)
        self.wire.send(self, request("/agent", token))

    def arrived(self, data: bytes) -> None:
        """Give the server bytes, unless it reads no more now."""
        if self._paused:
            self._kept = [*(self._kept or ()), data]
        elif not self._closed:
            self._protocol.data_received(data)

    def fire(self) -> None:
        """Send the fires of all its schedules."""
        self.wire.send(self, self.shared.tick(self.held, 0))

    # What the server calls.

    def write(self, data: Any) -> None:
        if not self._open:
            assert b" 101 " in data, bytes(data)
            self._open = True
            digest = self.held.entries.digest if self.held.version else ""
            self.wire.send(self, encoded(Hello(self._host, "bench", self.held.version, digest)))
            return
        for opcode, payload in self._frames.take(bytes(data)):
            if opcode == PING:
                self.wire.send(self, framed(payload, PONG))
            elif opcode == TEXT:
                self._told(payload)

    def _told(self, frame: bytes) -> None:
        if self.welcome is not None:
            self.welcome()
            self.welcome = None
        if frame.startswith((b'{"type":"schedule.set"', b'{"type":"schedule.diff"')):
            self.held = self.shared.pushed(self.held, frame)
            self.wire.send(self, self.held.ack)
        elif b'"command.run"' in frame:
            jobs = [it.job_id for it, _ in codec.from_server.read(frame) if isinstance(it, CommandRun)]
            self.commands += len(jobs)
            self.wire.send(self, encoded(*map(JobAccepted, jobs)))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        kept, self._kept = self._kept or (), None
        for data in kept:
            self.wire.send(self, data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


class _NoListener:
    """Stands where connections are accepted: it has none, and keeps what makes their protocols."""

    factory: Factory

    def start(self, factory: Factory) -> None:
        self.factory = factory

    def stop(self) -> None:
        pass

    drop_all = stop


class Scale:
    """A server with many hosts, and what each step cost it."""

    def __init__(self, parts: Parts, store: Store, clock: Clock, hosts: int, factory: Factory) -> None:
        self.figures: Figures = {}
        self._parts, self._store, self._clock, self._factory = parts, store, clock, factory
        self._names = [f"host-{at}" for at in range(hosts)]
        self._shared, self._wire = Shared(), Wire(store)
        self._transports: list[Transport] = []
        self._held = dict.fromkeys(self._names, Held())

    async def measure(self, idle_s: float) -> None:
        """Connect all hosts, leave them idle, change a schedule, connect them again, and fire."""
        delivering = asyncio.create_task(self._wire.deliver())
        before = _memory()
        await self._step("first_hello", self._connect())
        self.figures["memory_connected"] = _memory() - before
        begin = time.process_time()
        await asyncio.sleep(idle_s)
        self.figures["cpu_s.idle_second"] = (time.process_time() - begin) / idle_s
        await self._step("rollout", self._change())
        await self._drop()
        await self._step("hello_in_sync", self._connect())
        self._clock.shift = LEAP
        await self._step("fire", self._fire())
        self.figures["cpu_s.fire"] *= len(self._names) / min(len(self._names), TOGETHER)
        await self._drop()
        delivering.cancel()

    async def _step(self, name: str, work: Awaitable[None]) -> None:
        async with Lateness() as lateness:
            begin, cpu = time.perf_counter(), time.process_time()
            await work
            self.figures[f"cpu_s.{name}"] = time.process_time() - cpu
            self.figures[f"seconds.{name}"] = time.perf_counter() - begin
        self.figures[f"late.{name}"] = lateness.most

    async def _connect(self) -> None:
        slots: Slots[Slot] = Slots(len(self._names) + 1)
        gate = asyncio.Semaphore(CONNECTING)
        for name in self._names:
            await gate.acquire()
            transport = Transport(name, self._held[name], self._shared, self._wire, gate.release)
            slot = Slot(slots, cast("Any", None))
            slots.add(slot)
            transport.connect(self._factory(slot), "agent")
            self._transports.append(transport)
        await self._until(lambda: all(map(self._parts.services.hub.is_connected, self._names)))
        await self._in_sync()
        await self._until(lambda: not self._store.waiting)  # the hellos are stored last

    async def _change(self) -> None:
        manifest = schedule("every-minute-0", "*/1 * * * *")
        await self._parts.services.schedules.put(Actor("user", "bench"), manifest)
        await self._in_sync()

    async def _fire(self) -> None:
        some = self._transports[:TOGETHER]
        for transport in some:
            transport.fire()
        await self._stored(sa.select(sa.func.count()).where(JOBS.c.status == "running"), len(some) * SCHEDULES)

    async def _drop(self) -> None:
        """End all connections; the hosts keep what they hold."""
        self._held = {name: it.held for name, it in zip(self._names, self._transports, strict=True)}
        for transport in self._transports:
            transport.close()
        await self._until(lambda: not any(map(self._parts.services.hub.is_connected, self._names)))
        self._transports.clear()

    async def _in_sync(self) -> None:
        """Wait until each host's ack of what it should hold is stored."""
        applied = sa.and_(HOSTS.c.applied_version == HOSTS.c.desired_version, HOSTS.c.applied_version > 0)
        same = sa.and_(applied, HOSTS.c.applied_digest == HOSTS.c.desired_digest)
        await self._stored(sa.select(sa.func.count()).where(same), len(self._names))

    async def _stored(self, question: sa.Select[Any], wanted: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await self._store.read(lambda conn: conn.scalar(question)) != wanted:
                await asyncio.sleep(POLL_S)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(POLL_S)


def _memory() -> int:
    gc.collect()
    return resident(os.getpid())


@asynccontextmanager
async def _filled(hosts: int) -> AsyncIterator[Store]:
    """A store with the schedules and the hosts."""
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        store = await asyncio.to_thread(Store.open, Path(folder) / "lamplighter.db")
        now = datetime.now(UTC)
        main = manifests.parse_repository(repository())
        row = RepositoryRow(new_id(), main.namespace, main.name, main.labels, main.raw_spec, 1, now, now)
        await store.write(upsert_repositories, row)
        for at in range(SCHEDULES):
            spec = manifests.parse_schedule(schedule(f"every-minute-{at}")).raw_spec
            await store.write(
                upsert_schedules, ScheduleRow(new_id(), "bench", f"every-minute-{at}", {}, spec, 1, now, now, now)
            )
        rows = [{"name": f"host-{at}", "labels": {}, "created_at": now, "since": now} for at in range(hosts)]
        await store.write(_insert_hosts, rows)
        yield store
        await store.close()


def _insert_hosts(conn: sa.Connection, batches: Sequence[Sequence[dict[str, Any]]]) -> list[None]:
    for rows in batches:
        conn.execute(HOSTS.insert(), rows)
    return [None] * len(batches)


async def measured(hosts: int, idle_s: float) -> Figures:
    """Measure one size, in this process."""
    gc.set_threshold(*GC_THRESHOLDS)
    async with _filled(hosts) as store:
        clock, vault, identity = Clock(), Vault([Vault.new_key()]), Files("admin", "agent")
        parts = assemble(store, vault, clock, new_id, identity)
        before, cpu = _memory(), time.process_time()
        await parts.loader.load(store, vault)
        loaded = {"memory_known": float(_memory() - before), "cpu_s.load": time.process_time() - cpu}
        app, listener = application(parts.gateway, routing.routes(parts.services, identity)), _NoListener()
        async with connections.serving(app, cast(Listener, listener)):
            while not hasattr(listener, "factory"):
                await asyncio.sleep(0.01)
            scale = Scale(parts, store, clock, hosts, listener.factory)
            await scale.measure(idle_s)
            parts.services.dispatcher.close()
        return loaded | scale.figures


async def scale(row: str, size: Size) -> Sequence[Result]:
    """Measure each size in a process of its own."""
    found: dict[int, Figures] = {}
    for hosts in sizes(size.sessions, 1_000):
        argv = (sys.executable, "-m", "bench.scale", str(hosts), str(IDLE * size.settled_s))
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        printed, _ = await process.communicate()
        assert process.returncode == 0, f"bench.scale {hosts} ended with {process.returncode}"
        found[hosts] = msgspec.json.decode(printed, type=Figures)
    return [
        *(_memory_result(row, found, name, what) for name, what in MEMORY.items()),
        *(_cpu_result(row, found, name, what) for name, what in STEPS.items()),
    ]


MEMORY = {"memory_known": "a host that is known", "memory_connected": "a connection of a host, without its socket"}
STEPS = {
    "load": "a host is loaded at the start",
    "first_hello": "a first hello, with the push of the set and its ack",
    "hello_in_sync": "a hello of a host in sync",
    "rollout": "a changed schedule, pushed and acked",
    "fire": f"a tick of {SCHEDULES} fires, recorded and answered",
    "idle_second": "a second of an idle connection",
}


def _memory_result(row: str, found: dict[int, Figures], name: str, what: str) -> Result:
    each = {hosts: figures[name] / hosts for hosts, figures in found.items()}
    most = max(each)
    shown = ", ".join(f"{hosts:,}: {value / 1024:.1f} KiB" for hosts, value in each.items())
    named = f"server memory of {what}, with {most:,} in one process"
    figures = {f"{name}.{hosts}": value for hosts, value in each.items()}
    return Result(row, named, "KiB", each[most], None, "", Limits(32 << 10), shown, figures)


def _cpu_result(row: str, found: dict[int, Figures], name: str, what: str) -> Result:
    all_of_them = {hosts: figures[f"cpu_s.{name}"] for hosts, figures in found.items()}
    each = {hosts: value / hosts for hosts, value in all_of_them.items()}
    most = max(each)
    shown = ", ".join(f"{hosts:,}: {value * 1e6:,.0f} µs" for hosts, value in each.items())
    late = found[most].get(f"late.{name}")
    note = f"of each, with {shown}; in all it grows with exponent {slope(all_of_them):.2f}"
    note += "" if late is None else f"; the loop was late by {late * 1e3:,.0f} ms at most"
    figures = {f"cpu_s.{name}.each.{hosts}": value for hosts, value in each.items()}
    figures |= {} if late is None else {f"late.{name}": late}
    return Result(
        row, f"CPU of {what}, with {most:,} in one process", "us", each[most], None, "", Limits(), note, figures
    )


ROWS = (Row("scale", scale, asked=True),)

if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measured(int(sys.argv[1]), float(sys.argv[2])))))
