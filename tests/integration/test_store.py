"""Promises 1 and 4, in the store: one job for each due time, no end lost, and shared commits that hurt nobody."""

import asyncio
import logging
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from server.errors import Unavailable
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Ending, JobQueue, Taken
from server.store import batch as bulk
from server.store import database
from server.store import engine as store
from server.store import jobs as job_statements
from server.store import logs as log_statements
from server.store.audit import list_audit, record_audit
from server.store.declared import (
    delete_joined,
    delete_schedules,
    get_resource,
    list_resources,
    upsert_joined,
    upsert_repositories,
    upsert_schedules,
)
from server.store.engine import Store, StoreClosedError, StoreError
from server.store.hosts import (
    delete_hosts,
    get_host,
    host_acks,
    host_hello,
    hosts_seen,
    list_hosts,
    set_desired,
    upsert_hosts,
)
from server.store.jobs import (
    get_job,
    jobs_accepted,
    jobs_cancelled,
    jobs_finished,
    jobs_retried,
    list_attempts,
    list_jobs,
    record_jobs,
)
from server.store.load import load_all
from server.store.logs import MAX_LOG_BYTES, MAX_LOG_LINES, list_log, log_lines
from server.store.queue import OpenRow, of_host
from server.store.rows import AuditRow, HostRow, JobRow, Joined, RepositoryRow, Retry, ScheduleRow
from server.store.tables import AUDIT, HOSTS, JOBS, REPOSITORIES, SCHEDULES, stored
from tests.integration.conftest import SQLITE
from wire.messages import CommandRun, JobEnd, JobFinished

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def sqlite_db(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store.open(tmp_path / "data" / "lamplighter.db")
    yield opened
    await opened.close()


class Gate:
    """A batch statement that holds the writer until it is let go: what is written meanwhile gathers behind it."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()

    def __call__(self, conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        self.entered.set()
        assert self.let_go.wait(10)
        return [None] * len(items)

    async def hold(self, db: Store) -> asyncio.Task[Any]:
        held = asyncio.create_task(db.write(self, None))
        await asyncio.to_thread(self.entered.wait, 10)
        return held


QUEUE = JobQueue("server", lambda _repository: ConcurrencyLimit(), lambda _host, _schedule: None)


def command(job_id: str) -> str:
    return msgspec.json.encode(CommandRun(job_id, "backup", [], "main")).decode()


def job(
    job_id: str,
    host: str = "node-1",
    scheduled_id: str = "s1",
    scheduled_at: datetime | None = NOW,
    created_at: datetime = NOW,
    **values: Any,
) -> JobRow:
    its = (job_id, host, "backup", "schedule", "ns/etc", scheduled_id, scheduled_at, 0, command(job_id), created_at)
    return JobRow(*its, queued_at=created_at)._replace(**values)


def end(job_id: str, status: JobEnd = "succeeded", **values: Any) -> JobFinished:
    return JobFinished(job_id, status, NOW, **values)


async def ended(db: Store, *ends: JobFinished) -> set[str]:
    """The ids of the jobs that these ends of a host ended."""
    told = await db.write(QUEUE.finish, Ending("node-1", ends, NOW))
    return {row.id for row, _ in told.over}


def host(name: str, **values: Any) -> HostRow:
    return HostRow(name, {"role": "db"}, NOW, NOW)._replace(**values)


async def found(db: Store, query: Callable[..., dict[str, Any] | None], *key: Any) -> dict[str, Any]:
    """The row that a query reads, which is there."""
    row = await db.read(query, *key)
    assert row is not None
    return row


def insert_host(conn: sa.Connection, names: Sequence[str]) -> list[Any]:
    for name in names:
        conn.execute(sa.insert(HOSTS).values(name=name, created_at=NOW, since=NOW))
    return list(names)


def count(conn: sa.Connection, table: sa.Table) -> int | None:
    return conn.execute(sa.select(sa.func.count()).select_from(table)).scalar()


# Writing.


@pytest.mark.sqlite("the modes of its files")
async def test_files_are_for_this_user_only(sqlite_db: Store, tmp_path: Path) -> None:
    await sqlite_db.write(upsert_hosts, host("node-1"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "data").iterdir()}
    its = ("lamplighter.db", "lamplighter.db-wal", "lamplighter.db-shm", "lamplighter.db.lock")
    assert modes == dict.fromkeys(its, 0o600)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.sqlite("its pragmas")
async def test_commits_are_durable_and_keys_are_held(sqlite_db: Store) -> None:
    def pragmas(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [[conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]] * len(items)

    assert await sqlite_db.write(pragmas, None) == ["wal", 2, 1]


async def test_neighbours_with_one_function_are_handed_over_together_and_in_order(db: Store) -> None:
    seen = []

    def first(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        seen.append(("first", *items))
        return [item * 10 for item in items]

    def second(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        seen.append(("second", *items))
        return [item * 100 for item in items]

    gate = Gate()
    held = await gate.hold(db)
    waiting = [asyncio.create_task(db.write(fn, at)) for at, fn in enumerate((first, first, second, first))]
    await asyncio.sleep(0)
    gate.let_go.set()
    assert await asyncio.gather(*waiting) == [0, 10, 200, 30]
    assert seen == [("first", 0, 1), ("second", 2), ("first", 3)]
    await held


class Noted:
    """Batch statements that note what they are given. `calls`: how often any was called, `seen`: (name, item)."""

    def __init__(self, *names: str) -> None:
        self.calls, self.seen = 0, list[tuple[str, Any]]()
        self.statements = {name: self._statement(name) for name in names}

    def _statement(self, name: str) -> Callable[[sa.Connection, Sequence[Any]], list[Any]]:
        def noted(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
            self.calls += 1
            self.seen += [(name, item) for item in items]
            return list(items)

        return noted


async def test_what_hosts_say_in_turn_is_stored_by_few_statements(db: Store) -> None:
    noted, gate = Noted("fire", "accept"), Gate()
    said = [(name, at) for at in range(100) for name in ("fire", "accept")]
    held = await gate.hold(db)
    stored = [db.submit(noted.statements[name], (name, at), f"host-{at}") for name, at in said]
    await asyncio.sleep(0)
    gate.let_go.set()
    assert await asyncio.gather(*stored) == said
    assert noted.calls == 2
    await held


@pytest.mark.parametrize("seed", range(5))
async def test_what_one_host_says_keeps_its_order_also_with_what_is_of_none(sqlite_db: Store, seed: int) -> None:
    rng, noted, gate = random.Random(seed), Noted("a", "b", "c"), Gate()
    names, hosts = list(noted.statements), ["", "x", "y", "z"]
    said = [(rng.choice(names), (rng.choices(hosts, [1, 9, 9, 9])[0], at)) for at in range(200)]
    held = await gate.hold(sqlite_db)
    stored = [sqlite_db.submit(noted.statements[name], item, item[0]) for name, item in said]
    await asyncio.sleep(0)
    gate.let_go.set()
    await asyncio.gather(held, *stored)
    assert sorted(noted.seen) == sorted(said)
    for host in hosts[1:]:
        of_host = [item for _, item in noted.seen if item[0] in {"", host}]
        assert of_host == sorted(of_host, key=lambda item: item[1])


async def test_one_bad_call_hurts_only_itself(db: Store, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    held = await gate.hold(db)
    names = ["a", "b", "a", "c"]
    waiting = [asyncio.create_task(db.write(insert_host, name)) for name in names]
    await asyncio.sleep(0)
    gate.let_go.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[:2] + results[3:] == ["a", "b", "c"]
    assert isinstance(results[2], sa.exc.IntegrityError)
    assert await db.read(count, HOSTS) == 3
    await held


async def test_values_stay_out_of_errors(db: Store, caplog: pytest.LogCaptureFixture) -> None:
    secret = RepositoryRow("r1", "ns", "main", {}, {}, 1, NOW, NOW, "s3cret")
    await db.write(upsert_repositories, secret)
    with pytest.raises(sa.exc.IntegrityError) as refused:
        await db.write(upsert_repositories, secret._replace(id="r2"))
    assert "s3cret" not in str(refused.value) + repr(secret) + caplog.text


async def test_a_waiter_that_gives_up_disturbs_nobody(db: Store) -> None:
    gate = Gate()
    held = await gate.hold(db)
    waiting = [asyncio.create_task(db.write(insert_host, name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.let_go.set()
    assert await waiting[1] == "b"
    assert await db.read(count, HOSTS) == 2
    await held


async def test_a_read_is_of_one_snapshot(db: Store) -> None:
    await db.write(upsert_hosts, host("node-1"))
    seen, go_on = threading.Event(), threading.Event()

    def twice(conn: sa.Connection) -> tuple[int | None, int | None]:
        first = count(conn, HOSTS)
        seen.set()
        assert go_on.wait(10)
        return first, count(conn, HOSTS)

    reading = asyncio.create_task(db.read(twice))
    await asyncio.to_thread(seen.wait, 10)
    await db.write(upsert_hosts, host("node-2"))
    go_on.set()
    assert await reading == (1, 1)


@pytest.mark.sqlite("its file")
async def test_what_is_answered_is_on_disk_for_others(sqlite_db: Store, tmp_path: Path) -> None:
    await sqlite_db.write(upsert_hosts, host("node-1"))
    other = sqlite3.connect(tmp_path / "data" / "lamplighter.db")
    assert other.execute("SELECT name FROM hosts").fetchall() == [("node-1",)]
    other.close()


@pytest.mark.sqlite("its lock on the whole file")
async def test_a_locked_database_is_told_to_all_at_once_and_then_forgotten(
    sqlite_db: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = sqlite_db
    await db.write(lambda conn, items: [conn.exec_driver_sql("PRAGMA busy_timeout=1").scalar()], None)
    other = sqlite3.connect(tmp_path / "data" / "lamplighter.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.CRITICAL), pytest.raises(Unavailable, match="cannot be written now"):
        await db.write(insert_host, "a")
    other.execute("ROLLBACK")
    other.close()
    assert await db.write(insert_host, "a") == "a"


async def test_a_database_that_cannot_be_read_now_is_told_as_that_and_then_read_again(
    db: Store, tmp_path: Path
) -> None:
    def lose(conn: sa.Connection) -> None:
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        raise sa.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))

    with pytest.raises(Unavailable, match=r"the database cannot be read now: (disk I/O error|terminating connection)"):
        await db.read(lose)
    assert await db.read(list_hosts, None, 10) == []


async def test_more_calls_than_may_wait_are_refused(db: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_WAITING", 1)
    gate = Gate()
    held = await gate.hold(db)
    waiting = asyncio.create_task(db.write(insert_host, "a"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="cannot keep up"):
        await db.write(insert_host, "b")
    gate.let_go.set()
    assert await waiting == "a"
    await held


async def test_readers_go_on_while_the_writer_works(db: Store) -> None:
    gate = Gate()
    held = await gate.hold(db)
    assert await asyncio.gather(*(db.read(count, HOSTS) for _ in range(10))) == [0] * 10
    gate.let_go.set()
    await held


async def test_close_drains_and_then_refuses(tmp_path: Path) -> None:
    db = Store.open(tmp_path / "lamplighter.db")
    gate = Gate()
    held = await gate.hold(db)
    waiting = [asyncio.create_task(db.write(insert_host, name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    closing = asyncio.create_task(db.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError):
        await db.write(insert_host, "c")
    gate.let_go.set()
    await closing
    assert await asyncio.gather(held, *waiting) == [None, "a", "b"]
    with pytest.raises(StoreClosedError):
        await db.read(count, HOSTS)
    await db.close()


async def test_close_is_bounded(tmp_path: Path) -> None:
    db = Store.open(tmp_path / "lamplighter.db")
    gate = Gate()
    held = await gate.hold(db)
    with pytest.raises(TimeoutError):
        await db.close(timeout_s=0)
    gate.let_go.set()
    await db.close()
    await held


@pytest.mark.parametrize("database", [SQLITE, "postgresql"], indirect=True)
async def test_what_was_committed_is_there_when_opened_again(tmp_path: Path, database: str) -> None:
    for name in ("a", "b"):
        db = Store.open(database or tmp_path / "lamplighter.db")
        await db.write(insert_host, name)
        await db.close()
    db = Store.open(database or f"sqlite:///{tmp_path}/lamplighter.db")
    assert [row["name"] for row in await db.read(list_hosts, None, 10)] == ["a", "b"]
    await db.close()


@pytest.mark.parametrize("location", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(location: str) -> None:
    with pytest.raises(StoreError, match="needs a file"):
        Store.open(location)


@pytest.mark.sqlite("its lock on the whole file")
async def test_a_database_that_another_process_locks_is_named_with_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Store.open(tmp_path / "lamplighter.db").close()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 10)
    other = sqlite3.connect(tmp_path / "lamplighter.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"lamplighter\.db: database is locked: .* no other process may lock it"):
        Store.open(tmp_path / "lamplighter.db")
    other.close()


# Jobs.


async def test_one_job_for_each_host_schedule_and_due_time(db: Store) -> None:
    first = await db.write(record_jobs, [job("1"), job("2"), job("3", host="node-2")])
    later = await db.write(record_jobs, [job("4"), job("5", scheduled_at=NOW + timedelta(microseconds=1))])
    assert (first, later) == ({"1", "3"}, {"5"})


async def test_calls_that_share_a_commit_do_not_share_due_times(db: Store) -> None:
    gate = Gate()
    held = await gate.hold(db)
    calls = [[job("1")], [job("2")], [], [job("3", host="b"), job("4", host="b")]]
    waiting = [asyncio.create_task(db.write(record_jobs, call)) for call in calls]
    await asyncio.sleep(0)
    gate.let_go.set()
    assert await asyncio.gather(*waiting) == [{"1"}, set(), set(), {"3"}]
    await held


async def test_runs_by_hand_are_as_many_as_are_asked_for(db: Store) -> None:
    by_hand = [job(str(at), scheduled_at=None) for at in range(3)]
    assert await db.write(record_jobs, by_hand) == {"0", "1", "2"}


async def test_due_times_are_the_same_whatever_zone_tells_them(db: Store) -> None:
    there = NOW.astimezone(tz=None)
    assert await db.write(record_jobs, [job("1"), job("2", scheduled_at=there)]) == {"1"}
    assert (await found(db, get_job, "1"))["scheduled_at"] == NOW


async def test_a_naive_time_is_refused(db: Store) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        await db.write(record_jobs, [job("1", scheduled_at=NOW.replace(tzinfo=None))])


def test_stored_times_sort_as_time_does() -> None:
    moments = [NOW.replace(microsecond=0), NOW.replace(microsecond=1), NOW, NOW + timedelta(days=300)]
    assert sorted(map(stored, moments)) == [stored(at) for at in moments]


async def test_a_job_is_accepted_once_and_only_while_pending(db: Store) -> None:
    await db.write(record_jobs, [job("1"), job("2", scheduled_id="s2")])
    await db.write(jobs_finished, [end("2")])
    assert await db.write(QUEUE.accept, Taken("node-1", ["1", "2", "3"], NOW)) == (["1"], [])
    assert await db.write(QUEUE.accept, Taken("node-1", ["1"], NOW + timedelta(1))) == ([], [])
    await db.write(jobs_accepted, [("1", NOW + timedelta(1), NOW)])
    row = await found(db, get_job, "1")
    assert (row["status"], row["accepted_at"]) == ("running", NOW)


async def test_the_first_end_of_a_job_counts(db: Store) -> None:
    await db.write(record_jobs, [job("1")])
    assert await ended(db, end("1", "warning", exit_code=3), end("1", "failed")) == {"1"}
    assert await ended(db, end("1", "cancelled"), end("unknown")) == set()
    await db.write(jobs_finished, [end("1", "cancelled")])
    row = await found(db, get_job, "1")
    assert (row["status"], row["exit_code"], row["finished_at"], row["started_at"]) == ("warning", 3, NOW, None)


async def test_of_ends_that_share_a_commit_the_first_counts(db: Store) -> None:
    await db.write(record_jobs, [job("1")])
    gate = Gate()
    held = await gate.hold(db)
    waiting = [asyncio.create_task(ended(db, end("1", how))) for how in ("failed", "succeeded")]
    await asyncio.sleep(0)
    gate.let_go.set()
    assert await asyncio.gather(*waiting) == [{"1"}, set()]
    assert (await found(db, get_job, "1"))["status"] == "failed"
    await held


async def test_open_jobs_are_those_without_an_end(db: Store) -> None:
    jobs = [job(str(at), scheduled_at=None, created_at=NOW + timedelta(at)) for at in range(4)]
    await db.write(record_jobs, jobs)
    await db.write(jobs_accepted, [("1", NOW, NOW + timedelta(1))])
    await db.write(jobs_finished, [end("2")])
    await db.write(jobs_cancelled, [("1", "by me")])
    await db.write(jobs_retried, [Retry(end("3", "failed"), 1, NOW)])
    found = await db.read(of_host, "node-1")
    pending = OpenRow(
        "0",
        "node-1",
        "pending",
        False,
        False,
        False,
        1,
        command("0"),
        "",
        "s1",
        NOW,
        NOW,
        None,
        None,
        False,
        None,
        False,
    )
    assert found == [
        pending,
        pending._replace(
            id="1",
            status="running",
            sent=True,
            holds=True,
            command=command("1"),
            queued_at=NOW + timedelta(1),
            created_at=NOW + timedelta(1),
            accepted_at=NOW,
            cancel_requested=True,
            cancel_reason="by me",
        ),
        pending._replace(
            id="3",
            deferred=True,
            attempt=2,
            command=command("3"),
            created_at=NOW + timedelta(3),
            not_before=NOW,
        ),
    ]


async def test_of_several_ends_of_an_attempt_the_first_counts(db: Store) -> None:
    await db.write(record_jobs, [job("1")])
    first, second = Retry(end("1", "failed"), 1, NOW), Retry(end("1", "interrupted"), 1, NOW + timedelta(1))
    await db.write(jobs_retried, [first, second])
    await db.write(jobs_retried, [second])
    [attempt] = await db.read(list_attempts, "1")
    row = await found(db, get_job, "1")
    assert (attempt["attempt"], attempt["status"]) == (1, "failed")
    assert (row["attempt"], row["status"], row["not_before"], row["sent"]) == (2, "pending", NOW, False)


async def test_an_attempt_of_a_job_that_is_over_is_followed_by_none(db: Store) -> None:
    await db.write(record_jobs, [job("1")])
    await db.write(jobs_finished, [end("1")])
    await db.write(jobs_retried, [Retry(end("1", "failed"), 1, NOW)])
    assert await db.read(list_attempts, "1") == []
    assert (await found(db, get_job, "1"))["status"] == "succeeded"


async def test_jobs_are_listed_newest_first_in_pages_that_do_not_overlap(db: Store) -> None:
    jobs = [job(f"{at:02}", scheduled_at=None, created_at=NOW + timedelta(at // 2)) for at in range(9)]
    await db.write(record_jobs, jobs)
    listed, after = [], None
    while page := (await db.read(list_jobs, {}, after, 2)).rows:
        listed += [row["id"] for row in page]
        after = (page[-1]["created_at"], page[-1]["id"])
    assert listed == [made.id for made in reversed(jobs)]


async def test_jobs_are_filtered_by_their_columns(db: Store) -> None:
    await db.write(record_jobs, [job("1"), job("2", host="b"), job("3", host="b", scheduled_id="s2")])
    found = (await db.read(list_jobs, {"host": "b", "scheduled_id": "s2"}, None, 10)).rows
    assert [row["id"] for row in found] == ["3"]


# Logs.


async def test_a_log_keeps_its_lines_in_order(db: Store) -> None:
    await db.write(record_jobs, [job("1")])
    await asyncio.gather(*(db.write(log_lines, ("1", NOW, [f"{at}a", f"{at}b\0"])) for at in range(3)))
    lines = [row["line"] for row in await db.read(list_log, "1", 0, 10)]
    assert lines == ["0a", "0b\ufffd", "1a", "1b\ufffd", "2a", "2b\ufffd"]
    assert [row["seq"] for row in await db.read(list_log, "1", 4, 10)] == [5, 6]


@pytest.mark.parametrize(("line", "kept"), [("x", MAX_LOG_LINES), ("é" * 2048, MAX_LOG_BYTES // 4096 + 1)])
async def test_a_log_ends_at_its_limit_and_says_so(db: Store, line: str, kept: int) -> None:
    await db.write(record_jobs, [job("1"), job("2", host="b")])
    for _ in range(12):
        await db.write(log_lines, ("1", NOW, [line] * 1000))
    await db.write(log_lines, ("2", NOW, [line]))
    lines = await db.read(list_log, "1", 0, 20_000)
    assert len(lines) == kept
    assert lines[-2]["line"] == line
    assert lines[-1]["line"].startswith("(log cut here")
    assert len(await db.read(list_log, "2", 0, 10)) == 1


async def test_lines_of_a_job_that_is_not_there_hurt_nobody(db: Store) -> None:
    await db.write(log_lines, ("gone", NOW, ["x"]))
    assert await db.read(list_log, "gone", 0, 10) == []


# What is declared.


async def test_a_host_keeps_what_its_agent_told_when_its_labels_change(db: Store) -> None:
    await db.write(upsert_hosts, host("a"))
    await db.write(host_hello, ("a", 1, "1.0", "0.18.0", NOW))
    await db.write(host_acks, ("a", 1, 7, "d" * 64, NOW))
    await db.write(set_desired, [("a", 7, "d" * 64), ("unknown", 1, "")])
    later = NOW + timedelta(1)
    await db.write(upsert_hosts, host("a", labels={}, created_at=later, since=later))
    row = await found(db, get_host, "a")
    told = {"agent_version": "1.0", "restic_version": "0.18.0", "last_seen": NOW}
    told |= {"applied_version": 7, "applied_digest": "d" * 64}
    assert row.items() >= (told | {"created_at": NOW, "since": later, "desired_version": 7}).items()
    assert row["labels"] == {}


async def test_of_two_acks_that_share_a_commit_the_later_counts(db: Store) -> None:
    await db.write(upsert_hosts, host("a"))
    gate = Gate()
    held = await gate.hold(db)
    waiting = [asyncio.create_task(db.write(host_acks, ("a", 1, version, "", NOW))) for version in (2, 1)]
    await asyncio.sleep(0)
    gate.let_go.set()
    await asyncio.gather(held, *waiting)
    assert (await found(db, get_host, "a"))["applied_version"] == 1


async def test_resources_are_put_loaded_listed_and_deleted(db: Store) -> None:
    spec = {"cron": "0 2 * * *", "backup": {"paths": ["/etc", "/π"]}, "enabled": None}
    made = ScheduleRow("s1", "ns", "etc", {"a": "b"}, spec, 1, NOW, NOW, NOW)
    await db.write(upsert_schedules, made)
    await db.write(upsert_schedules, made._replace(generation=2, created_at=NOW + timedelta(1)))
    loaded = await db.read(load_all, NOW)
    assert (loaded.hosts, loaded.schedules, loaded.repositories) == ([], [made._replace(generation=2)], [])
    stored = loaded.schedules[0]._asdict()
    del stored["earlier"], stored["ping"]
    assert await db.read(get_resource, SCHEDULES, "ns", "etc") == {**stored, "last_due": None}
    await db.write(delete_schedules, "s1")
    assert await db.read(list_resources, SCHEDULES, None, 10) == []


async def test_since_when_hosts_have_schedules_is_put_loaded_deleted_and_goes_with_what_it_is_of(db: Store) -> None:
    for schedule in ("s1", "s2"):
        await db.write(upsert_schedules, ScheduleRow(schedule, "ns", schedule, {}, {}, 1, NOW, NOW, NOW))
    for name in "abc":
        await db.write(upsert_hosts, host(name))
    later = NOW + timedelta(1)
    pairs = [("s1", "a"), ("s1", "b"), ("s2", "a"), ("s2", "c")]
    rows = [Joined(*pair, NOW) for pair in pairs]
    await asyncio.gather(*(db.write(upsert_joined, row) for row in [*rows, rows[0]._replace(since=later)]))

    async def joined() -> list[Any]:
        return sorted((await db.read(load_all, NOW)).joined)

    assert await joined() == [rows[0]._replace(since=later), *rows[1:]]
    await asyncio.gather(db.write(delete_joined, ("s1", "b")), db.write(delete_joined, ("s1", "c")))
    assert [row[:2] for row in await joined()] == [("s1", "a"), ("s2", "a"), ("s2", "c")]
    await db.write(delete_hosts, "a")
    assert [row[:2] for row in await joined()] == [("s2", "c")]
    await db.write(delete_schedules, "s2")
    assert await joined() == []


async def test_when_hosts_were_last_heard_of_is_stored(db: Store) -> None:
    await db.write(upsert_hosts, host("a"))
    await db.write(hosts_seen, [("a", 1, NOW), ("gone", 1, NOW)])
    assert (await found(db, get_host, "a"))["last_seen"] == NOW


async def test_a_schedule_tells_when_it_was_last_due_and_run(db: Store) -> None:
    await db.write(upsert_schedules, ScheduleRow("s1", "ns", "etc", {}, {}, 1, NOW, NOW, NOW))
    later, by_hand = NOW + timedelta(1), NOW + timedelta(2)
    jobs = [job("1"), job("2", scheduled_at=later, created_at=later), job("3", scheduled_at=None, created_at=by_hand)]
    await db.write(record_jobs, jobs)
    assert (await found(db, get_resource, SCHEDULES, "ns", "etc"))["last_due"] == later


async def test_credentials_are_loaded_but_not_listed(db: Store) -> None:
    made = RepositoryRow("r1", "ns", "main", {}, {"url": "/backup"}, 1, NOW, NOW, "sealed")
    await db.write(upsert_repositories, made)
    assert (await db.read(load_all, NOW)).repositories[0].credentials == "sealed"
    assert "credentials" not in (await db.read(list_resources, REPOSITORIES, None, 10))[0]


async def test_resources_are_listed_by_namespace_and_name(db: Store) -> None:
    names = [("a", "y"), ("a", "z"), ("b", "x")]
    for at, (namespace, name) in enumerate(reversed(names)):
        await db.write(upsert_schedules, ScheduleRow(str(at), namespace, name, {}, {}, 1, NOW, NOW, NOW))
    first = await db.read(list_resources, SCHEDULES, None, 2)
    rest = await db.read(list_resources, SCHEDULES, (first[-1]["namespace"], first[-1]["name"]), 2)
    assert [(row["namespace"], row["name"]) for row in first + rest] == names


async def test_the_audit_log_is_listed_newest_first(db: Store) -> None:
    rows = [AuditRow(NOW, "user", "admin", "create", "Host", name, {"labels": {}}) for name in "abc"]
    await asyncio.gather(*(db.write(record_audit, row) for row in rows))
    first = await db.read(list_audit, None, 2)
    assert [row["object_name"] for row in first] == ["c", "b"]
    assert first[0]["detail"] == {"labels": {}}
    assert [row["object_name"] for row in await db.read(list_audit, first[-1]["id"], 2)] == ["a"]
    assert await db.read(count, AUDIT) == 3


def test_statements_can_be_said_to_postgresql() -> None:
    """No server is asked: this holds that no statement uses what only SQLite's compiler knows."""
    statements: list[Any] = [
        bulk.insert_new("postgresql", JOBS, JobRow._fields),
        bulk.upsert("postgresql", SCHEDULES, ScheduleRow._fields, ("created_at",)),
        bulk.update("postgresql", HOSTS, ("name", "desired_version", "desired_digest")),
        bulk.delete("postgresql", HOSTS, "name"),
        job_statements._attempts("postgresql"),
        log_statements._log_ends("postgresql"),
    ]
    said = "\n".join(statements)
    assert "json_each" not in said
    assert "json_group_array" not in said
    assert "AS TIMESTAMP WITH TIME ZONE" in said
