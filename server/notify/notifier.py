"""Has Alerts told: looks at what is wrong, stores what each decides, and sends it. Only the leader does so."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from time import monotonic

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection

from server.changes.alerts import Alerts, tell_of_alerts
from server.errors import Unavailable
from server.events import Event, Events, NotificationsChanged
from server.fleet.expected import duration
from server.notify import messages, pinger
from server.notify.decide import Policy, State, decide, firing
from server.notify.delivery import Delivery, Failure
from server.notify.gather import Gatherer
from server.notify.pinger import Pinger
from server.notify.services import Services
from server.notify.situations import Facts, seen_by
from server.notify.webhooks import Webhooks
from server.resources.manifests import AlertCredentials, alert_spec
from server.resources.specs import AlertSpec
from server.resources.targets import grant_errors, is_webhook, signing_key
from server.store import alerts
from server.store.alerts import Attempt, Decision, DeliveryRow, Message, StateRow
from server.store.engine import Store, StoreClosedError
from server.store.rows import AlertRow

log = logging.getLogger(__name__)

EVERY_S = 15.0
"""Seconds between two looks at what is wrong when nothing happens."""
LEAST_S, RATIO, MOST_S = 1.0, 20, 60.0
"""The least seconds between two looks; the pause after one as a multiple of how long it took; and at most."""
QUIET = timedelta(seconds=60)
"""The least time between two messages of one Alert. What comes in between is in the second one."""
KEEP = timedelta(days=1)
"""For how long a message is tried."""
PREFIX = "msg_"
"""What the key of an Alert's message begins with; those of pings do not."""


