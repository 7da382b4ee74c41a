"""Lets several servers work on one database: who they are, what each changed, and what only one had in memory."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0010"
down_revision = "0009"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INDEXES = {
    "ix_jobs_sent_pair": (["scheduled_id", "host"], "status IN ('pending', 'running') AND sent"),
    "ix_jobs_waiting_pair": (
        ["scheduled_id", "host", "serial", "queued_at", "id"],
        "status = 'pending' AND NOT sent AND NOT deferred",
    ),
    "ix_jobs_ready_pair": (["scheduled_id", "host"], "ready AND serial"),
    "ix_jobs_other_kind": (["kind", "created_at", "id"], "kind <> 'backup'"),
    "ix_jobs_other_actor": (["actor_kind", "created_at", "id"], "actor_kind <> 'schedule'"),
    "ix_jobs_other_status": (["status", "created_at", "id"], "status <> 'succeeded'"),
}
_TABLES = ("servers", "change_head", "change_log", "news", "job_progress", "listings", "controllers")


def upgrade() -> None:
    """To this revision."""
    op.add_column("hosts", sa.Column("session", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("connections", sa.Column("session", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("connections", sa.Column("instance", sa.String(64), server_default="", nullable=False))
    op.add_column("connections", sa.Column("hello", sa.JSON(), nullable=True))
    op.create_index("ix_connections_server", "connections", ["server"])
    op.execute("UPDATE jobs SET sent = true WHERE status = 'running' AND NOT sent")  # of before jobs were marked so
    op.create_index("ix_jobs_host_created_at", "jobs", ["host", "created_at"])
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_table(
        "servers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("news", sa.BigInteger(), nullable=False),
        sa.Column("stopping", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_servers"),
    )
    head = op.create_table(
        "change_head",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("sessions", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change_head"),
    )
    op.bulk_insert(head, [{"id": 1, "revision": 0}])
    op.create_table(
        "change_log",
        sa.Column("revision", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_change_log"),
    )
    op.create_table(
        "news",
        sa.Column("id", _ID, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("server", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_news"),
    )
    op.create_index("ix_news_at", "news", ["at"])
    op.create_table(
        "job_progress",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_progress_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_progress"),
    )
    op.create_table(
        "listings",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_listings"),
    )
    op.create_index("ix_listings_at", "listings", ["at"])
    op.create_table(
        "controllers",
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_controllers"),
    )


def downgrade() -> None:
    """Back from it."""
    for name in reversed(_TABLES):
        op.drop_table(name)
    for name in (*_INDEXES, "ix_jobs_host_created_at"):
        op.drop_index(name, "jobs")
    op.drop_index("ix_connections_server", "connections")
    for name in ("hello", "instance", "session"):
        op.drop_column("connections", name)
    op.drop_column("hosts", "session")
