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
def lanes() -> Lanes:
    """All hosts are online, and one job at a time may use the repository."""
    lanes = Lanes()
    lanes.limit("repo", ConcurrencyLimit(limit=1))
    for host in HOSTS:
        lanes.connected(host, ())
    return lanes


def ids(jobs: list[Job]) -> list[Any]:
    return [it.id for it in jobs]


def ends(lanes: Lanes, job_id: str) -> Any:
    """A job ends. Which jobs may start then."""
    lanes.remove(job_id)
    return ids(lanes.take())


# Limits.


def test_without_a_limit_everybody_goes_at_once(lanes: Lanes) -> None:
    lanes.limit("repo", ConcurrencyLimit())
    assert ids(lanes.add([job("1"), job("2"), job("3", "b")])) == ["1", "2", "3"]


def test_as_many_go_at_once_as_the_limit_says_and_the_first_goes_first(lanes: Lanes) -> None:
    lanes.limit("repo", ConcurrencyLimit(limit=2))
    assert ids(lanes.add([job(str(at), at=at) for at in range(5)])) == ["0", "1"]
    assert ends(lanes, "1") == ["2"]
    assert ends(lanes, "0") == ["3"]


def test_a_limit_that_is_raised_lets_the_next_go(lanes: Lanes) -> None:
    lanes.add([job(str(at), at=at) for at in range(5)])
    lanes.limit("repo", ConcurrencyLimit(limit=3))
    assert ids(lanes.take()) == ["1", "2"]


def test_hosts_with_repositories_of_their_own_do_not_wait_for_each_other(lanes: Lanes) -> None:
    lanes.limit("repo", ConcurrencyLimit(limit=1, per_host=True))
    assert ids(lanes.add([job("1", "a"), job("2", "b"), job("3", "a")])) == ["1", "2"]


def test_repositories_do_not_wait_for_each_other(lanes: Lanes) -> None:
    assert ids(lanes.add([job("1"), job("2", repository="other"), job("3")])) == ["1", "2"]


# Exclusive jobs.


@pytest.mark.parametrize("kind", sorted(EXCLUSIVE))
def test_an_exclusive_job_waits_for_others_and_holds_back_later_ones(lanes: Lanes, kind: str) -> None:
    lanes.limit("repo", ConcurrencyLimit())
    assert ids(lanes.add([job("1"), job("2"), job("3", kind=kind, at=1), job("4", at=2), job("5", at=2)])) == ["1", "2"]
    assert ends(lanes, "1") == []
    assert ends(lanes, "2") == ["3"]
    assert ends(lanes, "3") == ["4", "5"]


def test_unlock_goes_at_once_whoever_is_stuck(lanes: Lanes) -> None:
    assert ids(lanes.add([job("1", kind="prune"), job("2"), job("3", kind="unlock")])) == ["1", "3"]


# Hosts that are offline.


def test_the_jobs_of_an_offline_host_hold_back_none_and_keep_their_positions(lanes: Lanes) -> None:
    lanes.disconnected("b")
    assert ids(lanes.add([job("1", "a"), job("2", "b", at=1), job("3", "c", at=2), job("4", "c", at=3)])) == ["1"]
    assert ends(lanes, "1") == ["3"]
    lanes.connected("b", ())
    assert ends(lanes, "3") == ["2"]


def test_a_job_that_may_be_running_keeps_its_slot_until_the_slots_of_its_host_are_released(lanes: Lanes) -> None:
    lanes.add([job("1", "a"), job("2", "b")])
    assert lanes.disconnected("a")
    lanes.tick(NOON + timedelta(days=1))
    assert lanes.take() == []
    lanes.release_slots("a")
    assert ids(lanes.take()) == ["2"]


def test_a_host_without_jobs_that_may_be_running_has_no_slots_to_keep(lanes: Lanes) -> None:
    lanes.add([job("1", "a"), job("2", "b")])
    assert not lanes.disconnected("b")
    assert not lanes.disconnected("c")


