"""Statements on the queue of open jobs: which are ready, which have a slot of their lane, and what is next in a lane.

A job is ready when only its lane holds it back: its host is connected, its attempt is due, and no earlier run of its
schedule on its host goes before it. Each statement touches the jobs that it is given, or a bounded number of those at
the front of a lane: what waits behind them costs nothing.
"""

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.rows import Pair
from server.store.tables import JOBS, OPEN, UtcDateTime, stored

Found = TypeVar("Found", bound=tuple[Any, ...])

COLUMNS = frozenset(
    {
        *(
            "lane",
            "from_lane",
            "queued_at",
            "start_by",
            "exclusive",
            "serial",
            "deferred",
            "ready",
            "holds",
            "cancel_reason",
        ),
        *("hangs_at", "gate", "claims"),
    }
)
"""The columns of a job that are the queue's own."""
MAX_AHEAD = 1000
"""How many jobs before a waiting one are counted for users."""
WINDOW_CLOSED = "WindowClosed"
"""The reason of an attempt that was stopped as its window closed, and of its job until the next attempt is over."""
FRONT = 200
"""How many jobs at the front of a lane are looked at in one transaction."""

MAX_COPIES = 1000
"""How many copies that wait for slots of some lanes are looked at in one transaction."""


class LaneRow(NamedTuple):
    """The state of a lane.

    `active`: how many jobs have a slot, counted up to the `most` that was asked for.
    `exclusive`: whether one of them must be alone in the lane.
    `waits`: whether any job is ready.
    `has_copies`: whether one of these needs a slot of another lane, too.
    """

    lane: str
    active: int
    exclusive: bool
    waits: bool
    has_copies: bool = False


class ReadyRow(NamedTuple):
    """A job that is ready. `exclusive`: it must be alone in its lane. `from_lane`: of the repository that a copy reads
    from; empty for other jobs."""

    lane: str
    id: str
    exclusive: bool
    host: str
    scheduled_id: str | None
    queued_at: datetime
    from_lane: str = ""


class PassedRow(NamedTuple):
    """Who has passed a gate, or claims it: the id of a job, or a host."""

    gate: str
    who: str


class HeldRow(NamedTuple):
    """A job that is held back at a gate."""

    gate: str
    id: str


class PairRow(NamedTuple):
    """The open runs of a schedule on a host: how many, up to the `most` that was asked for, and the oldest one.

    `scheduled_id`: "" for those of no schedule. `server`: which one has the host, None if it is not connected;
    `drains`: whether it is sent nothing new.
    """

    scheduled_id: str
    host: str
    runs: int
    first: str | None
    server: str | None
    drains: bool | None


class OpenRow(NamedTuple):
    """An open job. `command`: the JSON of its command.run payload. `cancel_requested`: whether it is to end, for
    `cancel_reason`."""

    id: str
    host: str
    status: str
    sent: bool
    holds: bool
    deferred: bool
    attempt: int
    command: str
    lane: str
    scheduled_id: str | None
    queued_at: datetime
    created_at: datetime
    accepted_at: datetime | None
    not_before: datetime | None
    cancel_requested: bool
    cancel_reason: str | None
    serial: bool
    exclusive: bool = False
    from_lane: str = ""

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes in which it needs a slot."""
        return (self.lane, self.from_lane) if self.from_lane else (self.lane,)


class _Id(NamedTuple):
    id: str | None


class _Busy(NamedTuple):
    host: str
    jobs: int


class _Lost(NamedTuple):
    host: str
    lost_at: datetime | None


class _Times(NamedTuple):
    due: datetime | None
    late: datetime | None


class Placed(NamedTuple):
    """What the queue is to know of a job that was recorded before there was one."""

    id: str
    lane: str
    queued_at: datetime
    start_by: datetime | None
    exclusive: bool
    serial: bool
    holds: bool
    deferred: bool


class Counts(NamedTuple):
    """How many jobs are open, wait for a slot, their host or a retry, and hang."""

    open: int = 0
    waiting: int = 0
    hanging: int = 0


class WaitRow(NamedTuple):
    """What a waiting job waits for. `ahead`: how many jobs of its lane go before it, counted up to MAX_AHEAD + 1.
    `from_ahead`: the same of the lane of the repository that a copy reads from.
    `is_drained`: whether nothing new is to begin on its host; `stops`: whether its agent is about to end; `is_paused`:
    whether its Schedule is."""

    id: str
    is_online: bool
    ahead: int
    is_drained: bool | None = False
    stops: bool | None = False
    is_paused: bool = False
    from_ahead: int = 0


class Moved(NamedTuple):
    """The columns of a job that an event of the queue sets; it is to be settled anew."""

    id: str
    status: str
    sent: bool
    holds: bool
    deferred: bool
    attempt: int
    queued_at: datetime
    not_before: datetime | None
    accepted_at: datetime | None


_GIVEN = {
    "sqlite": ("json_each(:rows{})", ", '$[{}]'", "json_extract(value, '$[{}]') AS {}"),
    "postgresql": (
        f"{batch.FEW.format('json_array_elements(CAST(:rows AS json){})')} AS rows",
        "->{}",
        "value->>{} AS {}",
    ),
}
"""The rows of the parameter as a table: where from, which of several tables in it, and each column."""

_BOTH = {
    "sqlite": "SELECT json_array(json(({})), json(({})))",
    "postgresql": "SELECT CAST(json_build_array(CAST(({}) AS json), CAST(({}) AS json)) AS text)",
}
"""What two statements find, as one JSON array."""

_GATHER = {
    "sqlite": "json_group_array(json_array({}))",
    "postgresql": "CAST(json_agg(json_build_array({})) AS text)",
}
"""All rows that are found, as one JSON array."""

_OPEN = "status IN ('pending', 'running')"  # in the words of the partial indexes, so that they are used

_WAITS = "status = 'pending' AND NOT {0}sent AND NOT {0}deferred"

_IS_AFTER = f"""
        EXISTS (SELECT 1 FROM jobs AS run
                WHERE run.scheduled_id = jobs.scheduled_id AND run.host = jobs.host
                  AND run.{_WAITS.format("run.")} AND run.serial = {{serial}}
                  AND (run.queued_at, run.id) < (jobs.queued_at, jobs.id)
                  AND (run.start_by IS NULL OR run.attempt > 1 OR run.start_by > :now))
