"""A file belongs to one server, several share a PostgreSQL, and /readyz says what a write would get."""

import asyncio
import gc
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from server.app import Config, Running, serving
from server.errors import Unavailable
from server.store import engine as stores
from server.store import ownership
from server.store.engine import Store, StoreError, StoreLostError
from server.store.history import delete_audit
from server.store.ownership import probe
from server.store.tables import STORE_OWNER, tables
from tests.integration.conftest import ON_POSTGRESQL, PATIENCE_S, SQLITE, DataFolders
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)


@pytest.fixture(params=[SQLITE, "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Where a store is."""
    return tmp_path / "lamplighter.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "WAIT_S", 0.0)


class OldRelease:
    """What releases that knew of one server alone do with a PostgreSQL database: they take its lock for themselves."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self._conn = self._engine.connect()

    def starts(self) -> bool:
        """Take the lock and write its name into the store, unless another server has it."""
        self._conn.execute(sa.text("SELECT set_config('application_name', 'an old release', false)"))
        take = sa.text("SELECT pg_try_advisory_lock(:key, hashtext(current_schema()))")
        taken = bool(self._conn.scalar(take, {"key": ownership.KEY}))
        if taken:
            ownership.claim(self._conn, "an old release")
        return taken

    async def starts_once_it_can(self) -> None:
        """Start when the server before has gone: PostgreSQL ends its session a moment after its connection."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.starts():
                await asyncio.sleep(0.02)

    def ends(self) -> None:
        self._conn.close()
        self._engine.dispose()


@pytest.fixture
def old(postgresql: str) -> Iterator[OldRelease]:
    release = OldRelease(postgresql)
    yield release
    release.ends()


@pytest.mark.sqlite("servers share a PostgreSQL")
async def test_a_second_server_is_told_who_has_the_store(tmp_path: Path, impatient: None) -> None:
    first = await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    with pytest.raises(StoreError, match=rf"in use by another server \(lamplighter on .*process {os.getpid()}"):
        await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    await first.close()
    second = await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    await second.close()


async def test_a_server_waits_a_little_for_the_one_before_it(location: Any, request: pytest.FixtureRequest) -> None:
    if isinstance(location, Path):
        first = await asyncio.to_thread(Store.open, location)
    else:
        await (await asyncio.to_thread(Store.open, location)).close()  # makes the tables
        old = request.getfixturevalue("old")
        await old.starts_once_it_can()
    second = asyncio.ensure_future(asyncio.to_thread(Store.open, location))
    await asyncio.sleep(0.3)
    assert not second.done()
    if isinstance(location, Path):
        await first.close()
    else:
        old.ends()
    await (await second).close()


@pytest.mark.sqlite("links to its file")
async def test_a_link_to_the_database_does_not_get_around_the_lock(tmp_path: Path, impatient: None) -> None:
    first = await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    (tmp_path / "other.db").symlink_to(tmp_path / "lamplighter.db")
    with pytest.raises(StoreError, match="in use by another server"):
        await asyncio.to_thread(Store.open, tmp_path / "other.db")
    await first.close()


async def test_a_lock_dies_with_its_process(location: Any, impatient: None) -> None:
    """On PostgreSQL it is seen by an old release, since new ones share the store."""

    def opens() -> bool:
        if not isinstance(location, Path):
            old = OldRelease(location)
            started = old.starts()
            old.ends()
            return started
        try:
            asyncio.run(Store.open(location).close())
        except StoreError as error:
            return "in use by another server" not in str(error)
        return True

    code = f"from server.store.engine import Store; Store.open({str(location)!r}); print(flush=True); input()"
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline()
    assert not await asyncio.to_thread(opens)
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(opens):
            await asyncio.sleep(0.05)


# Servers that share a store.


async def test_servers_that_start_together_make_the_tables_once_and_share_them(postgresql: str) -> None:
    stores = await asyncio.gather(*(asyncio.to_thread(Store.open, postgresql) for _ in range(3)))
    assert len({store.server for store in stores}) == 3
    for store in stores:
        assert store.is_shared
        await store.write(probe, NOW)
        assert await store.read(read_probed) == NOW
        await store.close()


def read_probed(conn: sa.Connection) -> datetime | None:
    probed: datetime | None = conn.scalar(sa.select(STORE_OWNER.c.probed_at))
    return probed


@pytest.mark.sqlite("servers share a PostgreSQL")
async def test_a_store_in_a_file_is_of_one_server(tmp_path: Path) -> None:
    store = await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    assert not store.is_shared
    await store.close()


async def test_servers_that_share_a_store_keep_an_old_release_out(
    postgresql: str, old: OldRelease, impatient: None
) -> None:
    stores = [await asyncio.to_thread(Store.open, postgresql) for _ in range(2)]
    for store in stores:
        assert not old.starts()
        await store.close()
    await old.starts_once_it_can()


async def test_an_old_release_keeps_servers_out_that_share_and_they_say_who_it_is(
    postgresql: str, old: OldRelease, impatient: None
) -> None:
    await (await asyncio.to_thread(Store.open, postgresql)).close()  # makes the tables
    await old.starts_once_it_can()
    with pytest.raises(StoreError, match=r"in use by another server \(an old release"):
        await asyncio.to_thread(Store.open, postgresql)
    old.ends()
    await (await asyncio.to_thread(Store.open, postgresql)).close()


@pytest.mark.parametrize("command", [["server"], ["up", "declared"]], ids=["server", "up"])
def test_the_command_says_in_one_line_that_the_folder_is_in_use(tmp_path: Path, command: list[str]) -> None:
    for folder in ("declared", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "lamplighter.db").touch()
    held = ownership.FileLock(tmp_path / "data" / "lamplighter.db")
    lamplighter: list[str | Path] = [Path(sys.executable).parent / "lamplighter", *command, "--data-dir", "data"]
    lamplighter += ["--listen", "127.0.0.1:0"]
    refused = subprocess.run(lamplighter, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    held.close()
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "data/lamplighter.db is in use by another server" in refused.stderr.splitlines()[-1]


# A store that is lost.


@pytest.mark.sqlite("its file is replaced")
async def test_a_database_that_is_replaced_under_a_server_ends_it(tmp_path: Path) -> None:
    """Such as by a copy that is put back: what is written to the file of before is nobody's."""

    async def serve() -> None:
        async with serving(Config(tmp_path, port=0)) as server:
            shutil.copy(tmp_path / "lamplighter.db", tmp_path / "copy.db")
            (tmp_path / "copy.db").rename(tmp_path / "lamplighter.db")
            assert "was removed or replaced while the server ran" in await refused(server)
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        await serve()
    assert ended.group_contains(StoreLostError)


async def refused(server: Running) -> str:
    """Why the server can store nothing, once it says so."""
    async with asyncio.timeout(PATIENCE_S):
        while not (why := await server.refuses()):
            await asyncio.sleep(0.05)
    return why


@pytest.fixture
async def cut(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], None]]:
    """Cuts the session that holds the lock of an open store."""
    monkeypatch.setattr(stores, "FRESH_S", 0.0)
    admin = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")

    def cut() -> None:
        with admin.connect() as conn:
            holding = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = :key"
            assert conn.execute(sa.text(holding), {"key": ownership.KEY}).scalars().all() == [True]

    yield cut
    admin.dispose()


async def test_a_session_that_was_cut_takes_the_lock_again(
    postgresql: str, cut: Callable[[], None], old: OldRelease
) -> None:
    store = await asyncio.to_thread(Store.open, postgresql)
    await asyncio.to_thread(cut)
    async with asyncio.timeout(PATIENCE_S):
        while await store.refuses(probe, NOW):
            await asyncio.sleep(0.05)
    assert not old.starts()
    await store.close()


@pytest.mark.parametrize("still", [True, False], ids=["still there", "gone again"])
async def test_a_server_writes_nothing_any_more_once_an_old_release_had_the_store(
    postgresql: str, cut: Callable[[], None], old: OldRelease, still: bool
) -> None:
    store = await asyncio.to_thread(Store.open, postgresql)
    await asyncio.to_thread(cut)
    await old.starts_once_it_can()
    if not still:
        old.ends()
    async with asyncio.timeout(PATIENCE_S):
        while "another server" not in await store.refuses(probe, NOW):
            await asyncio.sleep(0.05)
    with pytest.raises(StoreLostError, match="another server"):
        await store.until_lost()
    with pytest.raises(Unavailable, match="another server"):
        await store.write(probe, NOW)
    await store.close()


# What a write would get.


FAILING = "lamplighter_store_failing"


FullDisk = Callable[[], AbstractContextManager[None]]
REFUSE = """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN RAISE disk_full USING MESSAGE = ''could not extend file "base/1/2": No space left on device''; END'"""


@pytest.fixture
def full_disk(tmp_path: Path, data_folders: DataFolders) -> FullDisk:
    """While entered, the database of the test's folder takes nothing."""

    @contextmanager
    def of_this_process() -> Iterator[None]:
        """This process can make no file longer."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @contextmanager
    def of_postgresql() -> Iterator[None]:
        """Whatever writes gets the error of a full disk."""
        admin = sa.create_engine(data_folders.url(tmp_path), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as conn:
            conn.exec_driver_sql(REFUSE)
            for table in tables:
                does = "FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
                conn.exec_driver_sql(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table} {does}")
            try:
                yield
            finally:
                conn.exec_driver_sql("DROP FUNCTION refuse CASCADE")

    return of_postgresql if ON_POSTGRESQL else of_this_process


async def test_a_disk_that_stays_full_makes_one_line_and_no_traceback(
    server: Running,
    api: httpx.AsyncClient,
    full_disk: FullDisk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "LOG_EVERY_S", math.inf)  # a machine may be slow
    caplog.set_level("INFO", "server.store")
    before = len(caplog.records)
    with full_disk():
        for n in range(20):
            answer = await api.put(f"/hosts/h{n}", json={"labels": {}})
            assert answer.status_code == 503
    assert (await api.put("/hosts/h", json={"labels": {}})).is_success
    said = [record for record in caplog.records[before:] if record.name == "server.store.engine"]
    assert [(it.getMessage(), it.exc_info) for it in said] == [
        ("the database refuses writes", None),
        ("the database takes writes again", None),
    ]
    assert any(it in vars(said[0])["reason"] for it in ("full", "I/O", "No space left on device"))
    assert not [record for record in caplog.records[before:] if record.exc_info]


def changes_nothing(conn: sa.Connection, items: Sequence[Any]) -> list[bool]:
    """Such as what deletes history, where there is none."""
    return delete_audit(conn, items)


def is_wrong(conn: sa.Connection, items: Sequence[Any]) -> list[bool]:
    """Such as what breaks a constraint."""
    raise ValueError("wrong")


@pytest.mark.parametrize("function", [changes_nothing, is_wrong])
async def test_a_commit_that_writes_nothing_does_not_tell_that_a_full_disk_takes_writes_again(
    tmp_path: Path,
    full_disk: FullDisk,
    caplog: pytest.LogCaptureFixture,
    function: Callable[[sa.Connection, Sequence[Any]], list[bool]],
) -> None:
    caplog.set_level("INFO", "server.store.engine")
    store = await asyncio.to_thread(Store.open, tmp_path / "lamplighter.db")
    with full_disk():
        for _ in range(3):
            with pytest.raises(Unavailable):
                await store.write(probe, NOW)
            with pytest.raises(Unavailable):
                await store.write(function, NOW)
            assert "cannot be written" in await store.refuses(probe, NOW)
    await store.write(delete_audit, NOW)
    assert await store.refuses(probe, NOW) == ""
    await store.close()
    assert [it.getMessage() for it in caplog.records if it.name == "server.store.engine"] == [
        "the database refuses writes",
        "the database takes writes again",
    ]


@pytest.fixture
async def ready(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[tuple[int, str]]]]:
    """What /readyz answers, without its cache."""
    monkeypatch.setattr(stores, "FRESH_S", 0.0)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE_S, verify=NO_TLS
    ) as client:

        async def ready() -> tuple[int, str]:
            answer = await client.get("/readyz")
            return answer.status_code, answer.text

        yield ready


async def test_a_server_is_not_ready_while_its_disk_takes_nothing(
    ready: Callable[..., Awaitable[tuple[int, str]]], full_disk: FullDisk
) -> None:
    assert await ready() == (200, "ok\n")
    with full_disk():
        status, told = await ready()
    assert (status, "the database cannot be written now" in told) == (503, True)
    assert await ready() == (200, "ok\n")


async def test_a_metric_and_get_problems_tell_that_a_server_writes_nothing(
    ready: Callable[..., Awaitable[tuple[int, str]]], server: Running, tmp_path: Path, full_disk: FullDisk
) -> None:
    here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}

    async def problems() -> tuple[int | None, str, float | None]:
        command = Path(sys.executable).with_name("lamplighter"), "get", "problems"
        process = await asyncio.create_subprocess_exec(*command, env=os.environ | here, stdout=-1)
        out, _ = await process.communicate()
        return process.returncode, out.decode(), server.parts.registry.get_sample_value(FAILING)

    assert await problems() == (0, "", 0)
    with full_disk():
        code, out, failing = await problems()
    assert (code, "NotWriting" in out, "the database cannot be written now" in out, failing) == (1, True, True, 1)
    assert await problems() == (0, "", 0)


async def test_a_server_is_not_ready_while_another_process_locks_its_database(
    ready: Callable[..., Awaitable[tuple[int, str]]],
    data_folders: DataFolders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = sa.create_engine(data_folders.url(tmp_path), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with other.connect() as conn:
        conn.exec_driver_sql("BEGIN" if ON_POSTGRESQL else "BEGIN IMMEDIATE")
        if ON_POSTGRESQL:
            conn.exec_driver_sql("LOCK TABLE store_owner")
        monkeypatch.setattr(stores, "PROBE_S", 0.5)
        status, told = await ready()
        conn.exec_driver_sql("ROLLBACK")
    assert (status, "did not answer within" in told) == (503, True)
    async with asyncio.timeout(PATIENCE_S):
        while await ready() != (200, "ok\n"):
            await asyncio.sleep(0.05)


async def test_a_postgresql_that_only_reads_is_told(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FRESH_S", 0.0)
    store = await asyncio.to_thread(Store.open, postgresql)
    admin = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        name = conn.execute(sa.text("SELECT current_database()")).scalar()
        conn.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        conn.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
    async with asyncio.timeout(PATIENCE_S):
        while "read-only" not in await store.refuses(probe, NOW):
            await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await store.write(probe, NOW)
    admin.dispose()
    await store.close()


async def test_many_who_ask_cost_one_write(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "lamplighter.db")
    written: list[Any] = []

    def counted(conn: sa.Connection, items: Sequence[Any]) -> list[None]:
        written.extend(items)
        return probe(conn, items)

    assert await asyncio.gather(*(store.refuses(counted, NOW) for _ in range(100))) == [""] * 100
    assert await store.refuses(counted, NOW) == ""
    assert written == [NOW]
    await store.close()


async def test_a_server_that_ended_leaves_nothing_in_the_memory_of_its_process(tmp_path: Path) -> None:
    async with serving(Config(tmp_path, port=0)) as running:
        loaded = weakref.ref(running.parts.catalog)
    del running
    gc.collect()
    assert loaded() is None
