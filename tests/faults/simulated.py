"""The simulation of tests/simulation at length: many seeds on all cores, up to the first that breaks a promise."""

import logging
import os
import signal
from collections.abc import Generator
from multiprocessing import Pool
from typing import NamedTuple

from tests.simulation.promises import BrokenPromiseError, check
from tests.simulation.story import drawn, play


class Told(NamedTuple):
    """What became of a seed. `broken`: which promises, and how to play it again; empty when all hold."""

    seed: int
    jobs: int
    broken: str


def tell(seed: int) -> Told:
    """Play the story of a seed and the fleet drawn from it, and check it."""
    story = play(seed, drawn(seed))
    try:
        check(story)
    except BrokenPromiseError as error:
        return Told(seed, len(story.db.jobs), str(error))
    return Told(seed, len(story.db.jobs), "")


def _leave_signals() -> None:
    """Leave Ctrl-C to the process that waits for the stories, which ends this one."""
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def play_all(first: int, count: int) -> Generator[Told]:
    """What became of so many seeds from the first on, as they end; closing this stops the rest."""
    with Pool(os.cpu_count(), _leave_signals) as pool:
        yield from pool.imap_unordered(tell, range(first, first + count))
