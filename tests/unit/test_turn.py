"""Whose turn it is in a lane: the first goes first, the limit holds, and an exclusive job is alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.jobs.turn import LaneState, Waiting, turns
from tests.turns import turn

LIMITS = st.one_of(st.none(), st.integers(1, 5))


@st.composite
def lanes(draw: st.DrawFn) -> LaneState:
    """Lanes as they come about, those of a limit that was lowered included."""
    limit, exclusive = draw(LIMITS), draw(st.booleans())
    most = 1 if limit is None or exclusive else 8
    return LaneState(draw(st.integers(1 if exclusive else 0, most)), exclusive, limit)


@st.composite
def fronts(draw: st.DrawFn) -> list[Waiting]:
    kinds = draw(st.lists(st.sampled_from([False, False, False, True]), max_size=12))
    return [Waiting(str(at), exclusive) for at, exclusive in enumerate(kinds)]


def may_go(lane: LaneState, job: Waiting) -> bool:
    """The rule for one job, told anew."""
    if lane.active == 0:
        return True
    return not lane.exclusive and not job.exclusive and (lane.limit is None or lane.active < lane.limit)


@given(lanes(), fronts())
def test_jobs_go_one_by_one_until_the_next_may_not(lane: LaneState, front: list[Waiting]) -> None:
    going = turn(lane, front)
    assert going == [job.id for job in front[: len(going)]]  # nobody overtakes
    for job in front[: len(going)]:
        assert may_go(lane, job)
        lane = lane._replace(active=lane.active + 1, exclusive=job.exclusive)
    assert not any(may_go(lane, job) for job in front[len(going) : len(going) + 1])


@given(lanes(), fronts())
def test_no_more_are_active_than_the_limit_and_an_exclusive_job_is_alone(lane: LaneState, front: list[Waiting]) -> None:
    going = turn(lane, front)
    assert not going or lane.limit is None or lane.active + len(going) <= lane.limit
    exclusive = {job.id for job in front if job.exclusive} & set(going)
    assert not exclusive or (lane.active, len(going)) == (0, 1)
    assert not (lane.exclusive and going)


@given(lanes(), fronts(), st.integers(0, 12))
def test_it_does_not_matter_how_much_of_a_lane_is_looked_at_once(
    lane: LaneState, front: list[Waiting], most: int
) -> None:
    first = turn(lane, front[:most])
    active = lane.active + len(first)
    alone = lane.exclusive or any(job.exclusive for job in front[: len(first)])
    then = turn(lane._replace(active=active, exclusive=alone), front[len(first) :])
    assert first + then == turn(lane, front)


@given(LIMITS, fronts())
def test_every_lane_moves(limit: int | None, front: list[Waiting]) -> None:
    assert bool(turn(LaneState(limit=limit), front)) == bool(front)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_counts_as_one(limit: int) -> None:
    front = [Waiting("1"), Waiting("2")]
    assert turn(LaneState(0, limit=limit), front) == ["1"]
    assert turn(LaneState(1, limit=limit), front) == []


@given(lanes(), fronts())
def test_a_lane_that_is_full_has_no_slot_for_any_kind(lane: LaneState, front: list[Waiting]) -> None:
    assert lane.is_full == (not may_go(lane, Waiting("it")))
    assert not lane.is_full or turn(lane, front) == []


def copy(job_id: str, lane: str, from_lane: str) -> Waiting:
    return Waiting(job_id, lane=lane, from_lane=from_lane)


BUSY, ALONE, FREE = LaneState(1, limit=1), LaneState(1, exclusive=True), LaneState(limit=1)


@pytest.mark.parametrize(
    ("lanes", "front", "going"),
    [
        ({"to": FREE, "from": FREE}, [copy("c", "to", "from")], ["c"]),
        ({"to": FREE, "from": BUSY}, [copy("c", "to", "from")], []),
        ({"to": BUSY, "from": FREE}, [copy("c", "to", "from")], []),
        ({"to": FREE, "from": ALONE}, [copy("c", "to", "from")], []),
        # Both slots are taken: nobody else gets one.
        ({"to": FREE, "from": FREE}, [copy("c", "to", "from"), Waiting("x", lane="from")], ["c"]),
        ({"to": FREE, "from": FREE}, [copy("c", "to", "from"), copy("d", "from", "to")], ["c"]),
        # While its own lane is busy, others of the one it reads from pass it; in its own, nobody does.
        ({"to": BUSY, "from": FREE}, [copy("c", "to", "from"), Waiting("x", lane="from")], ["x"]),
        ({"to": ALONE, "from": FREE}, [copy("c", "to", "from"), Waiting("x", lane="from")], ["x"]),
        # Once there is a slot for it in its own lane, it holds off those behind it in both.
        ({"to": FREE, "from": LaneState(1, limit=2)}, [Waiting("x", True, lane="from"), copy("c", "to", "from")], []),
        (
            {"to": FREE, "from": BUSY, "third": FREE},
            [copy("c", "to", "from"), Waiting("x", lane="to"), copy("d", "third", "to")],
            [],
        ),
        # An exclusive job waits for a copy that reads.
        ({"from": LaneState(1)}, [Waiting("prune", True, lane="from")], []),
    ],
)
def test_a_copy_gets_both_slots_or_none(lanes: dict[str, LaneState], front: list[Waiting], going: list[str]) -> None:
    assert [it.id for it in turns(lanes, front)] == going


@st.composite
def crowds(draw: st.DrawFn) -> tuple[dict[str, int | None], list[Waiting]]:
    """Lanes with their limits, and jobs that wait for slots of one or two of them."""
    limits: dict[str, int | None] = {name: draw(LIMITS) for name in "abc"}
    jobs = []
    for at in range(draw(st.integers(1, 10))):
        lane, *more = draw(st.permutations("abc"))
        is_copy = draw(st.booleans())
        jobs.append(Waiting(str(at), not is_copy and draw(st.booleans()), (), lane, more[0] if is_copy else ""))
    return limits, jobs


@given(crowds(), st.randoms())
def test_all_get_their_turn_however_copies_cross_and_lanes_are_never_fuller_than_they_may_be(
    crowd: tuple[dict[str, int | None], list[Waiting]], rng: random.Random
) -> None:
    limits, waiting = crowd
    running: list[Waiting] = []
    while waiting or running:
        in_lane = {name: [it for it in running if name in (it.lane, it.from_lane)] for name in limits}
        states = {
            name: LaneState(len(its), any(it.exclusive and it.lane == name for it in its), limits[name])
            for name, its in in_lane.items()
        }
        for it in states.values():
            assert it.limit is None or it.active <= it.limit
            assert not it.exclusive or it.active == 1
        going = turns(states, waiting)
        waiting = [it for it in waiting if it not in going]
        running += going
        assert running, "nothing runs, and nothing begins: a deadlock"
        if not going:
            running.remove(rng.choice(running))


def test_a_copy_does_not_starve_behind_jobs_that_keep_coming() -> None:
    came = [Waiting("0", lane="from"), copy("c", "to", "from")]
    running: list[Waiting] = []
    for at in range(1, 5):
        came.append(Waiting(str(at), lane="from"))
        active = sum("from" in (it.lane, it.from_lane) for it in running)
        going = turns({"to": FREE, "from": LaneState(active, limit=1)}, came)
        came = [it for it in came if it not in going]
        running = (running + going)[-1:] if going else running[1:]
        if any(it.id == "c" for it in going):
            return
    pytest.fail("it never got its turn")
