"""The server's database in a simulation: what is declared as plain data, and jobs in a real SQLite.

Changes are whole or absent. What the checks of promises read of jobs, `Row`, follows from what the queue answers.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from server.fleet.placement import HostState, PlacedSchedule, Placement, Plan
from server.jobs.fires import NewJob
from server.jobs.queue import Ended, Outcome, Recorded, Recording, wire_id
from server.store import changelog, connections, joins, migrations, queue
from server.store.connections import ConnectionRow
from server.store.hosts import upsert_hosts
from server.store.queue import OpenRow
from server.store.rows import HostRow
from wire.messages import JobFinished

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


_made: list[bytes] = []


def _image() -> bytes:
    """An empty database of this version."""
    if not _made:
        with sa.create_engine("sqlite://").connect() as conn:
            migrations.upgrade(conn)
            conn.commit()
            driver: Any = conn.connection.driver_connection
            _made.append(driver.serialize())
    return _made[0]


class Connection:
    """A connection to an SQLite in memory, as much of one as statements need. SQLAlchemy's would take most of the time
    of a story."""

    dialect = sqlite.dialect()

    def __init__(self, image: bytes) -> None:
        self.info: dict[str, object] = {}
        self.driver = sqlite3.connect(":memory:", isolation_level=None)
        self.driver.deserialize(image)

    def exec_driver_sql(self, statement: str, parameters: Mapping[str, object] = MappingProxyType({})) -> "Result":
        """Execute a statement in the driver's words."""
        return Result(self.driver.execute(statement, parameters))

    def execute(self, statement: sa.ClauseElement) -> "Result":
        """Execute a statement of SQLAlchemy's, which is rare here."""
        compiled = statement.compile(dialect=self.dialect, compile_kwargs={"literal_binds": True})
        return Result(self.driver.execute(str(compiled)))


class Result(NamedTuple):
    """What a statement found or did."""

    cursor: sqlite3.Cursor

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        return self.cursor.rowcount

    def scalar(self) -> Any:
        """The first value of the first row; None without one."""
        row = self.cursor.fetchone()
        return None if row is None else row[0]

    def scalar_one(self) -> Any:
        """The value of the one row."""
        return self.scalar()

    def scalars(self) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in self.cursor]

    def all(self) -> list[Any]:
        """All rows."""
        return self.cursor.fetchall()


class Edit(NamedTuple):
    """A change of what is declared, as the log has it: the rows, and the versions that hosts get."""

    put: Sequence[PlacedSchedule]
    remove: Sequence[str]
    hosts: Sequence[HostState]
    versions: Mapping[str, int]

    @classmethod
    def of(cls, plan: Plan, desired: Iterable[tuple[str, int, str]]) -> Self:
        """The change of a plan, by which these hosts get other sets: (name, version, digest)."""
        hosts = [msgspec.structs.replace(host) for host in plan.put_hosts]
        return cls(plan.put, plan.remove, hosts, {name: version for name, version, _ in desired})

    def planned(self, placement: Placement) -> Plan:
        """The same change on another server."""
        if not self.hosts:
            return placement.plan(self.put, self.remove)
        return Plan(put_hosts=[msgspec.structs.replace(it, entries=placement.match(it.labels)) for it in self.hosts])


@dataclass
class Row:
    """A job as the checks see it: recorded, tried so often, and ended or not."""

    job: NewJob
    recorded_at: datetime
    attempt: int = 1
    end: JobFinished | None = None
    ended_at: datetime | None = None

    @property
    def host(self) -> str:
        """The job's host."""
        return self.job.host

    @property
    def scheduled_id(self) -> str:
        """The id of the job's schedule."""
        return self.job.command.schedule_id

    @property
    def scheduled_at(self) -> datetime | None:
        """The job's due time."""
        return self.job.command.scheduled_at

    @property
    def wire_id(self) -> str:
        """What agents call the present attempt."""
        return self.job.id if self.attempt == 1 else f"{self.job.id}.{self.attempt}"


