"""What every change goes through: checked, worked out, stored with its audit line, put in force, pushed.

One change at a time: the plan of one must not be overtaken by the next. In one transaction go the resource, the audit
line, and the new version of every host whose set it changes, so that a kill leaves all of it or nothing.
"""

import asyncio
import gc
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import Connection

import cron
from server import commands, records, resources
from server.bindings import binding_errors
from server.controllers import Controllers, ControllerState
from server.desired import Fleet, Member, Plan, Target, entry_item
from server.dispatch import Dispatch, stored, then
from server.expected import Beginnings, Expected, Joined, Pair, overdue, success_within
from server.grants import NOTHING, Grants, path_errors, url_errors
from server.host import MAX_RUNS, Alike, Effect, Host, NewJob, NotInForce, held_alike, new_job
from server.metrics import Metrics
from server.models import OPEN, Actor
from server.news import News
from server.problems import Conflict, FieldError, Forbidden, Invalid, NotFound
from server.queue import Job, pieces
from server.records import AuditRow, HostRow, JobRow, RepositoryRow, Row, ScheduleRow
from server.selectors import selector_matches
from server.specs import LabelSelector
from server.store import Store
from server.timing import superseded, timing
from server.trouble import NAMED, Access, Coverage, no_host
from server.urls import SCHEMES, scheme_errors
from server.vault import Credentials, Vault, VaultError
from server.versions import Condition, host_version, unconditional, version_of
from wire.entries import EMPTY, EntrySet
from wire.messages import CommandRun, HostName, JobFinished, RepoCredentials, Repository

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Seconds after which the clock is looked at again: it may have been set back."""

R = TypeVar("R", ScheduleRow, RepositoryRow)
Key = tuple[str, str]
"""(namespace, name)."""


class Needed(NamedTuple):
    """A repository that a host needs. `whose`: the host whose name is in its URL; "" for that host's own."""

    row: RepositoryRow
    whose: str = ""


class Place(NamedTuple):
    """A repository as its schedules need it. `init`: what creates it, where that is wished. `wrong`: why its URL, or
    the Secrets with it, are not allowed; what was allowed once may not be any more. `opened`: whether a password is
    known that opens it."""

    row: RepositoryRow
    init: list[str] | None
    wrong: Sequence[FieldError]
    opened: bool


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

    records.audit(conn, [change.audit for change in changes])
    records.upsert_repositories(conn, each("put_repositories"))
    records.upsert_schedules(conn, each("put_schedules"))
    records.delete_schedules(conn, [row.id for row in each("delete_schedules")])
    records.delete_repositories(conn, [row.id for row in each("delete_repositories")])
    records.upsert_hosts(conn, each("put_hosts"))
    records.delete_hosts(conn, each("delete_hosts"))
    records.set_desired(conn, [each("desired")])
    records.delete_joined(conn, each("delete_joined"))
    records.upsert_joined(conn, each("put_joined"))
    put = records.record_jobs(conn, [change.put_jobs for change in changes])
    records.jobs_cancelled(conn, [each("cancel_jobs")])
    records.jobs_finished(conn, [each("end_jobs")])
    return put


