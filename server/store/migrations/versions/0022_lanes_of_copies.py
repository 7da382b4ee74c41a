"""The lane of the repository that a copy reads from."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

_LANE = sa.String(320).with_variant(sa.String(320, collation="C"), "postgresql")
_OF_COPIES = "from_lane <> ''"
_INDEXES = {
    "ix_jobs_from_lane_ready": (["from_lane", "queued_at", "id"], f"ready AND {_OF_COPIES}"),
    "ix_jobs_from_lane_holds": (["from_lane"], f"holds AND {_OF_COPIES}"),
    "ix_jobs_copies_ready": (["lane"], f"ready AND {_OF_COPIES}"),
    "ix_jobs_open_copies": (["from_lane"], f"status IN ('pending', 'running') AND {_OF_COPIES}"),
}


def upgrade() -> None:
    """To this revision."""
    op.add_column("jobs", sa.Column("from_lane", _LANE, server_default="", nullable=False))
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def downgrade() -> None:
    """Back from it."""
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    op.drop_column("jobs", "from_lane")
