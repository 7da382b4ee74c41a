"""How many agents a server sends away, and which, so that they come to the others: one that returned is to fill up."""

import math
from collections.abc import Collection, Iterable

TOLERANCE = 0.1
"""The part of the mean by which a server may differ from it."""
PAUSE_S = 10.0
"""Seconds after which a host that was sent away may be sent away again. They double each time."""
LONGEST_PAUSE_S = 600.0
"""The most that they grow to. A host that was not sent away again for so long after its pause begins anew, and so does
one that is elsewhere when its pause is over."""


def surplus(mine: int, others: Collection[int]) -> int:
    """How many of its `mine` connections a server sends away, where the others have these many.

    None while all are near the mean: within a tenth of it, or twice the deviation that chance makes. Else more than it
    has over the mean: who is sent away comes to any server, by chance, and only some of them lack agents. So as many go
    as bring those that lack some to the mean, on average.
    """
    counts = [mine, *others]
    mean = sum(counts) / len(counts)
    allowed = max(TOLERANCE * mean, 2 * math.sqrt(mean))
    if mine <= mean or all(abs(count - mean) <= allowed for count in counts):
        return 0
    lacking = sum(count < mean for count in counts)
    return min(math.floor((mine - mean) * len(counts) / lacking), mine)


class SentAway:
    """Which hosts were sent away lately. One that comes back again and again may know of this server alone."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # when each may be sent away again, and its pause

    def may_go(self, hosts: Collection[str], now: float) -> list[str]:
        """Those of the hosts that are here which may be sent away. `now`: seconds by any clock that goes on evenly."""
        here = set(hosts)
        self._until = {
            host: it
            for host, it in self._until.items()
            if now < it[0] or (host in here and now < it[0] + LONGEST_PAUSE_S)
        }
        return [host for host in hosts if host not in self._until or self._until[host][0] <= now]

    def sent(self, hosts: Iterable[str], now: float) -> None:
        """Note that these hosts are sent away now."""
        for host in hosts:
            _, before = self._until.get(host, (now, PAUSE_S / 2))
            pause = min(2 * before, LONGEST_PAUSE_S)
            self._until[host] = now + pause, pause
