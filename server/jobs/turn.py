"""Whose turn it is in a lane: plain data in and out.

A lane is the queue of the jobs that use one repository, or one host's own part of it. The first in order goes first and
nobody overtakes: at most `limit` jobs have a slot at once, and a job for which restic locks the repository alone waits
until all slots are free, and holds off those behind it.

Some jobs have to pass gates as well, which are limits across lanes, such as that of a host. A job whose gate is full
is held back at the gate and holds off nobody in its lane. One that is to be alone in its lane claims its gates while
it is the first there: a host that is busy with other repositories would otherwise never be free at the same time.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MANY = 1_000_000
"""More jobs than wait at a gate."""


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
    """A job that is ready to go. `exclusive`: it must be alone in its lane.

    `gates`: those that it has to pass, each with whom it counts for there: itself, or its host.
    """

    id: str
    exclusive: bool = False
    gates: tuple[tuple[str, str], ...] = ()


class GateState(NamedTuple):
    """Who has passed a gate. `limit`: how many may have at once, None for any number. `waits`: whether others are held
    back there, whom nobody overtakes. `is_shut`: nobody passes, not even who has passed before."""

    passed: frozenset[str] = frozenset()
    limit: int | None = 1
    waits: bool = False
    is_shut: bool = False


class Gates:
    """The gates of a decision, which fill while it is made.

    `held`: jobs that are held back, by id, each with the gate. `claims`: the ids of jobs that claim their gates.
    """

    def __init__(self, states: Mapping[str, GateState] | None = None) -> None:
        states = states or {}
        self._passed = {gate: set(state.passed) for gate, state in states.items()}
        self._states = states
        self.held: dict[str, str] = {}
        self.claims: list[str] = []

    def room(self, gate: str) -> int:
        """How many more may pass a gate, up to `MANY`."""
        state = self._states[gate]
        if state.is_shut:
            return 0
        return MANY if state.limit is None else max(state.limit - len(self._passed[gate]), 0)

    def hold_back(self, job: Waiting) -> bool:
        """Whether a job may not pass one of its gates now; then it is held back there."""
        for gate, who in job.gates:
            state, is_new = self._states[gate], who not in self._passed[gate]
            if state.is_shut or (is_new and (state.waits or not self.room(gate))):
                self.held[job.id] = gate
                return True
        return False

    def let_pass(self, job: Waiting) -> None:
        """A job passes its gates."""
        for gate, who in job.gates:
            self._passed[gate].add(who)

    def claim(self, job: Waiting) -> None:
        """A job claims its gates, if it has any."""
        if job.gates:
            self.let_pass(job)
            self.claims.append(job.id)


def turn(lane: LaneState, waiting: Sequence[Waiting], gates: Gates | None = None) -> list[str]:
    """The ids of the jobs that get a slot now. `waiting`: the first ones in the lane's order, any number of them.
    `gates`: all that they have.

    A limit below 1 counts as 1, so that every lane moves.
    """
    gates = gates or Gates()
    going: list[str] = []
    for job in waiting:
        if lane.is_full and not job.exclusive:
            break
        if gates.hold_back(job):
            continue
        if job.exclusive and lane.active:
            gates.claim(job)
            break
        gates.let_pass(job)
        lane = lane._replace(active=lane.active + 1, exclusive=job.exclusive)
        going.append(job.id)
    return going
