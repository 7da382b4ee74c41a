"""The reports of controllers that follow a folder, and which of these controllers have stopped reporting.

A controller reports after each comparison what keeps it from following its folder. A controller that has not reported
for `SILENT` gets the problem NotFollowing, as long as resources have its label. That holds as well for a controller
that never reported; a server that has just started gives each that time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import Connection

from server.errors import Unavailable
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement
from server.jobs import notices
from server.store import news
from server.store.controllers import ReportRow, all_reports, delete_reports, put_reports
from server.store.engine import Store

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
    """A controller's last report. `last_seen`: when it came; None when none is known."""

    name: str
    last_seen: datetime | None
    problems: list[ReportedProblem]


class Controllers:
    """The last report of each controller: a copy of their rows. Any thread may call `states`."""

    def __init__(self, catalog: Catalog, placement: Placement, store: Store, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._placement = placement
        self._store = store
        self._clock = clock
        self._started_at = clock()
        self._states: dict[str, ControllerState] = {}

    async def load(self) -> None:
        """Read the rows. Raises Unavailable."""
        rows = await self._store.read(all_reports)
        self._states = {row.name: ControllerState(row.name, row.at, _problems.decode(row.body)) for row in rows}

    async def report(self, name: str, report: ControllerReport) -> ControllerState:
        """Store a report. Raises Unavailable when `MAX_CONTROLLERS` others report."""
        now, dropped = self._clock(), []
        if name not in self._states and len(self._states) >= MAX_CONTROLLERS:
            dropped = [key for key, it in self._states.items() if self._is_silent(it, now)]
            if not dropped:
                raise Unavailable(f"{MAX_CONTROLLERS} controllers report already, and no more may: stop one of them")
        row = ReportRow(name, now, msgspec.json.encode(report.problems).decode())
        await self._store.write(self._put, (row, dropped))
        state = ControllerState(name, now, report.problems)
        self._states = {key: it for key, it in self._states.items() if key not in dropped} | {name: state}
        return state

    def _put(self, conn: Connection, items: Sequence[tuple[ReportRow, Sequence[str]]]) -> list[None]:
        delete_reports(conn, [name for _, dropped in items for name in dropped])
        put_reports(conn, [row for row, _ in items])
        if self._store.is_shared:
            bodies = [notices.encode([notices.Reported(row.name)]) for row, _ in items]
            news.tell(conn, self._store.server, items[-1][0].at, bodies)
        return [None] * len(items)

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

    def awaited(self) -> list[str]:
        """The controllers that have not reported since the server started, and are not silent yet for that."""
        now, states = self._clock(), {FOLDER_OWNER: ControllerState(FOLDER_OWNER, None, [])} | self._states
        return [
            it.name
            for it in states.values()
            if (it.last_seen is None or it.last_seen < self._started_at) and not self._is_silent(it, now)
        ]

    def _labels(self) -> Iterator[Mapping[str, str]]:
        """The labels of every Schedule, Repository and Host."""
        yield from (it.labels for it in list(self._catalog.schedules.values()))
        yield from (it.labels for it in list(self._catalog.repositories.values()))
        yield from (it.labels for it in list(self._placement.hosts.values()))

    def _is_silent(self, state: ControllerState, now: datetime) -> bool:
        return now - max(state.last_seen or self._started_at, self._started_at) > SILENT


_problems = msgspec.json.Decoder(list[ReportedProblem])


def _not_following(last_seen: datetime | None) -> ReportedProblem:
    since = f"since {last_seen:%Y-%m-%dT%H:%M:%SZ}" if last_seen else "yet"
    remedy = f"start it again or, if it was retired, remove the label {OWNER_LABEL} from its resources"
    message = f"it has not reported {since}, so changes of its files are not followed: {remedy}"
    return ReportedProblem("NotFollowing", message)
