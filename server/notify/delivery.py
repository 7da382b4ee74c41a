"""Delivers messages from the store, each until it arrived or it is too old; those to one URL one after the other."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from sqlalchemy import Connection

from server.errors import Unavailable
from server.notify.webhooks import CallError
from server.store import alerts
from server.store.alerts import Attempt, DeliveryRow
from server.store.engine import Store, StoreClosedError

log = logging.getLogger(__name__)

CONCURRENCY = 16
"""The most messages that are on their way at once, and of one Alert or Schedule `PER_OWNER`."""
PER_OWNER = 2
FIRST_S, MAX_S = 5.0, 3600.0
"""Seconds before the first retry, and at most; each is about twice the one before."""
POLL_S, IDLE_S = 1.0, 15.0
"""Seconds between two looks at the store while messages wait, and while none does."""


class Failure(NamedTuple):
    """Why a message did not arrive. `final`: whether trying again is of no use."""

    why: str
    final: bool = False


Send = Callable[[DeliveryRow], Awaitable[Failure | None]]
"""Sends a message. Returns why it did not arrive; None if it did."""


def retry_at(row: DeliveryRow, now: datetime, keep: timedelta, rng: Random) -> datetime | None:
    """When a message that did not arrive is sent again; None when it is older than `keep`."""
    if now - row.created_at >= keep:
        return None
    pause = min(FIRST_S * 2.0 ** min(row.attempts, 20), MAX_S) * rng.uniform(0.75, 1.25)
    return now + timedelta(seconds=pause)


class Delivery:
    """Delivers what waits in the store while `follow` runs. `keep`: for how long messages of an owner are tried."""

    def __init__(
        self,
        store: Store,
        send: Send,
        keep: Callable[[DeliveryRow], timedelta],
        attempted: Callable[[Connection, Sequence[Attempt]], list[None]],
        clock: Callable[[], datetime],
        rng: Random,
        ended: Callable[[DeliveryRow], None],
    ) -> None:
        self._store = store
        self._send = send
        self._keep = keep
        self._attempted = attempted
        self._clock = clock
        self._rng = rng
        self._ended = ended
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There are new messages in the store."""
        self._woken.set()

    async def follow(self) -> None:
        """Deliver until cancelled. What was on its way then is sent again by the next server that delivers."""
        busy: set[tuple[str, str]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                waits = bool(busy)
                try:
                    rows = await self._store.read(alerts.due, self._clock(), 4 * CONCURRENCY, PER_OWNER)
                    waits = waits or await self._store.read(alerts.next_due) is not None
                except (Unavailable, StoreClosedError) as error:
                    log.warning("messages are delivered later", extra={"reason": error})
                    rows = []
                except Exception:
                    log.exception("messages are delivered later")
                    rows = []
                for row in _fitting(rows, busy):
                    busy.add((row.owner, row.target))
                    tasks.create_task(self._deliver(row, busy))
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S if waits else IDLE_S):
                        await self._woken.wait()

    async def _deliver(self, row: DeliveryRow, busy: set[tuple[str, str]]) -> None:
        try:
            failure = await self._sent(row)
            now = self._clock()
            if failure is None:
                attempt = Attempt(row, now)
            else:
                log.info("notification did not arrive", extra={"key": row.key, "reason": failure.why})
                again = None if failure.final else retry_at(row, now, self._keep(row), self._rng)
                attempt = Attempt(row, now, failure.why, again)
            await self._store.write(self._attempted, attempt)
            self._ended(row)
        except (Unavailable, StoreClosedError) as error:  # it is sent again, and the receiver knows it by its key
            log.warning("delivery not stored", extra={"reason": error})
            await asyncio.sleep(POLL_S)
        except Exception:  # a defect that one message meets stops no other
            log.exception("delivery not stored", extra={"owner": row.owner})
            await asyncio.sleep(POLL_S)
        finally:
            busy.discard((row.owner, row.target))
            self._woken.set()

    async def _sent(self, row: DeliveryRow) -> Failure | None:
        try:
            return await self._send(row)
        except CallError as error:
            return Failure(str(error))
        except Exception:  # a defect that one message meets stops no other
            log.exception("message not sent", extra={"owner": row.owner})
            return Failure("it could not be written: see the server's log")


def _fitting(rows: list[DeliveryRow], busy: set[tuple[str, str]]) -> list[DeliveryRow]:
    """The messages that may be sent now beside those that are on their way."""
    owners, chosen = Counter(owner for owner, _ in busy), list[DeliveryRow]()
    for row in rows:
        is_free = (row.owner, row.target) not in busy and owners[row.owner] < PER_OWNER
        if is_free and len(busy) + len(chosen) < CONCURRENCY:
            owners[row.owner] += 1
            chosen.append(row)
    return chosen
