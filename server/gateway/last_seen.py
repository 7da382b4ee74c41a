"""When each host last gave a sign of life, stored when it disconnects and from time to time."""

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
"""Seconds between two times of storing when connected hosts were last heard of, for a server that is killed later."""


class LastSeen:
    """Stores when hosts were last heard of."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    def on_event(self, event: Event) -> None:
        """Hear of a host whose connection is gone."""
        if isinstance(event, HostDisconnected):
            seen: list[tuple[str, datetime]] = [(event.host, event.last_seen)]
            with suppress(Unavailable, StoreClosedError):
                then(self._store.submit(hosts_seen, seen), lambda _: None)

    async def follow(self) -> None:
        """Store it from time to time, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            with suppress(Unavailable):
                await self._store.write(hosts_seen, list(self._hub.last_seen_times()))
