"""How each schedule's runs went last on each host: kept as jobs open and end, so that nobody has to search the jobs."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import NamedTuple

from wire.messages import JobFinished

GOOD = ("succeeded", "warning")
"""The ends after which a snapshot, or what else was asked for, is there."""


class Last(NamedTuple):
    """How the last run that ended went, and when one last went well."""

    status: str
    finished_at: datetime
    succeeded_at: datetime | None


class Outcomes:
    """The last outcome by schedule and host. Jobs that are of no schedule do not count."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, str, str]] = {}
        self._last: dict[str, dict[str, Last]] = {}

    @property
    def open_count(self) -> int:
        """How many jobs have not ended."""
        return len(self._open)

    def opened(self, job_id: str, kind: str, schedule_id: str, host: str) -> None:
        """A job is recorded."""
        self._open[job_id] = (kind, schedule_id, host)

    def ended(self, ends: Iterable[JobFinished]) -> list[tuple[str, str]]:
        """Jobs have ended: those that had not before, as kind and status. An end that is told again changes nothing."""
        new = []
        for end in ends:
            kind, schedule_id, host = self._open.pop(end.job_id, ("", "", ""))
            if kind:
                new.append((kind, str(end.status)))
            if schedule_id:
                before = self._last.setdefault(schedule_id, {}).get(host)
                succeeded_at = end.finished_at if end.status in GOOD else before.succeeded_at if before else None
                self._last[schedule_id][host] = Last(end.status, end.finished_at, succeeded_at)
        return new

    def remember(self, schedule_id: str, host: str, last: Last) -> None:
        """What is known from before the server began."""
        self._last.setdefault(schedule_id, {})[host] = last

    def forget(self, *, schedule_id: str = "", host: str = "") -> None:
        """A schedule or a host is gone."""
        self._last.pop(schedule_id, None)
        if host:
            for hosts in self._last.values():
                hosts.pop(host, None)

    def failed(self, schedule_id: str, hosts: Collection[str]) -> list[str]:
        """Those of these hosts on which the schedule's last run failed."""
        last = self._last.get(schedule_id, {})
        return sorted(host for host, it in last.items() if it.status not in GOOD and host in hosts)

    def successes(self) -> list[tuple[str, str, datetime]]:
        """When each schedule last went well on each host: (schedule id, host, when). Any thread may ask."""
        found = []
        for schedule_id, hosts in list(self._last.items()):
            for host, last in list(hosts.items()):
                if last.succeeded_at is not None:
                    found.append((schedule_id, host, last.succeeded_at))
        return found
