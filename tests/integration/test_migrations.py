"""Every database gets the tables that the models describe, and a newer database is left alone."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from server.access.identity import Files
from server.access.vault import Vault
from server.app import assemble
from server.store import migrations
from server.store.engine import Store, StoreError
from server.store.futures import stored
from server.store.jobs import get_job
from server.store.ownership import probe
from server.store.tables import Actor, Base, UtcDateTime
from tests.integration.conftest import SQLITE, join
from tests.postgresql import Databases
from wire.messages import CommandRun, JobFinished

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@pytest.fixture(params=[SQLITE, "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    return (
        f"sqlite:///{tmp_path}/lamplighter.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    )


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        yield conn
    engine.dispose()


@pytest.fixture
def conn(database: str) -> Iterator[sa.Connection]:
    with connected(database) as conn:
        yield conn


def test_the_revisions_make_what_the_models_describe(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    assert compare_metadata(MigrationContext.configure(conn), Base.metadata) == []


def test_constraints_and_indexes_are_those_of_the_models(
    conn: sa.Connection, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What compare_metadata does not look at: primary and foreign keys, conditions of indexes."""
    migrations.upgrade(conn)
    on_sqlite = conn.dialect.name == "sqlite"
    with connected("sqlite://" if on_sqlite else other(request)) as fresh:
        Base.metadata.create_all(fresh)
        assert definitions(conn) == definitions(fresh)


def other(request: pytest.FixtureRequest) -> str:
    """The URL of another empty database in PostgreSQL."""
    databases: Databases = request.getfixturevalue("databases")
    return databases.new().render_as_string(hide_password=False)


DEFINITIONS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL",
    "postgresql": "SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace AND conrelid <> COALESCE(to_regclass('alembic_version'), 0) "
    "UNION SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
}


def definitions(conn: sa.Connection) -> dict[str, list[str]]:
    """The words of each definition in a database, by its name."""
    return {name: _words(sql) for name, sql in conn.exec_driver_sql(DEFINITIONS[conn.dialect.name])}