"""
"""Whether a run that waits came before; those that are serial, and the others, each by their part of an index."""

_IS_READY = f"""
    (start_by IS NULL OR attempt > 1 OR start_by > :now)
    AND (SELECT connections.server FROM connections
         WHERE connections.host = jobs.host AND NOT connections.drains) IS NOT NULL
    AND NOT (serial AND (
        EXISTS (SELECT 1 FROM jobs AS run
                WHERE run.scheduled_id = jobs.scheduled_id AND run.host = jobs.host AND run.{_OPEN} AND run.sent
                  AND run.id <> jobs.id)
        OR {_IS_AFTER.format(serial="true")} OR {_IS_AFTER.format(serial="false")}))
"""
"""Of runs that are not to be beside each other, what was sent goes before the others, and then what came first."""

_SETTLE = f"""
    WITH given AS ({{given}})
    UPDATE jobs SET ready = ({_IS_READY}), gate = NULL, claims = false
    WHERE id IN (SELECT id FROM given) AND status = 'pending' AND NOT sent AND NOT deferred
"""

_SERIAL_READY = """
    WITH given AS ({given})
    SELECT jobs.id FROM given JOIN jobs ON jobs.scheduled_id = given.scheduled_id AND jobs.host = given.host
    WHERE jobs.ready AND jobs.serial
"""

_FIRST_OF_PAIRS = f"""{_SERIAL_READY}
    UNION
    SELECT (SELECT jobs.id FROM jobs
            WHERE jobs.scheduled_id = given.scheduled_id AND jobs.host = given.host
              AND jobs.{_WAITS.format("jobs.")} AND jobs.serial = true
            ORDER BY jobs.queued_at, jobs.id LIMIT 1) AS id
    FROM given
"""

_COPY = """(SELECT jobs.id FROM jobs
            WHERE jobs.{lane} = given.lane AND jobs.ready AND jobs.from_lane <> '' LIMIT 1) IS NOT NULL"""
"""Whether a copy that is ready reads from a lane, or writes to it. PostgreSQL would read all copies for EXISTS."""

_LANES = """
    WITH given AS ({given})
    SELECT given.lane,
           (SELECT count(*) FROM (
               SELECT 1 FROM jobs WHERE jobs.lane = given.lane AND jobs.holds
               UNION ALL
               SELECT 1 FROM jobs WHERE jobs.from_lane = given.lane AND jobs.holds AND jobs.from_lane <> ''
               LIMIT :most) AS slots) AS active,
           EXISTS (
               SELECT 1 FROM jobs WHERE jobs.lane = given.lane AND jobs.holds AND jobs.exclusive = true) AS exclusive,
           EXISTS (SELECT 1 FROM jobs WHERE jobs.lane = given.lane AND jobs.ready) OR {reads} AS waits,
           {writes} OR {reads} AS has_copies
    FROM given
""".replace("{reads}", _COPY.replace("{lane}", "from_lane")).replace("{writes}", _COPY.replace("{lane}", "lane"))

_LINKED = """
    WITH given AS ({given})
    SELECT jobs.lane, jobs.id, jobs.exclusive, jobs.host, jobs.scheduled_id, jobs.queued_at, jobs.from_lane FROM jobs
    WHERE jobs.ready AND jobs.from_lane <> ''
      AND (jobs.lane IN (SELECT lane FROM given) OR jobs.from_lane IN (SELECT lane FROM given))
    ORDER BY jobs.queued_at, jobs.id LIMIT :most
