"""History is kept as long as the operator says; the last run and last success of each schedule and host always stay."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from server.observe import history
from server.observe.history import HistoryRetention
from server.store import history as history_statements
from server.store.audit import record_audit
from server.store.engine import Store
from server.store.jobs import jobs_finished, jobs_retried, record_jobs
from server.store.logs import log_lines
from server.store.rows import AuditRow, JobRow, Retry
from server.store.tables import AUDIT, JOB_ATTEMPTS, JOB_LOGS, JOBS
from wire.messages import JobEnd, JobFinished

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(tmp_path / "lamplighter.db")
    yield store
    await store.close()


async def put(store: Store, *jobs: tuple[Any, ...]) -> None:
    """Record jobs, as (id, days ago, schedule, host); those whose id ends in "!" stay open, and in "-" have failed."""
    for job_id, days, schedule, host in jobs:
        at = NOW - timedelta(days=days)
        due = at if schedule else None
        row = JobRow(job_id, host, "backup", "schedule", "ns/etc", schedule, due, 0, "{}", at)
        await store.write(record_jobs, [row])
        if not job_id.endswith("!"):
            await store.write(jobs_finished, [JobFinished(job_id, _status(job_id), at)])


def _status(job_id: str) -> JobEnd:
    return "failed" if job_id.endswith("-") else "succeeded"


async def left(store: Store, keep: HistoryRetention) -> Any:
    await history.delete(store, keep, NOW, pause_s=0)
    return await store.read(lambda conn: set(conn.execute(sa.select(JOBS.c.id)).scalars()))


async def test_jobs_are_kept_for_so_many_days(store: Store) -> None:
    await put(store, ("old", 91, "s", "a"), ("young", 89, "s", "a"), ("asked", 91, None, "a"))
    assert await left(store, HistoryRetention(days=90)) == {"young"}


async def test_so_many_jobs_are_kept(store: Store) -> None:
    await put(store, *((f"{day}", day, "s", "a") for day in range(10)))
    assert await left(store, HistoryRetention(jobs=3)) == {"0", "1", "2"}


async def test_the_last_that_ended_of_a_schedule_on_a_host_stays_and_so_do_open_ones(store: Store) -> None:
    pairs = [(f"{schedule}{host}", 200, schedule, host) for schedule in "st" for host in "ab"]
    older = [(f"older {schedule}{host}", 300, schedule, host) for _, _, schedule, host in pairs]
    await put(store, *older, *pairs, ("open!", 400, "s", "a"), ("newer!", 100, "t", "b"))
    assert await left(store, HistoryRetention()) == {"sa", "sb", "ta", "tb", "open!", "newer!"}


async def test_the_last_success_of_a_schedule_on_a_host_stays_however_often_it_failed_since(store: Store) -> None:
    failed = [(f"{days}-", days, "s", "a") for days in (95, 150, 250)]
    await put(store, ("older", 300, "s", "a"), ("old", 200, "s", "a"), *failed, ("never-", 200, "s", "b"))
    assert await left(store, HistoryRetention()) == {"old", "95-", "never-"}


async def test_attempts_and_logs_go_with_their_job(store: Store) -> None:
    await put(store, ("old!", 91, "s", "a"), ("young", 1, "s", "a"))
    await store.write(jobs_retried, [Retry(JobFinished("old!", "failed", NOW), 1, NOW)])
    for job_id in ("old!", "young"):
        await store.write(log_lines, (job_id, NOW, ["line"]))
    await store.write(jobs_finished, [JobFinished("old!", "failed", NOW)])
    assert await left(store, HistoryRetention()) == {"young"}
    for table, kept in ((JOB_ATTEMPTS, []), (JOB_LOGS, ["young"])):
        found = await store.read(lambda conn, table: list(conn.execute(sa.select(table.c.job_id)).scalars()), table)
        assert found == kept


async def test_more_than_one_batch_is_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_statements, "BATCH", 3)
    await put(store, *((f"{at}", 200 + at, "s", "ab"[at % 2]) for at in range(20)))
    for days in range(20):
        await store.write(record_audit, AuditRow(NOW - timedelta(days=100 - days), "user", "me", "run", "X", "x", {}))
    assert await left(store, HistoryRetention(days=90)) == {"0", "1"}
    ages = await store.read(lambda conn: [NOW - at for at in conn.execute(sa.select(AUDIT.c.at)).scalars()])
    assert ages == [timedelta(days=days) for days in range(90, 80, -1)]


async def test_nothing_is_deleted_that_may_stay(store: Store) -> None:
    await put(store, ("1", 1, "s", "a"), ("2", 2, "s", "a"))
    assert await left(store, HistoryRetention()) == {"1", "2"}
