"""Work on many jobs, cut into pieces so that other tasks get the event loop in between."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

PIECE = 200
"""Maximum jobs handled in one piece, which takes some milliseconds."""

T = TypeVar("T")


def pieces(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """Sequences of at most PIECE items each; the caller lets other tasks run between them."""
    for begin in range(0, len(many), PIECE):
        yield many[begin : begin + PIECE]
