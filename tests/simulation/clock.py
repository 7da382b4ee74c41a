"""Virtual time: its units, what is to come in it, and what a store answers in it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

CALM = 2 * 60 * SECOND
"""How long after a fault is over a host has answered all that waited."""


class Stored:
    """What a store answers when it has committed something: an asyncio.Future as `Dispatch` uses it."""

    def __init__(self) -> None:
        self._result: object = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it when this is done."""
        self._callbacks.append(callback)

    def done(self, result: object) -> None:
        """It is committed."""
        self._result = result
        for callback in self._callbacks:
            callback(self)

    def failed(self, error: Exception) -> None:
        """It may not be committed: nobody knows."""
        self._error = error
        self.done(None)

    def cancelled(self) -> bool:
        """Never: nobody waits."""
        return False

    def exception(self) -> Exception | None:
        """Why it may not be committed; None when it is. A disk that fails takes the process with it."""
        return self._error

    def result(self) -> object:
        """What the store answered."""
        return self._result


class Timer:
    """Something to come, which can be called off."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def cancel(self) -> None:
        """It is not to come."""
        self._do = None

    def ring(self) -> None:
        """It comes."""
        if self._do is not None:
            self._do()
