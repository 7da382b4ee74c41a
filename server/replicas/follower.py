"""Brings this server up to what the others did, when it is woken and every `POLL_S`: notifications are only hints."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from server.errors import Unavailable

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Seconds after which others are asked without a notification."""


class Follower:
    """`steps`: what follows the others, in order. Each finds by itself what is new."""

    def __init__(self, steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
        self._steps = steps
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    async def follow(self) -> None:
        """Follow the others until cancelled. Raises what a step raises, but for Unavailable: it is tried again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            self._woken.clear()
            try:
                for step in self._steps:
                    await step()
            except Unavailable as error:
                log.debug("the other servers are followed later", extra={"reason": error})
