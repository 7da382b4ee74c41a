"""A queue of keys to work on, like client-go's (k8s.io/client-go/util/workqueue). No I/O, no clock of its own.

A key is in the queue once, however often it is added. A key that is added while a worker has it is queued again when
the worker is done. So no two workers have the same key, and no change is missed. A key that failed waits for its own
backoff, which doubles with each failure until it succeeds; other keys do not wait for it.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys in the order in which they were added. Times are seconds of one monotonic clock.

    `base_s`, `max_s`: seconds that a key waits after its first failure, and at most.
    """

    def __init__(self, base_s: float, max_s: float) -> None:
        self._base_s, self._max_s = base_s, max_s
        self._order: deque[K] = deque()
        self._dirty: set[K] = set()  # to be worked on: those in _order, and those added while a worker has them
        self._processing: set[K] = set()
        self._delayed: dict[K, float] = {}
        self._due: list[tuple[float, int, K]] = []  # a heap; an item counts only while _delayed says the same
        self._added = 0
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys to work on, now or later. A key that a worker has counts only if it was added again."""
        return len(self._dirty | self._delayed.keys())

    def __contains__(self, key: K) -> bool:
        """Whether a key is ready for a worker, or a worker has it."""
        return key in self._dirty or key in self._processing

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no worker has anything."""
        return not (self._dirty or self._delayed or self._processing)

    def add(self, key: K) -> None:
        """Add a key. If a worker has it, it is queued again when that worker is done."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._order.append(key)

    def update(self, keys: Iterable[K]) -> None:
        """Add several keys."""
        for key in keys:
            self.add(key)

    def add_after(self, key: K, now: float, delay_s: float) -> None:
        """Add a key after `delay_s` seconds. Of several such times for a key, the earliest counts."""
        if delay_s <= 0:
            self.add(key)
        elif now + delay_s < self._delayed.get(key, float("inf")):
            self._delayed[key] = now + delay_s
            self._added += 1
            heapq.heappush(self._due, (now + delay_s, self._added, key))

    def add_rate_limited(self, key: K, now: float) -> None:
        """Add a failed key after its backoff: `base_s`, doubled for each earlier failure, up to `max_s`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, now, min(self._base_s * 2 ** min(failures, 62), self._max_s))

    def forget(self, key: K) -> None:
        """Reset a key's failures: it succeeded, or no longer exists."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """A key's failures since the last `forget`."""
        return self._failures.get(key, 0)

    def get(self, now: float) -> K | None:
        """The next key for a worker, which must call `done` after it; None if no key is ready."""
        while self._due and self._due[0][0] <= now:
            at, _, key = heapq.heappop(self._due)
            if self._delayed.get(key) == at:
                del self._delayed[key]
                self.add(key)
        if not self._order:
            return None
        key = self._order.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: K) -> None:
        """A worker is done with a key, successfully or not."""
        self._processing.discard(key)
        if key in self._dirty:
            self._order.append(key)

    def next_at(self) -> float | None:
        """When `get` will return a key if none is added: -inf for now, None for never."""
        if self._order:
            return float("-inf")
        while self._due and self._delayed.get(self._due[0][2]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None
