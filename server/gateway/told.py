"""Statements that store what hosts say of themselves, and tell it the other servers in the same transaction."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection

from server.agents.session import LeftOutEntries
from server.jobs import notices
from server.jobs.notices import AnyNotice
from server.store import news
from server.store.hosts import host_acks, host_left_out


class ToldHosts:
    """`server`: the id of this server in the store. `is_shared`: whether there may be others."""

    def __init__(self, server: str, *, is_shared: bool) -> None:
        self._server = server
        self._is_shared = is_shared

    def acks(self, conn: Connection, items: Sequence[tuple[str, int, int, str, datetime]]) -> list[None]:
        """Store the applied state of hosts: (host, session, version, digest, time of the ack)."""
        host_acks(conn, items)
        by_set: dict[tuple[int, str], dict[str, int]] = {}
        for host, session, version, digest, _ in items:
            by_set.setdefault((version, digest), {})[host] = session
        self._tell(conn, items[-1][-1], [notices.Acked(hosts, *of) for of, hosts in by_set.items()])
        return [None] * len(items)

    def left_out(self, conn: Connection, items: Sequence[tuple[str, int, LeftOutEntries, datetime]]) -> list[None]:
        """Store which entries hosts could not apply: (host, session, entries, time)."""
        rows = [(host, number, msgspec.structs.asdict(it) if it.count else None) for host, number, it, _ in items]
        host_left_out(conn, rows)
        self._tell(conn, items[-1][-1], [notices.LeftOut(host, number, it) for host, number, it, _ in items])
        return [None] * len(items)

    def _tell(self, conn: Connection, now: datetime, its: Sequence[AnyNotice]) -> None:
        if self._is_shared:
            news.tell(conn, self._server, now, [notices.encode(its)])
