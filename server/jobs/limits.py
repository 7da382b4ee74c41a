"""Limits across lanes, which jobs pass as gates: of the jobs of a host, and of the hosts on which a Schedule runs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.agents.session import Session
from server.events import DeclarationChanged, Event, Events, GatesChanged
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement


class GateLimit(NamedTuple):
    """How many may have passed a gate at once, None for any number. `host`: whose jobs count; or `schedule_id`: whose
    hosts count. `pauses_after`: how many of these may fail before the gate is shut; None where it never is."""

    gate: str
    limit: int | None
    host: str = ""
    schedule_id: str = ""
    pauses_after: int | None = None


GatesOf = Callable[[str, str], Sequence[GateLimit]]
"""The gates of a job, by its host and its schedule's id."""


def no_gates(_host: str, _schedule_id: str) -> Sequence[GateLimit]:
    """No job has a gate."""
    return ()


def gate_of_host(host: str, limit: int) -> GateLimit:
    """The gate at which the jobs of a host are counted."""
    return GateLimit(f"host/{host}", limit, host=host)


def gate_of_schedule(schedule_id: str, limit: int | None = None, pauses_after: int | None = None) -> GateLimit:
    """The gate at which the hosts of a Schedule are counted, and which a pause shuts."""
    return GateLimit(f"rollout/{schedule_id}", limit, schedule_id=schedule_id, pauses_after=pauses_after)


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
        if (its := self._of_schedule(schedule_id)) is not None:
            found.append(its)
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

    def _of_schedule(self, schedule_id: str) -> GateLimit | None:
        """The gate of a Schedule; None where it neither runs on few hosts at once nor pauses."""
        schedule = self._placement.schedules.get(schedule_id)
        rollout = None if schedule is None else schedule.spec.rollout
        if rollout is None or (rollout.max_concurrent_hosts, rollout.pauses_after) == (None, None):
            return None
        return gate_of_schedule(schedule_id, rollout.max_concurrent_hosts, rollout.pauses_after)

    def on_event(self, event: Event) -> None:
        """Publish that gates where jobs may be held back may have other limits."""
        if isinstance(event, DeclarationChanged) and self._used:
            rows = (self._catalog.schedules.get(key) for key in event.schedules)
            ids = [*(row.id for row in rows if row is not None), *event.deleted_schedules]
            named = [gate_of_host(host, 0).gate for host in event.hosts]
            named += [gate_of_schedule(schedule_id).gate for schedule_id in ids]
            if gates := [gate for gate in named if gate in self._used]:
                self._events.publish(GatesChanged(gates))
