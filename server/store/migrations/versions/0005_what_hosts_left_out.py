"""Which entries of its set a host could not put in force."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """To this revision. What hosts left out before it was never told."""
    op.add_column("hosts", sa.Column("left_out", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Back from it."""
    op.drop_column("hosts", "left_out")
