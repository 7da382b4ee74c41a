"""Limits across lanes hold, cost nobody else his turn, and let everybody have one."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.vault import Vault
from server.agents.session import Session
from server.events import DeclarationChanged, Event, Events, GatesChanged
from server.fleet.catalog import Catalog
from server.fleet.placement import HostState, Placement, Plan
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.limits import Limits, gate_of_host, gate_of_schedule
from server.jobs.turn import Gates, GateState, LaneState, Waiting
from server.resources.specs import HostSpec
from tests.jobqueue import HOSTS, NOON, Jobs, in_memory, job, placed
from tests.turns import turn
from wire.entries import EMPTY
from wire.messages import Hello


@pytest.fixture
def jobs() -> Jobs:
    """All hosts are online, and host a may run one job at a time."""
    jobs = Jobs(in_memory())
    for host in HOSTS:
        jobs.connected(host)
    jobs.of_hosts["a"] = 1
    return jobs


# The core.


@st.composite
def waiting(draw: st.DrawFn) -> list[Waiting]:
    drawn = draw(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from("xy"))), max_size=10))
    return [
        Waiting(str(at), alone, tuple((gate, str(at)) for gate in sorted(gates)))
        for at, (alone, gates) in enumerate(drawn)
    ]


@given(waiting(), st.integers(1, 3), st.integers(0, 2), st.one_of(st.none(), st.integers(1, 4)))
def test_gates_hold_and_whoever_is_held_back_holds_off_nobody(
    front: Sequence[Waiting], limit: int, passed: int, slots: int | None
) -> None:
    taken = frozenset(f"before {at}" for at in range(passed))
    gates = Gates({"x": GateState(taken, limit), "y": GateState(frozenset(), 1)})
    going = turn(LaneState(limit=slots), front, gates)
    for gate, most in (("x", max(limit - passed, 0)), ("y", 1)):
        assert sum((gate, it.id) in it.gates for it in front if it.id in going) <= most
    without = [it for it in front if it.id not in gates.held]
    assert going == turn(LaneState(limit=slots), without, Gates({name: GateState(limit=99) for name in "xy"}))
    assert all(not it.gates for it in front[: len(going)]) or not gates.held.keys() & set(going)


def test_a_job_that_is_to_be_alone_claims_its_gates_while_it_is_the_first() -> None:
    gates = Gates({"x": GateState(limit=1)})
    prune = Waiting("prune", True, (("x", "prune"),))
    assert turn(LaneState(active=1), [prune, Waiting("behind")], gates) == []
    assert gates.claims == ["prune"]
    assert turn(LaneState(), [Waiting("other", False, (("x", "other"),))], gates) == []
    assert turn(LaneState(), [prune], gates) == ["prune"]


# On a database.


def test_a_host_runs_as_many_jobs_at_once_as_it_may_whatever_their_repositories(jobs: Jobs) -> None:
    assert jobs.add(job("1"), job("2", repository="other"), job("3", "b"), job("4", "b")) == ["1", "3", "4"]
    assert jobs.waits_for("2") == "a job of host a to end, which runs as many at once as it may"
    assert jobs.ends("1") == ["2"]


def test_who_waits_for_a_host_holds_off_nobody_in_a_repository(jobs: Jobs) -> None:
    jobs.limits["repo"] = ConcurrencyLimit(limit=2)
    assert jobs.add(job("1"), job("2", at=1), job("3", "b", at=2)) == ["1", "3"]
    assert jobs.add(job("4", "b", at=3)) == []
    assert jobs.ends("1") == ["2"]  # the oldest, once its host is free
    assert jobs.ends("3") == ["4"]


def test_nobody_overtakes_those_who_wait_for_a_host(jobs: Jobs) -> None:
    jobs.limits["repo"] = ConcurrencyLimit(limit=1)
    assert jobs.add(job("0", "b"), job("1", repository="other")) == ["0", "1"]
    assert jobs.add(job("2", at=1), job("3", repository="other", at=2), job("4", repository="third", at=3)) == []
    assert jobs.ends("1") == ["3"]  # the repository of 2 is full
    assert jobs.ends("0") == []
    assert jobs.ends("3") == ["2"]
    assert jobs.ends("2") == ["4"]


def test_a_job_that_is_to_be_alone_gets_its_host_in_the_end(jobs: Jobs) -> None:
    assert jobs.add(job("0", "b"), job("1", repository="other")) == ["0", "1"]
    assert jobs.add(job("prune", kind="prune", at=1), job("2", repository="other", at=2)) == []
    assert jobs.ends("1") == []  # prune waits for 0, and keeps the host
    assert jobs.ends("0") == ["prune"]
    assert jobs.ends("prune") == ["2"]


def test_lists_of_snapshots_pass_every_gate(jobs: Jobs) -> None:
    assert jobs.add(job("1"), job("2", kind="snapshots"), job("3", kind="unlock", schedule="s")) == ["1", "2"]
    assert jobs.ends("2") == []
    assert jobs.ends("1") == ["3"]


def test_a_limit_that_is_raised_or_removed_lets_the_next_go(jobs: Jobs) -> None:
    assert jobs.add(*(job(str(at), at=at) for at in range(5))) == ["0"]
    assert jobs.limit_host("a", 3) == ["1", "2"]
    assert jobs.limit_host("a", 1) == []
    assert jobs.limit_host("a", None) == ["3", "4"]


def test_jobs_that_a_host_has_count_when_it_comes_back(jobs: Jobs) -> None:
    assert jobs.add(job("1"), job("2", at=1), job("3", repository="other", at=2)) == ["1"]
    jobs.accepts("1")
    jobs.disconnected("a")
    assert jobs.connected("a", ["1"]) == []
    assert jobs.ends("1") == ["2"]


def test_what_waited_for_a_host_that_left_waits_for_it_to_connect(jobs: Jobs) -> None:
    jobs.add(job("1"), job("2", at=1))
    jobs.disconnected("a")
    assert jobs.waits_for("2") == "host a to connect"
    assert jobs.cancel("1") == []
    assert jobs.connected("a") == ["2"]


@pytest.mark.parametrize("seed", range(5))
def test_limits_hold_nobody_waits_in_vain_and_all_have_their_turn(seed: int) -> None:
    rng = random.Random(seed)
    jobs = Jobs(in_memory(), {"repo": ConcurrencyLimit(2), "one": ConcurrencyLimit(1), "any": ConcurrencyLimit()})
    jobs.of_hosts |= {"a": 1, "b": 2}
    for host in HOSTS:
        jobs.connected(host)
    running: dict[str, str] = {}
    most = {"a": 1, "b": 2, "c": 99}

    def went(sent: Sequence[str]) -> None:
        running.update({job_id: jobs.row(job_id)["host"] for job_id in sent})
        for host in HOSTS:
            assert list(running.values()).count(host) <= most[host]

    for at in range(60):
        if running and rng.random() < 0.45:
            job_id = rng.choice(list(running))
            del running[job_id]
            went(jobs.ends(job_id))
        else:
            kind = rng.choice(("backup", "backup", "backup", "prune"))
            repository = rng.choice(("repo", "one", "any"))
            went(jobs.add(job(f"{at:03}", rng.choice(HOSTS), kind, at, repository=repository)))
        waits = [row for row in jobs.open().values() if row.id not in running]
        kinds = {job_id: jobs.open()[job_id] for job_id in running}
        for row in waits:
            beside = [it for it in kinds.values() if it.lane == row.lane]
            limit = jobs.limits[row.lane].limit
            alone = row.exclusive or any(it.exclusive for it in beside)
            is_free = not beside or (not alone and (limit is None or len(beside) < limit))
            before = any(it.lane == row.lane and it.id < row.id and it.exclusive for it in waits)
            claimed = any(it.host == row.host and it.exclusive for it in waits)
            host_free = list(running.values()).count(row.host) < most[row.host]
            assert not (is_free and host_free and not before and not claimed), f"{row.id} waits in vain"
    while running:
        job_id = next(iter(running))
        del running[job_id]
        went(jobs.ends(job_id))
    assert not jobs.open()


# Of a Schedule.


@pytest.fixture
def rollout(jobs: Jobs) -> Jobs:
    """Schedule s runs on one host at once."""
    jobs.of_hosts.clear()
    jobs.rollouts["s"] = 1
    return jobs


def test_a_schedule_runs_on_as_many_hosts_at_once_as_it_may(rollout: Jobs) -> None:
    assert rollout.add(*(job(host, host, schedule="s", at=at) for at, host in enumerate(HOSTS))) == ["a"]
    assert rollout.add(job("other", "b", schedule="t", at=9)) == ["other"]
    assert "rollout.maxConcurrentHosts" in rollout.waits_for("b")
    assert rollout.ends("a") == ["b"]
    assert rollout.ends("b") == ["c"]


def test_a_host_that_has_a_run_of_the_schedule_may_have_another(rollout: Jobs) -> None:
    jobs = [job("1", schedule="s", policy="Allow"), job("2", schedule="s", policy="Allow"), job("3", "b", schedule="s")]
    assert rollout.add(*jobs) == ["1", "2"]
    assert rollout.ends("1") == []
    assert rollout.ends("2") == ["3"]


def test_a_host_that_is_away_for_long_lets_the_next_go(rollout: Jobs) -> None:
    assert rollout.add(job("1", schedule="s"), job("2", "b", schedule="s")) == ["1"]
    rollout.disconnected("a")
    assert rollout.given_up("a") == ["2"]


def test_a_run_that_is_tried_again_lets_the_next_go(rollout: Jobs) -> None:
    assert rollout.add(job("1", schedule="s"), job("2", "b", schedule="s")) == ["1"]
    assert rollout.fails("1", 5) == ["2"]
    assert rollout.tick(5) == []
    assert rollout.ends("2") == ["1"]


# As declared.


def test_limits_are_those_of_the_schedule_the_host_and_its_agent_and_changes_of_them_are_told() -> None:
    told: list[Event] = []
    events, fleet, session = Events(), Placement(), Session(HostState("a", {}, NOON, 1, EMPTY))
    events.subscribe(told.append)
    limits = Limits(Catalog(Vault([Vault.new_key()])), fleet, {"a": session}.get, events)
    fleet.commit(Plan(put_hosts=[session.desired]))
    fleet.put([placed("s", rollout={"maxConcurrentHosts": 3}), placed("t")])
    assert limits.gates_of("a", "t") == []
    limits.on_event(DeclarationChanged(hosts=["a"], deleted_schedules=["s"]))
    assert told == []  # no job can be held back
    session.desired.declare(HostSpec(max_concurrent_jobs=2), "")
    assert limits.gates_of("a", "s") == [gate_of_schedule("s", 3), gate_of_host("a", 2)]
    session.hello(1, Hello("a", max_jobs=1))
    assert limits.gates_of("a", "t") == [gate_of_host("a", 1)]
    limits.on_event(DeclarationChanged(hosts=["a", "b"], deleted_schedules=["s", "t"]))
    assert told == [GatesChanged(["host/a", "rollout/s"])]
