"""Statements on Alerts, on what each has told, and on the messages that are still to be delivered."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import batch
from server.store.audit import record_audit
from server.store.queries import all_rows, one_row
from server.store.rows import AlertRow, AuditRow, Row
from server.store.tables import ALERT_STATES, ALERTS, DELIVERIES, SCHEDULES, UtcDateTime

MAX_WAITING = 20
"""The most messages that wait for one URL of one owner; of more, the oldest are given up."""

LATEST = timedelta(hours=2)
"""Longer than a message is ever put off."""


class AlertChange(NamedTuple):
    """An Alert to store, if what is stored by this name is still what that was decided on.

    `base`: id and generation of that; None if there was none. `row`: None to delete the Alert.
    """

    namespace: str
    name: str
    base: tuple[str, int] | None
    row: AlertRow | None
    audit: AuditRow | None = None


class Message(NamedTuple):
    """A message to deliver. `target`: which of its owner's URLs. `body`: its JSON."""

    target: str
    key: str
    body: str


class Decision(NamedTuple):
    """What an owner tells, and knows then. `base`: the version of its state on which that was decided; 0 for none."""

    owner: str
    base: int
    at: datetime
    body: str
    firing: int
    messages: Sequence[Message] = ()


class StateRow(NamedTuple):
    """What an owner has told. `body`: its JSON."""

    owner: str
    version: int
    at: datetime
    body: str


class DeliveryRow(NamedTuple):
    """A message that is still to be delivered."""

    id: int
    owner: str
    target: str
    key: str
    created_at: datetime
    attempts: int
    body: str


class Attempt(NamedTuple):
    """What came of an attempt to deliver. `error`: empty for a success. `retry_at`: None when it is not tried again."""

    delivery: DeliveryRow
    at: datetime
    error: str = ""
    retry_at: datetime | None = None


def change_alerts(conn: Connection, changes: Sequence[AlertChange]) -> list[bool]:
    """A batch statement that stores Alerts. Returns for each whether it still had its base, and so was stored."""
    return [_change(conn, change) for change in changes]


def _change(conn: Connection, change: AlertChange) -> bool:
    held = find_alert(conn, change.namespace, change.name)
    if (None if held is None else (held.id, held.generation)) != change.base:
        return False
    if change.row is not None:
        batch.put_rows(conn, ALERTS, AlertRow._fields, [change.row], keep=("created_at",))
        if not change.row.spec.get("enabled", True):
            forget(conn, [change.row.id])  # it is silent at once, and begins anew
    elif held is not None:
        conn.execute(sa.delete(ALERTS).where(ALERTS.c.id == held.id))
        forget(conn, [held.id])
    if change.audit is not None:
        record_audit(conn, [change.audit])
    return True


def forget(conn: Connection, owners: Sequence[str]) -> None:
    """Delete what owners have told, and the messages of theirs that did not arrive."""
    for table in (DELIVERIES, ALERT_STATES):
        batch.delete_rows(conn, table, "owner", owners)


def all_alerts(conn: Connection) -> list[AlertRow]:
    """All Alerts, by namespace and name."""
    return sorted(batch.whole(conn, [ALERTS.c[name] for name in AlertRow._fields], AlertRow), key=lambda it: it[1:3])


def find_alert(conn: Connection, namespace: str, name: str) -> AlertRow | None:
    """An Alert with its credentials, or None."""
    columns = [ALERTS.c[it] for it in AlertRow._fields]
    row = one_row(conn, sa.select(*columns).where(ALERTS.c.namespace == namespace, ALERTS.c.name == name))
    return None if row is None else AlertRow(**row)


def alert_of(conn: Connection, id_: str) -> AlertRow | None:
    """An Alert by its id, or None."""
    row = one_row(conn, sa.select(*(ALERTS.c[it] for it in AlertRow._fields)).where(ALERTS.c.id == id_))
    return None if row is None else AlertRow(**row)


