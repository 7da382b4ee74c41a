"""Plans: what requests would change, tried on copies by the code that makes changes. Nothing is stored or sent.

Each request goes to the same `Schedules`, `Repositories` and `Hosts` as one over REST, with a pipeline of their own
that puts changes in force in the copies alone. `forecast` then compares the copies with what is in force.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from server.access.identity import Permission
from server.access.vault import Vault
from server.agents.hub import Hub
from server.changes import forecast
from server.changes.alerts import Alerts, Understood
from server.changes.change import Change
from server.changes.forecast import (
    Comparison,
    Forecast,
    Load,
    Names,
    RepositoryForecast,
    ScheduleForecast,
    Seen,
    Work,
)
from server.changes.hosts import Connections, Hosts
from server.changes.pipeline import put_in_force
from server.changes.repositories import Repositories
from server.changes.schedules import Schedules
from server.errors import ApiException, Conflict, Forbidden, Invalid, NotFound, Unavailable
from server.events import Events
from server.fleet.catalog import Catalog, ResolvedRepository, full_name
from server.fleet.placement import HostState, PlacedSchedule, Placement
from server.fleet.placement import Plan as PlacementPlan
from server.jobs.dispatcher import Dispatcher
from server.resources import manifests
from server.resources.manifests import Credentials, repository_spec
from server.resources.schema import below
from server.resources.selectors import is_dns_label, is_dns_name
from server.store.alerts import AlertChange, find_alert
from server.store.engine import Store
from server.store.enrolments import is_enrolled
from server.store.hosts import last_seen
from server.store.rows import AlertRow, RepositoryRow, ScheduleRow
from server.store.tables import Actor

Result = TypeVar("Result")
Kind = Literal["Host", "Repository", "Schedule", "Alert"]
Action = Literal["create", "update", "delete"]
Authorize = Callable[[Permission], Awaitable[None]]
"""Returns if the caller has a permission. Raises Forbidden."""

PLURALS: Mapping[Kind, str] = {
    "Host": "hosts",
    "Repository": "repositories",
    "Schedule": "schedules",
    "Alert": "alerts",
}
"""The kinds that a plan may have, in the order in which they are put; they are deleted the other way round."""
FORMAT: Literal["1"] = "1"
"""The version of the answer's format. It changes when a field is taken away, or gets another meaning."""
MAX_REQUESTS = 2000
"""Maximum requests of a plan."""
MAX_WORK = 10_000_000
"""Maximum pairs of a schedule and a host, about, that a plan may look at. One takes a few microseconds."""
STEP = 2_000
"""After so much work, other tasks have their turn."""
REQUEST = 1_000
"""How much work it is to check one manifest."""
MAX_PLANS, MAX_OF_CALLER = 9, 4
"""Maximum plans at once, of which one is being made and the others wait: of all callers, and of one."""
MAX_VALUES = 1 << 20
"""Maximum bytes of all values of fields that an answer shows."""
MAX_VALUE = 4096
"""Maximum bytes of one of them."""


class Deletion(Struct, frozen=True, forbid_unknown_fields=True):
    """An object to delete. `namespace`: empty for a Host."""

    kind: Kind
    name: str
    namespace: str = ""


class FieldChange(Struct, frozen=True):
    """A field that changes. `before`, `after`: its values; None where it is absent, or is not shown.

    `hidden`: why the values are not shown: they are secret, or too long.
    """

    field: str
    before: Any = None
    after: Any = None
    hidden: Literal["", "secret", "long"] = ""


class ObjectChange(Struct, frozen=True):
    """An object that would be created, updated or deleted. A deletion has no fields."""

    action: Action
    kind: Kind
    namespace: str
    name: str
    fields: list[FieldChange] = []


class RefusedField(Struct, frozen=True):
    """What is wrong with a field."""

    field: str
    detail: str


class Refusal(Struct, frozen=True):
    """A request that would be refused. `index`: its place in `put` or `delete`. `status`, `reason`: of HTTP."""

    request: Literal["put", "delete"]
    index: int
    kind: str
    namespace: str
    name: str
    status: int
    reason: str
    detail: str
    errors: list[RefusedField] = []


