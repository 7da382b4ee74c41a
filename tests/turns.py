"""Whose turn it is in one lane, in which no copies wait."""

from collections.abc import Sequence

from server.jobs.turn import Gates, LaneState, Waiting, turns


def turn(lane: LaneState, waiting: Sequence[Waiting], gates: Gates | None = None) -> list[str]:
    """The ids of the jobs that get a slot now."""
    return [it.id for it in turns({"": lane}, waiting, gates)]
