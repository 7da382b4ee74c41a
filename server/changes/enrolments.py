"""Enrolment of hosts outside a cluster: a short-lived token, valid once, lets an agent register a key of its own.

The agent generates the key and sends its hash. So an exchange whose answer was lost can be repeated: the same token
with the same key succeeds until the token expires.
"""

import hmac
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from server.access.agents import TOKEN_PREFIX, digest
from server.changes.change import Change, audit
from server.changes.pipeline import Pipeline
from server.errors import NotFound, Unauthorized
from server.fleet.placement import Placement, Plan
from server.store.engine import Store
from server.store.enrolments import get_enrolment, host_of_key, is_enrolled
from server.store.rows import EnrolmentRow, HostKeyRow
from server.store.tables import Actor

DEFAULT_S, SHORTEST_S, LONGEST_S = 3600, 60, 7 * 24 * 3600
"""Seconds for which an enrolment token is valid: default, minimum and maximum."""


class Enrolments:
    """Creates enrolment tokens, exchanges them for keys, and revokes keys."""

    def __init__(self, pipeline: Pipeline, store: Store, placement: Placement, clock: Callable[[], datetime]) -> None:
        self._pipeline = pipeline
        self._store = store
        self._placement = placement
        self._clock = clock

    async def offer(self, actor: Actor, host: str, valid_s: int = DEFAULT_S) -> tuple[str, datetime]:
        """Create a token that enrols a host; an older token of the host is no longer valid.

        Returns the token, and when it expires. Raises NotFound.
        """
        return await self._pipeline.planned(partial(self._offer, actor, host, valid_s))

    async def _offer(self, actor: Actor, host: str, valid_s: int) -> tuple[str, datetime]:
        if host not in self._placement.hosts:
            raise NotFound(f"there is no host {host!r}: create it first")
        now, token = self._clock(), TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = EnrolmentRow(host, digest(token), now + timedelta(seconds=valid_s))
        line = audit(now, actor, "create", "Enrolment", host, expires_at=row.expires_at.isoformat())
        await self._pipeline.commit(Change(now, [line], put_enrolments=[row]), Plan())
        return token, row.expires_at

    async def exchange(self, token: str, host: str, key_hash: str) -> None:
        """Register the key of a host's agent; an older key of the host is no longer valid.

        Raises Unauthorized, before it waits for other changes: anyone may send a token.
        """
        await self._valid(token, host, key_hash)
        await self._pipeline.planned(partial(self._exchange, token, host, key_hash))

    async def _exchange(self, token: str, host: str, key_hash: str) -> None:
        row = await self._valid(token, host, key_hash)
        if row.key_hash:
            return
        now = self._clock()
        line = audit(now, Actor("agent", host), "enrol", "Host", host)
        used, key = row._replace(key_hash=key_hash), HostKeyRow(host, key_hash, now)
        await self._pipeline.commit(Change(now, [line], put_enrolments=[used], put_host_keys=[key]), Plan())

    async def _valid(self, token: str, host: str, key_hash: str) -> EnrolmentRow:
        """The enrolment that this token is valid for. Its `key_hash` is empty until this exchange is done."""
        row = await self._store.read(get_enrolment, digest(token))
        if row is not None and row.host == host and self._clock() < row.expires_at:
            if row.key_hash and hmac.compare_digest(row.key_hash, key_hash):
                return row
            if not row.key_hash and await self._store.read(host_of_key, key_hash) in (None, host):
                return row
        raise Unauthorized(
            f"this token does not enrol {host!r}: it is unknown, was used, or has expired; "
            f"get another one with `lamplighter enrol {host}`"
        )

    async def revoke(self, actor: Actor, host: str) -> None:
        """Revoke a host's key and its enrolment token. Raises NotFound for a host with neither."""
        await self._pipeline.planned(partial(self._revoke, actor, host))

    async def _revoke(self, actor: Actor, host: str) -> None:
        if not await self._store.read(is_enrolled, host):
            raise NotFound(f"host {host!r} has no key")
        now = self._clock()
        line = audit(now, actor, "revoke", "HostKey", host)
        await self._pipeline.commit(Change(now, [line], delete_host_keys=[host]), Plan())
