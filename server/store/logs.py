"""Statements on jobs' logs."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import all_rows
from server.store.rows import Row
from server.store.tables import JOB_LOGS, JOBS

MAX_LOG_LINES = 10_000
"""Maximum lines kept of one job's log. Further lines are dropped, and the last one says so."""
MAX_LOG_BYTES = 1 << 20
"""Maximum bytes kept of one job's log, in UTF-8."""


def log_lines(conn: Connection, items: Sequence[tuple[str, datetime, Sequence[str]]]) -> list[bool]:
    """Append (job id, time, lines) to jobs' logs, up to MAX_LOG_LINES and MAX_LOG_BYTES each.

    Return for each item whether the log takes no further lines: it is full, or the job is unknown.
    """
    found = batch.gathered(
        conn, _log_ends(conn.dialect.name), ((job_id,) for job_id in {job_id for job_id, *_ in items})
    )
    ends: dict[str, tuple[int, int]] = {job_id: (seq or 0, size or 0) for job_id, seq, size in found}
    rows: list[tuple[str, int, datetime, str, int]] = []
    for job_id, at, lines in items:
        if job_id in ends:
            added = list(_log_rows(job_id, at, lines, *ends[job_id]))
            rows += added
            if added:
                ends[job_id] = (added[-1][1], added[-1][4])
    if rows:
        names = ("job_id", "seq", "at", "line", "total_bytes")
        batch.execute(conn, batch.insert_new(conn.dialect.name, JOB_LOGS, names), rows)
    return [job_id not in ends or _is_full(*ends[job_id]) for job_id, *_ in items]


def _is_full(seq: int, size: int) -> bool:
    """Whether a log is full after row number `seq`, at `size` bytes in total."""
    return seq >= MAX_LOG_LINES or size > MAX_LOG_BYTES


def _log_rows(
    job_id: str, at: datetime, lines: Iterable[str], seq: int, size: int
) -> Iterable[tuple[str, int, datetime, str, int]]:
    """Rows for these lines after row number `seq` at `size` bytes; the last row of a full log says that it was cut."""
    for text in lines:
        if _is_full(seq, size):
            return
        line = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL's text cannot hold it
        seq, size = seq + 1, size + len(line.encode(errors="replace"))
        if seq == MAX_LOG_LINES or size > MAX_LOG_BYTES:
            size = max(size, MAX_LOG_BYTES + 1)
            line = f"(log cut here: at most {MAX_LOG_LINES} lines and {MAX_LOG_BYTES} bytes are kept)"
        yield job_id, seq, at, line, size


@cache
def _log_ends(dialect: str) -> str:
    """Select the last line number and the total size of the log of each given job that exists."""
    given = batch.Given(dialect, [JOBS.c.id]).select()
    logs = JOB_LOGS.alias()
    last = sa.select(sa.func.max(logs.c.seq)).where(logs.c.job_id == JOBS.c.id).correlate(JOBS).scalar_subquery()
    to_last = sa.and_(JOB_LOGS.c.job_id == JOBS.c.id, JOB_LOGS.c.seq == last)
    found = sa.select(JOBS.c.id, JOB_LOGS.c.seq, JOB_LOGS.c.total_bytes).select_from(JOBS.outerjoin(JOB_LOGS, to_last))
    return batch.gather(dialect, found.where(JOBS.c.id.in_(given)).subquery())


_SHOWN = (JOB_LOGS.c.seq, JOB_LOGS.c.at, JOB_LOGS.c.line)


def last_lines(conn: Connection, job_id: str, count: int) -> list[Row]:
    """The last lines of a job's log, up to so many, in order."""
    found = sa.select(*_SHOWN).where(JOB_LOGS.c.job_id == job_id).order_by(JOB_LOGS.c.seq.desc()).limit(count)
    return all_rows(conn, found)[::-1]


def list_log(conn: Connection, job_id: str, after: int, limit: int) -> list[Row]:
    """Lines of a job's log in order, starting after line number `after`; the first line has number 1."""
    found = sa.select(*_SHOWN).where(JOB_LOGS.c.job_id == job_id, JOB_LOGS.c.seq > after)
    return all_rows(conn, found.order_by(JOB_LOGS.c.seq).limit(limit))
