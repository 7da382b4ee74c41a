"""Events: what has happened in the server, as typed values, told to whoever listens.

A listener is a plain function that notes what it is told and returns at once; whoever has more to do keeps a queue of
its own. A listener that raises is logged, and hurts neither the one who tells nor the other listeners.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from wire.messages import JobFinished

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name)."""


class DeclarationChanged(Struct, frozen=True):
    """What is declared has changed, and is in force: these were put, and those, by their ids or names, deleted.

    `moved`: the hosts that should hold another set now.
    """

    schedules: Sequence[Key] = ()
    repositories: Sequence[Key] = ()
    hosts: Sequence[str] = ()
    deleted_schedules: Sequence[str] = ()
    deleted_repositories: Sequence[str] = ()
    deleted_hosts: Sequence[str] = ()
    moved: Sequence[str] = ()


class HostConnected(Struct, frozen=True):
    """A host said hello, and can be reached."""

    host: str


class HostDisconnected(Struct, frozen=True):
    """A host's connection is over. `last_heard`: when anything last came from it."""

    host: str
    last_heard: datetime


class DuplicateAgent(Struct, frozen=True):
    """A second agent of a host was refused, or was not seen again since."""

    host: str


class HostAcked(Struct, frozen=True):
    """A host said what it holds. `seconds`: how long after the push that it proves to hold; None for any other ack."""

    host: str
    version: int
    seconds: float | None = None


class RecordedJob(Struct, frozen=True):
    """A job that is stored. `due`: its due time, None for one that somebody asked for; `missed`: due times it stands
    for besides."""

    job_id: str
    host: str
    due: datetime | None
    missed: int
    created_at: datetime


class JobsRecorded(Struct, frozen=True):
    """Jobs are stored, each for the first time."""

    jobs: Sequence[RecordedJob]


class FireRefused(Struct, frozen=True):
    """A due time that a host fired has no job of its own. `reason`: a RefusalReason."""

    host: str
    schedule_id: str
    reason: str


class JobsChanged(Struct, frozen=True):
    """Jobs have begun, or wait for their next attempt."""

    job_ids: Sequence[str]


class AttemptEnded(Struct, frozen=True):
    """An attempt of a job ended: `end`. `over`: it was the last one, and so the job is over."""

    job_id: str
    host: str
    schedule_id: str
    kind: str
    end: JobFinished
    over: bool


class RepositoryHealthChanged(Struct, frozen=True):
    """What is known of a repository's health is not what it was."""

    repository_id: str


class ClockSetBack(Struct, frozen=True):
    """The server's clock was set back, to `now`: what it said before is not to hide what is wrong."""

    now: datetime


class ControllerReported(Struct, frozen=True):
    """A controller said how it is."""

    name: str


Event = (
    DeclarationChanged
    | HostConnected
    | HostDisconnected
    | DuplicateAgent
    | HostAcked
    | JobsRecorded
    | FireRefused
    | JobsChanged
    | AttemptEnded
    | RepositoryHealthChanged
    | ClockSetBack
    | ControllerReported
)
Listener = Callable[[Event], None]


class Events:
    """Tells every listener of each event, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Have a listener told of all events from now on."""
        self._listeners.append(listener)

    def publish(self, event: Event) -> None:
        """Tell of an event."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("event not noted by a listener", extra={"event": type(event).__name__})
