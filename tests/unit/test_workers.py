"""One object on which work fails, however it fails, does not set back others: workers go on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from controller.cluster.workers import Workers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def worked(work: Callable[[str], Awaitable[bool]], keys: list[str], until: asyncio.Event) -> None:
    """Have one worker work on keys until an event."""
    workers = Workers(work, 0.0, 0.0)
    workers.add(keys)
    running = asyncio.create_task(workers.run())
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(until.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    running.cancel()
    waiting.cancel()


async def test_an_error_that_nobody_expects_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> bool:
        tries.append(key)
        if tries == ["odd"]:
            raise KeyError("a field that every object has")
        if tries.count("odd") == 2 and "good" in tries:
            done.set()
        return True

    await worked(work, ["odd", "good"], done)
    assert sorted(tries) == ["good", "odd", "odd"]
    (record,) = [it for it in caplog.records if it.levelno == logging.ERROR]
    assert (record.message, record.key, record.exc_info is not None) == ("work failed, trying again", "odd", True)  # type: ignore[attr-defined]


async def test_what_is_not_done_is_tried_again_after_the_others() -> None:
    tries: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> bool:
        tries.append(key)
        if len(tries) == 3:
            done.set()
        return len(tries) != 1

    await worked(work, ["refused", "good"], done)
    assert sorted(tries) == ["good", "refused", "refused"]
