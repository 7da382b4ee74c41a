"""Every database gets the tables that the models describe, and a newer database is left alone."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from server.store import migrations
from server.store.engine import Store, StoreError
from server.store.tables import Base


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/lamplighter.db")
    with engine.begin() as conn:
        yield conn
    engine.dispose()


def test_the_revisions_make_what_the_models_describe(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    assert compare_metadata(MigrationContext.configure(conn), Base.metadata) == []


def test_constraints_and_indexes_are_those_of_the_models(conn: sa.Connection) -> None:
    """What compare_metadata does not look at: primary and foreign keys, conditions of indexes."""
    migrations.upgrade(conn)
    query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL"
    migrated: dict[str, str] = dict(conn.exec_driver_sql(query).all())
    engine = sa.create_engine("sqlite://")
    with engine.begin() as fresh:
        Base.metadata.create_all(fresh)
        described: dict[str, str] = dict(fresh.exec_driver_sql(query).all())
    engine.dispose()
    assert {name: _words(sql) for name, sql in migrated.items()} == {
        name: _words(sql) for name, sql in described.items()
    }


def test_upgrading_again_changes_nothing(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    migrations.upgrade(conn)


def test_the_first_revision_can_be_taken_back(conn: sa.Connection) -> None:
    migrations.upgrade(conn)
    command.downgrade(migrations.config(conn), "base")
    assert sa.inspect(conn).get_table_names() == ["alembic_version"]


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lamplighter.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        conn.execute("INSERT INTO alembic_version VALUES ('9999')")
    conn.close()
    with pytest.raises(StoreError, match="revision 9999, which this version does not know"):
        Store.open(path)
    with sqlite3.connect(path) as conn:
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("alembic_version",)]
    conn.close()


def _words(sql: str) -> list[str]:
    return sorted(sql.replace(",", " ").replace("(", " ( ").replace(")", " ) ").split())
