"""Lanes are fair and keep to a repository's limit, exclusive jobs run alone, and a restart changes nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.jobs.job import EXCLUSIVE, ConcurrencyLimit, Job
from server.jobs.lanes import Lanes
from wire.messages import CommandRun

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOSTS = ("a", "b", "c")


def job(
    job_id: str,
    host: str = "a",
    kind: str = "backup",
    at: int = 0,
    schedule: str = "",
    repository: str = "repo",
    serial: bool | None = None,
    **more: Any,
) -> Job:
    """A job, recorded so many minutes after noon."""
    command = CommandRun(job_id, kind, [], repository, schedule_id=schedule)
    return Job(command, host, NOON + at * MINUTE, bool(schedule) if serial is None else serial, **more)


@pytest.fixture
def queue() -> Lanes:
    """A queue in which all hosts are online, and one job at once may use the repository."""
    queue = Lanes()
    queue.limit("repo", ConcurrencyLimit(limit=1))
    for host in HOSTS:
        queue.connected(host, ())
    return queue


def ids(jobs: list[Job]) -> list[Any]:
    return [it.id for it in jobs]


def ends(queue: Lanes, job_id: str) -> Any:
    """A job ends; who may go then."""
    queue.remove(job_id)
    return ids(queue.take())


# Limits.


def test_without_a_limit_everybody_goes_at_once(queue: Lanes) -> None:
    queue.limit("repo", ConcurrencyLimit())
    assert ids(queue.add([job("1"), job("2"), job("3", "b")])) == ["1", "2", "3"]


def test_as_many_go_at_once_as_the_limit_says_and_the_first_goes_first(queue: Lanes) -> None:
    queue.limit("repo", ConcurrencyLimit(limit=2))
    assert ids(queue.add([job(str(at), at=at) for at in range(5)])) == ["0", "1"]
    assert ends(queue, "1") == ["2"]
    assert ends(queue, "0") == ["3"]


def test_a_limit_that_is_raised_lets_the_next_go(queue: Lanes) -> None:
    queue.add([job(str(at), at=at) for at in range(5)])
    queue.limit("repo", ConcurrencyLimit(limit=3))
    assert ids(queue.take()) == ["1", "2"]


def test_hosts_with_repositories_of_their_own_do_not_wait_for_each_other(queue: Lanes) -> None:
    queue.limit("repo", ConcurrencyLimit(limit=1, per_host=True))
    assert ids(queue.add([job("1", "a"), job("2", "b"), job("3", "a")])) == ["1", "2"]


def test_repositories_do_not_wait_for_each_other(queue: Lanes) -> None:
    assert ids(queue.add([job("1"), job("2", repository="other"), job("3")])) == ["1", "2"]


# Those that must be alone.


@pytest.mark.parametrize("kind", sorted(EXCLUSIVE))
def test_one_that_must_be_alone_waits_for_others_and_holds_off_later_ones(queue: Lanes, kind: str) -> None:
    queue.limit("repo", ConcurrencyLimit())
    assert ids(queue.add([job("1"), job("2"), job("3", kind=kind, at=1), job("4", at=2), job("5", at=2)])) == ["1", "2"]
    assert ends(queue, "1") == []
    assert ends(queue, "2") == ["3"]
    assert ends(queue, "3") == ["4", "5"]


def test_unlock_goes_at_once_whoever_is_stuck(queue: Lanes) -> None:
    assert ids(queue.add([job("1", kind="prune"), job("2"), job("3", kind="unlock")])) == ["1", "3"]


# Hosts that are offline.


def test_a_host_that_is_offline_holds_up_nobody_and_comes_back_to_its_place(queue: Lanes) -> None:
    queue.disconnected("b")
    assert ids(queue.add([job("1", "a"), job("2", "b", at=1), job("3", "c", at=2), job("4", "c", at=3)])) == ["1"]
    assert ends(queue, "1") == ["3"]
    queue.connected("b", ())
    assert ends(queue, "3") == ["2"]


def test_a_job_that_may_be_running_keeps_its_place_until_its_host_is_given_up(queue: Lanes) -> None:
    queue.add([job("1", "a"), job("2", "b")])
    assert queue.disconnected("a")
    queue.tick(NOON + timedelta(days=1))
    assert queue.take() == []
    queue.release_slots("a")
    assert ids(queue.take()) == ["2"]


def test_a_host_without_jobs_that_may_be_running_has_no_places_to_keep(queue: Lanes) -> None:
    queue.add([job("1", "a"), job("2", "b")])
    assert not queue.disconnected("b")
    assert not queue.disconnected("c")


def test_a_host_that_was_gone_for_a_moment_keeps_its_places(queue: Lanes) -> None:
    queue.add([job("1", "a"), job("2", "b")])
    queue.disconnected("a")
    queue.connected("a", {"1"})
    queue.tick(NOON + timedelta(days=1))
    assert (queue.take(), queue.jobs["1"].state) == ([], "running")


def test_a_job_that_did_not_reach_its_host_is_back_in_its_place(queue: Lanes) -> None:
    queue.add([job("1", "a"), job("2", "b", at=1)])
    queue.disconnected("a")
    queue.connected("a", ())
    assert ids(queue.take()) == ["1"]


# Runs of one schedule on one host.


def test_a_run_waits_for_the_one_before_it_and_holds_up_no_others(queue: Lanes) -> None:
    queue.limit("repo", ConcurrencyLimit())
    runs = [job("1", schedule="s"), job("2", schedule="s", at=1), job("3", "b", schedule="s", at=2), job("4", at=3)]
    assert ids(queue.add(runs)) == ["1", "3", "4"]
    assert ends(queue, "1") == ["2"]


def test_runs_that_need_not_be_alone_go_together(queue: Lanes) -> None:
    queue.limit("repo", ConcurrencyLimit())
    assert ids(queue.add([job("1", schedule="s", serial=False), job("2", schedule="s", serial=False)])) == ["1", "2"]


def test_a_run_does_not_wait_for_one_that_is_to_be_tried_again_later(queue: Lanes) -> None:
    queue.add([first := job("1", schedule="s")])
    queue.retry(first, NOON + 5 * MINUTE)
    assert ids(queue.add([job("2", schedule="s", at=1)])) == ["2"]
    queue.tick(NOON + 5 * MINUTE)
    assert queue.take() == []
    assert ends(queue, "2") == ["1"]


# Time.


def test_an_attempt_stands_in_line_anew_when_it_is_due(queue: Lanes) -> None:
    queue.add([first := job("1"), job("2", "b", at=1), job("3", "b", at=2)])
    queue.retry(first, NOON + 5 * MINUTE)
    assert ids(queue.take()) == ["2"]
    queue.tick(NOON + 5 * MINUTE)
    assert ends(queue, "2") == ["3"]
    assert ends(queue, "3") == ["1"]
    assert (first.attempt, first.wire_id, first.to_send.job_id) == (2, "1.2", "1.2")


def test_a_job_that_waited_too_long_is_told_and_told_again_until_it_has_ended(queue: Lanes) -> None:
    queue.add([job("1"), late := job("2", start_by=NOON + 5 * MINUTE)])
    assert queue.tick(NOON + 4 * MINUTE) == []
    assert queue.tick(NOON + 5 * MINUTE) == [late]
    assert ends(queue, "1") == []
    assert queue.tick(NOON + 6 * MINUTE) == [late]
    queue.remove("2")
    assert queue.tick(NOON + 7 * MINUTE) == []


def test_a_job_that_was_sent_in_time_is_not_too_late(queue: Lanes) -> None:
    queue.add([job("1", start_by=NOON + MINUTE)])
    assert queue.tick(NOON + 2 * MINUTE) == []


def test_wake_at_is_when_the_next_has_its_time(queue: Lanes) -> None:
    queue.add([first := job("1"), job("2", start_by=NOON + 9 * MINUTE)])
    queue.retry(first, NOON + 5 * MINUTE)
    assert queue.wake_at == NOON + 5 * MINUTE


# What people see.


def test_what_a_job_waits_for_is_told(queue: Lanes) -> None:
    queue.disconnected("c")
    failed, late = job("5", "b", repository="other"), job("6", start_by=NOON)
    runs = [job("7", schedule="s", repository="other"), job("8", schedule="s", repository="other", at=1)]
    queue.add([job("1"), job("2", at=1), job("3", "b", at=2), job("4", "c"), failed, late, *runs])
    queue.retry(failed, NOON + MINUTE)
    queue.tick(NOON)
    assert {job_id: queue.waits_for(job_id, "ns/main") for job_id in [*queue.jobs, "gone"]} == {
        "1": "",
        "2": "1 job before it in repository ns/main",
        "3": "2 jobs before it in repository ns/main",
        "4": "host c to connect",
        "5": "retry at 2026-03-05T12:01:00Z",
        "6": "its end: it is too late to begin",
        "7": "",
        "8": "the run before it on host a",
        "gone": "",
    }


def test_a_job_is_found_by_its_host_and_its_present_attempt(queue: Lanes) -> None:
    queue.add([it := job("1")])
    assert (queue.find("a", "1"), queue.find("b", "1"), queue.find("a", "1.2")) == (it, None, None)
    assert [queue.is_of_another_host(*said) for said in (("b", "1"), ("a", "1"), ("b", "2"))] == [True, False, False]
    queue.retry(it, NOON)
    assert (queue.find("a", "1"), queue.find("a", "1.2")) == (None, it)


def test_a_job_that_is_open_already_is_left_out(queue: Lanes) -> None:
    queue.add([first := job("1")])
    assert queue.add([job("1", "b")]) == []
    assert queue.jobs == {"1": first}


# All that may come, in any order.


LIMITS = {
    "one": ConcurrencyLimit(limit=1),
    "two": ConcurrencyLimit(limit=2),
    "own": ConcurrencyLimit(limit=1, per_host=True),
    "free": ConcurrencyLimit(),
}


class Fleet(RuleBasedStateMachine):
    """Hosts that come and go, jobs that are sent to them, and a queue that is restarted, with what a store keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = NOON, 0
        self.online: set[str] = set()
        self.let_go: set[str] = set()  # jobs whose hosts were gone for so long that others took their places
        self.queue = self.fresh()

    def fresh(self) -> Lanes:
        queue = Lanes()
        for name, limit in LIMITS.items():
            queue.limit(name, limit)
        return queue

    @initialize()
    def begin(self) -> None:
        for host in HOSTS[:2]:
            self.comes(host)

    @property
    def active(self) -> list[Any]:
        return [it for it in self.queue.jobs.values() if it.state != "waiting"]

    def go_on(self) -> None:
        """What a server does after every event; those that go overtake nobody who stood in line before them."""
        for late in self.queue.tick(self.now):
            self.queue.remove(late.id)
        stood = {it.id: it.position for it in self.queue.jobs.values() if it.queued}
        for sent in self.queue.take():
            ahead = [
                it
                for it in self.queue.jobs.values()
                if it.queued and it.lane == sent.lane and it.position < sent.position
            ]
            assert (sent.id in stood, ahead) == (True, [])

    @rule(
        host=st.sampled_from(HOSTS),
        kind=st.sampled_from(["backup", "backup", "prune", "unlock"]),
        repository=st.sampled_from(sorted(LIMITS)),
        schedule=st.sampled_from(["", "s", "t"]),
        minutes=st.sampled_from([None, 1, 60]),
    )
    def fires(self, host: str, kind: str, repository: str, schedule: str, minutes: int) -> None:
        self.number += 1
        start_by = None if minutes is None else self.now + minutes * MINUTE
        command = CommandRun(f"{self.number:04}", kind, [], repository, schedule_id=schedule)
        self.queue.add([Job(command, host, self.now, bool(schedule), start_by)])
        self.go_on()

    @precondition(lambda self: self.active)
    @rule(data=st.data(), how=st.sampled_from(["accepted", "ended", "ended", "failed"]))
    def says(self, data: st.DataObject, how: str) -> None:
        it = data.draw(st.sampled_from(sorted(self.active, key=lambda it: it.id)))
        if it.host not in self.online:
            return
        if how == "accepted":
            self.queue.accepted(it, self.now)
        elif how == "ended":
            self.queue.remove(it.id)
        else:
            self.queue.retry(it, self.now + MINUTE)
        self.go_on()

    @rule(host=st.sampled_from(HOSTS))
    def comes(self, host: str) -> None:
        self.online.add(host)
        self.queue.connected(host, {it.wire_id for it in self.queue.of_host(host) if it.state == "running"})
        self.go_on()

    @rule(host=st.sampled_from(HOSTS))
    def goes(self, host: str) -> None:
        self.online.discard(host)
        self.queue.disconnected(host)
        self.go_on()

    @rule(host=st.sampled_from(HOSTS))
    def is_given_up(self, host: str) -> None:
        if host not in self.online:
            self.let_go |= {it.id for it in self.active if it.host == host}
            self.queue.release_slots(host)
            self.go_on()

    @rule(minutes=st.sampled_from([1, 2, 45]))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * MINUTE
        self.go_on()

    @rule()
    def restarts(self) -> None:
        """The same hosts come back with the same jobs: the same jobs wait, in the same places, and no others go."""
        before = self.queue
        kept = [self.kept(it) for it in before.jobs.values()]
        self.queue = self.fresh()
        self.queue.add(kept)
        for host in HOSTS:
            self.queue.disconnected(host)
        for host in sorted(self.online):
            self.queue.connected(host, {it.wire_id for it in kept if it.host == host and it.state != "waiting"})
        lines = {it.id: (it.queued, it.position, it.state == "waiting") for it in before.jobs.values()}
        assert {it.id: (it.queued, it.position, it.state == "waiting") for it in self.queue.jobs.values()} == lines
        self.go_on()

    def kept(self, it: Job) -> Job:
        """A job as it is read from the store."""
        deferred = it.state == "waiting" and it.attempt > 1 and it.since > self.now
        return msgspec.structs.replace(it, queued=False, deferred=deferred)

    @invariant()
    def as_many_as_allowed(self) -> None:
        """Of jobs whose hosts are there, and were not gone for so long that their places were let go."""
        uses: dict[str, list[Job]] = {}
        for it in self.active:
            if it.host in self.online and it.id not in self.let_go and it.command.kind != "unlock":
                uses.setdefault(it.lane, []).append(it)
        for its in uses.values():
            returned = [it for it in its if it.state == "running"]
            limit = LIMITS[its[0].repository].limit
            assert limit is None or len(its) <= max(limit, len(returned))
            assert len(its) == 1 or len(returned) == len(its) or not any(it.exclusive for it in its)

    @invariant()
    def nobody_is_stuck(self) -> None:
        """Whoever waits is told for what, and the first in a line that nobody uses has gone."""
        for it in self.queue.jobs.values():
            assert (self.queue.waits_for(it.id, "r") != "") == (it.state == "waiting")
            if it.queued:
                line = self.queue._lanes[it.lane]
                assert line.active
                assert line.active <= self.queue.jobs.keys()

    @invariant()
    def runs_of_a_schedule_are_alone(self) -> None:
        """No two runs that are to be alone were sent to one host at once."""
        sent = [(it.command.schedule_id, it.host) for it in self.active if it.serial]
        assert len(sent) == len(set(sent))

    def teardown(self) -> None:
        """Once all hosts are there and say how their jobs end, every job ends."""
        for host in HOSTS:
            self.comes(host)
        for _ in range(3 * len(self.queue.jobs) + 3):
            self.now += 2 * MINUTE
            self.go_on()
            for it in self.active:
                self.queue.remove(it.id)
            self.go_on()
        assert self.queue.jobs == {}
        assert self.queue._lanes == {}


