"""Promise 11: what two servers decide at the same time, each in its transaction, leaves no job behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from server.agents.session import HelloFacts
from server.jobs import notices
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Arrival, JobQueue, Recording
from server.store import connections, news, servers, turns
from server.store.engine import Store
from server.store.hosts import delete_hosts, upsert_hosts
from server.store.rows import HostRow
from server.store.servers import ServerRow
from tests.integration.conftest import Until
from tests.jobqueue import NOON, Jobs, job

pytestmark = pytest.mark.anyio

FACTS = HelloFacts("1.2")


class Servers:
    """Two servers over one database. The transactions of the first one are the test's; it knows host a."""

    def __init__(self, conn: sa.Connection, store: Store) -> None:
        self.conn, self.store = conn, store
        self.one = Jobs(conn, server="one", is_shared=True)
        self.queue = JobQueue(store.server, lambda _: ConcurrencyLimit(), lambda *_: None, is_shared=True)

    async def hears_hello(self) -> None:
        """Host a says hello to the other one."""
        await self.store.write(self.queue.arrived, Arrival("a", (), NOON, "process", FACTS))

    async def records(self) -> None:
        """The other one records job 1 for host a."""
        await self.store.write(self.queue.record, Recording([job("1")], NOON))

    def row(self) -> Any:
        """Job 1, and which server its host is connected to."""
        found = self.conn.execute(sa.text("SELECT sent, server FROM jobs JOIN connections USING (host)")).one()
        return tuple(found)

    def told(self) -> list[notices.AnyNotice]:
        """What both told."""
        rows = news.read(self.conn, news.Position(), "nobody")
        return [notice for row in rows for notice in notices.decode(row.body)]


@pytest.fixture
async def shared(postgresql: str) -> AsyncIterator[Servers]:
    store = await asyncio.to_thread(Store.open, postgresql)
    for id_ in ("one", store.server):
        await store.write(servers.join, ServerRow(id_, id_, NOON, NOON))
    engine = sa.create_engine(postgresql)
    with engine.connect() as conn:
        found = Servers(conn, store)
        conn.commit()
        yield found
    engine.dispose()
    await store.close()


async def meanwhile(shared: Servers, until: Until, then: Callable[[], Awaitable[None]]) -> None:
    """Have the other server do something while a transaction of the first one is not committed yet: it waits for that,
    or it does not, and is done before."""
    doing = asyncio.ensure_future(then())

    async def waits_or_is_done() -> bool:
        return doing.done() or bool(await shared.store.read(waiting))

    await until(waits_or_is_done)
    shared.conn.commit()
    await doing


def waiting(conn: sa.Connection) -> int:
    return int(conn.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


@pytest.mark.parametrize("was_connected", [False, True])
async def test_a_job_for_a_host_that_says_hello_meanwhile_is_sent(
    shared: Servers, until: Until, *, was_connected: bool
) -> None:
    if was_connected:
        shared.one.connected("a")
        shared.one.disconnected("a")
        shared.conn.commit()
    turns.take(shared.conn)
    shared.one.add(job("1"))
    await meanwhile(shared, until, shared.hears_hello)
    assert shared.row() == (True, shared.store.server)


async def test_a_job_that_is_recorded_while_its_host_says_hello_is_sent(shared: Servers, until: Until) -> None:
    turns.take(shared.conn)
    shared.one.connected("a")
    await meanwhile(shared, until, shared.records)
    assert shared.row() == (True, "one")
    assert notices.SlotsGiven({"a": ["1"]}) in shared.told()


async def test_a_job_that_was_sent_to_a_connection_that_was_old_already_is_told_to_the_hosts_server(
    shared: Servers, until: Until
) -> None:
    shared.one.connected("a")
    shared.conn.commit()
    assert shared.one.add(job("1")) == ["1"]  # which nobody reads
    await meanwhile(shared, until, shared.hears_hello)
    assert shared.row() == (True, shared.store.server)
    shared.one.cancel("1", why="me")
    shared.conn.commit()
    assert shared.one.disconnected("a") == ([], False)
    assert shared.told()[-2:] == [notices.SlotsGiven({"a": ["1"]}), notices.EndAsked("a", "1", "me")]


async def test_that_a_host_is_gone_which_was_deleted_meanwhile_is_told(shared: Servers) -> None:
    shared.one.connected("a")
    connections.forget(shared.conn, ["a"])
    delete_hosts(shared.conn, ["a"])
    shared.conn.commit()
    assert shared.one.disconnected("a") == ([], False)
    assert shared.told()[-1] == notices.Left("a")
    upsert_hosts(shared.conn, [HostRow("a", {}, NOON, NOON)])
    shared.one.connected("a")
    assert shared.conn.execute(sa.text("SELECT session FROM connections")).scalar_one() == 2
