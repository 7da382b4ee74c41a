"""Limits across lanes, which jobs pass as gates: of the jobs of a host, and of the hosts on which a Schedule runs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.agents.session import Session
from server.events import DeclarationChanged, Event, Events, GatesChanged
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement


class GateLimit(NamedTuple):
    """How many may have passed a gate at once. `host`: whose jobs count; or `schedule_id`: whose hosts count."""

    gate: str
    limit: int
    host: str = ""
    schedule_id: str = ""


GatesOf = Callable[[str, str], Sequence[GateLimit]]
"""The gates of a job, by its host and its schedule's id."""


def no_gates(_host: str, _schedule_id: str) -> Sequence[GateLimit]:
    """No job has a gate."""
    return ()


def gate_of_host(host: str, limit: int) -> GateLimit:
    """The gate at which the jobs of a host are counted."""
    return GateLimit(f"host/{host}", limit, host=host)


def gate_of_schedule(schedule_id: str, limit: int) -> GateLimit:
    """The gate at which the hosts of a Schedule are counted."""
    return GateLimit(f"rollout/{schedule_id}", limit, schedule_id=schedule_id)


class Limits:
    """The limits that are in force here. Any thread may ask. `session_of`: the session of a host."""

    def __init__(
        self, catalog: Catalog, placement: Placement, session_of: Callable[[str], Session | None], events: Events
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._session_of = session_of
        self._events = events
        self._used: set[str] = set()  # the gates at which jobs may be held back

    def gates_of(self, host: str, schedule_id: str) -> Sequence[GateLimit]:
        """The gates of a job."""
        found = []
        if (hosts := self.of_schedule(schedule_id)) is not None:
            found.append(gate_of_schedule(schedule_id, hosts))
        if (jobs := self.of_host(host)) is not None:
            found.append(gate_of_host(host, jobs))
        self._used.update(it.gate for it in found)
        return found

    def of_host(self, host: str) -> int | None:
        """How many jobs a host may run at once, as its Host and its agent say: the smaller; None for any number."""
        state, session = self._placement.hosts.get(host), self._session_of(host)
        declared = None if state is None else state.spec.max_concurrent_jobs
        own = None if session is None else session.max_jobs
        limits = [it for it in (declared, own) if it is not None]
        return min(limits) if limits else None

    def of_schedule(self, schedule_id: str) -> int | None:
        """On how many hosts a Schedule may run at once; None for any number."""
        schedule = self._placement.schedules.get(schedule_id)
        if schedule is None or schedule.spec.rollout is None:
            return None
        return schedule.spec.rollout.max_concurrent_hosts

    def on_event(self, event: Event) -> None:
        """Publish that gates where jobs may be held back may have other limits."""
        if isinstance(event, DeclarationChanged) and self._used:
            rows = (self._catalog.schedules.get(key) for key in event.schedules)
            ids = [*(row.id for row in rows if row is not None), *event.deleted_schedules]
            named = [gate_of_host(host, 0).gate for host in event.hosts]
            named += [gate_of_schedule(schedule_id, 0).gate for schedule_id in ids]
            if gates := [gate for gate in named if gate in self._used]:
                self._events.publish(GatesChanged(gates))
