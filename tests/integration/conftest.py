"""What tests over real sockets share: a server on a free port, its REST API, and agents that speak frames by hand."""

import asyncio
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from server.app import Config, Parts, Running, serving
from server.store import migrations, servers
from server.store import tables as models
from server.store.engine import Store
from server.store.servers import ServerRow
from tests import postgresql as postgresql_servers
from tests.integration.clock import Clock
from tests.plain import NO_TLS
from tests.postgresql import Databases

Answer = TypeVar("Answer")
PATIENCE_S = 60
"""What takes longer than this will not come."""
ON_POSTGRESQL = os.environ.get("LAMPLIGHTER_TEST_DATABASE", "sqlite") == "postgresql"
SQLITE = pytest.param("sqlite", marks=pytest.mark.sqlite("runs beside itself on PostgreSQL"))
"""For tests that run on both databases in any case."""

Declare = Callable[..., Awaitable[str]]
Connect = Callable[..., AbstractAsyncContextManager["Agent"]]
Lamplighter = Callable[..., Awaitable[tuple[int | None, str, str]]]


class Until(Protocol):
    async def __call__(self, condition: Callable[[], Awaitable[Answer]]) -> Answer: ...


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """A real PostgreSQL."""
    with postgresql_servers.running() as databases:
        yield databases


@pytest.fixture
def postgresql(databases: Databases) -> Iterator[str]:
    """The URL of an empty database in PostgreSQL, which is dropped after the test."""
    url = databases.new()
    yield url.render_as_string(hide_password=False)
    databases.drop(url)


class DataFolders:
    """The databases of servers' data folders: SQLite files, or what stands for them in PostgreSQL."""

    def __init__(self, databases: Databases | None) -> None:
        self._databases = databases
        self._made: dict[Path, sa.URL] = {}

    def url(self, folder: Path) -> str:
        """The URL of a folder's database."""
        folder = folder.resolve()
        if self._databases is None:
            return f"sqlite:///{folder}/lamplighter.db"
        if folder not in self._made:
            self._made[folder] = self._databases.new_migrated()
        return self._made[folder].render_as_string(hide_password=False)

    def environment(self, folder: Path) -> dict[str, str]:
        """What a process needs so that `lamplighter server` on this folder has the folder's database."""
        return {} if self._databases is None else {"LAMPLIGHTER_DATABASE": self.url(folder)}

    def rows(self, folder: Path, table: str) -> list[dict[str, Any]]:
        """A table of a folder's database, whether or not a server runs on it."""
        engine = sa.create_engine(self.url(folder), poolclass=sa.NullPool)
        with engine.connect() as conn:
            return [dict(row) for row in conn.execute(sa.select(models.tables[table])).mappings()]

    def drop_below(self, folder: Path) -> None:
        """Drop the PostgreSQL databases of all data folders in a folder."""
        for made in [it for it in self._made if it.is_relative_to(folder)]:
            assert self._databases is not None
            self._databases.drop(self._made.pop(made))


@pytest.fixture(autouse=True, scope="session")
def data_folders(request: pytest.FixtureRequest) -> Iterator[DataFolders]:
    """The databases of data folders. With LAMPLIGHTER_TEST_DATABASE=postgresql they are in PostgreSQL.

    Then that is where the stores are that a test or its servers open by such a folder's file. A process that a test
    starts needs `environment`; `lamplighter up` always keeps to SQLite.
    """
    folders = DataFolders(request.getfixturevalue("databases") if ON_POSTGRESQL else None)
    with pytest.MonkeyPatch.context() as patch:
        if ON_POSTGRESQL:
            open_store = Store.open

            def opened(location: str | os.PathLike[str], **settings: Any) -> Store:
                path = os.fspath(location)
                if path.endswith("/lamplighter.db") and "://" not in path:
                    path = folders.url(Path(path).parent)
                return open_store(path, **settings)

            patch.setattr(Store, "open", staticmethod(opened))
        yield folders


