"""The store: one database, a few readers, and one writer that commits all calls that arrived during the last commit.

A call is answered after its commit is on disk (SQLite: WAL with synchronous=FULL). Under load many calls share a
commit, and an idle store commits a single call at once: there is no delay to tune.
"""

import asyncio
import concurrent.futures
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn, Self, TypeVar, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from server.errors import Unavailable
from server.store import database, migrations, ownership, trouble, turns
from server.store.bell import Bell
from server.store.ownership import AwayError, FileLock, InUseError, OwnershipError, SessionLock

log = logging.getLogger(__name__)

MAX_WAITING = 100_000
"""Maximum calls of `write` that wait for a commit; further ones are refused."""
READERS = 4
"""Maximum reads at a time; others wait."""
CONNECTIONS = 1 + READERS + 1
"""Connections to PostgreSQL that a server needs: the writer's, the readers', and one that wakes."""
TRIES = 5
"""How often a transaction is run that gives way to others."""
FRESH_S = 2.0
"""Seconds for which the result of the last commit counts as the state of the database."""
LOG_EVERY_S = 60.0
"""Seconds between two log lines about a database that refuses writes."""
PROBE_S = 5.0
"""Seconds after which a probing commit counts as failed."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Args = TypeVarTuple("Args")

BatchStatement = Callable[[Connection, Sequence[Item]], Sequence[Result]]


class StoreError(Exception):
    """Base of the store's own errors."""


class StoreClosedError(StoreError):
    """The store was closed before this call."""


class StoreLostError(StoreError):
    """The store now belongs to another server, or its file was removed or replaced."""


class _Call(NamedTuple):
    function: BatchStatement[Any, Any]
    item: Any
    future: asyncio.Future[Any]
    host: str = ""


class Commits(NamedTuple):
    """The commits of a store since it was opened. `running_s`: for how long one has been running; 0 when none is."""

    finished: int
    seconds: float
    running_s: float


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    result: Any
    error: Exception | None


