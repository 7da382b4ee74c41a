"""Nothing new begins on a host that is drained, what runs there ends, and what it missed is made up for once."""

from datetime import timedelta

import pytest

from agent.core.effects import Persist, Send, StartJob
from agent.core.machine import Core
from agent.core.state import AgentState
from server.agents.session import Fired, Session, Stops
from server.fleet.placement import HostState
from server.resources.specs import HostSpec
from server.store.hosts import draining
from tests.jobqueue import HOSTS, MINUTE, NOON, Jobs, in_memory, job
from wire.entries import EMPTY
from wire.messages import AgentClock, CommandRun, Hello, JobFinished, ScheduleFire


@pytest.fixture
def jobs() -> Jobs:
    """All hosts are online."""
    jobs = Jobs(in_memory())
    for host in HOSTS:
        jobs.connected(host)
    return jobs


# In the queue.


def test_nothing_new_begins_on_a_drained_host_and_what_runs_there_ends(jobs: Jobs) -> None:
    assert jobs.add(job("1"), job("2", "b")) == ["1", "2"]
    jobs.accepts("1")
    assert jobs.drain("a") == []
    assert jobs.add(job("3"), job("4", "b")) == ["4"]
    assert jobs.waits_for("3") == "host a, which is drained, until it is undrained"
    assert draining(jobs.conn, HOSTS) == {"a": (False, 1)}
    assert jobs.ends("1") == []
    assert draining(jobs.conn, HOSTS) == {"a": (False, 0)}
    assert jobs.drain("a", on=False) == ["3"]
    assert draining(jobs.conn, HOSTS) == {}


def test_a_host_stays_drained_when_it_connects_again(jobs: Jobs) -> None:
    jobs.add(job("1"))
    jobs.accepts("1")
    jobs.drain("a")
    jobs.disconnected("a")
    assert jobs.add(job("2")) == []
    assert jobs.connected("a", ["1"]) == []
    assert jobs.ends("1") == []
    assert jobs.drain("a", on=False) == ["2"]


def test_a_job_that_waits_in_a_lane_holds_off_nobody_while_its_host_is_drained(jobs: Jobs) -> None:
    jobs.limit("repo", 1)
    assert jobs.add(job("1", "b"), job("2", at=1), job("3", "c", at=2)) == ["1"]
    jobs.drain("a")
    assert jobs.ends("1") == ["3"]
    assert jobs.drain("a", on=False) == []
    assert jobs.ends("3") == ["2"]


def test_an_agent_that_stops_is_sent_nothing_until_it_says_hello_again(jobs: Jobs) -> None:
    jobs.add(job("1"))
    jobs.accepts("1")
    assert jobs.agent_stops("a") == []
    assert jobs.add(job("2")) == []
    assert jobs.waits_for("2") == "the agent of host a, which stops, to start again"
    assert draining(jobs.conn, HOSTS) == {"a": (True, 1)}
    assert jobs.connected("a", ["1"], stops=True) == []  # the connection broke meanwhile
    assert jobs.ends("1") == []
    jobs.disconnected("a")
    assert jobs.connected("a") == ["2"]


def test_an_agent_that_stops_on_a_host_that_is_undrained_begins_nothing(jobs: Jobs) -> None:
    jobs.drain("a")
    jobs.agent_stops("a")
    jobs.add(job("1"))
    assert jobs.drain("a", on=False) == []
    assert jobs.connected("a") == ["1"]


# In the session, and on the host.


def test_the_server_leaves_due_times_of_a_drained_host_to_its_agent() -> None:
    state = HostState("a", {}, NOON, 1, EMPTY, spec=HostSpec(drain=True))
    session = Session(state)
    session.hello(1, Hello("a"))
    fire = ScheduleFire("s", NOON)
    assert not any(isinstance(it, Fired) for it in session.received([(fire, "1")], NOON))
    state.spec = HostSpec()
    assert any(isinstance(it, Fired) for it in session.received([(fire, "1")], NOON))
    assert session.received([(AgentClock(NOON), "")], NOON) == []
    assert session.received([(AgentClock(NOON, stops=True), "")], NOON) == [Stops()]


def test_an_agent_that_drains_begins_nothing_and_reports_what_ends() -> None:
    core = Core("a", AgentState())
    core.connection_made(NOON)
    started = core.frame_received([CommandRun("1", "backup", [])], NOON)
    assert [type(it) for effect in started if isinstance(effect, Persist) for it in effect.then] == [Send, StartJob]
    assert core.drain(NOON) == [Send((AgentClock(NOON, stops=True),))]
    assert core.frame_received([CommandRun("2", "backup", [])], NOON) == []
    assert core.wake_at.year == 9999
    assert core.tick(NOON + timedelta(days=1)) == []
    core.connection_lost()
    (hello,) = (it for effect in core.connection_made(NOON) if isinstance(effect, Send) for it in effect.messages)
    assert isinstance(hello, Hello)
    assert (hello.stops, hello.running_jobs) == (True, ["1"])
    assert core.busy
    assert core.job_ended(JobFinished("1", "succeeded", NOON + MINUTE))
    assert not core.busy
