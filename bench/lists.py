"""Rows of lists and pages over REST, and of a server's start, with 10,000 hosts and a million jobs in the store."""

import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from bench.result import FULL, Limits, Result, Row, Size, cpu_figures, median
from bench.servers import Server, change, declare, schedule

SCHEDULES = 10
OPEN = 100
"""Jobs that are open: as many pending as running, and at most half of all. A page of them has to look for more."""
ASKED = 10
"""Requests of each list."""
_JOBS = """
INSERT INTO jobs (id, host, kind, actor_kind, actor_id, scheduled_id, scheduled_at, missed, status, command,
                  created_at, accepted_at, started_at, finished_at, exit_code, snapshot_id, files_processed,
                  bytes_processed, bytes_added, sent, holds, lane, queued_at)
WITH RECURSIVE
    numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :jobs),
    named (place, schedule, name) AS (SELECT row_number() OVER (ORDER BY name) - 1, id, name FROM schedules),
    repository (repository) AS (SELECT id FROM repositories),
    given AS (
        SELECT n, named.*, repository, 'host-' || (n % :hosts) AS on_host, n >= :jobs - :open AS is_open,
               strftime('%Y-%m-%dT%H:%M:%S.', 'now', (n * 86400 / :jobs - 90000) || ' seconds') AS at
        FROM numbers JOIN named ON place = n / :hosts % :schedules, repository
    )
SELECT lower(hex(randomblob(16))), on_host, 'backup', 'schedule', 'bench/' || name, schedule,
       at || printf('%06d', n / :hosts / :schedules) || 'Z', 0,
       CASE WHEN is_open THEN iif(n % 2, 'pending', 'running') ELSE iif(n % 50, 'succeeded', 'failed') END,
       '{"args":["backup","/etc","/home"],"kind":"backup","repository":"' || repository || '"}',
       at || '000000Z', at || '000000Z', at || '000000Z', iif(is_open, NULL, at || '000000Z'),
       iif(is_open, NULL, 0), iif(is_open, NULL, lower(hex(randomblob(32)))), 1000, 1000000, 1000,
       is_open, is_open, iif(is_open, repository || '/' || on_host, ''), at || '000000Z'
FROM given
"""
_HOSTS = """
INSERT INTO hosts (name, labels, created_at, since, desired_version, desired_digest, applied_version, applied_digest,
                   agent_version)
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :hosts)
SELECT 'host-' || n, '{"zone":"' || (n % 20) || '"}', :since, :since, 0, '', 0, '', '' FROM numbers
"""
_DAYS = """
INSERT INTO host_days (host, day, namespace, succeeded, warned, failed, bytes_added)
WITH RECURSIVE days (ago) AS (SELECT 0 UNION ALL SELECT ago + 1 FROM days WHERE ago + 1 < :days)
SELECT name, date('now', -ago || ' days'), 'bench', 10, 0, rowid % 50 = 0, 10000 FROM days, hosts
"""
_SUMS = """
INSERT INTO host_days (host, day, namespace, succeeded, warned, failed, bytes_added)
SELECT '', day, namespace, sum(succeeded), 0, sum(failed), sum(bytes_added) FROM host_days GROUP BY day, namespace
"""
DAYS = 90
MAX_BYTES = 200_000
"""Bytes that a page's data may have, before it is compressed."""
SINCE = "2026-01-01T00:00:00.000000Z"
LISTS = {
    "/jobs": """
        SELECT * FROM jobs WHERE kind NOT IN ('snapshots', 'files') ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/jobs?status=pending": """
        SELECT * FROM jobs WHERE status = 'pending' ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/jobs?status=running": """
        SELECT * FROM jobs WHERE status = 'running' ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/jobs?kind=check": """
        SELECT * FROM jobs WHERE kind = 'check' ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/jobs?host=host-1": """
        SELECT * FROM jobs WHERE host = 'host-1' ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/jobs?schedule=bench/nightly-1": """
        SELECT * FROM jobs WHERE scheduled_id = (SELECT id FROM schedules WHERE name = 'nightly-1')
        ORDER BY created_at DESC, id DESC LIMIT 101""",
    "/schedules": "SELECT * FROM schedules ORDER BY namespace, name LIMIT 101",
    "/hosts": "SELECT * FROM hosts ORDER BY name LIMIT 101",
}
"""The lists that are asked for, and the bare query of each."""
PAGES = {
    "/overview": """
        SELECT day, sum(succeeded), sum(failed), sum(bytes_added) FROM host_days
        WHERE host <> '' AND day > date('now', '-14 days') GROUP BY day""",
    "/overview?namespace=bench": """
        SELECT day, sum(succeeded), sum(failed), sum(bytes_added) FROM host_days
        WHERE host <> '' AND day > date('now', '-14 days') AND namespace = 'bench' GROUP BY day""",
    "/fleet": """
        SELECT host, day, sum(failed), sum(succeeded), sum(bytes_added) FROM host_days
        WHERE host IN (SELECT name FROM hosts ORDER BY name LIMIT 100) AND day > date('now', '-14 days')
        GROUP BY host, day""",
    "/fleet?state=failed&limit=500": """
        SELECT host, day, sum(failed), sum(succeeded), sum(bytes_added) FROM host_days
        WHERE host IN (SELECT name FROM hosts ORDER BY name LIMIT 500) AND day > date('now', '-14 days')
        GROUP BY host, day""",
    "/fleet?group=zone": """
        SELECT json_extract(labels, '$.zone') AS zone, day, count(*), sum(failed > 0)
        FROM host_days JOIN hosts ON name = host WHERE day > date('now', '-14 days') GROUP BY zone, day""",
}
"""The data of pages, and for each the bare query for the days that it shows, which has none of what is wrong now."""
HTML = {"/": PAGES["/overview"], "/fleet ": PAGES["/fleet"], "/fleet?group=zone ": PAGES["/fleet?group=zone"]}
"""The pages themselves, as a browser gets them, and the same queries. A space tells them from their data."""


async def lists(row: str, size: Size) -> Sequence[Result]:
    """Measure each list, beside the bare query on the same file; and the start of the server."""
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        data = Path(folder)
        await _filled(data, size)
        await (await Server.at(data)).stop()  # it stores what it makes of the hosts
        begin = time.perf_counter()
        server = await Server.at(data)
        started = time.perf_counter() - begin
        try:
            figures = {"cpu_s.start": server.cpu()}
            async with server.client() as client:
                found = [await _asked(row, server, client, path, size) for path in (*LISTS, *PAGES)]
                async with _browser(server, client) as browser:
                    found += [await _asked(row, server, client, path, size, browser) for path in HTML]
        finally:
            await server.stop()
    what = f"a server starts with {size.fleet:,} hosts and {size.jobs:,} jobs: until it answers"
    return [*found, Result(row, what, "s", started, None, "", Limits(), "", figures)]


async def _filled(data: Path, size: Size) -> None:
    server = await Server.at(data)
    async with server.client() as client:
        await declare(client, [schedule(f"nightly-{at}", "0 2 * * *") for at in range(SCHEDULES)])
    await server.stop()
    values = {"jobs": size.jobs, "hosts": size.fleet, "schedules": SCHEDULES, "since": SINCE}
    values |= {"open": min(OPEN, size.jobs // 2), "days": DAYS}
    with closing(sqlite3.connect(data / "lamplighter.db", isolation_level=None)) as database:
        for statement in ("PRAGMA synchronous=OFF", "PRAGMA cache_size=-400000", "BEGIN"):
            database.execute(statement)
        for statement in (_HOSTS, _JOBS, _DAYS, _SUMS):
            database.execute(statement, values)
        database.execute("COMMIT")
        database.execute("ANALYZE")


@asynccontextmanager
async def _browser(server: Server, api: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that is signed in to the pages, as far as headers go."""
    link = (await api.post("/sign-in-links")).raise_for_status().json()
    headers = {"sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=headers) as browser:
        signed_in = await browser.post("/sign-in", data={"code": link["path"].partition("code=")[2]})
        assert signed_in.status_code == 303
        yield browser


async def _asked(
    row: str,
    server: Server,
    client: httpx.AsyncClient,
    path: str,
    size: Size,
    browser: httpx.AsyncClient | None = None,
) -> Result:
    took: list[float] = []
    asking = browser or client
    answer = (await asking.get(path.strip())).raise_for_status()
    items = None if browser else answer.json().get("items")
    spent = 0.0
    for _ in range(ASKED):
        if path in PAGES | HTML:  # a large fleet's survey is used for a moment: each request is to make its own
            await change(client, schedule("nightly-0", "0 2 * * *", [f"/{time.monotonic_ns()}"]))
        begin, before = time.perf_counter(), server.cpu()
        (await asking.get(path.strip())).raise_for_status()
        took.append(time.perf_counter() - begin)
        spent += server.cpu() - before
    figures = {**cpu_figures({"server": spent}, ASKED), "bytes": float(len(answer.content))}
    with closing(sqlite3.connect(f"file:{server.data}/lamplighter.db?mode=ro", uri=True)) as database:
        bare = [_queried(database, (LISTS | PAGES | HTML)[path]) for _ in range(ASKED)]
    listed = f", {len(items)} items" if items else ""
    listed = " as HTML" if browser else listed
    what = f"GET {path.strip()}{listed}, {len(answer.content):,} bytes, at {size.fleet:,} hosts and {size.jobs:,} jobs"
    if path in PAGES | HTML and size.jobs >= FULL.jobs:
        assert len(answer.content) <= MAX_BYTES, what
    return Result(row, what, "ms", median(took), median(bare), "the bare query", Limits(0.1), "", figures)


def _queried(database: sqlite3.Connection, query: str) -> float:
    begin = time.perf_counter()
    database.execute(query).fetchall()
    return time.perf_counter() - begin


ROWS = (Row("lists", lists),)