class Store:
    """An open database. It belongs to the event loop that awaits it.

    `server`: the id of this server in the store, another one at each start. `is_shared`: whether other servers may have
    the same database; then `direct` is its URL past a connection pooler, and `bell` rings after each commit of
    something that the others want to know.
    """

    def __init__(
        self,
        writer: Engine,
        readers: Engine,
        server: str,
        *,
        lock: FileLock | None = None,
        direct: sa.URL | None = None,
    ) -> None:
        self.server = server
        self.is_shared = direct is not None
        self.direct = direct
        self.bell = None if direct is None else Bell()
        self._writer = writer
        self._conn = writer.connect()
        self._readers = readers
        self._lock = lock
        self._lost: concurrent.futures.Future[NoReturn] = concurrent.futures.Future()
        self._outcome = (-math.inf, "")  # when a commit was last tried, and why it failed; by time.monotonic
        self._commit_since = math.nan  # when the running commit began, by time.monotonic
        self._commits, self._commit_s = 0, 0.0  # their number, and how long they took
        self._refusals = _Refusals()
        self._probing: asyncio.Future[str] | None = None
        self._turn: list[_Call] = []  # the calls of this turn of the loop
        self._calls: SimpleQueue[list[_Call] | None] = SimpleQueue()
        self._submitted = self._taken = 0  # calls, by the loop's thread and by the writer's
        self._drained: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._reads: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._pool = concurrent.futures.ThreadPoolExecutor(READERS, "store-reader")
        # A daemon, so that a commit that never returns cannot keep the process from ending after `close` gave up.
        self._thread = threading.Thread(target=self._write_until_closed, name="store-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, location: str | os.PathLike[str], *, direct: str = "") -> Self:
        """Open the database at a path (SQLite) or an SQLAlchemy URL; create or migrate it as needed. Blocks.

        Several servers may open one PostgreSQL database. Raises StoreError when a newer version has written the
        database, when it cannot be opened and written now, or when another server still has it, for itself alone, after
        `ownership.WAIT_S` seconds. A PostgreSQL that is away is waited for, for `ownership.START_S` seconds.

        `direct`: the URL of the same database past a connection pooler.
        """
        text = os.fspath(location)
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
        if url.get_backend_name() == "sqlite":
            if url.database in {None, "", ":memory:"}:
                raise StoreError("the store needs a file: a database in memory is lost when its connection closes")
            database.make_private(Path(str(url.database)))
        try:
            return ownership.waited_for(partial(cls._opened, url, sa.make_url(direct or url)))
        except (InUseError, AwayError) as error:
            raise StoreError(str(error)) from None

    @classmethod
    def _opened(cls, url: sa.URL, direct: sa.URL) -> Self:
        """Open the database at a URL, unless another server has it. Raises InUseError, AwayError, StoreError."""
        server = uuid.uuid4().hex
        try:
            if url.get_backend_name() == "sqlite":
                return cls._of_file(url, server)
            return cls._of_servers(url, direct, server)
        except migrations.UnknownRevisionError as error:
            raise StoreError(str(error)) from error
        except sa.exc.DBAPIError as error:
            where, why = url.render_as_string(), trouble.explained(error, CONNECTIONS)
            if url.get_backend_name() != "sqlite" and trouble.is_away(error):
                raise AwayError(f"{where}: {why}") from error
            remedy = "it must be reachable and writable, its disk not full, and no other process may lock it"
            raise StoreError(f"{where}: {why}: {remedy}") from error

    @classmethod
    def _of_file(cls, url: sa.URL, server: str) -> Self:
        lock, writer = FileLock(Path(str(url.database))), database.engine(url, 1, writes=True)
        try:
            with writer.begin() as conn:
                migrations.upgrade(conn)
                ownership.claim(conn, server)
        except BaseException:
            writer.dispose()
            lock.close()
            raise
        return cls(writer, database.engine(url, READERS, writes=False), server, lock=lock)

    @classmethod
    def _of_servers(cls, url: sa.URL, direct: sa.URL, server: str) -> Self:
        pooled, session = _is_pooled(url, direct), SessionLock(direct)
        writer = database.engine(url, 1, writes=True, pooled=pooled)
        first = database.engine(direct, 1, writes=True) if pooled else writer
        sa.event.listen(first, "connect", session.take)
        try:
            with first.begin() as conn:
                ownership.wait_for_migrations(conn)
                migrations.upgrade(conn)
                ownership.claim(conn, ownership.SHARED)
            session.claimed()
        finally:
            if pooled or not session.known:
                first.dispose()
        return cls(writer, database.engine(url, READERS, writes=False, pooled=pooled), server, direct=direct)

    @property
    def waiting(self) -> int:
        """The number of calls of `write` whose commit has not begun."""
        return self._submitted - self._taken

    @property
    def failing(self) -> bool:
        """Whether the last commit failed."""
        return bool(self._outcome[1])

    @property
    def commits(self) -> Commits:
        """How many commits there were, and how long they took. Any thread may ask."""
        since = self._commit_since
        return Commits(self._commits, self._commit_s, 0.0 if math.isnan(since) else time.monotonic() - since)

    async def write(self, function: BatchStatement[Item, Result], item: Item, host: str = "") -> Result:
        """Run `function(conn, items)` with this item and those of neighbouring calls; return after the commit.

        Calls keep their order; but those of different hosts may change places, so that a function gets the items of
        many hosts at once. `host`: whose call it is; empty if it is of none, or of several. When a batch fails, each of
        its calls runs again in a transaction of its own, so a function must have no effect except on its connection. A
        call is written even when its caller is cancelled. Raises what the function raises for this item; Unavailable
        when MAX_WAITING calls wait, or the database is locked, full or gone; StoreClosedError.
        """
        return await self.submit(function, item, host)

    def submit(self, function: BatchStatement[Item, Result], item: Item, host: str = "") -> "asyncio.Future[Result]":
        """Like `write`, but return a future, for callers that use the answer in a callback."""
        if self._closed:
            raise StoreClosedError("the store is closed")
        if self.waiting >= MAX_WAITING:
            raise Unavailable("the database cannot keep up: try again later")
        loop = asyncio.get_running_loop()
        if not self._turn:
            loop.call_soon(self._hand_over)
        future: asyncio.Future[Result] = loop.create_future()
        self._turn.append(_Call(function, item, future, host))
        self._submitted += 1
        return future

    def _hand_over(self) -> None:
        """Give the calls of this turn to the writer: to wake it for each would cost more than the calls."""
        if self._turn:
            self._calls.put(self._turn)
            self._turn = []

    async def read(self, function: Callable[[Connection, *Args], Result], *args: *Args) -> Result:
        """Run `function(conn, *args)` in a reader's thread, on one snapshot of the database.

        It sees everything written before. Raises what the function raises, Unavailable when the database is gone or
        cannot be read, StoreClosedError.
        """
        if self._closed:
            raise StoreClosedError("the store is closed")
        future = asyncio.get_running_loop().run_in_executor(self._pool, partial(self._read, function, *args))
        self._reads.add(future)
        future.add_done_callback(self._reads.discard)
        return await future

    def read_blocking(self, function: Callable[[Connection, *Args], Result], *args: *Args) -> Result:
        """Like `read`, for a thread that may wait. Raises what `read` raises."""
        if self._closed:
            raise StoreClosedError("the store is closed")
        return self._read(function, *args)

    async def refuses(self, probe: BatchStatement[datetime, None], now: datetime) -> str:
        """Why a write would fail now; empty when it would succeed.

        The result of a commit within the last FRESH_S seconds is used. Without one, `probe` is written once for all
        callers that wait.
        """
        at, why = self._outcome
        if self._lost.done() or time.monotonic() - at < FRESH_S:
            return why
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(self._probe(probe, now))
        return await asyncio.shield(self._probing)

    async def _probe(self, probe: BatchStatement[datetime, None], now: datetime) -> str:
        try:
            async with asyncio.timeout(PROBE_S):
                await self.write(probe, now)
        except TimeoutError:
            return f"the database did not answer within {PROBE_S:.0f} s"
        except (Unavailable, StoreClosedError) as error:
            return self._outcome[1] or str(error)
        return ""

    async def until_lost(self) -> NoReturn:
        """Wait until this server loses the store; nothing is written after that. Raises StoreLostError."""
        await asyncio.shield(asyncio.wrap_future(self._lost))
        raise StoreLostError

    def lose(self, why: str) -> None:
        """Write nothing from now on: others took this server for dead, or have the store. Any thread may call it."""
        with suppress(concurrent.futures.InvalidStateError):
            self._lost.set_exception(StoreLostError(why))
            log.critical("the store is lost: nothing is written any more", extra={"reason": why})

    async def close(self, timeout_s: float = 30) -> None:
        """Refuse new calls, commit those that wait, and close the database. It may be called again.

        Raises TimeoutError after `timeout_s` seconds; calls that were not committed by then are not answered.
        """
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._calls.put(None)
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(asyncio.wrap_future(self._drained))
            if self._reads:
                await asyncio.wait(self._reads)
        self._pool.shutdown(wait=False)
        self._readers.dispose()
        self._writer.dispose()
        if self.bell is not None:
            self.bell.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self, function: Callable[[Connection, *Args], Result], *args: *Args) -> Result:
        try:
            with self._readers.begin() as conn:
                return function(conn, *args)
        except sa.exc.DBAPIError as error:
            if not trouble.is_failure(error):
                raise
            raise Unavailable(f"the database cannot be read now: {trouble.explained(error, CONNECTIONS)}") from error

    def _write_until_closed(self) -> None:
        try:
            while calls := self._gathered():
                began_at = self._commit_since = time.monotonic()
                outcomes = self._committed(calls)
                self._commits, self._commit_since = self._commits + 1, math.nan
                self._commit_s += time.monotonic() - began_at
                _resolve_soon(outcomes)
        finally:
            self._conn.close()
            self._drained.set_result(None)

    def _connected(self) -> Connection:
        """The writer's connection; a new one after the database was away. Raises OwnershipError, DBAPIError."""
        if self._conn.invalidated or self._conn.closed:
            self._conn.close()
            self._conn = self._writer.connect()
        return self._conn

    def _committed(self, calls: Sequence[_Call]) -> list[_Outcome]:
        """Commit calls if this server still has the store, and keep the result for `refuses`."""
        try:
            if self._lost.done():
                self._lost.result()
            if self._lock is not None:
                self._lock.check()
            conn = self._connected()
            if self.failing:
                with conn.begin():  # on a full disk, calls that change nothing would succeed
                    ownership.probe(conn, [datetime.now(UTC)])
            outcomes, why = _commit(conn, calls), ""
            self._refusals.end()
            if conn.info.pop("wakes", False) and self.bell is not None:
                self.bell.ring()
        except (OwnershipError, StoreLostError) as error:
            self.lose(str(error))
            why = str(error)
            outcomes = [_Outcome(call.future, None, Unavailable(why)) for call in calls]
        except sa.exc.DBAPIError as error:  # locked, full or gone: each call alone would fail as well
            why = self._refused(error, len(calls))
            outcomes = [_Outcome(call.future, None, _unavailable(error)) for call in calls]
        self._outcome = (time.monotonic(), why)
        return outcomes

    def _refused(self, error: sa.exc.DBAPIError, calls: int) -> str:
        """Why the database took nothing; it is logged now and then."""
        if trouble.is_read_only(error):
            self._conn.invalidate()  # it may be a standby now, and another host of the URL takes writes
        reason = trouble.explained(error, CONNECTIONS)
        self._refusals.add(reason, calls, time.monotonic())
        return f"the database cannot be written now: {reason}"

    def _gathered(self) -> list[_Call]:
        """All calls that wait, at least one; none when the store is closed and all calls are taken."""
        calls: list[_Call] = []
        turn = self._calls.get()
        while turn is not None:
            calls += turn
            self._taken += len(turn)
            try:
                turn = self._calls.get_nowait()
            except Empty:
                return calls
        if calls:
            self._calls.put(None)  # closed: nothing comes after it, so the next round ends
        return calls


