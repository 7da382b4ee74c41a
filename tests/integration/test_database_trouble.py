"""PostgreSQL restarts, fails over, only reads or is full: nothing acknowledged is lost, and servers say why."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from server.app import Config, serving
from server.errors import Unavailable
from server.store import engine as stores
from server.store import ownership
from server.store.engine import CONNECTIONS, TRIES, Store, StoreError
from server.store.hosts import list_hosts
from server.store.ownership import probe
from server.store.tables import HOSTS
from tests import clusters
from tests.clusters import Cluster
from tests.docs import free_port
from tests.integration.conftest import PATIENCE_S

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL that a test may stop; it runs when a test begins."""
    with clusters.running() as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "START_S", 0.0)


def add_hosts(conn: sa.Connection, names: Sequence[str]) -> list[None]:
    """Add hosts; one that exists is an error."""
    conn.execute(sa.insert(HOSTS), [{"name": name, "labels": {}, "created_at": NOW, "since": NOW} for name in names])
    return [None] * len(names)


async def hosts(store: Store) -> list[str]:
    return [row["name"] for row in await store.read(list_hosts, None, 1000)]


async def written(store: Store, name: str) -> None:
    """Add a host, as often as the store is away."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await store.write(add_hosts, name)
            except Unavailable:
                await asyncio.sleep(0.05)


# Transactions that give way.


async def test_a_transaction_that_waits_in_a_circle_with_a_session_of_somebody_else_is_stored(
    cluster: Cluster,
) -> None:
    """Such as an administrator's: servers write in turns, and PostgreSQL ends one of the two in a circle."""
    store = await asyncio.to_thread(Store.open, cluster.url())
    for name in ("a", "b"):
        await store.write(add_hosts, name)
    both_have_one = threading.Barrier(2)
    runs: list[str] = []

    def change(conn: sa.Connection, who: str, first: str, second: str) -> None:
        """Change two hosts; on the first run, the other session has changed the second by then."""
        runs.append(who)
        for name in (first, second):
            conn.execute(sa.update(HOSTS).where(HOSTS.c.name == name).values(agent_version=f"from {who}"))
            if name == first and runs.count(who) == 1:
                both_have_one.wait(PATIENCE_S)

    def by_hand() -> None:
        session = sa.create_engine(cluster.url())
        with suppress(sa.exc.OperationalError), session.begin() as conn:  # it may be the one that is ended
            change(conn, "a person", "b", "a")
        session.dispose()

    def by_server(conn: sa.Connection, items: Sequence[str]) -> list[None]:
        for item in items:
            change(conn, item, "a", "b")
        return [None] * len(items)

    await asyncio.gather(store.write(by_server, "a server"), asyncio.to_thread(by_hand))
    assert await store.refuses(probe, NOW) == ""
    both = sa.select(HOSTS.c.agent_version).where(HOSTS.c.name.in_(["a", "b"]))
    assert len(set(await store.read(lambda conn: conn.execute(both).scalars().all()))) == 1
    await store.close()


