"""The server's database in a simulation: what is declared as plain data, and jobs in a real SQLite.

Changes are whole or absent. What the checks of promises read of jobs, `Row`, follows from what the queue answers.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from server.fleet.placement import PlacedSchedule
from server.jobs.fires import NewJob
from server.jobs.queue import Ended, Outcome, Recorded, Recording
from server.store import migrations, queue
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
        self.driver = sqlite3.connect(":memory:", isolation_level=None)
        self.driver.deserialize(image)

    def exec_driver_sql(self, statement: str, parameters: Mapping[str, object] = MappingProxyType({})) -> "Result":
        """Execute a statement in the driver's words."""
        return Result(self.driver.execute(statement, parameters))


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
    """What the server's disk keeps. `begun`: when each schedule's timing began."""

    schedules: dict[str, PlacedSchedule] = field(default_factory=dict)
    begun: dict[str, datetime] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    acked: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, Row] = field(default_factory=dict)
    open: dict[str, dict[str, Row]] = field(default_factory=dict)
    image: bytes = field(default_factory=_image)

    def __post_init__(self) -> None:
        self._conn: Any = Connection(self.image)

    def know(self, hosts: Iterable[str]) -> None:
        """Hosts are known from now on."""
        upsert_hosts(self._conn, [HostRow(name, {}, _BEGIN, _BEGIN) for name in hosts])

    def perform(self, function: Callable[..., Sequence[Any]], item: Any, now: datetime) -> Any:
        """Run a batch statement of the queue, and note what it answers."""
        (result,) = function(self._conn, [item])
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
                self._ended(outcome.ended, now)
        return result

    def _recorded(self, item: Recording, result: Recorded, now: datetime) -> None:
        for job in item.jobs:
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
        return queue.of_host(self._conn, host, most=1 << 20)

    def copy(self) -> "Database":
        """A copy, of which what is declared is not looked at again: people, or a controller, declare it anew."""
        jobs = {key: replace(row) for key, row in self.jobs.items()}
        open_ = {host: {key: jobs[key] for key in rows} for host, rows in self.open.items()}
        versions, acked = dict(self.versions), dict(self.acked)
        return replace(self, versions=versions, acked=acked, jobs=jobs, open=open_, image=self._conn.driver.serialize())

    def put_back(self, copy: "Database") -> None:
        """Have the jobs and the acks of a copy."""
        self.jobs, self.open, self.acked = copy.jobs, copy.open, copy.acked
        self._conn = Connection(copy.image)
