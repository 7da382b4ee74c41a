"""Attempts of jobs, and what a job's place in its queue is known by."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """To this revision. A job that was open before it may have been sent."""
    op.add_column("jobs", sa.Column("reason", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("sent", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("jobs", sa.Column("attempt", sa.Integer(), server_default="1", nullable=False))
    op.add_column("jobs", sa.Column("not_before", UtcDateTime(), nullable=True))
    op.add_column("jobs", sa.Column("cancel_requested", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE jobs SET sent = true WHERE status IN ('pending', 'running')")
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("snapshot_id", sa.String(64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reason", sa.String(64), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_attempts_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_job_attempts")),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("job_attempts")
    for column in ("cancel_requested", "not_before", "attempt", "sent", "reason"):
        op.drop_column("jobs", column)
