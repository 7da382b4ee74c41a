"""By when a schedule should have succeeded on a host, and which hosts are overdue.

Each pair of an enabled schedule and a host that should hold it is expected to succeed once per `success_within`. The
first period of a pair begins at the latest of these times:

- the schedule was created or enabled,
- the host became known,
- a change of the selector or of the host's labels brought the schedule to the host.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import cron
from server.events import ClockSetBack, Event
from server.fleet.windows import longest_wait
from server.resources.specs import ScheduleSpec
from server.store.rows import Joined, Pair

_UNITS = {"w": timedelta(weeks=1), "d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_UNITS["s"] = timedelta(seconds=1)


class Expected(NamedTuple):
    """An enabled schedule, and by host how long it has gone without a success.

    `since`: by host, the later of the last success and the beginning of the pair. `overdue`: the hosts for which that
    is more than `within` ago, the longest first. `failed`, `warned`: on how many hosts its last job ended so.
    """

    namespace: str
    schedule: str
    within: timedelta
    since: Mapping[str, datetime]
    overdue: Sequence[str]
    failed: int
    warned: int


class ExpectedSince:
    """When each pair of a schedule and a host began.

    It stores one time for each schedule and each host, and for a pair only where that began later than both.
    """

    def __init__(self) -> None:
        self._schedules: dict[str, datetime] = {}
        self._hosts: dict[str, datetime] = {}
        self._joined: dict[str, dict[str, datetime]] = {}

    def since(self, schedule_id: str, hosts: Iterable[str]) -> dict[str, datetime]:
        """By host, when its pair with a schedule began. Unknown hosts are left out. Any thread may call it."""
        enabled, joined = self._schedules.get(schedule_id), self._joined.get(schedule_id, {})
        if enabled is None:
            return {}
        began = {host: max(enabled, at) for host in hosts if (at := self._hosts.get(host)) is not None}
        began.update((host, max(at, began[host])) for host, at in list(joined.items()) if host in began)
        return began

    def on_event(self, event: Event) -> None:
        """Correct the times when the server's clock is set back."""
        if isinstance(event, ClockSetBack):
            self.clock_set_back(event.now)

    def put_schedule(self, schedule_id: str, enabled_since: datetime) -> None:
        """Set when a schedule was last created or enabled."""
        self._schedules[schedule_id] = enabled_since

    def put_host(self, host: str, created_at: datetime) -> None:
        """Set when a host became known."""
        self._hosts[host] = created_at

    def join(self, pairs: Iterable[Joined]) -> None:
        """Record pairs of an existing schedule and an existing host that a change joined."""
        for schedule_id, host, since in pairs:
            self._joined.setdefault(schedule_id, {})[host] = since

    def leave(self, pairs: Iterable[Pair]) -> None:
        """Forget pairs whose host should no longer hold the schedule."""
        for schedule_id, host in pairs:
            self._joined.get(schedule_id, {}).pop(host, None)

    def clock_set_back(self, now: datetime) -> None:
        """Replace times after `now` by `now`: the clock was wrong when they were recorded."""
        for times in (self._schedules, self._hosts, *self._joined.values()):
            times.update({key: now for key, at in times.items() if at > now})

    def forget_schedule(self, schedule_id: str) -> None:
        """Forget a deleted schedule."""
        self._schedules.pop(schedule_id, None)
        self._joined.pop(schedule_id, None)

    def forget_host(self, host: str) -> None:
        """Forget a deleted host."""
        self._hosts.pop(host, None)
        for hosts in self._joined.values():
            hosts.pop(host, None)


def success_within(spec: ScheduleSpec) -> timedelta:
    """How long a host may go without a success: `successWithin`, or else two periods of the cron, the spread, and the
    longest wait for a window."""
    if spec.success_within is not None:
        return duration(spec.success_within)
    return _periods(spec.cron_text) + timedelta(seconds=spec.spread_seconds) + longest_wait(spec)


@lru_cache(maxsize=1 << 12)
def _periods(expression: str) -> timedelta:
    try:
        return cron.two_periods(cron.parse_all(expression))
    except cron.CronError:  # an older release accepted it: no host runs it now, so it should be overdue early
        return timedelta(days=2)


def duration(text: str) -> timedelta:
    """Parse a duration of a manifest: whole numbers of w, d, h, m (minutes) and s, such as 1d12h."""
    parts = re.findall(r"([0-9]+)([wdhms])", text)
    return sum((int(number) * _UNITS[unit] for number, unit in parts), timedelta())


def span(time: timedelta) -> str:
    """Format a duration as manifests do, such as 1d12h. Parts of a second are dropped."""
    left, text = int(time.total_seconds()), ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if left >= size:
            text, left = f"{text}{left // size}{unit}", left % size
    return text or "0s"


def overdue(since: Mapping[str, datetime], within: timedelta, now: datetime) -> list[str]:
    """The hosts whose time in `since` is more than `within` before `now`, the longest first."""
    limit = now - within
    late = [(at, host) for host, at in since.items() if at < limit]
    return [host for _, host in sorted(late)]
