"""Finds the audit lines about one object without a look at all others."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """To this revision."""
    op.create_index("ix_audit_log_object", "audit_log", ["object_kind", "object_name", "id"])


def downgrade() -> None:
    """Back from it."""
    op.drop_index("ix_audit_log_object", "audit_log")
