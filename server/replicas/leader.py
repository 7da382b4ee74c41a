"""What only one of the servers does, and whether this is the one."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Leader:
    """Whether this server leads. A server that has its store for itself always does."""

    def __init__(self, *, leads: bool) -> None:
        self._leads = leads
        self._changed = asyncio.Event()

    def leads(self) -> bool:
        """Whether this server leads now. Any thread may call it."""
        return self._leads

    def elected(self, leads: bool) -> None:
        """This server leads from now on, or does no longer."""
        self._leads = leads
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def while_leading(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` whenever this server leads, from its beginning each time, until cancelled."""
        while True:
            changed = self._changed
            if self._leads:
                await _until(changed, work())
            else:
                await changed.wait()


async def _until(ended: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run work until it ends or `ended` is set. Raises what the work raises."""
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work)
        waiting = tasks.create_task(ended.wait())
        waiting.add_done_callback(lambda _: working.cancel())
