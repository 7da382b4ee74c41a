"""What a round does to a fleet, as plain data: the same seed always makes the same plan."""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

ROUND_S = 3.0
"""Seconds in which the faults of a round begin."""
LONGEST_S = 2.0
"""Seconds that a fault lasts at most."""
ROUNDS_OF_A_FLEET = 10
"""Rounds after which a fleet is taken down, its repositories are checked, and the next one is made."""
HOSTS = ("node-0", "node-1", "node-2")
LINKED = HOSTS[1:]
"""Hosts whose agent is never part of `up`, and so always speaks over a link that can fail."""
MOVING = ("moving-0", "moving-1", "moving-2")
"""Schedules that come, change and go while a fleet lives."""
STORM = 500
"""Agents of a reconnect storm."""


class Setup(NamedTuple):
    """A fleet. `up`: server and node-0 are one process, `lamplighter up`; `real`: restic is, else its stand-in."""

    up: bool
    real: bool

    @property
    def server(self) -> str:
        """The part that serves."""
        return "up" if self.up else "server"

    @property
    def agents(self) -> tuple[str, ...]:
        """The parts that are an agent and nothing else."""
        return LINKED if self.up else HOSTS

    @property
    def rate(self) -> float:
        """Seconds that a clock of it goes forward in a second: real restic is slow."""
        return 12.0 if self.real else 40.0


class Fault(NamedTuple):
    """One thing that goes wrong. `at`: seconds from the round's begin; `how`: what else there is to know."""

    at: float
    kind: str
    target: str
    lasts: float
    how: str = ""

    def __str__(self) -> str:
        return f"{self.at:5.2f} s, for {self.lasts:4.2f} s: {self.kind} {self.target} {self.how}".rstrip()


class Plan(NamedTuple):
    """All of a round."""

    seed: int
    setup: Setup
    faults: tuple[Fault, ...]


class _Kind(NamedTuple):
    weight: int
    targets: Callable[[Setup], tuple[str, ...]]
    how: Callable[[random.Random], str] = lambda rng: ""


def _parts(setup: Setup) -> tuple[str, ...]:
    return (setup.server, *setup.agents)


def _server(setup: Setup) -> tuple[str, ...]:
    return (setup.server,)


def _linked(_: Setup) -> tuple[str, ...]:
    return LINKED


def _edit(rng: random.Random) -> str:
    what, schedule = rng.choice(("put", "put", "delete", "relabel")), rng.choice(MOVING)
    cron, group = rng.choice(("* * * * *", "*/2 * * * *", "1-59/2 * * * *")), rng.choice("ab")
    return {"put": f"put {schedule} {group} {cron}", "delete": f"delete {schedule}"}.get(what, f"relabel {group}")


KINDS: Mapping[str, _Kind] = {
    "kill server": _Kind(3, _server),
    "kill agent": _Kind(5, lambda setup: setup.agents),
    "kill restic": _Kind(4, lambda _: HOSTS),
    "pause": _Kind(3, _parts),
    "cut": _Kind(4, _linked),
    "delay": _Kind(3, _linked, lambda rng: f"{rng.uniform(0.02, 0.4):.2f}"),
    "stall": _Kind(3, _linked),
    "half-open": _Kind(3, _linked, lambda rng: rng.choice(("agent", "server", "both"))),
    "frames twice to": _Kind(4, _linked, lambda rng: rng.choice(("agent", "server"))),
    "disk full": _Kind(4, _parts),
    "database busy": _Kind(3, _server),
    "older database": _Kind(2, _server),
    "clock": _Kind(3, _parts, lambda rng: f"{rng.choice((-1, 1)) * rng.uniform(0.2, 5):+.2f} h"),
    "clock ahead": _Kind(3, lambda setup: setup.agents, lambda rng: f"{rng.uniform(1, 12):+.2f} h"),
    "invented fires": _Kind(3, _server),
    "edit": _Kind(5, lambda _: HOSTS, _edit),
    "edit while offline": _Kind(5, _linked, _edit),
    "storm": _Kind(1, _server),
    "second agent": _Kind(3, lambda _: HOSTS),
}
"""Each kind of fault: how often it comes, whom it can hit, and what else there is to choose."""


def plan(seed: int) -> Plan:
    """What the round of a seed does."""
    fleet = random.Random(seed // ROUNDS_OF_A_FLEET)
    setup = Setup(up=fleet.random() < 0.4, real=fleet.random() < 0.25)
    rng = random.Random(f"round {seed}")
    faults = [_fault(rng, setup) for _ in range(rng.randint(4, 10))]
    return Plan(seed, setup, tuple(sorted(faults)))


def _fault(rng: random.Random, setup: Setup) -> Fault:
    [kind] = rng.choices(list(KINDS), [it.weight for it in KINDS.values()])
    at, lasts = rng.uniform(0, ROUND_S), rng.uniform(0.05, LONGEST_S)
    target, how = rng.choice(KINDS[kind].targets(setup)), KINDS[kind].how(rng)
    return Fault(round(at, 2), kind, target, round(lasts, 2), how)
