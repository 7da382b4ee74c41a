"""What a host is to hold, and what its jobs would need, for an agent that only asks (`lamplighter agent --once`)."""

from server.errors import NotFound
from server.fleet.placement import Placement
from server.jobs.credentials import HostCredentials
from server.jobs.fires import command_for
from wire.entries import parse_entry
from wire.messages import MAX_EXPECTED, HostExpected


class Expectations:
    """Answers agents that ask. It changes nothing: the host is not counted as connected, and no job is recorded."""

    def __init__(self, placement: Placement, credentials: HostCredentials) -> None:
        self._placement = placement
        self._credentials = credentials

    def of(self, host: str) -> HostExpected:
        """What a host is to hold. Raises NotFound for a host that is not declared."""
        state = self._placement.hosts.get(host)
        if state is None:
            raise NotFound(f"host {host} is not declared: create it with `lamplighter create host {host}`")
        schedules, entries = self._placement.schedules, state.entries.items
        held = sorted((schedules[key] for key in entries), key=lambda it: it.name)
        enabled = [it for it in held if it.spec.enabled][:MAX_EXPECTED]
        return HostExpected(
            state.version,
            len(held),
            [parse_entry(entries[it.id].raw) for it in enabled],
            [command_for(it, host, it.id, None) for it in enabled],
            self._credentials.message(host, self._credentials.needed(host)).repositories,
        )
