"""A queue of keys to be worked on, as client-go has it (k8s.io/client-go/util/workqueue): no I/O, no clock of its own.

A key waits once, however often it is added. One that is added while a worker has it waits again when that worker is
done, so no key is with two workers at once, and no change is missed. A key that fails waits for a time of its own,
which doubles with each failure until it succeeds; other keys do not wait for it.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys that wait, in the order in which they were added. Times are seconds of one monotonic clock.

    `base_s`, `max_s`: how long a key waits after its first failure, and at most.
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
        """Keys to be worked on, now or later; those that a worker has do not count, unless they were added again."""
        return len(self._dirty | self._delayed.keys())

    def __contains__(self, key: K) -> bool:
        """Whether a key waits for no time, or a worker has it."""
        return key in self._dirty or key in self._processing

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no worker has anything."""
        return not (self._dirty or self._delayed or self._processing)

    def add(self, key: K) -> None:
        """Have a key worked on; when a worker has it, once more after that."""
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
        """Add a key once `delay_s` seconds have passed. Of several such times for a key, the earliest counts."""
        if delay_s <= 0:
            self.add(key)
        elif now + delay_s < self._delayed.get(key, float("inf")):
            self._delayed[key] = now + delay_s
            self._added += 1
            heapq.heappush(self._due, (now + delay_s, self._added, key))

    def add_rate_limited(self, key: K, now: float) -> None:
        """Add a key that has failed, after its backoff: `base_s`, doubled for each failure before, up to `max_s`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, now, min(self._base_s * 2 ** min(failures, 62), self._max_s))

    def forget(self, key: K) -> None:
        """A key has succeeded, or is gone: its next failure counts as the first."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often a key has failed since it was last forgotten."""
        return self._failures.get(key, 0)

    def get(self, now: float) -> K | None:
        """The key that has waited longest, for a worker, which calls `done` after it. None where no key is due."""
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
        """A worker has ended with a key, well or not."""
        self._processing.discard(key)
        if key in self._dirty:
            self._order.append(key)

    def next_at(self) -> float | None:
        """When `get` has a key without another being added: -inf for now, None for never."""
        if self._order:
            return float("-inf")
        while self._due and self._delayed.get(self._due[0][2]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None
