"""What the connected hosts of this server are at: a copy of the open attempts that each was sent or has.

The database decides; this copy says at once, without asking it, whose a message is, how far a job is, and what opens
the repositories of jobs that belong to no schedule. It is filled by hellos and by what is sent, and goes with the
connection.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from msgspec import Struct

from server.jobs.kinds import repository_of, source_host
from wire.messages import CommandRun, JobProgress


class Attempt(Struct, eq=False):
    """An attempt of a job. `wire_id`: what its host calls it. `log_is_full`: whether no more lines are kept.
    `told_lines`: how many lines of its output other servers were told. `has_counted`: whether it told what is in its
    repository."""

    job_id: str
    wire_id: str
    host: str
    command: CommandRun
    progress: JobProgress | None = None
    progress_at: datetime | None = None
    log_is_full: bool = False
    told_lines: int = 0
    has_counted: bool = False

    def take_progress(self, progress: JobProgress, now: datetime) -> None:
        """Keep what its host reported."""
        self.progress, self.progress_at = progress, now

    def note_log(self, is_full: bool) -> None:
        """Lines of its log were stored, after which it may be full."""
        self.log_is_full = is_full

    def tell_lines(self, lines: Sequence[str], most: int) -> Sequence[str]:
        """Of further lines of its output, those that other servers are told now, up to `most` in all."""
        told = lines[: most - self.told_lines]
        self.told_lines += len(told)
        return told

    def counts_first(self) -> bool:
        """It tells what is in its repository. Returns whether it does so for the first time."""
        known, self.has_counted = self.has_counted, True
        return not known

    def take_command(self, command: CommandRun) -> CommandRun:
        """Keep a command that is sent in place of its last one, which is returned."""
        known, self.command = self.command, command
        return known

    @property
    def number(self) -> int:
        """Which attempt of its job it is, from 1 on."""
        return int(self.wire_id.partition(".")[2] or 1)

    @property
    def repository(self) -> str:
        """The id of its repository."""
        return repository_of(self.command)

    @property
    def source_host(self) -> str:
        """The host whose name is in the repository's URL; "" for its own."""
        named = source_host(self.command, self.host)
        return "" if named == self.host else named


class ActiveAttempts:
    """The open attempts of connected hosts."""

    def __init__(self) -> None:
        self._of_host: dict[str, dict[str, Attempt]] = {}
        self._by_job: dict[str, Attempt] = {}

    def add(self, attempt: Attempt) -> None:
        """A host was sent an attempt, or said that it has it; an earlier one of the same job is over."""
        known = self._by_job.get(attempt.job_id)
        if known is None or known.wire_id != attempt.wire_id:
            self._by_job[attempt.job_id] = self._of_host.setdefault(attempt.host, {})[attempt.job_id] = attempt

    def remove(self, job_id: str) -> None:
        """A job's attempt is over."""
        if (attempt := self._by_job.pop(job_id, None)) is not None:
            its = self._of_host[attempt.host]
            del its[job_id]
            if not its:
                del self._of_host[attempt.host]

    def forget(self, host: str) -> None:
        """A host's connection is gone."""
        for job_id in self._of_host.pop(host, ()):
            del self._by_job[job_id]

    def is_of_another_host(self, host: str, wire_id: str) -> bool:
        """Whether an id names an open job of another host than this one."""
        attempt = self._of(wire_id)
        return attempt is not None and attempt.host != host

    def find(self, host: str, wire_id: str) -> Attempt | None:
        """A host's open attempt of this id."""
        attempt = self._of(wire_id)
        return attempt if attempt is not None and (attempt.host, attempt.wire_id) == (host, wire_id) else None

    def _of(self, wire_id: str) -> Attempt | None:
        return self._by_job.get(wire_id.partition(".")[0])

    def get(self, job_id: str) -> Attempt | None:
        """The open attempt of a job."""
        return self._by_job.get(job_id)

    def all(self) -> list[Attempt]:
        """All open attempts."""
        return list(self._by_job.values())

    def of_schedules(self, schedule_ids: Collection[str]) -> list[Attempt]:
        """The open attempts of these schedules' jobs."""
        return [it for it in self._by_job.values() if it.command.schedule_id in schedule_ids]

    def wire_ids(self, host: str) -> Collection[str]:
        """A host's open attempts, by what it calls them."""
        return {it.wire_id for it in self._of_host.get(host, {}).values()}

    def of_no_schedule(self, host: str) -> Iterable[Attempt]:
        """A host's attempts of jobs that belong to no schedule, in the order in which they were sent."""
        its = self._of_host.get(host)
        return () if its is None else [it for it in its.values() if not it.command.schedule_id]
