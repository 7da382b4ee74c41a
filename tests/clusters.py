"""A PostgreSQL of a test's own, which it may stop, restart, copy to a standby and promote."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests import postgresql
from tests.docs import free_port

SETTINGS = {"fsync": "off", "listen_addresses": "'127.0.0.1'", "max_connections": "40", "hot_standby": "on"}


class Cluster:
    """One instance. `port`: where it listens, on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        self._data = folder / "data"

    @classmethod
    def new(cls, folder: Path, **settings: str) -> Self:
        """Make an instance, which is not started."""
        made = cls(folder, free_port())
        made._run("initdb", "--auth=trust", "--username=postgres", "--encoding=utf8", "--no-sync", "-D", made._data)
        made.configure(**SETTINGS | settings)
        return made

    def configure(self, **settings: str) -> None:
        """Set these in its configuration, from its next start on."""
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(
                f"{name} = {value}\n"
                for name, value in {**settings, "port": self.port, "unix_socket_directories": "''"}.items()
            )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self.folder / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `immediate` as a crash does, `fast` as an administrator does."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def standby(self, folder: Path) -> "Cluster":
        """A copy that follows this instance and only reads. It is not started."""
        made = Cluster(folder, free_port())
        source = f"host=127.0.0.1 port={self.port} user=postgres"
        self._run("pg_basebackup", "-d", source, "-D", made._data, "--write-recovery-conf", "--checkpoint=fast")
        made.configure()
        return made

    def promote(self) -> None:
        """Have a standby take writes, and wait until it does."""
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return (self._data / "postmaster.pid").exists()

    def url(self, database: str = "postgres", *others: "Cluster", **options: str) -> str:
        """The URL of a database in it; with others, of whichever answers as `options` ask."""
        hosts = "&".join(f"host=127.0.0.1:{it.port}" for it in (self, *others))
        return f"postgresql+psycopg://postgres@/{database}?" + "&".join([hosts, *map("=".join, options.items())])

    def _run(self, program: str, *argv: str | Path) -> None:
        """Run one of PostgreSQL's programs, which do not run as root."""
        path = (postgresql.programs() or Path(postgresql.wheel().__file__).parent / "pginstall" / "bin") / program
        done = subprocess.run(
            [path, *argv], user=user(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, cwd="/"
        )
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"


def user() -> str | None:
    """Who runs programs that refuse to run as root; None for who runs the tests."""
    if os.getuid() != 0:
        return None
    postgresql.wheel().utils.ensure_user_exists("pgserver")
    return "pgserver"


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL can use even where the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="lamplighter-pg-", dir=postgresql.place()))
    if (owner := user()) is not None:
        shutil.chown(path, owner)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running() -> Iterator[Cluster]:
    """A PostgreSQL that runs, and that a test may stop."""
    with folder() as path:
        made = Cluster.new(path)
        made.start()
        yield made
        if made.is_running:
            made.stop()
