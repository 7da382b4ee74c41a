"""What follows once something is stored: callbacks on the futures that `Store.submit` returns."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection

from server.errors import Unavailable
from server.store.engine import StoreClosedError

Result = TypeVar("Result")


class Submit(Protocol):
    """`Store.submit`, or what stands for it."""

    def __call__(
        self, function: Callable[[Connection, Sequence[Any]], Sequence[Any]], item: Any, host: str = ""
    ) -> "asyncio.Future[Any]":
        """Store an item, of a host or of none, with a batch statement."""


class Also(NamedTuple):
    """What is stored in the transaction of something else. `statement`: a batch statement, called with `item` alone.

    `then` is called with its answer, before anything that follows from the transaction.
    """

    statement: Callable[[Connection, Sequence[Any]], Sequence[Any]]
    item: Any
    then: Callable[[Any], None]


def then(
    future: "asyncio.Future[Result]", follow: Callable[[Result], None], failed: Callable[[], None] = lambda: None
) -> "asyncio.Future[Result]":
    """Call `follow` with the result once it is stored, or `failed`. Returns the future.

    The call comes before whoever awaits the future continues, and also if nobody awaits it any more.
    """

    def done(future: "asyncio.Future[Result]") -> None:
        if future.cancelled() or future.exception() is not None:
            failed()
        else:
            follow(future.result())

    future.add_done_callback(done)
    return future


def store_unattended(
    submit: Submit,
    function: Callable[[Connection, Sequence[Any]], Sequence[Any]],
    item: object,
    follow: Callable[[Any], None],
    failed: Callable[[], None],
    host: str = "",
) -> None:
    """Store something that nobody waits for. `failed` is called at once if the store takes nothing now."""
    try:
        future = submit(function, item, host)
    except (Unavailable, StoreClosedError):
        failed()
    else:
        then(future, follow, failed)


async def stored(*futures: "asyncio.Future[Any]") -> None:
    """Wait until all of these are stored. A cancelled caller stops waiting; the writes go on. Raises Unavailable."""
    for future in futures:
        await asyncio.shield(future)
