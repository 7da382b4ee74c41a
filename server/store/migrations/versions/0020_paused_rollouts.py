"""The hosts that fail in the rollout of a schedule that pauses, and the schedules that are paused."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "rollout_failures",
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", "host", name="pk_rollout_failures"),
    )
    op.create_index("ix_rollout_failures_host", "rollout_failures", ["host"])
    op.create_table(
        "rollout_pauses",
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("paused_at", UtcDateTime(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("hosts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name="pk_rollout_pauses"),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("rollout_pauses")
    op.drop_table("rollout_failures")
