"""CPU time of other processes, so that a row can say who spent it."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path


def of_process(pid: int) -> float:
    """CPU-seconds of all threads of a process, ended ones included (clock_getcpuclockid(3)). Linux only."""
    return time.clock_gettime(~pid << 3 | 2)


def of_family(pid: int) -> float:
    """CPU-seconds of a process, of its children, and of those that it has waited for (proc(5), cutime and cstime)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = of_process(pid)
    for child in children:
        with suppress(OSError):  # it has just ended
            total += of_process(int(child))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + (int(fields[13]) + int(fields[14])) / 100  # USER_HZ is 100 on all of Linux's architectures


class Spent:
    """CPU-seconds since this was made, by the name of who spent them."""

    def __init__(self, clocks: Mapping[str, Callable[[], float]]) -> None:
        self._clocks = clocks
        self._begin = {name: clock() for name, clock in clocks.items()}

    def __call__(self) -> dict[str, float]:
        return {name: clock() - self._begin[name] for name, clock in self._clocks.items()}
