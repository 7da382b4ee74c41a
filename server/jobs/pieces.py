"""Work on many jobs, cut into pieces so that other tasks get the event loop in between."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from server.jobs.job import Job

PIECE = 200
"""Maximum jobs handled in one piece, which takes some milliseconds."""

T = TypeVar("T")


def pieces(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """Sequences of at most PIECE items each; the caller lets other tasks run between them."""
    for begin in range(0, len(many), PIECE):
        yield many[begin : begin + PIECE]


class _Update(NamedTuple):
    jobs: Iterator[Job]
    apply: Callable[[Job], None]


class Updates:
    """Updates that a change of a host or repository makes necessary for each of its jobs.

    `is_open`: whether a job has not ended; jobs that ended meanwhile are skipped.
    """

    def __init__(self, is_open: Callable[[Job], bool]) -> None:
        self._is_open = is_open
        self._updates: dict[tuple[str, str], _Update] = {}  # by what changed: kind and name

    def __bool__(self) -> bool:
        return bool(self._updates)

    def start(self, changed: tuple[str, str], jobs: Iterable[Job], apply: Callable[[Job], None], most: int) -> None:
        """Update at most `most` jobs now; `advance` updates the others.

        `changed`: kind and name of what changed. It replaces an unfinished update for the same thing.
        """
        self._updates[changed] = _Update(iter(list(jobs)), apply)
        self._apply(changed, most)

    def advance(self, most: int) -> None:
        """Update at most `most` jobs."""
        while self._updates and most > 0:
            most -= self._apply(next(iter(self._updates)), most)

    def _apply(self, changed: tuple[str, str], most: int) -> int:
        """Return the number of jobs that were looked at. An unfinished update goes to the end of the order."""
        update = self._updates.pop(changed)
        jobs = list(islice(update.jobs, most))
        for job in jobs:
            if self._is_open(job):
                update.apply(job)
        if len(jobs) == most:
            self._updates[changed] = update
        return len(jobs)
