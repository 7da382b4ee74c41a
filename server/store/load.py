"""The query by which a server reads its state from the store when it starts."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch, changelog
from server.store.rows import HostRow, Joined, LastEnd, Loaded, Pair, RepositoryRow, ScheduleRow
from server.store.tables import GOOD, HOST_SCHEDULES, HOSTS, JOBS, OPEN, REPOSITORIES, SCHEDULES, UtcDateTime


def load_all(conn: Connection, now: datetime) -> Loaded:
    """All that is declared (credentials stay sealed), and the last end of each schedule on each host."""
    hosts = batch.whole(conn, [HOSTS.c[name] for name in HostRow._fields if name != "drains"], HostRow)  # it follows
    schedules = batch.whole(conn, [SCHEDULES.c[name] for name in ScheduleRow._fields], ScheduleRow)
    repositories = batch.whole(conn, [REPOSITORIES.c[name] for name in RepositoryRow._fields], RepositoryRow)
    joined = batch.whole(conn, [HOST_SCHEDULES.c[name] for name in Joined._fields], Joined)
    return Loaded(hosts, schedules, repositories, list(last_ends(conn, now)), joined, changelog.head(conn))


RECENT = 10
"""How many of the last due times that succeeded are looked at for the latest end: a later run may end before them."""
PAIRS = 500
"""How many pairs of a schedule and a host one statement is about."""

_HAVE_JOBS = sa.text("""
    WITH RECURSIVE pairs (host, scheduled_id) AS (
        SELECT hosts.name, (SELECT min(jobs.scheduled_id) FROM jobs WHERE jobs.host = hosts.name) FROM hosts
        UNION ALL
        SELECT pairs.host, (
            SELECT min(jobs.scheduled_id) FROM jobs
            WHERE jobs.host = pairs.host AND jobs.scheduled_id > pairs.scheduled_id)
        FROM pairs WHERE pairs.scheduled_id IS NOT NULL
    )
    SELECT scheduled_id, host FROM pairs WHERE scheduled_id IS NOT NULL
""")
_RECORDED_AT = sa.func.coalesce(JOBS.c.created_at, JOBS.c.scheduled_at, type_=UtcDateTime)
"""When a job was recorded, as no index has it: all jobs of a pair are found by their unique key."""
_IS_DUE, _HAS_ENDED, _IS_GOOD = JOBS.c.scheduled_at.is_not(None), JOBS.c.status.not_in(OPEN), JOBS.c.status.in_(GOOD)


def last_ends(conn: Connection, now: datetime) -> Iterator[LastEnd]:
    """The last end of each schedule on each host that is known, found by indexes: the jobs before it cost nothing.

    A job recorded after `now` counts as older than the others: the server's clock was ahead when it was recorded.
    """
    pairs = [(schedule_id, host) for schedule_id, host in conn.execute(_HAVE_JOBS)]
    for at in range(0, len(pairs), PAIRS):
        some = pairs[at : at + PAIRS]
        found = list(_of_pairs(conn, some, now))
        yield from found
        if ahead := set(some) - {(it.schedule_id, it.host) for it in found}:
            yield from _of_pairs(conn, sorted(ahead), None)


def _of_pairs(conn: Connection, pairs: Sequence[Pair], now: datetime | None) -> Iterator[LastEnd]:
    """The last end of each of these pairs, of the jobs that were recorded until `now`."""
    found = conn.execute(_ends(conn.dialect.name, now), batch.parameter(pairs)).all()
    ids = [(id_,) for row in found for id_ in (row.due, row.asked) if id_ is not None]
    given = batch.Given(conn.dialect.name, [JOBS.c.id]).select()
    jobs = {job.id: job for job in conn.execute(sa.select(*_SHOWN).where(JOBS.c.id.in_(given)), batch.parameter(ids))}
    for row in found:
        ends = [jobs[id_] for id_ in (row.due, row.asked) if id_ is not None]
        if ends:
            last = max(ends, key=lambda job: (job.created_at, job.id))
            succeeded_at = max((at for at in row[4:] if at is not None), default=None)
            yield LastEnd(
                row.schedule_id,
                row.host,
                last.status,
                last.finished_at,
                succeeded_at,
                last.reason,
                last.error,
                last.created_at,
                last.id,
            )


_SHOWN = [JOBS.c[name] for name in ("id", "created_at", "status", "finished_at", "reason", "error")]


def _ends(dialect: str, now: datetime | None) -> sa.Select[Any]:
    """Select, of each given pair, the ids of the last jobs that ended, and when the last ones ended that succeeded."""
    given = batch.Given(dialect, [JOBS.c.scheduled_id, JOBS.c.host])
    schedule_id, host = given.values
    of_pair = JOBS.c.scheduled_id == schedule_id, JOBS.c.host == host
    recorded_at = _RECORDED_AT
    until = sa.true() if now is None else recorded_at <= sa.literal(now, UtcDateTime)
    come = sa.true() if now is None else JOBS.c.finished_at <= sa.literal(now, UtcDateTime)
    newest_due = JOBS.c.scheduled_at.desc()
    due = sa.select(JOBS.c.id).where(*of_pair, _IS_DUE, _HAS_ENDED, until).order_by(newest_due).limit(1)
    asked = (
        sa.select(JOBS.c.id)
        .where(*of_pair, ~_IS_DUE, _HAS_ENDED, until)
        .order_by(_RECORDED_AT.desc(), JOBS.c.id.desc())
    )
    recent = sa.select(JOBS.c.finished_at).where(*of_pair, _IS_DUE, _IS_GOOD, come).order_by(newest_due).limit(RECENT)
    by_hand = sa.select(JOBS.c.finished_at).where(*of_pair, ~_IS_DUE, _IS_GOOD, come)
    latest = [
        sa.select(sa.func.max(its.c.finished_at, type_=UtcDateTime)).scalar_subquery()
        for its in (query.correlate(given.table).subquery() for query in (recent, by_hand))
    ]
    return sa.select(
        schedule_id.label("schedule_id"),
        host.label("host"),
        due.correlate(given.table).scalar_subquery().label("due"),
        asked.limit(1).correlate(given.table).scalar_subquery().label("asked"),
        *latest,
    ).select_from(given.table)
