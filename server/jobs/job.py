"""A job that has not ended, the concurrency limit of a repository, and what a job's kind says about locks."""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from wire.messages import CommandRun, JobProgress

EXCLUSIVE = frozenset({"forget", "prune", "check"})
"""Kinds for which restic locks the whole repository (restic: doc/design, "Locks")."""
READ_KINDS = frozenset({"snapshots", "ls"})
"""Kinds that list snapshots or files. Their output answers a request that waits for it, and is not stored."""
UNLIMITED = READ_KINDS | {"unlock"}
"""Kinds that bypass the lane because restic takes no lock for them."""
DEFAULT_TIMEOUT = timedelta(days=1)
"""Time limit of a job whose command has none, such as a restore."""
HANG_GRACE = timedelta(minutes=15)
"""How long a job may exceed its time limit before it hangs: hosts wait for locks, and restic ends slowly."""

State = Literal["waiting", "sent", "running"]
Position = tuple[datetime, str]
"""The order of jobs in a lane: `Job.since`, then the job's id."""


class ConcurrencyLimit(NamedTuple):
    """How many jobs may use a repository at once; None for any number.

    `per_host`: each host whose name is in the repository's URL has a lane, and this limit, of its own.
    """

    limit: int | None = None
    per_host: bool = False


class Job(Struct, eq=False):
    """A job that has not ended.

    `since`: when it was recorded, or when its next attempt is due.
    `serial`: it waits until earlier jobs of its Schedule on its host have ended.
    `start_by`: the first attempt fails if it cannot start before this time; None for no deadline.
    `cancelled`: why the job was cancelled; empty otherwise.
    `recorded`: whether the job is stored.
    `deferred`: it is out of its lane because its next attempt is not due, or because it missed `start_by`.
    `lane`: the key of its lane.
    `queued`: whether it waits in its lane.
    `progress`: what its host last reported, at `progress_at`.
    `running_since`: when its host accepted the current attempt; None before that.
    `log_is_full`: whether further lines of its log are dropped.
    """

    command: CommandRun
    host: str
    since: datetime
    serial: bool = True
    start_by: datetime | None = None
    attempt: int = 1
    state: State = "waiting"
    cancelled: str = ""
    recorded: bool = True
    deferred: bool = False
    lane: str = ""
    queued: bool = False
    progress: JobProgress | None = None
    running_since: datetime | None = None
    progress_at: datetime | None = None
    log_is_full: bool = False

    @property
    def id(self) -> str:
        """The job's id, the same for all attempts."""
        return self.command.job_id

    @property
    def wire_id(self) -> str:
        """The id of the current attempt on the wire: `ID` for the first, `ID.N` for a later one."""
        return self.id if self.attempt == 1 else f"{self.id}.{self.attempt}"

    @property
    def to_send(self) -> CommandRun:
        """The command of the current attempt."""
        return self.command if self.attempt == 1 else msgspec.structs.replace(self.command, job_id=self.wire_id)

    @property
    def repository(self) -> str:
        """The id of its repository."""
        return self.command.repository.partition("/")[0]

    @property
    def source_host(self) -> str:
        """The host whose name fills `{host}` in the repository's URL; the job's own host by default."""
        return self.command.repository.partition("/")[2] or self.host

    @property
    def exclusive(self) -> bool:
        """Whether no other job may use the repository at the same time."""
        return self.command.kind in EXCLUSIVE

    @property
    def time_limit(self) -> timedelta:
        """How long an attempt may run."""
        return DEFAULT_TIMEOUT if self.command.timeout_s is None else timedelta(seconds=self.command.timeout_s)

    @property
    def hangs_at(self) -> datetime | None:
        """When the current attempt begins to count as hanging; None while it does not run."""
        return None if self.running_since is None else self.running_since + self.time_limit + HANG_GRACE

    def hangs(self, now: datetime) -> bool:
        """Whether its host should have stopped the current attempt by now."""
        return self.hangs_at is not None and self.hangs_at < now

    @property
    def position(self) -> Position:
        """Its position in the lane."""
        return self.since, self.id

    def take_progress(self, progress: JobProgress, now: datetime) -> None:
        """Keep what its host reported."""
        self.progress, self.progress_at = progress, now

    def note_log(self, is_full: bool) -> None:
        """Lines of its log were stored, after which it may be full."""
        self.log_is_full = is_full
