"""Which hosts are drained, and which agents are about to stop."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_FLAGS = (("hosts", "drains"), ("connections", "stops"), ("connections", "drains"))


def upgrade() -> None:
    """To this revision."""
    op.add_column("hosts", sa.Column("drained_by", sa.String(253), server_default="", nullable=False))
    for table, name in _FLAGS:
        op.add_column(table, sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Back from it."""
    for table, name in reversed(_FLAGS):
        op.drop_column(table, name)
    op.drop_column("hosts", "drained_by")