"""

_FRONT = """
        SELECT front.id {more} FROM jobs AS front WHERE front.lane = given.lane AND front.ready
        ORDER BY front.queued_at, front.id LIMIT :most
"""

_READY = {
    "sqlite": f"""
    WITH given AS ({{given}})
    SELECT jobs.lane, jobs.id, jobs.exclusive, jobs.host, jobs.scheduled_id, jobs.queued_at, jobs.from_lane
    FROM given JOIN jobs ON jobs.id IN ({_FRONT.format(more="")})
    ORDER BY jobs.lane, jobs.queued_at, jobs.id
""",
    "postgresql": f"""
    WITH given AS ({{given}})
    SELECT given.lane, jobs.id, jobs.exclusive, jobs.host, jobs.scheduled_id, jobs.queued_at, jobs.from_lane
    FROM given CROSS JOIN LATERAL ({
        _FRONT.format(more=", front.exclusive, front.queued_at, front.host, front.scheduled_id, front.from_lane")
    }) AS jobs
    ORDER BY given.lane, jobs.queued_at, jobs.id
""",
}
"""SQLite has no LATERAL, and PostgreSQL would go through all jobs for the other form."""

_SEND = """
    WITH given AS ({given})
    UPDATE jobs SET sent = true, holds = true, ready = false, claims = false
    WHERE id IN (SELECT id FROM given) AND ready
"""

_AT_GATE = "jobs.gate = given.gate AND jobs.status = 'pending' AND NOT jobs.sent"

_HELD_FRONT = f"""
        SELECT jobs.id {{more}} FROM jobs WHERE {_AT_GATE} ORDER BY jobs.queued_at, jobs.id LIMIT :most
"""

_HELD = {
    "sqlite": f"""
    WITH given AS ({{given}})
    SELECT jobs.gate, jobs.id FROM given JOIN jobs ON jobs.id IN ({_HELD_FRONT.format(more="")})
    ORDER BY jobs.queued_at, jobs.id
""",
    "postgresql": f"""
    WITH given AS ({{given}})
    SELECT given.gate, its.id
    FROM given CROSS JOIN LATERAL ({_HELD_FRONT.format(more=", jobs.queued_at")}) AS its
    ORDER BY its.queued_at, its.id
""",
}

_WAITED_AT = f"""
    WITH given AS ({{given}})
    SELECT given.gate AS id FROM given WHERE EXISTS (SELECT 1 FROM jobs WHERE {_AT_GATE})
"""

_PASSED_BY_JOBS = f"""
    WITH given AS ({{given}})
    SELECT given.gate, jobs.id AS who FROM given JOIN jobs ON jobs.host = given.host
    WHERE jobs.{_OPEN} AND (jobs.holds OR jobs.claims) AND NOT (jobs.lane = '' AND jobs.scheduled_id IS NULL)
"""

# COALESCE keeps PostgreSQL from reading all jobs that have slots: it takes the index of those that were sent.
_PASSED_BY_HOSTS = f"""
    WITH given AS ({{given}})
    SELECT DISTINCT given.gate, jobs.host AS who FROM given JOIN jobs ON jobs.scheduled_id = given.scheduled_id
    WHERE jobs.{_OPEN} AND jobs.sent AND COALESCE(jobs.holds, FALSE)
    UNION
    SELECT given.gate, jobs.host AS who FROM given JOIN jobs ON jobs.scheduled_id = given.scheduled_id
    WHERE jobs.{_OPEN} AND jobs.claims
"""

_CLAIMING = f"""
    WITH given AS ({{given}})
    SELECT jobs.* FROM given JOIN jobs ON jobs.scheduled_id = given.scheduled_id
    WHERE jobs.{_OPEN} AND jobs.claims
"""

_ROWS = f"""
    WITH given AS ({{given}})
    SELECT jobs.* FROM jobs WHERE jobs.id IN (SELECT id FROM given) AND jobs.{_OPEN} ORDER BY jobs.queued_at, jobs.id
"""

_LANES_OF = """
    WITH given AS ({given})
    SELECT jobs.lane AS id FROM jobs WHERE jobs.id IN (SELECT id FROM given)
    UNION
    SELECT jobs.from_lane AS id FROM jobs WHERE jobs.id IN (SELECT id FROM given) AND jobs.from_lane <> ''
"""

_OF_HOST = f"""
    WITH given AS ({{given}})
    SELECT jobs.* FROM jobs
    WHERE jobs.host = (SELECT host FROM given) AND jobs.{_OPEN} AND jobs.id > :after
    ORDER BY jobs.id LIMIT :most
"""

_OF_HOSTS = f"""
    WITH given AS ({{given}})
    SELECT jobs.* FROM given JOIN jobs ON jobs.host = given.host
    WHERE jobs.{_OPEN}
    ORDER BY jobs.host, jobs.id
