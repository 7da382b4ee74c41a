"""The types of rows that statements take and return. Fields are named as columns are."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from wire.messages import JobEnd, JobFinished

Row = dict[str, Any]
"""A row by column name, as queries return it: aware datetimes, decoded JSON columns."""


Pair = tuple[str, str]
"""(schedule id, host)"""


class Joined(NamedTuple):
    """When a host got a schedule. There is no row where it did when one of the two was created."""

    schedule_id: str
    host: str
    since: datetime


class Met(NamedTuple):
    """A host that a schedule with runOnJoin selects. `due`: whether it is to run that once, unless it is known."""

    schedule_id: str
    host: str
    due: bool


class Timing(NamedTuple):
    """When a schedule is due. Due times up to and including `since` do not count."""

    since: datetime
    cron: str
    time_zone: str
    spread_s: int


class JobRow(NamedTuple):
    """A job to record. `command`: the JSON of its command.run payload. The queue's columns: see `tables.Job`."""

    id: str
    host: str
    kind: str
    actor_kind: str
    actor_id: str
    scheduled_id: str | None
    scheduled_at: datetime | None
    missed: int
    command: str
    created_at: datetime
    lane: str = ""
    queued_at: datetime | None = None
    start_by: datetime | None = None
    exclusive: bool = False
    serial: bool = False
    sent: bool = False
    holds: bool = False
    ready: bool = False
    status: str = "pending"
    deferred: bool = False
    not_before: datetime | None = None
    from_lane: str = ""

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes in which it needs a slot."""
        return (self.lane, self.from_lane) if self.from_lane else (self.lane,)


class HostRow(NamedTuple):
    """A host. What its agent reports is written by `hosts.host_hello`, `hosts.host_acks` and `hosts.host_left_out`."""

    name: str
    labels: Mapping[str, str]
    created_at: datetime
    since: datetime
    desired_version: int = 0
    desired_digest: str = ""
    applied_version: int = 0
    applied_digest: str = ""
    agent_version: str = ""
    left_out: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] = {}
    drained_by: str = ""
    drains: bool = False


class EnrolmentRow(NamedTuple):
    """A host's newest enrolment token, hashed. `key_hash`: of the key that it registered; empty while it is unused."""

    host: str
    token_hash: str
    expires_at: datetime
    key_hash: str = ""


class HostKeyRow(NamedTuple):
    """The key by which a host outside a cluster authenticates, hashed."""

    host: str
    key_hash: str
    created_at: datetime


class ScheduleRow(NamedTuple):
    """An accepted schedule. `earlier`: its timings before the current one, newest first. `ping`: sealed."""

    id: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    generation: int
    created_at: datetime
    since: datetime
    updated_at: datetime
    enabled_since: datetime | None = None
    earlier: tuple[Timing, ...] = ()
    ping: str | None = None


class RepositoryRow(NamedTuple):
    """An accepted repository. `credentials`: sealed by `Vault.seal`, and not in its repr."""

    id: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    generation: int
    created_at: datetime
    updated_at: datetime
    credentials: str | None = None

    def __repr__(self) -> str:
        return f"RepositoryRow(id={self.id!r}, namespace={self.namespace!r}, name={self.name!r})"


class AlertRow(NamedTuple):
    """An accepted Alert. `credentials`: sealed by `Vault.seal`, and not in its repr."""

    id: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    generation: int
    created_at: datetime
    updated_at: datetime
    credentials: str | None = None

    def __repr__(self) -> str:
        return f"AlertRow(id={self.id!r}, namespace={self.namespace!r}, name={self.name!r})"


class AuditRow(NamedTuple):
    """Who did what to which object."""

    at: datetime
    actor_kind: str
    actor_id: str
    action: str
    object_kind: str
    object_name: str
    detail: Mapping[str, Any]


class Retry(NamedTuple):
    """The failed attempt of a job, and the earliest time of the next one."""

    end: JobFinished
    attempt: int
    not_before: datetime


class LastEnd(NamedTuple):
    """The last end of a schedule's jobs on a host, and when the last one ended that succeeded.

    `created_at`: when the job that ended was recorded.
    """

    schedule_id: str
    host: str
    status: JobEnd
    finished_at: datetime
    succeeded_at: datetime | None
    reason: str | None
    error: str | None
    created_at: datetime
    job_id: str


class Loaded(NamedTuple):
    """All that a server needs in memory when it starts. `revision`: that of the newest change in it."""

    hosts: list[HostRow]
    schedules: list[ScheduleRow]
    repositories: list[RepositoryRow]
    last_ends: list[LastEnd]
    joined: list[Joined]
    revision: int
