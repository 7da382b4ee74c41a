"""Servers that share a PostgreSQL wake each other, one leads, dead ones are found, and agents go to the others."""

import asyncio
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from server.agents.hub import SENT_AWAY
from server.app import Config, Running, serving
from server.replicas import agents, direct, members, trimming
from server.replicas.direct import LEADING, Direct
from server.replicas.members import Followed, Members
from server.replicas.watch import DEAD_S
from server.store import ownership, servers
from server.store.engine import Store, StoreError, StoreLostError
from server.store.ownership import probe
from server.store.servers import ServerRow
from server.store.tables import CHANGE_LOG, CONNECTIONS, HOSTS, SERVERS
from tests import clusters
from tests.clusters import Cluster
from tests.docs import free_port
from tests.integration.conftest import PATIENCE_S, Connect, Until
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with clusters.running() as made:
        yield made


@pytest.fixture
def url(cluster: Cluster) -> str:
    """An empty database in it."""
    name = f"s{free_port()}"
    engine = sa.create_engine(cluster.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return cluster.url(name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await asyncio.to_thread(Store.open, url)
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks often."""
    monkeypatch.setattr(direct, "TICK_S", 0.05)
    monkeypatch.setattr(direct, "AGAIN_S", 0.05)
    monkeypatch.setattr(members, "BEAT_S", 0.1)
    monkeypatch.setattr(members, "LOOK_S", 0.05)


class Replica:
    """A server's direct connection, and what it heard."""

    def __init__(self, store: Store) -> None:
        assert store.direct is not None
        assert store.bell is not None
        self.store = store
        self.bell = store.bell
        self.woken = 0
        self.leads = False
        self.lost = ""
        self.direct = Direct(store.direct, store.server, store.bell, self._wake, self._elected, self._lose)

    def _wake(self) -> None:
        self.woken += 1

    def _elected(self, leads: bool) -> None:
        self.leads = leads

    def _lose(self, why: str) -> None:
        self.lost = why


@asynccontextmanager
async def replica(url: str) -> AsyncIterator[Replica]:
    store = await asyncio.to_thread(Store.open, url)
    await store.write(servers.join, ServerRow(store.server, "", NOW, NOW))
    made = Replica(store)
    made.direct.start()
    try:
        yield made
    finally:
        await made.direct.close()
        await store.close()


UntilTrue = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def until_true(until: Until) -> UntilTrue:
    async def until_true(condition: Callable[[], object]) -> None:
        async def asked() -> object:
            return condition()

        await until(asked)

    return until_true


# The direct connection.


async def test_what_one_server_commits_wakes_the_others_and_one_leads(url: str, until_true: UntilTrue) -> None:
    async with replica(url) as one, replica(url) as other:
        await until_true(lambda: one.woken and other.woken)  # each asks once when it is connected
        await until_true(lambda: one.leads or other.leads)
        assert not (one.leads and other.leads)
        before = one.woken, other.woken

        def tells(conn: sa.Connection, items: object) -> list[None]:
            conn.info["wakes"] = True
            return probe(conn, [NOW])

        await one.store.write(tells, NOW)
        await until_true(lambda: other.woken > before[1])
        assert one.woken == before[0]  # it knows what it told


async def test_when_the_leader_goes_another_leads(url: str, until_true: UntilTrue) -> None:
    async with replica(url) as one:
        await until_true(lambda: one.leads)
        async with replica(url) as other:
            await until_true(lambda: other.woken)
            assert not other.leads
            await one.direct.close()
            await until_true(lambda: other.leads)


async def test_a_leader_that_stands_still_is_replaced_and_leads_no_more(
    url: str, until_true: UntilTrue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(url) as one:
        await until_true(lambda: one.leads)
        may_go_on = threading.Event()
        monkeypatch.setattr(one.direct, "_listen", lambda *_: may_go_on.wait())
        async with replica(url) as other:
            await until_true(lambda: other.woken)
            assert await other.store.write(servers.bury, (one.store.server, NOW))
            await until_true(lambda: other.leads)
            may_go_on.set()
            await until_true(lambda: not one.leads)
            await other.direct.close()
            woken = one.woken
            await until_true(lambda: one.woken > woken)  # it tried to lead meanwhile
            assert not one.leads


async def test_a_direct_connection_that_was_cut_comes_back_and_asks(
    cluster: Cluster, url: str, until_true: UntilTrue
) -> None:
    async with replica(url) as one:
        await until_true(lambda: one.leads)
        woken = one.woken
        await asyncio.to_thread(cluster.stop)
        await until_true(lambda: not one.leads)
        await asyncio.to_thread(cluster.start)
        await until_true(lambda: one.leads and one.woken > woken)
        assert not one.lost


async def test_a_direct_connection_tells_that_an_old_release_had_the_store(url: str, until_true: UntilTrue) -> None:
    async with replica(url) as one:
        await until_true(lambda: one.leads)
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            ownership.claim(conn, "an old release")
            cut = sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = :key"
            )
            conn.execute(cut, {"key": LEADING})
        engine.dispose()
        await until_true(lambda: "another server used it in between" in one.lost)


# Rows.


def known(store: Store, gone: list[str], *, leads: bool) -> Members:
    return Members(store, Followed, lambda: leads, gone.append, lambda: datetime.now(UTC))


async def lives(store: Store, second: int) -> None:
    """The server of the store says that it lives."""
    assert await store.write(servers.beat, servers.Beat(store.server, NOW + timedelta(seconds=second)))


async def test_the_leader_buries_the_dead_once(store: Store) -> None:
    gone: list[str] = []
    leader, other = known(store, gone, leads=True), known(store, gone, leads=False)
    dead = ServerRow("dead", "dead", NOW, NOW + timedelta(seconds=1))
    async with leader.joined("leader"):
        await store.write(servers.join, dead)
        for second in range(int(DEAD_S) + 3):
            await lives(store, second)
            await other.look(1000.0 + second)
            await leader.look(1000.0 + second)
        assert gone == ["dead"]
        assert [row.name for row in await store.read(servers.living)] == ["leader"]
    assert await store.read(servers.living) == []


async def test_a_dead_leader_is_buried_by_another_server(store: Store) -> None:
    gone: list[str] = []
    other = known(store, gone, leads=False)
    await store.write(servers.join, ServerRow("leader", "leader", NOW, NOW + timedelta(seconds=1)))
    async with other.joined("other"):
        for second in range(int(DEAD_S) + 3):
            await lives(store, second)
            await other.look(1000.0 + second)
        assert gone == ["leader"]
        assert [row.name for row in await store.read(servers.living)] == ["other"]


async def test_a_server_that_lived_on_is_not_buried(store: Store) -> None:
    row = ServerRow("alive", "alive", NOW, NOW)
    await store.write(servers.join, row)
    await store.write(servers.beat, servers.Beat("alive", NOW + timedelta(seconds=1)))
    assert not await store.write(servers.bury, ("alive", NOW))
    assert await store.write(servers.bury, ("alive", NOW + timedelta(seconds=1)))
    assert not await store.write(servers.beat, servers.Beat("alive", NOW))


def connects(conn: sa.Connection, items: object) -> list[None]:
    conn.execute(sa.insert(HOSTS).values(name="a", labels={}, created_at=NOW, since=NOW))
    conn.execute(sa.insert(CONNECTIONS).values(host="a", server="gone"))
    return [None]


async def test_hosts_of_a_server_without_a_row_are_found(store: Store) -> None:
    await store.write(connects, None)
    assert await store.read(servers.without_row) == ["gone"]
    assert await store.read(servers.connection_counts) == {"gone": 1}
    await store.write(servers.join, ServerRow("gone", "back", NOW, NOW))
    assert await store.read(servers.without_row) == []


async def test_a_leader_finds_hosts_that_are_left_behind_while_it_leads(
    store: Store, until_true: UntilTrue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "LOOKS", 2)
    gone: list[str] = []
    watching = asyncio.ensure_future(known(store, gone, leads=True).watch())
    await store.write(connects, None)
    await until_true(lambda: len(gone) > 1)  # each time, until they are seen to
    watching.cancel()
    assert set(gone) == {"gone"}


async def test_the_log_is_trimmed_behind_the_server_that_followed_least(store: Store) -> None:
    def logs(conn: sa.Connection, items: object) -> list[None]:
        conn.execute(sa.insert(CHANGE_LOG), [{"revision": n, "at": NOW, "body": ""} for n in range(1, 6)])
        return [None]

    def left(conn: sa.Connection) -> list[int]:
        return list(conn.execute(sa.select(CHANGE_LOG.c.revision).order_by(CHANGE_LOG.c.revision)).scalars())

    await store.write(logs, None)
    for name, revision in (("a", 3), ("b", 5), ("starting", 0)):
        await store.write(servers.join, ServerRow(name, name, NOW, NOW, revision))
    await trimming.trim(store, NOW)
    assert await store.read(left) == [1, 2, 3, 4, 5]
    await store.write(servers.leave, "starting")
    await trimming.trim(store, NOW)
    assert await store.read(left) == [4, 5]


async def test_a_server_that_others_took_for_dead_ends(url: str, tmp_path: Path) -> None:
    async def serve() -> None:
        async with serving(Config(tmp_path, port=0, database=url)) as server:
            await server.parts.services.store.write(delete_servers, None)
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(PATIENCE_S):
            await serve()
    assert ended.group_contains(StoreLostError, match="took this one for dead")


async def test_a_host_that_says_hello_to_a_server_that_others_took_for_dead_is_not_left_with_it(
    url: str, tmp_path: Path, connect: Connect, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "BEAT_S", 3600.0)  # it does not notice by itself
    other = await asyncio.to_thread(Store.open, url)

    async def serve() -> None:
        async with asyncio.timeout(PATIENCE_S), serving(Config(tmp_path, port=0, database=url)) as server:
            await other.write(delete_servers, None)
            async with connect("node-1", to=server, token=server.agent_token) as agent:
                await agent.closed()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        await serve()
    assert ended.group_contains(StoreLostError, match="took this one for dead")
    assert await other.read(servers.without_row) == []
    await other.close()


async def test_a_server_is_not_buried_while_it_stores_a_hello(store: Store, url: str, until: Until) -> None:
    await store.write(servers.join, ServerRow("one", "one", NOW, NOW))
    engine = sa.create_engine(url)
    with engine.connect() as conn:
        servers.keep(conn, "one")
        burying = asyncio.ensure_future(store.write(servers.bury, ("one", NOW)))

        async def waits() -> bool:
            return bool(await store.read(waiting))

        await until(waits)
        assert not burying.done()
        conn.commit()
        assert await burying
        with pytest.raises(ownership.OwnershipError, match="took this one for dead"):
            servers.keep(conn, "one")
    engine.dispose()


def waiting(conn: sa.Connection) -> int:
    return int(conn.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def delete_servers(conn: sa.Connection, items: object) -> list[None]:
    conn.execute(sa.delete(SERVERS))
    return [None]


# Agents go to others.


async def test_a_server_that_stops_is_not_ready_first_and_then_sends_its_agents_away(
    url: str, tmp_path: Path, connect: Connect, until: Until, until_true: UntilTrue, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = asyncio.Event()

    async def slowly(send_away: Callable[[str], None], hosts: list[str], _seconds: float) -> None:
        await may_end.wait()
        for host in hosts:
            send_away(host)

    monkeypatch.setattr(agents, "spread", slowly)
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "b", url) as (server, stop):
        await server.parts.services.store.write(servers.join, ServerRow("other", "other", NOW, NOW + timedelta(days=1)))
        await until_true(server.parts.members.others)
        async with connect("node-1", to=server, token=server.agent_token) as agent:
            await agent.hear()
            stop.set()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as client:
                await until_true(server.parts.members.stopping)
                answer = await client.get("/readyz")
                assert (answer.status_code, "this server stops" in answer.text) == (503, True)
            store = server.parts.services.store

            async def told() -> bool:
                return any(row.stopping for row in await store.read(servers.living))

            await until(told)
            with pytest.raises(Exception, match="503"):
                async with connect("node-2", to=server, token=server.agent_token):
                    pass
            may_end.set()
            assert await agent.closed() == SENT_AWAY


@asynccontextmanager
async def running(folder: Path, url: str) -> AsyncIterator[tuple[Running, asyncio.Event]]:
    """A server that stops by itself once the event is set."""
    started: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(Config(folder, port=0, database=url, drain_seconds=1.0)) as server:
            started.set_result(server)
            await stop.wait()

    task = asyncio.create_task(serve())
    while not started.done():
        assert not task.done()
        await asyncio.sleep(0.02)
    yield started.result(), stop
    stop.set()
    await task


# A pooler.


@pytest.fixture
def pooler(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """pgbouncer in transaction mode, before the cluster."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        pytest.skip("pgbouncer is not installed")
    with clusters.folder() as folder:
        before = Cluster(folder, free_port())
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": before.port,
            "auth_type": "any",
            "pool_mode": "transaction",
            "unix_socket_dir": "",
            "default_pool_size": 20,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        where = f"* = host=127.0.0.1 port={cluster.port} user=postgres"
        (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", where, "[pgbouncer]", *lines, ""]))
        (folder / "pgbouncer.ini").chmod(0o644)
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], user=clusters.user(), stdout=-3, stderr=-3, cwd="/"
        )
        yield before
        process.terminate()
        process.wait()


async def test_behind_a_pooler_a_server_asks_for_one_connection_of_its_own(
    pooler: Cluster, url: str, until_true: UntilTrue
) -> None:
    database = str(sa.make_url(url).database)
    pooled = pooler.url(database)
    for given in ("", pooled):
        with pytest.raises(StoreError, match=r"a connection pooler .* give --database-direct"):
            await asyncio.to_thread(Store.open, pooled, direct=given)
    store = await asyncio.to_thread(Store.open, pooled, direct=url)
    await store.write(servers.join, ServerRow(store.server, "", NOW, NOW))
    made = Replica(store)
    made.direct.start()
    await until_true(lambda: made.leads)
    await store.write(servers.leave, store.server)
    for _ in range(20):  # more often than a driver prepares no statement
        await store.write(probe, NOW)
        assert await store.read(servers.living) == []
    await made.direct.close()
    await store.close()