"""

_IN_LANES = f"""
    SELECT jobs.* FROM jobs
    WHERE {_OPEN} AND (jobs.host, jobs.id) > (:host, :after) AND (
        jobs.lane >= :first AND jobs.lane < :last OR jobs.from_lane >= :first AND jobs.from_lane < :last)
    ORDER BY jobs.host, jobs.id LIMIT :most
"""

_WAITING_LANES = """
    SELECT jobs.lane AS id FROM jobs WHERE jobs.ready AND jobs.lane >= :first AND jobs.lane < :last
    UNION
    SELECT jobs.from_lane AS id FROM jobs
    WHERE jobs.ready AND jobs.from_lane <> '' AND jobs.from_lane >= :first AND jobs.from_lane < :last
"""

_PAIRS = f"""
    WITH given AS ({{given}})
    SELECT given.scheduled_id, given.host,
           CASE WHEN given.scheduled_id = '' THEN
             (SELECT count(*) FROM (SELECT 1 FROM jobs
                WHERE jobs.scheduled_id IS NULL AND jobs.host = given.host AND jobs.{_OPEN} LIMIT :most) AS its)
           ELSE
             (SELECT count(*) FROM (SELECT 1 FROM jobs
                WHERE jobs.scheduled_id = given.scheduled_id AND jobs.host = given.host AND jobs.{_OPEN}
                LIMIT :most) AS its)
           END AS runs,
           (SELECT jobs.id FROM jobs
              WHERE jobs.scheduled_id = given.scheduled_id AND jobs.host = given.host AND jobs.{_OPEN}
              ORDER BY jobs.queued_at, jobs.id LIMIT 1) AS first,
           (SELECT connections.server FROM connections WHERE connections.host = given.host) AS server,
           (SELECT connections.drains FROM connections WHERE connections.host = given.host) AS drains
    FROM given
"""

_OF_PAIRS = f"""
    WITH given AS ({{given}})
    SELECT jobs.* FROM given JOIN jobs ON jobs.scheduled_id = given.scheduled_id AND jobs.host = given.host
    WHERE jobs.{_OPEN}
    ORDER BY jobs.queued_at, jobs.id
"""

_DUE_TIMES = """
    WITH given AS ({given})
    SELECT given.id FROM given JOIN jobs
      ON jobs.host = given.host AND jobs.scheduled_id = given.scheduled_id
     AND jobs.scheduled_at = CAST(given.at AS {time})
"""

_DUE = f"""
    SELECT jobs.* FROM jobs WHERE jobs.deferred AND jobs.not_before <= :now AND jobs.{_OPEN}
    ORDER BY jobs.not_before LIMIT :most
"""

_LATE = """
    SELECT jobs.* FROM jobs
    WHERE jobs.status = 'pending' AND NOT jobs.sent AND jobs.start_by IS NOT NULL AND jobs.start_by <= :now
      AND jobs.attempt = 1
    ORDER BY jobs.start_by LIMIT :most
"""

_NEXT = """
    SELECT (SELECT min(not_before) FROM jobs WHERE deferred) AS due,
           (SELECT min(start_by) FROM jobs
              WHERE status = 'pending' AND NOT sent AND start_by IS NOT NULL AND attempt = 1) AS late
"""


_UNPLACED = f"""
    SELECT {", ".join(name for name in OpenRow._fields if name != "queued_at")},
           coalesce(not_before, created_at) AS queued_at
    FROM jobs WHERE {_OPEN} AND queued_at IS NULL LIMIT :most
"""

_UNBEGUN_AFTER = f"""
    UPDATE jobs SET queued_at = :now, not_before = CASE WHEN not_before > :now THEN :now ELSE not_before END
    WHERE {_OPEN} AND status = 'pending' AND NOT sent AND queued_at > :now
"""

_WINDOWS_FORWARD = f"""
    WITH given AS ({{given}})
    UPDATE jobs SET not_before = :now
    WHERE scheduled_id IN (SELECT id FROM given) AND {_OPEN} AND deferred AND not_before > :now
        AND (attempt = 1 OR reason = '{WINDOW_CLOSED}')
"""

_BEGUN_AFTER = "SELECT jobs.* FROM jobs WHERE jobs.status = 'running' AND jobs.accepted_at > :now"

_QUEUED_SINCE = f"SELECT jobs.* FROM jobs WHERE {_OPEN} AND queued_at >= :now"

_WITH_JOBS = f"""
    WITH given AS ({{given}})
    SELECT its.host, its.jobs FROM (
        SELECT given.host, (SELECT count(*) FROM (
            SELECT 1 FROM jobs WHERE jobs.host = given.host AND jobs.{_OPEN} LIMIT :most) AS open) AS jobs
        FROM given) AS its
    WHERE its.jobs > 0
