"""This server among the others: its row, which it keeps alive, and their rows, in which it finds the dead."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import NamedTuple

from server.errors import Unavailable
from server.replicas.watch import Watch
from server.store import servers
from server.store.engine import Store, StoreClosedError
from server.store.servers import Beat, ServerRow

log = logging.getLogger(__name__)

BEAT_S = 2.0
"""Seconds between two signs of life."""
LOOK_S = 1.0
"""Seconds between two looks at the others."""
LOOKS = 10
"""How many of these looks the leader has from one search for hosts left behind to the next."""


class Followed(NamedTuple):
    """Up to where a server has followed the change log and the news."""

    revision: int = 0
    news: int = 0


class Members:
    """The servers that share a store.

    `followed`: up to where this one is. `leads`: whether it takes care of hosts that were left behind. `gone`: called
    with the id of a server that is dead, or that left hosts behind.
    """

    def __init__(
        self,
        store: Store,
        followed: Callable[[], Followed],
        leads: Callable[[], bool],
        gone: Callable[[str], object],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._followed = followed
        self._leads = leads
        self._gone = gone
        self._clock = clock
        self._watch = Watch(store.server)
        self._rows: Sequence[ServerRow] = ()
        self._stopping = False

    @asynccontextmanager
    async def joined(self, name: str) -> AsyncIterator[None]:
        """Have a row while entered: from before anything is loaded, so that what follows it is not trimmed, until all
        connections are closed. Raises Unavailable.
        """
        if not self._store.is_shared:
            yield
            return
        now = self._clock()
        await self._store.write(servers.join, ServerRow(self._store.server, name, now, now))
        try:
            yield
        finally:
            with suppress(Unavailable, StoreClosedError):
                await self._store.write(servers.leave, self._store.server)

    async def stop(self) -> None:
        """This server is about to end, and others are to have its agents."""
        self._stopping = True
        if self._store.is_shared:
            with suppress(Unavailable, StoreClosedError):
                await self._beat()

    def stopping(self) -> bool:
        """Whether this server is about to end."""
        return self._stopping

    def others(self) -> list[ServerRow]:
        """The other servers that take agents, as they were a second ago."""
        mine = self._store.server
        return [it for it in self._rows if it.id != mine and not it.stopping and not it.is_starting]

    async def beat(self) -> None:
        """Keep the row alive, until cancelled."""
        while True:
            with suppress(Unavailable):
                await self._beat()
            await asyncio.sleep(BEAT_S)

    async def _beat(self) -> None:
        beat = Beat(self._store.server, self._clock(), *self._followed(), self._stopping)
        if not await self._store.write(servers.beat, beat):
            self._store.lose(servers.BURIED)

    async def watch(self) -> None:
        """Look at the others, and bury the dead, until cancelled; where this server leads, find hosts left behind."""
        looks = 0
        while True:
            with suppress(Unavailable):
                await self.look(asyncio.get_running_loop().time())
                looks = looks + 1 if self._leads() else 0
                if looks % LOOKS == 1:
                    await self.look_behind()
            await asyncio.sleep(LOOK_S)

    async def look(self, now: float) -> None:
        """Look once. `now`: by a monotonic clock, in seconds. Raises Unavailable.

        Each server buries the dead, since a leader that stands still buries nobody. One of them is the first.
        """
        self._rows = await self._store.read(servers.living)
        for row in self._watch.look(self._rows, now):
            if await self._store.write(servers.bury, (row.id, row.seen_at)):
                log.warning("a server is dead: its agents come to the others", extra={"server": row.name, "id": row.id})
                self._gone(row.id)

    async def look_behind(self) -> None:
        """Have hosts count as away that are connected to a server without a row. Raises Unavailable."""
        for server in await self._store.read(servers.without_row):
            self._gone(server)
