"""Keys of hosts outside a cluster."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "enrolments",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_enrolments_host_hosts"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_enrolments")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_enrolments_token_hash")),
    )
    op.create_table(
        "host_keys",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_host_keys_host_hosts"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_host_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_host_keys_key_hash")),
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("host_keys")
    op.drop_table("enrolments")
