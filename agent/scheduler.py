"""The agent's timer for all schedules, and the applying of pushes outside the read loop.

The timer is set for the core's next due time, but for CLOCK_CHECK_S at most, so that a clock that was set is noticed.
Firing is one step of the core (`tick`), so no fire is half done when a push stops the old cron.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime

from agent.core import pushes
from agent.core.effects import Effect, Push
from agent.core.machine import Core
from wire.messages import ScheduleSet

CLOCK_CHECK_S = 10.0
"""Seconds after which the wall clock is read again, even if nothing is due."""
THREAD_ENTRIES = 1000
"""A set with more entries is built in a thread, so that the event loop stays free."""


class Scheduler:
    """Calls the core when something is due and builds timetables, while `run` runs, connected or not."""

    def __init__(self, core: Core, clock: Callable[[], datetime], perform: Callable[[Sequence[Effect]], None]) -> None:
        self._core = core
        self._clock = clock
        self._perform = perform
        self._timer: asyncio.TimerHandle | None = None
        self._asked: deque[Push | None] = deque()
        self._woken = asyncio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Tick and apply pushes until `stop`. Raises what the core raises."""
        while not self._stopped:
            await self._woken.wait()
            self._woken.clear()
            if self._asked:
                await self._apply(self._asked.popleft())
            elif not self._stopped:
                self._perform(self._core.tick(self._clock()))

    def arm(self) -> None:
        """Set the timer to the core's `wake_at`. Call this after every event of the core."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            until = (self._core.wake_at - self._clock()).total_seconds()
            self._timer = asyncio.get_running_loop().call_later(min(max(until, 0.0), CLOCK_CHECK_S), self._woken.set)

    def apply(self, push: Push | None) -> None:
        """Have `run` build the set after a push and pass it to the core. The core asks for one push at a time."""
        self._asked.append(push)
        self._woken.set()

    def stop(self) -> None:
        """Tick no more. `run` returns after the push that it is applying. Idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._woken.set()

    async def _apply(self, push: Push | None) -> None:
        state, host, now = self._core.state, self._core.host, self._clock()
        size = len(push.schedules) if isinstance(push, ScheduleSet) else len(state.entries)
        if size > THREAD_ENTRIES:
            result = await asyncio.to_thread(pushes.build, state, push, host, now)
        else:
            result = pushes.build(state, push, host, now)
        self._perform(self._core.applied(result, self._clock()))
