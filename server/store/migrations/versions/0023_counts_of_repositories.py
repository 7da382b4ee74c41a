"""How many snapshots, and how many bytes, repositories hold."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0023"
down_revision = "0022"

_TIMES = ("first_at", "last_at", "newest", "made_at")


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "repository_counts",
        sa.Column("repository_id", sa.String(32), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=True),
        sa.Column("since", sa.BigInteger(), nullable=False),
        *(sa.Column(name, UtcDateTime(), nullable=True) for name in _TIMES),
        sa.PrimaryKeyConstraint("repository_id", "what", "host", name="pk_repository_counts"),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("repository_counts")
