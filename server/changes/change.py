"""A change: what it stores, all of it or nothing, and its entry in the log, from which other servers follow it.

An entry has the rows that the change puts and the names of what it deletes: each server makes the same plan of them.
It also has the new versions of hosts, so that these are the same everywhere, even where another release makes other
sets of the same rows. Credentials stay sealed in it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from server.events import Key
from server.resources.manifests import may_pause
from server.store import alerts, changelog, connections, joins, rollouts
from server.store.audit import record_audit
from server.store.counts import forget_counts
from server.store.declared import (
    delete_joined,
    delete_repositories,
    delete_schedules,
    upsert_joined,
    upsert_repositories,
    upsert_schedules,
)
from server.store.enrolments import delete_host_keys, upsert_enrolments, upsert_host_keys
from server.store.futures import Also
from server.store.hosts import delete_hosts, set_desired, upsert_hosts
from server.store.rows import (
    AuditRow,
    EnrolmentRow,
    HostKeyRow,
    HostRow,
    Joined,
    Met,
    Pair,
    RepositoryRow,
    ScheduleRow,
)
from server.store.tables import Actor

R = TypeVar("R", ScheduleRow, RepositoryRow, HostRow)


class Change(NamedTuple):
    """What one change stores, all of it or nothing.

    `audit`: the lines that tell of it. `desired`: the hosts whose sets change: (name, version, digest). `also`: what
    else is stored with it. `base`: the revision at which it was planned; None where no other server shares the store.
    `warnings`: messages and facts for the log, once it is stored. `moved_repositories`: the ids of those with another
    URL, so that what was counted there is forgotten.
    """

    at: datetime
    audit: Sequence[AuditRow] = ()
    desired: Sequence[tuple[str, int, str]] = ()
    put_schedules: Sequence[ScheduleRow] = ()
    delete_schedules: Sequence[ScheduleRow] = ()
    put_repositories: Sequence[RepositoryRow] = ()
    delete_repositories: Sequence[RepositoryRow] = ()
    put_hosts: Sequence[HostRow] = ()
    delete_hosts: Sequence[str] = ()
    put_enrolments: Sequence[EnrolmentRow] = ()
    put_host_keys: Sequence[HostKeyRow] = ()
    delete_host_keys: Sequence[str] = ()
    put_joined: Sequence[Joined] = ()
    delete_joined: Sequence[Pair] = ()
    put_met: Sequence[Met] = ()
    also: Also | None = None
    base: int | None = None
    warnings: Sequence[tuple[str, Mapping[str, str]]] = ()
    moved_repositories: Sequence[str] = ()

    @property
    def is_declared(self) -> bool:
        """Whether it changes what is declared; what it changes otherwise are versions, and the keys of hosts."""
        put = self.put_schedules or self.put_repositories or self.put_hosts
        return bool(put or self.delete_schedules or self.delete_repositories or self.delete_hosts)

    @property
    def rekeyed(self) -> list[str]:
        """The hosts whose former key, if they had one, is no longer valid."""
        return [*(key.host for key in self.put_host_keys), *self.delete_host_keys]


class Written(NamedTuple):
    """A change that was stored. `revision`: that of its entry, 0 without one. `answer`: that of `Change.also`."""

    revision: int
    answer: Any


class Entry(Struct, frozen=True, omit_defaults=True):
    """A change in the log. Rows are written by column, so that a release reads the columns that it knows.

    `versions`: the new version of each host whose set changes. `rekeyed`: see `Change.rekeyed`.
    """

    at: datetime
    versions: dict[str, int] = {}
    schedules: list[dict[str, Any]] = []
    repositories: list[dict[str, Any]] = []
    hosts: list[dict[str, Any]] = []
    deleted_schedules: list[Key] = []
    deleted_repositories: list[Key] = []
    deleted_hosts: list[str] = []
    rekeyed: list[str] = []

    @classmethod
    def of(cls, change: Change) -> Self:
        """The entry of a change."""
        return cls(
            change.at,
            {host: version for host, version, _ in change.desired},
            [row._asdict() for row in change.put_schedules],
            [row._asdict() for row in change.put_repositories],
            [row._asdict() for row in change.put_hosts],
            [(row.namespace, row.name) for row in change.delete_schedules],
            [(row.namespace, row.name) for row in change.delete_repositories],
            list(change.delete_hosts),
            change.rekeyed,
        )


def read_entry(body: str) -> Entry:
    """The entry in the body of a log entry. Raises msgspec.ValidationError."""
    return _entry.decode(body)


_entry = msgspec.json.Decoder(Entry)


def rows(kind: type[R], written: Sequence[Mapping[str, Any]]) -> list[R]:
    """The rows of an entry. Raises msgspec.ValidationError."""
    given = [tuple(kind(**{name: row[name] for name in kind._fields if name in row})) for row in written]
    return msgspec.convert(given, list[kind])  # type: ignore[valid-type]


def write_changes(conn: Connection, changes: Sequence[Change]) -> list[Written | None]:
    """A batch statement that stores changes, which touch different rows.

    The result is None for a change that was not stored, since others came after its base.
    """
    revisions = [0 if it.base is None else changelog.append(conn, it.base, it.at, _body(it)) for it in changes]
    stored = [change for change, revision in zip(changes, revisions, strict=True) if revision is not None]

    def each(field: str) -> list[Any]:
        return [row for change in stored for row in getattr(change, field)]

    answers = [_stored_also(conn, change.also) for change in stored]
    record_audit(conn, each("audit"))
    upsert_repositories(conn, each("put_repositories"))
    upsert_schedules(conn, each("put_schedules"))
    deleted_ids = [row.id for row in each("delete_schedules")]
    delete_schedules(conn, deleted_ids)
    rollouts.forget(conn, [*deleted_ids, *(row.id for row in each("put_schedules") if not may_pause(row.spec))])
    alerts.forget(conn, deleted_ids)
    gone = [row.id for row in each("delete_repositories")]
    delete_repositories(conn, gone)
    forget_counts(conn, [*gone, *each("moved_repositories")])
    upsert_hosts(conn, each("put_hosts"))
    if deleted := each("delete_hosts"):
        connections.forget(conn, deleted)
        rollouts.forget_hosts(conn, deleted)
        delete_hosts(conn, deleted)
    upsert_enrolments(conn, each("put_enrolments"))
    upsert_host_keys(conn, each("put_host_keys"))
    delete_host_keys(conn, each("delete_host_keys"))
    set_desired(conn, [each("desired")])
    delete_joined(conn, each("delete_joined"))
    upsert_joined(conn, each("put_joined"))
    joins.part(conn, each("delete_joined"))
    joins.meet(conn, each("put_met"))
    answered = iter(answers)
    return [None if revision is None else Written(revision, next(answered)) for revision in revisions]


def _body(change: Change) -> str:
    return msgspec.json.encode(Entry.of(change)).decode()


def _stored_also(conn: Connection, also: Also | None) -> Any:
    return None if also is None else also.statement(conn, [also.item])[0]


def audit(at: datetime, actor: Actor, action: str, kind: str, name: str, **detail: Any) -> AuditRow:
    """The audit line of a change. `kind`, `name`: the object that `actor` changes."""
    return AuditRow(at, actor.kind, actor.id, action, kind, name, detail)