@dataclass
class Database:
    """What the server's disk keeps. `begun`: when each schedule's timing began.

    Where several servers share it: `living`: those that have a row; `is_down`: whether nobody reaches it, since
    `lost_at`; `committing`: those whose transactions were committed then, though they do not hear of that;
    `revision`: of the newest of the `edits`. `drained`: the hosts on which nothing new is to begin. `begun_at_pause`:
    the attempts that had been sent when schedules were paused, of those that are; None where no schedule pauses.
    """

    schedules: dict[str, PlacedSchedule] = field(default_factory=dict)
    begun: dict[str, datetime] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    acked: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, Row] = field(default_factory=dict)
    open: dict[str, dict[str, Row]] = field(default_factory=dict)
    image: bytes = field(default_factory=_image)
    living: set[str] = field(default_factory=set)
    committing: set[str] = field(default_factory=set)
    edits: list[Edit] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    begun_at_pause: dict[str, set[str]] | None = None
    is_down: bool = False
    lost_at: datetime = _BEGIN
    revision: int = 0

    def __post_init__(self) -> None:
        self.conn: Any = Connection(self.image)
        self._news_id = self._newest = 0
        self._refused: dict[tuple[str, str, datetime], list[str]] = {}

    def know(self, hosts: Iterable[str]) -> None:
        """Hosts are known from now on."""
        upsert_hosts(
            self.conn,
            [HostRow(it, {}, _BEGIN, _BEGIN, self.versions.get(it, 0), drains=it in self.drained) for it in hosts],
        )

    def meet(self, placement: Placement, plan: Plan) -> None:
        """Store in the transaction of a change which hosts schedules meet by it. `placement`: as it was before."""
        joins.part(self.conn, placement.changed_pairs(plan)[1])
        joins.meet(self.conn, placement.met(plan))
        desired = [(version, host) for host, version, _ in placement.desired(plan)]
        self.conn.driver.executemany("UPDATE hosts SET desired_version = ? WHERE name = ?", desired)

    def ack(self, host: str, version: int, digest: str) -> None:
        """A host acked a set."""
        self.acked[host] = version, digest
        self.conn.driver.execute("UPDATE hosts SET applied_version = ? WHERE name = ?", (version, host))

    def joining(self) -> list[tuple[str, str]]:
        """The (schedule id, host) that have yet to run once since the host joined."""
        return list(self.conn.driver.execute("SELECT schedule_id, host FROM met_hosts WHERE due"))

    def placement(self) -> Placement:
        """What is declared, as a server loads it."""
        loaded = Placement()
        loaded.put(self.schedules.values())
        for name, labels in self.labels.items():
            state = HostState(name, labels, self.since[name], self.versions[name], loaded.match(labels))
            state.declare(state.spec, "user" if name in self.drained else "")
            loaded.commit(Plan(put_hosts=[state]))
        return loaded

    def declare(self, plan: Plan, versions: Mapping[str, int]) -> None:
        """What is declared is another now; `versions`: of the hosts whose sets that changes."""
        self.schedules.update({schedule.id: schedule for schedule in plan.put})
        for schedule_id in plan.remove:
            del self.schedules[schedule_id]
        for host in plan.put_hosts:
            self.labels[host.name], self.since[host.name] = dict(host.labels), host.since
            (self.drained.add if host.drains else self.drained.discard)(host.name)
        self.versions.update(versions)

    def perform(
        self, function: Callable[..., Sequence[Any]], item: Any, now: datetime, early: int | None = None
    ) -> Any:
        """Run a batch statement of the queue, and note what it answers. `early`: the id that its news were given
        before those of others."""
        (result,) = function(self.conn, [item])
        self._number(early)
        self._note_pauses()
        if isinstance(result, Recorded):
            self._recorded(item, result, now)
        elif isinstance(result, Ended):
            for row, retry in result.again:
                self.jobs[row.id].attempt = retry.attempt + 1
            self._ended(result.over, now)
            self._ended(result.outcome.ended, now)
        else:
            outcome = result[0] if isinstance(result, tuple) and not isinstance(result, Outcome) else result
            if isinstance(outcome, Outcome):
                for job in outcome.recorded:
                    self.jobs[job.id] = self.open[job.host][job.id] = Row(job, now)
                self._ended(outcome.ended, now)
        return result

    def _recorded(self, item: Recording, result: Recorded, now: datetime) -> None:
        for job in item.jobs:
            if job.id in result.refused and job.command.scheduled_at is not None:  # they may end before it hears that
                key = job.host, job.command.schedule_id, job.command.scheduled_at
                self._refused[key] = self._runs(job.host, job.command.schedule_id)
            if job.id in result.new:
                self.jobs[job.id] = self.open[job.host][job.id] = Row(job, now)
        self._ended(result.outcome.ended, now)

    def _ended(self, ended: Iterable[tuple[Any, JobFinished]], now: datetime) -> None:
        for job, end in ended:
            row = self.jobs[job.id]
            row.end, row.ended_at = end, now
            del self.open[row.host][job.id]

    def open_jobs(self, host: str) -> list[OpenRow]:
        """A host's open jobs."""
        return queue.of_host(self.conn, host, most=1 << 20)

    def copy(self) -> "Database":
        """A copy, of which what is declared is not looked at again: people, or a controller, declare it anew."""
        jobs = {key: replace(row) for key, row in self.jobs.items()}
        open_ = {host: {key: jobs[key] for key in rows} for host, rows in self.open.items()}
        versions, acked = dict(self.versions), dict(self.acked)
        return replace(self, versions=versions, acked=acked, jobs=jobs, open=open_, image=self.conn.driver.serialize())

    def put_back(self, copy: "Database") -> None:
        """Have the jobs and the acks of a copy."""
        self.jobs, self.open, self.acked = copy.jobs, copy.open, copy.acked
        self.conn = Connection(copy.image)

    def sent_to(self, host: str) -> set[str]:
        """What a host calls the attempts that it was sent, and that are not over."""
        return {wire_id(row) for row in queue.of_hosts(self.conn, [host]) if row.sent}

    def _note_pauses(self) -> None:
        """Note what had been sent of schedules that are paused now."""
        if (known := self.begun_at_pause) is not None:
            paused = [id_ for (id_,) in self.conn.driver.execute("SELECT schedule_id FROM rollout_pauses")]
            self.begun_at_pause = {id_: known[id_] if id_ in known else self._sent_of(id_) for id_ in paused}

    def _sent_of(self, schedule_id: str) -> set[str]:
        rows = queue.of_pairs(self.conn, [(schedule_id, host) for host in self.open])
        return {wire_id(row) for row in rows if row.sent}

    def paused(self) -> Mapping[str, set[str]]:
        """The schedules that are paused, each with the attempts that had been sent by then."""
        return self.begun_at_pause or {}

    def in_the_way(self, host: str, schedule_id: str, due: datetime) -> Sequence[str]:
        """The open runs for which a due time is left out."""
        known = self._refused.get((host, schedule_id, due))  # which may be heard twice: it was fired again
        return known if known is not None else self._runs(host, schedule_id)

    def _runs(self, host: str, schedule_id: str) -> list[str]:
        return [row.job.id for row in self.open[host].values() if row.scheduled_id == schedule_id]

    # What several servers share.

    def append(self, base: int, edit: Edit, at: datetime) -> int | None:
        """Append a change that was planned at revision `base` to the log; None where others came after that."""
        revision = changelog.append(self.conn, base, at, str(len(self.edits)))
        if revision is not None:
            self.edits.append(edit)
            self.revision = revision
        return revision

    def take_news_id(self) -> int:
        """A number of a row of news, for a transaction that commits later than those that take theirs after it."""
        self._news_id += 1
        return self._news_id

    def _number(self, early: int | None) -> None:
        """Give the news of a transaction the ids that a sequence would have given them."""
        if not self.conn.info.get("wakes"):
            return
        execute = self.conn.driver.execute
        told = [id_ for (id_,) in execute("SELECT id FROM news WHERE id > ? ORDER BY id DESC", [self._newest])]
        first = self._news_id + 1
        self._news_id += len(told) - (early is not None)
        new = sorted([*([] if early is None else [early]), *range(first, self._news_id + 1)], reverse=True)
        for at, id_ in zip(told, new, strict=True):
            if at != id_:
                execute("UPDATE news SET id = ? WHERE id = ?", [id_, at])
        self._newest = max(self._newest, *new)

    def has_told(self) -> bool:
        """Whether somebody told news since this was asked last."""
        return bool(self.conn.info.pop("wakes", False))

    def given(self, job_ids: Iterable[str]) -> list[OpenRow]:
        """Those of these jobs that have slots, and have not begun."""
        return [row for row in queue.rows(self.conn, job_ids) if row.status == "pending" and row.sent]

    def without_row(self) -> list[str]:
        """The servers that have hosts, and are dead."""
        return sorted({id_ for _, id_ in self.connected()} - self.living)

    def connected(self) -> set[tuple[str, str]]:
        """The hosts that are connected, each with its server."""
        return set(self.conn.driver.execute("SELECT host, server FROM connections WHERE server IS NOT NULL"))

    def unsent(self) -> set[tuple[str, str]]:
        """The attempts, each with its host, that have slots and that no host has taken."""
        of = "SELECT id || '.' || attempt, host FROM jobs WHERE holds AND sent AND status = 'pending'"
        return set(self.conn.driver.execute(of))

    def connections(self) -> list[ConnectionRow]:
        """The newest connection of each host."""
        return connections.all_connections(self.conn)

    def read_ack(self, host: str) -> None:
        """A host may have acked another set."""
        of = "SELECT applied_version, applied_digest FROM hosts WHERE name = ?"
        ((version, digest),) = self.conn.driver.execute(of, [host])
        self.acked[host] = version, digest or ""