def count_alerts(conn: Connection, namespace: str) -> int:
    """How many Alerts a namespace has."""
    found = sa.select(sa.func.count()).select_from(ALERTS).where(ALERTS.c.namespace == namespace)
    return conn.execute(found).scalar_one()


def states(conn: Connection) -> dict[str, StateRow]:
    """What each owner has told, by owner."""
    rows = batch.whole(conn, [ALERT_STATES.c[name] for name in StateRow._fields], StateRow)
    return {row.owner: row for row in rows}


def delivery_facts(conn: Connection, owners: Sequence[str]) -> dict[str, Row]:
    """By owner: how many situations fire, when messages last did and did not arrive, and how many `waiting`."""
    names = ("owner", "firing", "delivered_at", "failed_at", "error", "dropped")
    waiting = sa.select(sa.func.count()).where(DELIVERIES.c.owner == ALERT_STATES.c.owner).scalar_subquery()
    columns = [*(ALERT_STATES.c[name] for name in names), waiting.label("waiting")]
    found = all_rows(conn, sa.select(*columns).where(ALERT_STATES.c.owner.in_(owners)))
    return {row["owner"]: row for row in found}


def decided(conn: Connection, decisions: Sequence[Decision]) -> list[bool]:
    """A batch statement that stores decisions with their messages, all of each or nothing.

    Returns for each whether it was stored: not if another server decided since its base, or the owner was deleted.
    """
    return [_decided(conn, it) for it in decisions]


def _decided(conn: Connection, it: Decision) -> bool:
    owned = [sa.select(table.c.id).where(table.c.id == it.owner) for table in (ALERTS, SCHEDULES)]
    held = conn.execute(sa.select(ALERT_STATES.c.version).where(ALERT_STATES.c.owner == it.owner)).scalar()
    if (held or 0) != it.base or conn.execute(sa.union_all(*owned)).first() is None:
        return False
    values = {"version": it.base + 1, "at": it.at, "body": it.body, "firing": it.firing}
    if held is None:
        conn.execute(sa.insert(ALERT_STATES).values(owner=it.owner, dropped=0, **values))
    else:
        conn.execute(sa.update(ALERT_STATES).where(ALERT_STATES.c.owner == it.owner).values(**values))
    for message in it.messages:
        row = {**message._asdict(), "owner": it.owner, "created_at": it.at, "not_before": it.at, "attempts": 0}
        conn.execute(sa.insert(DELIVERIES).values(**row))
    for target in {message.target for message in it.messages}:
        _drop(conn, it.owner, _older(it.owner, target))
    return True


def _older(owner: str, target: str) -> sa.ColumnElement[bool]:
    """The messages to a URL but for the newest MAX_WAITING."""
    mine = DELIVERIES.c.owner == owner, DELIVERIES.c.target == target
    kept = sa.select(DELIVERIES.c.id).where(*mine).order_by(DELIVERIES.c.id.desc()).limit(MAX_WAITING)
    return sa.and_(*mine, DELIVERIES.c.id.not_in(kept))


def _drop(conn: Connection, owner: str, which: sa.ColumnElement[bool]) -> None:
    """Give messages up, and count them."""
    dropped = conn.execute(sa.delete(DELIVERIES).where(which)).rowcount
    if dropped:
        more = {"dropped": ALERT_STATES.c.dropped + dropped}
        conn.execute(sa.update(ALERT_STATES).where(ALERT_STATES.c.owner == owner).values(**more))


