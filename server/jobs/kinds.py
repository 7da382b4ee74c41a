"""What a job's kind says about locks, the concurrency limit of a repository, and the lane that a job waits in."""

from datetime import datetime, timedelta
from typing import NamedTuple

from wire.messages import CommandRun

EXCLUSIVE = frozenset({"forget", "prune", "check"})
"""Kinds for which restic locks the whole repository (restic: doc/design, "Locks")."""
READ_KINDS = frozenset({"snapshots", "ls", "find"})
"""Kinds that list snapshots or files. Their output answers a request that waits for it, and is not stored."""
UNLIMITED = READ_KINDS | {"unlock"}
"""Kinds that bypass the lane because restic takes no lock for them."""
DEFAULT_TIMEOUT = timedelta(days=1)
"""Time limit of a job whose command has none, such as a restore."""
HANG_GRACE = timedelta(minutes=15)
"""How long a job may exceed its time limit before it hangs: hosts wait for locks, and restic ends slowly."""


class ConcurrencyLimit(NamedTuple):
    """How many jobs may use a repository at once; None for any number.

    `per_host`: each host whose name is in the repository's URL has a lane, and this limit, of its own.
    """

    limit: int | None = None
    per_host: bool = False


def repository_of(command: CommandRun) -> str:
    """The id of the repository that a command uses."""
    return command.repository.partition("/")[0]


def source_host(command: CommandRun, host: str) -> str:
    """The host whose name fills `{host}` in the repository's URL; `host`, the job's own, by default."""
    return command.repository.partition("/")[2] or host


def lane_of(command: CommandRun, host: str, limit: ConcurrencyLimit) -> str:
    """The key of a job's lane: its repository, or the part of it that belongs to a host; empty for UNLIMITED kinds."""
    if command.kind in UNLIMITED:
        return ""
    return _lane(repository_of(command), source_host(command, host), limit)


def from_lane_of(command: CommandRun, host: str, limit: ConcurrencyLimit) -> str:
    """The key of the lane of the repository that a copy reads from; empty for other jobs. `limit`: its own."""
    return _lane(command.from_repository, host, limit) if command.from_repository else ""


def _lane(repository: str, host: str, limit: ConcurrencyLimit) -> str:
    return f"{repository}/{host}" if limit.per_host else repository


def time_limit(command: CommandRun) -> timedelta:
    """How long an attempt may run."""
    return DEFAULT_TIMEOUT if command.timeout_s is None else timedelta(seconds=command.timeout_s)


def hangs_at(command: CommandRun, accepted_at: datetime) -> datetime:
    """When an attempt that its host accepted then begins to count as hanging."""
    return accepted_at + time_limit(command) + HANG_GRACE
