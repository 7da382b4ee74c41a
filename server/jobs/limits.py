"""Limits across lanes, which jobs pass as gates: how many jobs of a host run at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.agents.session import Session
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


def gate_of_host(host: str) -> str:
    """The name of a host's gate."""
    return f"host/{host}"


class Limits:
    """The limits that are in force here. Any thread may ask. `session_of`: the session of a host."""

    def __init__(self, placement: Placement, session_of: Callable[[str], Session | None]) -> None:
        self._placement = placement
        self._session_of = session_of

    def gates_of(self, host: str, _schedule_id: str) -> Sequence[GateLimit]:
        """The gates of a host's job."""
        limit = self.of_host(host)
        return () if limit is None else (GateLimit(gate_of_host(host), limit, host=host),)

    def of_host(self, host: str) -> int | None:
        """How many jobs a host may run at once, as its Host and its agent say: the smaller; None for any number."""
        state, session = self._placement.hosts.get(host), self._session_of(host)
        declared = None if state is None else state.spec.max_concurrent_jobs
        own = None if session is None else session.max_jobs
        limits = [it for it in (declared, own) if it is not None]
        return min(limits) if limits else None
