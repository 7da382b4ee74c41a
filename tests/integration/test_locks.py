"""Promise 11: servers that decide about the same lanes and hosts wait for each other, but never in a circle."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from server.jobs.fires import NewJob
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Arrival, Cancelling, Ending, JobQueue, Recording, Taken
from server.store import connections, hosts, jobs, locks, queue, servers
from server.store.database import engine
from server.store.engine import Store
from server.store.rows import HostRow
from server.store.servers import ServerRow
from server.store.tables import HOSTS
from tests import plans
from tests.integration.conftest import PATIENCE_S
from tests.jobqueue import NOON, Jobs, job
from tests.postgresql import Databases
from wire.messages import JobFinished

pytestmark = pytest.mark.anyio

NAMES = [f"host-{number:02}" for number in range(12)]
LIMITS = {"one": ConcurrencyLimit(1), "three": ConcurrencyLimit(3), "each": ConcurrencyLimit(1, per_host=True)}
REPOSITORIES = [*LIMITS, "free", "open"]


@pytest.fixture
async def stores(databases: Databases) -> AsyncIterator[list[Store]]:
    """The stores of three servers over one database. No deadlock is found in it."""
    url = databases.new_migrated().render_as_string(hide_password=False)
    made = [await asyncio.to_thread(Store.open, url) for _ in range(3)]
    await made[0].write(hosts.upsert_hosts, HostRow("unused", {}, NOON, NOON))
    yield made
    assert await made[0].read(deadlocks) == 0
    for store in made:
        await store.close()


def deadlocks(conn: sa.Connection) -> int:
    conn.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
    found = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(conn.exec_driver_sql(found).scalar_one())


def by_key() -> list[str]:
    """Three names, in the order of their keys."""
    keys = {locks.key_of(name): name for name in NAMES}
    return [keys[key] for key in sorted(keys)][:3]


def gave_way(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why transactions gave way."""
    return [vars(it)["reason"] for it in caplog.records if it.getMessage() == "a transaction gave way to another one"]


class Crosswise:
    """A statement that locks names, each as (name, whether exclusively), one after the other.

    In its first run it goes on only when all others have the first of theirs. `runs`: how often it ran.
    """

    def __init__(self, both: threading.Barrier) -> None:
        self._both = both
        self.runs = 0

    def __call__(self, conn: sa.Connection, orders: Sequence[Sequence[tuple[str, bool]]]) -> list[None]:
        self.runs += 1
        for name, exclusive in orders[0]:
            locks.take(conn, {name: exclusive})
            if (name, exclusive) == orders[0][0] and self.runs == 1:
                self._both.wait(PATIENCE_S)
        return [None] * len(orders)


