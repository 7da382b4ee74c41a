"""The stream of changes: server-sent events that say which kinds of objects changed, for the controller and pages.

A reader that is slow gets one piece of news for all that came meanwhile; what has changed is then read by REST. So no
change can be lost by being late.
"""

import asyncio
import json
from collections.abc import AsyncIterator

from server.events import (
    AttemptEnded,
    ClockSetBack,
    ControllerReported,
    DeclarationChanged,
    DuplicateAgent,
    Event,
    FireRefused,
    HostAcked,
    HostConnected,
    HostDisconnected,
    JobsChanged,
    JobsRecorded,
    RepositoryHealthChanged,
)

KINDS = ("schedules", "repositories", "hosts", "runs")
PAUSE_S = 0.5
"""Seconds between two pieces of news to one reader."""
ALIVE_S = 15.0
"""Seconds without news after which a reader is told that the stream lives."""


_CHANGED = {
    HostConnected: ("hosts",),
    HostDisconnected: ("hosts",),
    DuplicateAgent: ("hosts",),
    HostAcked: ("hosts", "schedules"),
    JobsRecorded: ("runs", "schedules"),
    JobsChanged: ("runs",),
    AttemptEnded: ("runs", "schedules"),
    RepositoryHealthChanged: ("repositories",),
    ClockSetBack: ("schedules", "repositories", "runs"),
    ControllerReported: (),
    FireRefused: (),
}
"""The KINDS of objects that look otherwise after an event."""


class ChangeStream:
    """Which kinds have changed, for any number of readers."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._ended = False

    def on_event(self, event: Event) -> None:
        """Something has happened."""
        if not isinstance(event, DeclarationChanged):
            self._changed(*_CHANGED[type(event)])
        elif event.hosts:
            self._changed("schedules", "hosts")
        else:
            self._changed("schedules", "repositories", "hosts")

    def _changed(self, *kinds: str) -> None:
        for reader in self._readers:
            reader.kinds.update(kinds)
            reader.woken.set()

    def end(self) -> None:
        """End all streams, which would hold up a server that stops."""
        self._ended = True
        self._changed()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events (HTML Living Standard, section 9.2), each with the kinds that changed; first, all."""
        reader = _Reader()
        self._readers.add(reader)
        try:
            while not self._ended:
                try:
                    async with asyncio.timeout(ALIVE_S):
                        await reader.woken.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                if self._ended:
                    return
                reader.woken.clear()
                kinds, reader.kinds = sorted(reader.kinds), set()
                yield b"data: " + json.dumps({"changed": kinds}).encode() + b"\n\n"
                await asyncio.sleep(PAUSE_S)
        finally:
            self._readers.discard(reader)


class _Reader:
    def __init__(self) -> None:
        self.kinds = set(KINDS)
        self.woken = asyncio.Event()
        self.woken.set()
