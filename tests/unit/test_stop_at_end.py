"""A run that is to stop when its window closes is stopped by its agent then, whatever server, clock and link do."""

from datetime import timedelta

import msgspec
import pytest

from agent.core.closings import Closings
from agent.core.timetable import NEVER
from server.agents.session import needed
from tests.unit.test_core import HOUR, MINUTE, NOON, Process, end, raw, run
from wire.messages import CommandRun

SECOND = timedelta(seconds=1)
STOPPED = [("job", "interrupted")]


def until(seconds: int | None) -> CommandRun:
    """A command whose job may go on for so many seconds."""
    return msgspec.structs.replace(run(), stop_after_s=seconds)


def test_a_job_is_stopped_once_when_its_window_closes_though_the_server_is_away() -> None:
    agent = Process(None, raw()).connect().hear(until(90)).lose()
    assert agent.core.wake_at == NOON + 90 * SECOND
    assert agent.tick(NOON + 89 * SECOND).stopped == []
    assert agent.tick(NOON + 90 * SECOND).tick(NOON + 91 * SECOND).stopped == STOPPED
    assert agent.core.wake_at == NOON + HOUR


def test_a_job_that_ends_before_is_not_stopped() -> None:
    agent = Process(None, raw()).connect().hear(until(90))
    agent.do(agent.core.job_ended(end()))
    assert agent.tick(NOON + 2 * MINUTE).stopped == []


@pytest.mark.parametrize(
    ("seconds", "stops"), [(30, NOON + MINUTE + 30 * SECOND), (0, NOON + MINUTE), (3600, NOON + HOUR + MINUTE)]
)
def test_another_end_of_the_window_counts_for_a_job_that_runs(seconds: int, stops: object) -> None:
    agent = Process(None, raw("a", "0 0 * * *")).connect().hear(until(90)).hear(until(seconds), NOON + MINUTE)
    assert (agent.started, agent.core.wake_at) == (["job"], stops)
    agent.hear(until(None), NOON + MINUTE)
    assert agent.core.wake_at == NOON + 12 * HOUR


def test_an_agent_that_stops_or_applies_a_push_stops_the_job_too() -> None:
    agent = Process(None, raw(), builds=False).connect().hear(until(90))
    assert agent.core.wake_at == NOON + 90 * SECOND
    agent.do(agent.core.drain(NOON))
    assert agent.tick(NOON + 90 * SECOND).stopped == STOPPED


def test_a_job_is_late_neither_after_a_sleep_of_the_host_nor_by_a_clock_that_is_set_back() -> None:
    closings = Closings()
    closings.put("job", 90, NOON)
    assert closings.due(NOON - HOUR) == []
    assert closings.next_at == NOON - HOUR + 90 * SECOND
    assert closings.due(NOON + 8 * HOUR) == ["job"]
    assert closings.next_at == NEVER


def test_only_an_agent_that_knows_of_it_gets_such_a_job() -> None:
    assert needed(until(0)) - needed(until(None)) == {"stop-after"}