class _Refusals:
    """Logs that the database refuses writes: at the first refusal, every LOG_EVERY_S seconds, and when it ends."""

    def __init__(self) -> None:
        self._logged_at = -math.inf
        self._refused = self._unlogged = 0

    def add(self, reason: str, calls: int, now: float) -> None:
        """Count refused calls, and log them when it is time. `now`: by time.monotonic."""
        self._refused += calls
        self._unlogged += calls
        if now - self._logged_at >= LOG_EVERY_S:
            log.error("the database refuses writes", extra={"reason": reason, "calls": self._unlogged})
            self._logged_at, self._unlogged = now, 0

    def end(self) -> None:
        """Log the end of the refusals, if there were any: a commit succeeded."""
        if self._refused:
            log.info("the database takes writes again", extra={"refused": self._refused})
            self._logged_at, self._refused, self._unlogged = -math.inf, 0, 0


def _is_pooled(url: sa.URL, direct: sa.URL) -> bool:
    """Whether a pooler stands before PostgreSQL. Raises StoreError where there is no way past it."""
    if not database.is_pooled(url):
        return False
    if not database.is_pooled(direct):
        return True
    raise StoreError(
        f"{direct.render_as_string()}: a connection pooler gives each transaction another session there, and a server "
        "needs one connection of its own: give --database-direct, the URL of PostgreSQL itself"
    )


