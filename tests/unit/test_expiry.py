"""A Run or a Restore is deleted when it ended long enough ago or too many ended after it, and never before it ended."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cluster.expiry import ended_at, expired
from controller.cluster.kube import Object
from controller.resources import Key

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
ETC, HOME = Key("Schedule", "ns", "etc"), Key("Schedule", "ns", "home")
MAIN = Key("Repository", "ns", "main")


def ended(ago_s: int, phase: str = "Succeeded", ttl: int | None = None, of: str = "etc", **metadata: Any) -> Object:
    at = (NOON - timedelta(seconds=ago_s)).isoformat().replace("+00:00", "Z")
    spec: dict[str, Any] = {"scheduleRef": {"name": of}, "repositoryRef": {"name": of}}
    spec |= {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, "completionTime": at}}


def run(name: str) -> Key:
    return Key("Run", "ns", name)


def limited(**limits: int) -> dict[Key, Object]:
    """A Schedule and a Repository with these limits."""
    return {ETC: {"spec": limits}, Key("Repository", "ns", "etc"): {"spec": limits}}


@pytest.mark.parametrize("kind", ["Run", "Restore"])
@pytest.mark.parametrize(
    ("ttl", "ago_s", "due", "next_in_s"),
    [
        (None, 10**9, False, None),
        (0, 0, True, None),
        (60, 59, False, 1),
        (60, 60, True, None),
        (2147483647, 0, False, 2147483647),
        (0, -30, False, 30),  # the server's clock is ahead
    ],
)
def test_it_is_deleted_so_many_seconds_after_its_end(
    kind: str, ttl: int | None, ago_s: int, due: bool, next_in_s: int | None
) -> None:
    key = Key(kind, "ns", "now")
    keys, next_at = expired({key: ended(ago_s, ttl=ttl)}, NOON)
    assert keys == ([key] if due else [])
    assert next_at == (None if next_in_s is None else NOON + timedelta(seconds=next_in_s))


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Pending"},
        {"phase": "Running", "startTime": "2026-03-01T00:00:00Z"},
        {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False", "reason": "Invalid"}]},
        {"phase": "Failed"},  # nobody knows when
        {"phase": "Failed", "completionTime": "2026-03-05T11:59:60Z"},
        {"phase": "Failed", "completionTime": "2026-03-05T11:59:59"},
        {"phase": "Failed", "completionTime": "2026-13-05T11:59:59Z"},
    ],
)
def test_what_has_not_ended_stays_whatever_its_limits(status: dict[str, Any]) -> None:
    its = {**ended(10, ttl=0), "status": status}
    others = {run("other"): ended(10, "Failed"), **limited(successfulRunsHistoryLimit=0, failedRunsHistoryLimit=0)}
    assert expired({run("now"): its, **others}, NOON).keys == [run("other")]


def test_a_time_beyond_all_times_is_never() -> None:
    its = {**ended(0, ttl=1), "status": {"phase": "Failed", "completionTime": "9999-12-31T23:59:59Z"}}
    assert expired({run("now"): its}, NOON) == ([], None)


def test_what_is_being_deleted_is_left_to_its_finalizers_and_not_counted() -> None:
    leaving = ended(1, ttl=0, deletionTimestamp="2026-03-05T11:59:59Z", finalizers=["a.b/c"])
    objects = {run("leaving"): leaving, run("stays"): ended(2), **limited(successfulRunsHistoryLimit=1)}
    assert expired(objects, NOON).keys == []


def test_a_run_that_found_no_host_ended_when_its_condition_says() -> None:
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-03-05T11:00:00Z"}
    done = {"type": "Complete", "status": "False", "lastTransitionTime": "2026-03-05T10:00:00Z"}
    its = {"metadata": {}, "spec": {}, "status": {"phase": "Failed", "conditions": [done, failed]}}
    assert ended_at(its) == NOON - timedelta(hours=1)


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({}, []),
        ({"successfulRunsHistoryLimit": 2}, []),
        ({"successfulRunsHistoryLimit": 1}, ["s2"]),
        ({"successfulRunsHistoryLimit": 0}, ["s2", "s1"]),
        ({"failedRunsHistoryLimit": 1}, ["f3", "f2"]),
        ({"successfulRunsHistoryLimit": 1, "failedRunsHistoryLimit": 0}, ["f3", "f2", "s2", "f1"]),
        ({"successfulRestoresHistoryLimit": 0}, []),
    ],
    ids=str,
)
def test_of_each_outcome_the_last_ones_stay(limits: dict[str, int], gone: list[str]) -> None:
    ago = {"s1": 10, "s2": 20, "f1": 15, "f2": 25, "f3": 35}
    ends = {run(it): ended(s, "Failed" if it.startswith("f") else "Succeeded") for it, s in ago.items()}
    others = {run("other"): ended(99, of="home"), Key("Run", "elsewhere", "s9"): ended(99)}
    assert [key.name for key in expired({**ends, **others, **limited(**limits)}, NOON).keys] == gone


def test_restores_are_counted_by_the_repository_that_they_are_from() -> None:
    ends = {Key("Restore", "ns", f"r{it}"): ended(it) for it in range(3)}
    objects = {**ends, **limited(successfulRestoresHistoryLimit=1, successfulRunsHistoryLimit=0)}
    assert [key.name for key in expired(objects, NOON).keys] == ["r2", "r1"]


ENDS = st.lists(st.tuples(st.integers(-50, 50), st.booleans(), st.none() | st.integers(0, 60)), max_size=12)


@given(ENDS, st.integers(0, 4), st.integers(0, 4), st.sets(st.integers(0, 11)))
def test_with_fewer_objects_known_nothing_more_is_deleted(
    ends: list[tuple[int, bool, int | None]], good: int, bad: int, unknown: set[int]
) -> None:
    """So a cache that is not complete yet, as after a restart, deletes nothing that should stay."""
    limits = limited(successfulRunsHistoryLimit=good, failedRunsHistoryLimit=bad)
    all_runs = {run(str(n)): ended(ago, "Succeeded" if ok else "Failed", ttl) for n, (ago, ok, ttl) in enumerate(ends)}
    known = {key: it for key, it in all_runs.items() if int(key.name) not in unknown}
    whole, part = expired({**all_runs, **limits}, NOON), expired({**known, **limits}, NOON)
    assert set(part.keys) <= set(whole.keys)
    left = [key for key in all_runs if key not in whole.keys]
    for phase, limit in (("Succeeded", good), ("Failed", bad)):
        assert sum(all_runs[key]["status"]["phase"] == phase for key in left) <= limit
