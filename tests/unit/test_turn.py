"""Whose turn it is in a lane: the first goes first, the limit holds, and an exclusive job is alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.jobs.turn import LaneState, Waiting, turn

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
