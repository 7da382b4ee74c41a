"""Which server the store belongs to."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "store_owner",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("server", sa.String(32), nullable=False),
        sa.Column("probed_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store_owner")),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("store_owner")
