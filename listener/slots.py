"""The connections of a listener, and which one to drop when there are too many. No I/O."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """At most `limit` connections, 1 or more. A connection is idle while it waits for its client; it starts idle."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._idle: dict[T, None] = {}  # the longest idle first
        self._busy: set[T] = set()

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def add(self, connection: T) -> T | None:
        """Add a connection. Returns the one to close for it, which has been idle longest; None if there is room.

        If all others are busy, that is the new connection itself.
        """
        self._idle[connection] = None
        return self.drop_oldest() if len(self) > self.limit else None

    def drop_oldest(self) -> T | None:
        """Remove and return the connection that has been idle longest; None if none is idle."""
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            del self._idle[oldest]
        return oldest

    def busy(self, connection: T) -> None:
        """Mark a connection as busy. A connection that was dropped is ignored."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def idle(self, connection: T) -> None:
        """Mark a connection as idle: it waits for its client again."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def remove(self, connection: T) -> None:
        """Remove a connection that has ended. It may have been dropped before."""
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def all(self) -> list[T]:
        """All connections."""
        return [*self._idle, *self._busy]
