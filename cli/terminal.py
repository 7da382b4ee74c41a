"""Writes to the terminal, as the only module that does, and makes all text safe first, also for a pipe.

Names, errors and log lines come from hosts, manifests and programs. A control character in them could command the
terminal (ECMA-48), forge a line, or reverse the direction of the text (Unicode, UAX 9).
"""

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import click

from cli import table


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
    """Write a value to stdout as JSON. Characters that are not printable are escaped, so that nothing is lost."""
    click.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False), "\n"))


def escaped(text: str, keep: str = "") -> str:
    """JSON text with each character that is not printable as JSON's escape, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Mapping[str, str],
    optional: Sequence[str] = (),
) -> None:
    """Write a table to stdout.

    In a terminal it fits the width, without `optional` columns if it must, and `styles` colours cells by their text.
    Otherwise each row is one whole line.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def paint(cell: str, padded: str) -> str:
        return click.style(padded, styles[cell]) if cell in styles and "NO_COLOR" not in os.environ else padded

    for line in table.lines(columns, [[safe(cell) for cell in row] for row in rows], width, optional, paint):
        click.echo(line)


Show = Callable[[str, str, float | None], None]
"""Shows progress: what is going on, how much is done, and that as a fraction from 0 to 1, or None if unknown."""


@contextmanager
def progress() -> Iterator[Show]:
    """A progress bar on stderr while entered, if that is a terminal."""
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

    click's own messages about options have several lines, and quote only what the person typed.
    """
    try:
        yield
    except click.ClickException as error:
        keep = "\n\t" if isinstance(error, click.UsageError) else "\t"
        vars(error)["message"] = safe(error.message, keep)  # a new error would lose how this one is shown
        raise


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an unexpected error to stderr (`sys.excepthook`)."""
    sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace)), "\n\t"))
