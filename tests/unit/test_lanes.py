"""Lanes are fair and keep to a repository's limit, exclusive jobs run alone, and a restart changes nothing."""

from collections.abc import Collection

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection

from server.jobs.fires import NewJob
from server.jobs.kinds import EXCLUSIVE, ConcurrencyLimit
from server.jobs.queue import Arrival, Recording
from server.resources.specs import Retry
from server.store import queue
from server.store.queue import OpenRow
from tests.jobmodel import Known, Model
from tests.jobqueue import HOSTS, MINUTE, NOON, Jobs, in_memory, job
from wire.messages import CommandRun


@pytest.fixture
def jobs() -> Jobs:
    """All hosts are online, and one job at a time may use the repository."""
    return one_at_a_time(Jobs(in_memory()))


def one_at_a_time(jobs: Jobs) -> Jobs:
    jobs.limits["repo"] = ConcurrencyLimit(limit=1)
    for host in HOSTS:
        jobs.connected(host)
    return jobs


# Limits.


def test_without_a_limit_everybody_goes_at_once(jobs: Jobs) -> None:
    jobs.limit("repo")
    assert jobs.add(job("1"), job("2"), job("3", "b")) == ["1", "2", "3"]


def test_as_many_go_at_once_as_the_limit_says_and_the_first_goes_first(jobs: Jobs) -> None:
    jobs.limit("repo", 2)
    assert jobs.add(*(job(str(at), at=at) for at in range(5))) == ["0", "1"]
    assert jobs.ends("1") == ["2"]
    assert jobs.ends("0") == ["3"]


def test_a_limit_that_is_raised_lets_the_next_go(jobs: Jobs) -> None:
    jobs.add(*(job(str(at), at=at) for at in range(5)))
    assert jobs.limit("repo", 3) == ["1", "2"]


def test_hosts_with_repositories_of_their_own_do_not_wait_for_each_other(jobs: Jobs) -> None:
    jobs.limit("repo", 1, per_host=True)
    assert jobs.add(job("1", "a"), job("2", "b"), job("3", "a")) == ["1", "2"]


def test_jobs_change_their_lanes_once_each_host_has_a_part_of_the_repository(jobs: Jobs) -> None:
    assert jobs.add(job("1", "a"), job("2", "a"), job("3", "b"), job("4", "b")) == ["1"]
    assert jobs.limit("repo", 1, per_host=True) == ["3"]
    assert jobs.limit("repo", 2) == []
    assert jobs.ends("1") == ["2"]


def test_repositories_do_not_wait_for_each_other(jobs: Jobs) -> None:
    jobs.limit("other", 1)
    assert jobs.add(job("1"), job("2", repository="other"), job("3")) == ["1", "2"]


# Exclusive jobs.


@pytest.mark.parametrize("kind", sorted(EXCLUSIVE))
def test_an_exclusive_job_waits_for_others_and_holds_back_later_ones(jobs: Jobs, kind: str) -> None:
    jobs.limit("repo")
    assert jobs.add(job("1"), job("2"), job("3", kind=kind, at=1), job("4", at=2), job("5", at=2)) == ["1", "2"]
    assert jobs.ends("1") == []
    assert jobs.ends("2") == ["3"]
    assert jobs.ends("3") == ["4", "5"]


def test_unlock_goes_at_once_whoever_is_stuck(jobs: Jobs) -> None:
    assert jobs.add(job("1", kind="prune"), job("2"), job("3", kind="unlock")) == ["1", "3"]


# Copies.


def copy(job_id: str, to: str, source: str, at: int = 0) -> NewJob:
    made = job(job_id, kind="copy", repository=to, at=at)
    return msgspec.structs.replace(made, command=msgspec.structs.replace(made.command, from_repository=source))


