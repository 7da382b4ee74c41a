"""`python -m bench [ROW …]` measures rows, and prints a table of figures beside their floors and limits.

Exit codes: 0 all limits are met, 1 some are not, 2 a row could not be measured.
"""

import asyncio
import logging
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench import bounds, controller, fires, fleets, growing, lists, loading, memory, pushes, replicas, scale, timing
from bench.fleet import raise_file_limit
from bench.result import FULL, SMALLEST, Result, Row

PARTS = (fires, bounds, pushes, timing, loading, memory, fleets, lists, growing, replicas, scale, controller)
ROWS: dict[str, Row] = {row.name: row for part in PARTS for row in part.ROWS}


def main() -> int:
    parser = ArgumentParser(
        "python -m bench", description="Measures how fast Lamplighter is, beside the floor of a bare loop."
    )
    asked = ", ".join(name for name, row in ROWS.items() if row.asked)
    parser.add_argument(
        "row", nargs="*", help=f"rows to measure, of {', '.join(ROWS)}; default: all except {asked}, which take longer"
    )
    parser.add_argument("--json", metavar="FILE", help="write results as JSON, in seconds and bytes; - prints them")
    parser.add_argument("--smallest", action="store_true", help="only check that rows work; the figures mean nothing")
    given = parser.parse_args()
    if unknown := set(given.row) - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}: see --help")
    names = given.row or [name for name, row in ROWS.items() if not row.asked]
    console = Console(stderr=True)
    results: list[Result] = []
    failed: list[str] = []
    with console.status("") as status:
        for name in names:
            status.update(f"measuring {name} ({names.index(name) + 1} of {len(names)})")
            found = measured(name, given.smallest) if len(names) > 1 else here(name, given.smallest)
            results += found
            failed += [] if found else [name]
    if given.json:
        written = msgspec.json.format(msgspec.json.encode(results)).decode() + "\n"
        sys.stdout.write(written) if given.json == "-" else Path(given.json).write_text(written)
    if given.json != "-":
        show(results)
    if failed:
        console.print(f"[red]could not be measured:[/] {', '.join(failed)}")
        return 2
    return 0 if all(result.met for result in results) else 1


def here(name: str, smallest: bool) -> Sequence[Result]:
    """Measure a row in this process."""
    raise_file_limit()
    logging.basicConfig(level=logging.ERROR)  # agents of a killed server would log that it is gone
    return asyncio.run(ROWS[name].measure(name, SMALLEST if smallest else FULL))


def measured(name: str, smallest: bool) -> list[Result]:
    """Measure a row in its own process, so that rows do not disturb each other; empty if that failed."""
    argv = [sys.executable, "-m", "bench", "--json", "-", *["--smallest"] * smallest, name]
    printed = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout
    return msgspec.json.decode(printed, type=list[Result]) if printed else []


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    table = Table(show_lines=True)
    for name in ("row", "what", "measured", "limit", "floor", "times the floor", "met", "notes"):
        table.add_column(name, justify="left" if name in ("row", "what", "notes") else "right")
    for it in results:
        ratio = "" if it.ratio is None else f"{it.ratio:.2f}"
        ratio += f" (≤ {it.limits.ratio:g})" if it.limits.ratio is not None else ""
        met = "[green]met[/]" if it.met else "[red]not met[/]"
        floor = f"{it.shown(it.floor)}\n{it.floor_is}".strip()
        table.add_row(it.row, it.what, it.shown(it.measured), it.shown(it.limits.most), floor, ratio, met, it.notes)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
