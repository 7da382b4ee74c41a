"""Promise 11: servers that decide about the same lanes and hosts write in turns, and never wait in a circle."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from server.jobs.fires import NewJob
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Arrival, Cancelling, Ending, JobQueue, Recording, Taken
from server.store import hosts, servers
from server.store.engine import Store
from server.store.rows import HostRow
from server.store.servers import ServerRow
from tests.integration.conftest import PATIENCE_S
from tests.jobqueue import NOON, job
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


async def test_a_server_writes_when_the_turn_of_another_is_over_whatever_the_two_write(stores: list[Store]) -> None:
    goes_on, begun = threading.Event(), list[str]()

    def write(conn: sa.Connection, names: Sequence[str]) -> list[None]:
        begun.extend(names)
        if names == ["first"]:
            goes_on.wait(PATIENCE_S)
        return [None] * len(names)

    first = stores[0].submit(write, "first")
    async with asyncio.timeout(PATIENCE_S):
        while not begun:
            await asyncio.sleep(0.01)
        second = stores[1].submit(write, "second")
        while not await stores[2].read(waiting):
            await asyncio.sleep(0.01)
    assert begun == ["first"]
    goes_on.set()
    await asyncio.gather(first, second)
    assert begun == ["first", "second"]


def waiting(conn: sa.Connection) -> int:
    """How many transactions wait for their turn."""
    conn.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
    found = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return int(conn.exec_driver_sql(found).scalar_one())


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
