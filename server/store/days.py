"""Statements on how jobs went on each host, by day: what pages show of the past without a look at the jobs."""

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from functools import cache
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import GOOD, HOST_DAYS
from wire.messages import JobFinished

BATCH = 1000
"""Maximum rows that one transaction deletes, so that other writers do not wait long."""
_COUNTS = ("succeeded", "warned", "failed", "bytes_added")


class DayRow(NamedTuple):
    """How jobs went on a day: how many ended so, and the bytes that they added to their repositories."""

    day: date
    succeeded: int
    warned: int
    failed: int
    bytes_added: int


class DayHosts(NamedTuple):
    """The hosts on which the worst end of a day's jobs in a namespace was this one."""

    namespace: str
    failed: bool
    warned: bool
    hosts: Sequence[str]


def count_ends(conn: Connection, ends: Iterable[tuple[str, str, JobFinished]]) -> None:
    """Count jobs of Schedules that ended: (host, namespace, end). Each end must be counted once."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for host, namespace, end in ends:
        day = end.finished_at.date().isoformat()
        how = 2 if end.status not in GOOD else int(end.status != "succeeded")
        for key in ((host, day, namespace), ("", day, namespace)):
            counts = found.setdefault(key, [0, 0, 0, 0])
            counts[how] += 1
            counts[3] = batch.plus(counts[3], end.bytes_added)
    if found:
        batch.execute(conn, _adding(conn.dialect.name), ([*key, *counts] for key, counts in found.items()))


@cache
def _adding(dialect: str) -> str:
    return batch.adding(dialect, HOST_DAYS)


def by_day(conn: Connection, since: date, namespace: str) -> list[DayRow]:
    """How jobs went on all hosts together, on each day from `since` on. `namespace`: empty for all."""
    sums = [sa.func.sum(HOST_DAYS.c[name], type_=sa.BigInteger) for name in _COUNTS]
    found = sa.select(HOST_DAYS.c.day, *sums).where(HOST_DAYS.c.host == "", HOST_DAYS.c.day >= since, *_in(namespace))
    rows = conn.execute(found.group_by(HOST_DAYS.c.day).order_by(HOST_DAYS.c.day))
    return [DayRow(row[0], *map(int, row[1:])) for row in rows]


def bytes_added(conn: Connection, hosts: Collection[str], since: date, namespace: str) -> dict[str, int]:
    """The bytes that jobs added from `since` on, for each of these hosts that had any. `namespace`: empty for all."""
    given = batch.Given(conn.dialect.name, [HOST_DAYS.c.host]).select()
    total = sa.cast(sa.func.sum(HOST_DAYS.c.bytes_added), sa.BigInteger)
    found = sa.select(HOST_DAYS.c.host, total).where(
        HOST_DAYS.c.host.in_(given), HOST_DAYS.c.day >= since, *_in(namespace)
    )
    rows = conn.execute(found.group_by(HOST_DAYS.c.host), batch.parameter((it,) for it in hosts))
    return {row[0]: row[1] for row in rows}


def hosts_of(conn: Connection, day: date) -> list[DayHosts]:
    """The hosts on which jobs ended on a day, by namespace and worst end. They come as few rows: hosts are many."""
    is_failed, is_warned = HOST_DAYS.c.failed > 0, HOST_DAYS.c.warned > 0
    names = batch.gathered_names(HOST_DAYS.c.host)
    found = sa.select(HOST_DAYS.c.namespace, is_failed, is_warned, names).where(
        HOST_DAYS.c.day == day, HOST_DAYS.c.host != ""
    )
    rows = conn.execute(found.group_by(HOST_DAYS.c.namespace, is_failed, is_warned))
    return [DayHosts(row[0], bool(row[1]), bool(row[2]), _names.decode(row[3])) for row in rows]


_names = msgspec.json.Decoder(list[str])


def _in(namespace: str) -> Sequence[sa.ColumnElement[bool]]:
    return [HOST_DAYS.c.namespace == namespace] if namespace else []


def delete_days(conn: Connection, items: Sequence[date]) -> list[bool]:
    """Delete days from before these, oldest first, up to BATCH rows each; return whether there may be more."""
    return [_delete(conn, before) for before in items]


def _delete(conn: Connection, before: date) -> bool:
    key = list(HOST_DAYS.primary_key)
    oldest = sa.select(*key).where(HOST_DAYS.c.day < before).order_by(HOST_DAYS.c.day).limit(BATCH)
    gone = conn.execute(sa.delete(HOST_DAYS).where(sa.tuple_(*key).in_(oldest)))
    return gone.rowcount == BATCH
