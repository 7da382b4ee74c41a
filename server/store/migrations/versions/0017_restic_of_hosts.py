"""The version of restic that hosts have."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """To this revision."""
    op.add_column("hosts", sa.Column("restic_version", sa.String(64), server_default="", nullable=False))


def downgrade() -> None:
    """Back from it."""
    op.drop_column("hosts", "restic_version")
