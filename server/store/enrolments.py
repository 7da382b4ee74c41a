"""Statements on enrolments and on the keys of hosts outside a cluster."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.rows import EnrolmentRow, HostKeyRow
from server.store.tables import ENROLMENTS, HOST_KEYS


def upsert_enrolments(conn: Connection, rows: Sequence[EnrolmentRow]) -> list[None]:
    """Put enrolments by host."""
    return batch.put_rows(conn, ENROLMENTS, EnrolmentRow._fields, rows, keep=())


def upsert_host_keys(conn: Connection, rows: Sequence[HostKeyRow]) -> list[None]:
    """Put keys by host. Raises IntegrityError when another host has that key."""
    return batch.put_rows(conn, HOST_KEYS, HostKeyRow._fields, rows, keep=())


def delete_host_keys(conn: Connection, hosts: Sequence[str]) -> list[None]:
    """Delete the keys and enrolments of hosts."""
    batch.delete_rows(conn, ENROLMENTS, "host", hosts)
    return batch.delete_rows(conn, HOST_KEYS, "host", hosts)


def get_enrolment(conn: Connection, token_hash: str) -> EnrolmentRow | None:
    """The enrolment with this token, used or not; None when there is none."""
    columns = [ENROLMENTS.c[name] for name in EnrolmentRow._fields]
    row = conn.execute(sa.select(*columns).where(ENROLMENTS.c.token_hash == token_hash)).one_or_none()
    return None if row is None else EnrolmentRow(*row)


def host_of_key(conn: Connection, key_hash: str) -> str | None:
    """The host with this key, or None."""
    host: str | None = conn.execute(sa.select(HOST_KEYS.c.host).where(HOST_KEYS.c.key_hash == key_hash)).scalar()
    return host


def is_enrolled(conn: Connection, host: str) -> bool:
    """Whether a host has a key or an enrolment."""
    found = (sa.exists().where(table.c.host == host) for table in (HOST_KEYS, ENROLMENTS))
    return bool(conn.execute(sa.select(sa.or_(*found))).scalar())
