"""Rounds of faults: each brings a plan about on a fleet, waits until that is quiet, and checks what must hold."""

import asyncio
import shutil
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from tests.faults import finding
from tests.faults.checks import MINUTE, violations
from tests.faults.fleet import Fleet, calm, running
from tests.faults.inject import inject
from tests.faults.plan import LONGEST_S, ROUND_S, ROUNDS_OF_A_FLEET, Plan, plan

QUIET_S = 240.0
"""Seconds within which a fleet must be quiet after the last fault is over: far more than it takes but on a machine that
others keep busy. What never comes right does not in this time either."""


class Round(NamedTuple):
    """How a round went. `jobs` and `runs`: how many the fleet has had by then; `last`: whether its time is over.

    `waited`: what was last to come right; `folder`: where the files of a fleet are that broke a promise.
    """

    plan: Plan
    done: Counter[str]
    jobs: int
    runs: int
    seconds: float
    waited: str
    wrong: list[str]
    last: bool
    folder: Path | None = None


async def play(first: int, count: int, jobs: int = 1) -> AsyncGenerator[Round]:
    """The rounds of so many seeds, from the first on, with up to `jobs` fleets beside each other, as the rounds end.

    Seeds of one fleet come in order. After a round that broke a promise the next has a new fleet.
    """
    waiting = deque(fleets(first, count))
    played: asyncio.Queue[Round | asyncio.Task[None]] = asyncio.Queue()

    async def work() -> None:
        while waiting:
            async with aclosing(_one_after_another(*waiting.popleft())) as rounds:
                async for it in rounds:
                    played.put_nowait(it)

    workers = [asyncio.create_task(work()) for _ in range(min(jobs, len(waiting)))]
    for worker in workers:
        worker.add_done_callback(played.put_nowait)
    try:
        ended = 0
        while ended < len(workers):
            it = await played.get()
            if isinstance(it, Round):
                yield it
            else:
                ended += 1
                it.result()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def fleets(first: int, count: int) -> list[tuple[int, int]]:
    """The seeds of each fleet: the first, and the one after the last."""
    end = first + count
    begins = [first, *range(first - first % ROUNDS_OF_A_FLEET + ROUNDS_OF_A_FLEET, end, ROUNDS_OF_A_FLEET)]
    return list(zip(begins, [*begins[1:], end], strict=True)) if count else []


async def _one_after_another(seed: int, until: int) -> AsyncGenerator[Round]:
    while seed < until:
        async with aclosing(_with_one_fleet(seed, until)) as rounds:
            async for it in rounds:
                yield it
                seed = it.plan.seed + 1


async def _with_one_fleet(seed: int, until: int) -> AsyncGenerator[Round]:
    async with running(plan(seed).setup) as fleet:
        waits, _ = await _quiet(fleet)
        if waits:
            raise TimeoutError(f"a fleet did not begin: {waits}")
        fleet.begin = fleet.clocks.right()
        for at in range(seed, until):
            it = await _round(fleet, plan(at), last=at + 1 == until)
            yield it
            if it.wrong:
                return


async def _round(fleet: Fleet, planned: Plan, *, last: bool) -> Round:
    began = time.monotonic()
    fleet.clocks.run(fleet.clocks.right(), planned.setup.rate)
    slow_down = asyncio.get_running_loop().call_later(ROUND_S + LONGEST_S, fleet.clocks.slow_down)
    done: Counter[str] = Counter()
    failed: list[str] = []
    try:
        await inject(fleet, planned, done)
    except* (TimeoutError, AssertionError) as errors:  # a server that does not answer for READY_S, or refuses
        failed = [f"{type(error).__name__}: {error}" for error in errors.exceptions]
    slow_down.cancel()
    waits, waited = await _quiet(fleet)
    until = fleet.until
    found = await asyncio.to_thread(finding.evidence, fleet, until, failed + waits, last=last)
    wrong = violations(found)
    kept = _keep(fleet, planned.seed) if wrong else None
    runs = len(found.runs or ())
    return Round(
        planned, done, len(found.jobs), runs, time.monotonic() - began, waited, wrong, last or bool(wrong), kept
    )


async def _quiet(fleet: Fleet) -> tuple[list[str], str]:
    """Have it be later than any clock has shown, just after a minute began, and time go on as it does; then wait until
    nothing is left to come. What is left when that takes too long, and what was last to come."""
    ahead = fleet.clocks.farthest() + MINUTE
    fleet.until = ahead.replace(second=0, microsecond=0) + MINUTE
    fleet.clocks.run(fleet.until + timedelta(seconds=1), 1.0)
    waited, end = "", time.monotonic() + QUIET_S
    while (waits := await finding.unsettled(fleet, fleet.until)) and time.monotonic() < end:
        waited = waits[-1]
        await asyncio.sleep(0.1)
    await calm(fleet)
    return waits, waited


def _keep(fleet: Fleet, seed: int) -> Path:
    """Copy the files of a fleet to where they outlive it."""
    kept = fleet.folder.with_name(f"lamplighter-faults-seed-{seed}")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(fleet.folder, kept, ignore=shutil.ignore_patterns("filler"))
    return kept
