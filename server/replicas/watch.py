"""Which servers are dead: those whose rows stay as they are while the database answers. No clock of another machine
counts."""

from collections.abc import Sequence
from typing import NamedTuple

from server.store.servers import ServerRow

DEAD_S = 8.0
"""Seconds after which a server whose row does not change is dead."""
STARTING_S = 300.0
"""Seconds that a server may take to load, before it keeps its row alive."""
GAP_S = 3.0
"""Seconds between two looks, from which on the time between them does not count: the database was away, or this server
stood still, and so may have the others."""


class _Seen(NamedTuple):
    """A row as it was since a time."""

    row: ServerRow
    since: float


class Watch:
    """Sees the rows of all servers again and again. `now` is by a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._looked_at = 0.0

    def look(self, rows: Sequence[ServerRow], now: float) -> list[ServerRow]:
        """The servers that are dead, of all rows as they are now."""
        known = self._seen if now - self._looked_at < GAP_S else {}
        self._looked_at = now
        self._seen = {
            row.id: seen
            if (seen := known.get(row.id)) is not None and seen.row.seen_at == row.seen_at
            else _Seen(row, now)
            for row in rows
        }
        return [row for row, since in self._seen.values() if now - since > _patience(row)]


def _patience(row: ServerRow) -> float:
    return STARTING_S if row.is_starting else DEAD_S
