"""Promise 9: what many open jobs cost grows as their number does, counted in calls and not in seconds."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from server.agents.session import Fired
from server.gateway.buckets import Buckets
from server.jobs.fires import decide
from server.jobs.job import ConcurrencyLimit, Job, State
from server.jobs.lanes import Lanes
from server.jobs.outcomes import Health
from server.jobs.resume import resumed
from server.observe.coverage import group_by_set
from tests.unit.test_session import NOON as DUE
from tests.unit.test_session import in_sync, placed
from wire.messages import CommandRun, JobFinished, ScheduleFire

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
FEW, MANY = 1000, 4000
MOST = 4.5
"""Times the calls that four times as many jobs may cost: some are sorted."""


def counted(
    do: Callable[[], object],
) -> int:
    """How many calls something makes, those into C included."""
    calls = 0

    def called(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        do()
    finally:
        sys.setprofile(None)
    return calls


def queued(
    count: int, *, schedules: int = 1, serial: bool = True, state: State = "waiting", repository: str = "main"
) -> Lanes:
    lanes = Lanes()
    jobs = [
        Job(
            CommandRun(f"job{at}", "backup", [], repository, schedule_id=f"s{at % schedules}"),
            "db-1",
            NOON + timedelta(seconds=at),
            serial,
            NOON + timedelta(days=1),
            state=state,
        )
        for at in range(count)
    ]
    lanes.add(jobs)
    return lanes


def pieces(lanes: Lanes, now: datetime = NOON) -> Iterator[None]:
    """Do all that is to be done by that time, piece by piece."""
    while lanes.has_more or (lanes.wake_at is not None and lanes.wake_at <= now):
        lanes.tick(now)
        lanes.take()
        yield


def settle(lanes: Lanes, now: datetime = NOON) -> None:
    for _ in pieces(lanes, now):
        pass


def says_hello(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    settle(lanes)


def hello_of_running(lanes: Lanes) -> None:
    running = [job.wire_id for job in lanes.of_host("db-1")]
    resumed((), running, lanes.of_host("db-1"), NOON)
    lanes.connected("db-1", running)
    settle(lanes)


def comes_and_goes(lanes: Lanes) -> None:
    for _ in range(3):
        lanes.connected("db-1", ())
        settle(lanes)
        lanes.disconnected("db-1")
        settle(lanes)


def is_disconnected_for_long(lanes: Lanes) -> None:
    lanes.disconnected("db-1")
    settle(lanes)
    lanes.release_slots("db-1")
    settle(lanes)


def ends(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    while lanes.jobs:
        going = lanes.take() or list(lanes.jobs.values())
        for job in going:
            lanes.remove(job.id)


def is_limited(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    lanes.limit("main", ConcurrencyLimit(1))
    lanes.limit("main", ConcurrencyLimit(2, per_host=True))
    settle(lanes)


def is_told_of(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    for job_id in list(lanes.jobs):
        lanes.waits_for(job_id, "ns/main")
        lanes.find("db-1", job_id)
        lanes.is_of_another_host("db-1", job_id)
        assert lanes.waiting_count >= 0
        assert lanes.hanging(NOON) == []


def is_too_late(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    settle(lanes, NOON + timedelta(days=2))


def is_tried_again(lanes: Lanes) -> None:
    lanes.connected("db-1", ())
    for job in list(lanes.jobs.values()):
        lanes.retry(job, NOON + timedelta(hours=1))
    settle(lanes, NOON + timedelta(hours=2))


@pytest.mark.parametrize(
    "do",
    [
        says_hello,
        hello_of_running,
        comes_and_goes,
        is_disconnected_for_long,
        ends,
        is_limited,
        is_told_of,
        is_too_late,
        is_tried_again,
    ],
)
@pytest.mark.parametrize(
    ("schedules", "serial", "state"), [(1, True, "waiting"), (1, False, "waiting"), (10_000, True, "running")]
)
def test_what_happens_to_the_open_jobs_of_a_host_costs_no_more_for_each_when_they_are_many(
    do: Callable[..., None], schedules: int, serial: bool, state: State
) -> None:
    few, many = (queued(count, schedules=schedules, serial=serial, state=state) for count in (FEW, MANY))
    assert counted(lambda: do(many)) <= MOST * counted(lambda: do(few))


@pytest.mark.parametrize(
    ("do", "until"),
    [
        (lambda lanes: lanes.connected("db-1", ()), NOON),
        (lambda lanes: lanes.disconnected("db-1"), NOON),
        (lambda lanes: lanes.release_slots("db-1"), NOON),
        (lambda lanes: lanes.limit("main", ConcurrencyLimit(per_host=True)), NOON),
        (lambda lanes: None, NOON + timedelta(days=2)),
    ],
    ids=["hello", "disconnected", "released", "limit", "late"],
)
@pytest.mark.parametrize("state", ["waiting", "sent", "running"])
def test_no_piece_of_what_many_open_jobs_cost_grows_with_their_number(
    do: Callable[..., None], until: datetime, state: State
) -> None:
    def costs(count: int) -> tuple[int, int]:
        lanes = queued(count, schedules=10, serial=False, state=state)
        lanes.connected("db-1", ())
        settle(lanes)
        begun = counted(lambda: do(lanes))
        going = pieces(lanes, until)
        return begun, max(counted(lambda: next(going, None)) for _ in range(count))

    (few, few_at_once), (many, many_at_once) = costs(FEW), costs(MANY)
    assert many_at_once <= 1.2 * few_at_once + 100
    assert many - few <= 12 * (MANY - FEW)  # they are noted


@pytest.mark.parametrize("known", [100, 10_000])
def test_what_hangs_is_found_at_the_cost_of_what_hangs(known: int) -> None:
    lanes = queued(known, schedules=known, state="running")
    for at, job in enumerate(list(lanes.jobs.values())):
        lanes.accepted(job, NOON - timedelta(days=at < 3) * 2)
    assert [job.id for job in lanes.hanging(NOON)] == ["job0", "job1", "job2"]
    assert counted(lambda: lanes.hanging(NOON)) < 20
    lanes.remove("job0")
    lanes.retry(lanes.jobs["job1"], NOON)
    assert [job.id for job in lanes.hanging(NOON)] == ["job2"]


@pytest.mark.parametrize("serial", [True, False])
def test_jobs_are_added_at_the_same_cost_for_each(serial: bool) -> None:
    assert counted(lambda: queued(MANY, serial=serial)) <= MOST * counted(lambda: queued(FEW, serial=serial))


def test_a_repository_is_limited_at_the_cost_of_its_own_jobs() -> None:
    alone, beside = Lanes(), queued(MANY, schedules=10_000)

    def limit(lanes: Lanes) -> None:
        for at in range(100):
            lanes.limit(f"r{at}", ConcurrencyLimit(at % 2 or None))

    assert counted(lambda: limit(beside)) <= counted(lambda: limit(alone)) + 100


@pytest.mark.parametrize("policy", ["Forbid", "Allow", "Replace"])
@pytest.mark.parametrize("off", [timedelta(minutes=7), timedelta(days=-4000), timedelta(days=4000)])
def test_a_frame_of_refused_fires_costs_no_more_for_each_when_they_are_many(policy: str, off: timedelta) -> None:
    schedule = placed("a", concurrencyPolicy=policy, cron="0 * * * *")

    def fires(count: int) -> int:
        host, lanes = in_sync(1, schedule), queued(FEW, schedules=1)
        frame = [(ScheduleFire("a", DUE + off - timedelta(hours=at)), "") for at in range(count)]
        (came,) = host.received(frame, DUE)
        assert isinstance(came, Fired)
        fired = came.fires
        return counted(lambda: decide(fired, host, {"a": schedule}, lanes, DUE, ["id"] * count))

    assert fires(MANY) <= MOST * fires(FEW)


def test_ends_of_jobs_that_are_over_are_told_again_at_the_same_cost_for_each() -> None:
    def said(count: int) -> int:
        host, frame = in_sync(1), [(JobFinished(f"over{at}", "failed", NOON), "") for at in range(count)]
        return counted(lambda: host.received(frame, NOON))

    assert said(MANY) <= MOST * said(FEW)


def test_an_ended_job_costs_the_same_however_many_hosts_of_its_repository_have_a_problem() -> None:
    def ended(hosts: int) -> int:
        health = Health()
        locked = JobFinished("job", "failed", NOON, error="locked", reason="Locked")
        for at in range(hosts):
            health.attempt_ended("main", f"host-{at}", "backup", locked)
        last = JobFinished("job", "succeeded", NOON)
        return counted(lambda: [health.attempt_ended("main", f"host-{at}", "backup", last) for at in range(100)])

    assert ended(MANY) <= ended(FEW) + 10


def test_the_problem_that_was_told_last_is_told_of_a_repository() -> None:
    health = Health()

    def told() -> str:
        problem = health.problem("main")
        assert problem is not None
        return problem.message

    for host, error in (("a", "1"), ("b", "2"), ("a", "3")):
        health.attempt_ended("main", host, "backup", JobFinished("job", "failed", NOON, error=error, reason="Locked"))
    assert told() == "3"
    assert health.attempt_ended("main", "a", "backup", JobFinished("job", "succeeded", NOON))
    assert told() == "2"


def test_hosts_are_asked_once_for_all_schedules_what_is_in_force_on_them() -> None:
    def asked(schedules: int) -> int:
        in_set = [placed(f"s{at}") for at in range(schedules)]
        hosts = [in_sync(1, *in_set) for _ in range(20)]
        return counted(lambda: [group.out_of_sync(it.id) for group in group_by_set(hosts) for it in in_set])

    assert asked(500) <= asked(5) + 5000  # some for each schedule, none for each schedule and host


# Token buckets.


def test_a_name_uses_so_much_at_once_and_then_no_faster_than_its_rate() -> None:
    buckets = Buckets(rate=2, burst=10)
    assert [buckets.wait("a", 0, 1) or buckets.use("a", 1, 0) for _ in range(12)] == [0] * 10 + [0.5] * 2
    assert (buckets.wait("b", 0, 1), buckets.wait("a", 0.5, 1), buckets.wait("a", 99, 10)) == (0, 0, 0)


def test_who_uses_more_than_there_is_waits_until_that_is_there() -> None:
    buckets = Buckets(rate=1000, burst=5000)
    assert buckets.use("a", 20_000, 0) == 15
    assert buckets.wait("a", 15) == 0
    assert buckets.wait("a", 15, 1) > 0


def test_buckets_that_are_full_are_not_kept() -> None:
    buckets = Buckets(rate=1, burst=1)
    for at in range(100_000):
        buckets.use(f"host-{at}", 1, at / 10)
    assert len(buckets) <= 2048
