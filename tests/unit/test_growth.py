"""Promise 9: what many open jobs cost grows as their number does, counted in calls and not in seconds."""

import sys
from datetime import UTC, datetime, timedelta

import pytest

from server.host import Host
from server.queue import Job, Queue, Rule
from tests.unit.test_host import NOON as DUE
from tests.unit.test_host import in_sync, target
from wire.entries import EMPTY
from wire.messages import CommandRun, JobFinished, ScheduleFire

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
FEW, MANY = 1000, 4000
MOST = 4.5
"""Times the calls that four times as many jobs may cost: some are sorted."""


def counted(do):
    """How many calls something makes, those into C included."""
    calls = 0

    def called(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        do()
    finally:
        sys.setprofile(None)
    return calls


def queued(count, *, schedules=1, alone=True, state="waiting", repository="main"):
    queue = Queue()
    jobs = [
        Job(
            CommandRun(f"job{at}", "backup", [], repository, schedule_id=f"s{at % schedules}"),
            "db-1",
            NOON + timedelta(seconds=at),
            alone,
            NOON + timedelta(days=1),
            state=state,
        )
        for at in range(count)
    ]
    queue.add(jobs)
    return queue


def says_hello(queue):
    queue.arrived("db-1", ())
    queue.take()


def hello_of_running(queue):
    running = [job.wire_id for job in queue.of_host("db-1")]
    Host("db-1", NOON, 0, EMPTY).resumed(running, queue.of_host("db-1"), NOON)
    queue.arrived("db-1", running)


def comes_and_goes(queue):
    for _ in range(3):
        queue.arrived("db-1", ())
        queue.departed("db-1", NOON)


def ends(queue):
    queue.arrived("db-1", ())
    while queue.jobs:
        going = queue.take() or list(queue.jobs.values())
        for job in going:
            queue.remove(job.id)


def is_limited(queue):
    queue.arrived("db-1", ())
    queue.rule("main", Rule(1))
    queue.rule("main", Rule(2, per_host=True))


def is_told_of(queue):
    queue.arrived("db-1", ())
    for job_id in list(queue.jobs):
        queue.waits_for(job_id, "ns/main")
        queue.find("db-1", job_id)
        queue.is_anothers("db-1", job_id)
        assert queue.waiting_count >= 0


def is_too_late(queue):
    queue.arrived("db-1", ())
    queue.tick(NOON + timedelta(days=2))


def is_tried_again(queue):
    queue.arrived("db-1", ())
    for job in list(queue.jobs.values()):
        queue.retry(job, NOON + timedelta(hours=1))
    queue.tick(NOON + timedelta(hours=2))


@pytest.mark.parametrize(
    "do", [says_hello, hello_of_running, comes_and_goes, ends, is_limited, is_told_of, is_too_late, is_tried_again]
)
@pytest.mark.parametrize(
    ("schedules", "alone", "state"), [(1, True, "waiting"), (1, False, "waiting"), (10_000, True, "running")]
)
def test_what_happens_to_the_open_jobs_of_a_host_costs_no_more_for_each_when_they_are_many(do, schedules, alone, state):
    few, many = (queued(count, schedules=schedules, alone=alone, state=state) for count in (FEW, MANY))
    assert counted(lambda: do(many)) <= MOST * counted(lambda: do(few))


@pytest.mark.parametrize("alone", [True, False])
def test_jobs_are_added_at_the_same_cost_for_each(alone):
    assert counted(lambda: queued(MANY, alone=alone)) <= MOST * counted(lambda: queued(FEW, alone=alone))


def test_a_repository_is_limited_at_the_cost_of_its_own_jobs():
    alone, beside = Queue(), queued(MANY, schedules=10_000)
    limit = lambda queue: [queue.rule(f"r{at}", Rule(at % 2 or None)) for at in range(100)]  # noqa: E731
    assert counted(lambda: limit(beside)) <= counted(lambda: limit(alone)) + 100


@pytest.mark.parametrize("policy", ["Forbid", "Allow", "Replace"])
@pytest.mark.parametrize("off", [timedelta(minutes=7), timedelta(days=-4000), timedelta(days=4000)])
def test_a_frame_of_refused_fires_costs_no_more_for_each_when_they_are_many(policy, off):
    schedule = target("a", concurrencyPolicy=policy, cron="0 * * * *")

    def fires(count):
        host, queue = in_sync(1, schedule), queued(FEW, schedules=1)
        frame = [(ScheduleFire("a", DUE + off - timedelta(hours=at)), "") for at in range(count)]
        return counted(lambda: host.received(frame, {"a": schedule}, queue, DUE, ["id"] * count))

    assert fires(MANY) <= MOST * fires(FEW)


def test_ends_of_jobs_that_are_over_are_told_again_at_the_same_cost_for_each():
    def said(count):
        host, frame = in_sync(1), [(JobFinished(f"over{at}", "failed", NOON), "") for at in range(count)]
        return counted(lambda: host.received(frame, {}, Queue(), NOON, ["id"] * count))

    assert said(MANY) <= MOST * said(FEW)
