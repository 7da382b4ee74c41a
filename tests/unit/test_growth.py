"""Promise 9: what many open jobs cost grows as their number does, counted in calls and steps, and not in seconds."""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import msgspec
import pytest
import sqlalchemy as sa

from server.agents.session import Fired
from server.gateway.buckets import Buckets
from server.jobs.fires import NewJob, decide
from server.jobs.outcomes import Health
from server.jobs.queue import Taken
from server.jobs.resume import resumed
from server.observe.coverage import group_by_set
from server.resources.specs import Retry
from server.store import queue
from tests import plans
from tests.jobqueue import NOON, Jobs, in_memory, job, placed
from tests.unit.test_session import NOON as DUE
from tests.unit.test_session import in_sync
from wire.messages import JobFinished, ScheduleFire

State = Literal["waiting", "sent", "running"]
FEW, MANY = 1000, 4000
FEW_ROWS, MANY_ROWS = 200, 800
MOST = 4.5
"""Times the calls that four times as many jobs may cost: some are sorted."""


def counted(do: Callable[[], object]) -> int:
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


def steps(jobs: Jobs, do: Callable[[], object]) -> int:
    """How many steps of its virtual machine SQLite makes, in hundreds."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    driver: Any = jobs.conn.connection.driver_connection
    driver.set_progress_handler(step, 100)
    try:
        do()
    finally:
        driver.set_progress_handler(None, 0)
    return count


def new(count: int, schedules: int, *, serial: bool) -> list[NewJob]:
    policy = "Forbid" if serial else "Allow"
    ends = NOON + timedelta(days=1)
    made = (job(f"job{at}", schedule=f"s{at % schedules}", policy=policy, start_by=ends) for at in range(count))
    return [msgspec.structs.replace(it, created_at=NOON + timedelta(seconds=at)) for at, it in enumerate(made)]


def queued(count: int, *, schedules: int = 1, serial: bool = True, state: State = "waiting") -> Jobs:
    """Jobs of host a, which is disconnected."""
    jobs = Jobs(in_memory())
    if state != "waiting":
        jobs.connected("a")
    jobs.record(*new(count, schedules, serial=serial))
    if state == "running":
        jobs.queue.accept(jobs.conn, [Taken("a", [f"job{at}" for at in range(count)], NOON)])
    jobs.disconnected("a")
    return jobs


def says_hello(jobs: Jobs) -> None:
    jobs.connected("a")


def hello_of_running(jobs: Jobs) -> None:
    its = queue.of_host(jobs.conn, "a", most=MANY)
    running = [it.id for it in its]
    resumed((), running, its, NOON)
    jobs.connected("a", running)


def comes_and_goes(jobs: Jobs) -> None:
    for _ in range(3):
        jobs.connected("a")
        jobs.disconnected("a")


def is_disconnected_for_long(jobs: Jobs) -> None:
    jobs.disconnected("a")
    jobs.given_up("a")


def ends(jobs: Jobs) -> None:
    going = [*jobs.connected("a"), *(it.id for it in queue.of_host(jobs.conn, "a", most=MANY) if it.sent)]
    while going:
        going += jobs.finish("a", going.pop())[1]


def is_limited(jobs: Jobs) -> None:
    jobs.connected("a")
    jobs.limit("repo", 1)
    jobs.limit("repo", 2, per_host=True)


def is_too_late(jobs: Jobs) -> None:
    jobs.connected("a")
    jobs.tick(2 * 24 * 60)


def is_tried_again(jobs: Jobs) -> None:
    jobs.retry = Retry(limit=1, backoff_seconds=3600)
    for it in jobs.connected("a") or [it.id for it in queue.of_host(jobs.conn, "a", most=MANY)]:
        jobs.finish("a", it, "failed")
    jobs.tick(120)


@pytest.mark.parametrize(
    "do",
    [
        says_hello,
        hello_of_running,
        comes_and_goes,
        is_disconnected_for_long,
        ends,
        is_limited,
        is_too_late,
        is_tried_again,
    ],
)
@pytest.mark.parametrize(
    ("schedules", "serial", "state"), [(1, True, "waiting"), (1, False, "waiting"), (10_000, True, "running")]
)
def test_what_happens_to_the_open_jobs_of_a_host_costs_no_more_for_each_when_they_are_many(
    do: Callable[[Jobs], None], schedules: int, serial: bool, state: State
) -> None:
    few, many = (queued(count, schedules=schedules, serial=serial, state=state) for count in (FEW_ROWS, MANY_ROWS))
    assert steps(many, lambda: do(many)) <= MOST * steps(few, lambda: do(few)) + 100


@pytest.mark.parametrize("state", ["waiting", "running"])
@pytest.mark.parametrize("do", [says_hello, comes_and_goes, is_disconnected_for_long, is_limited, is_too_late])
def test_no_statement_is_given_more_than_some_of_many_jobs(do: Callable[[Jobs], None], state: State) -> None:
    jobs, given = queued(3 * queue.FRONT, schedules=10, serial=False, state=state), []

    def note(_conn: object, _cursor: object, _statement: str, parameters: Any, *_more: object) -> None:
        given.append(len(msgspec.json.decode(parameters["rows"])) if "rows" in parameters else 0)

    sa.event.listen(jobs.conn, "before_cursor_execute", note)
    do(jobs)
    assert 0 < max(given) <= 2 * queue.FRONT


def test_what_a_job_waits_for_is_told_at_the_same_cost_however_many_wait() -> None:
    def told(count: int) -> int:
        jobs = queued(count, serial=False, schedules=count)
        jobs.limit("repo", 1)
        jobs.connected("a")
        last = [f"job{count - at}" for at in range(1, 20)]
        assert [it.ahead for it in queue.waits(jobs.conn, last)] == [queue.MAX_AHEAD + 1] * len(last)
        return steps(jobs, lambda: queue.waits(jobs.conn, last))

    assert told(4000) <= told(1100) + 10


def test_what_hangs_is_found_at_the_cost_of_what_hangs() -> None:
    def found(known: int) -> int:
        jobs = Jobs(in_memory())
        jobs.connected("a")
        jobs.record(*new(known, known, serial=True))
        ids = [f"job{at}" for at in range(known)]
        jobs.queue.accept(jobs.conn, [Taken("a", ids[:3], NOON - timedelta(days=2)), Taken("a", ids[3:], NOON)])
        assert queue.hanging(jobs.conn, NOON) == [("s0", "a"), ("s1", "a"), ("s2", "a")]
        cost = steps(jobs, lambda: queue.hanging(jobs.conn, NOON))
        jobs.finish("a", "job0")
        jobs.retry = Retry(limit=1, backoff_seconds=60)
        jobs.finish("a", "job1", "failed")
        assert queue.hanging(jobs.conn, NOON) == [("s2", "a")]
        return cost

    assert found(MANY_ROWS) <= found(10) + 1


@pytest.mark.parametrize("serial", [True, False])
def test_jobs_are_added_at_the_same_cost_for_each(serial: bool) -> None:
    def added(count: int) -> int:
        jobs, its = Jobs(in_memory()), new(count, 1, serial=serial)
        return steps(jobs, lambda: jobs.record(*its))

    assert added(MANY_ROWS) <= MOST * added(FEW_ROWS)


def test_a_repository_is_limited_at_the_cost_of_its_own_jobs() -> None:
    alone, beside = Jobs(in_memory()), queued(MANY_ROWS, schedules=10_000)
    beside.connected("a")

    def limit(jobs: Jobs) -> None:
        for at in range(100):
            jobs.limit(f"r{at}", at % 2 or None)

    assert steps(beside, lambda: limit(beside)) <= steps(alone, lambda: limit(alone)) + 100


def test_every_statement_on_the_queue_is_looked_at() -> None:
    assert plans.named() == plans.CALLS.keys()


@pytest.mark.parametrize("name", plans.CALLS)
def test_each_statement_finds_what_it_is_about_by_an_index(name: str) -> None:
    found = set(plans.found_by(Jobs(in_memory()).conn, name))
    assert found <= (plans.PARTIAL if name in plans.OF_ALL else plans.OF_COPIES)


@pytest.mark.parametrize("policy", ["Forbid", "Allow", "Replace"])
@pytest.mark.parametrize("off", [timedelta(minutes=7), timedelta(days=-4000), timedelta(days=4000)])
def test_a_frame_of_refused_fires_costs_no_more_for_each_when_they_are_many(policy: str, off: timedelta) -> None:
    schedule = placed("a", concurrencyPolicy=policy, cron="0 * * * *")

    def fires(count: int) -> int:
        host, jobs = in_sync(1, schedule), Jobs(in_memory(), hosts=["db-1"])
        jobs.add(job("old", "db-1", schedule="a", due=DUE))
        frame = [(ScheduleFire("a", DUE + off - timedelta(hours=at)), "") for at in range(count)]
        (came,) = host.received(frame, DUE)
        assert isinstance(came, Fired)
        fired = came.fires
        ids = [f"id-{at}" for at in range(count)]
        return counted(lambda: jobs.record(*decide(fired, host, {"a": schedule}, DUE, ids)[0]))

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


def test_hosts_are_asked_once_for_all_schedules_what_is_in_force_on_them_and_what_they_run() -> None:
    def asked(schedules: int) -> int:
        in_set = [placed(f"s{at}") for at in range(schedules)]
        hosts = [in_sync(1, *in_set) for _ in range(20)]
        return counted(lambda: [(it.out_of_sync(own.id), it.alike) for it in group_by_set(hosts) for own in in_set])

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
