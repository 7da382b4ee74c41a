"""Hosts that schedules with runOnJoin have met."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "met_hosts",
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("due", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name="fk_met_hosts_host_hosts", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name="fk_met_hosts_schedule_id_schedules", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("schedule_id", "host", name="pk_met_hosts"),
    )
    where = sa.text("due")
    op.create_index("ix_met_hosts_due", "met_hosts", ["host"], sqlite_where=where, postgresql_where=where)
    op.create_index("ix_met_hosts_host", "met_hosts", ["host"])


def downgrade() -> None:
    """Back from it."""
    op.drop_table("met_hosts")