"""

_COUNT_OF_HOST = sa.text(f"""
    SELECT count(*) FROM (SELECT 1 FROM jobs WHERE host = :host AND {_OPEN} LIMIT :most) AS its
""")

_HOLDING = f"""
    WITH given AS ({{given}})
    SELECT given.host AS id FROM given
    WHERE EXISTS (SELECT 1 FROM jobs WHERE jobs.host = given.host AND jobs.{_OPEN} AND jobs.holds)
"""

_TO_TELL = """
    WITH given AS ({given})
    SELECT jobs.* FROM jobs
    WHERE jobs.holds AND (jobs.status = 'pending' OR jobs.cancel_requested) AND jobs.host IN (
        SELECT connections.host FROM connections WHERE connections.server IN (SELECT server FROM given))
    ORDER BY jobs.queued_at, jobs.id
"""

_HOLDERS = "SELECT jobs.host AS id FROM jobs WHERE jobs.holds"  # to sort it, SQLite would go through all jobs by host

_LOST_HOLDERS = """
    SELECT connections.host, connections.lost_at FROM connections
    WHERE connections.server IS NULL AND connections.host IN (SELECT jobs.host FROM jobs WHERE jobs.holds)
"""

_DISCONNECT_ALL = "UPDATE connections SET server = NULL, lost_at = :now WHERE server IS NOT NULL"

_NONE_READY = "UPDATE jobs SET ready = false WHERE ready"

_COUNTS = sa.text(f"""
    SELECT count(*), coalesce(sum(CASE WHEN status = 'pending' AND NOT sent THEN 1 ELSE 0 END), 0),
           coalesce(sum(CASE WHEN status = 'running' AND hangs_at < :now THEN 1 ELSE 0 END), 0)
    FROM jobs WHERE {_OPEN}
""").bindparams(sa.bindparam("now", type_=UtcDateTime))

_AHEAD = """(SELECT count(*) FROM (
               SELECT 1 FROM jobs AS held WHERE held.lane = {lane} AND held.holds AND jobs.ready
               UNION ALL
               SELECT 1 FROM jobs AS held
               WHERE held.from_lane = {lane} AND held.holds AND held.from_lane <> '' AND jobs.ready
               UNION ALL
               SELECT 1 FROM jobs AS front WHERE front.lane = {lane} AND front.ready AND jobs.ready AND (
                 front.queued_at < jobs.queued_at OR (front.queued_at = jobs.queued_at AND front.id < jobs.id))
               LIMIT {most}) AS before)""".replace("{most}", str(MAX_AHEAD + 1))
"""Jobs that have a slot of a lane, and those of its own that wait for one before a job."""

_WAITED_FOR = """
    WITH given AS ({given})
    SELECT jobs.id,
           (SELECT connections.server FROM connections WHERE connections.host = jobs.host) IS NOT NULL AS is_online,
           {ahead} AS ahead,
           (SELECT hosts.drains FROM hosts WHERE hosts.name = jobs.host) AS is_drained,
           (SELECT connections.stops FROM connections WHERE connections.host = jobs.host) AS stops,
           EXISTS (SELECT 1 FROM rollout_pauses WHERE rollout_pauses.schedule_id = jobs.scheduled_id) AS is_paused,
           CASE WHEN jobs.from_lane = '' THEN 0 ELSE {from_ahead} END AS from_ahead
    FROM jobs WHERE jobs.id IN (SELECT id FROM given)
