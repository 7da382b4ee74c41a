"""The result of a row: its figure, floor and limits, and whether these are met."""

import math
import statistics
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

UNITS = {
    "s": (1, "s"),
    "ms": (1e3, "ms"),
    "us": (1e6, "µs"),
    "KiB": (1 / 1024, "KiB"),
    "MiB": (1 / 2**20, "MiB"),
    "slope": (1, ""),
}
"""Factor and symbol with which a value in seconds or bytes is shown. A slope is the exponent by which a cost grows."""


class Limits(Struct, frozen=True):
    """Upper limits. `most`: of the figure, in seconds or bytes. `ratio`: of the figure divided by the floor."""

    most: float | None = None
    ratio: float | None = None


class Result(Struct, frozen=True):
    """One line of the table. `measured` and `floor` are in seconds or bytes, medians of some runs; less is better.

    `figures`: what else was measured, by name, in seconds or bytes; docs/scale.md reckons with it. `cpu_s.X` is the CPU
    time of X in all runs, and `cpu_s.X.each` that for each fire, host, or what else the row counts.
    """

    row: str
    what: str
    unit: str
    measured: float
    floor: float | None
    floor_is: str
    limits: Limits
    note: str = ""
    figures: Mapping[str, float] = {}

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
        shown = f"{value * factor:,.3g} {sign}" if value * factor < 1000 else f"{value * factor:,.0f} {sign}"
        return shown.strip()

    @property
    def notes(self) -> str:
        """The note, with who spent how much CPU time."""
        spent = [
            f"{name.removeprefix('cpu_s.').removesuffix('.each')} {value * 1e6:,.0f} µs"
            for name, value in self.figures.items()
            if name.endswith(".each")
        ]
        return "; ".join([*[self.note] * bool(self.note), *["CPU of each: " + ", ".join(spent)] * bool(spent)])


class Size(NamedTuple):
    """How much a row measures. Only FULL gives valid figures; SMALLEST checks that each row works.

    `agents`: connected agents. `fleet`: agents of the large fleet. `schedules`: of one host. `loaded`: schedules loaded
    at once. `created`: Schedules created in a cluster. `compared`: Schedules that a restarted controller compares.
    `fires`: sent one by one. `ticks`: of the local cron. `seconds`: of load. `settled_s`: seconds to wait before memory
    is read. `runs`: number of runs; the median counts. `jobs`: rows of jobs in a large store. `sessions`: hosts in one
    process. `most`: how much there is of what grows.
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
    jobs: int
    sessions: int
    most: int


FULL = Size(1_000, 10_000, 1_000, 100_000, 1_000, 5_000, 400, 100, 3.0, 2.0, 3, 1_000_000, 100_000, 10_000)
SMALLEST = Size(2, 3, 3, 6, 3, 3, 3, 2, 0.1, 0.1, 1, 30, 4, 20)


class Row(NamedTuple):
    """A row: its name on the command line, and the function that measures it.

    `needs_cluster`: needs an API server. `needs_postgresql`: needs a PostgreSQL. `asked`: measured only when named.
    """

    name: str
    measure: Callable[[str, Size], Coroutine[Any, Any, Sequence[Result]]]
    needs_cluster: bool = False
    needs_postgresql: bool = False
    asked: bool = False


def cpu_figures(spent: Mapping[str, float], count: int) -> dict[str, float]:
    """CPU-seconds by the name of who spent them, for `Result.figures`: in all, and for each of `count`."""
    return {f"cpu_s.{name}": value for name, value in spent.items()} | {
        f"cpu_s.{name}.each": value / count for name, value in spent.items()
    }


def slope(costs: Mapping[int, float]) -> float:
    """The exponent of growth between the two largest sizes: 0 for a constant cost, 1 for one that grows in proportion.

    The smaller sizes, whose costs are mostly constant, would make it look better than it is. 0 for a single size.
    """
    if len(costs) < 2:
        return 0.0
    (small, low), (large, high) = sorted(costs.items())[-2:]
    return math.log(high / low) / math.log(large / small)


def median(values: Sequence[float]) -> float:
    """The median, which one disturbed run does not change."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` (0 to 100) of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def runs(values: Sequence[float]) -> str:
    """All runs, in milliseconds, for a row's note."""
    return "runs " + ", ".join(f"{value * 1e3:,.0f}" for value in values) + " ms"
