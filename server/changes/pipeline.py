"""The one path of every change: planned, stored with its audit line, put in force, published, pushed.

Declared state and host keys change one at a time, so that each plan is made on what the change before left. One
transaction holds the resource, the audit line and the new version of every host whose set changes: a kill leaves all
of it or nothing.

Servers that share a database follow the log of changes. A change that was planned before another server's is not
stored. It is planned again, on what that one left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from server.agents.hub import Hub
from server.agents.session import Session
from server.changes import change as changes
from server.changes.change import Change, Entry, read_entry, write_changes
from server.errors import ApiException, Unavailable
from server.events import ChangeTiming, DeclarationChanged, Events
from server.fleet.catalog import Catalog, ResolvedRepository
from server.fleet.expected import ExpectedSince
from server.fleet.placement import HostState, PlacedSchedule, Placement, Plan
from server.resources.manifests import host_spec, schedule_spec
from server.store import changelog
from server.store.engine import Store, StoreLostError
from server.store.rows import HostRow, Joined, RepositoryRow, ScheduleRow

log = logging.getLogger(__name__)

UNREADABLE = (msgspec.MsgspecError, LookupError, TypeError, ValueError)
"""What a log entry raises that a later release wrote, or that does not go with what is in force here."""
Result = TypeVar("Result")


class BehindError(Exception):
    """Other servers made changes after the one on which a plan was made. `Pipeline.planned` plans again."""


class Commits(Protocol):
    """What changes of declared objects are given to: the `Pipeline`, or a trial that stores nothing."""

    async def planned(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Call `work`, which plans one change on the present state and gives it to `commit`, or does nothing."""

    async def commit(self, change: Change, plan: Plan, put_repositories: Sequence[ResolvedRepository] = ()) -> None:
        """Take a change that was planned. `put_repositories`: those that it puts."""

    async def catch_up(self) -> None:
        """Have in force what other servers changed before this call."""


def put_in_force(
    catalog: Catalog,
    placement: Placement,
    change: Change,
    plan: Plan,
    put_repositories: Sequence[ResolvedRepository],
    versions: Mapping[str, int] | None = None,
) -> None:
    """Have a catalog and a placement hold what a change declares. `versions`: see `Placement.commit`."""
    catalog.put(change.put_schedules, put_repositories)
    catalog.remove(change.delete_schedules, change.delete_repositories)
    placement.commit(plan, versions)


