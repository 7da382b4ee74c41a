"""Changes of Alerts and of where their messages go.

No host holds an Alert, and no server keeps one in memory: whoever decides what to tell reads their rows. So a change is
one transaction, without the pipeline.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from server.access.vault import Vault, VaultError
from server.changes.change import audit
from server.errors import Conflict, FieldError, Forbidden, Invalid, NotFound
from server.events import AlertsDeclared, Events
from server.fleet.catalog import Catalog
from server.jobs import notices
from server.resources import manifests
from server.resources.grants import Grant
from server.resources.manifests import AlertCredentials
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector
from server.resources.targets import grant_errors
from server.resources.versions import Condition, unconditional, version_of
from server.store import news
from server.store.alerts import AlertChange, all_alerts, change_alerts, count_alerts, find_alert
from server.store.engine import Store
from server.store.rows import AlertRow, RepositoryRow, Row, ScheduleRow
from server.store.tables import Actor

log = logging.getLogger(__name__)

MAX_ALERTS = 100
"""The most Alerts of a namespace."""

MAX_COMPARED = 1000
"""How many objects' labels are compared with an Alert's selector before it counts as one that selects something."""

Understood = Callable[[Sequence[str]], Awaitable[Iterable[FieldError]]]
"""Returns errors of URLs that nothing here can call."""


class Alerts:
    """Creates, changes and deletes Alerts."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        vault: Vault,
        understood: Understood,
        events: Events,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._vault = vault
        self._understood = understood
        self._events = events
        self._clock = clock
        self._new_id = new_id

    async def put(self, actor: Actor, manifest: object, condition: Condition = unconditional) -> tuple[Row, bool]:
        """Create an alert, or update it to the manifest; the same manifest again changes nothing.

        Returns the resource, and whether it is new. Raises Invalid, Forbidden, Conflict, and what `condition` raises.
        """
        parsed = manifests.parse_alert(manifest)
        await self._check(parsed)
        while True:
            old = await self._store.read(find_alert, parsed.namespace, parsed.name)
            condition(version_of(old))
            kept = self.credentials(old) if old is not None else None
            if old is not None and (old.spec, old.labels, kept) == (
                parsed.raw_spec,
                parsed.labels,
                parsed.credentials,
            ):
                return old._asdict(), False
            if old is None and await self._store.read(count_alerts, parsed.namespace) >= MAX_ALERTS:
                raise Conflict(f"namespace {parsed.namespace} has {MAX_ALERTS} Alerts already: delete one first")
            row = self._row(old, parsed)
            changed = "changed" if kept != parsed.credentials else "unchanged"
            detail = {"spec": row.spec, "credentials": changed}
            name = f"{row.namespace}/{row.name}"
            line = audit(row.updated_at, actor, "update" if old else "create", "Alert", name, **detail)
            if await self._stored(AlertChange(row.namespace, row.name, _base(old), row, line)):
                facts = {"alert": name, "urls": len(parsed.credentials.urls) if parsed.credentials else 0}
                log.info("alert changed" if old else "alert accepted", extra=facts)
                return row._asdict(), old is None

    async def delete(self, actor: Actor, namespace: str, name: str, condition: Condition = unconditional) -> None:
        """Delete an alert, and what it would still tell. Raises NotFound, and what `condition` raises."""
        while True:
            old = await self._store.read(find_alert, namespace, name)
            if old is None:
                raise NotFound(f"there is no Alert {namespace}/{name}")
            condition(version_of(old))
            line = audit(self._clock(), actor, "delete", "Alert", f"{namespace}/{name}")
            if await self._stored(AlertChange(namespace, name, _base(old), None, line)):
                log.info("alert deleted", extra={"alert": f"{namespace}/{name}"})
                return

    async def renew(self) -> None:
        """Seal again with the first key what an older one sealed. Raises Unavailable."""
        for row in await self._store.read(all_alerts):
            try:
                sealed = None if row.credentials is None else self._vault.renew(row.credentials)
            except VaultError:  # its messages cannot be delivered, and its status says so
                continue
            if sealed != row.credentials:
                await self._stored(AlertChange(row.namespace, row.name, _base(row), row._replace(credentials=sealed)))

    def grant(self, namespace: str) -> Grant:
        """What the Alerts of a namespace may see and call now."""
        return self._catalog.grant(namespace)

    def selects_any(self, namespace: str, raw_spec: Mapping[str, Any]) -> bool:
        """Whether an Alert selects anything: see `selects_any`."""
        return selects_any(self._catalog, namespace, raw_spec)

    def credentials(self, row: AlertRow) -> AlertCredentials | None:
        """Where an Alert's messages go; None when it does not say, or when the vault cannot open it."""
        try:
            return None if row.credentials is None else self._vault.unseal(row.credentials, AlertCredentials)
        except VaultError:
            return None

    async def _check(self, parsed: manifests.Alert) -> None:
        """Raises Forbidden for what the namespace may not see or call, Invalid for what nothing here can call."""
        grant, namespace = self._catalog.grant(parsed.namespace), parsed.namespace
        if parsed.spec.scope == "Fleet" and grant.limited:
            wrong: FieldError = {
                "field": "spec.scope",
                "detail": f"namespace {namespace} has a limited grant, and sees its own alone: use Namespace",
            }
            raise Forbidden(f"namespace {namespace} may not see the fleet", [wrong])
        if parsed.credentials is None:
            return
        urls = parsed.credentials.urls
        if errors := list(grant_errors(grant, namespace, urls, "credentials.urls")):
            raise Forbidden(f"namespace {namespace} may not notify so", errors)
        if errors := list(await self._understood(urls)):
            raise Invalid("the Alert is not valid", errors)

    async def _stored(self, change: AlertChange) -> bool:
        """Store a change. Returns False if another came between, so that it is to be decided again."""
        stored = await self._store.write(self._change, change)
        if stored:
            self._events.publish(AlertsDeclared())
        return stored

    def _change(self, conn: Connection, changes: Sequence[AlertChange]) -> list[bool]:
        stored = change_alerts(conn, changes)
        if any(stored):
            tell_of_alerts(conn, self._store, self._clock(), declared=True)
        return stored

    def _row(self, old: AlertRow | None, parsed: manifests.Alert) -> AlertRow:
        now = self._clock()
        return AlertRow(
            old.id if old else self._new_id(),
            parsed.namespace,
            parsed.name,
            parsed.labels,
            parsed.raw_spec,
            old.generation + 1 if old else 1,
            old.created_at if old else now,
            now,
            self._vault.seal(parsed.credentials) if parsed.credentials is not None else None,
        )


def selects_any(catalog: Catalog, namespace: str, raw_spec: Mapping[str, Any]) -> bool:
    """Whether an Alert selects any Schedule or Repository, or would if there were one."""
    spec = manifests.alert_spec(raw_spec)
    if not spec.enabled or spec.selector == LabelSelector():
        return True
    declared: list[ScheduleRow | RepositoryRow] = [*catalog.schedules.values(), *catalog.repositories.values()]
    is_fleet = spec.scope == "Fleet"
    labels = list(islice((it.labels for it in declared if is_fleet or it.namespace == namespace), MAX_COMPARED + 1))
    return not 0 < len(labels) <= MAX_COMPARED or any(selector_matches(spec.selector, it) for it in labels)


def tell_of_alerts(conn: Connection, store: Store, at: datetime, *, declared: bool) -> None:
    """Tell the other servers, if there may be any, of an Alert: see `notices.Alerts`."""
    if store.is_shared:
        news.tell(conn, store.server, at, [notices.encode([notices.Alerts(declared)])])


def _base(row: AlertRow | None) -> tuple[str, int] | None:
    return None if row is None else (row.id, row.generation)
