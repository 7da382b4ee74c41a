"""Tells whoever listens that something has changed: which kinds, not what, so that no news can be lost by being late.

A listener that is slow gets one piece of news for all that came meanwhile. What has changed is then read by REST.
"""

import asyncio
import json
from collections.abc import AsyncIterator

KINDS = ("schedules", "repositories", "hosts", "runs")
PAUSE_S = 0.5
"""Seconds between two pieces of news to one listener."""
ALIVE_S = 15.0
"""Seconds without news after which a listener is told that the stream lives."""


class News:
    """What has changed, for any number of listeners."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._ended = False

    def changed(self, *kinds: str) -> None:
        """Something of these KINDS has changed."""
        for listener in self._listeners:
            listener.kinds.update(kinds)
            listener.woken.set()

    def end(self) -> None:
        """End all streams, which would hold up a server that stops."""
        self._ended = True
        self.changed()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events (HTML Living Standard, section 9.2), each with the kinds that changed; first, all."""
        listener = _Listener()
        self._listeners.add(listener)
        try:
            while not self._ended:
                try:
                    async with asyncio.timeout(ALIVE_S):
                        await listener.woken.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                if self._ended:
                    return
                listener.woken.clear()
                kinds, listener.kinds = sorted(listener.kinds), set()
                yield b"data: " + json.dumps({"changed": kinds}).encode() + b"\n\n"
                await asyncio.sleep(PAUSE_S)
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self) -> None:
        self.kinds = set(KINDS)
        self.woken = asyncio.Event()
        self.woken.set()
