"""Rows of a push: one change for a whole fleet, and the bytes of one push."""

import asyncio
import time
from collections.abc import Sequence

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench import floors
from bench.cpu import Spent
from bench.load import Load, loading
from bench.result import Limits, Result, Row, Size, cpu_figures, median, runs
from bench.servers import Process, Server, change, declare, schedule, serving
from wire import codec, entries
from wire.messages import PROTOCOL, FromServer, Hello, ScheduleAck, ScheduleDiff, ScheduleSet

IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = ? AND applied_digest = desired_digest"


async def rollout(row: str, size: Size) -> Sequence[Result]:
    """Measure one changed schedule for 1,000 hosts, to the last stored ack."""
    async with serving() as server, loading() as load:
        await declare_two(server)
        await load.hosts(size.agents)
        await load.open(server.port, "/agent", server.agent_token)
        await server.until_stored(IN_SYNC, size.agents, 1)
        rolled = await roll_out(server, load, size.agents, size.runs)
        frame = await diff_frame(server, "one-more")
    return [rollout_result(row, size.agents, rolled, await floor_of(frame, size.agents, size.runs), 0.3)]


Rolled = tuple[list[float], dict[str, float]]
"""The seconds of each run, and what else was measured."""


async def roll_out(server: Server, load: Load, hosts: int, times: int) -> Rolled:
    """Change a Schedule some times, for hosts that hold version 1."""
    spent = Spent({"server": server.cpu, "load": load.cpu})
    took = [await rolled_out(server, load, hosts, 1 + run) for run in range(1, times + 1)]
    return took, cpu_figures(spent(), times * hosts)


async def floor_of(frame: str, hosts: int, times: int) -> Rolled:
    """Send the frame of a change through a bare server, some times."""
    async with floors.serving("cast") as bare, loading() as load:
        await load.bare(hosts, frame)
        await load.open(bare.port)
        return await casts(bare, frame, hosts, times)


async def casts(bare: Process, frame: str, hosts: int, times: int) -> Rolled:
    """Send a frame to all connections of a bare server some times: seconds until it has read one ack from each."""
    spent = Spent({"bare": bare.cpu})
    caller = await floors.dial(bare.port, "/all")
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        await caller.send(frame)
        await caller.recv()
        took.append(time.perf_counter() - begin)
    caller.transport.abort()
    return took, cpu_figures(spent(), times * hosts)


def rollout_result(row: str, hosts: int, rolled: Rolled, floor: Rolled, most: float) -> Result:
    """The result for a fleet of `hosts`."""
    what = f"one schedule changed for {hosts:,} online hosts: the last ack stored"
    (took, figures), (bare, more) = rolled, floor
    is_, limits = "same bytes, one ack each", Limits(most, 2.0)
    return Result(row, what, "s", median(took), median(bare), is_, limits, runs(took), figures | more)


async def declare_two(server: Server) -> None:
    """Declare the fleet's two Schedules."""
    async with server.client() as client:
        await declare(client, [schedule("nightly", "0 2 * * *"), schedule("weekly", "@weekly")])


async def rolled_out(server: Server, load: Load, hosts: int, version: int) -> float:
    """Change a Schedule: seconds from the request to the last ack of `version` in the database."""
    async with server.client() as client:
        begin = time.perf_counter()
        await change(client, schedule("nightly", f"{version} 2 * * *"))
        await load.holding(version)
        await server.until_stored(IN_SYNC, hosts, version)
        return time.perf_counter() - begin


async def diff(row: str, size: Size) -> Sequence[Result]:
    """The bytes of the frame that one changed schedule of 1,000 causes."""
    async with serving() as server:
        async with server.client() as client:
            await declare(client, [schedule(f"nightly-{at}", "0 2 * * *") for at in range(size.schedules - 1)])
        frame = await diff_frame(server, "nightly")
        (message,) = [message for message, _ in codec.from_server.read(frame)]
        assert isinstance(message, ScheduleDiff)
        (entry,) = message.upsert
        async with _connect(server) as socket:
            await socket.send(codec.encode([Hello("newcomer")]))
            whole = await _next(socket, ScheduleSet)
    note = f"the whole set: {len(whole):,} bytes"
    what = f"bytes pushed when one of a host's {size.schedules:,} schedules changes"
    return [Result(row, what, "B", len(frame), len(bytes(entry)), "that schedule", Limits(None, 2.0), note)]


async def diff_frame(server: Server, name: str) -> str:
    """The frame that a host gets when one of its Schedules changes."""
    async with server.client() as client:
        await change(client, schedule(name, "0 2 * * *"))
        async with _connect(server) as socket:
            await socket.send(codec.encode([Hello("watcher")]))
            await _ack(socket)
            await change(client, schedule(name, "30 2 * * *"))
            return await _next(socket, ScheduleDiff)


def _connect(server: Server) -> connect:
    headers = {"authorization": f"Bearer {server.agent_token}"}
    return connect(
        server.gateway, subprotocols=[Subprotocol(PROTOCOL)], additional_headers=headers, max_size=None, proxy=None
    )


async def _ack(socket: ClientConnection) -> None:
    """Wait for a set, and ack it."""
    ((message, _),) = codec.from_server.read(await _next(socket, ScheduleSet))
    assert isinstance(message, ScheduleSet)
    digest = entries.whole(message.schedules).digest
    await socket.send(codec.encode([ScheduleAck(message.version, digest)]))


async def _next(socket: ClientConnection, wanted: type[FromServer]) -> str:
    """The next frame with a message of this type."""
    async with asyncio.timeout(30):
        async for frame in socket:
            if any(isinstance(message, wanted) for message, _ in codec.from_server.read(frame)):
                return str(frame)
    raise AssertionError("the connection ended")


ROWS = (Row("rollout", rollout), Row("diff", diff))
