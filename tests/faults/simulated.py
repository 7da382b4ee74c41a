"""The simulation of tests/simulation at length: many seeds on all cores, up to the first that breaks a promise."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from tests.simulation.promises import BrokenPromiseError, check
from tests.simulation.story import play


class Told(NamedTuple):
    """What became of a seed. `broken`: which promises, and how to play it again; empty when all hold."""

    seed: int
    jobs: int
    broken: str


def tell(seed: int) -> Told:
    """Play the story of a seed, and check it."""
    logging.disable()
    story = play(seed)
    try:
        check(story)
    except BrokenPromiseError as error:
        return Told(seed, len(story.db.jobs), str(error))
    return Told(seed, len(story.db.jobs), "")


def play_all(first: int, count: int) -> Iterator[Told]:
    """What became of so many seeds from the first on, as they end; closing this stops the rest."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        left = iter(range(first, first + count))
        going = {pool.submit(tell, seed) for seed, _ in zip(left, range(2 * workers), strict=False)}
        while going:
            done = next(as_completed(going))
            going.remove(done)
            yield done.result()
            going |= {pool.submit(tell, seed) for seed, _ in zip(left, range(1), strict=False)}