""".replace("{ahead}", _AHEAD.replace("{lane}", "jobs.lane")).replace(
    "{from_ahead}", _AHEAD.replace("{lane}", "jobs.from_lane")
)


def settle(conn: Connection, job_ids: Iterable[str], now: datetime) -> None:
    """Work out anew which of these jobs are ready. Those that were sent are left alone."""
    _write(conn, _SETTLE, ("id",), job_ids, now=now)


def first_of_pairs(conn: Connection, pairs: Iterable[Pair]) -> list[str]:
    """The ids of the jobs to `settle` after a job of (schedule id, host) started, ended or was put off.

    These are the serial jobs that are ready, and the first serial one of those that are due.
    """
    return _ids(_read(conn, _FIRST_OF_PAIRS, _Id, ("scheduled_id", "host"), pairs))


def serial_ready(conn: Connection, pairs: Iterable[Pair]) -> list[str]:
    """The ids of the serial jobs of each (schedule id, host) that are ready."""
    return _ids(_read(conn, _SERIAL_READY, _Id, ("scheduled_id", "host"), pairs))


def pairs(conn: Connection, its: Iterable[Pair], most: int) -> list[PairRow]:
    """The open runs of each (schedule id, host), counted up to `most`."""
    return _read(conn, _PAIRS, PairRow, ("scheduled_id", "host"), its, most=most)


def look(
    conn: Connection, its: Iterable[Pair], lanes: Iterable[str], runs: int, slots: int
) -> tuple[list[PairRow], list[LaneRow]]:
    """The open runs of each (schedule id, host), counted up to `runs`, and lanes, with slots counted up to `slots`."""
    given = [list(its), [(lane,) for lane in lanes]]
    if not any(given):
        return [], []
    parameters = {"rows": msgspec.json.encode(given).decode(), "most": runs, "slots": slots}
    found: Any = conn.exec_driver_sql(_looking(conn.dialect.name), parameters).scalar()
    pairs, states = _look.decode(found)
    return pairs or [], states or []


_look = msgspec.json.Decoder(tuple[list[PairRow] | None, list[LaneRow] | None], strict=False)


@cache
def _looking(dialect: str) -> str:
    pairs = _gathering(dialect, _PAIRS, ("scheduled_id", "host"), PairRow._fields, 0)
    lanes = _gathering(dialect, _LANES.replace(":most", ":slots"), ("lane",), LaneRow._fields, 1)
    return _BOTH[dialect].format(pairs, lanes)


def of_pairs(conn: Connection, its: Iterable[Pair]) -> list[OpenRow]:
    """The open runs of each (schedule id, host), the oldest first."""
    return _read(conn, _OF_PAIRS, OpenRow, ("scheduled_id", "host"), its)


def recorded(conn: Connection, due: Iterable[tuple[str, str, str, datetime]]) -> list[str]:
    """Of (id, host, schedule id, due time), the ids of those whose due time has a job."""
    return _ids(_read(conn, _DUE_TIMES, _Id, ("id", "host", "scheduled_id", "at"), due))


def ready(conn: Connection, names: Iterable[str], most: int = FRONT) -> list[ReadyRow]:
    """The first jobs of these lanes that are ready, up to `most` of each, in order."""
    return _read(conn, _READY[conn.dialect.name], ReadyRow, ("lane",), names, most=most)


def copies(conn: Connection, names: Iterable[str], most: int = MAX_COPIES) -> list[ReadyRow]:
    """The first copies that are ready and need a slot of one of these lanes, up to `most`, in order."""
    return _read(conn, _LINKED, ReadyRow, ("lane",), names, most=most)


def send(conn: Connection, job_ids: Collection[str]) -> list[OpenRow]:
    """Give these jobs, which are ready, their slots. Returns them."""
    _write(conn, _SEND, ("id",), job_ids)
    return rows(conn, job_ids)


def rows(conn: Connection, job_ids: Iterable[str]) -> list[OpenRow]:
    """Those of these jobs that are open, in the order of the queue."""
    return _read(conn, _ROWS, OpenRow, ("id",), job_ids)


def passed_by_jobs(conn: Connection, hosts: Iterable[tuple[str, str]]) -> list[PassedRow]:
    """The jobs that have passed the gate of a host, or claim it, of each (gate, host); lists of snapshots pass any."""
    return _read(conn, _PASSED_BY_JOBS, PassedRow, ("gate", "host"), hosts)


def passed_by_hosts(conn: Connection, schedules: Iterable[tuple[str, str]]) -> list[PassedRow]:
    """The hosts that have passed the gate of a schedule, or claim it, of each (gate, schedule id)."""
    return _read(conn, _PASSED_BY_HOSTS, PassedRow, ("gate", "scheduled_id"), schedules)


def waited_at(conn: Connection, gates: Iterable[str]) -> set[str]:
    """Those of these gates at which jobs are held back."""
    return set(_ids(_read(conn, _WAITED_AT, _Id, ("gate",), gates)))


def held(conn: Connection, gates: Iterable[str], most: int) -> list[HeldRow]:
    """The first jobs that are held back at these gates, up to `most` of each, in order."""
    return _read(conn, _HELD[conn.dialect.name], HeldRow, ("gate",), gates, most=most)


def hold_back(conn: Connection, its: Iterable[tuple[str, str]]) -> None:
    """Have these jobs, which wait, be held back at gates until they are settled again: (id, gate)."""
    if rows := [(job_id, gate, False, False) for job_id, gate in its]:
        batch.execute(conn, _update(conn.dialect.name, ("id", "gate", "ready", "claims")), rows)


def claiming(conn: Connection, schedule_id: str) -> list[OpenRow]:
    """The jobs of a schedule that claim their gates."""
    return _read(conn, _CLAIMING, OpenRow, ("scheduled_id",), [schedule_id])


def claim(conn: Connection, job_ids: Iterable[str]) -> None:
    """Have these jobs, which are ready, claim their gates."""
    if rows := [(job_id, True) for job_id in job_ids]:
        batch.execute(conn, _update(conn.dialect.name, ("id", "claims")), rows)


def lanes_of(conn: Connection, job_ids: Iterable[str]) -> list[str]:
    """The lanes of these jobs."""
    return _ids(_read(conn, _LANES_OF, _Id, ("id",), job_ids))


def of_host(conn: Connection, host: str, after: str = "", most: int = FRONT) -> list[OpenRow]:
    """A host's open jobs, by id, from the one after that id on."""
    return _read(conn, _OF_HOST, OpenRow, ("host",), [host], after=after, most=most)


