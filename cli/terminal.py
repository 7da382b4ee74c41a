"""The one place that writes to a terminal: what others wrote is made safe here, whether or not the output is piped.

Names, errors and log lines come from hosts, manifests and programs. A control character in them could command the
terminal (ECMA-48), forge a line, or turn the direction of the text (Unicode, UAX 9).
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import click

WIDE = 200
"""Columns of a table that does not go to a terminal; one word that is longer makes its line longer."""


def safe(text: str, keep: str = "") -> str:
    """Text with each character that is not printable (`str.isprintable`) replaced by U+FFFD, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """Write one line to stdout. Tabs stay."""
    click.echo(safe(text, "\t"))


def note(text: str) -> None:
    """Write one line to stderr. Tabs stay."""
    click.echo(safe(text, "\t"), err=True)


def say_json(value: object) -> None:
    """Write a value to stdout as JSON; what is not printable is escaped, so that nothing is lost."""
    click.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False), "\n"))


def escaped(text: str, keep: str = "") -> str:
    """JSON text with each character that is not printable as JSON's escape, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> None:
    """Write a table to stdout. In a terminal it fits the width, and cells are coloured by `styles`."""
    from rich.console import Console  # which a part that only runs as a service is installed without
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        last = column == columns[-1]
        table.add_column(column, no_wrap=not (last and console.is_terminal), overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe(cell), style=styles.get(cell, "")) for cell in row))
    if console.is_terminal:
        console.print(table)
    else:
        Console(highlight=False, width=max(WIDE, console.measure(table).maximum), no_color=True).print(table)


Show = Callable[[str, str, float | None], None]
"""Shows what is going on, how much is done in words, and as a fraction from 0 to 1, None when unknown."""


@contextmanager
def progress() -> Iterator[Show]:
    """A progress bar on stderr while entered, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    doing, done = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("doing", "done"))
    columns = (doing, BarColumn(), done, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=None, doing="", done="")

        def show(doing: str, done: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            shown.update(task, total=total, completed=fraction or 0, doing=safe(doing), done=safe(done))

        yield show


@contextmanager
def safe_errors() -> Iterator[None]:
    """Make the messages of click's errors safe before click shows them.

    Those of click itself about options have several lines, and quote only what the person typed.
    """
    try:
        yield
    except click.ClickException as error:
        keep = "\n\t" if isinstance(error, click.UsageError) else "\t"
        vars(error)["message"] = safe(error.message, keep)  # another error would lose how this one is shown
        raise


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an error that nobody expected to stderr (`sys.excepthook`)."""
    sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace)), "\n\t"))