async def test_batches_that_wait_for_each_other_give_way_before_postgresql_looks(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Two servers change the same rows, each in an order of its own, in batches of many calls."""
    caplog.set_level("INFO", "server.store.engine")
    stores = [await asyncio.to_thread(Store.open, cluster.url()) for _ in range(2)]
    names = [f"row-{n}" for n in range(40)]
    for name in names:
        await stores[0].write(add_hosts, name)

    def touches(conn: sa.Connection, items: Sequence[str]) -> list[None]:
        for name in items:
            conn.execute(sa.update(HOSTS).where(HOSTS.c.name == name).values(agent_version="new"))
        return [None] * len(items)

    for _ in range(5):
        orders = names, names[::-1]
        await asyncio.gather(
            *(store.write(touches, it) for store, order in zip(stores, orders, strict=True) for it in order)
        )
    assert not [it for it in caplog.records if "deadlock" in str(vars(it).get("reason"))]
    for store in stores:
        assert await store.refuses(probe, NOW) == ""
        await store.close()


@pytest.mark.parametrize(("times", "stored"), [(TRIES - 1, True), (TRIES, False)])
async def test_a_transaction_that_gives_way_runs_again_a_bounded_number_of_times(
    cluster: Cluster, times: int, stored: bool
) -> None:
    store = await asyncio.to_thread(Store.open, cluster.url())
    runs: list[int] = []

    def gives_way(conn: sa.Connection, names: Sequence[str]) -> list[None]:
        add_hosts(conn, names)
        runs.append(len(runs))
        if len(runs) <= times:
            conn.exec_driver_sql("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        return [None] * len(names)

    if stored:
        await store.write(gives_way, f"gave-way-{times}")
    else:
        with pytest.raises(Unavailable):
            await store.write(gives_way, f"gave-way-{times}")
    assert (f"gave-way-{times}" in await hosts(store)) is stored
    assert len(runs) == TRIES
    await store.close()


async def test_a_server_that_stands_still_within_a_transaction_does_not_stop_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that is paused: PostgreSQL rolls its transaction back."""
    settings = dict(ownership.SESSION) | {"idle_in_transaction_session_timeout": "100"}
    monkeypatch.setattr(ownership, "SESSION", tuple(settings.items()))
    paused, other = [await asyncio.to_thread(Store.open, cluster.url()) for _ in range(2)]
    has_written, goes_on = threading.Event(), threading.Event()

    def stands_still(conn: sa.Connection, names: Sequence[str]) -> list[None]:
        done = add_hosts(conn, names)
        has_written.set()
        goes_on.wait(PATIENCE_S)
        return done

    still = paused.submit(stands_still, "paused")
    assert await asyncio.to_thread(has_written.wait, PATIENCE_S)
    await other.write(add_hosts, "paused")  # waits for the row of the other transaction
    goes_on.set()
    with pytest.raises(Unavailable):
        await still
    assert (await hosts(other)).count("paused") == 1
    for store in (paused, other):
        await store.close()


# A PostgreSQL that goes and comes.


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_after_a_restart_of_postgresql_writer_and_readers_come_back(
    cluster: Cluster, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "FRESH_S", 0.0)
    store = await asyncio.to_thread(Store.open, cluster.url())
    await store.write(add_hosts, f"{mode}-before")
    await asyncio.to_thread(cluster.stop, mode)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await store.write(add_hosts, f"{mode}-meanwhile")
        with pytest.raises(Unavailable):
            await hosts(store)
        assert "cannot be written now" in await store.refuses(probe, NOW)
    await asyncio.to_thread(cluster.start)
    await written(store, f"{mode}-after")
    assert {f"{mode}-before", f"{mode}-after"} <= set(await hosts(store))
    assert f"{mode}-meanwhile" not in await hosts(store)
    assert await store.refuses(probe, NOW) == ""
    await store.close()


async def test_a_write_whose_commit_is_not_answered_is_refused_and_can_be_sent_again(cluster: Cluster) -> None:
    store = await asyncio.to_thread(Store.open, cluster.url())

    def cut_off(conn: sa.Connection, names: Sequence[str]) -> list[None]:
        done = add_hosts(conn, names)
        with psycopg.connect(f"host=127.0.0.1 port={cluster.port} user=postgres", autocommit=True) as other:
            mine = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (mine,))
        return done

    with pytest.raises(Unavailable):
        await store.write(cut_off, "cut-off")
    await written(store, "cut-off")
    assert (await hosts(store)).count("cut-off") == 1
    await store.close()