class Pipeline:
    """Takes every change from its plan to the hosts."""

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
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._expected_since = expected_since
        self._hub = hub
        self._events = events
        self._clock = clock
        self._lock = asyncio.Lock()
        self._revision = 0

    @property
    def revision(self) -> int:
        """The revision of the newest change that is in force here. It grows only where servers share the store."""
        return self._revision

    def loaded(self, revision: int) -> None:
        """What the store held at this revision is in force."""
        self._revision = revision

    async def planned(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Call `work`, which plans one change on the present state and gives it to `commit`, or does nothing.

        If other servers' changes came first, these are put in force, and `work` is called again. So is a `work` that
        changed nothing or raised an ApiException, since it may have seen an old state. Raises what `work` raises, and
        Unavailable.
        """
        async with self._lock:
            while True:
                begun_at = self._revision
                try:
                    result = await work()
                except BehindError:
                    await self._caught_up()
                except Unavailable:
                    raise
                except ApiException:
                    if not await self._caught_up():
                        raise
                else:
                    if self._revision != begun_at or not await self._caught_up():
                        return result

    async def commit(self, change: Change, plan: Plan, put_repositories: Sequence[ResolvedRepository] = ()) -> None:
        """Store a change with the new versions of hosts that it causes; put it in force, publish it, and push.

        Only what is called by `planned` may call it, and only once. `put_repositories`: those that the change puts, as
        `Catalog.resolve` returned them for the plan. A host that is offline gets its push after its next hello. Raises
        BehindError, and what `Store.write` raises.
        """
        planned_at = self._clock()
        desired, (came, left) = self._placement.desired(plan), self._placement.changed_pairs(plan)
        change = change._replace(
            desired=desired,
            put_repositories=[it.row for it in put_repositories],
            put_joined=[Joined(*pair, change.at) for pair in came],
            delete_joined=left,
            put_met=self._placement.met(plan),
            base=self._revision if self._store.is_shared else None,
        )
        written = await self._store.write(write_changes, change)
        if written is None:
            raise BehindError
        if change.also is not None:
            change.also.then(written.answer)
        timing = ChangeTiming(change.at, planned_at, self._clock())
        self._put_in_force(change, plan, put_repositories, {host: version for host, version, _ in desired}, timing)
        self._revision = written.revision

    async def follow(self) -> None:
        """Put in force what other servers changed, and push it to hosts that are connected here.

        Raises Unavailable, and StoreLostError when the log no longer has all of it, or has what cannot be read.
        """
        if self._store.is_shared:
            async with self._lock:
                await self._follow()

    async def catch_up(self) -> None:
        """Have in force what servers changed before this call. Raises Unavailable."""
        if self._store.is_shared and await self._store.read(changelog.head) != self._revision:
            async with self._lock:
                await self._caught_up()

    async def _caught_up(self) -> bool:
        """Follow the log. Returns whether it had anything new."""
        begun_at = self._revision
        if self._store.is_shared:
            try:
                await self._follow()
            except StoreLostError as error:  # whoever calls `follow` ends the server
                raise Unavailable(f"{error}: try again") from error
        return self._revision != begun_at

    async def _follow(self) -> None:
        while (found := await self._store.read(changelog.after, self._revision)).head != self._revision:
            if not found.entries or found.entries[0][0] != self._revision + 1:
                raise StoreLostError("the log of changes does not go on from what this server has in force")
            for revision, body in found.entries:
                try:
                    self._adopt(read_entry(body))
                except UNREADABLE as error:
                    log.exception("a change of another server cannot be put in force", extra={"revision": revision})
                    why = f"change {revision} in the log cannot be put in force here: {type(error).__name__}: {error}"
                    raise StoreLostError(why) from error
                self._revision = revision
                await asyncio.sleep(0)  # let other tasks run

    def _adopt(self, entry: Entry) -> None:
        """Put a change of another server in force: the same plan, with the versions that it gave."""
        catalog, placement = self._catalog, self._placement
        schedules = changes.rows(ScheduleRow, entry.schedules)
        resolved = [catalog.resolve(row) for row in changes.rows(RepositoryRow, entry.repositories)]
        hosts = changes.rows(HostRow, entry.hosts)
        deleted = [catalog.schedules[key] for key in entry.deleted_schedules]
        placed = [catalog.place(row) for row in schedules]
        placed += [catalog.place(row, resolved) for it in resolved for row in catalog.schedules_of(it.row)]
        plan = placement.plan(placed, [row.id for row in deleted]) if placed or deleted else Plan()
        plan = plan._replace(put_hosts=[self._state(row) for row in hosts], remove_hosts=entry.deleted_hosts)
        came, left = placement.changed_pairs(plan)
        change = Change(
            entry.at,
            desired=placement.desired(plan),
            put_schedules=schedules,
            delete_schedules=deleted,
            put_repositories=[it.row for it in resolved],
            delete_repositories=[catalog.repositories[key] for key in entry.deleted_repositories],
            put_hosts=hosts,
            delete_hosts=entry.deleted_hosts,
            delete_host_keys=entry.rekeyed,
            put_joined=[Joined(*pair, entry.at) for pair in came],
            delete_joined=left,
        )
        self._put_in_force(change, plan, resolved, entry.versions)

    def _state(self, row: HostRow) -> HostState:
        """The state of a host that another server created or labelled."""
        old, entries = self._placement.hosts.get(row.name), self._placement.match(row.labels)
        created_at = row.created_at if old is None else old.created_at
        return HostState(
            row.name,
            row.labels,
            row.since,
            row.desired_version,
            entries,
            created_at,
            host_spec(row.spec),
            row.drained_by,
        )

    def _put_in_force(
        self,
        change: Change,
        plan: Plan,
        put_repositories: Sequence[ResolvedRepository],
        versions: Mapping[str, int],
        timing: ChangeTiming | None = None,
    ) -> None:
        """Put a change in force, publish it, and push. `versions`: the new ones of hosts."""
        is_first = not self._catalog.schedules and bool(change.put_schedules)
        hosts = self._placement.hosts
        drained = [it.name for it in plan.put_hosts if (was := hosts.get(it.name)) is not None and was.drains]
        changed = dict.fromkeys((*(host for host, _, _ in change.desired), *versions))
        self._remember(change)
        other_windows = [it.id for it in plan.put if self._has_other_windows(it)]
        put_in_force(self._catalog, self._placement, change, plan, put_repositories, versions)
        for state in plan.put_hosts:
            if self._hub.session(state.name) is None:
                self._hub.add(Session(self._placement.hosts[state.name]))
        for name in plan.remove_hosts:
            self._hub.forget(name)  # one that has just said hello connects again, and is created anew
        for name in change.rekeyed:
            self._hub.disconnect(name)  # it was authenticated by a key that is no longer valid
        self._publish(change, changed, other_windows, timing)
        self._log(change)
        self._push(changed)
        for name in drained:
            if not hosts[name].drains and self._hub.is_connected_here(name):
                self._hub.send_away(name)  # its next hello brings the due times that passed meanwhile
        if is_first:  # agents that kept the schedules of another store now get what is declared here
            for session in self._hub.sessions():
                self._hub.deliver(session.name, session.resume_pushes())

    def _remember(self, change: Change) -> None:
        """Note when schedules and hosts are expected to succeed from now on."""
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

    def _push(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            if (session := self._hub.session(host)) is not None:
                self._hub.deliver(host, session.desired_changed())

    def _has_other_windows(self, new: PlacedSchedule) -> bool:
        """Whether a schedule that is put has other windows than it has now, or other ends of them."""
        old = self._placement.schedules.get(new.id)
        if old is None:
            return False
        was, its = old.spec, new.spec
        return (was.windows, was.time_zone, was.stop_at_end) != (its.windows, its.time_zone, its.stop_at_end)

    def _publish(
        self,
        change: Change,
        hosts_with_new_set: Iterable[str],
        other_windows: Sequence[str],
        timing: ChangeTiming | None,
    ) -> None:
        """Publish a change that is in force."""
        if change.is_declared:
            self._events.publish(
                DeclarationChanged(
                    schedules=[(row.namespace, row.name) for row in change.put_schedules],
                    repositories=[(row.namespace, row.name) for row in change.put_repositories],
                    hosts=[row.name for row in change.put_hosts],
                    deleted_schedules=[row.id for row in change.delete_schedules],
                    deleted_repositories=[row.id for row in change.delete_repositories],
                    deleted_hosts=change.delete_hosts,
                    hosts_with_new_set=list(hosts_with_new_set),
                    other_windows=other_windows,
                    joins=any(it.due for it in change.put_met),
                    timing=timing,
                )
            )

    def _log(self, change: Change) -> None:
        """Log a change that was made here, before its pushes are logged."""
        for message, extra in change.warnings:
            log.warning(message, extra=dict(extra))
        for line in change.audit:
            if (logged := _LOGGED.get((line.object_kind, line.action))) is not None:
                subject, message = logged
                due = [self._placement.next_due(row.id, self._clock()) or "never" for row in change.put_schedules]
                facts = {"cron": schedule_spec(change.put_schedules[0].spec).cron_text, "next": due[0]} if due else {}
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
