"""The simulation of tests/simulation at length: many seeds on all cores, up to the first that breaks a promise."""

import logging
import os
import signal
from collections.abc import Generator
from multiprocessing import Pool
from typing import NamedTuple

from tests.simulation.promises import BrokenPromiseError, check
from tests.simulation.story import FLEETS, play

MONTHS = 50
"""Seeds of the large fleet. They take ten times as long as the others."""
DRAWN = 500
"""Seeds of one server's fleets of any size. The rest are of small fleets of one to four servers."""
SPECIAL = ("held", "pausing", "windowed", "copied")
"""Small fleets with much of one thing."""
SPECIALS = 100
"""Seeds of each of these."""


class Told(NamedTuple):
    """What became of a story. `broken`: which promises, and how to play it again; empty when all hold."""

    jobs: int
    broken: str


def tell(named: tuple[str, int]) -> Told:
    """Play the story of a fleet, by its name, and a seed, and check it."""
    fleet, seed = named
    story = play(seed, FLEETS[fleet](seed))
    try:
        check(story)
    except BrokenPromiseError as error:
        return Told(len(story.db.jobs), str(error))
    return Told(len(story.db.jobs), "")


def _leave_signals() -> None:
    """Leave Ctrl-C to the process that waits for the stories, which ends this one."""
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def play_all(count: int) -> Generator[Told]:
    """What became of so many stories, as they end.

    Up to MONTHS, DRAWN and SPECIALS of them, and up to a tenth and a hundredth, are of these fleets. Closing this stops
    the rest.
    """
    months, drawn = min(MONTHS, count // 10), min(DRAWN, count // 10)
    many = {"month": months, "drawn": drawn, **dict.fromkeys(SPECIAL, min(SPECIALS, count // 100))}
    many["shared"] = count - sum(many.values())
    stories = [(fleet, seed) for fleet, seeds in many.items() for seed in range(seeds)]
    with Pool(os.cpu_count(), _leave_signals) as pool:
        yield from pool.imap_unordered(tell, stories)
