"""Rows of fires: many at once, one on an idle server, and at half load."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from websockets.asyncio.client import ClientConnection

from bench import floors
from bench.fleet import CONNECTING, Agent, Fleet, running, still, until
from bench.result import Limits, Result, Row, Size, median, percentile, runs
from bench.servers import LEAPING, declare, schedule, serving
from wire import codec
from wire.messages import ScheduleFire

EACH = 10
"""Schedules of each agent in the herd, all due at once."""
FEW = 10
"""Divisor of the fleet's size for the rows of single fires."""
IDLE_S = 0.01
"""Seconds in which the server stores that the last job was accepted, and becomes idle."""


async def herd(row: str, size: Size) -> Sequence[Result]:
    """Measure 10,000 fires that are due at once on 1,000 agents, from the due time to the last command."""
    took = []
    all_fires = size.agents * EACH
    async with serving(LEAPING) as server:
        async with server.client() as client:
            await declare(client, [schedule(f"every-minute-{at}") for at in range(EACH)])
        async with running(server.gateway, server.agent_token, size.agents) as fleet, still():
            await fleet.until_version(1)
            server.leap()
            for run in range(1, size.runs + 1):
                due = fleet.due_in(1.0)
                await fleet.until_commands(run * all_fires)
                took.append(max(agent.asked_at for agent in fleet.agents) - due)
                await server.until_stored("SELECT count(*) FROM jobs WHERE status = 'running'", run * all_fires)
    floor = [await _echo_herd(size.agents, EACH) for _ in range(size.runs)]
    batched = [await _echo_herd(size.agents, 1) for _ in range(size.runs)]
    note = f"{runs(took)}; none lost; echo of one frame for each agent's tick: {median(batched) * 1e3:.0f} ms"
    what = f"{all_fires:,} fires due at once over {size.agents:,} agents, recorded and answered: the last answer"
    is_ = "echo, one row and frame each"
    return [Result(row, what, "s", median(took), median(floor), is_, Limits(1.5, 2.0), note)]


async def _echo_herd(agents: int, each: int) -> float:
    """Send as many rows through a bare echo, `each` frames on each connection: seconds to the last answer."""
    fires = [ScheduleFire("0" * 32, datetime.now(UTC)) for _ in range(EACH // each)]
    frame = codec.encode(fires)

    async def ask(client: ClientConnection) -> None:
        for _ in range(each):
            await client.send(frame)
        for _ in range(each):
            await client.recv()

    async with floors.serving("echo") as server, floors.connected(server.port, agents, CONNECTING) as clients, still():
        begin = time.perf_counter()
        await asyncio.gather(*map(ask, clients))
        return time.perf_counter() - begin


async def fire(row: str, size: Size) -> Sequence[Result]:
    """Measure one fire on an idle server, from the tick to the command; then fires at half load."""
    async with serving(LEAPING) as server:
        async with server.client() as client:
            await declare(client, [schedule("every-minute")])
        async with running(server.gateway, server.agent_token, max(1, size.agents // FEW)) as fleet, still():
            await fleet.until_version(1)
            server.leap()
            alone = []
            for _ in range(size.fires):
                await asyncio.sleep(IDLE_S)
                alone.append(await _fire(fleet.agents[0]))
            rate = await _rate(fleet, size.seconds)
            loaded = await _at_rate(fleet, rate / 2, size.seconds)
    echoed = await _echo_alone(size.fires)
    what = "one fire on an idle server, to the command: p50"
    half = f"one fire at half load ({rate / 2:,.0f} fires a second of {len(fleet.agents)} agents): p99"
    return [
        Result(row, what, "ms", median(alone), median(echoed), "echo of one row", Limits(None, 2.0)),
        Result(row, half, "ms", percentile(loaded, 99), None, "", Limits(0.010), f"p50 {median(loaded) * 1e3:.1f} ms"),
    ]


async def _fire(agent: Agent) -> float:
    """Make an agent's next due time come now: seconds to the command."""
    wanted = agent.commands + 1
    begin = time.perf_counter()
    agent.perform(agent.core.tick(agent.core.wake_at))
    await until(agent, lambda: agent.commands >= wanted)
    return agent.asked_at - begin


async def _rate(fleet: Fleet, seconds: float) -> float:
    """Measure fires per second when each agent fires again at once after each answer."""
    count = 0
    end = time.perf_counter() + seconds

    async def again(agent: Agent) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await _fire(agent)
            count += 1

    await asyncio.gather(*map(again, fleet.agents))
    return count / seconds


async def _at_rate(fleet: Fleet, rate: float, seconds: float) -> list[float]:
    """Fire at a steady rate, each agent in turn: seconds from each fire's planned time to its command."""
    loop = asyncio.get_running_loop()
    turns = [asyncio.Lock() for _ in fleet.agents]

    async def at(due: float, number: int) -> float:
        turn = number % len(turns)
        async with turns[turn]:
            await _fire(fleet.agents[turn])
            return loop.time() - due

    begin = loop.time()
    tasks = []
    for number in range(max(1, int(rate * seconds))):
        due = begin + number / rate
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(at(due, number)))
    return list(await asyncio.gather(*tasks))


async def _echo_alone(fires: int) -> list[float]:
    frame = codec.encode([ScheduleFire("0" * 32, datetime.now(UTC))])
    took = []
    async with floors.serving("echo") as server, floors.connected(server.port, 1, 1) as (client,), still():
        for _ in range(fires):
            await asyncio.sleep(IDLE_S)
            begin = time.perf_counter()
            await client.send(frame)
            await client.recv()
            took.append(time.perf_counter() - begin)
    return took


ROWS = (Row("herd", herd), Row("fire", fire))
