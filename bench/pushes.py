"""Rows of a push: one change for a whole fleet, and the bytes of one push."""

import asyncio
import time
from collections.abc import Sequence

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench import floors
from bench.fleet import CONNECTING, Fleet, running, still
from bench.result import Limits, Result, Row, Size, median, runs
from bench.servers import Server, change, declare, schedule, serving
from wire import codec, entries
from wire.messages import PROTOCOL, FromServer, Hello, ScheduleAck, ScheduleDiff, ScheduleSet

IN_SYNC = "SELECT count(*) FROM hosts WHERE applied_version = ? AND applied_digest = desired_digest"


async def rollout(row: str, size: Size) -> Sequence[Result]:
    """Measure one changed schedule for 1,000 agents, to the last stored ack."""
    async with serving() as server:
        await declare_two(server)
        async with running(server.gateway, server.agent_token, size.agents) as fleet, still():
            await server.until_stored(IN_SYNC, size.agents, 1)
            took = [await rolled_out(server, fleet, 1 + run) for run in range(1, size.runs + 1)]
        frame = await diff_frame(server, "one-more")
    async with floors.serving("cast") as bare, floors.connected(bare.port, size.agents, CONNECTING) as clients, still():
        floor = [await cast(bare.port, clients, frame) for _ in range(size.runs)]
    return [rollout_result(row, size.agents, took, floor, 0.3)]


def rollout_result(row: str, agents: int, took: Sequence[float], floor: Sequence[float], most: float) -> Result:
    """The result for a fleet of `agents`."""
    what = f"one schedule changed for {agents:,} online agents: the last ack stored"
    return Result(
        row, what, "s", median(took), median(floor), "same bytes, one ack each", Limits(most, 2.0), runs(took)
    )


async def declare_two(server: Server) -> None:
    """Declare the fleet's two Schedules."""
    async with server.client() as client:
        await declare(client, [schedule("nightly", "0 2 * * *"), schedule("weekly", "@weekly")])


async def rolled_out(server: Server, fleet: Fleet, version: int) -> float:
    """Change a Schedule: seconds from the request to the last ack of `version` in the database."""
    async with server.client() as client:
        begin = time.perf_counter()
        await change(client, schedule("nightly", f"{version} 2 * * *"))
        await fleet.until_version(version)
        await server.until_stored(IN_SYNC, len(fleet.agents), version)
        return time.perf_counter() - begin


async def cast(port: int, clients: Sequence[ClientConnection], frame: str) -> float:
    """Seconds to send a frame to all bare connections and read one ack from each."""
    ack = codec.encode([ScheduleAck(2, "0" * 64)])

    async def answer(client: ClientConnection) -> None:
        await client.recv()
        await client.send(ack)

    caller = await floors.dial(port, "/all")
    answers = [asyncio.create_task(answer(client)) for client in clients]
    await asyncio.sleep(0)
    begin = time.perf_counter()
    await caller.send(frame)
    await caller.recv()
    took = time.perf_counter() - begin
    await asyncio.gather(*answers)
    caller.transport.abort()
    return took


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
