"""Answers of another service, kept for a bounded time; who asks while an answer is under way waits for that one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class Cache(Generic[Key, Answer]):
    """At most `size` answers, each for `keep_s(answer)` seconds; the oldest makes room. Failures are not kept.

    `clock`: seconds that never go backwards.
    """

    def __init__(self, keep_s: Callable[[Answer], float], size: int, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._size = size
        self._clock = clock
        self._kept: dict[Key, tuple[Answer, float]] = {}  # with the time until which each is good
        self._asking: dict[Key, asyncio.Task[Answer]] = {}

    async def get(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer for this key. Raises what `ask` raises, to all who wait for it."""
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept[1]:
            return kept[0]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
            asking.add_done_callback(_heard)
        return await asyncio.shield(asking)  # one who goes away takes the answer from nobody

    async def _ask(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await ask()
        finally:
            del self._asking[key]
        self._kept.pop(key, None)  # to the end of the line
        self._kept[key] = answer, self._clock() + self._keep_s(answer)
        while len(self._kept) > self._size:
            del self._kept[next(iter(self._kept))]
        return answer


def _heard(task: "asyncio.Task[Answer]") -> None:
    """A failure that nobody waits for any more needs no mention."""
    if not task.cancelled():
        task.exception()
