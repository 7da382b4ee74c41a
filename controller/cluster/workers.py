"""Workers for a queue of keys: the shell around `controller.workqueue`."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from controller.workqueue import WorkQueue

log = logging.getLogger(__name__)

K = TypeVar("K")


class Workers(Generic[K]):
    """Works on keys, `count` at once, while `run` runs.

    `work`: works on a key, and returns whether it is done; otherwise it is tried again after the key's backoff, from
    `base_s` up to `max_s` seconds. An exception is logged and counts as a failure, so that a defect that one key meets
    stops no other.
    """

    def __init__(self, work: Callable[[K], Awaitable[bool]], base_s: float, max_s: float, count: int = 1) -> None:
        self._work = work
        self._count = count
        self._queue: WorkQueue[K] = WorkQueue(base_s, max_s)
        self._woken = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._begun: dict[K, float] = {}

    def __len__(self) -> int:
        """Keys to work on, now or later."""
        return len(self._queue)

    def __contains__(self, key: K) -> bool:
        """Whether a key is ready for a worker, or a worker has it."""
        return key in self._queue

    @property
    def busy_since(self) -> float:
        """When the longest running piece of work started; now, if none is running."""
        return min(self._begun.values(), default=self._clock())

    def add(self, keys: Iterable[K]) -> None:
        """Add keys to work on."""
        self._queue.update(keys)
        self._woken.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Add a key to work on in `delay_s` seconds."""
        self._queue.add_after(key, self._clock(), delay_s)
        self._woken.set()

    def failures(self, key: K) -> int:
        """A key's failures since its last success."""
        return self._queue.failures(key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._count):
                tasks.create_task(self._run())

    async def _run(self) -> None:
        while True:
            key = await self._next()
            self._begun[key] = self._clock()
            try:
                done = await self._work(key)
            except Exception:
                log.exception("work failed, trying again", extra={"key": str(key)})
                done = False
            finally:
                del self._begun[key]
                self._queue.done(key)
                self._woken.set()
            if done:
                self._queue.forget(key)
            else:
                self._queue.add_rate_limited(key, self._clock())

    async def _next(self) -> K:
        while (key := self._queue.get(self._clock())) is None:
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._queue.next_at()):
                    await self._woken.wait()
        return key
