"""The clock of the agent: one timer for all schedules, and the applying of pushes outside the read loop.

The timer is armed for the core's next due time, and never for longer than CLOCK_CHECK_S, so that a clock that was set
is noticed. Firing is one step of the core (`tick`), so no half fire is in flight when a push stops the old cron;
what the core was told before is done before it is told to apply.
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
"""Seconds after which the wall clock is read again, whatever is due."""
THREAD_ENTRIES = 1000
"""A push with more entries is worked out in a thread, so that the loop stays free."""


class Scheduler:
    """Rings when something is due and builds timetables, while `run` runs; the connection does not matter to it."""

    def __init__(self, core: Core, clock: Callable[[], datetime], perform: Callable[[Sequence[Effect]], None]) -> None:
        self._core = core
        self._clock = clock
        self._perform = perform
        self._timer: asyncio.TimerHandle | None = None
        self._asked: deque[Push | None] = deque()
        self._woken = asyncio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Ring and apply until `stop`. Raises what the core raises."""
        while not self._stopped:
            await self._woken.wait()
            self._woken.clear()
            if self._asked:
                await self._apply(self._asked.popleft())
            elif not self._stopped:
                self._perform(self._core.tick(self._clock()))

    def arm(self) -> None:
        """Set the timer to what the core waits for now. Call after every event of the core."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            until = (self._core.wake_at - self._clock()).total_seconds()
            self._timer = asyncio.get_running_loop().call_later(min(max(until, 0.0), CLOCK_CHECK_S), self._woken.set)

    def apply(self, push: Push | None) -> None:
        """Have `run` work out a push and hand it to the core. The core asks for one at a time."""
        self._asked.append(push)
        self._woken.set()

    def stop(self) -> None:
        """Ring no more; `run` returns when a push that is being applied is done. Idempotent."""
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
