"""When a schedule should have succeeded on a host: since when that counts, within how long, and who is overdue.

Each pair of an enabled schedule and a host that has it should have a success within `success_within`. A pair counts
from when it began: when the schedule was created or enabled, the host was made known, or, where both were there before,
when the schedule came to the host by a change of its selector or of the host's labels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import cron
from server.events import ClockSetBack, Event
from server.resources.specs import ScheduleSpec
from server.store.rows import Joined, Pair

_UNITS = {"w": timedelta(weeks=1), "d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_UNITS["s"] = timedelta(seconds=1)


class Expected(NamedTuple):
    """A schedule that should succeed: `since` when it has not, by host, and the hosts that are overdue, worst first.

    `failed`, `warned`: on how many hosts its last run failed, or left something undone.
    """

    namespace: str
    schedule: str
    within: timedelta
    since: Mapping[str, datetime]
    overdue: Sequence[str]
    failed: int
    warned: int


class Beginnings:
    """Since when each pair counts. It holds the times of schedules and hosts, and those of pairs that began later."""

    def __init__(self) -> None:
        self._schedules: dict[str, datetime] = {}
        self._hosts: dict[str, datetime] = {}
        self._joined: dict[str, dict[str, datetime]] = {}

    def since(self, schedule_id: str, hosts: Iterable[str]) -> dict[str, datetime]:
        """Since when a schedule counts on each of these hosts; what is not known is left out. Any thread may ask."""
        enabled, joined = self._schedules.get(schedule_id), self._joined.get(schedule_id, {})
        if enabled is None:
            return {}
        began = {host: max(enabled, at) for host in hosts if (at := self._hosts.get(host)) is not None}
        began.update((host, max(at, began[host])) for host, at in list(joined.items()) if host in began)
        return began

    def on_event(self, event: Event) -> None:
        """Hear of a clock that was wrong."""
        if isinstance(event, ClockSetBack):
            self.clock_set_back(event.now)

    def put_schedule(self, schedule_id: str, enabled_since: datetime) -> None:
        """A schedule is there; pairs that began before it was enabled begin with that."""
        self._schedules[schedule_id] = enabled_since

    def put_host(self, host: str, created_at: datetime) -> None:
        """A host is known."""
        self._hosts[host] = created_at

    def join(self, pairs: Iterable[Joined]) -> None:
        """Schedules came to hosts."""
        for schedule_id, host, since in pairs:
            self._joined.setdefault(schedule_id, {})[host] = since

    def leave(self, pairs: Iterable[Pair]) -> None:
        """Hosts lost schedules."""
        for schedule_id, host in pairs:
            self._joined.get(schedule_id, {}).pop(host, None)

    def clock_set_back(self, now: datetime) -> None:
        """Nothing has begun after `now`: the clock that said so was wrong."""
        for times in (self._schedules, self._hosts, *self._joined.values()):
            times.update({key: now for key, at in times.items() if at > now})

    def forget_schedule(self, schedule_id: str) -> None:
        """A schedule is gone."""
        self._schedules.pop(schedule_id, None)
        self._joined.pop(schedule_id, None)

    def forget_host(self, host: str) -> None:
        """A host is gone."""
        self._hosts.pop(host, None)
        for hosts in self._joined.values():
            hosts.pop(host, None)


def success_within(spec: ScheduleSpec) -> timedelta:
    """Within how long a schedule should succeed again: as it says, or two of its periods and its spread."""
    return _within(spec.cron, spec.spread_seconds, spec.success_within)


@lru_cache(maxsize=1 << 12)
def _within(expression: str, spread_s: int, said: str | None) -> timedelta:
    if said is not None:
        return duration(said)
    try:
        periods = cron.two_periods(cron.parse(expression))
    except cron.CronError:  # stored by a release that read it: no host runs it, which is to be told soon
        periods = timedelta(days=2)
    return periods + timedelta(seconds=spread_s)


def duration(text: str) -> timedelta:
    """A duration as resources write it: whole numbers of w, d, h, m (minutes) and s, such as 1d12h."""
    parts = re.findall(r"([0-9]+)([wdhms])", text)
    return sum((int(number) * _UNITS[unit] for number, unit in parts), timedelta())


def span(time: timedelta) -> str:
    """A length of time as resources write it: 1d12h."""
    left, text = int(time.total_seconds()), ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if left >= size:
            text, left = f"{text}{left // size}{unit}", left % size
    return text or "0s"


def overdue(since: Mapping[str, datetime], within: timedelta, now: datetime) -> list[str]:
    """The hosts whose time (of the last success, or since when that counts) is longer ago, the longest first."""
    limit = now - within
    late = [(at, host) for host, at in since.items() if at < limit]
    return [host for _, host in sorted(late)]
