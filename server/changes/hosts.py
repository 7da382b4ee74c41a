"""Changes of hosts: they are created by a declaration or by their first hello, labelled and deleted."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec

from server.agents.hub import Hub
from server.agents.session import Session
from server.changes.pipeline import Change, Pipeline, audit
from server.errors import Conflict, Invalid, NotFound
from server.fleet.placement import Placement, Plan
from server.jobs.dispatcher import Dispatcher
from server.resources.versions import Condition, host_version, unconditional
from server.store.engine import Store
from server.store.futures import stored
from server.store.hosts import get_host
from server.store.rows import HostRow, Row
from server.store.tables import Actor
from wire.messages import HostName


class Hosts:
    """Creates, labels and deletes hosts."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store,
        placement: Placement,
        hub: Hub,
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

    async def put(
        self, actor: Actor, name: str, labels: Mapping[str, str], condition: Condition = unconditional
    ) -> tuple[Row, bool]:
        """Create a host, or replace its labels. Returns the host, and whether it is new.

        Raises Invalid, and what `condition` raises.
        """
        try:
            msgspec.convert(name, HostName)
        except msgspec.ValidationError:
            raise Invalid.field("name", "must be like a DNS name: lower case letters, digits, '-' and '.'") from None
        async with self._pipeline.lock:
            old = self._placement.hosts.get(name)
            condition(None if old is None else host_version(old.labels))
            await self._put(actor, name, labels)
            host = await self._store.read(get_host, name)
        assert host is not None  # noqa: S101 - it was just stored
        return host, old is None

    async def delete(self, actor: Actor, name: str, condition: Condition = unconditional) -> None:
        """Delete a host, and end its open jobs; all its jobs stay. Raises NotFound, Conflict while it is connected."""
        async with self._pipeline.lock:
            state = self._placement.hosts.get(name)
            if state is None:
                raise NotFound(f"there is no host {name!r}")
            condition(host_version(state.labels))
            if self._hub.is_connected(name):
                raise Conflict(f"{name} is connected: stop its agent first")
            now = self._clock()
            line = audit(now, actor, "delete", "Host", name)
            await stored(self._dispatcher.end_host(name, "its host was deleted"))
            await self._pipeline.commit(Change(line, delete_hosts=[name]), Plan(remove_hosts=[name]))

    async def session(self, name: str) -> Session:
        """The session of a host that says hello. A host that is not declared is created, without labels.

        Hosts that say their first hello during another change are created together, in one commit.
        """
        session = self._hub.session(name)
        while session is None:
            self._newcomers.add(name)
            async with self._pipeline.lock:
                new = sorted(self._newcomers)
                unknown = [it for it in new if it not in self._placement.hosts]
                await asyncio.gather(*(self._put(Actor("agent", it), it, {}) for it in unknown))
                self._newcomers.difference_update(new)
            session = self._hub.session(name)
        return session

    def schedules_are_declared(self) -> bool:
        """Whether any Schedule is declared."""
        return bool(self._placement.schedules)

    async def _put(self, actor: Actor, name: str, labels: Mapping[str, str]) -> None:
        old = self._placement.hosts.get(name)
        if old is not None and old.labels == labels:
            return
        now = self._clock()
        plan = self._placement.plan_host(name, labels, now)
        (state,) = plan.put_hosts
        line = audit(now, actor, "update" if old else "create", "Host", name, labels=dict(labels))
        row = HostRow(name, dict(labels), now, state.since, state.version, state.entries.digest)
        await self._pipeline.commit(Change(line, put_hosts=[row]), plan)
