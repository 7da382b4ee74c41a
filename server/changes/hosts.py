"""Changes of hosts: they are created by a declaration or by their first hello, labelled and deleted."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

import msgspec

from server.agents.session import Session
from server.changes.change import Change, audit
from server.changes.pipeline import Commits
from server.errors import Conflict, Invalid, NotFound
from server.fleet.placement import HostState, Placement, Plan
from server.jobs.dispatcher import Dispatcher
from server.resources.specs import HostSpec
from server.resources.versions import Condition, host_version, unconditional
from server.store.engine import Store
from server.store.hosts import get_host
from server.store.rows import AuditRow, HostRow, Row
from server.store.tables import Actor
from wire.messages import HostName

MAX_NEWCOMERS = 1000
"""Maximum hosts that one change creates when they say their first hello."""


class Connections(Protocol):
    """Which hosts are connected: the `Hub`, or what a plan makes of it."""

    def session(self, host: str, /) -> Session | None:
        """The session of a host; None for one that is not declared."""

    def is_connected(self, host: str, /) -> bool:
        """Whether a host is connected, to this server or another one."""


class Hosts:
    """Creates, labels and deletes hosts."""

    def __init__(
        self,
        pipeline: Commits,
        store: Store,
        placement: Placement,
        hub: Connections,
        dispatcher: Dispatcher,
        clock: Callable[[], datetime],
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._placement = placement
        self._hub = hub
        self._dispatcher = dispatcher
        self._clock = clock
        self._newcomers: set[str] = set()
        self._creating = asyncio.Lock()

    async def put(
        self,
        actor: Actor,
        name: str,
        labels: Mapping[str, str],
        spec: HostSpec | None = None,
        condition: Condition = unconditional,
    ) -> tuple[Row, bool]:
        """Create a host, or replace its labels and its spec. Returns the host, and whether it is new.

        `spec`: None where it is to stay as it is.

        Raises Invalid, Conflict when it was deleted meanwhile, and what `condition` raises.
        """
        is_new = await self.declare(actor, name, labels, spec, condition)
        host = await self._store.read(get_host, name)
        if host is None:
            raise Conflict(f"{name} was deleted meanwhile")
        return host, is_new

    async def declare(
        self,
        actor: Actor,
        name: str,
        labels: Mapping[str, str],
        spec: HostSpec | None = None,
        condition: Condition = unconditional,
    ) -> bool:
        """`put`, without reading the host. Returns whether it is new. Raises Invalid, and what `condition` raises."""
        try:
            msgspec.convert(name, HostName)
        except msgspec.ValidationError:
            raise Invalid.field("name", "must be like a DNS name: lower case letters, digits, '-' and '.'") from None
        return await self._pipeline.planned(partial(self._put, actor, name, labels, spec, condition))

    async def delete(self, actor: Actor, name: str, condition: Condition = unconditional) -> None:
        """Delete a host, and end its open jobs; all its jobs stay. Raises NotFound, Conflict while it is connected."""
        await self._pipeline.planned(partial(self._delete, actor, name, condition))

    async def drain(self, actor: Actor, name: str, *, on: bool, condition: Condition = unconditional) -> None:
        """Have nothing new begin on a host, or have it begin again what its Host lets it. Raises NotFound."""
        await self._pipeline.planned(partial(self._drain, actor, name, on, condition))

    async def session(self, name: str, applied_version: int = 0) -> Session:
        """The session of a host that says hello. A host that is not declared is created, without labels.

        `applied_version`: the version that its agent has; a later one than is known here came from another server.
        Hosts that say their first hello during another change are created together, in one change.
        """
        session = self._hub.session(name)
        if session is not None and session.desired.version < applied_version:
            await self._pipeline.catch_up()
            session = self._hub.session(name)
        while session is None:
            self._newcomers.add(name)
            async with self._creating:
                if self._hub.session(name) is None:
                    await self._pipeline.planned(self._create_newcomers)
            session = self._hub.session(name)
        return session

    def schedules_are_declared(self) -> bool:
        """Whether any Schedule is declared."""
        return bool(self._placement.schedules)

    async def _put(
        self, actor: Actor, name: str, labels: Mapping[str, str], spec: HostSpec | None, condition: Condition
    ) -> bool:
        old = self._placement.hosts.get(name)
        condition(None if old is None else _version(old))
        if old is None or old.labels != labels or (spec is not None and old.spec != spec):
            await self._commit("update" if old else "create", {name: actor}, labels, spec)
        return old is None

    async def _drain(self, actor: Actor, name: str, on: bool, condition: Condition) -> None:
        old = self._placement.hosts.get(name)
        if old is None:
            raise NotFound(f"there is no host {name!r}")
        condition(_version(old))
        if on != bool(old.drained_by):
            now, plan = self._clock(), self._placement.plan_drain(name, actor.id if on else "")
            lines = [audit(now, actor, "drain" if on else "undrain", "Host", name)]
            await self._store_states(now, lines, plan.put_hosts)

    async def _delete(self, actor: Actor, name: str, condition: Condition) -> None:
        state = self._placement.hosts.get(name)
        if state is None:
            raise NotFound(f"there is no host {name!r}")
        condition(_version(state))
        if self._hub.is_connected(name):
            raise Conflict(f"{name} is connected: stop its agent first")
        now = self._clock()
        line = audit(now, actor, "delete", "Host", name)
        ending = self._dispatcher.ending_host(name, "its host was deleted")
        change = Change(now, [line], delete_hosts=[name], also=ending)
        await self._pipeline.commit(change, Plan(remove_hosts=[name]))

    async def _create_newcomers(self) -> None:
        new = sorted(self._newcomers)[:MAX_NEWCOMERS]
        if unknown := [it for it in new if it not in self._placement.hosts]:
            await self._commit("create", {it: Actor("agent", it) for it in unknown}, {})
        self._newcomers.difference_update(new)

    async def _commit(
        self, action: str, hosts: Mapping[str, Actor], labels: Mapping[str, str], spec: HostSpec | None = None
    ) -> None:
        """Give hosts these labels, and this spec. `hosts`: each with who does so."""
        now = self._clock()
        states = [it for name in hosts for it in self._placement.plan_host(name, labels, now, spec).put_hosts]
        detail = {"labels": dict(labels)} | ({"spec": msgspec.to_builtins(spec)} if spec is not None else {})
        lines = [audit(now, actor, action, "Host", name, **detail) for name, actor in hosts.items()]
        await self._store_states(now, lines, states)

    async def _store_states(self, now: datetime, lines: Sequence[AuditRow], states: Sequence[HostState]) -> None:
        known = self._placement.hosts
        drains = [it for it in states if it.drains != (it.name in known and known[it.name].drains)]
        also = self._dispatcher.draining([(it.name, it.drains) for it in drains]) if drains else None
        change = Change(now, lines, put_hosts=[_row(it, now) for it in states], also=also)
        await self._pipeline.commit(change, Plan(put_hosts=states))


def _row(state: HostState, now: datetime) -> HostRow:
    return HostRow(
        state.name,
        state.labels,
        now,
        state.since,
        state.version,
        state.entries.digest,
        spec=msgspec.to_builtins(state.spec),
        drained_by=state.drained_by,
        drains=state.drains,
    )


def _version(state: HostState) -> str:
    return host_version(state.labels, msgspec.to_builtins(state.spec))