class Plan(Struct, frozen=True):
    """What requests would change, if they were made at `at`.

    `begin`: when the coming day begins to which due times and loads refer. `hosts`: those that would get another set.
    """

    at: datetime
    begin: datetime
    changes: list[ObjectChange]
    refused: list[Refusal]
    schedules: list[ScheduleForecast]
    repositories: list[RepositoryForecast]
    hosts: Names
    format: Literal["1"] = FORMAT


class Trial:
    """Takes changes as the Pipeline does, and puts them in force in a catalog and a placement alone."""

    def __init__(self, catalog: Catalog, placement: Placement) -> None:
        self._catalog = catalog
        self._placement = placement

    async def planned(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Call `work`: nobody else changes the copies."""
        return await work()

    async def commit(
        self, change: Change, plan: PlacementPlan, put_repositories: Sequence[ResolvedRepository] = ()
    ) -> None:
        """Put a change in force in the copies."""
        put_in_force(self._catalog, self._placement, change, plan, put_repositories)

    async def catch_up(self) -> None:
        """Nobody else changes the copies."""


class TriedAlerts(Alerts):
    """Alerts whose changes are noted, not stored. `tried`: by namespace and name, what was and what would be stored."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.tried: dict[tuple[str, str], tuple[AlertRow | None, AlertRow | None]] = {}

    async def _stored(self, change: AlertChange) -> bool:
        old = await self.find(change.namespace, change.name)
        self.tried[change.namespace, change.name] = old, change.row
        return True

    async def find(self, namespace: str, name: str) -> AlertRow | None:
        """An Alert as it is stored."""
        return await self._store.read(find_alert, namespace, name)


_Object = ScheduleRow | RepositoryRow | AlertRow | HostState | None


class _State(NamedTuple):
    """What is declared: a catalog and a placement."""

    catalog: Catalog
    placement: Placement

    def copy(self) -> "_State":
        return _State(self.catalog.copy(), self.placement.copy())

    def row(self, key: "_Key") -> _Object:
        """An object, None when there is none, or it is an Alert."""
        if key.kind == "Host":
            return self.placement.hosts.get(key.name)
        if key.kind == "Alert":
            return None
        rows = self.catalog.schedules if key.kind == "Schedule" else self.catalog.repositories
        return rows.get((key.namespace, key.name))

    def placed(self, schedule_id: str) -> PlacedSchedule | None:
        """A schedule by its id."""
        return self.placement.schedules.get(schedule_id)

    def repository(self, repository_id: str) -> RepositoryRow | None:
        """A repository by its id."""
        found = self.catalog.resolved(repository_id)
        return None if found is None else found.row

    def credentials(self, row: object) -> Credentials | None:
        """What opens a repository; None for what is no repository."""
        return self.catalog.credentials(row) if isinstance(row, RepositoryRow) else None

    def ping_url(self, row: ScheduleRow) -> str | None:
        """The URL that a schedule pings; None for none."""
        return self.catalog.ping_url(row)

    def holders(self, ids: Collection[str]) -> Work[dict[str, list[str]]]:
        """The hosts that should hold each of these schedules."""
        return forecast.holders(self.placement, ids)

    def users(self, repositories: Collection[str]) -> dict[str, list[PlacedSchedule]]:
        """The schedules that use each of these repositories, by its id."""
        return forecast.users(self.placement, repositories)


class _Key(NamedTuple):
    kind: Kind
    namespace: str
    name: str


_Denied = Mapping[tuple[str, _Key], Forbidden]
"""Why the caller may not put or delete an object."""


class _Meter:
    """Counts a plan's work, lets other tasks have their turn, and ends a plan that is too large."""

    def __init__(self) -> None:
        self._spent = self._since = 0

    async def spend(self, work: int) -> None:
        """Count work that was done. Raises Invalid when it is too much."""
        self._spent, self._since = self._spent + work, self._since + work
        if self._spent > MAX_WORK:
            raise Invalid("this is too much for one plan: plan fewer manifests at once, or those of one namespace")
        if self._since >= STEP:
            self._since = 0
            await asyncio.sleep(0)

    async def result(self, work: Work[Result]) -> Result:
        """Carry out work in steps."""
        while True:
            try:
                step = next(work)
            except StopIteration as done:
                result: Result = done.value
                return result
            await self.spend(step)


class Plans:
    """Makes plans, one at a time."""

    def __init__(  # noqa: PLR0913, PLR0917 - it makes changes of all kinds
        self,
        store: Store,
        catalog: Catalog,
        placement: Placement,
        hub: Hub,
        dispatcher: Dispatcher,
        vault: Vault,
        understood: Understood,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._in_force = _State(catalog, placement)
        self._hub = hub
        self._dispatcher = dispatcher
        self._vault = vault
        self._understood = understood
        self._clock = clock
        self._new_id = new_id
        self._lock = asyncio.Lock()
        self._plans: Counter[str] = Counter()

    async def plan(
        self, actor: Actor, puts: Sequence[Mapping[str, Any]], deletes: Sequence[Deletion], authorize: Authorize
    ) -> Plan:
        """What these requests would change, made in the order of a controller: puts, then deletions, kind by kind.

        `puts`: manifests. A Repository that refers to Secrets and is given without credentials keeps those it has. A
        request that would be refused is in the answer; so is one for which the caller lacks the permissions to read
        and to change its object. Raises Invalid for a plan that is too large, and Unavailable.
        """
        denied = await _denied(puts, deletes, authorize)
        async with self._turn(actor):
            now, meter = self._clock(), _Meter()
            hosts = [it.name for it in deletes if it.kind == "Host"]
            enrolled = [name for name in hosts if await self._store.read(is_enrolled, name)]
            before = self._in_force.copy()
            offline = self._offline(before.placement)
            await asyncio.sleep(0)
            after = before.copy()
            parts = self._parts(after, enrolled, now)
            trying = _Trying(parts, after, actor, denied, meter)
            await trying.make(puts, deletes)
            seen = await self._seen(offline)
            compared = await meter.result(forecast.compared(before.placement, after.placement, seen))
            told = _Told(before, after, compared, Forecast(compared, now, seen), trying.touched, authorize, meter)
            return await told.plan(now, trying.refused, parts.alerts)

    @asynccontextmanager
    async def _turn(self, actor: Actor) -> AsyncIterator[None]:
        """Wait for plans that came before. Raises Unavailable when there are too many."""
        if self._plans.total() >= MAX_PLANS or self._plans[actor.id] >= MAX_OF_CALLER:
            raise Unavailable("other plans are being made: try again later")
        self._plans[actor.id] += 1
        try:
            async with self._lock:
                yield
        finally:
            self._plans -= Counter([actor.id])  # without those that have none

    def _offline(self, placement: Placement) -> dict[str, bool]:
        """The hosts that are not connected, and whether they held the desired set when they last were."""
        hosts = (name for name in placement.hosts if not self._hub.is_connected(name))
        return {name: (it := self._hub.session(name)) is not None and it.holds_desired for name in hosts}

    async def _seen(self, offline: Mapping[str, bool]) -> dict[str, Seen]:
        """What is known of hosts' agents. `offline`: see `_offline`."""
        names, times = list(offline), dict[str, datetime]()
        for at in range(0, len(names), STEP):
            times |= await self._store.read(last_seen, names[at : at + STEP])
        return {host: Seen(times.get(host), in_sync) for host, in_sync in offline.items()}

    def _parts(self, state: _State, enrolled: Collection[str], now: datetime) -> "_Parts":
        catalog, placement = state
        trial, clock = Trial(catalog, placement), lambda: now
        connections = _Connections(self._hub, enrolled)
        return _Parts(
            Schedules(trial, catalog, placement, clock, self._new_id),
            Repositories(trial, catalog, placement, self._vault, clock, self._new_id),
            Hosts(trial, self._store, placement, connections, self._dispatcher, clock),
            TriedAlerts(self._store, catalog, self._vault, self._understood, Events(), clock, self._new_id),
        )


class _Connections(NamedTuple):
    """Which hosts are connected once the keys of those that are to be deleted are revoked, as REST does."""

    hub: Connections
    enrolled: Collection[str]

    def session(self, host: str) -> Any:
        """The session of a host."""
        return self.hub.session(host)

    def is_connected(self, host: str) -> bool:
        """Whether a host is connected and stays so."""
        return host not in self.enrolled and self.hub.is_connected(host)


class _Parts(NamedTuple):
    schedules: Schedules
    repositories: Repositories
    hosts: Hosts
    alerts: TriedAlerts


class _Trying:
    """Makes requests on copies. `touched`: the objects of those that were not refused."""

    def __init__(self, parts: _Parts, state: _State, actor: Actor, denied: _Denied, meter: _Meter) -> None:
        self._schedules, self._repositories, self._hosts, self._alerts = parts
        self._state = state
        self._fleet = len(state.placement.hosts)
        self._actor = actor
        self._denied = denied
        self._meter = meter
        self.touched: dict[_Key, None] = {}
        self.refused: list[Refusal] = []

    async def make(self, puts: Sequence[Mapping[str, Any]], deletes: Sequence[Deletion]) -> None:
        """Make requests, and note which are refused."""
        kinds = list(PLURALS)
        named = [(index, manifest, _named(manifest)) for index, manifest in enumerate(puts)]
        for index, manifest, key in sorted(named, key=lambda it: (*kinds, it[2].kind).index(it[2].kind)):
            await self._noting("put", index, key, self._put(key, manifest))
        ordered = sorted(enumerate(deletes), key=lambda it: -kinds.index(it[1].kind))
        for index, deletion in ordered:
            key = _of_deletion(deletion)
            await self._noting("delete", index, key, self._delete(key))

    async def _noting(self, request: Literal["put", "delete"], index: int, key: _Key, made: Awaitable[None]) -> None:
        was = self._state.row(key)
        try:
            await made
            self.touched[key] = None
        except Unavailable:
            raise
        except ApiException as error:
            errors = [RefusedField(it["field"], it["detail"]) for it in error.errors]
            refused = Refusal(request, index, *key, int(error.status), error.title, error.detail, errors)
            self.refused.append(refused)
        await self._meter.spend(REQUEST if self._state.row(key) is was else REQUEST + self._fleet)

    async def _put(self, key: _Key, manifest: Mapping[str, Any]) -> None:
        if key.kind not in PLURALS:
            raise Invalid.field("kind", f"must be one of {', '.join(PLURALS)}")
        if not _is_name(key):
            _parse(key.kind, manifest)  # names what is wrong
            raise Invalid.field("metadata.name", "must be a DNS name")
        self._check("put", key)
        if key in self.touched:
            raise Conflict(f"{key.kind} {_shown(key)} is given twice: keep one of them")
        if key.kind == "Host":
            await self._hosts.declare(self._actor, *manifests.parse_host(manifest))
        elif key.kind == "Repository":
            await self._repositories.put(self._actor, self._with_credentials(key, manifest))
        elif key.kind == "Alert":
            await self._alerts.put(self._actor, await self._with_urls(key, manifest))
        else:
            await self._schedules.put(self._actor, self._with_ping(key, manifest))

    async def _delete(self, key: _Key) -> None:
        if not _is_name(key):
            raise NotFound(f"there is no {key.kind} {_shown(key)}")
        self._check("delete", key)
        if key in self.touched:
            raise Conflict(f"{key.kind} {_shown(key)} is to be put, too")
        if key.kind == "Host":
            await self._hosts.delete(self._actor, key.name)
        elif key.kind == "Repository":
            await self._repositories.delete(self._actor, key.namespace, key.name)
        elif key.kind == "Alert":
            await self._alerts.delete(self._actor, key.namespace, key.name)
        else:
            await self._schedules.delete(self._actor, key.namespace, key.name)

    def _check(self, request: str, key: _Key) -> None:
        """Raises Forbidden."""
        if (error := self._denied.get((request, key))) is not None:
            raise error

    async def _with_urls(self, key: _Key, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """An Alert with the credentials that it has, if it refers to a Secret that was not given."""
        spec = manifest.get("spec")
        if "credentials" in manifest or not isinstance(spec, dict) or not spec.get("secretRef"):
            return manifest
        row = await self._alerts.find(key.namespace, key.name)
        kept = None if row is None else self._alerts.credentials(row)
        return manifest if kept is None else {**manifest, "credentials": msgspec.to_builtins(kept)}

    def _with_ping(self, key: _Key, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """A Schedule with the URL that it pings, if it refers to a Secret that was not given."""
        spec, row = manifest.get("spec"), self._state.row(key)
        refers = isinstance(spec, dict) and spec.get("ping")
        if "credentials" in manifest or not refers or not isinstance(row, ScheduleRow):
            return manifest
        kept = self._state.ping_url(row)
        return manifest if kept is None else {**manifest, "credentials": {"pingUrl": kept}}

    def _with_credentials(self, key: _Key, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """A Repository with the credentials that it has, if it refers to Secrets that were not given."""
        spec, row = manifest.get("spec"), self._state.row(key)
        refers = isinstance(spec, dict) and (spec.get("passwordSecretRef") or spec.get("envSecretRef"))
        if "credentials" in manifest or not refers or row is None:
            return manifest
        kept = self._state.credentials(row)
        return manifest if kept is None else {**manifest, "credentials": msgspec.to_builtins(kept)}


class _Told:
    """Says what has changed between two states, as far as the caller may read it."""

    def __init__(
        self,
        before: _State,
        after: _State,
        comparison: Comparison,
        forecast: Forecast,
        touched: Collection[_Key],
        authorize: Authorize,
        meter: _Meter,
    ) -> None:
        self._before = before
        self._after = after
        self._comparison = comparison
        self._forecast = forecast
        self._touched = touched
        self._authorize = authorize
        self._meter = meter
        self._readable: dict[tuple[str, str], bool] = {}
        self._left = MAX_VALUES

    async def plan(self, now: datetime, refused: list[Refusal], alerts: TriedAlerts) -> Plan:
        """The whole plan."""
        changes = []
        for key in self._touched:
            if (changed := self._change(key, alerts)) is not None:
                changes.append(changed)
                await self._meter.spend(10 + len(changed.fields))
        affected = await self._affected()
        repositories = await self._repositories(affected)
        sides = self._before, self._after
        using = [side.users(repositories) for side in sides]
        used = {it.id for users in using for some in users.values() for it in some}
        had, has = [await self._meter.result(side.holders(used | affected.keys())) for side in sides]
        schedules = [
            await self._meter.result(self._forecast.schedule(id_, had.get(id_, ()), has.get(id_, ())))
            for id_ in affected
        ]
        loads = []
        for id_, (namespace, name, url) in repositories.items():
            before = await self._load(self._before, id_, using[0].get(id_, ()), had)
            after = await self._load(self._after, id_, using[1].get(id_, ()), has)
            loads.append(RepositoryForecast(namespace, name, "{host}" in url, before, after))
        changes.sort(key=_order)
        hosts = forecast.named_hosts(self._comparison.hosts)
        calendar = self._forecast.calendar
        return Plan(now, calendar.begin, changes, refused, schedules, loads, hosts)

    def _change(self, key: _Key, alerts: TriedAlerts) -> ObjectChange | None:
        """How an object differs; None if it does not."""
        old, new = self._before.row(key), self._after.row(key)
        if key.kind == "Alert":
            old, new = alerts.tried.get(key[1:], (None, None))
        if new is None:
            return ObjectChange("delete", *key) if old is not None else None
        fields = [self._bounded(it) for it in _fields(_content(old), _content(new))]
        opened = [
            alerts.credentials(it) if isinstance(it, AlertRow) else side.credentials(it)
            for side, it in ((self._before, old), (self._after, new))
        ]
        if opened[0] != opened[1]:
            fields.append(FieldChange("credentials", hidden="secret"))
        if old is None:
            return ObjectChange("create", *key, fields)
        return ObjectChange("update", *key, fields) if fields else None

    def _bounded(self, change: FieldChange) -> FieldChange:
        """A change without its values if they are too long."""
        size = len(msgspec.json.encode((change.before, change.after)))
        if size > min(self._left, 2 * MAX_VALUE):
            return FieldChange(change.field, hidden="long")
        self._left -= size
        return change

    async def _affected(self) -> dict[str, PlacedSchedule]:
        """The schedules that differ, by id, which the caller may read."""
        found = {}
        for id_ in self._comparison.schedules:
            schedule = self._after.placed(id_) or self._before.placed(id_)
            await self._meter.spend(10)
            if schedule is not None and await self._may_read("Schedule", schedule.name):
                found[id_] = schedule
        return dict(sorted(found.items(), key=lambda it: it[1].name))

    async def _repositories(self, schedules: Mapping[str, PlacedSchedule]) -> dict[str, tuple[str, str, str]]:
        """The repositories that schedules used or will use, or that differ, and which the caller may read.

        By id: namespace, name and URL.
        """
        found: dict[str, RepositoryRow] = {}
        moved = [key for key in self._touched if self._before.row(key) is not self._after.row(key)]
        for state in (self._before, self._after):
            placed = [it for id_ in schedules if (it := state.placed(id_)) is not None]
            rows = [*(state.repository(id_) for it in placed for id_ in it.repository_ids), *map(state.row, moved)]
            found.update((row.id, row) for row in rows if isinstance(row, RepositoryRow))
        named = sorted(found.values(), key=lambda row: (row.namespace, row.name))
        shown = [it for it in named if await self._may_read("Repository", full_name(it))]
        return {it.id: (it.namespace, it.name, it.spec["url"]) for it in shown}

    async def _load(
        self, state: _State, id_: str, users: Sequence[PlacedSchedule], held: Mapping[str, Sequence[str]]
    ) -> Load:
        row = state.repository(id_)
        if row is None:
            return Load()
        spec = repository_spec(row.spec)
        peak = await self._meter.result(self._forecast.peak(users, held, per_host="{host}" in spec.url))
        return Load(spec.max_concurrent_jobs, peak)

    async def _may_read(self, kind: Kind, named: str) -> bool:
        """Whether the caller may read an object: a request was about it, or all in its namespace may be read."""
        namespace, _, name = named.partition("/")
        if _Key(kind, namespace, name) in self._touched:
            return True
        where = PLURALS[kind], namespace
        if where not in self._readable:
            try:
                await self._authorize(Permission("get", *where))
                self._readable[where] = True
            except Forbidden:
                self._readable[where] = False
        return self._readable[where]


def _named(manifest: Mapping[str, Any]) -> _Key:
    """What a manifest is about, as it says, right or wrong."""
    metadata, kind = manifest.get("metadata"), manifest.get("kind")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind, namespace, name = (
        it[:253] if isinstance(it, str) else "" for it in (kind, metadata.get("namespace"), metadata.get("name"))
    )
    return _Key(kind, "" if kind == "Host" else namespace or "default", name)  # type: ignore[arg-type]


def _of_deletion(it: Deletion) -> _Key:
    return _Key(it.kind, "" if it.kind == "Host" else it.namespace or "default", it.name)


async def _denied(puts: Sequence[Mapping[str, Any]], deletes: Sequence[Deletion], authorize: Authorize) -> _Denied:
    """The objects that the caller may not read, or not change as asked. Other plans do not wait for this."""
    wanted: dict[tuple[str, _Key], Sequence[str]] = {}
    wanted |= {("put", _named(it)): ("get", "create", "update") for it in puts}
    wanted |= {("delete", _of_deletion(it)): ("get", "delete") for it in deletes}
    found = {}
    for (request, key), verbs in wanted.items():
        try:
            for verb in verbs if key.kind in PLURALS and _is_name(key) else ():
                await authorize(Permission(verb, PLURALS[key.kind], key.namespace, key.name))
        except Forbidden as error:
            found[request, key] = error
        await asyncio.sleep(0)
    return found


def _is_name(key: _Key) -> bool:
    return is_dns_name(key.name) and (key.kind == "Host" or is_dns_label(key.namespace))


def _parse(kind: Kind, manifest: object) -> None:
    """Raise Invalid for a manifest that is wrong."""
    parse: Mapping[Kind, Callable[[object], object]] = {
        "Host": manifests.parse_host,
        "Repository": manifests.parse_repository,
        "Schedule": manifests.parse_schedule,
        "Alert": manifests.parse_alert,
    }
    parse[kind](manifest)


def _shown(key: _Key) -> str:
    return f"{key.namespace}/{key.name}" if key.namespace else key.name


def _order(change: ObjectChange) -> tuple[int, str, str]:
    return list(PLURALS).index(change.kind), change.namespace, change.name


def _content(row: _Object) -> Mapping[str, Any]:
    """What is declared of an object, but for credentials."""
    if row is None:
        return {}
    labels = {"metadata": {"labels": row.labels}}
    return labels if isinstance(row, HostState) else {**labels, "spec": row.spec}


def _fields(before: Any, after: Any, field: str = "") -> Iterator[FieldChange]:
    """The fields that differ, each by its path. What is a list differs as a whole."""
    if isinstance(before, Mapping | None) and isinstance(after, Mapping | None) and (before or after):
        old, new = before or {}, after or {}
        for name in dict.fromkeys((*old, *new)):
            yield from _fields(old.get(name), new.get(name), below(field, name))
    elif before != after:
        yield FieldChange(field, before, after)
