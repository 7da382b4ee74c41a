"""Statements on how many snapshots, and how many bytes, repositories hold."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import REPOSITORY_COUNTS


class CountKey(NamedTuple):
    """What is counted: `what` is SNAPSHOTS or BYTES. `host`: whose; "" for what is no host's alone."""

    repository_id: str
    what: str
    host: str


class CountRow(NamedTuple):
    """A count: `value` as of `at`, when it was counted, and `since` that jobs added later (`server.jobs.counts`).

    `at`: None if it was never counted. `first_at`, `last_at`: when the first and the last of these jobs were done.
    `newest`: the time of the newest snapshot that was counted; `made_at`: of those that were added since.
    """

    repository_id: str
    what: str
    host: str
    value: int
    at: datetime | None
    since: int
    first_at: datetime | None
    last_at: datetime | None
    newest: datetime | None
    made_at: datetime | None


SNAPSHOTS, BYTES = "snapshots", "bytes"
_T = REPOSITORY_COUNTS
_TIMES = ("at", "first_at", "last_at", "newest", "made_at")


def counts_at(conn: Connection, keys: Collection[CountKey]) -> list[CountRow]:
    """The counts of these keys, as far as there are any."""
    return _read(batch.gathered(conn, _at(conn.dialect.name), keys)) if keys else []


def counts_of(conn: Connection, repository_ids: Collection[str]) -> list[CountRow]:
    """All counts of these repositories."""
    return _read(batch.gathered(conn, _of(conn.dialect.name), ((it,) for it in set(repository_ids))))


def put_counts(conn: Connection, rows: Sequence[CountRow]) -> list[None]:
    """Put counts, by their keys, of which no two are the same."""
    if rows:
        batch.execute(conn, batch.upsert(conn.dialect.name, _T, CountRow._fields), rows)
    return [None] * len(rows)


def delete_counts(conn: Connection, keys: Collection[CountKey]) -> None:
    """Delete counts."""
    if keys:
        batch.execute(conn, _deleting(conn.dialect.name), keys)


def forget_counts(conn: Connection, repository_ids: Sequence[str]) -> list[None]:
    """Delete all counts of these repositories."""
    return batch.delete_rows(conn, _T, "repository_id", repository_ids)


def counts_set_back(conn: Connection, now: datetime) -> None:
    """The clock was ahead: what it saw after `now` was now."""
    for name in _TIMES:
        conn.execute(sa.update(_T).where(_T.c[name] > now).values({name: now}))


def _read(found: Iterable[Sequence[object]]) -> list[CountRow]:
    return msgspec.convert(list(found), list[CountRow])


_KEY = (_T.c.repository_id, _T.c.what, _T.c.host)


def _found(dialect: str, *where: sa.ColumnElement[bool]) -> str:
    found = sa.select(*(batch.plain(dialect, _T.c[name]).label(name) for name in CountRow._fields)).where(*where)
    return batch.gather(dialect, found.subquery())


def _is_given(dialect: str) -> sa.ColumnElement[bool]:
    return sa.tuple_(*_KEY).in_(batch.Given(dialect, _KEY).select())


@cache
def _at(dialect: str) -> str:
    return _found(dialect, _is_given(dialect))


@cache
def _of(dialect: str) -> str:
    repository_id = _KEY[0]
    return _found(dialect, repository_id.in_(batch.Given(dialect, [repository_id]).select()))


@cache
def _deleting(dialect: str) -> str:
    return batch.prepared(dialect, sa.delete(_T).where(_is_given(dialect)))
