"""Stores when each host was last seen: when it disconnects, and every `EVERY_S` while it is connected."""

import asyncio
from contextlib import suppress
from datetime import datetime

from server.agents.hub import Hub
from server.errors import Unavailable
from server.events import Event, HostDisconnected
from server.store.engine import Store, StoreClosedError
from server.store.futures import then
from server.store.hosts import hosts_seen

EVERY_S = 300.0
"""Seconds between two rounds that store when connected hosts were last seen. A killed server loses at most that."""


class LastSeen:
    """Stores when hosts were last seen."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    def on_event(self, event: Event) -> None:
        """Store when a host was last seen once it disconnects, without waiting for the commit."""
        if isinstance(event, HostDisconnected):
            seen: list[tuple[str, int, datetime]] = [(event.host, event.session, event.last_seen)]
            with suppress(Unavailable, StoreClosedError):
                then(self._store.submit(hosts_seen, seen, event.host), lambda _: None)

    async def follow(self) -> None:
        """Store when connected hosts were last seen, every `EVERY_S`, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            with suppress(Unavailable):
                await self._store.write(hosts_seen, list(self._hub.last_seen_times()))
