"""Rows of growth: the exponents by which the server's CPU time grows with hosts, schedules and open jobs.

An exponent is that between the two largest sizes. CPU time is counted, which a busy machine changes less than time.
"""

from collections.abc import Awaitable, Mapping, Sequence

from bench.fires import STORED
from bench.load import Load, loading
from bench.pushes import IN_SYNC
from bench.result import Limits, Result, Row, Size, slope
from bench.servers import LEAPING, Server, change, declare, schedule, serving

LINEAR, CONSTANT = 1.15, 0.25
"""Limits of exponents that should be 1 and 0: a measured one is never exact."""
HOSTS = 20
"""Hosts whose schedules grow."""
QUEUED = 20
"""Hosts whose open jobs grow. Each may have 1,000 of one schedule."""
SLOTS = 10
"""Jobs of the one lane that may run at a time."""
MORE = 10
"""Due times whose fires are measured while many jobs are open."""
ENDED = "SELECT count(*) FROM jobs WHERE status = 'succeeded'"

Costs = dict[str, dict[int, float]]
"""CPU-seconds of the server by what it did, and by size."""


def sizes(most: int, least: int = 1) -> list[int]:
    """The powers of ten from `least` on that are below `most`, and `most`."""
    return [*(it for it in (10**at for at in range(10)) if least <= it < most), most]


async def by_hosts(row: str, size: Size) -> Sequence[Result]:
    """Grow the fleet: each host says its first hello, gets a changed schedule, and fires."""
    costs: Costs = {}
    for hosts in sizes(size.fleet, 100):
        await _grown(costs, hosts, hosts, 1)
    return [_result(row, f"{what}: of all hosts", "hosts", its, LINEAR) for what, its in costs.items()]


async def by_schedules(row: str, size: Size) -> Sequence[Result]:
    """Grow the sets of some hosts: each says its first hello, gets one changed schedule, and fires all at once."""
    costs: Costs = {}
    for schedules in sizes(size.schedules):
        await _grown(costs, schedules, HOSTS, schedules)
    limits = {"a change of one schedule": CONSTANT}
    named = "schedules of each host"
    return [
        _result(row, f"{what}: of {HOSTS} hosts", named, its, limits.get(what, LINEAR)) for what, its in costs.items()
    ]


async def by_open_jobs(row: str, size: Size) -> Sequence[Result]:
    """Grow the jobs that are open: what a further fire costs, and what it costs to run all through one short lane."""
    costs: Costs = {}
    for jobs in [QUEUED, *sizes(size.most, 100)] if size.most > QUEUED else [QUEUED]:
        async with serving(LEAPING) as server, loading() as load:
            await _declared(server, 1)
            await _connected(server, load, QUEUED)
            await server.leap()
            await _fired(server, load, jobs // QUEUED, STORED, jobs)
            more = _fired(server, load, MORE, STORED, jobs + MORE * QUEUED)
            await _measured(costs, f"{MORE * QUEUED} further fires", jobs, server, more)
        async with serving(LEAPING) as server, loading() as load:
            await _declared(server, 1, SLOTS)
            await _connected(server, load, QUEUED, ends=True)
            await server.leap()
            run = _fired(server, load, jobs // QUEUED, ENDED, jobs)
            await _measured(costs, f"all run, {SLOTS} at a time", jobs, server, run)
    (further, few), (all_run, many) = costs.items()
    return [
        _result(row, further, "jobs that are open", few, CONSTANT),
        _result(row, all_run, "jobs of one repository", many, LINEAR),
    ]


async def _grown(costs: Costs, grows: int, hosts: int, schedules: int) -> None:
    async with serving(LEAPING) as server, loading() as load:
        await _declared(server, schedules)
        await _measured(costs, "first hellos", grows, server, _connected(server, load, hosts))
        await _measured(costs, "a change of one schedule", grows, server, _changed(server, load, hosts))
        await server.leap()
        fired = _fired(server, load, 1, STORED, hosts * schedules)
        await _measured(costs, "a fire of each schedule", grows, server, fired)


async def _measured(costs: Costs, what: str, grows: int, server: Server, work: Awaitable[None]) -> None:
    """Add the CPU-seconds of a server during some work to the costs."""
    begin = server.cpu()
    await work
    costs.setdefault(what, {})[grows] = server.cpu() - begin


async def _connected(server: Server, load: Load, hosts: int, *, ends: bool = False) -> None:
    await load.hosts(hosts, ends=ends)
    await load.open(server.port, "/agent", server.agent_token)
    await server.until_stored(IN_SYNC, hosts, 1)


async def _declared(server: Server, schedules: int, slots: int | None = None) -> None:
    """Declare schedules of one repository, whose jobs run so many at a time; without `slots`, each host has its own."""
    async with server.client() as client:
        await declare(client, [schedule(f"every-minute-{at}") for at in range(schedules)], slots)


async def _changed(server: Server, load: Load, hosts: int) -> None:
    async with server.client() as client:
        await change(client, schedule("every-minute-0", "*/1 * * * *"))
    await load.holding(2)
    await server.until_stored(IN_SYNC, hosts, 2)


async def _fired(server: Server, load: Load, ticks: int, question: str, count: int) -> None:
    await load.burst(ticks)
    await server.until_stored(question, count)


def _result(row: str, what: str, grows: str, costs: Mapping[int, float], most: float) -> Result:
    shown = ", ".join(f"{size:,}: {cost * 1e3:,.0f} ms" for size, cost in costs.items())
    figures = {f"cpu_s.server.{size}": cost for size, cost in costs.items()}
    named = f"{what}: the exponent by which CPU time grows with the {grows}"
    return Result(row, named, "slope", slope(costs), None, "", Limits(most), shown, figures)


ROWS = (
    Row("growth-hosts", by_hosts),
    Row("growth-schedules", by_schedules),
    Row("growth-jobs", by_open_jobs),
)
