"""By which timings hosts may still fire that were away when a schedule's timing changed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """To this revision."""
    op.add_column("schedules", sa.Column("earlier", sa.JSON(), server_default="[]", nullable=False))


def downgrade() -> None:
    """Back from it."""
    op.drop_column("schedules", "earlier")
