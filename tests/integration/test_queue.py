"""What holds of the queue of jobs on SQLite holds on PostgreSQL, and there for servers that decide at the same time."""

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Connection, Engine

from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Arrival, Recorded
from server.store import queue, turns
from server.store.database import engine
from server.store.queue import FRONT
from tests import plans
from tests.jobqueue import MINUTE, NOON, Jobs, in_memory, job
from tests.postgresql import Databases
from tests.unit import test_lanes as lanes
from tests.unit import test_rollouts as rollouts

PROMISES = [
    pytest.param(function, prepare, id=name)
    for module, prepare in ((lanes, lanes.one_at_a_time), (rollouts, rollouts.pausing))
    for name, function in vars(module).items()
    if name.startswith("test_") and list(inspect.signature(function).parameters) == ["jobs"]
]


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[Engine]:
    """A database in PostgreSQL that has the tables."""
    made = engine(databases.new_migrated(), 4, writes=True)
    yield made
    made.dispose()


@pytest.fixture
def conn(database: Engine) -> Iterator[Connection]:
    """A connection whose transaction is not committed."""
    with database.connect() as conn:
        yield conn
        conn.rollback()


@pytest.mark.parametrize(("promise", "prepare"), PROMISES)
def test_what_lanes_and_rollouts_promise_holds_on_postgresql(
    promise: Callable[[Jobs], None], prepare: Callable[[Jobs], Jobs], conn: Connection
) -> None:
    promise(prepare(Jobs(conn)))


