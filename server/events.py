"""Events: typed values for what has happened in the server, and `Events`, which passes them to listeners.

A listener is a plain function. It records the event and returns at once; slow work belongs in a queue of its own. An
exception in a listener is logged. It reaches neither the publisher nor the other listeners.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from wire.messages import JobFinished

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name)."""


class ChangeTiming(Struct, frozen=True):
    """When a change that was made on this server began, was planned, and was stored."""

    began_at: datetime
    planned_at: datetime
    stored_at: datetime


class DeclarationChanged(Struct, frozen=True):
    """Resources were created, updated or deleted, and the change is in force.

    `deleted_schedules`, `deleted_repositories`: their ids. `hosts_with_new_set`: hosts whose desired set has changed.
    `other_windows`: ids of schedules that have other windows now. `joins`: whether hosts joined that are to run a
    schedule once. `timing`: None for a change that another server made.
    """

    schedules: Sequence[Key] = ()
    repositories: Sequence[Key] = ()
    hosts: Sequence[str] = ()
    deleted_schedules: Sequence[str] = ()
    deleted_repositories: Sequence[str] = ()
    deleted_hosts: Sequence[str] = ()
    hosts_with_new_set: Sequence[str] = ()
    other_windows: Sequence[str] = ()
    joins: bool = False
    timing: ChangeTiming | None = None


class HostConnected(Struct, frozen=True):
    """A host sent its hello, and pushes reach it."""

    host: str


class HostDisconnected(Struct, frozen=True):
    """A host's connection has ended. `last_seen`: when the server last received anything from the host. `session`: the
    number of its hello."""

    host: str
    last_seen: datetime
    session: int = 0


class HostDraining(Struct, frozen=True):
    """A host begins nothing new, and what runs there may have changed."""

    host: str


class DuplicateAgent(Struct, frozen=True):
    """A second agent of a host was refused, or has stopped trying to connect."""

    host: str


class HostAcked(Struct, frozen=True):
    """A host sent an ack. `seconds`: time since the push that it confirms; None when it confirms no push."""

    host: str
    version: int
    seconds: float | None = None


class RecordedJob(Struct, frozen=True):
    """A job that was stored. `due`: its due time; None for a job that a Run or Restore asked for.

    `missed`: how many earlier due times the job stands for.
    """

    job_id: str
    host: str
    due: datetime | None
    missed: int
    created_at: datetime


class JobsRecorded(Struct, frozen=True):
    """New jobs were stored."""

    jobs: Sequence[RecordedJob]


class FireRefused(Struct, frozen=True):
    """A fire got no job of its own. `reason`: a RefusalReason."""

    host: str
    schedule_id: str
    reason: str


class JobsSent(Struct, frozen=True):
    """The commands of jobs that had to wait were sent to their hosts."""

    job_ids: Sequence[str]


class JobsChanged(Struct, frozen=True):
    """Jobs have started, or now wait for their next attempt. `accepted`: whether their hosts have accepted them."""

    job_ids: Sequence[str]
    accepted: bool = False


class ScheduleResumed(Struct, frozen=True):
    """Somebody had a Schedule go on that was paused."""

    schedule_id: str


class AttemptEnded(Struct, frozen=True):
    """An attempt of a job ended. `final`: whether it was the last attempt, so that the job has ended too.

    `repository`: its id. `created_at`: when the job was recorded.
    """

    job_id: str
    host: str
    schedule_id: str
    kind: str
    end: JobFinished
    final: bool
    repository: str
    created_at: datetime


class LimitChanged(Struct, frozen=True):
    """How many jobs may use a repository at once has changed. `lanes_moved`: also whether each host has a lane of its
    own."""

    repository_id: str
    lanes_moved: bool


class GatesChanged(Struct, frozen=True):
    """The limits of gates may have changed, or they are none any more: see `server.jobs.limits`."""

    gates: Sequence[str]


class RepositoryHealthChanged(Struct, frozen=True):
    """A repository's health has changed."""

    repository_id: str


class RepositoryCounted(Struct, frozen=True):
    """A host has counted what is in a repository."""

    repository_id: str


class ClockSetBack(Struct, frozen=True):
    """The server's clock was set back to `now`. Recorded times after `now` are wrong."""

    now: datetime


class ControllerReported(Struct, frozen=True):
    """A controller sent a report."""

    name: str


class AlertsDeclared(Struct, frozen=True):
    """An Alert was created, changed or deleted."""


class NotificationsChanged(Struct, frozen=True):
    """An Alert has told something, or a message of one did or did not arrive."""


Event = (
    DeclarationChanged
    | HostConnected
    | HostDraining
    | HostDisconnected
    | DuplicateAgent
    | HostAcked
    | JobsRecorded
    | FireRefused
    | JobsSent
    | JobsChanged
    | ScheduleResumed
    | AttemptEnded
    | LimitChanged
    | GatesChanged
    | RepositoryHealthChanged
    | RepositoryCounted
    | ClockSetBack
    | ControllerReported
    | AlertsDeclared
    | NotificationsChanged
)
Listener = Callable[[Event], None]


class Events:
    """Passes each event to every listener, in the order in which they subscribed.

    An event happened on this server, or was heard from another that works on the same store.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._everywhere: list[Listener] = []

    def subscribe(self, listener: Listener, *, own_only: bool = False) -> None:
        """Add a listener for all later events. `own_only`: for those alone that happen on this server."""
        self._listeners.append(listener)
        if not own_only:
            self._everywhere.append(listener)

    def publish(self, event: Event) -> None:
        """Pass an event of this server to every listener."""
        _pass(event, self._listeners)

    def publish_heard(self, event: Event) -> None:
        """Pass an event of another server to the listeners that hear of all servers."""
        _pass(event, self._everywhere)


def _pass(event: Event, listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            log.exception("listener failed on an event", extra={"event": type(event).__name__})
