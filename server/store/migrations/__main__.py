"""Writes the next revision: `python -m server.store.migrations "why"`."""

import sys
import tempfile

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from server.store import migrations


def main(why: str) -> None:
    """Compare the models with a database at the last revision, and write what is between as a new revision."""
    with tempfile.TemporaryDirectory() as folder:
        engine = sa.create_engine(f"sqlite:///{folder}/empty.db")
        with engine.begin() as conn:
            migrations.upgrade(conn)
            settings = migrations.config(conn)
            number = len(list(ScriptDirectory.from_config(settings).walk_revisions())) + 1
            command.revision(settings, why, autogenerate=True, rev_id=f"{number:04}")
        engine.dispose()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or sys.exit('usage: python -m server.store.migrations "why"'))