def test_what_the_plain_model_says_comes_of_any_events_on_postgresql(database: Engine) -> None:
    class Fleet(lanes.Fleet):
        def connection(self) -> Connection:
            self.conn = database.connect()
            return self.conn

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                self.conn.close()

    few = settings(max_examples=10, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(Fleet, settings=few)


def test_two_servers_that_record_at_the_same_time_decide_one_after_the_other(database: Engine) -> None:
    one_at_a_time = {"repo": ConcurrencyLimit(1)}
    with database.begin() as conn:
        for host in ("a", "b"):
            Jobs(conn, one_at_a_time).connected(host)

    def other() -> tuple[Recorded, list[str]]:
        """Another server records a run of the same schedule on the same host, and one of another host."""
        with database.begin() as conn:
            turns.take(conn)
            again = job("2", schedule="s", due=NOON + MINUTE)
            return Jobs(conn, one_at_a_time, hosts=()).record(again, job("3", "b"))

    with database.connect() as conn, ThreadPoolExecutor(1) as pool:
        turns.take(conn)
        assert Jobs(conn, one_at_a_time, hosts=()).add(job("1", schedule="s", due=NOON)) == ["1"]
        found = pool.submit(other)
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not conn.exec_driver_sql(waits).scalar_one():
            assert not found.done()
        conn.commit()
        recorded, sent = found.result()
    assert (set(recorded.new), set(recorded.refused), sent) == ({"3"}, {"2"}, [])
    with database.begin() as conn:
        assert Jobs(conn, one_at_a_time).ends("1") == ["3"]
        conn.exec_driver_sql("DELETE FROM jobs")
        conn.exec_driver_sql("DELETE FROM hosts")


def test_lanes_are_in_the_order_of_their_bytes_whatever_the_language_of_the_database(conn: Connection) -> None:
    column = "SELECT collation_name FROM information_schema.columns WHERE (table_name, column_name) = ('jobs', 'lane')"
    assert conn.exec_driver_sql(column).scalars().all() == ["C"]


@pytest.fixture(scope="module")
def large(databases: Databases) -> Iterator[Engine]:
    """A database with many jobs that are over, wait, are put off, or run, and with what PostgreSQL knows of them."""
    made = engine(databases.new_migrated(), 4, writes=True)
    with made.begin() as conn:
        conn.exec_driver_sql(_MANY)
        conn.exec_driver_sql("ANALYZE jobs")
    yield made
    made.dispose()


@pytest.fixture
def grown(large: Engine) -> Iterator[Connection]:
    """A connection to it whose transaction is not committed."""
    with large.connect() as conn:
        yield conn
        conn.rollback()


@pytest.mark.parametrize("name", plans.CALLS)
def test_each_statement_finds_what_it_is_about_by_an_index_of_postgresql(grown: Connection, name: str) -> None:
    first_in_order = {"ix_jobs_deferred", "ix_jobs_start_by"}
    allowed = plans.PARTIAL if name in plans.OF_ALL else first_in_order | plans.OF_COPIES
    # Most jobs are open here, where to read the whole table costs less than to read of the index.
    grown.exec_driver_sql(f"SET LOCAL enable_seqscan = {'off' if name in plans.OF_ALL else 'on'}")
    assert set(plans.found_by(grown, name)) <= allowed


def test_a_job_costs_the_same_however_many_others_have_hosts_that_come_at_once(
    grown: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the rows that PostgreSQL reads."""
    monkeypatch.setattr(queue, "FRONT", 10)
    few, many = (rows_for_each_job(grown, prefix, jobs) for prefix, jobs in (("few", 5), ("many", 20)))
    assert many <= 1.5 * few


def rows_for_each_job(conn: Connection, prefix: str, each: int) -> float:
    """How many rows are read for each job of 20 hosts that come at once, with so many jobs each."""
    hosts = [f"{prefix}-{at}" for at in range(20)]
    jobs = Jobs(conn, {prefix: ConcurrencyLimit(1)}, hosts)
    jobs.add(*(job(f"{host}-{at:03}", host, repository=prefix) for host in hosts for at in range(each)))
    before = conn.exec_driver_sql(_READ).scalar_one()
    jobs.queue.arrived(conn, [Arrival(host, (), NOON) for host in hosts])
    return float(conn.exec_driver_sql(_READ).scalar_one() - before) / (len(hosts) * each)


_READ = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'jobs'"


_MANY = """
INSERT INTO jobs (id, host, kind, actor_kind, actor_id, scheduled_id, scheduled_at, missed, status, command, created_at,
                  sent, attempt, cancel_requested, lane, queued_at, exclusive, serial, deferred, ready, holds,
                  not_before, start_by, hangs_at)
SELECT n, 'host-' || mod(n, 500), 'backup', 'schedule', 'ns/s', 's' || mod(n, 50), noon + n * interval '1 s', 0,
       (array['pending', 'pending', 'running', 'succeeded'])[1 + mod(n, 4)], '{}', noon, mod(n, 4) >= 2, 1, false,
       'repo-' || mod(n, 1000), noon, false, true, mod(n, 4) = 0, mod(n, 4) = 1, mod(n, 4) = 2,
       noon + n * interval '1 s', noon + n * interval '1 s', noon + n * interval '1 s'
FROM generate_series(1, 30000) AS n, (SELECT timestamptz '2026-03-06' AS noon) AS times
"""


@pytest.mark.parametrize("policy", ["Allow", "Forbid"])
def test_a_hello_sends_each_of_a_hosts_many_jobs_once(policy: str) -> None:
    """The host was sent them, and has none: more of them than are looked at together."""
    jobs = Jobs(in_memory())
    jobs.connected("a")
    of_schedule = {
        f"{number:03}": f"s{number % 2}" if policy == "Allow" else f"s{number}" for number in range(3 * FRONT)
    }
    jobs.add(*(job(job_id, schedule=schedule, policy=policy) for job_id, schedule in of_schedule.items()))
    assert jobs.connected("a") == list(of_schedule)
    assert jobs.connected("a", list(of_schedule)) == []


def test_a_hello_that_gives_a_slot_back_sends_the_next_of_many_jobs_once() -> None:
    jobs = Jobs(in_memory(), {"repo": ConcurrencyLimit(1)})
    jobs.connected("a")
    assert jobs.add(job("000", at=5)) == ["000"]
    jobs.add(*(job(f"{number:03}", at=10) for number in range(1, 2 * FRONT)), job(f"{2 * FRONT}", at=1))
    assert jobs.connected("a") == [f"{2 * FRONT}"]
