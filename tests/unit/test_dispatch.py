"""The dispatcher waits for elapsed time: setting the clock changes nothing."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest

from server.access.vault import Vault
from server.events import ClockSetBack, Events
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement
from server.jobs.dispatcher import HOLD_S, CallLater, Dispatcher
from server.jobs.job import ConcurrencyLimit
from server.jobs.lanes import Lanes
from server.jobs.repositories import RepositoryStates
from server.store.futures import Submit
from server.store.rows import OpenJob
from tests.simulation.world import Stored
from wire.messages import CommandRun

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


class Time:
    """Seconds that pass, what is to come in them, and a clock that can be set."""

    def __init__(self) -> None:
        self.passed, self.clock = 0.0, NOON
        self.to_come: list[_Timer] = []

    def call_later(self, seconds: float, do: Callable[[], None]) -> "_Timer":
        """An event loop's, whose time passes in `pass_by`."""
        self.to_come.append(timer := _Timer(self, self.passed + seconds, do))
        return timer

    def pass_by(self, seconds: float) -> None:
        end = self.passed + seconds
        while (timer := min(self.to_come, key=lambda it: it.at, default=None)) is not None and timer.at <= end:
            timer.cancel()
            self._goes_on(timer.at)
            timer.do()
        self._goes_on(end)

    def _goes_on(self, to: float) -> None:
        self.clock += timedelta(seconds=to - self.passed)
        self.passed = to


class _Timer:
    def __init__(self, time: Time, at: float, do: Callable[[], None]) -> None:
        self.time, self.at, self.do = time, at, do

    def cancel(self) -> None:
        self.time.to_come.remove(self)


class Agents:
    """Hosts that are reached at once, and whose agents never said what they do."""

    def __init__(self, sent: list[tuple[str, str]]) -> None:
        self.sent = sent

    def session(self, host: str) -> None:
        return None

    def deliver(self, host: str, effects: Any) -> None:
        self.sent.extend((host, it.messages[0].job_id) for it in effects)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def sent() -> list[tuple[str, str]]:
    """What hosts were sent."""
    return []


@pytest.fixture
def dispatch(time: Time, sent: list[tuple[str, str]]) -> Dispatcher:
    """After a start: host a has said nothing yet and may be running a job, for whose slot one of host b waits."""

    def submit(function: object, item: object) -> Stored:
        stored = Stored()
        time.call_later(0, lambda: stored.done(None))
        return stored

    lanes, placement, events = Lanes(), Placement(), Events()
    repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), placement, lanes, events)
    clock: Any = lambda: time.clock  # noqa: E731
    dispatch = Dispatcher(
        cast(Submit, submit),
        lanes,
        placement,
        Agents(sent),
        repositories,
        events,
        clock,
        cast(CallLater, time.call_later),
    )
    lanes.limit("repo", ConcurrencyLimit(limit=1))
    dispatch.load([_open("1", "a", "running"), _open("2", "b", "pending")])
    dispatch.connected("b", ())
    return dispatch


def _open(job_id: str, host: str, status: str) -> OpenJob:
    command = CommandRun(job_id, "backup", [], "repo")
    return OpenJob(host, status, msgspec.json.encode(command).decode(), NOON, status == "running", 1, None, False, None)


@pytest.mark.parametrize("set_by", [timedelta(), timedelta(days=1), timedelta(days=-1), timedelta(days=4000)])
def test_a_disconnected_host_keeps_its_slot_as_long_whatever_the_clock_is_set_to(
    dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]], set_by: timedelta
) -> None:
    time.pass_by(60)
    time.clock += set_by
    dispatch.on_event(ClockSetBack(time.clock))
    time.pass_by(HOLD_S - 61)
    assert sent == []
    time.pass_by(2)
    assert sent == [("b", "2")]


def test_a_host_that_connects_and_disconnects_keeps_its_slot_anew(
    dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]]
) -> None:
    time.pass_by(HOLD_S - 1)
    dispatch.connected("a", {"1"})
    dispatch.disconnected("a")
    time.pass_by(HOLD_S - 1)
    assert sent == []
    time.pass_by(2)
    assert sent == [("b", "2")]


def test_a_host_that_is_back_keeps_its_slot(dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]]) -> None:
    dispatch.connected("a", {"1"})
    time.pass_by(2 * HOLD_S)
    assert sent == []


def test_what_is_closed_gives_up_nobody(dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]]) -> None:
    dispatch.close()
    dispatch.disconnected("b")
    assert time.to_come == []
