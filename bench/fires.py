"""Rows of fires: many at once, one on an idle server, and a steady rate of half of what the server can take."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from bench import floors
from bench.cpu import Spent
from bench.load import Load, loading
from bench.result import Limits, Result, Row, Size, cpu_figures, median, percentile, runs
from bench.servers import LEAPING, Process, Server, declare, schedule, serving
from wire import codec
from wire.messages import ScheduleFire

EACH = 10
"""Schedules of each host in the herd, all due at once."""
FEW = 10
"""Divisor of the fleet's size for the rows of single fires."""
IDLE_S = 0.01
"""Seconds in which the server stores that the last job was accepted, and becomes idle."""
FIRST_RATE, FASTER = 200.0, 1.3
"""Fires a second of the first trial of a steady rate, and the factor to the next."""
BEHIND_S = 0.1
"""Seconds after the last fire within which the answers must be there if the server keeps up."""
STORED = "SELECT count(*) FROM jobs WHERE status = 'running'"


async def herd(row: str, size: Size) -> Sequence[Result]:
    """Measure 10,000 fires that are due at once on 1,000 hosts, from the due time to the last command."""
    all_fires, took = size.agents * EACH, []
    async with serving(LEAPING) as server, loading() as load:
        await minutely(server, load, size.agents, EACH)
        spent = Spent({"server": server.cpu, "load": load.cpu})
        for run in range(1, size.runs + 1):
            took.append(max(await load.burst()))
            await server.until_stored(STORED, run * all_fires)
        figures = cpu_figures(spent(), size.runs * all_fires)
    floor, echo = await _echo_herd(size, EACH)
    batched, _ = await _echo_herd(size, 1)
    note = f"{runs(took)}; none lost; echo of one frame for each host's tick: {median(batched) * 1e3:.0f} ms"
    what = f"{all_fires:,} fires due at once over {size.agents:,} hosts, recorded and answered: the last answer"
    is_ = "echo, one row and frame each"
    return [Result(row, what, "s", median(took), median(floor), is_, Limits(1.5, 2.0), note, figures | echo)]


async def minutely(
    server: Server, load: Load, hosts: int, schedules: int, *, ends: bool = False, ports: Sequence[int] = ()
) -> None:
    """Declare schedules that are due each minute, connect hosts that hold them, and let many due times have come.

    `ends`: whether the hosts end each job at once. `ports`: of all servers, when there are several.
    """
    async with server.client() as client:
        await declare(client, [schedule(f"every-minute-{at}") for at in range(schedules)])
    await load.hosts(hosts, ends=ends)
    await load.open(ports or server.port, "/agent", server.agent_token)
    await load.holding(1)
    await server.leap()


async def _echo_herd(size: Size, each: int) -> tuple[list[float], dict[str, float]]:
    """Send as many rows through a bare echo, `each` frames on each connection: seconds to the last answer."""
    frame = codec.encode([ScheduleFire("0" * 32, datetime.now(UTC)) for _ in range(EACH // each)])
    async with floors.serving("echo") as server, loading() as load:
        await load.bare(size.agents, frame, each)
        await load.open(server.port)
        spent = Spent({"echo": server.cpu})
        took = [max(await load.burst()) for _ in range(size.runs)]
        return took, cpu_figures(spent(), size.runs * size.agents * EACH)


async def fire(row: str, size: Size) -> Sequence[Result]:
    """Measure one fire on an idle server, from the tick to the command; then fires at half load; the echo alike."""
    hosts = max(2, size.agents // FEW)
    async with AsyncExitStack() as stack:
        server, load = await stack.enter_async_context(serving(LEAPING)), await stack.enter_async_context(loading())
        await minutely(server, load, hosts, 1)
        alone = await load.alone(size.fires, IDLE_S)
        reached = await reached_rate(load, size.seconds / 4)
        loaded, figures = await _at_rate(server, "server", load, reached / 2, size.seconds)
    async with floors.serving("echo") as echo, loading() as load:
        await load.bare(hosts, codec.encode([ScheduleFire("0" * 32, datetime.now(UTC))]))
        await load.open(echo.port)
        echoed = await load.alone(size.fires, IDLE_S)
        floor, more = await _at_rate(echo, "echo", load, reached / 2, size.seconds)
    what = "one fire on an idle server, to the command: p50"
    half = (
        f"one fire at half load ({reached / 2:,.0f} a second of {hosts} hosts; {reached:,.0f} a second is reached): p99"
    )
    note = f"p50 {median(loaded) * 1e3:.1f} ms, echo {median(floor) * 1e3:.1f} ms"
    p99 = percentile(loaded, 99), percentile(floor, 99)
    figures |= more | {"reached_per_s": reached}
    return [
        Result(row, what, "ms", median(alone), median(echoed), "echo of one row", Limits(None, 2.0)),
        Result(row, half, "ms", *p99, "echo at the same rate", Limits(0.010), note, figures),
    ]


async def reached_rate(load: Load, seconds: float) -> float:
    """The highest steady rate, in fires a second, at which a server keeps up.

    The load is an open loop: fires come at their times, whether the earlier ones are answered or not.
    """
    rate = FIRST_RATE
    if not await _keeps_up(load, rate, seconds):
        while rate > 1 and not await _keeps_up(load, rate := rate / FASTER, seconds):
            pass
        return rate
    while await _keeps_up(load, rate * FASTER, seconds):
        rate *= FASTER
    return rate


async def _keeps_up(load: Load, rate: float, seconds: float) -> bool:
    """Whether half of the answers to the last tenth of the fires came within BEHIND_S."""
    took = await load.paced(rate, seconds)
    return median(took[-max(1, len(took) // 10) :]) < BEHIND_S


async def _at_rate(
    server: Process, name: str, load: Load, rate: float, seconds: float
) -> tuple[list[float], dict[str, float]]:
    """Fire at a steady rate: seconds until each answer, and the CPU time that it took."""
    spent = Spent({name: server.cpu, f"load_of_{name}": load.cpu})
    took = await load.paced(rate, seconds)
    return took, cpu_figures(spent(), len(took))


ROWS = (Row("herd", herd), Row("fire", fire))
