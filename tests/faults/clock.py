"""Wall clocks that a test moves and has run fast: each is a file, which says what it showed when, and at which rate.

The time between is that of CLOCK_MONOTONIC, which all processes of a machine share (clock_gettime(2)).
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path


class Clock:
    """A clock, for whoever knows its file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> datetime:
        """What it shows."""
        shown, at, rate = map(float, self._path.read_text().split())
        return datetime.fromtimestamp(shown + (time.monotonic() - at) * rate, UTC)

    def set(self, shown: datetime, rate: float) -> None:
        """Have it show this now, and so many seconds more each second."""
        beside = self._path.with_suffix(".new")
        beside.write_text(f"{shown.timestamp()!r} {time.monotonic()!r} {rate!r}")
        beside.rename(self._path)  # who reads it meanwhile reads all of the old or all of the new


class Clocks:
    """A fleet's clocks, each of them right or so much off."""

    def __init__(self, folder: Path, names: list[str], begin: datetime) -> None:
        self.clocks = {name: Clock(folder / f"{name}.clock") for name in names}
        self.off = dict.fromkeys(names, timedelta())
        self.right = Clock(folder / "right.clock")
        self._farthest = begin
        self._rate = 1.0
        self.run(begin, 1.0)

    def run(self, now: datetime, rate: float) -> None:
        """Have it be that time, at this rate, on all clocks that are right."""
        self._rate = rate
        self.right.set(now, rate)
        for name in self.clocks:
            self._show(name)

    def slow_down(self) -> None:
        """Have time go on as it does outside."""
        self.run(self.right(), 1.0)

    def move(self, name: str, off: timedelta) -> None:
        """Set a clock so much off the right time."""
        self._seen()
        self.off[name] = off
        self._show(name)
        self._seen()

    def farthest(self) -> datetime:
        """The latest time that a clock has shown."""
        self._seen()
        return self._farthest

    def _show(self, name: str) -> None:
        self.clocks[name].set(self.right() + self.off[name], self._rate)

    def _seen(self) -> None:
        self._farthest = max(self._farthest, self.right() + max([*self.off.values(), timedelta()]))
