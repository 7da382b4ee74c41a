"""Whose turn it is in lanes: plain data in and out.

A lane is the queue of the jobs that use one repository, or one host's own part of it. The first in order goes first and
nobody overtakes: at most `limit` jobs have a slot at once, and a job for which restic locks the repository alone waits
until all slots are free, and holds off those behind it.

Some jobs have to pass gates as well, which are limits across lanes, such as that of a host. A job whose gate is full
is held back at the gate and holds off nobody in its lane. One that is to be alone in its lane claims its gates while
it is the first there: a host that is busy with other repositories would otherwise never be free at the same time.

A copy needs a slot of two lanes: of its own, that of the repository that it writes to, and of the one that it reads
from. It gets both at once or none, so that no job ever waits for another one while it has a slot, and there is no
deadlock. It waits in its own lane first, where nobody overtakes it. Jobs of the other lane pass it until there is a
slot in its own: then it holds off those behind it in both, and claims its gates, so that it does not starve.
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

    def with_one_more(self, *, exclusive: bool) -> "LaneState":
        """The lane with another job that has a slot."""
        return self._replace(active=self.active + 1, exclusive=exclusive)


class Waiting(NamedTuple):
    """A job that is ready to go. `exclusive`: it must be alone in its lane.

    `gates`: those that it has to pass, each with whom it counts for there: itself, or its host.
    `from_lane`: of the repository that a copy reads from; empty for other jobs. `is_far`: others before it in its lanes
    are not looked at yet, so a copy does not go now.
    """

    id: str
    exclusive: bool = False
    gates: tuple[tuple[str, str], ...] = ()
    lane: str = ""
    from_lane: str = ""
    is_far: bool = False


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


def turns(lanes: Mapping[str, LaneState], waiting: Sequence[Waiting], gates: Gates | None = None) -> list[Waiting]:
    """The jobs that get slots now. `waiting`: the first ones of these lanes in the order of the queue, any number.
    `gates`: all that they have.

    A limit below 1 counts as 1, so that every lane moves.
    """
    gates, states, held_up = gates or Gates(), dict(lanes), set[str]()
    going: list[Waiting] = []
    for job in waiting:
        lane, source = states[job.lane], states[job.from_lane] if job.from_lane else None
        if job.lane in held_up or (lane.is_full and not job.exclusive):
            held_up.add(job.lane)
        elif gates.hold_back(job):
            continue
        elif job.exclusive and lane.active:
            gates.claim(job)
            held_up.add(job.lane)
        elif source is not None and (job.is_far or job.from_lane in held_up or source.is_full):
            gates.claim(job)
            held_up |= {job.lane, job.from_lane}
        else:
            gates.let_pass(job)
            states[job.lane] = lane.with_one_more(exclusive=job.exclusive)
            if source is not None:
                states[job.from_lane] = source.with_one_more(exclusive=False)
            going.append(job)
    return going
