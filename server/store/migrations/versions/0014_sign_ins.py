"""Lets people sign in to the pages: links that work once, and sessions that were ended before they expired."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "sign_in_links",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sign_in_links"),
    )
    op.create_index("ix_sign_in_links_expires_at", "sign_in_links", ["expires_at"])
    op.create_table(
        "ended_sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_ended_sessions"),
    )
    op.create_index("ix_ended_sessions_expires_at", "ended_sessions", ["expires_at"])


def downgrade() -> None:
    """Back from it."""
    op.drop_table("ended_sessions")
    op.drop_table("sign_in_links")
