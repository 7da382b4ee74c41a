"""The URLs that Schedules ping."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """To this revision."""
    op.add_column("schedules", sa.Column("ping", sa.Text(), nullable=True))


def downgrade() -> None:
    """Back from it."""
    op.drop_column("schedules", "ping")