def test_a_copy_needs_a_slot_of_both_repositories_and_others_of_the_one_that_it_reads_pass_it(jobs: Jobs) -> None:
    jobs.limit("other", 1)
    assert jobs.add(job("1"), job("2", repository="other"), copy("3", "other", "repo", at=1), job("4", at=2)) == [
        "1",
        "2",
    ]
    assert jobs.ends("1") == ["4"]
    assert jobs.waits_for("3") == "1 job before it in repository ns/main"
    assert jobs.ends("2") == []
    assert jobs.waits_for("3") == "1 job before it in repository ns/copied"
    assert jobs.add(job("5", at=3), job("6", repository="other", at=3)) == []
    assert jobs.ends("4") == ["3"]
    assert jobs.ends("3") == ["5", "6"]


def test_copies_in_opposite_directions_do_not_wait_for_each_other_for_ever(jobs: Jobs) -> None:
    jobs.limit("other", 1)
    assert jobs.add(copy("1", "other", "repo"), copy("2", "repo", "other")) == ["1"]
    assert jobs.ends("1") == ["2"]


def test_a_copy_changes_its_lanes_once_each_host_has_a_part_of_the_repository_that_it_reads(jobs: Jobs) -> None:
    assert jobs.add(job("1", "b"), copy("2", "other", "repo")) == ["1"]
    assert jobs.limit("repo", 1, per_host=True) == ["2"]


# Hosts that are offline.


def test_the_jobs_of_an_offline_host_hold_back_none_and_keep_their_positions(jobs: Jobs) -> None:
    jobs.disconnected("b")
    assert jobs.add(job("1", "a"), job("2", "b", at=1), job("3", "c", at=2), job("4", "c", at=3)) == ["1"]
    assert jobs.ends("1") == ["3"]
    assert jobs.connected("b") == []
    assert jobs.ends("3") == ["2"]