def of_hosts(conn: Connection, hosts: Collection[str]) -> list[OpenRow]:
    """The open jobs of these hosts, by host and id: all of them, so ask for hosts that have few."""
    return _read(conn, _OF_HOSTS, OpenRow, ("host",), hosts)


def with_jobs(conn: Connection, hosts: Collection[str], most: int = FRONT) -> dict[str, int]:
    """Those of these hosts that have open jobs, each with how many, counted up to `most`."""
    return dict(_read(conn, _WITH_JOBS, _Busy, ("host",), hosts, most=most))


def count_of_host(conn: Connection, host: str, most: int) -> int:
    """How many open jobs a host has, counted up to `most`."""
    return int(conn.execute(_COUNT_OF_HOST, {"host": host, "most": most}).scalar_one())


def of_repository(
    conn: Connection, repository: str, after: tuple[str, str] = ("", ""), most: int = FRONT
) -> list[OpenRow]:
    """The open jobs in a repository's lanes, by host and id, from the one after (host, id) on: of all that are open.

    The lanes are REPOSITORY and REPOSITORY/HOST: "0" follows "/".
    """
    return _read(
        conn, _IN_LANES, OpenRow, host=after[0], after=after[1], most=most, first=repository, last=f"{repository}0"
    )


def waiting_lanes(conn: Connection, repository: str) -> list[str]:
    """The lanes of a repository in which a job is ready."""
    return _ids(_read(conn, _WAITING_LANES, _Id, first=repository, last=f"{repository}0"))


def due(conn: Connection, now: datetime, most: int = FRONT) -> list[OpenRow]:
    """Jobs whose next attempt has become due."""
    return _read(conn, _DUE, OpenRow, now=now, most=most)


def late(conn: Connection, now: datetime, most: int = FRONT) -> list[OpenRow]:
    """Jobs that were not begun in time."""
    return _read(conn, _LATE, OpenRow, now=now, most=most)


def next_at(conn: Connection) -> datetime | None:
    """When `due` or `late` has a job; None for never."""
    ((due_at, late_at),) = _read(conn, _NEXT, _Times)
    return min((at for at in (due_at, late_at) if at is not None), default=None)


def change_lanes(conn: Connection, moved: Collection[tuple[str, str, str]]) -> None:
    """Put these jobs, which are open, into other lanes: (id, lane, lane that a copy reads from)."""
    if moved:
        batch.execute(conn, _update(conn.dialect.name, ("id", "lane", "from_lane")), moved)


def defer(conn: Connection, until: Collection[tuple[str, datetime]]) -> None:
    """Have these jobs, which are ready, leave their lanes until that time, (id, time), and keep their places there."""
    if until:
        names = ("id", "not_before", "deferred", "ready")
        batch.execute(conn, _update(conn.dialect.name, names), ((id_, at, True, False) for id_, at in until))


def put_windows_forward(conn: Connection, schedule_ids: Iterable[str], now: datetime) -> None:
    """The jobs of these Schedules that wait for a window, to begin or to go on, are due now, since it may be another
    one."""
    _write(conn, _WINDOWS_FORWARD, ("id",), schedule_ids, now=now)


def move(conn: Connection, moved: Collection[Moved]) -> None:
    """Store where these jobs, which are open, belong now. None of them is ready until they are settled."""
    if moved:
        batch.execute(conn, _update(conn.dialect.name, (*Moved._fields, "ready")), ((*it, False) for it in moved))


def disconnect_all(conn: Connection, now: datetime) -> list[str]:
    """No host is connected: a server begins. Returns the hosts that have jobs with a slot."""
    _write(conn, _DISCONNECT_ALL, now=now)
    _write(conn, _NONE_READY)
    return sorted(set(_ids(_read(conn, _HOLDERS, _Id))))


def lost_holders(conn: Connection) -> list[tuple[str, datetime | None]]:
    """The hosts that no server has and that have jobs with a slot, each with the time since when."""
    return [(host, lost_at) for host, lost_at in _read(conn, _LOST_HOLDERS, _Lost)]


def holders(conn: Connection, hosts: Collection[str]) -> set[str]:
    """Those of these hosts that have jobs with slots."""
    return set(_ids(_read(conn, _HOLDING, _Id, ("host",), hosts)))


def to_tell(conn: Connection, server: str) -> list[OpenRow]:
    """The jobs with slots that a server's hosts have not taken yet, or are to end."""
    return _read(conn, _TO_TELL, OpenRow, ("server",), [server])


def unplaced(conn: Connection, most: int = FRONT) -> list[OpenRow]:
    """Open jobs that were recorded before there was a queue."""
    return _read(conn, _UNPLACED, OpenRow, most=most)


