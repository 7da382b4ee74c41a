"""`python -m tests.faults.several`: servers over one PostgreSQL are killed, stopped and cut off from it, under agents.

The folder with the logs of all processes stays where a promise was broken.
"""

import asyncio
import logging
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.fleet import raise_file_limit
from tests.faults.several.trial import WATCH_S, Plan, Told, play


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.faults.several", description=__doc__)
    parser.add_argument("--servers", type=int, default=3, metavar="N", help="servers (3)")
    parser.add_argument("--agents", type=int, default=2000, metavar="N", help="agents (2000)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long faults go on (10)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what happens to whom (0)")
    parser.add_argument("--calm", action="store_true", help="no faults: changes and due times alone")
    turn = "balance connections in turn, not to the server with the fewest"
    parser.add_argument("--in-turn", action="store_true", help=turn)
    before = "begin with one server of an older release, of this Python interpreter's, and upgrade it"
    parser.add_argument("--before", type=Path, metavar="PYTHON", help=before)
    given = parser.parse_args()
    logging.disable()
    raise_file_limit()
    folder = Path(tempfile.mkdtemp(prefix="lamplighter-several-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    plan = Plan(given.servers, given.agents, given.minutes * 60, given.seed, given.before, given.calm, given.in_turn)
    told = asyncio.run(play(plan, folder))
    console = Console(width=None if sys.stdout.isatty() else 160)
    show(console, told)
    if told.wrong:
        console.print(f"What its processes left: {folder}", highlight=False)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def show(console: Console, told: Told) -> None:
    """Print what was done and what was found."""
    table = Table("what", "count", title="several servers")
    for kind, count in sorted(told.faults.items()):
        table.add_row(kind, str(count))
    table.add_row("changes", str(told.changes))
    table.add_row("jobs", f"{told.jobs:,}")
    if told.spread_s or told.not_spread:
        table.add_row("returns after which agents were spread within 20 %", str(len(told.spread_s)))
        took = sorted(told.spread_s) or [0.0]
        table.add_row("  seconds until then: half, at most", f"{took[len(took) // 2]:.1f}, {took[-1]:.1f}")
        table.add_row("returns that the next fault followed before they were", str(told.not_spread))
    for begin, end in ((0.0, 0.5), (0.5, 1.0)):
        _show_part(table, told, begin, end)
    table.add_row("[red]violations" if told.wrong else "violations", str(len(told.wrong)))
    console.print(table)
    for wrong in told.wrong[:30]:
        console.print(f"  [red]{escape(wrong)}")


def _show_part(table: Table, told: Told, begin: float, end: float) -> None:
    """Print what was seen from one share of the time to another."""
    which = "first half" if begin == 0 else "second half"
    last = max((at for at, _ in told.late_s), default=0.0)
    if late := sorted(late for at, late in told.late_s if begin <= at / last <= end):
        table.add_row(f"{which}: seconds from a due time to its command, half", f"{late[len(late) // 2]:.2f}")
        table.add_row("  99 of 100", f"{late[len(late) * 99 // 100]:.2f}")
        table.add_row("  at most", f"{late[-1]:.2f}")
    if looks := told.memory[int(len(told.memory) * begin) : int(len(told.memory) * end)]:
        most = max(max(look, default=0) for look in looks)
        table.add_row(f"  memory of a server at most, looked at each {WATCH_S:.0f} s, MiB", f"{most / 2**20:.1f}")


if __name__ == "__main__":
    sys.exit(main())
