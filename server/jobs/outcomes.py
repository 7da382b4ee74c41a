"""The last outcome of each Schedule on each host, and the health of each repository, kept in memory as jobs end."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from server.events import AttemptEnded, ClockSetBack, DeclarationChanged, Event
from server.store.tables import GOOD
from wire.messages import JobFinished

REPOSITORY_REASONS = frozenset({"WrongPassword", "NoRepository", "Locked", "VerificationFailed"})
"""Reasons for which a job failed that concern its repository, and so every job on it."""
MAX_WHY = 256
"""Maximum characters kept of why a job did not succeed."""


EARLIEST = datetime.min.replace(tzinfo=UTC)
"""When a job counts as recorded whose recorded time lies in the future."""


class LastOutcome(NamedTuple):
    """The end of a Schedule's last job on a host. `succeeded_at`: the end of the last one that succeeded, or None.

    `why`: as the function `why` returns it. `created_at`, `job_id`: of that job.
    """

    status: str
    finished_at: datetime
    succeeded_at: datetime | None
    why: str = ""
    created_at: datetime = EARLIEST
    job_id: str = ""


class RepositoryFailure(NamedTuple):
    """Why a job could not use its repository. `reason`: one of REPOSITORY_REASONS; `message`: the job's error."""

    reason: str
    message: str
    host: str
    at: datetime


def why(end: JobFinished) -> str:
    """Why a job did not fully succeed, in one line: its reason or status, and its error.

    For a warning, the error alone, which says what was left undone; empty for a success.
    """
    error = " ".join(end.error.split())
    if end.status in GOOD:
        return error[:MAX_WHY]
    return ": ".join(it for it in (end.reason or end.status, error) if it)[:MAX_WHY]


class Standing(NamedTuple):
    """How a Schedule's last jobs on some hosts ended.

    `failed`, `warned`: the hosts whose last job did. `late`: those without a recent success. `never`: those on which
    none ever succeeded; `oldest_success`: of the last successes on the others, the oldest one.
    """

    failed: list[str]
    warned: list[str]
    late: list[str]
    never: list[str]
    oldest_success: datetime | None

    @property
    def never_succeeded(self) -> int:
        """On how many hosts no job ever succeeded."""
        return len(self.never)


class Outcomes:
    """The last outcome of each Schedule on each host. Jobs of no Schedule do not count.

    The last job is the one that was recorded last, in whatever order jobs end and ends are heard of: so it is the same
    on each server, and after a start.
    """

    def __init__(self) -> None:
        self._last: dict[str, dict[str, LastOutcome]] = {}
        # Of the same: when jobs last succeeded, and the hosts whose last job was no full success. With these, the time
        # for a schedule on which nothing is wrong is that of a comparison of sets, not of a loop over its hosts.
        self._succeeded: dict[str, dict[str, datetime]] = {}
        self._imperfect: dict[str, dict[str, str]] = {}

    def on_event(self, event: Event) -> None:
        """Note the ends of jobs, drop what is deleted, and correct times when the clock was wrong."""
        if isinstance(event, AttemptEnded) and event.final and event.schedule_id:
            end = event.end
            before = self._last.get(event.schedule_id, {}).get(event.host)
            known = before.succeeded_at if before else None
            succeeded_at = max(known or end.finished_at, end.finished_at) if end.status in GOOD else known
            if before and (before.created_at, before.job_id) > (event.created_at, event.job_id):
                self.remember(event.schedule_id, event.host, before._replace(succeeded_at=succeeded_at))
                return
            last = LastOutcome(end.status, end.finished_at, succeeded_at, why(end), event.created_at, event.job_id)
            self.remember(event.schedule_id, event.host, last)
        elif isinstance(event, ClockSetBack):
            self.clock_set_back(event.now)
        elif isinstance(event, DeclarationChanged):
            for schedule_id in event.deleted_schedules:
                self.forget(schedule_id=schedule_id)
            for host in event.deleted_hosts:
                self.forget(host=host)

    def remember(self, schedule_id: str, host: str, last: LastOutcome) -> None:
        """Set the last outcome of a schedule on a host."""
        self._last.setdefault(schedule_id, {})[host] = last
        if last.succeeded_at is not None:
            self._succeeded.setdefault(schedule_id, {})[host] = last.succeeded_at
        if last.status != "succeeded":
            self._imperfect.setdefault(schedule_id, {})[host] = last.status
        elif imperfect := self._imperfect.get(schedule_id):
            imperfect.pop(host, None)

    def clock_set_back(self, now: datetime) -> None:
        """The clock was wrong, and shows `now`: what ended later ended now."""
        for schedule_id, hosts in self._last.items():
            for host, last in list(hosts.items()):
                succeeded_at = last.succeeded_at and min(last.succeeded_at, now)
                created_at = last.created_at if last.created_at <= now else EARLIEST
                finished_at = min(last.finished_at, now)
                right = last._replace(finished_at=finished_at, succeeded_at=succeeded_at, created_at=created_at)
                self.remember(schedule_id, host, right)

    def forget(self, *, schedule_id: str = "", host: str = "") -> None:
        """Drop the outcomes of a Schedule, of a host, or of both."""
        for by_schedule in (self._last, self._succeeded, self._imperfect):
            by_schedule.pop(schedule_id, None)
            if host:
                for hosts in by_schedule.values():
                    hosts.pop(host, None)

    def failed(self, schedule_id: str, hosts: Collection[str]) -> list[str]:
        """The hosts, of these, on which the Schedule's last job failed. Any thread may ask."""
        outcomes = list(self._last.get(schedule_id, {}).items())
        return sorted(host for host, last in outcomes if last.status not in GOOD and host in hosts)

    def warned(self, schedule_id: str, hosts: Collection[str]) -> list[str]:
        """The hosts, of these, on which the Schedule's last job ended with a warning. Any thread may ask."""
        outcomes = list(self._last.get(schedule_id, {}).items())
        return sorted(host for host, last in outcomes if last.status == "warning" and host in hosts)

    def standing(self, schedule_id: str, hosts: frozenset[str], since: datetime) -> Standing:
        """How the Schedule's last jobs on these hosts ended, and which of them have had no success since then."""
        succeeded = self._succeeded.get(schedule_id, {})
        failed: list[str] = []
        warned: list[str] = []
        for host, status in self._imperfect.get(schedule_id, {}).items():
            if host in hosts:
                (warned if status in GOOD else failed).append(host)
        never = list(hosts.difference(succeeded))
        its = succeeded
        if len(hosts) - len(never) != len(succeeded):  # some have the schedule no more
            its = {host: succeeded[host] for host in hosts.intersection(succeeded)}
        oldest = min(its.values(), default=None)
        late = list(never)
        if oldest is not None and oldest < since:
            late += [host for host, at in its.items() if at < since]
        return Standing(failed, warned, late, never, oldest)

    def has_ended(self, schedule_id: str, host: str) -> bool:
        """Whether any job of the Schedule on a host has ended."""
        return host in self._last.get(schedule_id, ())

    def last(self, schedule_id: str, host: str) -> LastOutcome | None:
        """The end of the Schedule's last job on a host; None if none has ended."""
        return self._last.get(schedule_id, {}).get(host)

    def why(self, schedule_id: str, host: str) -> str:
        """Why the Schedule's last job on a host did not fully succeed; empty if it did, or if there was none."""
        last = self._last.get(schedule_id, {}).get(host)
        return "" if last is None else last.why

    def succeeded_at(self, schedule_id: str, host: str) -> datetime | None:
        """When the Schedule's last successful job on a host ended; None if there was none. Any thread may ask."""
        last = self._last.get(schedule_id, {}).get(host)
        return None if last is None else last.succeeded_at