class Notifier:
    """Decides what Alerts tell, and delivers it, while `follow` runs."""

    def __init__(
        self,
        store: Store,
        declared: Alerts,
        gatherer: Gatherer,
        services: Services,
        pinger: Pinger,
        events: Events,
        clock: Callable[[], datetime],
        rng: Random,
    ) -> None:
        self._store = store
        self._declared = declared
        self._gatherer = gatherer
        self._services = services
        self._pinger = pinger
        self._events = events
        self._clock = clock
        self._woken = asyncio.Event()
        self._delivery = Delivery(store, self._send, self._keep, self._attempted, clock, rng, self._delivered)
        self._webhooks: Webhooks | None = None

    def on_event(self, event: Event) -> None:
        """Something happened: look soon at what is wrong."""
        if not isinstance(event, NotificationsChanged):
            self._woken.set()

    async def follow(self) -> None:
        """Decide and deliver until cancelled."""
        async with Webhooks() as webhooks, asyncio.TaskGroup() as tasks:
            self._webhooks = webhooks
            tasks.create_task(self._delivery.follow(), name="deliver messages")
            while True:
                self._woken.clear()
                begun = monotonic()
                try:
                    await self.look()
                except (Unavailable, StoreClosedError) as error:
                    log.warning("alerts are looked at later", extra={"reason": error})
                except Exception:
                    log.exception("alerts not looked at, trying again")
                await asyncio.sleep(min(max(LEAST_S, RATIO * (monotonic() - begun)), MOST_S))
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._woken.wait()

    # Deciding.

    async def look(self) -> None:
        """Look once at what is wrong and what runs, and store what to tell of it. Raises Unavailable."""
        rows = await self._store.read(alerts.all_alerts)
        states = await self._store.read(alerts.states)
        busy = await self._store.read(alerts.waiting)
        decisions = [*(await self._of_alerts(rows, states, busy)), *(await self._pinger.decisions(states))]
        stored = [await self._store.write(self._decided_all, decision) for decision in decisions]
        if any(stored):
            self._delivery.wake()
            self._events.publish(NotificationsChanged())

    async def _of_alerts(
        self, rows: Sequence[AlertRow], states: Mapping[str, StateRow], busy: Mapping[str, int]
    ) -> list[Decision]:
        """What each Alert decides to tell, of those that have anything new. `busy`: to how many of an Alert's URLs a
        message waits. Where that is each of them, all that comes is in the next message, once one has arrived."""
        if not rows:
            return []
        specs = {row.id: alert_spec(row.spec) for row in rows}
        is_fleet = any(it.scope == "Fleet" for it in specs.values())
        facts = await self._gatherer.facts(None if is_fleet else {row.namespace for row in rows})
        now = self._clock()
        found = []
        for row in rows:
            was, credentials = states.get(row.id), self._declared.credentials(row)
            if credentials is None or busy.get(row.id, 0) >= len(credentials.urls):
                continue
            try:
                decision = self._decided(row, specs[row.id], was, len(credentials.urls), facts, now)
            except Exception:  # a defect that one Alert meets silences no other
                log.exception("alert not looked at", extra={"alert": f"{row.namespace}/{row.name}"})
            else:
                found += [decision] if decision is not None else []
        return found

    def _decided(
        self, row: AlertRow, spec: AlertSpec, was: StateRow | None, urls: int, facts: Facts, now: datetime
    ) -> Decision | None:
        """What an Alert tells and knows now; None where that is what it knew."""
        state = State() if was is None else _states.decode(was.body)
        grant = self._declared.grant(row.namespace)
        is_quiet = state.quiet_until is not None and now < state.quiet_until <= now + QUIET
        may_see = spec.scope == "Namespace" or not grant.limited
        if not spec.enabled or is_quiet or not may_see:
            return None
        situations, watched = seen_by(spec, row.namespace, grant, facts, state.known)
        policy = Policy(duration(spec.repeat_interval), spec.send_resolved)
        items, after = decide(situations, watched, state, policy, now)
        after = replace(after, quiet_until=now + QUIET if items else state.quiet_until)
        if after == state:
            return None
        name, key = f"{row.namespace}/{row.name}", f"{PREFIX}{row.id}_{after.sequence}"
        if items:
            log.info("alert tells", extra={"alert": name, "situations": len(items), "key": key})
        body = messages.body(name, spec.severity, now, items) if items else ""
        sent = [Message(str(at), key, body) for at in range(urls)] if items else []
        written = msgspec.json.encode(after).decode()
        return Decision(row.id, was.version if was else 0, now, written, len(firing(after)), sent)

    def _decided_all(self, conn: Connection, decisions: Sequence[Decision]) -> list[bool]:
        """Store decisions, and tell the other servers."""
        stored = alerts.decided(conn, decisions)
        if any(stored):
            tell_of_alerts(conn, self._store, decisions[-1].at, declared=False)
        return stored

    # Delivering.

    async def _send(self, row: DeliveryRow) -> Failure | None:
        """Send a message of an Alert, or a ping of a Schedule. Raises CallError."""
        if self._webhooks is None:
            raise RuntimeError("messages are sent while `follow` runs")
        if not row.key.startswith(PREFIX):
            return await self._pinger.send(row, self._webhooks)
        alert = await self._store.read(alerts.alert_of, row.owner)
        if alert is None:
            return Failure("its Alert was deleted", final=True)
        credentials = self._declared.credentials(alert)
        if credentials is None:
            return Failure("its Secret has no URLs, or the vault's keys do not open them: apply the Alert again")
        at = int(row.target)
        if at >= len(credentials.urls):
            return Failure("its URL was removed from the Secret", final=True)
        url, grant = credentials.urls[at], self._declared.grant(alert.namespace)
        for error in grant_errors(grant, alert.namespace, [url], "its URL"):
            return Failure(error["detail"], final=True)
        if is_webhook(url):
            await self._post(self._webhooks, url, row, credentials, anywhere=grant.may_notify_anywhere)
        else:
            data = msgspec.json.decode(row.body)["data"]
            title, text = messages.text(data["alert"], data["severity"], data["items"], data["more"])
            await self._services.send(url, title, text, is_over=data["status"] == "resolved")
        log.debug("message delivered", extra={"key": row.key, "url": at + 1})
        return None

    async def _post(
        self, webhooks: Webhooks, url: str, row: DeliveryRow, credentials: AlertCredentials, *, anywhere: bool
    ) -> None:
        at, content = self._clock(), row.body.encode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": row.key,
            "webhook-timestamp": str(int(at.timestamp())),
        }
        if credentials.signing_key:
            key = signing_key(credentials.signing_key)
            headers["webhook-signature"] = messages.signature(key, row.key, at, content)
        await webhooks.call(url, content, headers, anywhere=anywhere)

    @staticmethod
    def _keep(row: DeliveryRow) -> timedelta:
        return KEEP if row.key.startswith(PREFIX) else pinger.KEEP

    def _attempted(self, conn: Connection, attempts: Sequence[Attempt]) -> list[None]:
        """Store what came of attempts, and tell the other servers."""
        if any(it.delivery.key.startswith(PREFIX) for it in attempts):
            tell_of_alerts(conn, self._store, attempts[-1].at, declared=False)
        return alerts.attempted(conn, attempts)

    def _delivered(self, row: DeliveryRow) -> None:
        if row.key.startswith(PREFIX):
            self._events.publish(NotificationsChanged())


_states = msgspec.json.Decoder(State)