@pytest.fixture(autouse=True)
def dropped(request: pytest.FixtureRequest, data_folders: DataFolders) -> Iterator[None]:
    """Drops the databases of a test's folders after it."""
    yield
    data_folders.drop_below(Path(request.node.funcargs.get("tmp_path", "/nowhere")))


async def join(parts: Parts) -> None:
    """Have a server that a test put together itself be the one that its store has, which takes hosts and leads."""
    store = parts.services.store
    if store.is_shared:
        now = datetime.now(UTC)
        await store.write(servers.leave, store.server)  # after a restart
        await store.write(servers.join, ServerRow(store.server, "", now, now))
        parts.leader.elected(True)
        parts.services.dispatcher.lead()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of SQLite's own where its place is taken."""
    for item in items:
        if ON_POSTGRESQL and (marker := item.get_closest_marker("sqlite")):
            item.add_marker(pytest.mark.skip(f"of SQLite alone: {marker.args[0]}"))


async def leading(server: Running) -> None:
    """Wait until a server leads, which takes a moment where others could do so."""
    async with asyncio.timeout(PATIENCE_S):
        while not server.parts.leader.leads():
            await asyncio.sleep(0.01)


@pytest.fixture
def clock() -> Clock:
    """The server's."""
    return Clock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with all tables and no rows, to be copied: to make the tables is half of a server's start."""
    path = tmp_path_factory.mktemp("migrated") / "lamplighter.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as conn:
        migrations.upgrade(conn)
    engine.dispose()
    return path


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The URL of the server's database, for tests that are parametrized with its kind; empty for SQLite."""
    return str(request.getfixturevalue("postgresql")) if getattr(request, "param", "") == "postgresql" else ""


@pytest.fixture
async def server(tmp_path: Path, clock: Clock, migrated: Path, database: str) -> AsyncIterator[Running]:
    if not (tmp_path / migrated.name).exists():
        shutil.copy(migrated, tmp_path)
    async with serving(Config(tmp_path, port=0, database=database), clock) as running:
        await leading(running)
        yield running


@pytest.fixture
async def api(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{server.port}/api/v1"
    headers = {"authorization": f"Bearer {server.admin_token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def declare(api: httpx.AsyncClient) -> Declare:
    """Declares a schedule, and the repository that it names; returns its id."""

    async def declare(
        name: str = "etc", repository: str = "main", credentials: dict[str, Any] | None = None, **spec: Any
    ) -> str:
        backup = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}}
        there = {"spec": {"url": "/backup/{host}"}, "credentials": credentials or {"password": "open sesame"}}
        if credentials is not None or (await api.get(f"/repositories/ns/{repository}")).is_error:
            (await api.put(f"/repositories/ns/{repository}", json=there)).raise_for_status()
        wanted = {"spec": {**backup, "repositoryRef": {"name": repository}, **spec}}
        answer = await api.put(f"/schedules/ns/{name}", json=wanted)
        answer.raise_for_status()
        uid: str = answer.json()["metadata"]["uid"]
        return uid

    return declare


@asynccontextmanager
async def dialled(
    server: Running, token: str, subprotocols: Sequence[str] = ("lamplighter.v1",)
) -> AsyncIterator[ClientConnection]:
    """A connection to a server, as agents have one."""
    async with websocket(
        f"ws://127.0.0.1:{server.port}/agent",
        subprotocols=[Subprotocol(it) for it in subprotocols] or None,
        additional_headers={"authorization": f"Bearer {token}"},
        compression=None,
        proxy=None,
    ) as socket:
        yield socket


@pytest.fixture
def connect(server: Running, clock: Clock) -> Connect:
    """Connects as a host's agent, with what it says in its hello; without `hello`, it has yet to say it.

    `to`: another server than the test's.
    """

    @asynccontextmanager
    async def connect(
        host: str = "node-1",
        *,
        hello: bool = True,
        token: str | None = None,
        to: Running | None = None,
        subprotocols: Sequence[str] = ("lamplighter.v1",),
        **said: Any,
    ) -> "AsyncIterator[Agent]":
        async with dialled(to or server, token or server.agent_token, subprotocols) as socket:
            agent = Agent(socket, host, clock)
            if hello:
                await agent.say("hello", host=host, **said)
            yield agent

    return connect


