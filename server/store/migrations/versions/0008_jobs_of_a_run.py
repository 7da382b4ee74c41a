"""Finds the jobs of a run by the run, whatever their ids are."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """To this revision."""
    where = sa.text("actor_kind = 'run'")
    op.create_index("ix_jobs_run", "jobs", ["actor_id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Back from it."""
    op.drop_index("ix_jobs_run", "jobs")