def test_a_host_that_was_disconnected_for_a_moment_keeps_its_slots(lanes: Lanes) -> None:
    lanes.add([job("1", "a"), job("2", "b")])
    lanes.disconnected("a")
    lanes.connected("a", {"1"})
    lanes.tick(NOON + timedelta(days=1))
    assert (lanes.take(), lanes.jobs["1"].state) == ([], "running")


def test_a_job_that_did_not_reach_its_host_waits_at_its_position_again(lanes: Lanes) -> None:
    lanes.add([job("1", "a"), job("2", "b", at=1)])
    lanes.disconnected("a")
    lanes.connected("a", ())
    assert ids(lanes.take()) == ["1"]


# Jobs of one Schedule on one host.


def test_a_serial_job_waits_for_the_one_before_it_and_holds_back_no_others(lanes: Lanes) -> None:
    lanes.limit("repo", ConcurrencyLimit())
    runs = [job("1", schedule="s"), job("2", schedule="s", at=1), job("3", "b", schedule="s", at=2), job("4", at=3)]
    assert ids(lanes.add(runs)) == ["1", "3", "4"]
    assert ends(lanes, "1") == ["2"]


def test_jobs_that_are_not_serial_go_together(lanes: Lanes) -> None:
    lanes.limit("repo", ConcurrencyLimit())
    assert ids(lanes.add([job("1", schedule="s", serial=False), job("2", schedule="s", serial=False)])) == ["1", "2"]


def test_a_serial_job_does_not_wait_for_a_deferred_one(lanes: Lanes) -> None:
    lanes.add([first := job("1", schedule="s")])
    lanes.retry(first, NOON + 5 * MINUTE)
    assert ids(lanes.add([job("2", schedule="s", at=1)])) == ["2"]
    lanes.tick(NOON + 5 * MINUTE)
    assert lanes.take() == []
    assert ends(lanes, "2") == ["1"]


# Time.


def test_a_failed_job_rejoins_its_lane_when_its_next_attempt_is_due(lanes: Lanes) -> None:
    lanes.add([first := job("1"), job("2", "b", at=1), job("3", "b", at=2)])
    lanes.retry(first, NOON + 5 * MINUTE)
    assert ids(lanes.take()) == ["2"]
    lanes.tick(NOON + 5 * MINUTE)
    assert ends(lanes, "2") == ["3"]
    assert ends(lanes, "3") == ["1"]
    assert (first.attempt, first.wire_id, first.to_send.job_id) == (2, "1.2", "1.2")


def test_a_job_that_waited_too_long_is_returned_again_until_it_has_ended(lanes: Lanes) -> None:
    lanes.add([job("1"), late := job("2", start_by=NOON + 5 * MINUTE)])
    assert lanes.tick(NOON + 4 * MINUTE) == []
    assert lanes.tick(NOON + 5 * MINUTE) == [late]
    assert ends(lanes, "1") == []
    assert lanes.tick(NOON + 6 * MINUTE) == [late]
    lanes.remove("2")
    assert lanes.tick(NOON + 7 * MINUTE) == []


def test_a_job_that_was_sent_in_time_is_not_too_late(lanes: Lanes) -> None:
    lanes.add([job("1", start_by=NOON + MINUTE)])
    assert lanes.tick(NOON + 2 * MINUTE) == []


def test_wake_at_is_the_time_of_the_next_timer(lanes: Lanes) -> None:
    lanes.add([first := job("1"), job("2", start_by=NOON + 9 * MINUTE)])
    lanes.retry(first, NOON + 5 * MINUTE)
    assert lanes.wake_at == NOON + 5 * MINUTE


# What people see.


