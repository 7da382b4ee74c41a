"""The reports of controllers that follow a folder, and which of these controllers have stopped reporting.

A controller reports after each comparison what keeps it from following its folder. A controller that has not reported
for `SILENT` gets the problem NotFollowing, as long as resources have its label. That holds as well for a controller
that has not reported since the server started.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct

from server.errors import Unavailable
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement

OWNER_LABEL = "app.kubernetes.io/managed-by"
"""The label of a resource that names the controller which created it."""
FOLDER_OWNER = "lamplighter-folder"
"""The label's value for controllers of folders. Other values are only controllers of ours once they have reported."""
SILENT = timedelta(minutes=5)
"""How long after its last report a controller is silent. Controllers report at least once a minute."""
MAX_CONTROLLERS = 16
"""The most controllers whose reports are kept."""
MAX_PROBLEMS = 20
"""The most problems in one report."""

Word = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z]+\Z")]


class ReportedProblem(Struct, frozen=True):
    """What keeps a controller from following its folder. `reason`: one word for programs. `message`: for people."""

    reason: Word
    message: Annotated[str, Meta(max_length=1024)]


class ControllerReport(Struct, forbid_unknown_fields=True):
    """The body of PUT for a controller: all of its present problems, the worst first."""

    problems: Annotated[list[ReportedProblem], Meta(max_length=MAX_PROBLEMS)]


class ControllerState(Struct, frozen=True):
    """A controller's last report. `last_seen`: when it came; None when none has come since the server started."""

    name: str
    last_seen: datetime | None
    problems: list[ReportedProblem]


class Controllers:
    """The last report of each controller since the server started. Any thread may call `states`."""

    def __init__(self, catalog: Catalog, placement: Placement, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._placement = placement
        self._clock = clock
        self._started_at = clock()
        self._states: dict[str, ControllerState] = {}

    def report(self, name: str, report: ControllerReport) -> ControllerState:
        """Store a report. Raises Unavailable when `MAX_CONTROLLERS` others report."""
        now = self._clock()
        if name not in self._states and len(self._states) >= MAX_CONTROLLERS:
            self._states = {key: it for key, it in self._states.items() if not self._is_silent(it, now)}
            if len(self._states) >= MAX_CONTROLLERS:
                raise Unavailable(f"{MAX_CONTROLLERS} controllers report already, and no more may: stop one of them")
        state = self._states[name] = ControllerState(name, now, report.problems)
        return state

    def states(self) -> list[ControllerState]:
        """Every controller that reports, by name, and silent controllers as long as resources have their label."""
        now, states = self._clock(), dict(self._states)
        owners = {it[OWNER_LABEL] for it in self._labels() if OWNER_LABEL in it}
        if FOLDER_OWNER in owners:
            states.setdefault(FOLDER_OWNER, ControllerState(FOLDER_OWNER, None, []))
        found = []
        for state in sorted(states.values(), key=lambda it: it.name):
            if not self._is_silent(state, now):
                found.append(state)
            elif state.name in owners:
                problems = [_not_following(state.last_seen), *state.problems]
                found.append(ControllerState(state.name, state.last_seen, problems))
        return found

    def _labels(self) -> Iterator[Mapping[str, str]]:
        """The labels of every Schedule, Repository and Host."""
        yield from (it.labels for it in list(self._catalog.schedules.values()))
        yield from (it.labels for it in list(self._catalog.repositories.values()))
        yield from (it.labels for it in list(self._placement.hosts.values()))

    def _is_silent(self, state: ControllerState, now: datetime) -> bool:
        return now - (state.last_seen or self._started_at) > SILENT


def _not_following(last_seen: datetime | None) -> ReportedProblem:
    since = f"since {last_seen:%Y-%m-%dT%H:%M:%SZ}" if last_seen else "since the server started"
    remedy = f"start it again or, if it was retired, remove the label {OWNER_LABEL} from its resources"
    message = f"it has not reported {since}, so changes of its files are not followed: {remedy}"
    return ReportedProblem("NotFollowing", message)
