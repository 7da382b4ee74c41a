"""Counts, for each schedule and day, how jobs went, how long they took and what they added. Filled from the jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_SUMS = ("succeeded", "warned", "failed", "backups", "seconds", "longest", "bytes_processed", "bytes_added")
_WORDS = {
    "sqlite": {
        "day": "substr(jobs.finished_at, 1, 10)",
        "repository": "json_extract(jobs.command, '$.repository')",
        "parted": "substr(its.repository, 1, instr(its.repository || '/', '/') - 1)",
        "seconds": "CAST(86400 * (julianday(jobs.finished_at) - julianday(jobs.started_at)) AS INTEGER)",
    },
    "postgresql": {
        "day": "CAST(jobs.finished_at AT TIME ZONE 'UTC' AS date)",
        "repository": "CAST(jobs.command AS json) ->> 'repository'",
        "parted": "split_part(its.repository, '/', 1)",
        "seconds": "CAST(floor(extract(epoch FROM jobs.finished_at - jobs.started_at)) AS bigint)",
    },
}
"""Of an ended job: its day in UTC, the id of its repository, which a slash and a host may follow, and its duration."""
_FILL = """
    INSERT INTO schedule_days (repository_id, day, schedule_id, succeeded, warned, failed, backups, seconds, longest,
                               bytes_processed, bytes_added)
    SELECT {parted}, its.day, its.scheduled_id,
           sum(CASE WHEN its.status = 'succeeded' THEN 1 ELSE 0 END),
           sum(CASE WHEN its.status = 'warning' THEN 1 ELSE 0 END),
           sum(CASE WHEN its.status IN ('succeeded', 'warning') THEN 0 ELSE 1 END),
           sum(CASE WHEN its.status IN ('succeeded', 'warning') AND its.snapshot_id <> '' AND its.processed > 0
               THEN 1 ELSE 0 END),
           sum(its.seconds), max(its.seconds), sum(its.processed), sum(its.added)
    FROM (SELECT jobs.scheduled_id, jobs.status, coalesce(jobs.snapshot_id, '') AS snapshot_id, {day} AS day,
                 coalesce({repository}, '') AS repository, coalesce(jobs.bytes_processed, 0) AS processed,
                 coalesce(jobs.bytes_added, 0) AS added,
                 CASE WHEN jobs.started_at < jobs.finished_at THEN {seconds} ELSE 0 END AS seconds
          FROM jobs
          WHERE jobs.scheduled_id IS NOT NULL AND jobs.status NOT IN ('pending', 'running')
                AND jobs.finished_at IS NOT NULL) AS its
    GROUP BY 1, 2, 3
"""


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "schedule_days",
        sa.Column("repository_id", sa.String(32), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("schedule_id", sa.String(32), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint("repository_id", "day", "schedule_id", name="pk_schedule_days"),
    )
    op.create_index("ix_schedule_days_schedule_id_day", "schedule_days", ["schedule_id", "day"])
    op.execute(_FILL.format(**_WORDS[op.get_bind().dialect.name]))


def downgrade() -> None:
    """Back from it."""
    op.drop_table("schedule_days")