def test_what_a_job_waits_for_is_told(lanes: Lanes) -> None:
    lanes.disconnected("c")
    failed, late = job("5", "b", repository="other"), job("6", start_by=NOON)
    runs = [job("7", schedule="s", repository="other"), job("8", schedule="s", repository="other", at=1)]
    lanes.add([job("1"), job("2", at=1), job("3", "b", at=2), job("4", "c"), failed, late, *runs])
    lanes.retry(failed, NOON + MINUTE)
    lanes.tick(NOON)
    assert {job_id: lanes.waits_for(job_id, "ns/main") for job_id in [*lanes.jobs, "unknown"]} == {
        "1": "",
        "2": "1 job before it in repository ns/main",
        "3": "2 jobs before it in repository ns/main",
        "4": "host c to connect",
        "5": "retry at 2026-03-05T12:01:00Z",
        "6": "its end: it is too late to begin",
        "7": "",
        "8": "the run before it on host a",
        "unknown": "",
    }


def test_a_job_is_found_by_its_host_and_its_present_attempt(lanes: Lanes) -> None:
    lanes.add([it := job("1")])
    assert (lanes.find("a", "1"), lanes.find("b", "1"), lanes.find("a", "1.2")) == (it, None, None)
    assert [lanes.is_of_another_host(*said) for said in (("b", "1"), ("a", "1"), ("b", "2"))] == [True, False, False]
    lanes.retry(it, NOON)
    assert (lanes.find("a", "1"), lanes.find("a", "1.2")) == (None, it)


def test_a_job_that_is_open_already_is_left_out(lanes: Lanes) -> None:
    lanes.add([first := job("1")])
    assert lanes.add([job("1", "b")]) == []
    assert lanes.jobs == {"1": first}


# All that may come, in any order.


LIMITS = {
    "one": ConcurrencyLimit(limit=1),
    "two": ConcurrencyLimit(limit=2),
    "own": ConcurrencyLimit(limit=1, per_host=True),
    "free": ConcurrencyLimit(),
}


