"""The result of a row: its figure, floor and limits, and whether these are met."""

import statistics
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

UNITS = {"s": (1, "s"), "ms": (1e3, "ms"), "KiB": (1 / 1024, "KiB"), "MiB": (1 / 2**20, "MiB")}
"""Factor and symbol with which a value in seconds or bytes is shown."""


class Limits(Struct, frozen=True):
    """Upper limits. `most`: of the figure, in seconds or bytes. `ratio`: of the figure divided by the floor."""

    most: float | None = None
    ratio: float | None = None


class Result(Struct, frozen=True):
    """One line of the table. `measured` and `floor` are in seconds or bytes, medians of some runs; less is better."""

    row: str
    what: str
    unit: str
    measured: float
    floor: float | None
    floor_is: str
    limits: Limits
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The figure divided by the floor."""
        return self.measured / self.floor if self.floor else None

    @property
    def met(self) -> bool:
        """Whether the figure is within both limits."""
        most, ratio = self.limits.most, self.limits.ratio
        return (most is None or self.measured <= most) and (ratio is None or (self.ratio or 0) <= ratio)

    def shown(self, value: float | None) -> str:
        """A value in the row's unit."""
        if value is None:
            return ""
        factor, sign = UNITS.get(self.unit, (1, self.unit))
        return f"{value * factor:,.3g} {sign}" if value * factor < 1000 else f"{value * factor:,.0f} {sign}"


class Size(NamedTuple):
    """How much a row measures. Only FULL gives valid figures; SMALLEST checks that each row works.

    `agents`: connected agents. `fleet`: agents of the large fleet. `schedules`: of one host. `loaded`: schedules loaded
    at once. `created`: Schedules created in a cluster. `compared`: Schedules that a restarted controller compares.
    `fires`: sent one by one. `ticks`: of the local cron. `seconds`: of load. `settled_s`: seconds to wait before memory
    is read. `runs`: number of runs; the median counts.
    """

    agents: int
    fleet: int
    schedules: int
    loaded: int
    created: int
    compared: int
    fires: int
    ticks: int
    seconds: float
    settled_s: float
    runs: int


FULL = Size(1_000, 10_000, 1_000, 100_000, 1_000, 5_000, 400, 100, 3.0, 2.0, 3)
SMALLEST = Size(2, 3, 3, 6, 3, 3, 3, 2, 0.1, 0.1, 1)


class Row(NamedTuple):
    """A row: its name on the command line, and the function that measures it. `needs_cluster`: needs an API server."""

    name: str
    measure: Callable[[str, Size], Coroutine[Any, Any, Sequence[Result]]]
    needs_cluster: bool = False


def median(values: Sequence[float]) -> float:
    """The median, which one disturbed run does not change."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` (0 to 100) of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def runs(values: Sequence[float]) -> str:
    """All runs, in milliseconds, for a row's note."""
    return "runs " + ", ".join(f"{value * 1e3:,.0f}" for value in values) + " ms"
