"""What a row measured, beside its floor and its limits, and whether they are met."""

import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from msgspec import Struct

UNITS = {"s": (1, "s"), "ms": (1e3, "ms"), "KiB": (1 / 1024, "KiB"), "MiB": (1 / 2**20, "MiB")}
"""What a value in seconds or bytes is multiplied by to be shown, and its sign."""


class Limits(Struct, frozen=True):
    """`most`: of what is measured, in seconds or bytes. `ratio`: how many times the floor it may be."""

    most: float | None = None
    ratio: float | None = None


class Result(Struct, frozen=True):
    """One line of the table; `measured` and `floor` in seconds or bytes, medians of some runs, less is better."""

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
        """How many times the floor was measured."""
        return self.measured / self.floor if self.floor else None

    @property
    def met(self) -> bool:
        """Whether it is within both limits."""
        most, ratio = self.limits.most, self.limits.ratio
        return (most is None or self.measured <= most) and (ratio is None or (self.ratio or 0) <= ratio)

    def shown(self, value: float | None) -> str:
        """A value in the row's unit."""
        if value is None:
            return ""
        factor, sign = UNITS.get(self.unit, (1, self.unit))
        return f"{value * factor:,.3g} {sign}" if value * factor < 1000 else f"{value * factor:,.0f} {sign}"


class Row(NamedTuple):
    """A row by the name that is typed, and what measures it."""

    name: str
    measure: Callable[[str], Awaitable[Sequence[Result]]]


def median(values: Sequence[float]) -> float:
    """The median, so that one disturbed run does not count."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def runs(values: Sequence[float]) -> str:
    """All runs, in milliseconds, for a row's note."""
    return "runs " + ", ".join(f"{value * 1e3:,.0f}" for value in values) + " ms"
