"""Lays out rows of cells as lines of text that stay readable at any width, without I/O.

The last column is for what may be long, such as an error: whatever cuts long lines cuts only that. In a narrow
terminal, optional columns are left out first, then long names are shortened. A last cell that does not fit continues
below its row.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from textwrap import wrap

GAP = 3
"""Blanks between columns, at least NARROW_GAP in a narrow terminal."""
NARROW_GAP = 2
SHORTEST = 8
"""Characters that a shortened cell keeps, at least."""
MAX_LINES = 4
"""Lines that a last cell may take below its row in a terminal; the rest is cut off."""
BELOW = "    "
"""Indent of a last cell below its row."""

Paint = Callable[[str, str], str]
"""Colours a cell, given its text and the text padded to its column's width."""


def lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    optional: Sequence[str] = (),
    paint: Paint = lambda cell, padded: padded,
) -> list[str]:
    """The lines of a table: see `rows_of_lines`."""
    return list(chain.from_iterable(rows_of_lines(columns, rows, width, optional, paint)))


def rows_of_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    optional: Sequence[str] = (),
    paint: Paint = lambda cell, padded: padded,
) -> list[list[str]]:
    """The lines of a table's heading and of each row, none longer than `width`; with None, each row is one line.

    `optional`: columns to leave out, in this order, if there is too little room. No line ends with blanks. Lines exceed
    `width` only if it is less than SHORTEST + NARROW_GAP for each column that is kept.
    """
    kept, gap = list(range(len(columns))), GAP
    table = [columns, *rows]
    if width is not None:
        spare = [columns.index(name) for name in optional]
        while spare and _fixed(table, kept, NARROW_GAP) > width:
            kept.remove(spare.pop(0))
        gap = GAP if _fixed(table, kept, GAP) <= width else NARROW_GAP
    *fixed, last = kept
    sizes = _sizes(table, fixed, None if width is None else width - gap * len(fixed))
    found = []
    for row in table:
        cells = [_cut(row[at], size) for at, size in zip(fixed, sizes, strict=True)]
        shown = (" " * gap).join(paint(cell, cell.ljust(size)) for cell, size in zip(cells, sizes, strict=True))
        head = sum(sizes) + gap * len(sizes)
        found.append(_with_last(shown, head, " " * gap, row[last], width, paint))
    return found


def _with_last(shown: str, head: int, gap: str, last: str, width: int | None, paint: Paint) -> list[str]:
    """The lines of a row. `shown`: all cells but the last, `head` characters wide with the gap that follows."""
    if width is None or head + len(last) <= width:
        return [f"{shown}{gap if shown else ''}{paint(last, last)}" if last else shown.rstrip()]
    below = wrap(last, max(width - len(BELOW), SHORTEST), max_lines=MAX_LINES, placeholder=" …")
    return [shown.rstrip(), *(BELOW + paint(last, line) for line in below)]


def _fixed(table: Sequence[Sequence[str]], kept: Sequence[int], gap: int) -> int:
    """The width of all columns but the last."""
    return sum(max(len(row[at]) for row in table) for at in kept[:-1]) + gap * (len(kept) - 1)


def _sizes(table: Sequence[Sequence[str]], fixed: Sequence[int], room: int | None) -> list[int]:
    """The widths of columns. If they exceed `room`, the widest become narrower."""
    sizes = [max(len(row[at]) for row in table) for at in fixed]
    while room is not None and sum(sizes) > room and max(sizes, default=0) > SHORTEST:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}…"
