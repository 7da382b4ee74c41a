"""Since when a schedule should have succeeded on a host."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """To this revision."""
    op.add_column("schedules", sa.Column("enabled_since", UtcDateTime(), nullable=True))
    op.create_table(
        "host_schedules",
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_host_schedules_schedule_id_schedules"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["host"], ["hosts.name"], name=op.f("fk_host_schedules_host_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("schedule_id", "host", name=op.f("pk_host_schedules")),
    )
    op.create_index(op.f("ix_host_schedules_host"), "host_schedules", ["host"])


def downgrade() -> None:
    """Back from it."""
    op.drop_table("host_schedules")
    op.drop_column("schedules", "enabled_since")