async def test_a_server_that_starts_waits_for_a_postgresql_that_is_away(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(cluster.stop)
    opening = asyncio.ensure_future(asyncio.to_thread(Store.open, cluster.url()))
    async with asyncio.timeout(PATIENCE_S):
        while "waiting for the database" not in caplog.text:
            assert not opening.done()
            await asyncio.sleep(0.02)
    await asyncio.to_thread(cluster.start)
    await (await opening).close()


async def test_a_server_whose_database_goes_away_while_it_loads_begins_again(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await asyncio.to_thread(Store.open, cluster.url())).close()

    async def starts() -> None:
        async with serving(Config(tmp_path, port=0, database=cluster.url())):
            pass

    waits = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    where = f"host=127.0.0.1 port={cluster.port} user=postgres"
    with psycopg.connect(where) as holder, psycopg.connect(where, autocommit=True) as other:
        holder.execute("LOCK TABLE hosts")
        starting = asyncio.ensure_future(starts())
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(lambda: other.execute(waits).fetchall()):
                assert not starting.done()
                await asyncio.sleep(0.02)
            while "the server loads again" not in caplog.text:
                assert not starting.done()
                await asyncio.sleep(0.02)
        holder.rollback()
        await starting


async def test_a_server_does_not_wait_for_ever(cluster: Cluster, impatient: None) -> None:
    nobody = Cluster(cluster.folder, free_port())
    with pytest.raises(StoreError, match="refused"):
        await asyncio.to_thread(Store.open, nobody.url())


async def test_a_server_does_not_wait_for_a_database_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(StoreError, match='"nowhere" does not exist'):
        await asyncio.to_thread(Store.open, cluster.url("nowhere"))


async def test_a_server_is_not_ready_while_its_database_does_not_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that hangs: here, another session has what the server writes."""
    monkeypatch.setattr(stores, "FRESH_S", 0.0)
    monkeypatch.setattr(stores, "PROBE_S", 0.2)
    store = await asyncio.to_thread(Store.open, cluster.url())
    with psycopg.connect(f"host=127.0.0.1 port={cluster.port} user=postgres") as other:
        other.execute("SELECT * FROM store_owner FOR UPDATE")
        assert "did not answer" in await store.refuses(probe, NOW)
    async with asyncio.timeout(PATIENCE_S):
        while await store.refuses(probe, NOW):
            await asyncio.sleep(0.05)
    await store.close()


async def test_a_postgresql_without_room_is_told_with_how_many_connections_a_server_needs(
    cluster: Cluster, impatient: None
) -> None:
    where = f"host=127.0.0.1 port={cluster.port} user=postgres"
    taken: list[Any] = []
    with suppress(psycopg.OperationalError):
        while True:
            taken.append(await asyncio.to_thread(psycopg.connect, where))
    with pytest.raises(StoreError, match=f"each server needs {CONNECTIONS} connections: raise max_connections"):
        await asyncio.to_thread(Store.open, cluster.url())
    for connection in taken:
        connection.close()


# A standby.


async def test_a_standby_is_named_with_the_remedy_and_takes_over_without_a_loss(
    cluster: Cluster, impatient: None
) -> None:
    with clusters.folder() as folder:
        standby = await asyncio.to_thread(cluster.standby, folder)
        await asyncio.to_thread(standby.start)
        try:
            for options in ({}, {"target_session_attrs": "read-write"}):
                with pytest.raises(StoreError, match="only reads, as a standby does: name all hosts in the URL"):
                    await asyncio.to_thread(Store.open, standby.url(**options))
            await survives(cluster, standby)
        finally:
            await asyncio.to_thread(standby.stop)


async def survives(cluster: Cluster, standby: Cluster) -> None:
    store = await asyncio.to_thread(
        Store.open, cluster.url("postgres", standby, target_session_attrs="read-write", connect_timeout="2")
    )
    await asyncio.to_thread(confirm_on_standby, cluster)
    for n in range(20):
        await written(store, f"host-{n:02}")
    await asyncio.to_thread(cluster.stop)
    with pytest.raises(Unavailable):
        await store.write(add_hosts, "in-between")
    await asyncio.to_thread(standby.promote)
    await written(store, "promoted")
    assert {f"host-{n:02}" for n in range(20)} | {"promoted"} <= set(await hosts(store))
    await store.close()


def confirm_on_standby(cluster: Cluster) -> None:
    """From now on, a commit is answered once the standby has it."""
    with psycopg.connect(f"host=127.0.0.1 port={cluster.port} user=postgres", autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        admin.execute("SELECT pg_reload_conf()")
