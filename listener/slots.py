"""Which connections a listener has, and which one goes when there are too many."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """At most `limit` connections, 1 or more. A connection is idle while it waits for its client, and begins so."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._idle: dict[T, None] = {}  # those that have waited longest first
        self._busy: set[T] = set()

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def add(self, connection: T) -> T | None:
        """Hold a new connection. Returns the one that must be closed for it: the one that has been idle longest.

        That is the new one itself when all others are busy.
        """
        self._idle[connection] = None
        return self.drop_oldest() if len(self) > self.limit else None

    def drop_oldest(self) -> T | None:
        """Forget the connection that has been idle longest, and return it; None when none is idle."""
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            del self._idle[oldest]
        return oldest

    def busy(self, connection: T) -> None:
        """The server works for this connection. One that was dropped stays so."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def idle(self, connection: T) -> None:
        """This connection waits for its client again."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def remove(self, connection: T) -> None:
        """This connection has ended; it may have been dropped before."""
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def all(self) -> list[T]:
        """Every connection that is held."""
        return [*self._idle, *self._busy]
