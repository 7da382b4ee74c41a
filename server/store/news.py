"""News: rows by which one server tells the others what it did to jobs and hosts, in the transaction that did it.

The database counts the rows, and transactions commit in any order: whoever follows meets a row before one of a smaller
id. A `Position` therefore keeps the ids that it jumped over, and asks for them again.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.tables import NEWS

GAP_S = 60.0
"""Seconds for which an id that was jumped over is asked for. A transaction of a server takes less."""
MAX_GAPS = 1000
"""The most ids that are asked for again; of more, the newest. Each server has one transaction at a time."""
PAGE = 500
"""The most rows that are read at once."""


class NewsRow(NamedTuple):
    """A row of news. `server`: who told it. `body`: JSON."""

    id: int
    server: str
    body: str


class Gap(NamedTuple):
    """An id whose row was not there when a later one was. `until`: the time from which on it is not asked for."""

    id: int
    until: float


class Position(NamedTuple):
    """Up to where somebody has read the news, and which ids before that were not there."""

    last: int = 0
    gaps: tuple[Gap, ...] = ()

    def after(self, ids: Iterable[int], now: float) -> Self:
        """The position after these rows were found, asked for by `read`. `now`: in seconds, by a monotonic clock."""
        found = set(ids)
        last = max(found, default=0)
        begin = max(self.last + 1, last - MAX_GAPS)
        new = [Gap(it, now + GAP_S) for it in range(begin, last) if it not in found]
        old = [gap for gap in self.gaps if gap.id not in found and gap.until > now]
        return self._replace(last=max(self.last, last), gaps=tuple([*old, *new][-MAX_GAPS:]))


def tell(conn: Connection, server: str, at: datetime, bodies: Sequence[str]) -> None:
    """Tell the other servers, once this transaction is committed."""
    batch.execute(conn, _insert(conn.dialect.name), [(at, server, body) for body in bodies])
    conn.info["wakes"] = True


def read(conn: Connection, position: Position, server: str) -> list[NewsRow]:
    """The rows after a position, up to PAGE, and those that it jumped over, by id. Bodies of
    `server` itself are empty."""
    found = batch.gathered(conn, _after(conn.dialect.name), [(position.last, server)])
    if position.gaps:
        found += batch.gathered(conn, _alone(conn.dialect.name), ((gap.id, server) for gap in position.gaps))
    return [NewsRow(*row) for row in sorted(found)]


def here(conn: Connection, now: float) -> Position:
    """The position at which all rows that this transaction sees are read."""
    ids = [id_ for (id_,) in batch.gathered(conn, _newest(conn.dialect.name), ())]
    return Position(ids[0] - 1).after(ids, now) if ids else Position()


def trim(conn: Connection, items: Sequence[tuple[int, datetime]]) -> list[None]:
    """Delete the rows up to an id that all have read, and of before a time. The newest stays: ids are not reused."""
    batch.execute(conn, _trim(conn.dialect.name), items)
    return [None] * len(items)


@cache
def _insert(dialect: str) -> str:
    given = batch.Given(dialect, [NEWS.c.at, NEWS.c.server, NEWS.c.body])
    return batch.prepared(dialect, sa.insert(NEWS).from_select(["at", "server", "body"], given.select()))


def _row(server: sa.ColumnElement[str]) -> sa.Select[Any]:
    return sa.select(NEWS.c.id, NEWS.c.server, sa.case((NEWS.c.server == server, ""), else_=NEWS.c.body).label("body"))


@cache
def _after(dialect: str) -> str:
    """Each given value is a subquery of its own, so that the rows are found by their key."""
    given = batch.Given(dialect, [NEWS.c.id, NEWS.c.server])
    last, server = (sa.select(it).select_from(given.table).scalar_subquery() for it in given.values)
    return batch.gather(dialect, _row(server).where(NEWS.c.id > last).order_by(NEWS.c.id).limit(PAGE).subquery())


@cache
def _alone(dialect: str) -> str:
    given = batch.Given(dialect, [NEWS.c.id, NEWS.c.server])
    id_, server = given.values
    return batch.gather(dialect, _row(server).select_from(given.table.join(NEWS, NEWS.c.id == id_)).subquery())


@cache
def _newest(dialect: str) -> str:
    newest = sa.select(sa.func.max(NEWS.c.id)).scalar_subquery()
    found = sa.select(NEWS.c.id).where(NEWS.c.id > newest - MAX_GAPS).order_by(NEWS.c.id)
    return batch.gather(dialect, found.subquery())


@cache
def _trim(dialect: str) -> str:
    given = batch.Given(dialect, [NEWS.c.id, NEWS.c.at])
    id_, before = given.values
    newest = sa.select(sa.func.max(NEWS.c.id)).scalar_subquery()
    read_by_all = sa.select(1).select_from(given.table).where(NEWS.c.id <= id_, NEWS.c.at < before).exists()
    return batch.prepared(dialect, sa.delete(NEWS).where(NEWS.c.id < newest, read_by_all))