@pytest.fixture
def until() -> Until:
    """Waits for a condition of the world outside, and looks less often the longer that takes."""

    async def until(condition: Callable[[], Awaitable[Answer]]) -> Answer:
        pause_s = 0.01
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await condition()):
                await asyncio.sleep(pause_s)
                pause_s = min(1.2 * pause_s, 0.1)
        return found

    return until


@pytest.fixture(params=[SQLITE, "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store on each of the databases."""
    if request.param == "sqlite":
        opened = Store.open(tmp_path / "data" / "lamplighter.db")
    else:
        opened = await asyncio.to_thread(Store.open, request.getfixturevalue("postgresql"))
    yield opened
    await opened.close()


class Agent:
    """A connection as an agent of another make would use it: JSON by hand, and a set of its own."""

    def __init__(self, socket: ClientConnection, host: str, clock: Clock) -> None:
        self.socket, self.host, self.clock = socket, host, clock
        self.version = 0
        self.entries: dict[str, Any] = {}
        self.frames: list[str | bytes] = []
        self.told: list[str] = []
        self._heard: deque[Any] = deque()

    async def say(self, type_: str, id_: str = "", **payload: Any) -> None:
        """Say something. What it says is due has come by the server's clock."""
        if type_ == "schedule.fire":
            self.clock.reach(datetime.fromisoformat(payload["scheduled_at"]))
        await self.socket.send(json.dumps({"type": type_, "id": id_, "payload": payload}))

    async def hear(self, *, credentials: bool = False) -> Any:
        """The next envelope; those with credentials are left out unless they are asked for."""
        while not self._heard:
            async with asyncio.timeout(PATIENCE_S):
                self.frames.append(await self.socket.recv())
            said = json.loads(self.frames[-1])
            self._heard.extend(said if isinstance(said, list) else [said])
        envelope = self._heard.popleft()
        self.told.append(envelope["type"])
        return envelope if credentials or envelope["type"] != "repo.credentials" else await self.hear()

    async def hears(self, type_: str) -> Any:
        """The payload of the next envelope, which is of this type."""
        envelope = await self.hear(credentials=type_ == "repo.credentials")
        assert envelope["type"] == type_
        return envelope["payload"]

    async def fires(self, schedule_id: str, at: str) -> str:
        """Fire a due time; the id of the job that is to run."""
        await self.say("schedule.fire", schedule_id=schedule_id, scheduled_at=at)
        job_id: str = (await self.hears("command.run"))["job_id"]
        return job_id

    async def follow(self, *, digest: str | None = None) -> Any:
        """Apply the next push, which must come now, and ack it."""
        envelope = await self.hear()
        push = envelope["payload"]
        if envelope["type"] == "schedule.set":
            self.entries = {it["id"]: it for it in push["schedules"]}
        else:
            assert (envelope["type"], push["base"]) == ("schedule.diff", self.version)
            for key in push.get("remove", ()):
                del self.entries[key]
            self.entries.update((it["id"], it) for it in push.get("upsert", ()))
        self.version = push["version"]
        await self.say("schedule.ack", version=self.version, digest=digest or self.digest)
        return push

    @property
    def digest(self) -> str:
        raws = (json.dumps(it, separators=(",", ":"), ensure_ascii=False).encode() for it in self.entries.values())
        return format(sum(int(hashlib.sha256(raw).hexdigest(), 16) for raw in raws) % 2**256, "064x")

    async def closed(self) -> tuple[int | None, str | None]:
        """The code and the reason with which the server closes, whatever it says before."""
        with suppress(ConnectionClosed):
            while True:
                await self.hear()
        return self.socket.close_code, self.socket.close_reason