async def test_a_lock_out_of_order_that_another_server_has_is_not_waited_for(
    stores: list[Store], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.store.engine")
    low, middle, high = by_key()
    both = threading.Barrier(2)
    up, down = Crosswise(both), Crosswise(both)
    await asyncio.gather(
        stores[0].write(up, [(low, True), (high, True)]),
        stores[1].write(down, [(high, True), (middle, True), (low, True)]),
    )
    assert (up.runs, down.runs) == (1, 2)
    assert gave_way(caplog) == ["another server has a lock that is out of order here"]


async def test_of_servers_that_share_a_lock_and_want_it_alone_each_gets_it(stores: list[Store]) -> None:
    both = threading.Barrier(2)
    one, other = Crosswise(both), Crosswise(both)
    shares_then_owns = [("lane", False), ("lane", True)]
    await asyncio.gather(stores[0].write(one, shares_then_owns), stores[1].write(other, shares_then_owns))
    assert one.runs + other.runs in (3, 4)


async def test_a_circle_of_rows_and_lanes_is_left_by_all_but_one(
    stores: list[Store], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.store.engine")
    await stores[0].write(hosts.upsert_hosts, HostRow("a", {}, NOON, NOON))
    both = threading.Barrier(2)
    runs: list[int] = []

    def changes(conn: sa.Connection, first: bool) -> None:
        conn.execute(sa.update(HOSTS).where(HOSTS.c.name == "a").values(agent_version=str(first)))

    def crosswise(conn: sa.Connection, row_first: Sequence[bool]) -> list[None]:
        runs.append(len(runs))
        is_first_run = len(runs) <= 2
        for row in (row_first[0], not row_first[0]):
            if row:
                changes(conn, row_first[0])
            else:
                locks.take(conn, {"lane": True})
            if row == row_first[0] and is_first_run:
                both.wait(PATIENCE_S)
        return [None] * len(row_first)

    await asyncio.gather(stores[0].write(crosswise, True), stores[1].write(crosswise, False))
    assert len(runs) > 2
    assert set(gave_way(caplog)) == {"canceling statement due to lock timeout"} or all(
        "lock timeout" in it for it in gave_way(caplog)
    )


async def test_fires_of_a_lane_without_a_limit_wait_for_no_other_server(databases: Databases) -> None:
    made = sa.create_engine(databases.new_migrated())
    with made.begin() as conn:
        for host in ("a", "b"):
            Jobs(conn, server="one").connected(host)
    with made.connect() as conn, made.connect() as other:
        other.exec_driver_sql("SET lock_timeout = 1")  # a millisecond
        assert Jobs(conn, hosts=()).add(job("1", "a", schedule="s", due=NOON)) == ["1"]
        assert Jobs(other, hosts=()).add(job("2", "b", schedule="s", due=NOON)) == ["2"]
        other.commit()
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):  # restic locks the repository alone
            Jobs(other, hosts=()).add(job("3", "b", "prune", schedule="p", due=NOON))
    made.dispose()


async def test_two_ends_at_the_same_time_leave_the_lane_to_the_job_that_must_be_alone(stores: list[Store]) -> None:
    all_servers = await Server.all(stores)
    for turn in range(12):
        running = [fire(f"{turn}-{it.host}", it.host, "free") for it in all_servers]
        for it, of_host in zip(all_servers, running, strict=True):
            await it.write(it.queue.record, Recording([of_host], NOON))
        alone = fire(f"alone-{turn}", all_servers[0].host, "free", "prune")
        recorded = await all_servers[0].write(all_servers[0].queue.record, Recording([alone], NOON))
        assert (recorded.new, recorded.sendable) == ({alone.id}, set())
        ended = await asyncio.gather(
            *(it.write(it.queue.finish, ending(its.id, it.host)) for it, its in zip(all_servers, running, strict=True))
        )
        assert [row.id for it in ended for row in it.outcome.sent] in ([alone.id], [])  # or its own server is told
        assert alone.id in await stores[0].read(has_begun)
        await all_servers[0].write(all_servers[0].queue.finish, ending(alone.id, all_servers[0].host))


async def test_servers_that_do_everything_to_the_same_hosts_and_lanes_find_no_deadlock(stores: list[Store]) -> None:
    """And no lane has more jobs with slots than its limit, and none is left waiting."""
    all_servers = await Server.all(stores)
    rng = random.Random(7)
    ids = count()
    for _ in range(25):
        begun = await stores[0].read(has_begun)
        calls = [call for it in all_servers for call in it.events(rng, ids, begun)]
        await asyncio.gather(*calls)
        assert await stores[0].read(overfull) == []
    await asyncio.gather(*(it.arrives(host, []) for it, host in zip(all_servers * 4, NAMES, strict=True)))
    while begun := await stores[0].read(has_begun):
        ends = [it.write(it.queue.finish, ending(job_id, host)) for job_id, host in begun.items() for it in all_servers]
        await asyncio.gather(*ends)
    assert await stores[0].read(still_open) == 0


CHANGES: dict[str, Callable[[sa.Connection], object]] = {
    "set_desired": lambda conn: hosts.set_desired(conn, [[("b", 2, ""), ("c", 2, ""), ("a", 2, "")]]),
    "hosts_seen": lambda conn: hosts.hosts_seen(conn, [[("b", 1, NOON), ("c", 1, NOON), ("a", 1, NOON)]]),
    "upsert_hosts": lambda conn: hosts.upsert_hosts(conn, [HostRow(it, {}, NOON, NOON) for it in "bca"]),
    "connect": lambda conn: connections.connect(conn, [connections.Hello(it, "one") for it in "bca"]),
    "disconnect": lambda conn: connections.disconnect(conn, ["b", "c", "a"], "one", NOON),
    "jobs_accepted": lambda conn: jobs.jobs_accepted(conn, [[(it, NOON, NOON) for it in "bca"]]),
    "jobs_finished": lambda conn: jobs.jobs_finished(conn, [[JobFinished(it, "failed", NOON) for it in "bca"]]),
    "jobs_cancelled": lambda conn: jobs.jobs_cancelled(conn, [[(it, "me") for it in "bca"]]),
    "change_lanes": lambda conn: queue.change_lanes(conn, [(it, "lane") for it in "bca"]),
}
"""Statements that change several rows, which are named in no order."""


@pytest.fixture(scope="module")
def grown(databases: Databases) -> Iterator[sa.Connection]:
    """A database with many hosts, connections and jobs, whose transaction is not committed."""
    made = engine(databases.new_migrated(), 1, writes=True)
    with made.connect() as conn:
        for statement in _MANY:
            conn.exec_driver_sql(statement)
        yield conn
        conn.rollback()
    made.dispose()


@pytest.mark.parametrize("name", CHANGES)
def test_a_statement_locks_rows_in_the_order_of_their_keys(grown: sa.Connection, name: str) -> None:
    """PostgreSQL looks for one row after the other, in the order of the parameter, which is that of the keys."""
    (statement, parameters), *_ = plans.said(grown, lambda: CHANGES[name](grown))
    given = msgspec.json.decode(parameters["rows"])
    assert [it[0] for it in given] == ["a", "b", "c"]
    (plan,) = grown.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    (node,) = (it for it in plan["Plan"]["Plans"] if it["Parent Relationship"] != "InitPlan")
    while "Function Name" not in node:
        assert node["Node Type"] in ("Nested Loop", "Limit", "Subquery Scan"), plan
        # The outer side of a join goes first.
        (node,) = (it for it in node["Plans"] if it["Parent Relationship"] in ("Outer", "Subquery"))
    assert node["Function Name"] == "json_array_elements"


_MANY = (
    "INSERT INTO hosts (name, labels, created_at, since, desired_version, desired_digest, applied_version,"
    " applied_digest, agent_version) SELECT 'host-' || n, '{}', now(), now(), 0, '', 0, '', ''"
    " FROM generate_series(1, 2000) AS n",
    "INSERT INTO connections (host) SELECT name FROM hosts",
    "INSERT INTO jobs (id, host, kind, actor_kind, actor_id, missed, status, command, created_at)"
    " SELECT n, 'host-' || n, 'backup', 'schedule', '', 0,"
    " (array['pending', 'running'])[1 + mod(n, 2)], '{}', now() FROM generate_series(1, 2000) AS n",
    "ANALYZE hosts",
    "ANALYZE connections",
    "ANALYZE jobs",
)


class Server:
    """The queue of jobs on one of the servers. `host`: a host that it has."""

    def __init__(self, store: Store, host: str) -> None:
        self.store = store
        self.host = host
        limits = {**LIMITS, "": ConcurrencyLimit()}
        self.queue = JobQueue(
            store.server, lambda name: limits.get(name, limits[""]), lambda *_: None, is_shared=store.is_shared
        )
        self.write = store.write

    @classmethod
    async def all(cls, stores: Sequence[Store]) -> "list[Server]":
        """One for each store; the hosts are spread over them."""
        for name in NAMES:
            await stores[0].write(hosts.upsert_hosts, HostRow(name, {}, NOON, NOON))
        made = [cls(store, NAMES[at]) for at, store in enumerate(stores)]
        for it in stores:
            await it.write(servers.join, ServerRow(it.server, it.server, NOON, NOON))
        for at, name in enumerate(NAMES):
            await made[at % len(made)].arrives(name, [])
        return made

    async def arrives(self, host: str, running: Sequence[str]) -> None:
        await self.write(self.queue.arrived, Arrival(host, running, NOON))

    def events(
        self, rng: random.Random, ids: Iterator[int], begun: Mapping[str, str]
    ) -> Iterator[Coroutine[Any, Any, Any]]:
        """Calls of all kinds, in any order."""
        some = [*begun.items()]
        for _ in range(rng.randrange(4, 16)):
            host, version = rng.choice(NAMES), next(ids)
            job_id, its_host = rng.choice(some) if some else ("none", host)
            kind = rng.choices(["backup", "prune", "unlock"], [8, 1, 1])[0]
            new = fire(f"{version:06}", host, rng.choice(REPOSITORIES), kind)
            asked = job(f"{version:06}", host, kind, repository=rng.choice(REPOSITORIES), schedule="s")
            versions = [(name, version, "digest") for name in rng.sample(NAMES, 8)]
            seen = [(name, version, NOON) for name in rng.sample(NAMES, 8)]
            q = self.queue
            events: list[tuple[Any, Any]] = [
                (q.record, Recording([new], NOON)),
                (q.record, Recording([new, fire(f"{version:06}+", NAMES[-1], "one")], NOON)),
                (q.record, Recording([asked], NOON)),
                (q.accept, Taken(its_host, [job_id], NOON)),
                (q.finish, ending(job_id, its_host)),
                (q.finish, Ending(its_host, [JobFinished(it, "failed", NOON) for it, _ in reversed(some)], NOON)),
                (q.cancel, Cancelling([job_id], "me", NOON)),
                (q.arrived, Arrival(host, [it for it, its in some if its == host], NOON)),
                (q.disconnected, (host, NOON)),
                (hosts.set_desired, versions),
                (hosts.hosts_seen, seen),
                (hosts.host_acks, (host, version, version, "digest", NOON)),
            ]
            yield self.write(*rng.choice(events))


def fire(job_id: str, host: str, repository: str, kind: str = "backup") -> NewJob:
    """A job of a schedule's due time."""
    return job(job_id, host, kind, repository=repository, schedule=f"s-{job_id}", due=NOON)


def ending(job_id: str, host: str) -> Ending:
    """A host says that a job succeeded."""
    return Ending(host, [JobFinished(job_id, "succeeded", NOON)], NOON)


def has_begun(conn: sa.Connection) -> dict[str, str]:
    """The hosts of the jobs that were given slots, by the jobs' ids."""
    found = "SELECT id, host FROM jobs WHERE status IN ('pending', 'running') AND sent"
    return {row.id: row.host for row in conn.exec_driver_sql(found)}


def overfull(conn: sa.Connection) -> list[str]:
    """Lanes with more slots taken than there are, or with a job beside one that must be alone."""
    found = conn.exec_driver_sql(
        "SELECT lane, count(*), bool_or(exclusive) FROM jobs WHERE holds AND lane <> '' GROUP BY lane"
    )
    return [
        lane
        for lane, slots, exclusive in found
        if slots > (1 if exclusive else LIMITS.get(lane.partition("/")[0], ConcurrencyLimit()).limit or slots)
    ]


def still_open(conn: sa.Connection) -> int:
    return int(conn.exec_driver_sql("SELECT count(*) FROM jobs WHERE status IN ('pending', 'running')").scalar_one())
