"""The way of every change of what is declared: planned, stored with its audit line, put in force, told, pushed.

One change at a time: the plan of one must not be overtaken by the next. In one transaction go the resource, the audit
line, and the new version of every host whose set it changes, so that a kill leaves all of it or nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from server.agents.hub import Hub
from server.agents.session import Session
from server.events import DeclarationChanged, Events
from server.fleet.catalog import Catalog
from server.fleet.expected import Beginnings
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
from server.store.hosts import delete_hosts, set_desired, upsert_hosts
from server.store.jobs import jobs_cancelled, jobs_finished, record_jobs
from server.store.rows import AuditRow, HostRow, JobRow, Joined, Pair, RepositoryRow, ScheduleRow
from server.store.tables import Actor
from wire.messages import JobFinished

log = logging.getLogger(__name__)


class Change(NamedTuple):
    """What one change stores, all of it or nothing. `desired`: the hosts whose sets change, with their new versions."""

    audit: AuditRow
    desired: Sequence[tuple[str, int, str]] = ()
    put_schedules: Sequence[ScheduleRow] = ()
    delete_schedules: Sequence[ScheduleRow] = ()
    put_repositories: Sequence[RepositoryRow] = ()
    delete_repositories: Sequence[RepositoryRow] = ()
    put_hosts: Sequence[HostRow] = ()
    delete_hosts: Sequence[str] = ()
    put_jobs: Sequence[JobRow] = ()
    end_jobs: Sequence[JobFinished] = ()
    cancel_jobs: Sequence[str] = ()
    put_joined: Sequence[Joined] = ()
    delete_joined: Sequence[Pair] = ()


def write_changes(conn: Connection, changes: Sequence[Change]) -> list[set[str]]:
    """Store changes; the answers are the ids of the jobs that each put. Those that come together touch different rows,
    but for jobs, which are put before they end."""

    def each(field: str) -> list[Any]:
        return [row for change in changes for row in getattr(change, field)]

    record_audit(conn, [change.audit for change in changes])
    upsert_repositories(conn, each("put_repositories"))
    upsert_schedules(conn, each("put_schedules"))
    delete_schedules(conn, [row.id for row in each("delete_schedules")])
    delete_repositories(conn, [row.id for row in each("delete_repositories")])
    upsert_hosts(conn, each("put_hosts"))
    delete_hosts(conn, each("delete_hosts"))
    set_desired(conn, [each("desired")])
    delete_joined(conn, each("delete_joined"))
    upsert_joined(conn, each("put_joined"))
    put = record_jobs(conn, [change.put_jobs for change in changes])
    jobs_cancelled(conn, [each("cancel_jobs")])
    jobs_finished(conn, [each("end_jobs")])
    return put


def audit(at: datetime, actor: Actor, action: str, kind: str, name: str, **detail: Any) -> AuditRow:
    """The audit line of a change: who did what to which object, and when."""
    return AuditRow(at, actor.kind, actor.id, action, kind, name, detail)


class Pipeline:
    """Takes changes of what is declared through, one at a time. `lock`: to be held from the plan on."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        placement: Placement,
        beginnings: Beginnings,
        hub: Hub,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self.lock = asyncio.Lock()
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._beginnings = beginnings
        self._hub = hub
        self._events = events
        self._clock = clock

    async def commit(self, change: Change, plan: Plan) -> None:
        """Store a change with the new versions that it causes; then put it in force, tell of it, and push to the hosts
        that are online."""
        desired, (came, left) = self._placement.desired(plan), self._placement.moved(plan)
        joined = [Joined(*pair, change.audit.at) for pair in came]
        change = change._replace(desired=desired, put_joined=joined, delete_joined=left)
        await self._store.write(write_changes, change)
        first = not self._catalog.schedules and bool(change.put_schedules)
        self._put_in_force(change, plan)
        self._tell(change)
        for host, _, _ in change.desired:
            if (session := self._hub.session(host)) is not None:
                self._hub.deliver(host, session.changed())
        if first:  # agents that were left the schedules of another store get what is declared here
            for session in self._hub.sessions():
                self._hub.deliver(session.name, session.declared())

    def _put_in_force(self, change: Change, plan: Plan) -> None:
        for row in change.put_schedules:
            self._beginnings.put_schedule(row.id, row.enabled_since or row.since)
        for row in change.delete_schedules:
            self._beginnings.forget_schedule(row.id)
        for host in change.put_hosts:
            if host.name not in self._placement.hosts:
                self._beginnings.put_host(host.name, host.created_at)
        for name in change.delete_hosts:
            self._beginnings.forget_host(name)
        self._beginnings.leave(change.delete_joined)
        self._beginnings.join(change.put_joined)
        self._catalog.put(change.put_schedules, change.put_repositories)
        self._catalog.remove(change.delete_schedules, change.delete_repositories)
        self._placement.commit(plan)
        for state in plan.put_hosts:
            if self._hub.session(state.name) is None:
                self._hub.add(Session(self._placement.hosts[state.name]))
        for name in plan.forget:
            self._hub.forget(name)  # one that said hello meanwhile calls again, and is made known anew

    def _tell(self, change: Change) -> None:
        """Say what is in force now, before its pushes say so themselves."""
        self._events.publish(
            DeclarationChanged(
                schedules=[(row.namespace, row.name) for row in change.put_schedules],
                repositories=[(row.namespace, row.name) for row in change.put_repositories],
                hosts=[row.name for row in change.put_hosts],
                deleted_schedules=[row.id for row in change.delete_schedules],
                deleted_repositories=[row.id for row in change.delete_repositories],
                deleted_hosts=change.delete_hosts,
                moved=[host for host, _, _ in change.desired],
            )
        )
        if change.put_hosts:
            return  # the gateway says when a host is there
        line, facts = change.audit, {}
        for row in change.put_schedules:
            facts = {"cron": row.spec["cron"], "next": self._placement.next_due(row.id, self._clock()) or "never"}
        kind = line.object_kind.lower()
        log.info("%s %s", kind, _DONE[line.action], extra={kind: line.object_name, **facts})


_DONE = {"create": "accepted", "update": "changed", "delete": "deleted"}
