"""A watch that the API server has not answered for too long is noticed."""

import pytest

from controller.cluster.watching import Progress, watched_paths

A, B = "/apis/g/v1/as", "/apis/g/v1/bs"


def told(answers: list[tuple[str, float]], *, begun: tuple[float, ...] = (0.0,)) -> Progress:
    progress = Progress([A, B])
    for at in begun:
        progress.begin(at)
    for path, at in answers:
        progress.answered(path, at)
    return progress


@pytest.mark.parametrize(
    ("answers", "now", "stalled"),
    [
        ([], 10, []),
        ([], 11, [A, B]),
        ([(A, 5.0)], 11, [B]),
        ([(A, 5.0), (B, 6.0)], 11, []),
        ([(A, 5.0), (B, 6.0)], 16, [A]),
        ([("/api/v1/nodes", 12.0)], 13, [A, B]),
    ],
)
def test_a_watch_stalls_when_it_is_not_answered_for_too_long(
    answers: list[tuple[str, float]], now: int, stalled: list[str]
) -> None:
    assert list(told(answers).stalled(now, 10)) == stalled


def test_a_beginning_has_its_time_and_what_is_silent_since_before_is_still_told() -> None:
    progress = told([(A, 1.0), (B, 29.0)], begun=(0.0, 30.0))
    assert progress.stalled(35, 10) == ()
    assert list(progress.silent(35, 10)) == [A]


def test_nothing_is_silent_before_watches_begin() -> None:
    assert list(told([], begun=()).silent(1000, 10)) == []


def test_each_kind_is_watched_in_each_namespace_and_nodes_once() -> None:
    assert [it for it in watched_paths(["x", "y"]) if "schedules" in it or "nodes" in it] == [
        "/api/v1/nodes",
        "/apis/lamplighter.dev/v1alpha1/namespaces/x/schedules",
        "/apis/lamplighter.dev/v1alpha1/namespaces/y/schedules",
    ]
    assert "/apis/lamplighter.dev/v1alpha1/schedules" in watched_paths([])