class Health:
    """Why each repository could not be used last, and when it was last verified.

    A failure lasts until a later job of the same host on the same repository succeeds, in whatever order ends are heard
    of.
    """

    def __init__(self) -> None:
        self._failures: dict[str, dict[str, RepositoryFailure]] = {}  # by host, the newest last
        self._last: dict[str, dict[str, tuple[datetime, str]]] = {}  # by host, the end that counts: its time, its id
        self._verified: dict[str, datetime] = {}

    def attempt_ended(self, repository: str, host: str, kind: str, end: JobFinished) -> bool:
        """Note the end of an attempt on a repository. Returns whether the repository's health changed."""
        before = self.problem(repository), self.verified(repository)
        is_good = end.status in GOOD
        if is_good and kind == "verify":
            self.remember_verified(repository, end.finished_at)
        # What kept a copy from its work may be wrong with the repository that it reads from.
        if is_good or (end.reason in REPOSITORY_REASONS and kind != "copy"):
            last, at = self._last.setdefault(repository, {}), (end.finished_at, end.job_id)
            if at >= last.get(host, at):
                last[host] = at
                self._failures.get(repository, {}).pop(host, None)
                if not is_good:
                    self._add(repository, RepositoryFailure(end.reason, end.error, host, end.finished_at))
        return before != (self.problem(repository), self.verified(repository))

    def _add(self, repository: str, failure: RepositoryFailure) -> None:
        failures = self._failures.setdefault(repository, {})
        newest = next(reversed(failures.values()), None)
        failures[failure.host] = failure
        if newest is not None and newest.at > failure.at:
            by_time = sorted(failures.values(), key=lambda it: it.at)
            self._failures[repository] = {it.host: it for it in by_time}

    def remember_verified(self, repository: str, at: datetime) -> None:
        """Set when a job verified the repository, unless a later time is known."""
        self._verified[repository] = max(at, self._verified.get(repository, at))

    def clock_set_back(self, now: datetime) -> None:
        """The clock was wrong, and shows `now`: what was verified later was verified now."""
        self._verified = {repository: min(at, now) for repository, at in self._verified.items()}
        for last in self._last.values():
            last.update({host: (min(at, now), job_id) for host, (at, job_id) in last.items()})

    def forget(self, repository: str) -> None:
        """Drop what is known of a repository."""
        self._failures.pop(repository, None)
        self._last.pop(repository, None)
        self._verified.pop(repository, None)

    def problem(self, repository: str) -> RepositoryFailure | None:
        """The newest failure that lasts."""
        return next(reversed(self._failures.get(repository, {}).values()), None)

    def verified(self, repository: str) -> datetime | None:
        """When a job of kind verify last succeeded; None if none did."""
        return self._verified.get(repository)
