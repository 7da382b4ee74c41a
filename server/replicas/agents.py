"""Sends agents to the other servers: all of them when this one stops, and some when it has more than its share."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

from server.agents.hub import Hub
from server.errors import Unavailable
from server.replicas.balance import SentAway, surplus
from server.replicas.members import Members
from server.store import servers
from server.store.engine import Store

log = logging.getLogger(__name__)

EVERY_S = 1.5
"""Seconds between two looks at how many agents each server has."""
RATE = 100.0
"""Hosts that are sent away per second: each says hello to another server."""
BUSY = 100
"""Calls that wait for the store, from which on nobody is sent away: hellos would make more of them."""


async def drain(hub: Hub, members: Members, seconds: float) -> None:
    """The server stops: say so, then send all agents to the others, spread over so many seconds.

    Where there is no other server, they are closed at once, with everything else.
    """
    hub.stop_accepting()
    await members.stop()
    if seconds and members.others() and (hosts := hub.connected()):
        log.info("sending agents to the other servers", extra={"hosts": len(hosts), "seconds": seconds})
        await spread(hub.send_away, hosts, seconds)


async def spread(send_away: Callable[[str], None], hosts: Sequence[str], seconds: float) -> None:
    """Send hosts away one after the other, evenly over so many seconds."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    for n, host in enumerate(hosts):
        if (wait_s := begin + seconds * n / len(hosts) - clock()) > 0:
            await asyncio.sleep(wait_s)
        send_away(host)


class Balance:
    """Sends away what this server has more than its share."""

    def __init__(self, store: Store, hub: Hub, members: Members, rng: random.Random) -> None:
        self._store = store
        self._hub = hub
        self._members = members
        self._rng = rng
        self._sent_away = SentAway()
        self._surplus = 0  # at the last look

    async def follow(self) -> None:
        """Look every `EVERY_S`, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            with suppress(Unavailable):
                await self.settle()

    async def settle(self) -> None:
        """Send away some of the surplus that there is now and was at the last look: after a server's death, agents
        come and go for a while. Raises Unavailable.

        Who was sent away counts as gone at once, and on another server as soon as that has stored it.
        """
        before, self._surplus = self._surplus, 0
        others = self._members.others()
        if not others or self._members.stopping() or self._store.waiting > BUSY:
            return
        counts = await self._store.read(servers.connection_counts)
        mine = len(self._hub.connected())
        self._surplus = surplus(mine, [counts.get(row.id, 0) for row in others])
        count = min(before, self._surplus, int(RATE * EVERY_S))
        now = asyncio.get_running_loop().time()
        free = self._sent_away.may_go(self._hub.connected(), now)
        if hosts := self._rng.sample(free, min(count, len(free))):
            self._sent_away.sent(hosts, now)
            log.info("sending agents to servers that have fewer", extra={"hosts": len(hosts)})
            await spread(self._hub.send_away, hosts, len(hosts) / RATE)