def test_a_job_that_may_be_running_keeps_its_slot_until_the_slots_of_its_host_are_released(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b"))
    assert jobs.disconnected("a") == ([], True)
    assert jobs.tick(24 * 60) == []
    assert jobs.given_up("a") == ["2"]


def test_a_host_without_jobs_that_may_be_running_has_no_slots_to_keep(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b"))
    assert jobs.disconnected("b") == ([], False)
    assert jobs.disconnected("c") == ([], False)


def test_a_host_that_was_disconnected_for_a_moment_keeps_its_slots(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b"))
    jobs.disconnected("a")
    assert jobs.accepts("1") == ["1"]  # its hello names it, which is stored before the hello is answered
    assert jobs.connected("a", {"1"}) == []
    assert jobs.tick(24 * 60) == []
    assert (jobs.row("1")["status"], jobs.row("1")["holds"]) == ("running", True)


def test_a_host_that_is_back_after_its_slots_were_released_has_them_again(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b"), job("3", "b", at=1))
    jobs.disconnected("a")
    jobs.accepts("1")
    assert jobs.given_up("a") == ["2"]
    assert jobs.connected("a", {"1"}) == []
    assert jobs.ends("2") == []
    assert jobs.ends("1") == ["3"]


def test_a_job_that_did_not_reach_its_host_waits_at_its_position_again(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b", at=1))
    jobs.disconnected("a")
    assert jobs.connected("a") == ["1"]


# Jobs of one Schedule on one host.


def test_a_serial_job_waits_for_the_one_before_it_and_holds_back_no_others(jobs: Jobs) -> None:
    jobs.limit("repo")
    runs = [job("1", schedule="s"), job("2", schedule="s", at=1), job("3", "b", schedule="s", at=2), job("4", at=3)]
    assert jobs.add(*runs) == ["1", "3", "4"]
    assert jobs.ends("1") == ["2"]


def test_jobs_that_are_not_serial_go_together(jobs: Jobs) -> None:
    jobs.limit("repo")
    assert jobs.add(*(job(it, schedule="s", policy="Allow") for it in "12")) == ["1", "2"]


def test_a_serial_job_does_not_wait_for_a_deferred_one(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s"))
    assert jobs.fails("1", 5) == []
    assert jobs.add(job("2", schedule="s", at=1)) == ["2"]
    assert jobs.tick(5) == []
    assert jobs.ends("2") == ["1"]


def test_a_run_replaces_the_last_one_though_a_repeat_of_that_came_with_it(jobs: Jobs) -> None:
    last, new = (job(it, schedule="s", policy="Replace", due=NOON + at * MINUTE) for at, it in enumerate("12"))
    assert jobs.add(last) == ["1"]
    repeat = job("3", schedule="s", policy="Replace", due=NOON)
    recorded, sent = jobs.record(new, repeat)
    assert (recorded.new, recorded.refused, sent, jobs.asked) == ({"2"}, {}, [], ["1"])
    assert jobs.ends("1") == ["2"]


# Time.


def test_a_failed_job_rejoins_its_lane_when_its_next_attempt_is_due(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s"), job("2", "b", at=1), job("3", "b", at=2))
    assert jobs.fails("1", 5) == ["2"]
    assert jobs.tick(5) == []
    assert jobs.ends("2") == ["3"]
    assert jobs.ends("3") == ["1"]
    assert jobs.open()["1"].attempt == 2
    assert jobs.finish("a", "1")[0].over == []
    (over,) = jobs.finish("a", "1.2")[0].over
    assert over[0].id == "1"


def test_a_job_that_waited_too_long_has_ended(jobs: Jobs) -> None:
    jobs.add(job("1"), job("2", start_by=NOON + 5 * MINUTE))
    assert (jobs.tick(4), jobs.ended) == ([], {})
    assert (jobs.tick(5), jobs.ended["2"].status, jobs.ended["2"].reason) == ([], "failed", "DeadlineExceeded")
    assert (jobs.row("2")["status"], jobs.row("2")["reason"]) == ("failed", "DeadlineExceeded")
    assert jobs.ends("1") == []
    assert (jobs.tick(6), list(jobs.ended)) == ([], ["2"])


def test_a_job_that_was_sent_in_time_is_not_too_late(jobs: Jobs) -> None:
    jobs.add(job("1", start_by=NOON + MINUTE))
    assert (jobs.tick(2), jobs.ended) == ([], {})


def test_a_job_that_is_too_late_is_not_sent_though_nobody_has_looked_at_the_clock(jobs: Jobs) -> None:
    jobs.add(job("1"), job("2", "b", start_by=NOON + 5 * MINUTE))
    jobs.disconnected("b")
    jobs.now = NOON + 6 * MINUTE
    assert jobs.connected("b") == []
    assert jobs.ends("1") == []
    assert (jobs.tick(), list(jobs.ended)) == ([], ["2"])


def test_there_is_more_to_do_at_the_time_of_the_next_timer(jobs: Jobs) -> None:
    assert jobs.next_at is None
    jobs.add(job("1", schedule="s"), job("2", start_by=NOON + 9 * MINUTE), job("3", "b", start_by=NOON + 7 * MINUTE))
    jobs.fails("1", 5)
    assert jobs.next_at == NOON + 5 * MINUTE
    jobs.tick(5)
    assert jobs.next_at == NOON + 7 * MINUTE


def test_a_clock_that_was_ahead_put_nothing_off(jobs: Jobs) -> None:
    jobs.tick(1000)
    jobs.add(job("1", schedule="s", at=1000), job("2", "b", at=1000), job("3", "b", at=1001))
    jobs.fails("1", 60)
    jobs.accepts("2")
    jobs.tick(1)
    (outcome,) = jobs.queue.clock_set_back(jobs.conn, [jobs.now])
    assert jobs.sent(outcome) == []
    assert jobs.tick() == []
    assert jobs.row("2")["accepted_at"] == NOON + MINUTE
    assert jobs.add(job("4", "c", at=2)) == []
    assert [jobs.ends("2"), jobs.ends("1"), jobs.ends("3")] == [["1"], ["3"], ["4"]]


# What people see.


def test_what_a_job_waits_for_is_told(jobs: Jobs) -> None:
    jobs.disconnected("c")
    failed, late = job("5", "b", schedule="r", repository="other"), job("6", start_by=NOON)
    runs = [job("7", schedule="s", repository="other"), job("8", schedule="s", repository="other", at=1)]
    jobs.add(job("1"), job("2", at=1), job("3", "b", at=2), job("4", "c"), failed, late, *runs)
    jobs.fails("5", 1)
    assert jobs.waits_for("6") == "its end: it is too late to begin"
    jobs.tick(0)
    said = {
        "1": "",
        "2": "1 job before it in repository ns/main",
        "3": "2 jobs before it in repository ns/main",
        "4": "host c to connect",
        "5": "retry at 2026-03-05T12:01:00Z",
        "6": "",
        "7": "",
        "8": "the run before it on host a",
        "unknown": "",
    }
    assert {job_id: jobs.waits_for(job_id) for job_id in said} == said


def test_a_job_is_found_by_its_host_and_its_present_attempt(jobs: Jobs) -> None:
    def found(host: str, attempt: str) -> tuple[list[str], list[str]]:
        """Whose end that is: an open job's, or one of another host."""
        ended = jobs.finish(host, attempt)[0]
        return [it.id for it, _ in ended.over], [*ended.foreign]

    jobs.add(job("1", schedule="s"))
    assert [found(*said) for said in (("b", "1"), ("b", "2"), ("a", "1.2"))] == [([], ["1"]), ([], []), ([], [])]
    jobs.fails("1", 1)
    assert (found("a", "1"), found("a", "1.2")) == (([], []), (["1"], []))


def test_a_job_that_is_open_already_is_left_out(jobs: Jobs) -> None:
    jobs.add(job("1"))
    first = jobs.open()
    assert jobs.add(job("1", "b")) == []
    assert jobs.open() == first


# A restart.


def test_a_restart_keeps_every_job_where_it_was(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b", at=1), job("3", "c", at=2), job("4", "c", schedule="s", repository="other"))
    jobs.accepts("1")
    jobs.fails("4", 5)
    assert jobs.restart() == ["a"]
    assert jobs.connected("c") == jobs.connected("b") == jobs.connected("a", {"1"}) == []
    assert (jobs.ends("1"), jobs.ends("2"), jobs.tick(5)) == (["2"], ["3"], ["4"])


def test_a_restart_brings_no_attempt_forward_but_one_that_a_wrong_clock_put_off(jobs: Jobs) -> None:
    jobs.add(job("1", schedule="s", repository="other"), job("2", "b", at=1))
    jobs.fails("1", 60)
    jobs.tick(10)
    jobs.restart()
    assert (jobs.connected("a"), jobs.tick(59), jobs.next_at) == ([], [], NOON + 60 * MINUTE)
    jobs.accepts("2")
    jobs.now = NOON - 1000 * MINUTE  # before the restart, the clock was ahead
    jobs.restart()
    assert (jobs.connected("a"), jobs.connected("b", {"2"}), jobs.next_at) == ([], [], NOON - 940 * MINUTE)
    assert jobs.row("2")["accepted_at"] == NOON - 1000 * MINUTE
    assert jobs.tick(-940) == ["1"]


def test_a_host_that_does_not_return_after_a_restart_keeps_its_slot_for_a_while(jobs: Jobs) -> None:
    jobs.add(job("1", "a"), job("2", "b", at=1))
    assert (jobs.restart(), jobs.connected("b"), jobs.tick(24 * 60)) == (["a"], [], [])
    assert jobs.given_up("a") == ["2"]


# All that may come, in any order.


LIMITS = {
    "one": ConcurrencyLimit(limit=1),
    "two": ConcurrencyLimit(limit=2),
    "own": ConcurrencyLimit(limit=1, per_host=True),
    "free": ConcurrencyLimit(),
}
SCHEDULES = {"": None, "s": "one", "t": "two", "u": "own", "v": "free"}
"""Schedules, and the repository that each is on."""


class Fleet(RuleBasedStateMachine):
    """Hosts that connect and disconnect, jobs that are sent to them, and a server that restarts. A plain model says
    after each event what must have come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.changed: set[str] = set()  # repositories whose limits are not those of LIMITS any more
        self.let_go: set[str] = set()  # jobs that lost their slots while their hosts were disconnected
        self.jobs = Jobs(self.connection(), LIMITS)
        self.model = Model(dict(LIMITS), NOON)
        self.patched = pytest.MonkeyPatch()

    def connection(self) -> Connection:
        return in_memory()

    @initialize(front=st.sampled_from([2, queue.FRONT]))
    def begin(self, front: int) -> None:
        """`front`: how many jobs the queue looks at together."""
        self.patched.setattr(queue, "FRONT", front)
        for host in HOSTS[:2]:
            self.comes(host, [True])

    @property
    def active(self) -> list[Known]:
        return [it for _, it in sorted(self.model.jobs.items()) if it.has_begun]

    def check(self, sent: list[str], meanwhile: Collection[str] = ()) -> None:
        """What an event has sent and ended, and where each job is now, is what the model says."""
        assert len(sent) == len(set(sent))
        assert set(sent) == self.model.advance() | set(meanwhile)
        assert (set(self.jobs.ended), set(self.jobs.asked)) == (self.model.over, self.model.asked)
        assert {row.id: self.shown(row) for row in self.jobs.open().values()} == {
            it.job.id: (it.status, it.sent, it.holds, it.deferred, it.attempt, it.cancelled, it.queued_at, *lanes)
            for it in self.model.jobs.values()
            if (lanes := (self.model.lane(it.job), self.model.from_lane(it.job)))
        }
        ready = [it for it in self.model.jobs.values() if self.model.is_ready(it)]
        assert self.jobs.ready() == [it.job.id for it in sorted(ready, key=lambda it: it.position)]

    def shown(self, row: OpenRow) -> tuple[object, ...]:
        """A job as the model says it. A job that runs was sent, whether it has been written so or not."""
        sent = row.sent or row.status == "running"
        where = row.status, sent, row.holds, row.deferred, row.attempt
        return *where, row.cancel_requested, row.queued_at, row.lane, row.from_lane

    @rule(
        its=st.lists(
            st.tuples(
                st.sampled_from(HOSTS),
                st.sampled_from(["backup", "backup", "prune", "unlock", "copy"]),
                st.sampled_from(sorted(LIMITS)),
                st.sampled_from(sorted(SCHEDULES)),
                st.sampled_from([None, 1, 60]),
                st.sampled_from([None, 0, 0, 1]),
            ),
            min_size=1,
            max_size=4,
        ),
        policy=st.sampled_from(["Allow", "Forbid", "Forbid", "Replace"]),
        cut=st.integers(0, 4),
    )
    def fires(self, its: list[tuple[str, str, str, str, int | None, int | None]], policy: str, cut: int) -> None:
        """Jobs are recorded: those before `cut` by one host or user, and the others by another in the same batch.

        `policy`: what all schedules say by now.
        """
        new = []
        for host, kind, repository, schedule, minutes, ago in its:
            self.number += 1
            at = None if ago is None or not schedule else self.model.now - ago * MINUTE
            own = SCHEDULES[schedule] or repository
            others = sorted(LIMITS.keys() - {own})
            command = CommandRun(
                f"{self.number:04}",
                kind,
                [],
                own,
                schedule_id=schedule,
                scheduled_at=at,
                from_repository=others[self.number % len(others)] if kind == "copy" else "",
            )
            start_by = None if minutes is None else self.model.now + minutes * MINUTE
            rule = policy if schedule else "Allow"
            new.append(NewJob(host, command, "user", "me", 0, self.model.now, "", rule, start_by))  # type: ignore[arg-type]
        parts = [part for part in (new[:cut], new[cut:]) if part]
        pairs = [{(it.command.schedule_id, it.host) for it in part if it.command.schedule_id} for part in parts]
        results = self.jobs.queue.record(self.jobs.conn, [Recording(part, self.model.now) for part in parts])
        going: list[str] = []
        meanwhile: set[str] = set()
        for number, (part, result) in enumerate(zip(parts, results, strict=True)):
            if number and pairs[0] & pairs[1]:
                meanwhile = self.model.advance()
            stored, refused = self.model.record(part)
            assert (set(result.new), set(result.refused)) == (stored, refused)
            assert set(result.sendable) <= set(result.new)
            going += [*result.sendable, *self.jobs.sent(result.outcome)]
        self.check(going, meanwhile)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def accepts(self, data: st.DataObject) -> None:
        it = data.draw(st.sampled_from(self.active))
        if it.job.host in self.model.online:
            assert self.jobs.accepts(it.job.id) == ([] if it.status == "running" else [it.job.id])
            self.model.accept(it)
            self.check([])

    @precondition(lambda self: self.active)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "succeeded", "failed"]))
    def ends(self, data: st.DataObject, how: str) -> None:
        it = data.draw(st.sampled_from(self.active))
        if it.job.host not in self.model.online:
            return
        self.jobs.retry = Retry(limit=2, backoff_seconds=60)
        ended, sent = self.jobs.finish(it.job.host, it.wire_id, how)
        again = bool(how == "failed" and it.job.command.schedule_id and it.attempt <= 2 and not it.cancelled)
        assert [len(ended.over), len(ended.again), len(ended.foreign)] == [not again, again, 0]
        if again:
            self.model.retry(it, ended.again[0][1].not_before)
        else:
            del self.model.jobs[it.job.id]
        self.check(sent)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.model.jobs)), min_size=1, max_size=3, unique=True))
        sent = self.jobs.cancel(*some)
        self.model.cancel(some)
        self.check(sent)

    @rule(host=st.sampled_from(HOSTS), has=st.lists(st.booleans(), min_size=1, max_size=4))
    def comes(self, host: str, has: list[bool]) -> None:
        """A host says hello; of what it was sent and has not accepted, it has some."""
        self.come([(host, has)])

    @rule(its=st.lists(st.tuples(st.sampled_from(HOSTS), st.lists(st.booleans(), min_size=1, max_size=4)), max_size=4))
    def come(self, its: list[tuple[str, list[bool]]]) -> None:
        """Hosts say hello at once. Of one that does so several times, the last hello counts."""
        arrivals = [Arrival(host, self.has(host, has), self.model.now) for host, has in its]
        found = self.jobs.queue.arrived(self.jobs.conn, arrivals) if arrivals else []
        for arrival in {it.host: it for it in arrivals}.values():
            self.model.arrive(arrival.host, arrival.running)
        self.check([job_id for it in found for job_id in self.jobs.sent(it.outcome)])

    def has(self, host: str, has: list[bool]) -> set[str]:
        """The attempts that a host has: those that run, and some that it was sent, which it accepts."""
        its = [it for it in self.active if it.job.host == host]
        running = {it.wire_id for at, it in enumerate(its) if it.status == "running" or has[at % len(has)]}
        for it in its:
            if it.status != "running" and it.wire_id in running:
                self.jobs.accepts(it.job.id)
                self.model.accept(it)
        return running

    @rule(hosts=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=4))
    def go(self, hosts: list[str]) -> None:
        """The connections of hosts are gone at once."""
        found = self.jobs.queue.disconnected(self.jobs.conn, [(host, self.model.now) for host in hosts])
        assert [holds for _, holds in found] == [host in self.holders() for host in hosts]
        self.model.online.difference_update(hosts)
        self.check([job_id for outcome, _ in found for job_id in self.jobs.sent(outcome)])

    @rule()
    def their_server_dies(self) -> None:
        ((outcome, holders),) = self.jobs.queue.server_gone(self.jobs.conn, [("here", self.model.now)])
        assert holders == sorted(self.holders() & self.model.online)
        self.model.online.clear()
        self.check(self.jobs.sent(outcome))

    def holders(self) -> set[str]:
        """The hosts whose jobs have slots."""
        return {it.job.host for it in self.active if it.holds}

    @rule(hosts=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=2))
    def are_given_up(self, hosts: list[str]) -> None:
        found = self.jobs.queue.given_up(self.jobs.conn, [(host, self.model.now) for host in hosts])
        for host in {*hosts} - self.model.online:
            self.let_go |= {it.job.id for it in self.active if it.job.host == host}
            self.model.give_up(host)
        self.check([job_id for outcome in found for job_id in self.jobs.sent(outcome)])

    @rule(minutes=st.sampled_from([1, 2, 45]))
    def time_passes(self, minutes: int) -> None:
        self.model.pass_time(self.model.now + minutes * MINUTE)
        self.jobs.now = self.model.now
        self.check(self.jobs.tick())

    @rule(minutes=st.sampled_from([1, 50]))
    def clock_is_set_back(self, minutes: int) -> None:
        now = self.jobs.now = self.model.now - minutes * MINUTE
        sent = self.jobs.sent(*self.jobs.queue.clock_set_back(self.jobs.conn, [now]))
        self.model.set_clock_back(now)
        self.model.pass_time(now)
        self.check(sent + self.jobs.tick())

    @rule(repository=st.sampled_from(sorted(LIMITS)), limit=st.sampled_from([None, 1, 2, 3]), per_host=st.booleans())
    def is_limited(self, repository: str, limit: int | None, per_host: bool) -> None:
        self.changed.add(repository)
        self.model.limits[repository] = ConcurrencyLimit(limit, per_host)
        self.check(self.jobs.limit(repository, limit, per_host=per_host))

    @rule(host=st.sampled_from(HOSTS))
    def is_deleted(self, host: str) -> None:
        sent = self.jobs.sent(*self.jobs.queue.end_host(self.jobs.conn, [(host, "deleted", self.model.now)]))
        for job_id in [it.job.id for it in self.model.jobs.values() if it.job.host == host]:
            self.model.end(job_id)
        self.check(sent)

    @rule()
    def restarts(self) -> None:
        """The same hosts return with the same jobs: the same jobs wait at the same positions, and no other starts."""
        online, before = sorted(self.model.online), self.jobs.open()
        assert self.jobs.restart() == sorted({it.job.host for it in self.active if it.holds})
        self.model.online.clear()
        self.model.begin_anew()
        self.check([])
        for host in online:
            running = {it.wire_id for it in self.active if it.job.host == host}
            sent = self.jobs.connected(host, running)
            self.model.arrive(host, running)
            self.check(sent)
        assert self.jobs.open().keys() == before.keys()

    @invariant()
    def as_many_as_allowed(self) -> None:
        """Counts jobs whose hosts are online, and whose slots were not released meanwhile."""
        uses: dict[str, list[Known]] = {}
        for it in self.active:
            if it.job.host in self.model.online and it.job.id not in self.let_go and it.job.command.kind != "unlock":
                for lane in self.model.lanes(it.job):
                    uses.setdefault(lane, []).append(it)
        for lane, its in uses.items():
            returned = [it for it in its if it.status == "running"]
            repository = lane.partition("/")[0]
            limit = LIMITS[repository].limit
            if repository not in self.changed:
                assert limit is None or len(its) <= max(limit, len(returned))
                alone = any(it.job.command.kind in EXCLUSIVE for it in its)
                assert len(its) == 1 or len(returned) == len(its) or not alone

    @invariant()
    def nobody_is_stuck(self) -> None:
        """Each waiting job says what for, and the first in a lane without active jobs has started."""
        waits = {it.job.id for it in self.model.jobs.values() if not it.has_begun}
        assert {job_id for job_id in self.model.jobs if self.jobs.waits_for(job_id)} == waits
        for it in self.model.jobs.values():
            if self.model.is_ready(it):
                lanes = self.model.linked(self.model.lane(it.job))
                assert any(other.holds and lanes & {*self.model.lanes(other.job)} for other in self.model.jobs.values())

    @invariant()
    def serial_jobs_of_a_schedule_run_one_by_one(self) -> None:
        """No two serial jobs of a Schedule are active on a host at once."""
        sent = [(it.job.command.schedule_id, it.job.host) for it in self.active if it.job.policy != "Allow"]
        assert len(sent) == len(set(sent))

    def teardown(self) -> None:
        """Once all hosts are there and say how their jobs end, every job ends."""
        self.patched.undo()
        for host in HOSTS:
            self.comes(host, [True])
        for _ in range(3 * len(self.model.jobs) + 3):
            self.time_passes(2)
            for it in self.active:
                sent = self.jobs.ends(it.job.id)
                del self.model.jobs[it.job.id]
                self.check(sent)
        assert self.jobs.open() == {}


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30)