def place(conn: Connection, jobs: Collection[Placed]) -> None:
    """Take jobs into the queue."""
    if jobs:
        batch.execute(conn, _update(conn.dialect.name, Placed._fields), jobs)


def put_forward(conn: Connection, now: datetime) -> None:
    """What a clock that was ahead put off until after `now`, or recorded then, is due now."""
    _write(conn, _UNBEGUN_AFTER, now=now)


def begun_after(conn: Connection, at: datetime) -> list[OpenRow]:
    """Jobs that run, and were accepted after that time."""
    return _read(conn, _BEGUN_AFTER, OpenRow, now=at)


def set_begun(conn: Connection, begun: Iterable[tuple[str, datetime, datetime]]) -> None:
    """Store when jobs that run were accepted, and from when on they hang: (id, time, time)."""
    batch.execute(conn, _update(conn.dialect.name, ("id", "accepted_at", "hangs_at")), begun)


def queued_since(conn: Connection, at: datetime) -> list[OpenRow]:
    """Open jobs whose place in their lanes is of that time or later."""
    return _read(conn, _QUEUED_SINCE, OpenRow, now=at)


def counts(conn: Connection, now: datetime) -> Counts:
    """How many jobs are open, wait, and hang."""
    return Counts(*conn.execute(_COUNTS, {"now": now}).one())


def hanging(conn: Connection, now: datetime) -> list[Pair]:
    """The (schedule id, host) of jobs that run although their hosts should have stopped them by now."""
    found = sa.select(JOBS.c.scheduled_id, JOBS.c.host).where(sa.text("status = 'running'"), JOBS.c.hangs_at < now)
    return [(schedule_id or "", host) for schedule_id, host in conn.execute(found)]


def waits(conn: Connection, job_ids: Iterable[str]) -> list[WaitRow]:
    """What these jobs wait for."""
    return _read(conn, _WAITED_FOR, WaitRow, ("id",), job_ids)


def _ids(found: Iterable[_Id]) -> list[str]:
    return [id_ for (id_,) in found if id_ is not None]


def _read(
    conn: Connection,
    statement: str,
    kind: type[Found],
    names: tuple[str, ...] = (),
    given: Iterable[object] = (),
    **values: object,
) -> list[Found]:
    """The rows that a statement finds, for what is given where it names columns of that; they come as one JSON array,
    for the reason that `server.store.batch` says."""
    if names and not (given := list(given)):
        return []
    prepared = _gathering(conn.dialect.name, statement, names, kind._fields)  # type: ignore[attr-defined]
    found = conn.exec_driver_sql(prepared, _parameters(conn, given, values)).scalar()
    return _decoder(kind).decode(found) if found else []


def _write(
    conn: Connection, statement: str, names: tuple[str, ...] = (), given: Iterable[object] = (), **values: object
) -> None:
    if (given := list(given)) or not names:
        conn.exec_driver_sql(_prepared(conn.dialect.name, statement, names), _parameters(conn, given, values))


def _parameters(conn: Connection, given: Iterable[object], values: dict[str, Any]) -> dict[str, Any]:
    rows: list[Any] = [it if isinstance(it, tuple) else (it,) for it in given]
    if "now" in values and conn.dialect.name == "sqlite":
        values["now"] = stored(values["now"])
    return {**batch.parameter(rows), **values} if rows else values


@cache
def _decoder(kind: type[Found]) -> msgspec.json.Decoder[list[Found]]:
    """Not strict: SQLite has no booleans."""
    return msgspec.json.Decoder(list[kind], strict=False)  # type: ignore[valid-type]


@cache
def _update(dialect: str, names: tuple[str, ...]) -> str:
    return batch.update(dialect, JOBS, names, JOBS.c.status.in_(OPEN))


@cache
def _gathering(
    dialect: str, statement: str, names: tuple[str, ...], columns: tuple[str, ...], part: int | None = None
) -> str:
    gather = _GATHER[dialect].format(", ".join(f"found.{name}" for name in columns))
    return _prepared(dialect, f"SELECT {gather} FROM ({statement}) AS found", names, part)


@cache
def _prepared(dialect: str, statement: str, names: tuple[str, ...], part: int | None = None) -> str:
    """A statement in the words of a database and its driver: written once, said as it is, for it is said often.

    `part`: which table of the parameter is given to it, where that holds several.
    """
    table, of_several, column = _GIVEN[dialect]
    table = table.format("" if part is None else of_several.format(part))
    given = ", ".join(column.format(at, name) for at, name in enumerate(names))
    text = statement.format(given=f"SELECT {given} FROM {table}", time="text" if dialect == "sqlite" else "timestamptz")
    return text if dialect == "sqlite" else _PARAMETER.sub(r"%(\1)s", text)


_PARAMETER = re.compile(r"(?<!:):([a-z]+)")
