"""An agent that fires due times that it invented. It is honest in all else, so that what it costs is by its fires."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from agent.core.state import AgentState
from bench.fleet import Agent, Clock
from wire.messages import ScheduleFire

NAME = "hostile"
FLOOD = 5_000
"""Fires of one frame."""
LEAP_DAYS = [datetime(year, 2, 29, tzinfo=UTC) for year in (2024, 2028)]
"""Due times of the one schedule that it has: before it was made known, and far ahead."""


class Hostile(Agent):
    """The agent, on a host of its own."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(NAME, url, token, AgentState(), Clock())

    def fire(self, fires: Sequence[ScheduleFire]) -> None:
        """Send them as one frame."""
        self._link.send(fires)


def invented(schedule_ids: Sequence[str], now: datetime, rng: random.Random) -> list[ScheduleFire]:
    """A frame of fires that are not this host's to fire: of its own schedule and of others', past and to come."""
    minute = now.replace(second=0, microsecond=0)
    near = [minute + timedelta(minutes=rng.randint(-300, 300)) for _ in range(FLOOD // 2)]
    far = [minute + timedelta(seconds=rng.randint(-(10**9), 10**9)) for _ in range(FLOOD // 2 - len(LEAP_DAYS))]
    return [ScheduleFire(rng.choice(schedule_ids), at, rng.randint(0, 1000)) for at in [*near, *far, *LEAP_DAYS]]