def _commit(conn: Connection, calls: Sequence[_Call]) -> list[_Outcome]:
    """Run calls in one transaction; if one fails, run each in a transaction of its own.

    Raises OwnershipError, and DBAPIError when the database itself failed.
    """
    try:
        return _transacted(conn, calls)
    except Exception as error:
        if len(calls) == 1 and trouble.is_transient(error):
            return [_Outcome(calls[0].future, None, _unavailable(error))]
        if isinstance(error, OwnershipError) or (trouble.is_failure(error) and not trouble.is_transient(error)):
            raise
        if len(calls) == 1:
            return [_Outcome(calls[0].future, None, error)]
        log.warning("a batch of writes failed: each runs again alone", exc_info=True, extra={"calls": len(calls)})
        return [outcome for call in calls for outcome in _commit(conn, [call])]


def _transacted(conn: Connection, calls: Sequence[_Call]) -> list[_Outcome]:
    """Run calls in one transaction; again, up to TRIES times, when PostgreSQL rolled it back for the sake of others.

    Calls have no effect except on the connection, so what was rolled back left nothing.
    """
    for tried in range(1, TRIES + 1):
        try:
            with conn.begin():
                turns.take(conn)
                return _run(conn, calls)
        except sa.exc.DBAPIError as error:
            if tried == TRIES or not trouble.is_transient(error):
                raise
            reason = str(error.orig).strip()
            log.info("a transaction gave way to another one", extra={"reason": reason, "calls": len(calls)})
    raise AssertionError("the last try returns or raises")


def _unavailable(error: Exception) -> Unavailable:
    problem = Unavailable("the database cannot be written now: see the server's log")
    problem.__cause__ = error
    return problem


def _run(conn: Connection, calls: Sequence[_Call]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for group in _grouped(calls):
        results = group[0].function(conn, [call.item for call in group])
        outcomes += [_Outcome(call.future, result, None) for call, result in zip(group, results, strict=True)]
    return outcomes


def _grouped(calls: Sequence[_Call]) -> list[list[_Call]]:
    """Calls in groups of one function. Those of one host keep their order, and those of none keep it with all."""
    groups: list[list[_Call]] = []
    reached: dict[str, int] = {}  # the group of the last call of each host since that of the last call of none
    least = 0  # the group of the last call of none
    for call in calls:
        begin = reached.get(call.host, least) if call.host else max(len(groups) - 1, 0)
        fitting = (at for at in range(begin, len(groups)) if groups[at][0].function == call.function)
        if (at := next(fitting, len(groups))) == len(groups):
            groups.append([])
        groups[at].append(call)
        if call.host:
            reached[call.host] = at
        else:
            reached, least = {}, at
    return groups


def _resolve_soon(outcomes: Sequence[_Outcome]) -> None:
    try:
        outcomes[0].future.get_loop().call_soon_threadsafe(_resolve, outcomes)
    except RuntimeError:  # the loop is closed: nobody waits
        log.warning("writes were committed after their event loop ended", extra={"calls": len(outcomes)})


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    for future, result, error in outcomes:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
