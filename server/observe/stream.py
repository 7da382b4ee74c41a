"""The stream of changes: server-sent events that name the kinds of objects which changed, for controllers and pages.

A message says only that objects of a kind have changed; the reader gets them by REST. So a slow reader loses no change:
all changes since its last message are merged into the next one.
"""

import asyncio
import json
from collections.abc import AsyncIterator

from server.events import (
    AlertsDeclared,
    AttemptEnded,
    ClockSetBack,
    ControllerReported,
    DeclarationChanged,
    DuplicateAgent,
    Event,
    FireRefused,
    GatesChanged,
    HostAcked,
    HostConnected,
    HostDisconnected,
    HostDraining,
    JobsChanged,
    JobsRecorded,
    JobsSent,
    LimitChanged,
    NotificationsChanged,
    RepositoryCounted,
    RepositoryHealthChanged,
    ScheduleResumed,
)

KINDS = ("schedules", "repositories", "hosts", "runs", "alerts")
PAUSE_S = 0.5
"""The least seconds between two messages to one reader."""
ALIVE_S = 15.0
"""Seconds without a change after which a reader gets a comment, as a sign that the stream is alive."""

_CHANGED = {
    HostConnected: ("hosts", "schedules"),  # a Schedule is Ready when the hosts that are connected hold it
    HostDraining: ("hosts",),
    HostDisconnected: ("hosts", "schedules"),
    DuplicateAgent: ("hosts",),
    HostAcked: ("hosts", "schedules"),
    JobsRecorded: ("runs", "schedules"),
    JobsSent: (),
    JobsChanged: ("runs",),
    ScheduleResumed: ("schedules", "runs"),
    AttemptEnded: ("runs", "schedules", "repositories"),
    RepositoryHealthChanged: ("repositories",),
    RepositoryCounted: ("repositories",),
    ClockSetBack: ("schedules", "repositories", "runs"),
    ControllerReported: (),
    AlertsDeclared: ("alerts",),
    NotificationsChanged: ("alerts",),
    FireRefused: (),
    LimitChanged: (),
    GatesChanged: (),
}
"""Which kinds of objects REST shows differently after an event of each type."""


class ChangeStream:
    """Sends which kinds have changed to any number of readers."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._ended = False

    def on_event(self, event: Event) -> None:
        """Note the kinds that an event changes, for every reader."""
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
        """End all streams, so that the server can stop."""
        self._ended = True
        self._changed()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events (HTML Living Standard, section 9.2) with the changed kinds. The first has all kinds."""
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
    """The kinds that changed since the last message to one reader."""

    def __init__(self) -> None:
        self.kinds = set(KINDS)
        self.woken = asyncio.Event()
        self.woken.set()
