"""How each schedule's runs went last on each host, and what is wrong with each repository: kept as jobs end, so that
nobody has to search the jobs."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from server.events import AttemptEnded, ClockSetBack, DeclarationChanged, Event
from server.store.tables import GOOD
from wire.messages import JobFinished

OF_REPOSITORY = frozenset({"WrongPassword", "NoRepository", "Locked", "VerificationFailed"})
"""The reasons that say something of the repository, not of the job alone."""


MAX_WHY = 256
"""Characters that are kept of why a run did not go well."""


class Last(NamedTuple):
    """How the last run that ended went, and when one last went well. `why`: in words, what was wrong with it."""

    status: str
    finished_at: datetime
    succeeded_at: datetime | None
    why: str = ""


class Problem(NamedTuple):
    """Why a repository could not be used: a JobReason, the job's error, the host and the time."""

    reason: str
    message: str
    host: str
    at: datetime


def why(end: JobFinished) -> str:
    """Why a job did not go well: its reason, or else how it ended, and what was said of it. Of a warning, what it left
    undone; empty for a success."""
    said = " ".join(end.error.split())
    if end.status in GOOD:
        return said[:MAX_WHY]
    return ": ".join(it for it in (end.reason or end.status, said) if it)[:MAX_WHY]


class Outcomes:
    """The last outcome by schedule and host. Jobs that are of no schedule do not count."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, Last]] = {}

    def ended(self, schedule_id: str, host: str, end: JobFinished) -> None:
        """A job has ended."""
        if schedule_id:
            before = self._last.setdefault(schedule_id, {}).get(host)
            known = before.succeeded_at if before else None
            succeeded_at = max(known or end.finished_at, end.finished_at) if end.status in GOOD else known
            self._last[schedule_id][host] = Last(end.status, end.finished_at, succeeded_at, why(end))

    def on_event(self, event: Event) -> None:
        """Note how a job ended that is over, and forget what is deleted."""
        if isinstance(event, AttemptEnded) and event.final:
            self.ended(event.schedule_id, event.host, event.end)
        elif isinstance(event, ClockSetBack):
            self.clock_set_back(event.now)
        elif isinstance(event, DeclarationChanged):
            for schedule_id in event.deleted_schedules:
                self.forget(schedule_id=schedule_id)
            for host in event.deleted_hosts:
                self.forget(host=host)

    def remember(self, schedule_id: str, host: str, last: Last) -> None:
        """What is known from before the server began."""
        self._last.setdefault(schedule_id, {})[host] = last

    def clock_set_back(self, now: datetime) -> None:
        """Nothing has ended after `now`: the clock that said so was wrong."""
        for hosts in self._last.values():
            for host, it in hosts.items():
                good = it.succeeded_at and min(it.succeeded_at, now)
                hosts[host] = it._replace(finished_at=min(it.finished_at, now), succeeded_at=good)

    def forget(self, *, schedule_id: str = "", host: str = "") -> None:
        """A schedule or a host is gone."""
        self._last.pop(schedule_id, None)
        if host:
            for hosts in self._last.values():
                hosts.pop(host, None)

    def failed(self, schedule_id: str, hosts: Collection[str]) -> list[str]:
        """Those of these hosts on which the schedule's last run failed. Any thread may ask."""
        last = list(self._last.get(schedule_id, {}).items())
        return sorted(host for host, it in last if it.status not in GOOD and host in hosts)

    def warned(self, schedule_id: str, hosts: Collection[str]) -> list[str]:
        """Those of these hosts on which the schedule's last run went well, but left something undone. Any thread may
        ask."""
        last = list(self._last.get(schedule_id, {}).items())
        return sorted(host for host, it in last if it.status == "warning" and host in hosts)

    def why(self, schedule_id: str, host: str) -> str:
        """What was wrong with the schedule's last run on a host, in words."""
        last = self._last.get(schedule_id, {}).get(host)
        return "" if last is None else last.why

    def succeeded(self, schedule_id: str) -> dict[str, datetime]:
        """When a schedule last went well on each host where it did. Any thread may ask."""
        found = list(self._last.get(schedule_id, {}).items())
        return {host: last.succeeded_at for host, last in found if last.succeeded_at is not None}


class Health:
    """What each repository was last found to be like, by each host: a problem lasts until a job of that host, on that
    repository, goes well."""

    def __init__(self) -> None:
        self._problems: dict[str, dict[str, Problem]] = {}
        self._verified: dict[str, datetime] = {}

    def told(self, repository: str, host: str, kind: str, end: JobFinished) -> bool:
        """An attempt of a job on a repository has ended; whether that changes what is known of it."""
        before = self.problem(repository), self.verified(repository)
        if end.status in GOOD:
            self._problems.get(repository, {}).pop(host, None)
            if kind == "verify":
                self.remember_verified(repository, end.finished_at)
        elif end.reason in OF_REPOSITORY:
            problem = Problem(end.reason, end.error, host, end.finished_at)
            problems = self._problems.setdefault(repository, {})
            problems.pop(host, None)
            problems[host] = problem  # the last in order is the newest
        return before != (self.problem(repository), self.verified(repository))

    def remember_verified(self, repository: str, at: datetime) -> None:
        """It was verified then, and maybe later."""
        self._verified[repository] = max(at, self._verified.get(repository, at))

    def clock_set_back(self, now: datetime) -> None:
        """Nothing was verified after `now`: the clock that said so was wrong."""
        self._verified = {repository: min(at, now) for repository, at in self._verified.items()}

    def forget(self, repository: str) -> None:
        """A repository is gone."""
        self._problems.pop(repository, None)
        self._verified.pop(repository, None)

    def problem(self, repository: str) -> Problem | None:
        """The problem that was told last, of those that last."""
        return next(reversed(self._problems.get(repository, {}).values()), None)

    def verified(self, repository: str) -> datetime | None:
        """When what is in it was last restored and compared, all well."""
        return self._verified.get(repository)
