"""Hosts outside a cluster: an enrolment token, single use and short-lived, lets an agent register a key of its own.

The agent makes the key and sends its hash, so that an exchange whose answer was lost can be made again: the same token
with the same key succeeds until the token expires. Both secrets have 256 random bits and are stored as SHA-256.
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.errors import NotFound, Unauthorized
from server.store import batch as bulk
from server.store.audit import record_audit
from server.store.engine import Store
from server.store.rows import AuditRow
from server.store.tables import ENROLMENTS, HOST_KEYS, HOSTS, Actor

log = logging.getLogger(__name__)

TOKEN_PREFIX, KEY_PREFIX = "enrol_", "hostkey_"
"""How these secrets begin, so that people and scanners tell them apart."""
DEFAULT_S, SHORTEST_S, LONGEST_S = 3600, 60, 7 * 24 * 3600
"""Seconds for which an enrolment token is good."""


class EnrolmentRow(NamedTuple):
    """A host's newest enrolment. `key_hash`: of the key that it was used for, empty while unused."""

    host: str
    token_hash: str
    expires_at: datetime
    key_hash: str = ""


class Exchange(NamedTuple):
    """An agent's request to have its key registered."""

    token_hash: str
    host: str
    key_hash: str
    at: datetime


def digest(secret: str) -> str:
    """A secret as it is stored. Enough for secrets that are random: there is nothing to guess more slowly."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Enrolment:
    """Enrolments and host keys. `disconnect`: called with each host whose key is good no more."""

    def __init__(self, store: Store, disconnect: Callable[[str], None], clock: Callable[[], datetime]) -> None:
        self._store = store
        self._disconnect = disconnect
        self._clock = clock

    async def offer(self, actor: Actor, host: str, valid_s: int = DEFAULT_S) -> tuple[str, datetime]:
        """A new token to enrol a host with, in place of an older one, and when it expires. Raises NotFound."""
        now = self._clock()
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = EnrolmentRow(host, digest(token), now + timedelta(seconds=valid_s))
        audit = AuditRow(now, *actor, "create", "Enrolment", host, {"expires_at": row.expires_at.isoformat()})
        if not await self._store.write(offer, (row, audit)):
            raise NotFound(f"there is no host {host!r}: create it first")
        return token, row.expires_at

    async def exchange(self, token: str, host: str, key_hash: str) -> None:
        """Register the key of a host's agent, in place of an older one. Raises Unauthorized."""
        exchanged = await self._store.write(exchange, Exchange(digest(token), host, key_hash, self._clock()))
        if exchanged is None:
            raise Unauthorized(
                f"this token does not enrol {host!r}: it is not known, was used, or has expired; "
                f"get another with `lamplighter enrol {host}`"
            )
        if exchanged:
            self._disconnect(host)
            log.info("host enrolled", extra={"host": host})

    async def host_of(self, key: str) -> str:
        """The host whose key this is. Raises Unauthorized."""
        host = await self._store.read(host_of, digest(key))
        if host is None:
            raise Unauthorized("this host's key is not known or was revoked: delete its host-key and enrol it again")
        return host

    async def revoke(self, actor: Actor, host: str) -> None:
        """Have a host's key, and its enrolment, be good no more. Raises NotFound."""
        audit = AuditRow(self._clock(), *actor, "revoke", "HostKey", host, {})
        if not await self._store.write(revoke, audit):
            raise NotFound(f"host {host!r} has no key")
        self._disconnect(host)
        log.info("host's key revoked", extra={"host": host})


# What is written and read, for `Store`.


def offer(conn: Connection, items: Sequence[tuple[EnrolmentRow, AuditRow]]) -> list[bool]:
    """Store enrolments, each in place of its host's older one; False for a host that is not known."""
    return [_offer(conn, row, audit) for row, audit in items]


def _offer(conn: Connection, row: EnrolmentRow, audit: AuditRow) -> bool:
    if conn.execute(sa.select(HOSTS.c.name).where(HOSTS.c.name == row.host)).first() is None:
        return False
    conn.execute(bulk.upsert(conn.dialect.name, ENROLMENTS, row._fields), bulk.parameter([row]))
    record_audit(conn, [audit])
    return True


def exchange(conn: Connection, items: Sequence[Exchange]) -> list[bool | None]:
    """Register keys. True for one that is new, False for one that is registered already, None for a refusal."""
    return [_exchange(conn, item) for item in items]


def _exchange(conn: Connection, item: Exchange) -> bool | None:
    row = conn.execute(sa.select(ENROLMENTS).where(ENROLMENTS.c.token_hash == item.token_hash)).one_or_none()
    if row is None or row.host != item.host or row.expires_at <= item.at:
        return None
    if row.key_hash:
        return False if hmac.compare_digest(row.key_hash, item.key_hash) else None
    if host_of(conn, item.key_hash) not in (None, item.host):
        return None  # a key is one host's
    conn.execute(sa.update(ENROLMENTS).where(ENROLMENTS.c.host == item.host).values(key_hash=item.key_hash))
    keys = ("host", "key_hash", "created_at")
    conn.execute(bulk.upsert(conn.dialect.name, HOST_KEYS, keys), bulk.parameter([(item.host, item.key_hash, item.at)]))
    record_audit(conn, [AuditRow(item.at, "agent", item.host, "enrol", "Host", item.host, {})])
    return True


def revoke(conn: Connection, audits: Sequence[AuditRow]) -> list[bool]:
    """Delete the keys and enrolments of the hosts that these lines are about; False for one that has no key."""
    return [_revoke(conn, audit) for audit in audits]


def _revoke(conn: Connection, audit: AuditRow) -> bool:
    host = audit.object_name
    gone = conn.execute(sa.delete(HOST_KEYS).where(HOST_KEYS.c.host == host)).rowcount
    offered = conn.execute(sa.delete(ENROLMENTS).where(ENROLMENTS.c.host == host)).rowcount
    if gone or offered:
        record_audit(conn, [audit])
    return bool(gone or offered)


def host_of(conn: Connection, key_hash: str) -> str | None:
    """The host with this key, or None."""
    host: str | None = conn.execute(sa.select(HOST_KEYS.c.host).where(HOST_KEYS.c.key_hash == key_hash)).scalar()
    return host
