"""A Schedule that fails on too many hosts pauses: nothing of it begins until it is resumed, and nothing is lost."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import Ending
from server.jobs.turn import Gates, GateState, LaneState, Waiting
from server.store import rollouts
from tests.jobqueue import HOSTS, MINUTE, NOON, Jobs, in_memory, job
from tests.turns import turn
from wire.messages import JobFinished

PAUSED = "its Schedule to be resumed, which is paused since it failed on too many hosts"


@pytest.fixture
def jobs() -> Jobs:
    return pausing(Jobs(in_memory()))


def pausing(jobs: Jobs) -> Jobs:
    """All hosts are online. Schedule s pauses once it has failed on more than one host."""
    for host in HOSTS:
        jobs.connected(host)
    jobs.pausing["s"] = 1
    return jobs


def due(jobs: Jobs, at: int) -> list[str]:
    """The schedule is due on all hosts. Returns the ids of the jobs that are sent."""
    jobs.tick(at)
    return jobs.add(*(job(f"{host}{at}", host, schedule="s", at=at, due=NOON + at * MINUTE) for host in HOSTS))


# The core.


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8), st.one_of(st.none(), st.integers(1, 3)))
def test_nobody_passes_a_gate_that_is_shut_and_nobody_else_waits_for_it(
    drawn: list[tuple[bool, bool]], limit: int | None
) -> None:
    front = [Waiting(str(at), alone, (("shut", str(at)),) if held else ()) for at, (alone, held) in enumerate(drawn)]
    gates = Gates({"shut": GateState(frozenset({"0"}), limit, is_shut=True)})
    going = turn(LaneState(), front, gates)
    assert not {it.id for it in front if it.gates} & {*going, *gates.claims}
    assert going == turn(LaneState(), [it for it in front if not it.gates])


@given(st.integers(0, 5))
def test_a_gate_without_a_limit_lets_all_pass(many: int) -> None:
    front = [Waiting(str(at), gates=(("open", str(at)),)) for at in range(many)]
    assert turn(LaneState(), front, Gates({"open": GateState(limit=None)})) == [it.id for it in front]


# On a database.


def test_nothing_begins_once_it_failed_on_too_many_hosts_and_all_does_after_it_is_resumed(jobs: Jobs) -> None:
    assert due(jobs, 0) == ["a0", "b0", "c0"]
    jobs.fails_for_good("a0")
    assert jobs.add(job("again", schedule="s")) == ["again"]
    jobs.fails_for_good("again")  # the same host
    jobs.fails_for_good("b0")
    assert due(jobs, 1) == []
    assert jobs.waits_for("a1") == PAUSED
    assert jobs.ends("c0") == []
    assert jobs.add(job("run", "c", schedule="s", at=2), job("other", schedule="t", at=2)) == ["other"]
    assert jobs.resume() == ["a1", "b1", "run"]
    assert jobs.resume() is None


def test_it_begins_on_no_further_host_where_few_run_at_once(jobs: Jobs) -> None:
    jobs.rollouts["s"] = 1
    jobs.pausing["s"] = 0
    assert due(jobs, 0) == ["a0"]
    assert jobs.fails_for_good("a0") == []
    assert jobs.resume() == ["b0"]
    assert jobs.ends("b0") == ["c0"]


def test_without_a_policy_nothing_is_held_and_nothing_is_noted(jobs: Jobs) -> None:
    del jobs.pausing["s"]
    due(jobs, 0)
    for host in HOSTS:
        jobs.fails_for_good(f"{host}0")
    assert due(jobs, 1) == ["a1", "b1", "c1"]
    jobs.pausing["s"] = 0
    assert rollouts.failing(jobs.conn, "s") == []


def test_a_success_and_an_attempt_that_is_tried_again_and_a_run_that_somebody_cancels_count_for_nothing(
    jobs: Jobs,
) -> None:
    due(jobs, 0)
    jobs.fails_for_good("a0")
    jobs.fails("b0", 5)
    jobs.accepts("c0")
    jobs.finish("c", "c0", "cancelled")
    assert rollouts.pauses(jobs.conn) == {}
    assert jobs.add(job("a1", schedule="s")) == ["a1"]
    jobs.ends("a1")  # the newest run on a went well
    jobs.tick(5)
    jobs.finish("b", "b0.2", "timed_out")
    assert rollouts.failing(jobs.conn, "s") == ["b"]
    assert rollouts.pauses(jobs.conn) == {}


@pytest.mark.parametrize("reason", ["", "WindowClosed"])
def test_a_run_that_somebody_cancels_while_it_is_interrupted_counts_for_nothing(jobs: Jobs, reason: str) -> None:
    jobs.pausing["s"] = 0
    due(jobs, 0)
    jobs.accepts("a0")
    jobs.cancel("a0")
    jobs.finish("a", "a0", "interrupted", reason)
    assert rollouts.failing(jobs.conn, "s") == []


def test_a_host_on_which_the_next_run_waits_or_runs_does_not_count(jobs: Jobs) -> None:
    due(jobs, 0)
    jobs.fails_for_good("a0")
    jobs.ends("b0")
    jobs.ends("c0")
    due(jobs, 1)
    jobs.fails_for_good("b1")  # a fails each time, or not: nobody knows yet
    assert rollouts.pauses(jobs.conn) == {}
    jobs.fails_for_good("a1")
    assert rollouts.pauses(jobs.conn)["s"][1:] == (2, ["a", "b"])


def test_hosts_that_have_the_schedule_no_more_do_not_count(jobs: Jobs) -> None:
    due(jobs, 0)
    jobs.fails_for_good("a0")
    rollouts.forget_hosts(jobs.conn, ["a"])
    jobs.fails_for_good("b0")
    assert rollouts.pauses(jobs.conn) == {}


def test_ends_that_are_stored_together_count_together(jobs: Jobs) -> None:
    due(jobs, 0)
    ends = [Ending(host, [JobFinished(f"{host}0", "failed", NOON)], NOON) for host in HOSTS]
    jobs.queue.finish(jobs.conn, ends)
    assert rollouts.pauses(jobs.conn)["s"] == (NOON, 3, ["a", "b", "c"])


def test_what_is_tried_again_waits_while_it_is_paused(jobs: Jobs) -> None:
    jobs.pausing["s"] = 0
    due(jobs, 0)
    jobs.fails("a0", 5)
    jobs.fails_for_good("b0")
    assert jobs.tick(6) == []
    assert jobs.waits_for("a0") == PAUSED
    assert jobs.resume() == ["a0"]


def test_what_is_too_late_by_then_ends_as_always(jobs: Jobs) -> None:
    jobs.pausing["s"] = 0
    due(jobs, 0)
    jobs.fails_for_good("a0")
    assert jobs.add(job("late", schedule="s", at=1, start_by=NOON + 9 * MINUTE)) == []
    assert jobs.tick(10) == []
    assert jobs.ended["late"].status == "failed"
    assert jobs.resume() == []


def test_who_keeps_a_place_at_a_host_lets_it_go_when_its_schedule_is_paused(jobs: Jobs) -> None:
    jobs.pausing["s"] = 0
    jobs.of_hosts["a"] = 1
    assert jobs.add(job("0", "b"), job("bad", "c", schedule="s", repository="bad")) == ["0", "bad"]
    assert jobs.add(job("prune", kind="prune", schedule="s", at=1), job("next", repository="any", at=2)) == []
    assert jobs.fails_for_good("bad") == ["next"]
    assert jobs.waits_for("prune") == PAUSED
    assert jobs.ends("0") == []


def test_a_host_that_comes_back_begins_nothing_while_it_is_paused(jobs: Jobs) -> None:
    jobs.pausing["s"] = 0
    due(jobs, 0)
    jobs.disconnected("a")
    jobs.fails_for_good("b0")
    assert jobs.connected("a") == []  # it had not taken what it was sent
    assert jobs.resume() == ["a0"]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_begins_between_a_pause_and_its_end_and_nothing_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    jobs = Jobs(in_memory(), {"repo": ConcurrencyLimit(2)})
    jobs.of_hosts["a"], jobs.pausing["s"] = 1, 1
    jobs.rollouts |= {"s": 2} if seed % 2 else {}
    for host in HOSTS:
        jobs.connected(host)
    running: dict[str, str] = {}
    begun: Counter[str] = Counter()
    added: set[str] = set()

    def went(sent: list[str]) -> None:
        for job_id in sent:
            row = jobs.row(job_id)
            assert row["scheduled_id"] != "s" or not rollouts.paused(jobs.conn, ["s"]), f"{job_id} began"
            running[job_id] = row["host"]
            begun[job_id] += 1

    for at in range(80):
        chance = rng.random()
        if running and chance < 0.5:
            job_id = rng.choice(sorted(running))
            del running[job_id]
            went((jobs.fails_for_good if rng.random() < 0.4 else jobs.ends)(job_id))
        elif chance < 0.6 and rollouts.paused(jobs.conn, ["s"]):
            assert rollouts.pauses(jobs.conn)["s"].failed > 1
            went(jobs.resume() or [])
        else:
            added.add(f"{at:03}")
            kind, schedule = rng.choice(("backup", "backup", "prune")), rng.choice(("s", "s", "t"))
            went(jobs.add(job(f"{at:03}", rng.choice(HOSTS), kind, at, schedule, rng.choice(("repo", "any")))))
    while running or rollouts.paused(jobs.conn, ["s"]):
        went(jobs.resume() or [])
        if running:
            job_id = next(iter(running))
            del running[job_id]
            went(jobs.ends(job_id))
    assert not jobs.open()
    assert begun == Counter(added)