class SlowFleet(Fleet):
    """The same, with a queue that does little at once, and to which more comes while it has more to do."""

    def fresh(self) -> Lanes:
        queue = Lanes(piece=2)
        for name, limit in LIMITS.items():
            queue.limit(name, limit)
        return queue

    def go_on(self, *, once: bool = True) -> None:
        for late in self.queue.tick(self.now):
            self.queue.remove(late.id)
        self.queue.take()
        while self.queue.has_more and not once:
            self.queue.take()

    @rule()
    def restarts(self) -> None:
        kept = [self.kept(it) for it in self.queue.jobs.values()]
        self.queue = self.fresh()
        self.queue.add(kept)
        for host in HOSTS:
            self.queue.disconnected(host)
        for host in sorted(self.online):
            self.queue.connected(host, {it.wire_id for it in kept if it.host == host and it.state != "waiting"})
        self.go_on()

    @rule()
    def has_time(self) -> None:
        while self.queue.has_more or (self.queue.wake_at is not None and self.queue.wake_at <= self.now):
            self.go_on(once=False)
        super().nobody_is_stuck()

    @invariant()
    def nobody_is_stuck(self) -> None:
        if not self.queue.has_more:
            super().nobody_is_stuck()

    def teardown(self) -> None:
        self.has_time()
        super().teardown()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=200, stateful_step_count=40)
TestSlowFleet = SlowFleet.TestCase
TestSlowFleet.settings = settings(max_examples=100, stateful_step_count=40)