class Control:
    """The desired state and its changes.

    The gateway sets how hosts that are online are reached: `deliver` writes effects to one, `disconnect` ends its
    connection.
    """

    def __init__(
        self,
        store: Store,
        vault: Vault,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        grants: Grants | None = None,
        schemes: Sequence[str] = SCHEMES,
    ) -> None:
        self.fleet = Fleet()
        self.beginnings = Beginnings()
        self.hosts: dict[str, Host] = {}
        self.schedules: dict[Key, ScheduleRow] = {}
        self.repositories: dict[Key, RepositoryRow] = {}
        self._places: dict[str, Place] = {}
        self.deliver: Callable[[str, Sequence[Effect]], None] = lambda host, effects: None
        self.is_connected: Callable[[str], bool] = lambda host: False
        self.last_heard: Callable[[str], datetime | None] = lambda host: None
        self.news = News()
        self.metrics = Metrics()
        self.controllers = Controllers(clock)
        self.jobs = Dispatch(store.submit, self.fleet, self.metrics, self.news, clock)
        self.jobs.lacks = self._lacks
        self.disconnect: Callable[[str], None] = lambda host: None
        self._store = store
        self._vault = vault
        self._clock = clock
        self._new_id = new_id
        self._grants = grants or Grants()
        self._schemes = schemes
        self._changing = asyncio.Lock()
        self._newcomers: set[str] = set()
        self._enabled: WeakKeyDictionary[EntrySet, int] = WeakKeyDictionary()
        self._needed: WeakKeyDictionary[EntrySet, tuple[Needed, ...]] = WeakKeyDictionary()

    def _lacks(self, host: str, command: CommandRun) -> str:
        known = self.hosts.get(host)
        return (known.lacks(command) if known is not None else "") or self._withdrawn(host, command)

    def _withdrawn(self, host: str, command: CommandRun) -> str:
        """Why a job may not run that was recorded when more was granted; empty where it may."""
        place, member = self._places.get(command.repository.partition("/")[0]), self.fleet.members.get(host)
        if place is None or member is None:
            return ""
        if place.wrong:
            return f"{_name(place.row)}: {_said(place.wrong)}"
        grant = self._grants.of(place.row.namespace)
        if grant.still_grants(command.within, command.host_identity) and grant.selects(member.labels):
            return ""
        return f"namespace {place.row.namespace} was granted more when this was asked for: ask for it again"

    # Schedules.

    async def put_schedule(
        self, actor: Actor, manifest: object, condition: Condition = unconditional
    ) -> tuple[Row, bool]:
        """Create a schedule or make it what the manifest says; one that says so already changes nothing.

        Returns the resource, and whether it is new. Raises Invalid, naming the fields, and what `condition` does.
        """
        parsed = resources.parse_schedule(manifest)
        self._check_granted(parsed.namespace, paths=parsed.spec.backup.paths if parsed.spec.backup else ())
        if parsed.spec.kind not in commands.KINDS:
            runs = ", ".join(sorted(commands.KINDS))
            raise _invalid("spec.kind", f"{parsed.spec.kind!r} is not run by this version: use one of {runs}")
        async with self._changing:
            old = self.schedules.get((parsed.namespace, parsed.name))
            condition(version_of(old))
            repository = self.repositories.get((parsed.namespace, parsed.spec.repository))
            if repository is None:
                there = f"there is no Repository {parsed.spec.repository!r} in namespace {parsed.namespace!r}"
                raise _invalid("spec.repositoryRef.name", f"{there}: create it first, or name one that exists")
            if old is not None and (old.spec, old.labels) == (parsed.raw_spec, parsed.labels):
                return old._asdict(), False
            now = self._clock()
            row = self._schedule_row(old, parsed, now)
            audit = _audit(now, actor, "update" if old else "create", "Schedule", _name(row), spec=row.spec)
            target = self._target(row, self.place(repository))
            await self._change(Change(audit, put_schedules=[row]), self.fleet.plan([target]))
            return row._asdict(), old is None

    async def delete_schedule(
        self, actor: Actor, namespace: str, name: str, condition: Condition = unconditional
    ) -> None:
        """Delete a schedule: no host fires it any more. Its jobs stay. Raises NotFound, and what `condition` does."""
        async with self._changing:
            row = _found("Schedule", self.schedules, namespace, name)
            condition(version_of(row))
            now = self._clock()
            audit = _audit(now, actor, "delete", "Schedule", _name(row))
            await self._change(Change(audit, delete_schedules=[row]), self.fleet.plan(remove=[row.id]))

    # Repositories.

    async def put_repository(
        self, actor: Actor, manifest: object, condition: Condition = unconditional
    ) -> tuple[Row, bool]:
        """Create a repository or make it what the manifest and its credentials say. Raises Invalid.

        Every host whose schedules use it gets the credentials anew, and a new version of its set.
        """
        parsed = resources.parse_repository(manifest)
        if wrong := list(scheme_errors(parsed.spec.url, self._schemes)):
            raise Invalid("the Repository is not valid", wrong)
        self._check_granted(parsed.namespace, url=parsed.spec.url)
        given, grant = parsed.credentials or Credentials(), self._grants.of(parsed.namespace)
        if wrong := list(binding_errors(parsed.namespace, parsed.spec, given, grant)):
            raise Forbidden("the Secret is not for this repository", wrong)
        async with self._changing:
            old = self.repositories.get((parsed.namespace, parsed.name))
            condition(version_of(old))
            kept = self._kept(old) if old is not None else None
            if old is not None and (old.spec, old.labels, kept) == (parsed.raw_spec, parsed.labels, parsed.credentials):
                return old._asdict(), False
            now = self._clock()
            row = self._repository_row(old, parsed, now)
            if parsed.trimmed:
                log.warning(
                    "newline at the end of a secret left out",
                    extra={"repository": _name(row), "fields": ", ".join(parsed.trimmed)},
                )
            changed = "changed" if kept != parsed.credentials else "unchanged"
            detail = {"spec": row.spec, "credentials": changed}
            audit = _audit(now, actor, "update" if old else "create", "Repository", _name(row), **detail)
            place = self._placed(row)
            users = [self._target(it, place) for it in self.schedules.values() if _uses(it, row)]
            await self._change(Change(audit, put_repositories=[row]), self.fleet.plan(users))
            return row._asdict(), old is None

    async def delete_repository(
        self, actor: Actor, namespace: str, name: str, condition: Condition = unconditional
    ) -> None:
        """Delete a repository's declaration; what is in it stays. Raises NotFound, Conflict while it is used."""
        async with self._changing:
            row = _found("Repository", self.repositories, namespace, name)
            condition(version_of(row))
            if users := sorted(_name(it) for it in self.schedules.values() if _uses(it, row)):
                raise Conflict(f"{_name(row)} is used by Schedule {', '.join(users[:5])}: delete or change that first")
            now = self._clock()
            audit = _audit(now, actor, "delete", "Repository", _name(row))
            await self._change(Change(audit, delete_repositories=[row]), self.fleet.plan())

    # Hosts.

    async def put_host(
        self, actor: Actor, name: str, labels: Mapping[str, str], condition: Condition = unconditional
    ) -> tuple[Row, bool]:
        """Make a host known, or give it these labels in place of those it had. Raises Invalid."""
        try:
            msgspec.convert(name, HostName)
        except msgspec.ValidationError:
            raise _invalid("name", "a host is named like a DNS name: lower case letters, digits, '-' and '.'") from None
        async with self._changing:
            created = name not in self.hosts
            condition(None if created else host_version(self.fleet.members[name].labels))
            await self._put_host(actor, name, labels)
            host = await self._store.read(records.get_host, name)
        assert host is not None  # noqa: S101 - it was just stored
        return host, created

    async def delete_host(self, actor: Actor, name: str, condition: Condition = unconditional) -> None:
        """Forget a host; its jobs stay, those that are open end. Raises NotFound, Conflict while it is connected."""
        async with self._changing:
            if name not in self.hosts:
                raise NotFound(f"there is no host {name!r}")
            condition(host_version(self.fleet.members[name].labels))
            if self.is_connected(name):
                raise Conflict(f"{name} is connected: stop its agent first")
            now = self._clock()
            audit = _audit(now, actor, "delete", "Host", name)
            error = "its host was deleted"
            ends = [JobFinished(job.id, "cancelled", now, error=error) for job in self.jobs.queue.of_host(name)]
            await self._change(Change(audit, delete_hosts=[name], end_jobs=ends), self.fleet.plan())
            del self.hosts[name], self.fleet.members[name]
            self.beginnings.forget_host(name)
            self.disconnect(name)  # one that said hello meanwhile calls again, and is made known anew after this
            for some in pieces(ends):
                self.jobs.ended(some)
                await asyncio.sleep(0)  # others come between
            self.jobs.outcomes.forget(host=name)

    async def host(self, name: str) -> Host:
        """The core of a host that says hello; a host that nobody declared is made known, without labels.

        Hosts that say their first hello while a change is being made are made known together.
        """
        if name not in self.hosts:
            self._newcomers.add(name)
            async with self._changing:
                new = sorted(self._newcomers)
                unknown = [it for it in new if it not in self.hosts]
                await asyncio.gather(*(self._put_host(Actor("agent", it), it, {}) for it in unknown))
                self._newcomers.difference_update(new)
        return self.hosts[name]

    async def _put_host(self, actor: Actor, name: str, labels: Mapping[str, str]) -> None:
        now = self._clock()
        old = self.fleet.members.get(name)
        if old is not None and old.labels == labels:
            return
        held = self.fleet.match(labels)
        before = old.held if old is not None else EMPTY
        version = (self.hosts[name].version if old is not None else 0) + (held != before)
        audit = _audit(now, actor, "update" if old else "create", "Host", name, labels=dict(labels))
        since = old.since if old is not None and held == before else now
        row = HostRow(name, dict(labels), now, since, version, held.digest)
        joined = [Joined(id_, name, now) for id_ in held.items if id_ not in before.items] if old is not None else []
        left = [(id_, name) for id_ in before.items if id_ not in held.items]
        desired = [(name, version, held.digest)]
        change = Change(audit, desired, put_hosts=[row], put_joined=joined, delete_joined=left)
        await self._store.write(write_changes, change)
        if old is None:
            self.beginnings.put_host(name, now)
        self.beginnings.leave(left)
        self.beginnings.join(joined)
        self.fleet.members[name] = Member(dict(labels), since, held)
        self.news.changed("schedules", "hosts")
        if name not in self.hosts:
            self.hosts[name] = Host(name, since, version, held, now)
        elif held != before:
            self.deliver(name, self.hosts[name].changed(version, held, since))

    # Jobs.

    async def run_now(self, actor: Actor, namespace: str, name: str, hosts: Sequence[str] | None) -> list[Row]:
        """Run a schedule once, now, on its hosts or on some of them. Raises NotFound, Invalid, Conflict for no host."""
        row = _found("Schedule", self.schedules, namespace, name)
        target = self.fleet.targets[row.id]
        matched = self.fleet.matched(target, hosts)
        if hosts is None and not matched:
            raise Conflict(f"{_name(row)} has no host: hostSelector must select one that its namespace is granted")
        if hosts is not None and (others := sorted(set(hosts) - set(matched))):
            raise _invalid("hosts", f"{_name(row)} does not select {', '.join(others[:5])}")
        now = self._clock()
        jobs = [self._run_of(target, host, self._new_id(), actor, now) for host in matched]
        await self.record(jobs, _audit(now, actor, "run", "Schedule", _name(row), hosts=matched))
        return await self._store.read(records.get_jobs, [job.command.job_id for job in jobs])

    async def start_run(self, actor: Actor, namespace: str, name: str, run: str, selector: LabelSelector) -> Row:
        """Run a schedule once, now, on those of its hosts that a selector selects; the same run again changes nothing.

        `run`: the id of the run, 1 to 40 characters. Returns how far it is. Raises NotFound.
        """
        row = _found("Schedule", self.schedules, namespace, name)
        target = self.fleet.targets[row.id]
        now, run_id = self._clock(), f"{namespace}/{run}"
        labels = {host: self.fleet.members[host].labels for host in self.fleet.matched(target)}
        hosts = [host for host, has in labels.items() if selector_matches(selector, has)]
        before = await self._store.read(records.run_status, run_id)
        ids = {host: records.lasting_job_id("run", namespace, run, host) for host in hosts}
        if before["hosts"] == 0 and not any(job_id in self.jobs.queue.jobs for job_id in ids.values()) and hosts:
            jobs = [self._run_of(target, host, job_id, Actor("run", run_id), now) for host, job_id in ids.items()]
            await self.record(jobs, _audit(now, actor, "run", "Schedule", _name(row), run=run_id, hosts=hosts))
        return await self._store.read(records.run_status, run_id)

    def _run_of(self, target: Target, host: str, job_id: str, actor: Actor, now: datetime) -> NewJob:
        """A job that somebody asked for. Where its schedule's last run is not over, it waits for it or replaces it."""
        return new_job(target, host, job_id, None, now, self.jobs.queue.runs(target.id, host), actor)

    async def record(self, jobs: Sequence[NewJob], audit: AuditRow) -> None:
        """Store jobs that somebody asked for, and have those run that may. Raises Conflict where too many are open."""
        for job in jobs:
            if len(self.jobs.queue.runs(job.command.schedule_id, job.host)) >= MAX_RUNS:
                raise Conflict(f"{MAX_RUNS} such jobs of {job.host} are not over: cancel some, or ask again later")
        change = Change(audit)
        await stored(self.jobs.record(jobs, lambda it: self._store.submit(write_changes, change._replace(put_jobs=it))))

    async def cancel_job(self, actor: Actor, job_id: str) -> Row:
        """Have a job end as cancelled. Raises NotFound, Conflict for one that has ended.

        A host that is online says itself how a job ended that was sent to it. Any other job is over at once; if its
        host has it nevertheless, that is told at its next hello.
        """
        job = await self._job(job_id)
        if job["status"] not in OPEN:
            raise Conflict(f"job {job_id} has ended already: {job['status']}")
        why = f"cancelled by {actor.id}"
        ends, asked = self.jobs.to_cancel([job_id], why)
        audit = _audit(self._clock(), actor, "cancel", "Job", job_id)
        future = self._store.submit(write_changes, Change(audit, end_jobs=ends, cancel_jobs=asked))
        await stored(then(future, lambda _: self.jobs.cancelled(ends, asked, why)))
        return await self._job(job_id)

    async def _job(self, job_id: str) -> Row:
        job = await self._store.read(records.get_job, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        return job

    def _check_granted(self, namespace: str, paths: Sequence[str] = (), url: str | None = None) -> None:
        """Raises Forbidden, which names what a namespace may not reach."""
        grant = self._grants.of(namespace)
        wrong = list(path_errors(grant, namespace, paths, "spec.backup.paths"))
        wrong += url_errors(grant, namespace, url) if url is not None else ()
        if wrong:
            raise Forbidden(f"namespace {namespace} may not reach this", wrong)

    # What hosts are told.

    async def coverage(self, schedule_ids: Collection[str]) -> dict[str, Coverage]:
        """On which hosts each of these schedules is, and how it is going there.

        Others have their turn on the event loop after each schedule, which takes as long as its hosts are many.
        """
        now, found = self._clock(), {}
        groups = held_alike(self.hosts.values())
        hanging: dict[str, set[str]] = {}
        for job in self.jobs.queue.hanging(now):
            hanging.setdefault(job.command.schedule_id, set()).add(job.host)
        for id_ in schedule_ids:
            await asyncio.sleep(0)
            having = [it for it in groups if id_ in it.held.items]
            found[id_] = self._coverage(id_, having, hanging.get(id_, set()), now)
        return found

    def _coverage(self, schedule_id: str, having: Sequence[Alike], hanging: Collection[str], now: datetime) -> Coverage:
        """How it is going with a schedule on the hosts that have it. `hanging`: where runs of it hang."""
        target = self.fleet.targets.get(schedule_id)
        names = set().union(*(it.names for it in having))
        behind = sorted(chain.from_iterable(it.behind(schedule_id) for it in having))
        failed, warned = self.jobs.outcomes.failed(schedule_id, names), self.jobs.outcomes.warned(schedule_id, names)
        within = success_within(target.spec) if target is not None else timedelta()
        kept_out = self._kept_out(target)
        late = overdue(self._since(schedule_id, names), within, now) if target and target.spec.enabled else []
        succeeded = [at for host, at in self.jobs.outcomes.succeeded(schedule_id).items() if host in names]
        return Coverage(
            len(names),
            len(names) - len(behind),
            behind[:NAMED],
            len(failed),
            failed[:NAMED],
            len(warned),
            warned[:NAMED],
            {host: self.jobs.outcomes.why(schedule_id, host) for host in (*failed[:NAMED], *warned[:NAMED])},
            len(kept_out),
            kept_out[:NAMED],
            self._denied(target),
            target is not None and target.spec.enabled,
            self._no_host(target) if target is not None and target.spec.enabled and not names else "",
            target is None or self.access(target.repository_id).opened,
            len(late),
            late[:NAMED],
            within,
            sorted(names.intersection(hanging)),
            len(names) - len(succeeded),
            min(succeeded, default=None),
            _refused_hooks(target, chain.from_iterable(it.hosts for it in having)),
        )

    def _since(self, schedule_id: str, hosts: Iterable[str]) -> dict[str, datetime]:
        """When a schedule last went well on each of these hosts, or since when it should, whichever is later."""
        since = self.beginnings.since(schedule_id, hosts)
        for host, at in self.jobs.outcomes.succeeded(schedule_id).items():
            if host in since and at > since[host]:
                since[host] = at
        return since

    def expected(self) -> list[Expected]:
        """Each enabled schedule with the hosts that should have a success of it. Any thread may ask."""
        now = self._clock()
        groups: dict[EntrySet, list[str]] = {}
        for known in list(self.hosts.values()):
            groups.setdefault(known.held, []).append(known.name)
        having: dict[str, list[str]] = {}
        for held, names in groups.items():
            for schedule_id in held.items:
                having.setdefault(schedule_id, []).extend(names)
        found = []
        for row in list(self.schedules.values()):
            target = self.fleet.targets.get(row.id)
            if target is not None and target.spec.enabled:
                outcomes, has = self.jobs.outcomes, set(having.get(row.id, ()))
                within, since = success_within(target.spec), self._since(row.id, has)
                ends = len(outcomes.failed(row.id, has)), len(outcomes.warned(row.id, has))
                found.append(Expected(row.namespace, row.name, within, since, overdue(since, within, now), *ends))
        return found

    def _denied(self, target: Target | None) -> str:
        """Why no host has a schedule, whatever its labels: what its namespace may not reach. Empty where it may."""
        if target is None or target.granted != NOTHING:
            return ""
        namespace, _, name = target.name.partition("/")
        place = self.place(self.repositories[_repository_of(self.schedules[namespace, name])])
        paths = target.spec.backup.paths if target.spec.backup else ()
        return _said([*path_errors(self._grants.of(namespace), namespace, paths, "spec.backup.paths"), *place.wrong])

    def told_of(self, name: str, left_out: Mapping[str, str]) -> Row:
        """What REST tells of a host beside its row. `left_out`: why, by the id of each that is not in force."""
        host, targets = self.hosts.get(name), self.fleet.targets
        names = {key: targets[key].name if key in targets else key for key in left_out}
        problems = host.problems(self._clock(), names) if host is not None else []
        return {
            "left_out": [{"schedule": names[key], "reason": why} for key, why in left_out.items()],
            "schedules": self._enabled_in(host.held) if host is not None else 0,
            "clock_skew_seconds": host.clock_skew_s if host is not None else None,
            "problems": [msgspec.structs.asdict(problem) for problem in problems],
        }

    def hosts_without_schedules(self) -> int:
        """How many hosts no enabled schedule selects. Any thread may ask."""
        groups = Counter(host.held for host in list(self.hosts.values()))
        return sum(hosts for held, hosts in groups.items() if not self._enabled_in(held))

    def _enabled_in(self, held: EntrySet) -> int:
        """How many schedules of a set are enabled; counted once for all hosts that hold the same."""
        count = self._enabled.get(held)
        if count is None:
            targets = (self.fleet.targets.get(key) for key in held.items)
            count = self._enabled[held] = sum(it is not None and it.spec.enabled for it in targets)
        return count

    def _kept_out(self, target: Target | None) -> list[str]:
        """The hosts that a schedule selects and that are not granted to its namespace."""
        if target is None or target.granted == LabelSelector():
            return []
        wanted = target.spec.host_selector
        members = self.fleet.members.items()
        return sorted(
            name for name, it in members if selector_matches(wanted, it.labels) and not target.selects(it.labels)
        )

    def _no_host(self, target: Target) -> str:
        """Why no host has the labels that a schedule selects. Told are those of hosts that it may run on."""
        labels = (it.labels for it in self.fleet.members.values())
        return no_host(target.spec.host_selector, (it for it in labels if selector_matches(target.granted, it)))

    def controller_states(self) -> list[ControllerState]:
        """How the controllers are that should be at work. Any thread may ask."""
        schedules, hosts = list(self.schedules.values()), list(self.fleet.members.values())
        labels = chain((it.labels for it in schedules), (it.labels for it in hosts))
        return self.controllers.states(chain(labels, (it.labels for it in list(self.repositories.values()))))

    def now(self) -> datetime:
        """The server's clock."""
        return self._clock()

    async def follow_clock(self, look_s: float = LOOK_S) -> None:
        """Notice, for ever, when the server's clock is set back: what it said before is not to hide what is wrong."""
        latest = self._clock()
        while True:
            await asyncio.sleep(look_s)
            now = self._clock()
            if now < latest:
                log.warning("the clock was set back", extra={"seconds": round((latest - now).total_seconds())})
                self.beginnings.clock_set_back(now)
                self.jobs.clock_set_back(now)
                self.news.changed("schedules", "repositories", "runs")
            latest = now

    def next_due(self, schedule_id: str) -> datetime | None:
        """When a schedule is due next, spread aside; None for one that is disabled or unknown, or that never is.

        It never is where an older release, or one with another tzdata, stored what is no expression or zone here.
        """
        target = self.fleet.targets.get(schedule_id)
        if target is None or not target.spec.enabled:
            return None
        try:
            return cron.next_due(cron.parse(target.spec.cron), cron.zone(target.spec.time_zone), self._clock())
        except cron.CronError:
            return None

    def repositories_of(self, host: str) -> tuple[Needed, ...]:
        """The repositories that a host's schedules use, and those of its open jobs that are of none; no others."""
        jobs = self.jobs.queue.runs("", host)
        return self._scheduled(host) + self._asked(jobs) if jobs else self._scheduled(host)

    def _asked(self, jobs: Iterable[Job]) -> tuple[Needed, ...]:
        """What jobs need that somebody asked for."""
        wanted: dict[str, dict[str, None]] = {}
        for job in jobs:
            wanted.setdefault(job.repository, {})[job.whose if job.whose != job.host else ""] = None
        return tuple(Needed(row, whose) for row in self.repositories.values() for whose in wanted.get(row.id, ()))

    def _scheduled(self, host: str) -> tuple[Needed, ...]:
        """What a host's schedules need; found once for all hosts that hold the same.

        A set's digest covers them: an entry's revision changes with its repository, credentials and all.
        """
        held = self.fleet.members[host].held
        needed = self._needed.get(held)
        if needed is None:
            ids = {self.fleet.targets[key].repository_id for key in held.items}
            needed = self._needed[held] = tuple(Needed(row) for row in self.repositories.values() if row.id in ids)
        return needed

    def credentials(self, host: str, repositories: Iterable[Needed]) -> RepoCredentials:
        """What opens these repositories on a host; those whose credentials cannot be opened, or must not be used with
        the repository's URL (any more), are left out."""
        told = []
        for row, whose in repositories:
            facts = {"repository": _name(row), "host": host}
            if wrong := self.place(row).wrong:
                log.warning("credentials left out", extra={**facts, "reason": _said(wrong)})
                continue
            try:
                told.append(self._repository(row, host, whose))
            except VaultError as error:
                log.error("credentials left out", extra={**facts, "reason": error})
        return RepoCredentials(told)

    def _repository(self, row: RepositoryRow, host: str, whose: str) -> Repository:
        spec = resources.repository_spec(row.spec)
        secret = self._opened(row)
        url = commands.repository_url(spec, row.namespace, whose or host)
        id_ = commands.repository_id(row.id, spec, whose or host, host)
        return Repository(id_, _name(row), url, secret.password if secret else "", secret.env if secret else {})

    # The way of a change.

    async def _change(self, change: Change, plan: Plan) -> None:
        """Store a change with the new versions it causes; then put it in force, and push to those who are online."""
        versions = {host: self.hosts[host].version + 1 for host in plan.sets}
        desired = [(host, versions[host], held.digest) for host, held in plan.sets.items()]
        came, left = self.fleet.moved(plan)
        joined = [Joined(*pair, change.audit.at) for pair in came]
        change = change._replace(desired=desired, put_joined=joined, delete_joined=left)
        await self._store.write(write_changes, change)
        self._count(change)
        _put_and_drop(self.schedules, change.put_schedules, change.delete_schedules)
        _put_and_drop(self.repositories, change.put_repositories, change.delete_repositories)
        for schedule in change.delete_schedules:
            self.jobs.outcomes.forget(schedule_id=schedule.id)
            self.beginnings.forget_schedule(schedule.id)
        for repository in change.delete_repositories:
            self.jobs.forget(repository)
            self._places.pop(repository.id, None)
        for repository in change.put_repositories:
            self._places[repository.id] = self._placed(repository)
            self.jobs.follow(repository)
        self.fleet.commit(plan)
        self.news.changed("schedules", "repositories", "hosts")
        self._tell(change)
        for host, held in plan.sets.items():
            self.deliver(host, self.hosts[host].changed(versions[host], held, self.fleet.members[host].since))
        if change.put_schedules and len(self.schedules) == len(change.put_schedules):  # the first that this store has
            for it in self.hosts.values():
                self.deliver(it.name, it.declared())

    def _count(self, change: Change) -> None:
        """Since when schedules count on hosts after a change of what is declared."""
        for row in change.put_schedules:
            self.beginnings.put_schedule(row.id, row.enabled_since or row.since)
        self.beginnings.leave(change.delete_joined)
        self.beginnings.join(change.put_joined)

    def _tell(self, change: Change) -> None:
        """Say in the log what is in force now, before its pushes say so themselves."""
        audit, facts = change.audit, {}
        for row in change.put_schedules:
            facts = {"cron": row.spec["cron"], "next": self.next_due(row.id) or "never"}
        kind = audit.object_kind.lower()
        log.info("%s %s", kind, _DONE[audit.action], extra={kind: audit.object_name, **facts})

    async def load(self) -> None:
        """Take in what the store holds; a host whose set is not what it was stored as gets a new version.

        Credentials that an older key sealed are sealed with the first.
        """
        with _growing():
            loaded = await self._store.read(records.load_all, self._clock())
            renewed = [self._renewed(row) for row in loaded.repositories]
            moved = self._take_in(loaded._replace(repositories=renewed))
        changed = [new for new, old in zip(renewed, loaded.repositories, strict=True) if new != old]
        await asyncio.gather(*(self._store.write(records.upsert_repositories, row) for row in changed))
        await self._store.write(records.set_desired, moved)

    def _take_in(self, loaded: records.Loaded) -> list[tuple[str, int, str]]:
        """Put what was loaded in force; the hosts that get a new version, with it and its digest."""
        _put_and_drop(self.repositories, loaded.repositories, ())
        _put_and_drop(self.schedules, loaded.schedules, ())
        self._places = {row.id: self._placed(row) for row in loaded.repositories}
        of = self.repositories
        self.fleet.put(self._target(row, self.place(of[_repository_of(row)])) for row in loaded.schedules)
        moved = []
        for row in loaded.hosts:
            held = self.fleet.match(row.labels)
            version = row.desired_version + (row.desired_digest != held.digest)
            if version != row.desired_version:
                moved.append((row.name, version, held.digest))
            self.fleet.members[row.name] = Member(row.labels, row.since, held)
            self.beginnings.put_host(row.name, row.created_at)
            self.hosts[row.name] = host = Host(row.name, row.since, version, held, row.created_at)
            host.applied_version, host.applied_digest = row.applied_version, row.applied_digest
            host.left_out = msgspec.convert(row.left_out or {}, NotInForce)
        for schedule in loaded.schedules:
            self.beginnings.put_schedule(schedule.id, schedule.enabled_since or schedule.since)
        self.beginnings.join(loaded.joined)
        self.beginnings.clock_set_back(self._clock())  # it may have been since then
        for repository in loaded.repositories:
            self.jobs.follow(repository)
        self.jobs.load(loaded.last_ends, loaded.open_jobs)
        return moved

    def place(self, row: RepositoryRow) -> Place:
        """A repository that is in force, as its schedules need it."""
        return self._places[row.id]

    def _placed(self, row: RepositoryRow) -> Place:
        spec, grant = resources.repository_spec(row.spec), self._grants.of(row.namespace)
        given = self._kept(row) or Credentials()
        wrong = chain(
            url_errors(grant, row.namespace, spec.url),
            scheme_errors(spec.url, self._schemes),
            binding_errors(row.namespace, spec, given, grant),
        )
        return Place(row, commands.init_args(spec), tuple(wrong), bool(given.password))

    def access(self, repository_id: str) -> Access:
        """Whether a repository can be used. One that was deleted meanwhile lacks nothing."""
        place = self._places.get(repository_id)
        return Access(_said(place.wrong), place.opened) if place is not None else Access("", opened=True)

    def _target(self, row: ScheduleRow, place: Place) -> Target:
        """A schedule as hosts are matched with it. Its revision covers all that its runs depend on."""
        spec, repository, grant = resources.schedule_spec(row.spec), place.row, self._grants.of(row.namespace)
        basis = (row.generation, row.spec, repository.id, repository.generation)
        revision = hashlib.blake2b(msgspec.json.encode(basis, order="deterministic"), digest_size=8).hexdigest()
        item = entry_item(row.id, _name(row), spec, row.since, revision)
        paths = spec.backup.paths if spec.backup else ()
        allowed = not place.wrong and not any(path_errors(grant, row.namespace, paths, ""))
        granted = grant.host_selector if allowed else NOTHING
        matched = (spec, repository.id, place.init, item, granted, grant.within, grant.host_identity)
        return Target(row.id, _name(row), *matched, row.since, row.earlier)

    def _schedule_row(self, old: ScheduleRow | None, parsed: resources.Schedule, now: datetime) -> ScheduleRow:
        """The row of a new or changed schedule. When it is due begins anew where that changes, not to run the past."""
        row = ScheduleRow(
            old.id if old else self._new_id(),
            parsed.namespace,
            parsed.name,
            parsed.labels,
            parsed.raw_spec,
            old.generation + (old.spec != parsed.raw_spec) if old else 1,
            old.created_at if old else now,
            now,
            now,
            now,
        )
        if old is None:
            return row
        if old.spec["enabled"]:
            row = row._replace(enabled_since=old.enabled_since or old.since)
        if all(old.spec.get(key) == row.spec.get(key) for key in _TIMING):
            return row._replace(since=old.since, earlier=old.earlier)
        spec = resources.schedule_spec(old.spec)
        return row._replace(earlier=superseded(timing(spec, old.since), old.earlier) if spec.enabled else old.earlier)

    def _repository_row(self, old: RepositoryRow | None, parsed: resources.Repository, now: datetime) -> RepositoryRow:
        sealed = self._vault.seal(parsed.credentials) if parsed.credentials is not None else None
        return RepositoryRow(
            old.id if old else self._new_id(),
            parsed.namespace,
            parsed.name,
            parsed.labels,
            parsed.raw_spec,
            old.generation + 1 if old else 1,
            old.created_at if old else now,
            now,
            sealed,
        )

    def _kept(self, row: RepositoryRow) -> Credentials | None:
        """The credentials that a repository has; None also for those that cannot be opened, which may be replaced."""
        try:
            return self._opened(row)
        except VaultError:
            return None

    def _renewed(self, row: RepositoryRow) -> RepositoryRow:
        try:
            return row if row.credentials is None else row._replace(credentials=self._vault.renew(row.credentials))
        except VaultError:  # told when a host needs them
            return row

    def _opened(self, row: RepositoryRow) -> Credentials | None:
        return self._vault.unseal(row.credentials) if row.credentials is not None else None


@contextmanager
def _growing() -> Iterator[None]:
    """While entered, memory is filled with what stays: the collector, which would walk all of it again and again for
    nothing, is off, and later leaves it alone (gc.freeze)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


_DONE = {"create": "accepted", "update": "changed", "delete": "deleted"}
_TIMING = ("cron", "timeZone", "enabled", "hostSelector", "spreadSeconds")


def _said(wrong: Sequence[FieldError]) -> str:
    """Some of what is wrong, in one text."""
    return "; ".join(f"{it['field']} {it['detail']}" for it in wrong[:NAMED])


def _invalid(field: str, detail: str) -> Invalid:
    return Invalid("the request is not allowed", [{"field": field, "detail": detail}])


def _found(kind: str, rows: Mapping[Key, R], namespace: str, name: str) -> R:
    row = rows.get((namespace, name))
    if row is None:
        raise NotFound(f"there is no {kind} {namespace}/{name}")
    return row


def _put_and_drop(rows: dict[Key, R], put: Sequence[R], drop: Sequence[R]) -> None:
    rows.update({(row.namespace, row.name): row for row in put})
    for row in drop:
        del rows[row.namespace, row.name]


def _refused_hooks(target: Target | None, having: Iterable[Host]) -> dict[str, list[str]]:
    """The hooks of an enabled schedule that agents do not allow, each with the hosts whose agents said so."""
    hooks = target.spec.hooks if target is not None and target.spec.enabled else None
    programs = dict.fromkeys(argv[0] for argv in (hooks.before, hooks.after) if argv) if hooks is not None else ()
    if not programs:
        return {}
    said = [(host.name, host.allowed_hooks) for host in having if host.allowed_hooks is not None]
    refused = {program: sorted(name for name, allowed in said if program not in allowed) for program in programs}
    return {program: hosts for program, hosts in refused.items() if hosts}


def _name(row: ScheduleRow | RepositoryRow) -> str:
    return f"{row.namespace}/{row.name}"


def _uses(schedule: ScheduleRow, repository: RepositoryRow) -> bool:
    return _repository_of(schedule) == (repository.namespace, repository.name)


def _repository_of(schedule: ScheduleRow) -> tuple[str, str]:
    """Namespace and name of the repository that a schedule uses."""
    return schedule.namespace, schedule.spec["repositoryRef"]["name"]


def _audit(at: datetime, actor: Actor, action: str, kind: str, name: str, **detail: Any) -> AuditRow:
    return AuditRow(at, actor.kind, actor.id, action, kind, name, detail)
