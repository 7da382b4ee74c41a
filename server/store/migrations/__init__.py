"""Migrations bring a database of any earlier version to the tables of `server.store.tables`, when the store is opened.

After a change of the models, write the next revision with `python -m server.store.migrations "why"` and read what it
wrote: it compares the models with what the revisions so far make. A test fails until they agree.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class UnknownRevisionError(Exception):
    """The database was written by a version of Lamplighter that is newer than this one."""


def config(conn: Connection) -> Config:
    """Alembic's configuration, on a connection whose transaction the caller owns."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = conn
    return made


def upgrade(conn: Connection) -> None:
    """Bring the database to this version's tables, all or nothing. Raises UnknownRevisionError for a newer one."""
    settings = config(conn)
    current = MigrationContext.configure(conn).get_current_heads()
    known = {revision.revision for revision in ScriptDirectory.from_config(settings).walk_revisions()}
    if unknown := set(current) - known:
        raise UnknownRevisionError(
            f"the database is at revision {', '.join(sorted(unknown))}, which this version does not know: "
            "run the version that wrote it, or a newer one"
        )
    command.upgrade(settings, "head")
