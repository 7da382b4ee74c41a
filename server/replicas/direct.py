"""The direct connection: one session of PostgreSQL for each server, by which servers wake each other and one leads.

NOTIFY is sent here, outside of transactions that store something: inside, PostgreSQL would commit these one after the
other. Notifications are hints, and many become one; what they hint at is found by asking. The leader holds an advisory
lock of its session, which ends with it. The session also shares the lock of `store.ownership`.
"""

import asyncio
import contextlib
import logging
import math
import select
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from server.store import database
from server.store.bell import Bell
from server.store.ownership import KEY, OwnershipError, SessionLock
from server.store.servers import session_name

log = logging.getLogger(__name__)

LEADING = KEY + 2
"""The first half of the key of the lock that the leader holds."""
TICK_S = 1.0
"""Seconds between two looks at the connection and at the leader's lock."""
TOGETHER_S = 0.01
"""Seconds between two notifications; what is told meanwhile becomes one."""
AGAIN_S = 0.5
"""Seconds until a lost connection is tried again."""
LOG_EVERY_S = 60.0
"""Seconds between two log lines about a connection that cannot be made."""
CLOSE_S = 5.0
"""Seconds that `close` waits for the thread, which may wait for a database that does not answer."""

_TRY_TO_LEAD = """
    SELECT CASE WHEN EXISTS (SELECT 1 FROM servers WHERE id = %(server)s)
                THEN pg_try_advisory_lock(%(key)s, hashtext(current_schema())) ELSE false END
"""
"""Takes the leader's lock. One that the others took for dead, and that may stand still yet, leaves it to them."""


class Direct:
    """Runs the connection in a thread of its own from `start` to `close`.

    `url`: of PostgreSQL itself. `server`: this one's id in the store; only one that has a row there leads. `bell`: rung
    when the others are to be woken. `woken`, `elected` and `lost` are called
    in the event loop: when others told something or may have, when this server begins or ends to lead, and when an old
    release had the store meanwhile.
    """

    def __init__(
        self,
        url: sa.URL,
        server: str,
        bell: Bell,
        woken: Callable[[], None],
        elected: Callable[[bool], None],
        lost: Callable[[str], None],
    ) -> None:
        self._url = url
        self._server = server
        self._bell = bell
        self._woken = woken
        self._elected = elected
        self._lost = lost
        self._leads = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="direct-connection", daemon=True)

    def start(self) -> None:
        """Connect, and stay connected. The running event loop gets the calls."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Leave the connection and what it holds."""
        self._closed = True
        self._bell.ring()
        await asyncio.to_thread(self._thread.join, CLOSE_S)

    def _run(self) -> None:
        lock = SessionLock(self._url, known=True)  # the store is open, so it says who shares it
        engine = database.engine(self._url, 1, writes=False)
        sa.event.listen(engine, "connect", lock.take)
        logged_at = -math.inf
        while not self._closed:
            try:
                self._converse(engine)
            except OwnershipError as error:
                self._call(self._lost, str(error))
            except Exception as error:  # noqa: BLE001 - psycopg's, which only PostgreSQL needs, or SQLAlchemy's
                if self._leads or time.monotonic() - logged_at > LOG_EVERY_S:
                    logged_at = time.monotonic()
                    log.warning("no direct connection to the database", extra={"reason": str(error).strip()})
            finally:
                self._lead(False)
                engine.dispose()
            if not self._closed:
                time.sleep(AGAIN_S)

    def _converse(self, engine: sa.Engine) -> None:
        """Use one connection until it breaks, or until `close`. Raises errors of the driver, OwnershipError."""
        proxied = engine.raw_connection()
        connection: Any = proxied.driver_connection
        try:
            connection.set_autocommit(True)
            connection.execute("SELECT set_config('application_name', %s, false)", (session_name(self._server),))
            channel = connection.execute("SELECT 'lamplighter_' || current_schema()").fetchone()[0][:63]
            connection.execute(f'LISTEN "{channel}"')
            log.info("directly connected to the database", extra={"channel": channel})
            self._call(self._woken)  # what was told meanwhile was not heard
            connection.add_notify_handler(lambda heard: self._heard(connection, heard.pid))
            while not self._closed:
                self._try_to_lead(connection)
                self._listen(connection, channel, time.monotonic() + TICK_S)
        finally:
            with contextlib.suppress(Exception):
                connection.close()
            proxied.invalidate()

    def _listen(self, connection: Any, channel: str, until: float) -> None:
        """Hear notifications and send what is told, for a while."""
        while not self._closed and (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([connection.fileno(), self._bell], [], [], left)
            if self._bell in ready:
                self._bell.silence()
                connection.execute("SELECT pg_notify(%s, '')", (channel,))
                time.sleep(TOGETHER_S)
            if ready:
                connection.pgconn.consume_input()
                while (heard := connection.pgconn.notifies()) is not None:
                    self._heard(connection, heard.be_pid)

    def _heard(self, connection: Any, sender: int) -> None:
        if sender != connection.info.backend_pid:
            self._call(self._woken)

    def _try_to_lead(self, connection: Any) -> None:
        """Take the leader's lock if nobody has it. It is asked for again as proof that the connection works."""
        if self._leads:
            connection.execute("SELECT 1")
        elif connection.execute(_TRY_TO_LEAD, {"key": LEADING, "server": self._server}).fetchone()[0]:
            log.info("this server leads")
            self._lead(True)

    def _lead(self, leads: bool) -> None:
        if leads != self._leads:
            self._leads = leads
            self._call(self._elected, leads)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *args)
