"""What repositories hold, as far as a namespace is to know: snapshots by host, and bytes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from heapq import nsmallest

from msgspec import Struct
from sqlalchemy import Connection

from server.fleet.catalog import Catalog
from server.fleet.placement import Placement
from server.jobs.counts import latest
from server.resources.restic import rounded
from server.store.batch import plus
from server.store.counts import BYTES, SNAPSHOTS, CountRow, counts_of
from server.store.engine import Store
from server.store.rows import Row

MAX_HOSTS = 100
"""How many hosts a Repository's status names: it is an object of Kubernetes."""


class HostContents(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The snapshots of a host. `newest`: the newest one's time. `as_of`: when they were last counted in the repository;
    None if they never were, so that snapshots which no job has told of are not in `count`."""

    host: str
    count: int
    newest: datetime | None = None
    as_of: datetime | None = None


class Contents(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a repository holds.

    `newest`: of all hosts. `as_of`: the oldest one of the hosts'; None if it has none for one. `hosts`: the first, by
    their newest snapshots, the oldest first; `hosts_omitted`: how many more have any. `size_bytes`: as of `size_as_of`,
    and what backups added since, and `size` the same for people; all are None where it is not known.
    """

    count: int
    newest: datetime | None = None
    as_of: datetime | None = None
    size_bytes: int | None = None
    size: str | None = None
    size_as_of: datetime | None = None
    hosts: Sequence[HostContents] = ()
    hosts_omitted: int = 0


class ContentsReader:
    """Reads what repositories hold. A namespace whose grant has not all hosts is told of its own alone."""

    def __init__(self, catalog: Catalog, placement: Placement, store: Store) -> None:
        self._catalog = catalog
        self._placement = placement
        self._store = store

    async def of(self, repositories: Sequence[Row]) -> Mapping[str, Contents]:
        """What these repositories hold, by id; those of which nothing is known are left out. Raises Unavailable."""
        asked = {it["id"]: self._may_know(it["namespace"]) for it in repositories}
        return await self._store.read(_contents_of, asked)  # not on the loop: a repository may have thousands of hosts

    async def by_host(self, repository: Row) -> list[HostContents]:
        """The snapshots of each host that has any, by name. Raises Unavailable."""
        return await self._store.read(_hosts_of, repository["id"], self._may_know(repository["namespace"]))

    def _may_know(self, namespace: str) -> Callable[[str], bool]:
        """Whether a namespace may know what a host has; "" stands for hosts that can have no agent. Any thread asks."""
        grant, hosts = self._catalog.grant(namespace), self._placement.hosts
        if grant.has_all_hosts:
            return lambda _: True
        return lambda host: host in hosts and grant.selects(hosts[host].labels)


def _contents_of(conn: Connection, asked: Mapping[str, Callable[[str], bool]]) -> dict[str, Contents]:
    by_id: dict[str, list[CountRow]] = {}
    for row in counts_of(conn, asked.keys()):
        by_id.setdefault(row.repository_id, []).append(row)
    return {id_: contents(its, asked[id_]) for id_, its in by_id.items()}


def _hosts_of(conn: Connection, repository_id: str, may_know: Callable[[str], bool]) -> list[HostContents]:
    its = (row for row in counts_of(conn, [repository_id]) if row.what == SNAPSHOTS and row.host)
    return sorted((_of_host(row) for row in _held(its) if may_know(row.host)), key=lambda it: it.host)


def contents(rows: Iterable[CountRow], may_know: Callable[[str], bool]) -> Contents:
    """What a repository holds, from its counts. `may_know`: see `ContentsReader`."""
    its = [row for row in rows if may_know(row.host) or (row.what, row.host) == (BYTES, "")]
    snapshots = [row for row in its if row.what == SNAPSHOTS]
    held = _held(snapshots)
    hosts = [row for row in held if row.host]
    sizes = [row for row in its if row.what == BYTES]
    size_as_of = _oldest(row.at for row in sizes)
    size = _total(sizes) if size_as_of is not None else None
    return Contents(
        _total(held),
        max((at for row in held if (at := latest(row)) is not None), default=None),
        _oldest(row.at for row in held or snapshots),
        size,
        None if size is None else rounded(size),
        size_as_of,
        [_of_host(row) for row in nsmallest(MAX_HOSTS, hosts, _oldest_first)],
        max(0, len(hosts) - MAX_HOSTS),
    )


def _total(rows: Iterable[CountRow]) -> int:
    return reduce(plus, (plus(row.value, row.since) for row in rows), 0)


def _held(snapshots: Iterable[CountRow]) -> list[CountRow]:
    """The counts that are not 0."""
    return [row for row in snapshots if row.value + row.since]


def _of_host(row: CountRow) -> HostContents:
    return HostContents(row.host, plus(row.value, row.since), latest(row), row.at)


def _oldest_first(row: CountRow) -> tuple[bool, datetime | None, str]:
    newest = latest(row)
    return newest is not None, newest, row.host


def _oldest(times: Iterable[datetime | None]) -> datetime | None:
    """The oldest of these times; None if one is not known, or there is none."""
    known = list(times)
    return min((it for it in known if it is not None), default=None) if None not in known else None
