"""Statements on hosts. Where a batch has several items for one host, the last one counts.

What a host says comes by a session, by its number over all servers; what came by an older one than is known is not
stored.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.queries import LabelCondition, all_rows, labels_match, one_row
from server.store.rows import HostRow, Row
from server.store.tables import CONNECTIONS, HOSTS, JOBS, OPEN


class Drain(NamedTuple):
    """A host that is sent nothing new. `stops`: whether its agent is about to end; `jobs`: how many may run there."""

    stops: bool
    jobs: int


_DECLARED = {"name", "labels", "since", "spec", "drained_by", "drains"}


def upsert_hosts(conn: Connection, rows: Sequence[HostRow]) -> list[None]:
    """Put hosts by name. Of an existing host only what is declared and `since` change: other columns have other
    statements."""
    keep = tuple(name for name in HostRow._fields if name not in _DECLARED)
    return batch.put_rows(conn, HOSTS, HostRow._fields, rows, keep=keep)


def delete_hosts(conn: Connection, names: Sequence[str]) -> list[None]:
    """Delete hosts; their jobs stay."""
    return batch.delete_rows(conn, HOSTS, "name", names)


def set_desired(conn: Connection, batches: Sequence[Sequence[tuple[str, int, str]]]) -> list[None]:
    """Store the desired state of hosts: (host, version, digest)."""
    _update_hosts(conn, ("name", "desired_version", "desired_digest"), list(chain.from_iterable(batches)))
    return [None] * len(batches)


def host_hello(conn: Connection, items: Sequence[tuple[str, int, str, str, datetime]]) -> list[None]:
    """Store the hello of hosts: (host, session, agent version, restic version, time)."""
    return _said_by_hosts(conn, ("agent_version", "restic_version", "last_seen"), items)


def host_acks(conn: Connection, items: Sequence[tuple[str, int, int, str, datetime]]) -> list[None]:
    """Store the applied state of hosts: (host, session, version, digest, time of the ack)."""
    return _said_by_hosts(conn, ("applied_version", "applied_digest", "last_seen"), items)


def host_left_out(conn: Connection, items: Sequence[tuple[str, int, Mapping[str, Any] | None]]) -> list[None]:
    """Store which entries hosts could not apply: (host, session, the column `left_out`)."""
    return _said_by_hosts(conn, ("left_out",), items)


def hosts_seen(conn: Connection, batches: Sequence[Sequence[tuple[str, int, datetime]]]) -> list[None]:
    """Store when hosts were last seen: (host, session, time)."""
    _said_by_hosts(conn, ("last_seen",), list(chain.from_iterable(batches)))
    return [None] * len(batches)


def _said_by_hosts(conn: Connection, names: tuple[str, ...], items: Sequence[tuple[Any, ...]]) -> list[None]:
    """Set columns by (host, session, values of the columns), but for what came by an older session."""
    if items:
        newest: dict[str, tuple[Any, ...]] = {}
        for item in items:
            if item[0] not in newest or newest[item[0]][1] <= item[1]:
                newest[item[0]] = item
        batch.execute(conn, _said(conn.dialect.name, names), newest.values())
    return [None] * len(items)


@cache
def _said(dialect: str, names: tuple[str, ...]) -> str:
    given = batch.Given(dialect, [HOSTS.c[name] for name in ("name", "session", *names)])
    host, session, *values = given.values
    changes = dict(zip(("session", *names), (session, *values), strict=True))
    is_newest = HOSTS.c.session <= sa.cast(session, sa.BigInteger)
    return batch.prepared(dialect, sa.update(HOSTS).values(changes).where(HOSTS.c.name == host, is_newest))


def _update_hosts(conn: Connection, names: tuple[str, ...], items: Sequence[tuple[Any, ...]]) -> list[None]:
    if items:
        last = {item[0]: item for item in items}
        batch.execute(conn, batch.update(conn.dialect.name, HOSTS, names), last.values())
    return [None] * len(items)


def get_host(conn: Connection, name: str) -> Row | None:
    """A host, or None when there is none with this name."""
    return one_row(conn, sa.select(HOSTS).where(HOSTS.c.name == name))


def draining(conn: Connection, names: Collection[str]) -> dict[str, Drain]:
    """Those of these hosts that are sent nothing new, by name."""
    c, running = CONNECTIONS.c, sa.and_(JOBS.c.host == HOSTS.c.name, JOBS.c.status.in_(OPEN), JOBS.c.sent)
    count = sa.select(sa.func.count()).select_from(JOBS).where(running).scalar_subquery()
    found = sa.select(HOSTS.c.name, sa.func.coalesce(c.stops, sa.false()), count)
    found = found.select_from(HOSTS.outerjoin(CONNECTIONS, c.host == HOSTS.c.name))
    its = found.where(HOSTS.c.name.in_(names), sa.or_(HOSTS.c.drains, c.drains))
    return {name: Drain(bool(stops), jobs) for name, stops, jobs in conn.execute(its)}


def undeclared(conn: Connection, names: Collection[str]) -> set[str]:
    """Those of these names that no host has."""
    return set(names).difference(
        it for (it,) in batch.gathered(conn, _declared(conn.dialect.name), ((name,) for name in names))
    )


def last_seen(conn: Connection, names: Collection[str]) -> dict[str, datetime]:
    """When these hosts were last seen, by name; of those that ever were."""
    found = sa.select(HOSTS.c.name, HOSTS.c.last_seen).where(HOSTS.c.name.in_(names), HOSTS.c.last_seen.is_not(None))
    return {row.name: row.last_seen for row in conn.execute(found)}


def list_hosts(conn: Connection, after: str | None, limit: int, labels: Iterable[LabelCondition] = ()) -> list[Row]:
    """Hosts ordered by name, starting after the name `after`. `labels`: what their labels must satisfy."""
    found = sa.select(HOSTS).where(*labels_match(HOSTS.c.labels, labels)).order_by(HOSTS.c.name).limit(limit)
    return all_rows(conn, found if after is None else found.where(HOSTS.c.name > after))


@cache
def _declared(dialect: str) -> str:
    given = batch.Given(dialect, [HOSTS.c.name]).select()
    return batch.gather(dialect, sa.select(HOSTS.c.name).where(HOSTS.c.name.in_(given)).subquery())