def test_upgrading_again_changes_nothing(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    migrations.upgrade(conn)


def test_the_first_revision_can_be_taken_back(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    command.downgrade(migrations.config(conn), "base")
    assert sa.inspect(conn).get_table_names() == ["alembic_version"]


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(database: str) -> None:
    with connected(database) as conn:
        conn.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        conn.exec_driver_sql("INSERT INTO alembic_version VALUES ('9999')")
    with pytest.raises(StoreError, match="revision 9999, which this version does not know"):
        Store.open(database)
    with connected(database) as conn:
        assert definitions(conn) == {}
        assert sa.inspect(conn).get_table_names() == ["alembic_version"]


def _words(sql: str) -> list[str]:
    return sorted(sql.replace(",", " ").replace("(", " ( ").replace(")", " ) ").split())


# Open jobs of a database from before the queue.


OLD_JOBS: list[dict[str, Any]] = [
    {"id": "waits"},
    {"id": "unheard", "sent": True},
    {"id": "taken", "sent": True},
    {"id": "runs", "sent": True, "status": "running", "accepted_at": NOW},
    {"id": "failed", "schedule": "bin", "attempt": 2, "not_before": NOW + timedelta(minutes=1)},
    {"id": "late", "schedule": "etc", "created_at": NOW - timedelta(minutes=11)},
    {"id": "first", "schedule": "srv", "sent": True, "status": "running", "accepted_at": NOW},
    {"id": "second", "schedule": "srv"},
    {"id": "ended", "status": "succeeded", "finished_at": NOW},
]


def record_as_before(conn: sa.Connection, ids: dict[str, str], repository: str) -> None:
    """Take the database back to the revision before the queue, and record jobs as that release did."""
    command.downgrade(migrations.config(conn), "0008")
    jobs = sa.Table("jobs", sa.MetaData(), *(sa.Column(it["name"], it["type"]) for it in columns(conn)))
    for given in OLD_JOBS:
        schedule = ids.get(given.get("schedule", ""), "")
        made = CommandRun(given["id"], "backup", [], repository, schedule_id=schedule)
        row = {"host": "a", "kind": "backup", "actor_kind": "user", "actor_id": "me", "created_at": NOW, "missed": 0}
        row |= {"status": "pending", "command": msgspec.json.encode(made).decode(), "scheduled_id": schedule or None}
        row |= {name: value for name, value in given.items() if name != "schedule"}
        its = {
            name: UtcDateTime().process_bind_param(it, conn.dialect) if isinstance(it, datetime) else it
            for name, it in row.items()
        }
        conn.execute(sa.insert(jobs).values(its))


def columns(conn: sa.Connection) -> Any:
    return sa.inspect(conn).get_columns("jobs")


class World:
    """A server on a database, whose clock is set by hand, and what it sends to hosts."""

    def __init__(self, store: Store) -> None:
        self.store, self.now = store, NOW
        self.vault = Vault([Vault.new_key()])
        self.parts = assemble(store, self.vault, lambda: self.now, lambda: uuid4().hex, Files("admin", "agent"))
        self.sent: list[str] = []
        hub: Any = self.parts.services.hub
        hub.deliver = lambda _host, effects: self.sent.extend(
            it.job_id for effect in effects for it in effect.messages if isinstance(it, CommandRun)
        )

    async def declare(self) -> dict[str, str]:
        """Declare schedules and a host; the ids of the schedules, and of the repository as "repository"."""
        services, me = self.parts.services, Actor("user", "me")
        main = {"metadata": {"namespace": "ns", "name": "main"}, "spec": {"url": "/backup"}}
        ids = {"repository": (await services.repositories.put(me, main))[0]["id"]}
        base = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/"]}, "repositoryRef": {"name": "main"}}
        retry = {"retry": {"limit": 2, "backoffSeconds": 60}}
        for name, more in (("etc", {"startingDeadlineSeconds": 600}), ("srv", {}), ("bin", retry)):
            manifest = {"metadata": {"namespace": "ns", "name": name}, "spec": base | more}
            ids[name] = (await services.schedules.put(me, manifest))[0]["id"]
        await services.hosts.put(me, "a", {})
        return ids

    async def settled(self) -> None:
        """What was begun is stored, and what follows from it too."""
        for _ in range(5):
            await self.store.write(probe, self.now)

    async def status(self, job_id: str) -> str:
        row = await self.store.read(get_job, job_id)
        assert row is not None
        return str(row["status"])


@pytest.mark.anyio
async def test_open_jobs_of_a_database_from_before_the_queue_go_on(database: str) -> None:
    store = await asyncio.to_thread(Store.open, database)
    ids = await World(store).declare()
    await store.close()
    engine = sa.create_engine(database)
    with engine.begin() as conn:
        record_as_before(conn, ids, ids["repository"])
    engine.dispose()
    store = await asyncio.to_thread(Store.open, database)
    world = World(store)
    await world.parts.loader.load(store, world.vault)
    jobs, reports = world.parts.services.dispatcher, world.parts.reports
    await join(world.parts)
    await world.settled()
    assert (await world.status("late"), world.sent) == ("failed", [])
    await stored(jobs.connected("a", ["taken", "runs", "first"]))
    assert world.sent == ["unheard", "waits"]
    await stored(reports.accept("a", ["taken", *world.sent]))
    world.now += timedelta(minutes=1)
    jobs.advance()
    await world.settled()
    assert world.sent == ["unheard", "waits", "failed.2"]
    await stored(reports.finish("a", [JobFinished("first", "succeeded", NOW)]))
    assert world.sent[3:] == ["second"]
    ends = [JobFinished(it, "succeeded", NOW) for it in ("waits", "unheard", "taken", "runs", "failed.2", "second")]
    await stored(reports.finish("a", ends))
    found = {job["id"]: await world.status(job["id"]) for job in OLD_JOBS}
    assert found == {job["id"]: "failed" if job["id"] == "late" else "succeeded" for job in OLD_JOBS}
    jobs.close()
    await store.close()
