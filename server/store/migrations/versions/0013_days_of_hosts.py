"""Counts, for each host and day, how jobs went, so that no page has to scan the jobs. Filled from those there are."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_DAY = {"sqlite": "substr(jobs.finished_at, 1, 10)", "postgresql": "CAST(jobs.finished_at AT TIME ZONE 'UTC' AS date)"}
"""The day, in UTC, on which a job ended."""
_FILL = """
    INSERT INTO host_days (host, day, namespace, succeeded, warned, failed, bytes_added)
    SELECT jobs.host, {day}, coalesce(schedules.namespace, ''),
           sum(CASE WHEN jobs.status = 'succeeded' THEN 1 ELSE 0 END),
           sum(CASE WHEN jobs.status = 'warning' THEN 1 ELSE 0 END),
           sum(CASE WHEN jobs.status IN ('succeeded', 'warning') THEN 0 ELSE 1 END),
           sum(coalesce(jobs.bytes_added, 0))
    FROM jobs LEFT JOIN schedules ON schedules.id = jobs.scheduled_id
    WHERE jobs.scheduled_id IS NOT NULL AND jobs.status NOT IN ('pending', 'running') AND jobs.finished_at IS NOT NULL
    GROUP BY 1, 2, 3
"""
_SUM = """
    INSERT INTO host_days (host, day, namespace, succeeded, warned, failed, bytes_added)
    SELECT '', day, namespace, sum(succeeded), sum(warned), sum(failed), sum(bytes_added)
    FROM host_days GROUP BY day, namespace
"""


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "host_days",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        *(sa.Column(it, sa.BigInteger(), nullable=False) for it in ("succeeded", "warned", "failed", "bytes_added")),
        sa.PrimaryKeyConstraint("host", "day", "namespace", name="pk_host_days"),
    )
    op.create_index("ix_host_days_day", "host_days", ["day"])
    op.execute(_FILL.format(day=_DAY[op.get_bind().dialect.name]))
    op.execute(_SUM)


def downgrade() -> None:
    """Back from it."""
    op.drop_table("host_days")
