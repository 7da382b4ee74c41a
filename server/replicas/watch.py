"""Which servers are dead: those whose rows stay as they are while that of this server does not. No clock of another
machine counts."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from server.store.servers import ServerRow

DEAD_S = 8.0
"""Seconds after which a server whose row does not change is dead."""
STARTING_S = 300.0
"""Seconds that a server may take to load, before it keeps its row alive."""
GAP_S = 3.0
"""Seconds between two looks, from which on the time between them does not count: the database was away, or this server
stood still, and so may have the others. When it is as long again, the database is slow: then it counts."""
WRITTEN_S = 4.0
"""Seconds since the row of this server last changed, from which on time does not count: the database takes nothing, or
a long transaction has its turn, and so the others cannot write either."""


class _Seen(NamedTuple):
    """A row as it was since a time."""

    row: ServerRow
    since: float


class Watch:
    """Sees the rows of all servers again and again. `server`: the id of this one. `now` is by a monotonic clock, in
    seconds."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._seen: dict[str, _Seen] = {}
        self._looked_at = 0.0
        self._is_long = False  # the time between the last two looks
        self._counted = 0.0  # seconds in which the others could have written
        self._written: datetime | None = None  # by the row of this server
        self._written_at = 0.0

    def look(self, rows: Sequence[ServerRow], now: float) -> list[ServerRow]:
        """The other servers that are dead, of all rows as they are now."""
        self._see_own(rows, now)
        gap_s, was_long = now - self._looked_at, self._is_long
        self._is_long = gap_s >= GAP_S
        if self._is_long and not was_long:
            self._seen = {}
        elif now - self._written_at < WRITTEN_S:
            self._counted += min(gap_s, WRITTEN_S)
        self._looked_at = now
        self._seen = {
            row.id: seen
            if (seen := self._seen.get(row.id)) is not None and seen.row.seen_at == row.seen_at
            else _Seen(row, self._counted)
            for row in rows
            if row.id != self._server
        }
        return [row for row, since in self._seen.values() if self._counted - since > _patience(row)]

    def _see_own(self, rows: Sequence[ServerRow], now: float) -> None:
        for row in rows:
            if row.id == self._server and row.seen_at != self._written:
                self._written, self._written_at = row.seen_at, now


def _patience(row: ServerRow) -> float:
    return STARTING_S if row.is_starting else DEAD_S
