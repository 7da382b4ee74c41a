"""The one path of every change: planned, stored with its audit line, put in force, published, pushed.

Declared state and host keys change one at a time, so that each plan is made on what the change before left. One
transaction holds the resource, the audit line and the new version of every host whose set changes: a kill leaves all
of it or nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from server.agents.hub import Hub
from server.agents.session import Session
from server.events import DeclarationChanged, Events
from server.fleet.catalog import Catalog, ResolvedRepository
from server.fleet.expected import ExpectedSince
from server.fleet.placement import Placement, Plan
from server.store.audit import record_audit
from server.store.declared import (
    delete_joined,
    delete_repositories,
    delete_schedules,
    upsert_joined,
    upsert_repositories,
    upsert_schedules,
)
from server.store.engine import Store
from server.store.enrolments import delete_host_keys, upsert_enrolments, upsert_host_keys
from server.store.hosts import delete_hosts, set_desired, upsert_hosts
from server.store.rows import (
    AuditRow,
    EnrolmentRow,
    HostKeyRow,
    HostRow,
    Joined,
    Pair,
    RepositoryRow,
    ScheduleRow,
)
from server.store.tables import Actor

log = logging.getLogger(__name__)


class Change(NamedTuple):
    """What one change stores, all of it or nothing. `desired`: the hosts whose sets change: (name, version, digest)."""

    audit: AuditRow
    desired: Sequence[tuple[str, int, str]] = ()
    put_schedules: Sequence[ScheduleRow] = ()
    delete_schedules: Sequence[ScheduleRow] = ()
    put_repositories: Sequence[RepositoryRow] = ()
    delete_repositories: Sequence[RepositoryRow] = ()
    put_hosts: Sequence[HostRow] = ()
    delete_hosts: Sequence[str] = ()
    put_enrolments: Sequence[EnrolmentRow] = ()
    put_host_keys: Sequence[HostKeyRow] = ()
    delete_host_keys: Sequence[str] = ()
    put_joined: Sequence[Joined] = ()
    delete_joined: Sequence[Pair] = ()

    @property
    def is_declared(self) -> bool:
        """Whether it changes what is declared; what it changes otherwise are the keys of hosts."""
        put = self.put_schedules or self.put_repositories or self.put_hosts
        return bool(put or self.delete_schedules or self.delete_repositories or self.delete_hosts)


def write_changes(conn: Connection, changes: Sequence[Change]) -> list[None]:
    """A batch statement that stores changes. Those of one batch touch different rows."""

    def each(field: str) -> list[Any]:
        return [row for change in changes for row in getattr(change, field)]

    record_audit(conn, [change.audit for change in changes])
    upsert_repositories(conn, each("put_repositories"))
    upsert_schedules(conn, each("put_schedules"))
    delete_schedules(conn, [row.id for row in each("delete_schedules")])
    delete_repositories(conn, [row.id for row in each("delete_repositories")])
    upsert_hosts(conn, each("put_hosts"))
    delete_hosts(conn, each("delete_hosts"))
    upsert_enrolments(conn, each("put_enrolments"))
    upsert_host_keys(conn, each("put_host_keys"))
    delete_host_keys(conn, each("delete_host_keys"))
    set_desired(conn, [each("desired")])
    delete_joined(conn, each("delete_joined"))
    upsert_joined(conn, each("put_joined"))
    return [None] * len(changes)


def audit(at: datetime, actor: Actor, action: str, kind: str, name: str, **detail: Any) -> AuditRow:
    """The audit line of a change. `kind`, `name`: the object that `actor` changes."""
    return AuditRow(at, actor.kind, actor.id, action, kind, name, detail)


class Pipeline:
    """Takes every change from its plan to the hosts. `lock`: hold it from planning a change until `commit` returns."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        placement: Placement,
        expected_since: ExpectedSince,
        hub: Hub,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self.lock = asyncio.Lock()
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._expected_since = expected_since
        self._hub = hub
        self._events = events
        self._clock = clock

    async def commit(self, change: Change, plan: Plan, put_repositories: Sequence[ResolvedRepository] = ()) -> None:
        """Store a change with the new versions of hosts that it causes; put it in force, publish it, and push.

        `put_repositories`: those that the change puts, as `Catalog.resolve` returned them for the plan. A host that is
        offline gets its push after its next hello. Raises what `Store.write` raises.
        """
        desired, (came, left) = self._placement.desired(plan), self._placement.changed_pairs(plan)
        joined = [Joined(*pair, change.audit.at) for pair in came]
        rows = [it.row for it in put_repositories]
        change = change._replace(desired=desired, put_repositories=rows, put_joined=joined, delete_joined=left)
        await self._store.write(write_changes, change)
        first = not self._catalog.schedules and bool(change.put_schedules)
        self._put_in_force(change, plan, put_repositories)
        self._publish(change)
        for host, _, _ in change.desired:
            if (session := self._hub.session(host)) is not None:
                self._hub.deliver(host, session.desired_changed())
        if first:  # agents that kept the schedules of another store now get what is declared here
            for session in self._hub.sessions():
                self._hub.deliver(session.name, session.resume_pushes())

    def _put_in_force(self, change: Change, plan: Plan, put_repositories: Sequence[ResolvedRepository]) -> None:
        for row in change.put_schedules:
            self._expected_since.put_schedule(row.id, row.enabled_since or row.since)
        for row in change.delete_schedules:
            self._expected_since.forget_schedule(row.id)
        for host in change.put_hosts:
            if host.name not in self._placement.hosts:
                self._expected_since.put_host(host.name, host.created_at)
        for name in change.delete_hosts:
            self._expected_since.forget_host(name)
        self._expected_since.leave(change.delete_joined)
        self._expected_since.join(change.put_joined)
        self._catalog.put(change.put_schedules, put_repositories)
        self._catalog.remove(change.delete_schedules, change.delete_repositories)
        self._placement.commit(plan)
        for state in plan.put_hosts:
            if self._hub.session(state.name) is None:
                self._hub.add(Session(self._placement.hosts[state.name]))
        for name in plan.remove_hosts:
            self._hub.forget(name)  # one that has just said hello connects again, and is created anew
        for name in (*(key.host for key in change.put_host_keys), *change.delete_host_keys):
            self._hub.disconnect(name)  # it was authenticated by a key that is no longer valid

    def _publish(self, change: Change) -> None:
        """Publish and log a change that is in force, before its pushes are logged."""
        if change.is_declared:
            self._events.publish(
                DeclarationChanged(
                    schedules=[(row.namespace, row.name) for row in change.put_schedules],
                    repositories=[(row.namespace, row.name) for row in change.put_repositories],
                    hosts=[row.name for row in change.put_hosts],
                    deleted_schedules=[row.id for row in change.delete_schedules],
                    deleted_repositories=[row.id for row in change.delete_repositories],
                    deleted_hosts=change.delete_hosts,
                    hosts_with_new_set=[host for host, _, _ in change.desired],
                )
            )
        line, facts = change.audit, {}
        if (logged := _LOGGED.get((line.object_kind, line.action))) is None:
            return
        for row in change.put_schedules:
            facts = {"cron": row.spec["cron"], "next": self._placement.next_due(row.id, self._clock()) or "never"}
        subject, message = logged
        log.info(message, extra={subject: line.object_name, **facts})


_LOGGED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("Schedule", "create"): ("schedule", "schedule accepted"),
    ("Schedule", "update"): ("schedule", "schedule changed"),
    ("Schedule", "delete"): ("schedule", "schedule deleted"),
    ("Repository", "create"): ("repository", "repository accepted"),
    ("Repository", "update"): ("repository", "repository changed"),
    ("Repository", "delete"): ("repository", "repository deleted"),
    ("Host", "delete"): ("host", "host deleted"),
    ("Host", "enrol"): ("host", "host enrolled"),
    ("HostKey", "revoke"): ("host", "host's key revoked"),
}
"""What is logged of a change, by its kind of object and action. New hosts are logged when they connect."""
