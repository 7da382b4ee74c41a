"""Writes to the terminal, as the only module that does, and makes all text safe first, also for a pipe.

Names, errors and log lines come from hosts, manifests and programs. A control character in them could command the
terminal (ECMA-48), forge a line, or reverse the direction of the text (Unicode, UAX 9).
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import click

from cli import table

if TYPE_CHECKING:
    from rich.console import RenderableType


PIPE_WIDTH = 2000
"""Characters of a line that rich renders for a pipe or a file, which have no width."""


def safe(text: str, keep: str = "") -> str:
    """Text with each character that is not printable (`str.isprintable`) replaced by U+FFFD, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def _put(text: str, end: str = "\n") -> None:
    """Write text to stdout. Raises click.ClickException where stdout takes none, such as on a full disk, and
    BrokenPipeError where nobody reads on."""
    try:
        click.echo(text + end, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"stdout cannot be written: {error.strerror}") from None


def say(text: str, colour: str | None = None) -> None:
    """Write one line to stdout, in this colour if stdout is coloured. Tabs stay."""
    line = safe(text, "\t")
    _put(click.style(line, colour) if colour and is_coloured(sys.stdout) else line)


def write(text: str) -> None:
    """Write text of this program's own to stdout, as it is."""
    _put(text)


def note(text: str) -> None:
    """Write one line to stderr. Tabs stay."""
    click.echo(safe(text, "\t"), err=True)


def say_json(value: object) -> None:
    """Write a value to stdout as JSON. Characters that are not printable are escaped, so that nothing is lost."""
    _put(escaped(json.dumps(value, indent=2, ensure_ascii=False), "\n"))


def escaped(text: str, keep: str = "") -> str:
    """JSON text with each character that is not printable as JSON's escape, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)


def say_yaml(value: object) -> None:
    """Write a value to stdout as a YAML document. Characters that are not printable are escaped, as in JSON."""
    _put(yaml_of(value), end="")


def yaml_of(value: object) -> str:
    """A value as YAML. Characters that are not printable are escaped."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, width=1 << 20, allow_unicode=True)
    if safe(text, "\n") == text:
        return text
    return yaml.safe_dump(value, sort_keys=False, width=1 << 20, allow_unicode=False)


def is_coloured(stream: TextIO) -> bool:
    """Whether text to this stream is coloured: in a terminal that can, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_shown() -> bool:
    """Whether a person reads stdout: it is a terminal."""
    return sys.stdout.isatty()


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Mapping[str, str],
    optional: Sequence[str] = (),
    *,
    only: Collection[int] | None = None,
    whole: bool = False,
) -> None:
    """Write a table to stdout.

    In a terminal it fits the width, without `optional` columns if it must, and `styles` colours cells by their text.
    Otherwise, and if it is to be `whole`, each row is one whole line. `only`: write the rows with these numbers (from
    0 on) and no heading, at the widths of all.
    """
    width = shutil.get_terminal_size().columns if is_shown() and not whole else None
    coloured = is_coloured(sys.stdout)

    def paint(cell: str, padded: str) -> str:
        return click.style(padded, styles[cell]) if cell in styles and coloured else padded

    cells = [[safe(cell) for cell in row] for row in rows]
    for number, lines in enumerate(table.rows_of_lines(columns, cells, width, optional, paint), -1):
        if only is None or number in only:
            for line in lines:
                _put(line)


def print_rich(shown: "RenderableType") -> None:
    """Write what rich renders to stdout, whose texts are safe already: in whole lines, unless that is a terminal."""
    from rich.console import Console

    width = None if is_shown() else PIPE_WIDTH
    console = Console(width=width, no_color=not is_coloured(sys.stdout), highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        _put(line.rstrip())


class Bars:
    """Progress bars on stderr, if that is a terminal: each has a key, and goes away at the end.

    Ctrl-C waits until a change of them is done: rich cannot put away what it has shown by half.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        doing, done = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("doing", "done"))
        columns = (doing, BarColumn(), done, TimeElapsedColumn())
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,  # what is piped stays what it is
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self.are_shown = console.is_terminal

    def show(self, key: str, doing: str, done: str = "", fraction: float | None = None) -> None:
        """Show a bar: what is going on, how much is done, and that as a fraction from 0 to 1, or None if unknown."""
        with _uninterrupted():
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task("", total=None, doing="", done="")
            total = None if fraction is None else 1.0
            task = self._tasks[key]
            self._progress.update(task, total=total, completed=fraction or 0, doing=safe(doing), done=safe(done))

    def keep(self, keys: Collection[str]) -> None:
        """Remove all other bars."""
        with _uninterrupted():
            for key in self._tasks.keys() - set(keys):
                self._progress.remove_task(self._tasks.pop(key))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Put the bars away while something else is written."""
        with _uninterrupted():
            self._progress.stop()
        try:
            yield
        finally:
            with _uninterrupted():
                self._progress.start()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars while entered."""
        try:
            with _uninterrupted():
                self._progress.start()
            yield
            with _uninterrupted():
                self._progress.stop()
        finally:  # Ctrl-C may have come just before
            with _uninterrupted():
                self._progress.stop()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while entered, and raise its KeyboardInterrupt then. For the main thread."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # held back already, or ignored
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars, while entered."""
    made = Bars()
    with made.shown():
        yield made


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
