"""Watches the server's clock, and publishes `ClockSetBack` when it is set back."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from server.events import ClockSetBack, Events

log = logging.getLogger(__name__)

EVERY_S = 10.0
"""Seconds between two checks of the clock."""


async def follow(events: Events, clock: Callable[[], datetime], every_s: float = EVERY_S) -> None:
    """Check the clock every `every_s` seconds until cancelled, and publish when it is set back."""
    latest = clock()
    while True:
        await asyncio.sleep(every_s)
        now = clock()
        if now < latest:
            log.warning("the clock was set back", extra={"seconds": round((latest - now).total_seconds())})
            events.publish(ClockSetBack(now))
        latest = now
