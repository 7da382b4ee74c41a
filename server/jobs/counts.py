"""How many snapshots, and how many bytes, a repository holds, from what its jobs tell. No I/O but for `note`.

A count is a value as of a time, when a host counted, and what jobs have added since. In whatever order they are heard
of, it is never wrong by a job: one that was done by that time is in the value. A count that was heard of after some
jobs, and that would divide them, is left out: the older one stays, which says of when it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from server.jobs.kinds import repository_of, source_host
from server.resources.selectors import is_dns_name
from server.store.batch import plus
from server.store.counts import BYTES, SNAPSHOTS, CountKey, CountRow, counts_at, counts_of, delete_counts, put_counts
from server.store.tables import GOOD
from wire.messages import CommandRun, HostSnapshots, JobCounted, JobFinished


class Counted(NamedTuple):
    """A value as of a time. `newest`: the time of the newest snapshot."""

    value: int
    at: datetime
    newest: datetime | None = None


class Added(NamedTuple):
    """A job added something to a repository. `at`: when it was done; `made_at`: the time of its snapshot."""

    key: CountKey
    amount: int
    at: datetime
    made_at: datetime | None = None


class Looked(NamedTuple):
    """A host counted. `hosts`: the counts, by the `host` of their keys; `is_whole`: whether no other host has any;
    `is_cut`: whether others do, whose counts it does not tell."""

    repository_id: str
    what: str
    hosts: Mapping[str, Counted]
    at: datetime
    is_whole: bool = False
    is_cut: bool = False


class Lost(NamedTuple):
    """A job changed a repository by nobody knows how much."""

    key: CountKey


MOST_HOSTS = 20_000
"""Of how many hosts of a repository a cut count adds counts: twice as many as one tells. Hosts give any names."""
Told = Added | Looked | Lost
Counts = dict[CountKey, CountRow]


# What jobs tell.


def told_by_end(host: str, command: CommandRun, end: JobFinished, *, per_host: bool) -> list[Told]:
    """What the end of a job on a host tells. `per_host`: whether each host has a repository of its own."""
    repository, source = repository_of(command), source_host(command, host)
    size = CountKey(repository, BYTES, source if per_host else "")
    at = end.done_at or end.finished_at
    began = end.started_at or at
    found: list[Told] = []
    if end.created and command.kind == "backup":
        found.append(Looked(repository, BYTES, {size.host: Counted(0, began)}, began))
    if command.kind == "copy" and end.started_at is not None:
        found.append(Lost(size))  # one that was stopped may have copied much
    if end.status not in GOOD:
        return found
    if command.kind == "backup" and end.snapshot_id:
        found.append(Added(CountKey(repository, SNAPSHOTS, source), 1, at, began))
        found.append(Added(size, end.bytes_stored or end.bytes_added, at))
    if end.repository_bytes is not None:
        found.append(Looked(repository, BYTES, {size.host: Counted(end.repository_bytes, at)}, at))
    return found


def told_by_count(
    host: str, command: CommandRun, counted: JobCounted, now: datetime, *, per_host: bool, since: datetime | None = None
) -> list[Told]:
    """What a job on a host counted. A count of one host alone must be of the job's own.

    `since`: when the job began, by our clock, where that is known: it counted later, whatever the host's clock says.
    """
    source, at = source_host(command, host), min(max(counted.at, since or counted.at), now)
    if counted.of not in {"", source}:
        return []
    only = source if per_host else counted.of
    hosts = _by_host(counted.hosts, at, now)
    if only:
        hosts = {only: hosts.get(only, Counted(0, at))}
    is_whole = not only and not counted.more
    if is_whole:
        hosts.setdefault("", Counted(0, at))
    else:
        hosts.pop("", None)
    return [Looked(repository_of(command), SNAPSHOTS, hosts, at, is_whole, is_cut=not only and bool(counted.more))]


def _by_host(counted: Iterable[HostSnapshots], at: datetime, now: datetime) -> dict[str, Counted]:
    """Counts by host. Those of hosts that can have no agent here, for their names, are one count."""
    found: dict[str, Counted] = {}
    for it in counted:
        name = it.host if is_dns_name(it.host) else ""
        newest = datetime.fromtimestamp(min(it.newest, now.timestamp()), UTC)
        before = found.get(name, Counted(0, at, newest))
        found[name] = Counted(plus(before.value, it.count), at, max(newest, before.newest or newest))
    return found


# What is known then.


def taken(known: Mapping[CountKey, CountRow], told: Iterable[Told]) -> Counts:
    """The counts once these things were told, one after the other. One that is missing is 0 as of when all hosts of its
    repository were last counted."""
    counts = dict(known)
    for it in told:
        match it:
            case Added(key):
                counts[key] = _added(_count(counts, key), it)
            case Lost(key):
                counts.pop(key, None)
            case Looked():
                _take_look(counts, it)
    return counts


def _take_look(counts: Counts, look: Looked) -> None:
    of_repository = (look.repository_id, look.what)
    before = {CountKey(*of_repository, host): it for host, it in look.hosts.items()}
    if look.is_whole:
        others = [key for key in counts if key[:2] == of_repository]
        before = dict.fromkeys(others, Counted(0, look.at)) | before
    elif look.is_cut:
        room = MOST_HOSTS - sum(key[:2] == of_repository for key in counts)
        new = [key for key in before if key not in counts]
        for key in new[max(0, room) :]:
            del before[key]
    rows = {key: _looked(_count(counts, key), it) for key, it in before.items()}
    counts |= rows
    whole = counts.get(CountKey(*of_repository, ""))
    for key, row in rows.items():
        if look.is_whole and key.host and whole is not None and row == _nothing(key, whole.at):
            del counts[key]


def _count(counts: Mapping[CountKey, CountRow], key: CountKey) -> CountRow:
    if (known := counts.get(key)) is not None:
        return known
    whole = counts.get(key._replace(host=""))
    return _nothing(key, None if whole is None else whole.at)


def _nothing(key: CountKey, at: datetime | None) -> CountRow:
    return CountRow(*key, 0, at, 0, None, None, None, None)


def _added(row: CountRow, it: Added) -> CountRow:
    if row.at is not None and it.at <= row.at:
        return row
    return row._replace(
        since=plus(row.since, it.amount),
        first_at=min(row.first_at or it.at, it.at),
        last_at=max(row.last_at or it.at, it.at),
        made_at=_later(row.made_at, it.made_at),
    )


def _looked(row: CountRow, it: Counted) -> CountRow:
    if row.at is not None and it.at <= row.at:
        return row
    if row.last_at is None or row.last_at <= it.at:
        return _nothing(CountKey(*row[:3]), it.at)._replace(value=it.value, newest=it.newest)
    if row.first_at is not None and row.first_at > it.at:
        return row._replace(value=it.value, at=it.at, newest=it.newest)
    return row


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((it for it in (one, other) if it is not None), default=None)


def latest(row: CountRow) -> datetime | None:
    """The time of the newest snapshot of a count."""
    return _later(row.newest, row.made_at)


# Stored.


def note(conn: Connection, told: Sequence[Told]) -> None:
    """Take in what was told, in the store."""
    if not told:
        return
    known = {CountKey(*row[:3]): row for row in [*counts_at(conn, _keys(told)), *_all_of(conn, told)]}
    counts = taken(known, told)
    put_counts(conn, [row for key, row in counts.items() if known.get(key) != row])
    delete_counts(conn, known.keys() - counts.keys())


def _keys(told: Iterable[Told]) -> set[CountKey]:
    """The keys of the counts that these things are about, and of those that missing ones follow from."""
    keys: set[CountKey] = set()
    for it in told:
        its = [CountKey(it.repository_id, it.what, host) for host in it.hosts] if isinstance(it, Looked) else [it.key]
        keys |= {*its, *(key._replace(host="") for key in its)}
    return keys


def _all_of(conn: Connection, told: Iterable[Told]) -> list[CountRow]:
    whole = {it.repository_id for it in told if isinstance(it, Looked) and (it.is_whole or it.is_cut)}
    return counts_of(conn, whole) if whole else []
