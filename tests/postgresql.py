"""A real PostgreSQL for the tests, and databases in it.

`LAMPLIGHTER_TEST_POSTGRESQL` says which: the URL of a server whose user may create databases, or the folder with the
programs of one, such as /usr/lib/postgresql/15/bin. Without it, it is the one in pgserver's wheel.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from server.store import migrations

WHICH = "LAMPLIGHTER_TEST_POSTGRESQL"
SETTINGS = {"fsync": "off", "autovacuum": "off"}
"""Of the servers that are started here: no machine loses power in the tests, and plans depend on no look in between."""
ROOM = 4 * 2**30
"""Bytes that are free in memory where a server's data is put there."""


class Databases:
    """Databases in one server. They are dropped in the end."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        self._migrated: sa.URL | None = None
        self._made: list[sa.URL] = []

    def new(self) -> sa.URL:
        """An empty database."""
        return self._create("template1")

    def new_migrated(self) -> sa.URL:
        """A database with all tables and no rows."""
        if self._migrated is None:
            self._migrated = self.new()
            engine = sa.create_engine(self._migrated, poolclass=sa.NullPool)
            with engine.begin() as conn:
                migrations.upgrade(conn)
        return self._create(str(self._migrated.database))

    def drop(self, url: sa.URL) -> None:
        """Drop a database, whoever is connected to it."""
        self._made.remove(url)
        self.execute(f"DROP DATABASE {url.database} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Execute a statement in the server's own database."""
        with self._admin.connect() as conn:
            conn.exec_driver_sql(statement)

    def close(self) -> None:
        """Drop all that is left."""
        for url in list(self._made):
            self.drop(url)

    def _create(self, template: str) -> sa.URL:
        name = f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(self._url.set(database=name))
        return self._made[-1]


def programs() -> Path | None:
    """The folder with PostgreSQL's programs, if the environment names one."""
    which = os.environ.get(WHICH, "")
    return Path(which) if which and "://" not in which else None


def wheel() -> Any:
    """The module that carries PostgreSQL's programs. Skips the test where there is none."""
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # it warns where there is none
    return pytest.importorskip("pgserver")


@contextmanager
def running() -> Iterator[Databases]:
    """The server that the environment names."""
    which = os.environ.get(WHICH, "")
    if "://" in which:
        databases = Databases(sa.make_url(which).set(drivername="postgresql+psycopg"))
        try:
            yield databases
        finally:
            databases.close()
    elif (folder := programs()) is not None:
        with _of_programs(folder) as url:
            yield Databases(url)
    else:
        with _of_wheel() as url:
            yield Databases(url)


def place() -> Path | None:
    """The folder for a server's data: in memory where there is room, since each database is hundreds of files."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of our own in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else None


@contextmanager
def _of_wheel() -> Iterator[sa.URL]:
    with tempfile.TemporaryDirectory(prefix="lamplighter-pg-", dir=place()) as folder:
        started = wheel().get_server(Path(folder) / "data", cleanup_mode="delete")
        for name, value in SETTINGS.items():
            started.psql(f"ALTER SYSTEM SET {name} = {value}")
        started.psql("SELECT pg_reload_conf()")
        try:
            yield sa.make_url(started.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            started.cleanup()


@contextmanager
def _of_programs(programs: Path) -> Iterator[sa.URL]:
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses to be root
    folder = Path(tempfile.mkdtemp(prefix="lamplighter-pg-", dir=place()))
    if user is not None:
        shutil.chown(folder, user)
    control: list[str | Path] = [programs / "pg_ctl", "--pgdata", folder / "data", "--log", folder / "log", "--wait"]
    settings = {"listen_addresses": "", "unix_socket_directories": folder, **SETTINGS}
    asked = " ".join(f"-c {name}={value}" for name, value in settings.items())
    initdb = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
    try:
        _run(programs / "initdb", "--pgdata", folder / "data", *initdb, user=user, cwd=folder)
        _run(*control, "--options", asked, "start", user=user, cwd=folder)
        yield sa.make_url(f"postgresql+psycopg://postgres@/postgres?host={folder}")
    finally:
        subprocess.run([*control, "--mode=immediate", "stop"], user=user, cwd=folder, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _run(*argv: object, **options: Any) -> None:
    done = subprocess.run([str(it) for it in argv], capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
