"""Keeps the queue of jobs in the database: the lane of each open job, its place there, and who has a slot."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0009"
down_revision = "0008"

_LANE = sa.String(320).with_variant(sa.String(320, collation="C"), "postgresql")
"""In the order of its bytes on every database: the lanes of a repository are found by a range."""
_TIMES = ("queued_at", "start_by", "hangs_at")
_FLAGS = ("exclusive", "serial", "deferred", "ready", "holds")
_OPEN = "status IN ('pending', 'running')"
_INDEXES = {
    "ix_jobs_open_host_id": (["host", "id"], _OPEN),
    "ix_jobs_lane_ready": (["lane", "queued_at", "id"], "ready"),
    "ix_jobs_lane_holds": (["lane", "exclusive"], "holds"),
    "ix_jobs_open_pair": (["scheduled_id", "host", "queued_at", "id"], _OPEN),
    "ix_jobs_deferred": (["not_before"], "deferred"),
    "ix_jobs_hangs_at": (["hangs_at"], "status = 'running'"),
    "ix_jobs_start_by": (["start_by"], "status = 'pending' AND NOT sent AND start_by IS NOT NULL"),
}


def upgrade() -> None:
    """To this revision. The server that starts next finds the places of jobs that are open by their `queued_at`."""
    op.add_column("jobs", sa.Column("lane", _LANE, server_default="", nullable=False))
    op.add_column("jobs", sa.Column("cancel_reason", sa.Text(), nullable=True))
    for name in _TIMES:
        op.add_column("jobs", sa.Column(name, UtcDateTime(), nullable=True))
    for name in _FLAGS:
        op.add_column("jobs", sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False))
    op.drop_index("ix_jobs_open_host", "jobs")
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_table(
        "connections",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("server", sa.String(32), nullable=True),
        sa.Column("lost_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name="fk_connections_host_hosts", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host", name="pk_connections"),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("connections")
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    where = sa.text(_OPEN)
    op.create_index("ix_jobs_open_host", "jobs", ["host"], sqlite_where=where, postgresql_where=where)
    for name in (*_FLAGS, *_TIMES, "cancel_reason", "lane"):
        op.drop_column("jobs", name)
