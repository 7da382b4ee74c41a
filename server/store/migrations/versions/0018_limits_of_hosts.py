"""The specs of hosts, and the gates at which jobs are held back for a limit across lanes."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_HELD = sa.text("status = 'pending' AND NOT sent AND gate IS NOT NULL")


def upgrade() -> None:
    """To this revision."""
    op.add_column("hosts", sa.Column("spec", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("jobs", sa.Column("gate", sa.String(320), nullable=True))
    op.add_column("jobs", sa.Column("claims", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index("ix_jobs_gate", "jobs", ["gate", "queued_at", "id"], sqlite_where=_HELD, postgresql_where=_HELD)


def downgrade() -> None:
    """Back from it."""
    op.drop_index("ix_jobs_gate", "jobs")
    op.drop_column("jobs", "claims")
    op.drop_column("jobs", "gate")
    op.drop_column("hosts", "spec")
