"""The worst end of the jobs of each day on each host, in memory: the table `host_days` as one bit for each host.

A page that groups 10,000 hosts by a label counts bits, where the database would go through 140,000 rows. A day is read
when it is first asked for, and again after `RELOAD`; ends of jobs that are heard of meanwhile are added. An end may be
heard of twice, or be read and heard of: that changes nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple

from server.events import AttemptEnded, Event
from server.store.days import hosts_of
from server.store.engine import Store
from server.store.tables import GOOD

RELOAD = timedelta(hours=1)
"""How long a day that was read is kept: retention may have deleted it since."""
MAX_DAYS = 90
"""The most days that are kept."""
Worst = Literal["failed", "warned", "succeeded", "none"]


class Bits(NamedTuple):
    """Sets of hosts, as bits by their numbers: those on which any job ended, had a warning, failed."""

    ended: int = 0
    warned: int = 0
    failed: int = 0

    def __or__(self, other: "Bits") -> "Bits":
        """The union of each."""
        return Bits(self.ended | other.ended, self.warned | other.warned, self.failed | other.failed)

    def worst(self, number: int) -> Worst:
        """The worst end on a host."""
        if self.failed >> number & 1:
            return "failed"
        if self.warned >> number & 1:
            return "warned"
        return "succeeded" if self.ended >> number & 1 else "none"


class HostDays:
    """The days that were asked for lately. `namespace_of`: the namespace of a repository, by its id."""

    def __init__(self, store: Store, namespace_of: Callable[[str], str], clock: Callable[[], datetime]) -> None:
        self._store = store
        self._namespace_of = namespace_of
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._days: dict[date, dict[str, Bits]] = {}
        self._read_at: dict[date, datetime] = {}
        self._heard: dict[date, list[tuple[str, str, Bits]]] = {}  # while that day is read
        self._reading = asyncio.Lock()

    def on_event(self, event: Event) -> None:
        """Add the end of a Schedule's job to its day, if that is known."""
        if not isinstance(event, AttemptEnded) or not event.final or not event.schedule_id:
            return
        end = event.end
        day, status = end.finished_at.date(), end.status
        bit = 1 << self.number(event.host)
        bits = Bits(bit, bit * (status == "warning"), bit * (status not in GOOD))
        namespace = self._namespace_of(event.repository)
        if day in self._heard:
            self._heard[day].append((event.host, namespace, bits))
        if day in self._days:
            _add(self._days[day], namespace, bits)

    async def load(self, days: Sequence[date]) -> None:
        """Read those of these days that are not known. Raises Unavailable."""
        async with self._reading:
            now = self._clock()
            for day in [it for it in self._days if it <= now.date() - timedelta(MAX_DAYS)]:
                del self._days[day], self._read_at[day]
            for day in days:
                if not timedelta() <= now - self._read_at.get(day, now - RELOAD) < RELOAD:
                    await self._load(day, now)

    async def _load(self, day: date, now: datetime) -> None:
        heard = self._heard[day] = []
        try:
            rows = await self._store.read(hosts_of, day)
        finally:
            del self._heard[day]
        known: dict[str, Bits] = {}
        for it in rows:
            bits = self.bits(it.hosts)
            _add(known, it.namespace, Bits(bits, bits * it.warned, bits * it.failed))
        for _, namespace, one in heard:
            _add(known, namespace, one)
        self._days[day], self._read_at[day] = known, now

    def of_day(self, day: date, namespace: str) -> Bits:
        """How jobs ended on a day that was loaded. `namespace`: empty for all."""
        known = self._days.get(day, {})
        if namespace:
            return known.get(namespace, Bits())
        found = Bits()
        for bits in known.values():
            found |= bits
        return found

    def number(self, host: str) -> int:
        """The number of a host's bit. It is given once, and outlives the host."""
        return self._numbers.setdefault(host, len(self._numbers))

    def bits(self, hosts: Iterable[str]) -> int:
        """A set of hosts."""
        numbers = [self.number(it) for it in hosts]
        found = bytearray(len(self._numbers) // 8 + 1)
        for number in numbers:
            found[number >> 3] |= 1 << (number & 7)
        return int.from_bytes(found, "little")


def _add(known: dict[str, Bits], namespace: str, bits: Bits) -> None:
    known[namespace] = known.get(namespace, Bits()) | bits