def due(conn: Connection, now: datetime, limit: int, each: int) -> list[DeliveryRow]:
    """Messages to deliver now: of each owner and URL the oldest one, if it is due, and of each owner `each` at most."""
    oldest = sa.select(sa.func.min(DELIVERIES.c.id)).group_by(DELIVERIES.c.owner, DELIVERIES.c.target)
    order = DELIVERIES.c.not_before, DELIVERIES.c.id
    place = sa.func.row_number().over(partition_by=DELIVERIES.c.owner, order_by=order).label("place")
    columns = [DELIVERIES.c[name] for name in DeliveryRow._fields]
    # What is due much later was put off by a clock that was ahead.
    is_due = sa.or_(DELIVERIES.c.not_before <= now, DELIVERIES.c.not_before > now + LATEST)
    ready = sa.and_(DELIVERIES.c.id.in_(oldest), is_due)
    found = sa.select(*columns, DELIVERIES.c.not_before, place).where(ready).subquery()
    few = sa.select(*(found.c[name] for name in DeliveryRow._fields)).where(found.c.place <= each)
    return [DeliveryRow(**row) for row in all_rows(conn, few.order_by(found.c.not_before, found.c.id).limit(limit))]


def next_due(conn: Connection) -> datetime | None:
    """When the next message is due; None if none waits."""
    oldest = sa.select(sa.func.min(DELIVERIES.c.id)).group_by(DELIVERIES.c.owner, DELIVERIES.c.target)
    found = sa.select(sa.func.min(DELIVERIES.c.not_before, type_=UtcDateTime)).where(DELIVERIES.c.id.in_(oldest))
    return conn.execute(found).scalar()


def waiting(conn: Connection) -> dict[str, int]:
    """By owner, to how many of its URLs a message waits."""
    count = sa.func.count(DELIVERIES.c.target.distinct())
    found = sa.select(DELIVERIES.c.owner, count).group_by(DELIVERIES.c.owner)
    return {row[0]: row[1] for row in conn.execute(found)}


class AlertStanding(NamedTuple):
    """How an Alert stands. `failed_at`: when its last message did not arrive, None if it did; `error`: why."""

    namespace: str
    name: str
    spec: Mapping[str, Any]
    failed_at: datetime | None
    error: str | None


def standings(conn: Connection, namespace: str) -> list[AlertStanding]:
    """How the Alerts of a namespace stand, or all, by namespace and name."""
    columns = ALERTS.c.namespace, ALERTS.c.name, ALERTS.c.spec, ALERT_STATES.c.failed_at, ALERT_STATES.c.error
    joined = ALERTS.outerjoin(ALERT_STATES, ALERT_STATES.c.owner == ALERTS.c.id)
    found = sa.select(*columns).select_from(joined).order_by(*columns[:2])
    if namespace:
        found = found.where(ALERTS.c.namespace == namespace)
    return [AlertStanding(**row) for row in all_rows(conn, found)]


def undelivered(conn: Connection) -> list[tuple[str, str]]:
    """The (namespace, name) of each Alert whose last message did not arrive."""
    columns = ALERTS.c.namespace, ALERTS.c.name
    joined = ALERTS.join(ALERT_STATES, ALERT_STATES.c.owner == ALERTS.c.id)
    found = sa.select(*columns).select_from(joined).where(ALERT_STATES.c.failed_at.is_not(None)).order_by(*columns)
    return [(namespace, name) for namespace, name in conn.execute(found)]


def attempted(conn: Connection, attempts: Sequence[Attempt]) -> list[None]:
    """A batch statement that stores what came of attempts to deliver."""
    for it in attempts:
        which, owner = DELIVERIES.c.id == it.delivery.id, it.delivery.owner
        mine = sa.update(ALERT_STATES).where(ALERT_STATES.c.owner == owner)
        if not it.error:
            conn.execute(sa.delete(DELIVERIES).where(which))
            conn.execute(mine.values(delivered_at=it.at, failed_at=None, error=None))
            continue
        conn.execute(mine.values(failed_at=it.at, error=it.error))
        if it.retry_at is None:
            _drop(conn, owner, which)
        else:
            later = {"not_before": it.retry_at, "attempts": DELIVERIES.c.attempts + 1}
            conn.execute(sa.update(DELIVERIES).where(which).values(**later))
    return [None] * len(attempts)
