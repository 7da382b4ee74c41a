"""Promise 9: a host's frames are worked on as they come only while little of what it said is not stored."""

import asyncio

import pytest

from server.gateway.inflow import Inflow


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_frames_are_left_to_the_task_until_it_waits_for_the_next_and_while_it_has_one() -> None:
    inflow = Inflow()
    before = inflow.is_open(1)
    with inflow.released():
        during = inflow.is_open(1)
    assert (before, during, inflow.is_open(1)) == (False, True, False)


def test_as_much_may_be_unstored_as_is_said() -> None:
    inflow = Inflow()
    with inflow.released():
        inflow.add(2)
        assert (inflow.is_open(2), inflow.is_open(3)) == (False, True)
        inflow.stored()
        assert inflow.is_open(2)


@pytest.mark.anyio
async def test_the_task_waits_until_all_is_stored() -> None:
    inflow = Inflow()
    await inflow.until_stored()
    inflow.add(2)
    waiting = asyncio.create_task(inflow.until_stored())
    await asyncio.sleep(0)
    inflow.stored()
    await asyncio.sleep(0)
    assert not waiting.done()
    inflow.stored()
    await waiting


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_to_be_told() -> None:
    inflow = Inflow()
    inflow.add(1)
    waiting = asyncio.create_task(inflow.until_stored())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    inflow.stored()
    assert waiting.cancelled()
