"""However jobs are filtered, a page of them costs what it shows, and not what is stored: on SQLite and PostgreSQL."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from server.jobs.kinds import READ_KINDS
from server.store import jobs as job_statements
from server.store import load, migrations
from server.store.database import engine
from server.store.jobs import list_jobs
from server.store.load import last_ends
from server.store.tables import JOBS
from tests.integration.conftest import SQLITE

COUNT = 20_000
NOON = datetime(2026, 3, 6, 12, tzinfo=UTC)
VALUES = {
    "host": ("host-7", "nowhere"),
    "scheduled_id": ("s3", "none"),
    "kind": ("backup", "forget", "prune"),
    "status": ("pending", "running", "succeeded", "failed", "cancelled"),
    "actor_kind": ("schedule", "run", "user"),
}
"""What some jobs have, most jobs have, and none has, in each column that jobs are filtered by."""
FILTERS = [
    dict(zip(names, values, strict=True))
    for count in range(len(VALUES) + 1)
    for names in itertools.combinations(VALUES, count)
    for values in itertools.product(*(VALUES[name] for name in names))
]
PREFIXES = ("", "a", "a1", "a1b", "a1b2", "a1b2c3d4")
EXAMINED = 200


@pytest.fixture(scope="module", params=[SQLITE, "postgresql"])
def conn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A database with jobs of 10 schedules on 100 hosts, of which most succeeded."""
    if request.param == "sqlite":
        made = engine(sa.URL.create("sqlite", database=str(_path(tmp_path_factory))), 1, writes=True)
    else:
        made = engine(request.getfixturevalue("databases").new_migrated(), 1, writes=True)
    with made.connect() as conn:
        if request.param == "sqlite":
            migrations.upgrade(conn)
        conn.exec_driver_sql(_MANY[request.param])
        conn.exec_driver_sql(_HOSTS[request.param])
        if request.param == "postgresql":
            conn.exec_driver_sql("ANALYZE")
        yield conn
        conn.rollback()
    made.dispose()


def _path(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("listing") / "jobs.db"


_INSERT = """
    INSERT INTO jobs (id, host, kind, actor_kind, actor_id, scheduled_id, scheduled_at, missed, status, command,
                      created_at, finished_at, sent, attempt, cancel_requested, lane, exclusive, serial, deferred,
                      ready, holds)
    SELECT {id}, 'host-' || (n % 100), CASE WHEN n % 1000 / 100 = 9 THEN 'forget' ELSE 'backup' END,
           CASE WHEN n % 97 = 0 THEN 'run' ELSE 'schedule' END, 'x', 's' || (n % 1000 / 100), {at}, 0,
           CASE WHEN n > 19900 THEN 'running' WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END, '{{}}',
           {at}, {at}, true, 1, false, '', false, false, false, false, false
    FROM {numbers}
"""
_MANY = {
    "sqlite": f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {COUNT})"  # noqa: S608
    + _INSERT.format(
        id="lower(hex(randomblob(16)))",
        at="strftime('%Y-%m-%dT%H:%M:%f000Z', 1772798400 - 60 * (20000 - n), 'unixepoch')",
        numbers="numbers",
    ),
    "postgresql": _INSERT.format(
        id="md5(n::text)",
        at="timestamptz '2026-03-06 12:00Z' - (20000 - n) * interval '1 min'",
        numbers=f"generate_series(1, {COUNT}) AS n",
    ).replace("%", "%%"),
}
_HOST = """
    INSERT INTO hosts (name, labels, created_at, since, desired_version, desired_digest, applied_version,
                       applied_digest, agent_version)
    SELECT DISTINCT host, '{}', min(created_at), min(created_at), 0, '', 0, '', '' FROM jobs GROUP BY host
"""
_HOSTS = {"sqlite": _HOST, "postgresql": _HOST.replace("'{}'", "CAST('{}' AS json)").replace("DISTINCT ", "")}


class Cost:
    """Counts what statements on a connection go through: steps of SQLite's machine, or rows of PostgreSQL's plans."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._said: list[tuple[str, Any]] = []
        self._steps = 0

    def __enter__(self) -> "Cost":
        if self._conn.dialect.name == "sqlite":
            self._driver.set_progress_handler(self._step, 100)
        else:
            sa.event.listen(self._conn, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._conn.dialect.name == "sqlite":
            self._driver.set_progress_handler(None, 0)
        else:
            sa.event.remove(self._conn, "before_cursor_execute", self._note)

    @property
    def _driver(self) -> Any:
        return self._conn.connection.driver_connection

    def _step(self) -> None:
        self._steps += 1

    def _note(self, _conn: object, _cursor: object, statement: str, parameters: Any, *_more: object) -> None:
        self._said.append((statement, parameters))

    @property
    def rows(self) -> float:
        """About how many rows were read. SQLite needs some 10 to 100 steps for one of them."""
        if self._conn.dialect.name == "sqlite":
            return self._steps * 100 / 50
        return sum(self._read(*said) for said in self._said)

    def _read(self, statement: str, parameters: Any) -> float:
        explained = self._conn.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        nodes, rows = [explained.scalar_one()[0]["Plan"]], 0.0
        while nodes:
            node = nodes.pop()
            nodes += node.get("Plans", ())
            if "Relation Name" in node:
                rows += node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        return rows


def listed(conn: Connection, filters: dict[str, str], prefix: str = "", leave_out: Sequence[str] = ()) -> list[str]:
    """The ids of all pages."""
    ids, after = [], None
    while True:
        page = list_jobs(conn, filters, after, 1000, prefix, leave_out)
        ids += [row["id"] for row in page.rows]
        if (after := page.next) is None:
            return ids


def test_a_page_of_jobs_costs_no_more_than_what_is_examined_for_it_whatever_the_filters(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_statements, "EXAMINED", EXAMINED)
    costs = []
    for filters in FILTERS:
        for prefix in PREFIXES if len(filters) < 2 else PREFIXES[:1]:
            with Cost(conn) as cost:
                list_jobs(conn, filters, None, 20, prefix, READ_KINDS)
            costs.append((cost.rows, filters, prefix))
    worst = max(costs, key=lambda it: it[0])
    assert worst[0] < COUNT / 5, worst  # PostgreSQL may sort what little the index finds


@pytest.mark.parametrize("prefix", ["", "a", "a1b2"])
def test_pages_have_every_job_that_was_asked_for_once_and_in_order(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setattr(job_statements, "EXAMINED", EXAMINED)
    for filters in FILTERS[::7]:
        wanted = sa.select(JOBS.c.id).where(
            *(JOBS.c[name] == value for name, value in filters.items()), JOBS.c.id.startswith(prefix)
        )
        ids = conn.execute(wanted.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc())).scalars().all()
        assert listed(conn, filters, prefix) == ids, filters


def test_the_last_end_of_each_pair_is_found_without_reading_all_jobs(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "RECENT", 1)
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql("SET LOCAL enable_seqscan = off")  # it would read a table this small as a whole
    with Cost(conn) as cost:
        ends = list(last_ends(conn, NOON))
    assert len(ends) == 1000
    assert cost.rows < COUNT
