"""Pings the URLs of Schedules: gathers how runs go, and sends what `pings` decides."""

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from server.fleet.catalog import Catalog
from server.jobs.outcomes import Outcomes
from server.notify import pings
from server.notify.delivery import Failure
from server.notify.pings import End, Ping, Pinged
from server.notify.webhooks import Webhooks
from server.observe.survey import Surveyor
from server.resources.targets import grant_errors
from server.store import jobs as job_statements
from server.store.alerts import Decision, DeliveryRow, Message, StateRow
from server.store.engine import Store
from server.store.rows import ScheduleRow
from server.store.tables import GOOD

KEEP = timedelta(hours=1)
"""For how long a ping is tried: later, it would tell of another time than the receiver thinks."""
MAX_RUNNING = 100_000
"""The most jobs that run whose begin is pinged."""
MAX_WHY = 1000
"""The most characters of why a run failed."""


class Pinger:
    """Decides and sends the pings of Schedules."""

    def __init__(
        self, store: Store, catalog: Catalog, surveyor: Surveyor, outcomes: Outcomes, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._surveyor = surveyor
        self._outcomes = outcomes
        self._clock = clock

    async def decisions(self, states: dict[str, StateRow]) -> list[Decision]:
        """What Schedules ping and know now, where that is not what they knew. Raises Unavailable."""
        rows = [row for row in list(self._catalog.schedules.values()) if row.ping is not None]
        if not rows:
            return []
        survey, running = await self._surveyor.survey(""), await self._running(rows)
        found = []
        for row in rows:
            if (stands := survey.stands.get(row.id)) is None:
                continue
            ended = {host: end for host in stands.hosts if (end := self._end(row.id, host)) is not None}
            here = {host: job_id for host, job_id in running.get(row.id, {}).items() if host in stands.hosts}
            decision = self._decided(row, states.get(row.id), ended, here, frozenset(stands.overdue))
            if decision is not None:
                found.append(decision)
        return found

    def _decided(
        self,
        row: ScheduleRow,
        was: StateRow | None,
        ended: dict[str, End],
        running: dict[str, str],
        late: frozenset[str],
    ) -> Decision | None:
        pinged = pings.known(ended) if was is None else _pinged.decode(was.body)
        each_host = pings.PLACEHOLDER in (self._catalog.ping_url(row) or "")
        to_send, after = pings.decide(ended, running, late, pinged, each_host=each_host)
        if was is not None and after == pinged:
            return None
        sent = [Message(it.host, it.key, msgspec.json.encode(it).decode()) for it in to_send]
        body = msgspec.json.encode(after).decode()
        return Decision(row.id, was.version if was else 0, self._clock(), body, 0, sent)

    async def send(self, row: DeliveryRow, webhooks: Webhooks) -> Failure | None:
        """Send a ping. Raises CallError."""
        schedule = next((it for it in list(self._catalog.schedules.values()) if it.id == row.owner), None)
        url = self._catalog.ping_url(schedule) if schedule is not None else None
        if schedule is None or url is None:
            return Failure("the Schedule pings nothing any more", final=True)
        ping, grant = _ping.decode(row.body), self._catalog.grant(schedule.namespace)
        for error in grant_errors(grant, schedule.namespace, [url], "its URL"):
            return Failure(error["detail"], final=True)
        called = pings.url_of(url, ping.host, ping.kind)
        await webhooks.call(called, ping.why[:MAX_WHY].encode(), {}, anywhere=grant.may_notify_anywhere)
        return None

    async def _running(self, rows: list[ScheduleRow]) -> dict[str, dict[str, str]]:
        """By id of a schedule and by host, the job that runs."""
        found: dict[str, dict[str, str]] = {}
        its, _ = await self._store.read(job_statements.running, [row.id for row in rows], MAX_RUNNING)
        for job_id, host, _kind, schedule_id, _since in its:
            found.setdefault(schedule_id or "", {})[host] = job_id
        return found

    def _end(self, schedule_id: str, host: str) -> End | None:
        last = self._outcomes.last(schedule_id, host)
        return None if last is None else End(last.job_id, last.status in GOOD, last.why)


_pinged = msgspec.json.Decoder(Pinged)
_ping = msgspec.json.Decoder(Ping)
