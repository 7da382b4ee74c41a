"""The row of the local cron's lateness when many entries are due together."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Raw

from agent.core.state import AgentState
from bench import floors
from bench.fleet import Agent, Clock, still, until
from bench.result import Limits, Result, Row, Size, median, percentile
from wire import entries
from wire.messages import Entry, FromServer, ScheduleRefused, ScheduleSet

AHEAD_S = 0.03
"""Seconds from one tick to the next."""


class Timed(Agent):
    """An agent whose server answers each frame with the time at which the server read it."""

    read_at = datetime.min.replace(tzinfo=UTC)

    def received(self, messages: Sequence[FromServer]) -> None:
        for message in messages:
            if isinstance(message, ScheduleRefused):
                self.read_at = message.scheduled_at
        super().received(messages)


async def lateness(row: str, size: Size) -> Sequence[Result]:
    """Measure 1,000 entries that are due together, from the due time until another process has read all fires."""
    late, timer = [], []
    async with floors.serving("clock") as server:
        agent = Timed("host", f"ws://127.0.0.1:{server.port}/", "", _memory(size.schedules), Clock())
        running = asyncio.create_task(agent.run())
        await until(agent, lambda: agent.read_at.year > 1)
        async with still():
            for _ in range(size.ticks):
                late.append(await _tick(agent))
                timer.append(await _empty_timer())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert min(late) >= 0, f"early by {-min(late)} s"
    what = (
        f"{size.schedules:,} entries due together: lateness until another process read the last fire, p99; never early"
    )
    note = f"p50 {median(late) * 1e3:.1f} ms, the timer's {median(timer) * 1e3:.1f} ms"
    limits = Limits(0.005, 1.5)
    return [
        Result(row, what, "ms", percentile(late, 99), percentile(timer, 99), "an empty asyncio timer", limits, note)
    ]


def _memory(count: int) -> AgentState:
    memory = AgentState()
    began = datetime.now(UTC)
    made = (Entry(f"{at:032x}", f"bench/{at}", "* * * * *", began, "1") for at in range(count))
    push = ScheduleSet(1, [Raw(entries.encode_entry(entry)) for entry in made])
    held = memory.with_push(push)
    memory.hold(push, held, memory.new_cursors(push, held))
    return memory


async def _tick(agent: Timed) -> float:
    """Make all entries due in AHEAD_S: seconds from their due time until their fires were read."""
    ahead = timedelta(seconds=AHEAD_S)
    due = datetime.now(UTC) + ahead
    agent.clock.shift = agent.core.wake_at - due
    agent.perform(())
    await until(agent, lambda: agent.read_at > due - ahead)
    return (agent.read_at - due) / timedelta(seconds=1)


async def _empty_timer() -> float:
    """How late an empty timer fires, in seconds."""
    loop = asyncio.get_running_loop()
    rung = loop.create_future()
    due = loop.time() + AHEAD_S
    loop.call_at(due, lambda: rung.set_result(loop.time()))
    return float(await rung) - due


ROWS = (Row("lateness", lateness),)
