"""A cache of another service's answers. Concurrent requests for one key share a single call."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class Cache(Generic[Key, Answer]):
    """Keeps up to `size` answers, each for `keep_s(answer)` seconds, and evicts the oldest first.

    Failures are not kept. `clock`: monotonic seconds.
    """

    def __init__(self, keep_s: Callable[[Answer], float], size: int, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._size = size
        self._clock = clock
        self._kept: dict[Key, tuple[Answer, float]] = {}  # with the time at which each expires
        self._asking: dict[Key, asyncio.Task[Answer]] = {}

    async def get(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The cached answer for this key, or that of `ask`. Raises what `ask` raises, to every caller that waits."""
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept[1]:
            return kept[0]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
            asking.add_done_callback(_retrieve_error)
        return await asyncio.shield(asking)  # a caller that is cancelled does not cancel the call for others

    async def _ask(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await ask()
        finally:
            del self._asking[key]
        self._kept.pop(key, None)  # so that it becomes the newest
        self._kept[key] = answer, self._clock() + self._keep_s(answer)
        while len(self._kept) > self._size:
            del self._kept[next(iter(self._kept))]
        return answer


def _retrieve_error(task: "asyncio.Task[Answer]") -> None:
    """Retrieve a failure, so that asyncio does not log one that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
