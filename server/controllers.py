"""What controllers of folders say of themselves, and which of them have fallen silent.

A controller reports after each comparison what keeps it from following its folder. One that reports no more cannot say
so itself: it is missed after SILENT, also after a restart of the server, by the resources that bear its label.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct

from server.problems import Unavailable
from server.trouble import Trouble

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

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._started_at = clock()
        self._states: dict[str, ControllerState] = {}

    def report(self, name: str, report: ControllerReport) -> ControllerState:
        """A controller says how it is. Raises Unavailable where there are too many of them."""
        if name not in self._states and len(self._states) >= MAX_CONTROLLERS:
            raise Unavailable(f"{MAX_CONTROLLERS} controllers report already: no more are kept")
        state = self._states[name] = ControllerState(name, self._clock(), report.problems)
        return state

    def states(self, labels: Iterable[Mapping[str, str]]) -> list[ControllerState]:
        """How each is that reported, and that of the folder whose resources there are. `labels`: of all resources."""
        states = dict(self._states)
        if FOLDER_OWNER not in states and any(it.get(OWNER_LABEL) == FOLDER_OWNER for it in labels):
            states[FOLDER_OWNER] = ControllerState(FOLDER_OWNER, None, [])
        return [self._judged(states[name]) for name in sorted(states)]

    def _judged(self, state: ControllerState) -> ControllerState:
        silent = _silence(state.last_seen, self._started_at, self._clock())
        told = [ReportedProblem(*it) for it in silent]
        return ControllerState(state.name, state.last_seen, [*told, *state.problems])


def _silence(last_seen: datetime | None, started_at: datetime, now: datetime) -> list[Trouble]:
    """What is wrong with a controller that last reported then."""
    if now - (last_seen or started_at) <= SILENT:
        return []
    since = f"since {last_seen:%Y-%m-%dT%H:%M:%SZ}" if last_seen else "since the server started"
    remedy = f"start it again; where it is retired, take the label {OWNER_LABEL} from what it made"
    return [Trouble("NotFollowing", f"it has not reported {since}: changes of its files are not followed; {remedy}")]
