"""`python -m tests.faults`: the simulation at length, then rounds of faults on real processes.

Both stop at the first seed that breaks a promise, and say how to play it again: `--seed S` plays the round of a seed.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from argparse import ArgumentParser
from collections import Counter
from contextlib import aclosing, closing

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.fleet import raise_file_limit
from tests.faults import rounds, simulated
from tests.faults.part import hurry
from tests.faults.plan import KINDS, ROUNDS_OF_A_FLEET
from tests.faults.rounds import Round

SLOW_S = 20.0
"""A round that takes longer says why."""


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, metavar="N", help="seeds of the simulation (10000)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of faults (300; with --seed 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="no simulation, and rounds from that of this seed on")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="fleets that are played beside each other (2)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a round that broke a promise")
    given = parser.parse_args()
    many = given.rounds if given.rounds is not None else 300 if given.seed is None else 1
    console = Console(width=None if sys.stdout.isatty() else 160)
    logging.disable()
    raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        if given.seed is None and not simulate(console, given.seeds):
            return 1
        hurry()  # only now: a story is told to be played again by its seed, and there nothing hurries
        playing = play(console, given.seed or 0, many, max(1, given.jobs), keep_going=given.keep_going)
        return 0 if asyncio.run(playing) else 1
    return 130


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def simulate(console: Console, seeds: int) -> bool:
    """Play the simulation; whether all promises hold."""
    jobs = 0
    with _progress(console) as progress, closing(simulated.play_all(seeds)) as stories:
        task = progress.add_task("simulated stories of fleets", total=seeds)
        for told in stories:
            jobs += told.jobs
            progress.advance(task)
            if told.broken:
                console.print(f"[red]{escape(told.broken)}")
                return False
    console.print(f"simulation: {seeds} seeds, {jobs:,} jobs: every promise holds")
    return True


async def play(console: Console, first: int, count: int, jobs: int, *, keep_going: bool) -> bool:
    """Play rounds; whether all promises hold."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    played: list[Round] = []
    try:
        with _progress(console) as progress:
            bar = progress.add_task("rounds of faults", total=count)
            async with aclosing(rounds.play(first, count, jobs)) as going:
                async for it in going:
                    played.append(it)
                    progress.advance(bar)
                    tell(console, it, in_full=count == 1 or bool(it.wrong))
                    if it.wrong and not keep_going:
                        break
    finally:
        if played:
            show(console, played)
    return not any(it.wrong for it in played)


def tell(console: Console, it: Round, *, in_full: bool) -> None:
    """Say how a round went, with its plan where that is of interest."""
    setup = it.plan.setup
    which = f"{'up' if setup.up else 'server'}, {'restic' if setup.real else 'stand-in'}"
    faults = f"{it.done.total()} of {len(it.plan.faults)} faults"
    console.print(
        f"seed {it.plan.seed} ({which}): {faults}, {it.jobs} jobs by now, {it.seconds:.1f} s", highlight=False
    )
    if it.seconds > SLOW_S:
        console.print(f"  slow: the last to come right was: {escape(it.waited)}", highlight=False)
    for fault in it.plan.faults if in_full else ():
        console.print(f"  {fault}", highlight=False)
    for wrong in it.wrong[:20]:
        console.print(f"  [red]{escape(wrong)}")
    if it.wrong:
        console.print(f"  {len(it.wrong)} in all. Play it again: python -m tests.faults --seed {it.plan.seed}")
        console.print(f"  What its processes left: {it.folder}")


def show(console: Console, played: list[Round]) -> None:
    """Print what was done and what was found, as a table."""
    table = Table("what", "count", title="rounds of faults")
    done = sum((it.done for it in played), Counter[str]())
    table.add_row("rounds", str(len(played)))
    for kind in KINDS:
        table.add_row(f"  {kind}", str(done[kind]))
    table.add_row("faults", str(done.total()))
    latest = {it.plan.seed // ROUNDS_OF_A_FLEET: it for it in played}
    ended = [it for it in played if it.last or it is latest[it.plan.seed // ROUNDS_OF_A_FLEET]]
    table.add_row("jobs", str(sum(it.jobs for it in ended)))
    table.add_row("backups that were begun, or made where restic is real", str(sum(it.runs for it in ended)))
    table.add_row("seconds of a round, on average", f"{sum(it.seconds for it in played) / len(played):.1f}")
    table.add_row(
        "[red]violations" if any(it.wrong for it in played) else "violations", str(sum(len(it.wrong) for it in played))
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
