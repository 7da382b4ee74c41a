"""Whose turn it is in a lane: plain data in and out.

A lane is the queue of the jobs that use one repository, or one host's own part of it. The first in order goes first and
nobody overtakes: at most `limit` jobs have a slot at once, and a job for which restic locks the repository alone waits
until all slots are free, and holds off those behind it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class LaneState(NamedTuple):
    """Who has a slot in a lane. `active`: how many; where the lane has no limit, whether any: 0 or 1.

    `exclusive`: whether one of them is to be alone. `limit`: slots, None for any number.
    """

    active: int = 0
    exclusive: bool = False
    limit: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether no job can get a slot, whatever its kind."""
        return self.exclusive or (self.limit is not None and 0 < self.active >= self.limit)


class Waiting(NamedTuple):
    """A job that is ready to go. `exclusive`: it must be alone in its lane."""

    id: str
    exclusive: bool = False


def turn(lane: LaneState, waiting: Sequence[Waiting]) -> list[str]:
    """The ids of the jobs that get a slot now. `waiting`: the first ones in the lane's order, any number of them.

    A limit below 1 counts as 1, so that every lane moves.
    """
    going: list[str] = []
    for job in waiting:
        if lane.is_full or (job.exclusive and lane.active):
            break
        lane = lane._replace(active=lane.active + 1, exclusive=job.exclusive)
        going.append(job.id)
    return going
