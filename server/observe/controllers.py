"""What controllers of folders say of themselves, and which of them have fallen silent.

A controller reports after each comparison what keeps it from following its folder. One that reports no more cannot say
so itself: it is missed after SILENT while resources bear its label, also after a restart of the server.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct

from server.errors import Unavailable
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement

OWNER_LABEL = "app.kubernetes.io/managed-by"
"""The label of resources that says which controller they come from."""
FOLDER_OWNER = "lamplighter-folder"
"""Its value for those of a folder. Other values may be anybody's: of those that never reported, no report is missed."""
SILENT = timedelta(minutes=5)
"""Without a report for so long, a controller is missed: it reports at least once a minute."""
MAX_CONTROLLERS = 16
"""Controllers of which it is known how they are."""
MAX_PROBLEMS = 20
"""Problems that one of them may report."""

Word = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z]+\Z")]


class ReportedProblem(Struct, frozen=True):
    """Something that keeps a controller from following its folder: for programs, and for people."""

    reason: Word
    message: Annotated[str, Meta(max_length=1024)]


class ControllerReport(Struct, forbid_unknown_fields=True):
    """What PUT says of a controller: all that is wrong now, the worst first."""

    problems: Annotated[list[ReportedProblem], Meta(max_length=MAX_PROBLEMS)]


class ControllerState(Struct, frozen=True):
    """How a controller is. `last_seen`: when it last reported; None where it has not since the server started."""

    name: str
    last_seen: datetime | None
    problems: list[ReportedProblem]


class Controllers:
    """The controllers that reported since the server started. Any thread may ask."""

    def __init__(self, catalog: Catalog, placement: Placement, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._placement = placement
        self._clock = clock
        self._started_at = clock()
        self._states: dict[str, ControllerState] = {}

    def report(self, name: str, report: ControllerReport) -> ControllerState:
        """A controller says how it is. Raises Unavailable where there are too many of them."""
        now = self._clock()
        if name not in self._states and len(self._states) >= MAX_CONTROLLERS:
            self._states = {key: it for key, it in self._states.items() if not self._is_silent(it, now)}
            if len(self._states) >= MAX_CONTROLLERS:
                raise Unavailable(f"{MAX_CONTROLLERS} controllers report already: no more are kept")
        state = self._states[name] = ControllerState(name, now, report.problems)
        return state

    def states(self) -> list[ControllerState]:
        """How each controller is that reports, or is missed: there are resources that bear its label."""
        now, states = self._clock(), dict(self._states)
        owners = {it[OWNER_LABEL] for it in self._labels() if OWNER_LABEL in it}
        if FOLDER_OWNER in owners:
            states.setdefault(FOLDER_OWNER, ControllerState(FOLDER_OWNER, None, []))
        found = []
        for state in sorted(states.values(), key=lambda it: it.name):
            if not self._is_silent(state, now):
                found.append(state)
            elif state.name in owners:
                problems = [_missed(state.last_seen), *state.problems]
                found.append(ControllerState(state.name, state.last_seen, problems))
        return found

    def _labels(self) -> Iterator[Mapping[str, str]]:
        """The labels of all resources."""
        yield from (it.labels for it in list(self._catalog.schedules.values()))
        yield from (it.labels for it in list(self._catalog.repositories.values()))
        yield from (it.labels for it in list(self._placement.hosts.values()))

    def _is_silent(self, state: ControllerState, now: datetime) -> bool:
        return now - (state.last_seen or self._started_at) > SILENT


def _missed(last_seen: datetime | None) -> ReportedProblem:
    since = f"since {last_seen:%Y-%m-%dT%H:%M:%SZ}" if last_seen else "since the server started"
    remedy = f"start it again; where it is retired, take the label {OWNER_LABEL} from what it made"
    message = f"it has not reported {since}: changes of its files are not followed; {remedy}"
    return ReportedProblem("NotFollowing", message)
