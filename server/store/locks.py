"""Locks of transactions on PostgreSQL, taken so that no two servers wait for each other.

A transaction has the statements of many calls. It locks rows and lanes in the order of the calls, and that of another
server does so in an order of its own. Three rules keep them from waiting for each other until PostgreSQL finds a
deadlock, a second later:

1. Keys are locked in their order. One that is out of order is only tried: if another server has it, the transaction
   gives way at once, and runs again with all keys that it is known to need taken first, in their order.
2. A transaction waits for a lock for `WAIT_MS` at most; then it gives way, and runs again as the patient one.
3. One transaction of all servers is patient at a time: it waits for any lock for as long as it takes. Whoever else is
   in its way gives way by rule 2. So of the transactions of any circle, all but one give way.

SQLite has one writer, so nothing here concerns it.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple, cast

from sqlalchemy import Connection

WAIT_MS = 100
"""Milliseconds that a transaction waits for a lock before it gives way: longer than most transactions take."""
KEYS = 256
"""How many keys the names share: a transaction locks as many at most, whatever it touches."""
IMPATIENT = f"SET LOCAL lock_timeout = {WAIT_MS}"
"""Begins a transaction in a session that may be another client's next."""
_CLASS = 0x4C616E65
"""The first half of the advisory locks' keys: "Lane"."""
_INFO = "locks"

Keys = Mapping[int, bool]
"""Keys, each with whether it is locked exclusively; if not, others may share it."""


class GaveWayError(Exception):
    """Another server has a lock that this transaction must not wait for. `keys`: what to take first in the next run."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("another server has a lock that is out of order here")
        self.keys = keys


class _Held(NamedTuple):
    transaction: object
    keys: dict[int, bool]
    is_patient: bool = False


def begin(conn: Connection, first: Keys, *, is_patient: bool) -> None:
    """Prepare the transaction that has just begun. `first`: keys that it takes before it has any other lock.

    `is_patient`: it waits for its turn to be the patient one.
    """
    if conn.dialect.name == "sqlite":
        return
    conn.info[_INFO] = _Held(conn.get_transaction(), {}, is_patient)
    if is_patient:
        conn.exec_driver_sql(_PATIENT)
    _take(conn, first)


def take(conn: Connection, names: Mapping[str, bool]) -> bool:
    """Lock names until the transaction ends, each exclusively or shared. Raises GaveWayError.

    Returns whether the transaction had not locked all of them so before: what it read of them may have changed.
    """
    if conn.dialect.name == "sqlite":
        return False
    keys: dict[int, bool] = {}
    for name, exclusive in names.items():
        key = key_of(name)
        keys[key] = keys.get(key, False) or exclusive
    return _take(conn, keys)


def key_of(name: str) -> int:
    """The key of a name, which it may share with others."""
    return zlib.crc32(name.encode()) % KEYS


def _take(conn: Connection, keys: Keys) -> bool:
    held = _held(conn)
    new = {key: keys[key] for key in sorted(keys) if keys[key] > held.keys.get(key, -1)}
    if not new:
        return False
    given = {"class": _CLASS, "keys": list(new), "exclusive": list(new.values())}
    if held.is_patient or not held.keys or min(new) > max(held.keys):
        conn.exec_driver_sql(_WAIT, given)
    elif not conn.exec_driver_sql(_TRY, given).scalar_one():
        raise GaveWayError({**held.keys, **new})
    held.keys.update(new)
    return True


def _held(conn: Connection) -> _Held:
    """What this transaction holds. What an earlier one of this connection held is gone."""
    transaction, held = conn.get_transaction(), cast("_Held | None", conn.info.get(_INFO))
    if held is None or held.transaction is not transaction:
        held = conn.info[_INFO] = _Held(transaction, {})
    return held


_GIVEN = "FROM unnest(CAST(%(keys)s AS integer[]), CAST(%(exclusive)s AS boolean[])) AS given (key, exclusive)"

_WAIT = f"""
    SELECT CASE WHEN exclusive THEN CAST(pg_advisory_xact_lock(%(class)s, key) AS text)
                ELSE CAST(pg_advisory_xact_lock_shared(%(class)s, key) AS text) END {_GIVEN}
"""
"""In the order of the keys."""

_TRY = f"""
    SELECT bool_and(CASE WHEN exclusive THEN pg_try_advisory_xact_lock(%(class)s, key)
                         ELSE pg_try_advisory_xact_lock_shared(%(class)s, key) END) {_GIVEN}
"""

_PATIENT = f"""
    SELECT set_config('lock_timeout', '0', true), pg_advisory_xact_lock({_CLASS + 1}, hashtext(current_schema()))
"""
