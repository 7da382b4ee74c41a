"""Statements on connections: which server has which host, by the newest hello on whichever server."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from server.store import batch
from server.store.tables import CHANGE_HEAD, CONNECTIONS, HOSTS

_C = CONNECTIONS.c


class ConnectionRow(NamedTuple):
    """The newest connection of a host. `server`: None once it is gone, at `lost_at`; `hello`: None if none was kept."""

    host: str
    server: str | None
    lost_at: datetime | None
    session: int
    instance: str
    hello: Mapping[str, Any] | None


class Hello(NamedTuple):
    """A host's hello on a server. `instance`: the agent's process; `facts`: JSON of what it said of itself; `stops`:
    whether it begins nothing more."""

    host: str
    server: str
    instance: str = ""
    facts: str | None = None
    stops: bool = False


def connect(conn: Connection, hellos: Sequence[Hello]) -> dict[str, int]:
    """Hosts said hello. Returns their sessions, which only grow; a host that was deleted meanwhile has none."""
    last = {hello.host: hello for hello in hellos}
    if not last:
        return {}
    batch.execute(conn, _connect(conn.dialect.name), last.values())
    return dict(batch.gathered(conn, _sessions(conn.dialect.name), ((host,) for host in last)))


def forget(conn: Connection, hosts: Sequence[str]) -> None:
    """These hosts are to be deleted. If they come back, their sessions go on growing, since some server may hear of the
    older ones later."""
    newest = sa.select(sa.func.max(_C.session)).where(_C.host.in_(hosts)).scalar_subquery()
    conn.execute(sa.update(CHANGE_HEAD).values(sessions=newest).where(CHANGE_HEAD.c.sessions < newest))


def disconnect(conn: Connection, hosts: Iterable[str], server: str, now: datetime) -> None:
    """The connections of these hosts to a server are gone. Those that are newer, to another server, stay."""
    batch.execute(conn, _disconnect(conn.dialect.name), ((host, server, now) for host in hosts))


def drain(conn: Connection, hosts: Iterable[tuple[str, bool]]) -> None:
    """Whether nothing new is to begin on these hosts; nothing does where their agents are about to end."""
    for host, drains in hosts:
        conn.execute(sa.update(CONNECTIONS).where(_C.host == host).values(drains=sa.or_(_C.stops, sa.literal(drains))))


def agent_stops(conn: Connection, hosts: Iterable[str]) -> None:
    """The agents of these hosts begin nothing more, until their next hello."""
    conn.execute(sa.update(CONNECTIONS).where(_C.host.in_(list(hosts))).values(stops=True, drains=True))


def of_server(conn: Connection, hosts: Iterable[str], server: str) -> set[str]:
    """Those of these hosts that a server has."""
    return {host for host, at in servers_of(conn, hosts).items() if at == server}


def elsewhere(conn: Connection, hosts: Iterable[str], server: str) -> set[str]:
    """Those of these hosts that another server has."""
    return {host for host, at in servers_of(conn, hosts).items() if at not in {None, server}}


def offline(conn: Connection, hosts: Iterable[str]) -> set[str]:
    """Those of these hosts that no server has."""
    known = list(hosts)
    return set(known) - {host for host, at in servers_of(conn, known).items() if at is not None}


def all_of_server(conn: Connection, server: str) -> list[str]:
    """All hosts that a server has."""
    return [host for (host,) in batch.gathered(conn, _all_of_server(conn.dialect.name), [(server,)])]


def all_connections(conn: Connection) -> list[ConnectionRow]:
    """The newest connection of each host that ever had one."""
    return batch.whole(conn, [_C[name] for name in ConnectionRow._fields], ConnectionRow)


def servers_of(conn: Connection, hosts: Iterable[str]) -> dict[str, str | None]:
    """Which server has each of these hosts, None for none. Those that were deleted are left out."""
    asked = [(host,) for host in hosts]
    return dict(batch.gathered(conn, _servers(conn.dialect.name), asked)) if asked else {}


@cache
def _connect(dialect: str) -> str:
    names = ("host", "server", "instance", "hello", "stops")
    given = batch.Given(dialect, [_C.host, _C.server, _C.instance, _C.hello, _C.stops])
    known = sa.exists().where(HOSTS.c.name == given.values[0])
    first = sa.select(CHANGE_HEAD.c.sessions + 1).scalar_subquery()
    declared = sa.select(HOSTS.c.drains).where(HOSTS.c.name == given.values[0]).scalar_subquery()
    drains = sa.or_(sa.cast(given.values[4], sa.Boolean), declared)
    rows = sa.select(*given.values, first, drains).select_from(given.table).where(known)
    insert = postgresql.insert(CONNECTIONS) if dialect == "postgresql" else sqlite.insert(CONNECTIONS)
    put = insert.from_select([*names, "session", "drains"], rows, include_defaults=False)
    changed: dict[str, Any] = {name: put.excluded[name] for name in (*names[1:], "drains")}
    changed |= {"lost_at": sa.null(), "session": _C.session + 1}
    return batch.prepared(dialect, put.on_conflict_do_update(index_elements=["host"], set_=changed))


@cache
def _sessions(dialect: str) -> str:
    given = batch.Given(dialect, [_C.host]).select()
    return batch.gather(dialect, sa.select(_C.host, _C.session).where(_C.host.in_(given)).subquery())


@cache
def _servers(dialect: str) -> str:
    given = batch.Given(dialect, [_C.host]).select()
    return batch.gather(dialect, sa.select(_C.host, _C.server).where(_C.host.in_(given)).subquery())


@cache
def _disconnect(dialect: str) -> str:
    given = batch.Given(dialect, [_C.host, _C.server, _C.lost_at])
    host, server, now = given.values
    gone = sa.update(CONNECTIONS).values(server=None, lost_at=now)
    return batch.prepared(dialect, gone.where(_C.host == host, _C.server == server))


@cache
def _all_of_server(dialect: str) -> str:
    given = batch.Given(dialect, [_C.server]).select()
    return batch.gather(dialect, sa.select(_C.host).where(_C.server.in_(given)).subquery())
