"""The queue of jobs on a real database, in the words of tests: what each event sends, by the ids of jobs."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.agents.session import HelloFacts
from server.fleet.placement import PlacedSchedule, encoded_entry
from server.jobs.fires import NewJob
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.limits import GateLimit, gate_of_host, gate_of_schedule
from server.jobs.queue import (
    Arrival,
    Cancelling,
    Ended,
    Ending,
    JobQueue,
    Outcome,
    Recorded,
    Recording,
    Resuming,
    Taken,
    wire_id,
)
from server.jobs.waiting import waits_for
from server.resources.manifests import schedule_spec
from server.resources.specs import Retry, Window
from server.store import migrations, queue
from server.store.hosts import upsert_hosts
from server.store.jobs import get_job
from server.store.queue import OpenRow
from server.store.rows import AuditRow, HostRow, Row
from wire.messages import CommandRun, JobFinished

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOSTS = ("a", "b", "c")


def placed(schedule_id: str = "a", revision: str = "1", since: datetime | None = None, **more: Any) -> PlacedSchedule:
    """A schedule by whose spec `more` replaces fields. It is due each hour, of minute 0."""
    spec = schedule_spec(
        {
            "kind": "backup",
            "cron": "0 * * * *",
            "timeZone": "UTC",
            "enabled": True,
            "hostSelector": {},
            "repositoryRef": {"name": "main"},
            "backup": {"paths": ["/etc"], "excludes": [], "tags": [], "oneFileSystem": False, "excludeCaches": False},
            "concurrencyPolicy": "Forbid",
            "missedRunPolicy": "RunOnce",
            "spreadSeconds": 0,
            "timeoutSeconds": 60,
            "retry": {"limit": 0, "backoffSeconds": 60},
            **more,
        }
    )
    name = f"default/{schedule_id}"
    entry = encoded_entry(schedule_id, name, spec, since or NOON, revision)
    return PlacedSchedule(
        schedule_id, name, spec, "main", init=True, entry=entry, since=since or NOON - timedelta(days=1)
    )


_SCHEDULE = placed()


@cache
def _image() -> bytes:
    with sa.create_engine("sqlite://").connect() as conn:
        migrations.upgrade(conn)
        conn.commit()
        driver: Any = conn.connection.driver_connection
        image: bytes = driver.serialize()
        return image


def in_memory() -> Connection:
    """A connection to an SQLite of its own in memory, which has the tables."""
    conn = sa.create_engine("sqlite://").connect()
    driver: Any = conn.connection.driver_connection
    driver.deserialize(_image())
    driver.execute("PRAGMA foreign_keys=ON")
    return conn


def job(
    job_id: str,
    host: str = "a",
    kind: str = "backup",
    at: int = 0,
    schedule: str = "",
    repository: str = "repo",
    **more: Any,
) -> NewJob:
    """A job, recorded so many minutes after noon. One of a schedule is serial unless `policy` says otherwise."""
    command = CommandRun(job_id, kind, [], repository, schedule_id=schedule, scheduled_at=more.pop("due", None))
    more.setdefault("policy", "Forbid" if schedule else "Allow")
    return NewJob(host, command, "user", "me", 0, NOON + at * MINUTE, **more)


class Jobs:
    """A server's queue over a database that knows these hosts.

    `limits`: of repositories, by id; `of_hosts`: how many jobs each may run at once; `rollouts`: on how many hosts
    schedules run at once, by id; `pausing`: after how many that failed they pause. `retry`: the rule by which schedules
    try again; `windows`: theirs; `gone`: those that were deleted. `ended`: jobs that the queue ended itself, and how.
    `asked`: those whose hosts it asked to end them.
    """

    def __init__(
        self,
        conn: Connection,
        limits: dict[str, ConcurrencyLimit] | None = None,
        hosts: Collection[str] = HOSTS,
        server: str = "here",
        *,
        is_shared: bool = False,
    ) -> None:
        self.conn = conn
        self.limits = {} if limits is None else dict(limits)
        self.of_hosts: dict[str, int] = {}
        self.rollouts: dict[str, int] = {}
        self.pausing: dict[str, int] = {}
        self.retry = Retry(limit=0, backoff_seconds=60)
        self.windows: tuple[Window, ...] = ()
        self.gone: set[str] = set()
        self.now = NOON
        self.ended: dict[str, JobFinished] = {}
        self.asked: list[str] = []
        self.queue = JobQueue(
            server,
            lambda name: self.limits.get(name, ConcurrencyLimit()),
            self._schedule,
            gates_of=self._gates,
            is_shared=is_shared,
        )
        upsert_hosts(conn, [HostRow(name, {}, NOON, NOON) for name in hosts])

    def _schedule(self, host: str, schedule_id: str) -> PlacedSchedule | None:
        if not schedule_id or schedule_id in self.gone:
            return None
        spec = msgspec.structs.replace(_SCHEDULE.spec, retry=self.retry, windows=self.windows)
        return msgspec.structs.replace(_SCHEDULE, spec=spec)

    def _gates(self, host: str, schedule_id: str) -> list[GateLimit]:
        hosts, most = self.rollouts.get(schedule_id), self.pausing.get(schedule_id)
        its = [] if (hosts, most) == (None, None) else [gate_of_schedule(schedule_id, hosts, most)]
        return [*its, *([gate_of_host(host, self.of_hosts[host])] if host in self.of_hosts else [])]

    # Events. Each method returns the ids of the jobs that are sent.

    def sent(self, outcome: Outcome) -> list[str]:
        """Carry out what the queue decided, to the end."""
        ids = [row.id for row in outcome.sent]
        self.asked += [row.id for row in outcome.asked]
        for row, end in outcome.ended:
            assert row.id not in self.ended
            self.ended[row.id] = end
        if outcome.more:
            ids += self.sent(*self.queue.look_again(self.conn, [(outcome.more, self.now)]))
        return ids

    def add(self, *jobs: NewJob) -> list[str]:
        """Jobs are recorded."""
        return self.record(*jobs)[1]

    def record(self, *jobs: NewJob) -> tuple[Recorded, list[str]]:
        """Jobs are recorded. Returns the result, too."""
        (recorded,) = self.queue.record(self.conn, [Recording(jobs, self.now)])
        return recorded, [*(it.id for it in jobs if it.id in recorded.sendable), *self.sent(recorded.outcome)]

    def finish(self, host: str, attempt: str, status: str = "succeeded", reason: str = "") -> tuple[Ended, list[str]]:
        """A host says that an attempt ended. Returns the result, too."""
        end = JobFinished(attempt, status, self.now, reason=reason)  # type: ignore[arg-type]
        (ended,) = self.queue.finish(self.conn, [Ending(host, [end], self.now)])
        return ended, self.sent(ended.outcome)

    def ends(self, job_id: str) -> list[str]:
        """A job succeeds."""
        row = self.open()[job_id]
        ended, sent = self.finish(row.host, wire_id(row))
        assert [it.id for it, _ in ended.over] == [job_id]
        return sent

    def fails(self, job_id: str, minutes: int) -> list[str]:
        """A job of a schedule fails; its next attempt is due so many minutes from now."""
        row = self.open()[job_id]
        self.retry = Retry(limit=row.attempt, backoff_seconds=minutes * 60 // 2 ** (row.attempt - 1))
        ended, sent = self.finish(row.host, wire_id(row), "failed")
        assert [(it.id, at.not_before) for it, at in ended.again] == [(job_id, self.now + minutes * MINUTE)]
        return sent

    def fails_for_good(self, job_id: str) -> list[str]:
        """A job fails, and is not tried again."""
        row = self.open()[job_id]
        self.retry = Retry(limit=0, backoff_seconds=60)
        ended, sent = self.finish(row.host, wire_id(row), "failed")
        assert [it.id for it, _ in ended.over] == [job_id]
        return sent

    def resume(self, schedule_id: str = "s") -> list[str] | None:
        """Somebody has a schedule go on. None if it was not paused."""
        line = AuditRow(self.now, "user", "me", "resume", "Schedule", schedule_id, {})
        (outcome,) = self.queue.resume(self.conn, [Resuming(schedule_id, self.now, line)])
        return None if outcome is None else self.sent(outcome)

    def accepts(self, job_id: str) -> list[str]:
        """A host accepts the present attempt of a job. Returns the ids of those that run now, for none is sent."""
        row = self.open()[job_id]
        (accepted,) = self.queue.accept(self.conn, [Taken(row.host, [wire_id(row)], self.now)])
        return [*accepted.job_ids]

    def drain(self, host: str, *, on: bool = True) -> list[str]:
        """Nothing new is to begin on a host, or it is to again."""
        row = HostRow(host, {}, NOON, NOON, drained_by="me" if on else "", drains=on)
        upsert_hosts(self.conn, [row])
        return self.sent(*self.queue.drain(self.conn, [([(host, on)], self.now)]))

    def agent_stops(self, host: str) -> list[str]:
        """A host's agent begins nothing more."""
        return self.sent(*self.queue.agent_stops(self.conn, [(host, self.now)]))

    def connected(self, host: str, running: Collection[str] = (), *, stops: bool = False) -> list[str]:
        """A host says hello, and which attempts it has."""
        facts = HelloFacts("1.2") if self.queue.is_shared else None
        ((outcome, *_),) = self.queue.arrived(self.conn, [Arrival(host, running, self.now, "process", facts, stops)])
        return self.sent(outcome)

    def disconnected(self, host: str) -> tuple[list[str], bool]:
        """A host's connection is gone. Returns, too, whether any of its jobs has a slot."""
        ((outcome, holds),) = self.queue.disconnected(self.conn, [(host, self.now)])
        return self.sent(outcome), holds

    def given_up(self, host: str) -> list[str]:
        """A host was gone for so long that its jobs lose their slots."""
        return self.sent(*self.queue.given_up(self.conn, [(host, self.now)]))

    def tick(self, minutes: float | None = None) -> list[str]:
        """It is so many minutes after noon. Returns the ids of the jobs that are sent in all."""
        self.now = self.now if minutes is None else NOON + minutes * MINUTE
        sent: list[str] = []
        at: datetime | None = self.now
        while at is not None and at <= self.now:
            ((outcome, at),) = self.queue.tick(self.conn, [self.now])
            sent += self.sent(outcome)
        return sent

    @property
    def next_at(self) -> datetime | None:
        """When `tick` has more to do."""
        return queue.next_at(self.conn)

    def limit(self, repository: str, limit: int | None = None, *, per_host: bool = False) -> list[str]:
        """A repository's limit changes."""
        before, now = self.limits.get(repository, ConcurrencyLimit()), ConcurrencyLimit(limit, per_host)
        self.limits[repository] = now
        change = self.queue.relimit if before.per_host == now.per_host else self.queue.move_lanes
        return self.sent(*change(self.conn, [(repository, self.now)]))

    def limit_host(self, host: str, limit: int | None) -> list[str]:
        """How many jobs a host may run at once changes; None for any number."""
        if limit is None:
            self.of_hosts.pop(host, None)
        else:
            self.of_hosts[host] = limit
        return self.sent(*self.queue.open_gates(self.conn, [([gate_of_host(host, 0).gate], self.now)]))

    def change_windows(self, *windows: Window) -> list[str]:
        """All schedules get these windows."""
        self.windows = windows
        self.queue.windows_changed(self.conn, [([_SCHEDULE.id, "s", "other"], self.now)])
        return self.tick()

    def cancel(self, *job_ids: str, why: str = "me") -> list[str]:
        """Somebody wants jobs to end."""
        return self.sent(*self.queue.cancel(self.conn, [Cancelling(job_ids, why, self.now)]))

    def restart(self) -> list[str]:
        """The server begins anew. Returns the hosts whose jobs keep their slots for a while."""
        return self.queue.begin(self.conn, [self.now])[0]

    # What there is.

    def open(self) -> dict[str, OpenRow]:
        """The open jobs by id, in the order of the queue."""
        ids = self.conn.execute(sa.text("SELECT id FROM jobs")).scalars().all()
        return {row.id: row for row in queue.rows(self.conn, ids)}

    def row(self, job_id: str) -> Row:
        """The row of a job, which is stored."""
        row = get_job(self.conn, job_id)
        assert row is not None
        return row

    def ready(self) -> list[str]:
        """The jobs that only their lanes hold back, in order."""
        found = sa.text("SELECT id FROM jobs WHERE ready ORDER BY queued_at, id")
        return list(self.conn.execute(found).scalars())

    def waits_for(self, job_id: str) -> str:
        """What users are told that a job waits for."""
        row = get_job(self.conn, job_id)
        if row is None or row["status"] != "pending" or row["sent"]:
            return ""
        (wait,) = queue.waits(self.conn, [job_id])
        return waits_for(row, wait, "ns/main", self.now, "ns/copied" if row["from_lane"] else "")
