"""What of a connection's input is worked on: how much is not stored yet, and whether its task has a part of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Inflow:
    """The input of one connection that is being worked on."""

    __slots__ = ("_is_held", "_nothing_left", "_unstored")

    def __init__(self) -> None:
        self._is_held = True  # until the hello is answered
        self._unstored = 0
        self._nothing_left: asyncio.Future[None] | None = None

    def is_open(self, most: int) -> bool:
        """Whether a frame may be worked on beside what is not stored yet, which must be less than `most`."""
        return not self._is_held and self._unstored < most

    @contextmanager
    def released(self) -> Iterator[None]:
        """While entered, frames may be worked on as they come."""
        self._is_held = False
        try:
            yield
        finally:
            self._is_held = True

    def add(self, count: int) -> None:
        """So many things that a frame brought are to be stored."""
        self._unstored += count

    def stored(self) -> None:
        """One of them is stored, or will never be."""
        self._unstored -= 1
        if not self._unstored and self._nothing_left is not None:
            waiting, self._nothing_left = self._nothing_left, None
            if not waiting.done():  # its task may be cancelled
                waiting.set_result(None)

    async def until_stored(self) -> None:
        """Wait until all of them are stored. One task waits at a time."""
        if self._unstored:
            self._nothing_left = asyncio.get_running_loop().create_future()
            try:
                await self._nothing_left
            finally:
                self._nothing_left = None
