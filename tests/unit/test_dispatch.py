"""The dispatcher waits for elapsed time, whatever the clock is set to, and knows what it has not sent, or stored."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest

from server.access.vault import Vault
from server.errors import Unavailable
from server.events import ClockSetBack, Events
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement
from server.jobs.active import ActiveAttempts
from server.jobs.dispatcher import HOLD_S, STORE_AGAIN_S, CallLater, Dispatcher
from server.jobs.fires import NewJob
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.pieces import PIECE
from server.jobs.repositories import RepositoryStates
from server.store.futures import Submit
from tests.jobqueue import NOON, Jobs, in_memory, job
from tests.simulation.clock import Stored
from wire.messages import CommandRun


class Time:
    """Seconds that pass, what is to come in them, and a clock that can be set."""

    def __init__(self) -> None:
        self.passed, self.clock = 0.0, NOON
        self.to_come: list[_Timer] = []
        self.is_stored = True  # whether the store takes anything
        self.answers = True  # whether it tells so

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
        self.gone: set[str] = set()

    def session(self, host: str) -> None:
        return None

    def is_connected_here(self, host: str) -> bool:
        return host not in self.gone

    def deliver(self, host: str, effects: Any) -> None:
        if host not in self.gone:
            self.sent.extend((host, it.messages[0].job_id) for it in effects)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def sent() -> list[tuple[str, str]]:
    """What hosts were sent."""
    return []


@pytest.fixture
def agents(sent: list[tuple[str, str]]) -> Agents:
    return Agents(sent)


@pytest.fixture
def jobs() -> Jobs:
    """A server was killed while host a ran job 1, for whose slot job 2 of host b waits."""
    jobs = Jobs(in_memory(), {"repo": ConcurrencyLimit(limit=1)})
    jobs.connected("a")
    jobs.add(job("1", "a"), job("2", "b"))
    jobs.accepts("1")
    return jobs


@pytest.fixture
def dispatch(jobs: Jobs, time: Time, agents: Agents) -> Dispatcher:
    """After a start: host a has said nothing yet and may be running a job, for whose slot one of host b waits."""

    def submit(function: Callable[..., Sequence[Any]], item: object, host: str = "") -> Stored:
        if not time.is_stored:
            raise Unavailable("the disk is full")
        (result,) = function(jobs.conn, [item])
        stored = Stored()
        lost = Unavailable("the connection to the database is lost")
        time.call_later(0, partial(stored.done, result) if time.answers else partial(stored.failed, lost))
        return stored

    placement, events = Placement(), Events()
    repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), placement, events)
    dispatch = Dispatcher(
        cast(Submit, submit),
        jobs.queue,
        ActiveAttempts(),
        agents,
        repositories,
        events,
        lambda: time.clock,
        cast(CallLater, time.call_later),
    )
    dispatch.begin()
    time.pass_by(0)
    dispatch.connected("b", ())
    return dispatch


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
    time.pass_by(0)
    assert time.to_come == []


def test_a_slot_that_could_not_be_given_up_is_given_up_once_the_store_takes_it(
    dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]]
) -> None:
    time.is_stored = False
    time.pass_by(HOLD_S + 3 * STORE_AGAIN_S)
    assert sent == []
    time.is_stored = True
    time.pass_by(STORE_AGAIN_S)
    assert sent == [("b", "2")]


def given_a_slot(dispatch: Dispatcher) -> None:
    dispatch.cancel(["1"], "to make room for job 2")


def asked_for(dispatch: Dispatcher) -> None:
    dispatch.record([NewJob("b", CommandRun("2b", "backup", [], "other"), "user", "me", 0, NOON)])


@pytest.mark.parametrize(("does", "job"), [(given_a_slot, "2"), (asked_for, "2b")])
def test_a_job_whose_host_goes_while_its_slot_is_stored_is_sent_after_the_next_hello(
    dispatch: Dispatcher,
    agents: Agents,
    time: Time,
    sent: list[tuple[str, str]],
    does: Callable[[Dispatcher], None],
    job: str,
) -> None:
    does(dispatch)
    agents.gone.add("b")
    dispatch.disconnected("b")
    time.pass_by(1)
    assert sent == []
    agents.gone.clear()
    dispatch.connected("b", ())
    time.pass_by(1)
    assert sent == [("b", job)]


def test_a_job_is_sent_that_was_given_a_slot_by_a_write_whose_answer_was_lost(
    dispatch: Dispatcher, time: Time, sent: list[tuple[str, str]]
) -> None:
    time.pass_by(0)
    time.answers = False
    given_a_slot(dispatch)
    time.pass_by(1)
    assert sent == []
    time.answers = True
    time.pass_by(STORE_AGAIN_S)
    assert sent == [("b", "2")]
    time.pass_by(3 * STORE_AGAIN_S)
    assert sent == [("b", "2")]


def test_that_a_host_disconnected_is_stored_once_the_store_takes_it(
    dispatch: Dispatcher, time: Time, agents: Agents, jobs: Jobs
) -> None:
    time.pass_by(0)
    assert jobs.ready() == ["2"]
    time.is_stored = False
    agents.gone.add("b")
    dispatch.disconnected("b")
    time.pass_by(3 * STORE_AGAIN_S)
    assert jobs.ready() == ["2"]
    time.is_stored = True
    time.pass_by(STORE_AGAIN_S)
    assert jobs.ready() == []


@pytest.fixture
def many(dispatch: Dispatcher, jobs: Jobs, time: Time, sent: list[tuple[str, str]]) -> list[str]:
    """The ids of more jobs than are sent in one turn of the event loop; host c, which was to have them, just came."""
    jobs.connected("c")
    many = jobs.add(*(job(f"c-{number:04}", "c", repository="free") for number in range(3 * PIECE)))
    sent.clear()
    dispatch.connected("c", ())
    while not sent:
        next_turn(time)
    return many


def next_turn(time: Time) -> None:
    """Run what the event loop has to do now, but not what comes of that."""
    for timer in [it for it in time.to_come if it.at <= time.passed]:
        timer.cancel()
        timer.do()


def test_many_jobs_are_sent_in_several_turns_of_the_event_loop(
    time: Time, many: list[str], sent: list[tuple[str, str]]
) -> None:
    sizes = [len(sent)]
    while len(sent) < len(many):
        next_turn(time)
        sizes.append(len(sent) - sum(sizes))
    assert (sizes, sorted(sent)) == ([PIECE] * 3, [("c", it) for it in many])


def test_a_job_that_is_to_end_before_its_turn_came_is_sent_first(
    dispatch: Dispatcher, jobs: Jobs, time: Time, many: list[str], sent: list[tuple[str, str]]
) -> None:
    unsent = [it for it in many if jobs.row(it)["sent"] and ("c", it) not in sent][-1]
    dispatch.cancel([unsent], "me")
    time.pass_by(0)
    assert [at for at, (_, job_id) in enumerate(sent) if job_id == unsent][-1] > sent.index(("c", unsent))
    assert sorted(sent) == sorted([*(("c", it) for it in many), ("c", unsent)])


def test_jobs_whose_host_went_before_their_turn_came_are_sent_once_it_is_back(
    dispatch: Dispatcher, time: Time, agents: Agents, many: list[str], sent: list[tuple[str, str]]
) -> None:
    agents.gone = {"c"}
    dispatch.disconnected("c")
    time.pass_by(0)
    assert len(sent) == PIECE
    agents.gone = set()
    dispatch.connected("c", [job_id for _, job_id in sent])
    time.pass_by(0)
    assert sorted(sent) == [("c", it) for it in many]


def test_a_job_that_its_host_never_got_ends_when_the_host_is_back_after_its_deadline(
    dispatch: Dispatcher, jobs: Jobs, time: Time, sent: list[tuple[str, str]]
) -> None:
    command = CommandRun("strict", "backup", [], "other")
    dispatch.record([NewJob("b", command, "user", "me", 0, NOON, start_by=NOON + timedelta(seconds=90))])
    time.pass_by(1)
    dispatch.disconnected("b")
    time.pass_by(300)
    assert (sent, "strict" in jobs.open()) == ([("b", "strict")], True)
    dispatch.connected("b", ())
    time.pass_by(1)
    assert "strict" not in jobs.open()