class Fleet(RuleBasedStateMachine):
    """Hosts that connect and disconnect, jobs that are sent to them, and lanes that restart with what a store keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = NOON, 0
        self.online: set[str] = set()
        self.let_go: set[str] = set()  # jobs that lost their slots while their hosts were disconnected
        self.lanes = self.fresh()

    def fresh(self) -> Lanes:
        lanes = Lanes()
        for name, limit in LIMITS.items():
            lanes.limit(name, limit)
        return lanes

    @initialize()
    def begin(self) -> None:
        for host in HOSTS[:2]:
            self.comes(host)

    @property
    def active(self) -> list[Any]:
        return [it for it in self.lanes.jobs.values() if it.state != "waiting"]

    def advance(self) -> None:
        """What a server does after every event. No job that starts overtakes one that waited in its lane before it."""
        for late in self.lanes.tick(self.now):
            self.lanes.remove(late.id)
        queued = {it.id: it.position for it in self.lanes.jobs.values() if it.queued}
        for sent in self.lanes.take():
            ahead = [
                it
                for it in self.lanes.jobs.values()
                if it.queued and it.lane == sent.lane and it.position < sent.position
            ]
            assert (sent.id in queued, ahead) == (True, [])

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
        self.lanes.add([Job(command, host, self.now, bool(schedule), start_by)])
        self.advance()

    @precondition(lambda self: self.active)
    @rule(data=st.data(), how=st.sampled_from(["accepted", "ended", "ended", "failed"]))
    def says(self, data: st.DataObject, how: str) -> None:
        it = data.draw(st.sampled_from(sorted(self.active, key=lambda it: it.id)))
        if it.host not in self.online:
            return
        if how == "accepted":
            self.lanes.accepted(it, self.now)
        elif how == "ended":
            self.lanes.remove(it.id)
        else:
            self.lanes.retry(it, self.now + MINUTE)
        self.advance()

    @rule(host=st.sampled_from(HOSTS))
    def comes(self, host: str) -> None:
        self.online.add(host)
        self.lanes.connected(host, {it.wire_id for it in self.lanes.of_host(host) if it.state == "running"})
        self.advance()

    @rule(host=st.sampled_from(HOSTS))
    def goes(self, host: str) -> None:
        self.online.discard(host)
        self.lanes.disconnected(host)
        self.advance()

    @rule(host=st.sampled_from(HOSTS))
    def is_given_up(self, host: str) -> None:
        if host not in self.online:
            self.let_go |= {it.id for it in self.active if it.host == host}
            self.lanes.release_slots(host)
            self.advance()

    @rule(minutes=st.sampled_from([1, 2, 45]))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * MINUTE
        self.advance()

    @rule()
    def restarts(self) -> None:
        """The same hosts return with the same jobs: the same jobs wait at the same positions, and no other starts."""
        before = self.lanes
        kept = [self.kept(it) for it in before.jobs.values()]
        self.lanes = self.fresh()
        self.lanes.add(kept)
        for host in HOSTS:
            self.lanes.disconnected(host)
        for host in sorted(self.online):
            self.lanes.connected(host, {it.wire_id for it in kept if it.host == host and it.state != "waiting"})
        waits = {it.id: (it.queued, it.position, it.state == "waiting") for it in before.jobs.values()}
        assert {it.id: (it.queued, it.position, it.state == "waiting") for it in self.lanes.jobs.values()} == waits
        self.advance()

    def kept(self, it: Job) -> Job:
        """A job as it is read from the store."""
        deferred = it.state == "waiting" and it.attempt > 1 and it.since > self.now
        return msgspec.structs.replace(it, queued=False, deferred=deferred)

    @invariant()
    def as_many_as_allowed(self) -> None:
        """Counts jobs whose hosts are online, and whose slots were not released meanwhile."""
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
        """Each waiting job says what for, and the first in a lane without active jobs has started."""
        for it in self.lanes.jobs.values():
            assert (self.lanes.waits_for(it.id, "r") != "") == (it.state == "waiting")
            if it.queued:
                line = self.lanes._lanes[it.lane]
                assert line.active
                assert line.active <= self.lanes.jobs.keys()

    @invariant()
    def serial_jobs_of_a_schedule_run_one_by_one(self) -> None:
        """No two serial jobs of a Schedule are active on a host at once."""
        sent = [(it.command.schedule_id, it.host) for it in self.active if it.serial]
        assert len(sent) == len(set(sent))

    def teardown(self) -> None:
        """Once all hosts are there and say how their jobs end, every job ends."""
        for host in HOSTS:
            self.comes(host)
        for _ in range(3 * len(self.lanes.jobs) + 3):
            self.now += 2 * MINUTE
            self.advance()
            for it in self.active:
                self.lanes.remove(it.id)
            self.advance()
        assert self.lanes.jobs == {}
        assert self.lanes._lanes == {}


class SlowFleet(Fleet):
    """The same with lanes that work in small pieces, to which more comes while they have more to do."""

    def fresh(self) -> Lanes:
        lanes = Lanes(piece=2)
        for name, limit in LIMITS.items():
            lanes.limit(name, limit)
        return lanes

    def advance(self, *, once: bool = True) -> None:
        for late in self.lanes.tick(self.now):
            self.lanes.remove(late.id)
        self.lanes.take()
        while self.lanes.has_more and not once:
            self.lanes.take()

    @rule()
    def restarts(self) -> None:
        kept = [self.kept(it) for it in self.lanes.jobs.values()]
        self.lanes = self.fresh()
        self.lanes.add(kept)
        for host in HOSTS:
            self.lanes.disconnected(host)
        for host in sorted(self.online):
            self.lanes.connected(host, {it.wire_id for it in kept if it.host == host and it.state != "waiting"})
        self.advance()

    @rule()
    def has_time(self) -> None:
        while self.lanes.has_more or (self.lanes.wake_at is not None and self.lanes.wake_at <= self.now):
            self.advance(once=False)
        super().nobody_is_stuck()

    @invariant()
    def nobody_is_stuck(self) -> None:
        if not self.lanes.has_more:
            super().nobody_is_stuck()

    def teardown(self) -> None:
        self.has_time()
        super().teardown()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=200, stateful_step_count=40)
TestSlowFleet = SlowFleet.TestCase
TestSlowFleet.settings = settings(max_examples=100, stateful_step_count=40)
