"""A host's session pushes, records and answers what it should, event by event."""

from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest

import cron
from server.access.vault import Vault
from server.agents.session import (
    Accepted,
    Acked,
    Effect,
    Ended,
    Fired,
    LeftOutEntries,
    Reported,
    Send,
    Session,
)
from server.events import Events, HostDisconnected
from server.fleet import pushes
from server.fleet.catalog import Catalog
from server.fleet.placement import HostState, PlacedSchedule, Placement
from server.fleet.pushes import Push
from server.fleet.timing import EARLIER_TIMINGS, EARLY, superseded
from server.jobs import fires
from server.jobs.active import ActiveAttempts, Attempt
from server.jobs.dispatcher import Dispatcher
from server.jobs.fires import MAX_OPEN_JOBS, NewJob, answered, decide, new_job
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from server.jobs.resume import resumed as resumes
from server.observe.coverage import group_by_set
from server.store.futures import Submit
from server.store.logs import list_log
from server.store.queue import OpenRow
from server.store.rows import Timing
from tests.jobqueue import Jobs, in_memory, job, placed
from wire import entries
from wire.entries import EMPTY
from wire.messages import (
    AgentClock,
    CommandCancel,
    CommandRun,
    FromAgent,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
    JobFinished,
    JobLog,
    LeftOut,
    ScheduleAck,
    ScheduleDiff,
    ScheduleFire,
    ScheduleRefused,
    ScheduleResync,
    ScheduleSet,
)

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


A, B = placed("a"), placed("b")


def held(*schedules: PlacedSchedule) -> entries.EntrySet:
    return entries.patched(EMPTY, {it.id: it.entry for it in schedules})


def host(version: int = 1, *schedules: PlacedSchedule) -> Session:
    return Session(HostState("db-1", {}, NOON, version, held(*schedules)))


def hello(version: int = 0, digest: str = "") -> Hello:
    return Hello("db-1", "1", version, digest)


def in_sync(version: int = 1, *schedules: PlacedSchedule) -> Session:
    """A host that is connected and holds what it should."""
    it = host(version, *schedules)
    it.hello(1, hello(version, held(*schedules).digest))
    it.registered()
    return it


def change(it: Session, version: int, *schedules: PlacedSchedule) -> list[Effect]:
    it.desired.version, it.desired.entries, it.desired.since = version, held(*schedules), NOON
    return it.desired_changed()


def said(effects: list[Effect]) -> list[Any]:
    """What pushes say, of all effects."""
    return [pushes.message(effect) for effect in effects if isinstance(effect, Push)]


def ack(it: Session, version: int, *schedules: PlacedSchedule) -> list[Effect]:
    return it.acked(ScheduleAck(version, held(*schedules).digest))


# Pushes.


def test_a_host_in_sync_is_sent_nothing() -> None:
    it = host(1, A)
    assert it.hello(1, hello(1, held(A).digest)) == [Acked(1, held(A).digest)]
    assert it.registered() == []
    assert it.in_sync


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(hello(), id="never heard of"),
        pytest.param(hello(0, held(A).digest), id="another version"),
        pytest.param(hello(1, held(B).digest), id="another digest"),
        pytest.param(hello(7, held(A).digest), id="from before the store was restored"),
    ],
)
def test_a_host_that_is_not_in_sync_is_sent_its_whole_set(told: Hello) -> None:
    (pushed,) = said(host(1, A).hello(1, told))
    assert pushed == ScheduleSet(1, pushed.schedules, NOON)
    assert entries.whole(pushed.schedules) == held(A)


def behind(it: Session, schedule_id: str) -> list[str]:
    [group] = group_by_set([it])
    return group.out_of_sync(schedule_id)


def test_a_host_that_left_an_entry_out_is_not_in_sync_and_the_others_are_in_force() -> None:
    it = in_sync(1, A, B)
    out = LeftOutEntries({"a": "unknown zone"}, 1)
    assert it.acked(ScheduleAck(1, held(A, B).digest, [LeftOut("a", "unknown zone")], 1)) == [
        Acked(1, held(A, B).digest, out)
    ]
    assert (it.in_sync, behind(it, "a"), behind(it, "b")) == (False, ["db-1"], [])
    [problem] = it.problems(NOON, {"a": "default/a"})
    assert (problem.reason, "default/a (unknown zone)" in problem.message) == ("EntriesLeftOut", True)
    it.acked(ScheduleAck(1, held(A, B).digest))
    assert (it.in_sync, it.problems(NOON, {})) == (True, [])


def test_of_more_entries_than_are_listed_none_is_thought_to_be_in_force() -> None:
    it = in_sync(1, A, B)
    it.acked(ScheduleAck(1, held(A, B).digest, [LeftOut("a", "unknown zone")], 2))
    assert behind(it, "b") == ["db-1"]


def test_an_old_agent_that_leaves_out_a_schedule_with_several_crons_is_to_be_updated() -> None:
    several = placed("a", crons=["0 2 * * *", "0 14 * * *"])
    it = in_sync(1, several)
    assert it.hello(2, msgspec.structs.replace(hello(1, held(several).digest), capabilities=["backup"]))
    why = "it has several crons, which agent 1 does not know: update the agent of db-1"
    it.acked(ScheduleAck(1, held(several).digest, [LeftOut("a", "has 10 fields")], 1))
    (problem,) = it.problems(NOON, {"a": "default/a"})
    assert (problem.reason, f"default/a ({why})" in problem.message) == ("EntriesLeftOut", True)
    new = msgspec.structs.replace(hello(1, held(several).digest), capabilities=["backup", "crons"])
    it.hello(3, new)
    it.acked(ScheduleAck(1, held(several).digest, [LeftOut("a", "no")], 1))
    assert "default/a (no)" in it.problems(NOON, {"a": "default/a"})[0].message


def test_a_hello_that_does_not_say_what_is_left_out_keeps_what_was_told_of_the_same_set() -> None:
    it = in_sync(1, A, B)
    it.acked(ScheduleAck(1, held(A, B).digest, [LeftOut("a", "unknown zone")], 1))
    it.hello(2, hello(1, held(A, B).digest))
    assert not it.in_sync
    it.hello(3, msgspec.structs.replace(hello(1, held(A, B).digest), left_out=[]))
    assert it.in_sync


@pytest.mark.parametrize(("ahead", "told"), [(59, []), (61, ["ClockSkew"]), (-61, ["ClockSkew"])])
def test_a_clock_that_is_more_than_a_minute_wrong_is_told(ahead: int, told: list[str]) -> None:
    it = host(1, A)
    it.hello(1, Hello("db-1", now=NOON + timedelta(seconds=ahead)), NOON)
    assert [problem.reason for problem in it.problems(NOON, {})] == told
    assert it.clock_skew_s == ahead


def test_a_clock_that_goes_wrong_while_connected_is_told_until_it_is_right_again() -> None:
    it = host(1, A)
    it.hello(1, Hello("db-1", now=NOON), NOON)
    for ahead, told in ((3600, ["ClockSkew"]), (0, []), (-120, ["ClockSkew"])):
        it.received([(AgentClock(NOON + timedelta(seconds=ahead)), "")], NOON)
        assert [problem.reason for problem in it.problems(NOON, {})] == told
        assert it.clock_skew_s == ahead


def test_an_agent_that_holds_another_stores_schedules_keeps_them_until_something_is_declared() -> None:
    it = host(0)
    it.hello(1, hello(7, held(A).digest), NOON, empty=True)
    assert said([*it.registered(), *(more := it.received([(ScheduleFire("a", NOON), "1")], NOON))]) == more == []
    assert [problem.reason for problem in it.problems(NOON, {})] == ["StoreEmpty"]
    [pushed] = said(it.resume_pushes())
    assert (pushed.version, pushed.schedules) == (0, [])
    assert it.problems(NOON, {}) == []


def test_an_agent_that_holds_nothing_is_in_order_at_an_empty_store() -> None:
    assert said(host(0).hello(1, hello(7, EMPTY.digest), NOON, empty=True)) != []


def test_a_host_for_which_nothing_was_declared_is_sent_an_empty_set() -> None:
    assert said(host(0).hello(1, hello(0, EMPTY.digest))) == [ScheduleSet(0, [], NOON)]


def test_a_change_is_pushed_as_what_differs() -> None:
    (pushed,) = said(change(in_sync(1, A), 2, B))
    assert pushed == ScheduleDiff(1, 2, pushed.upsert, ["a"])
    assert [bytes(raw) for raw in pushed.upsert] == [B.entry.raw]


def test_a_host_learns_its_own_beginning_when_an_entry_is_older() -> None:
    (pushed,) = said(change(in_sync(1), 2, placed("old", since=NOON - MINUTE)))
    assert pushed.since == NOON


def test_a_diff_builds_only_on_a_set_that_was_acked() -> None:
    it = in_sync(1)
    assert len(said(change(it, 2, A))) == 1
    assert change(it, 3, A, B) == []
    (pushed,) = said(ack(it, 2, A))
    assert (pushed.base, pushed.version, [bytes(raw) for raw in pushed.upsert]) == (2, 3, [B.entry.raw])


def test_an_ack_of_an_earlier_push_is_no_proof_of_the_last() -> None:
    it = in_sync(1)
    change(it, 2, A)
    assert said(ack(it, 1)) == []
    assert change(it, 3, B) == []


def test_changes_wait_until_the_first_push_is_written() -> None:
    it = host(1, A)
    it.hello(1, hello(1, held(A).digest))
    assert change(it, 2, B) == []
    assert [pushed.version for pushed in said(it.registered())] == [2]


def test_a_host_that_is_offline_learns_a_change_at_its_next_hello() -> None:
    it = in_sync(1, A)
    it.disconnected(1)
    assert change(it, 2, B) == []
    assert [pushed.version for pushed in said(it.hello(2, hello(1, held(A).digest)))] == [2]


def test_the_loss_of_a_replaced_connection_is_not_that_of_the_new_one() -> None:
    it = in_sync(1, A)
    it.hello(2, hello(1, held(A).digest))
    it.registered()
    it.disconnected(1)
    assert len(said(change(it, 2, B))) == 1


def test_a_digest_that_differs_has_the_whole_set_sent_once() -> None:
    it = in_sync(1)
    change(it, 2, A)
    assert [type(pushed) for pushed in said(ack(it, 2, B))] == [ScheduleSet]
    assert said(ack(it, 2, B)) == []
    assert not it.in_sync


def test_after_a_digest_that_differs_the_next_change_tries_again() -> None:
    it = in_sync(1)
    change(it, 2, A)
    ack(it, 2, B), ack(it, 2, B)
    assert len(said(change(it, 3, A, B))) == 1
    assert [type(pushed) for pushed in said(ack(it, 3, B))] == [ScheduleSet]


def test_a_host_that_cannot_apply_a_diff_is_sent_its_whole_set() -> None:
    it = in_sync(1)
    change(it, 2, A)
    assert [type(pushed) for pushed in said(it.resync(ScheduleResync(0)))] == [ScheduleSet]


def test_what_was_acked_is_stored() -> None:
    assert ack(in_sync(1, A), 1, A) == [Acked(1, held(A).digest)]


# Fires.


def fired(
    it: Session | None = None,
    schedule: PlacedSchedule = A,
    now: datetime = NOON,
    missed: int = 0,
) -> NewJob | ScheduleRefused:
    fire, schedules = ScheduleFire("a", NOON, missed), {schedule.id: schedule}
    return fires.fired(fire, it or in_sync(1, A), schedules, now, "job", "7")


def test_a_fire_becomes_a_job_whose_command_the_server_builds() -> None:
    args = ["backup", "--json", "--host=db-1", "--tag=lamplighter=default/a", "--", "/etc"]
    command = CommandRun("job", "backup", args, "main", 60, ["init"], "a", NOON)
    assert fired(missed=3) == NewJob("db-1", command, "schedule", "default/a", 3, NOON, "7", "Forbid")


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        pytest.param("NotFound", {"schedule": B}, id="deleted"),
        pytest.param("NotThisHost", {"it": in_sync(1, B)}, id="another host's"),
        pytest.param("Disabled", {"schedule": placed("a", enabled=False)}, id="disabled"),
        pytest.param(
            "DeadlineExceeded",
            {"schedule": placed("a", startingDeadlineSeconds=59), "now": NOON + MINUTE},
            id="too late",
        ),
    ],
)
def test_a_fire_is_refused_with_the_reason(reason: Any, given: dict[str, Any]) -> None:
    refused = fired(**given)
    assert isinstance(refused, ScheduleRefused)
    assert refused == ScheduleRefused("a", NOON, reason, refused.message)
    assert refused.message


def judged(
    due: datetime, now: datetime = NOON, it: Session | None = None, schedule: PlacedSchedule = A, missed: int = 0
) -> str | int:
    """Why a fire is refused; else for how many due times its job stands."""
    fire = ScheduleFire(schedule.id, due, missed)
    found = fires.fired(fire, it or in_sync(1, schedule), {schedule.id: schedule}, now, "job")
    return found.reason if isinstance(found, ScheduleRefused) else found.missed


SECOND = timedelta(seconds=1)
HOUR = 60 * MINUTE
BEGAN = NOON - 10 * HOUR
SINCE = placed("a", since=BEGAN)
BERLIN = placed("a", since=BEGAN, cron="0 2 * * *", timeZone="Europe/Berlin")
SPREAD = placed("a", since=BEGAN, spreadSeconds=3600)
OFFSET = cron.spread("db-1", "a", 3600)


@pytest.mark.parametrize(
    ("due", "now", "schedule", "found"),
    [
        pytest.param(NOON, NOON, SINCE, 0, id="now"),
        pytest.param(NOON, NOON - EARLY, SINCE, 0, id="by a clock that is a little ahead"),
        pytest.param(NOON, NOON - EARLY - SECOND, SINCE, "TooEarly", id="to come"),
        pytest.param(NOON + timedelta(days=365000), NOON, SINCE, "TooEarly", id="in a thousand years"),
        pytest.param(NOON - 9 * HOUR, NOON, SINCE, 0, id="late"),
        pytest.param(BEGAN, NOON, SINCE, "NotDue", id="when its schedule began"),
        pytest.param(BEGAN - HOUR, NOON, SINCE, "NotDue", id="before its schedule began"),
        pytest.param(NOON - MINUTE, NOON, SINCE, "NotDue", id="not of its expression"),
        pytest.param(NOON - SECOND, NOON, SINCE, "NotDue", id="a second off"),
        pytest.param(NOON - timedelta.resolution, NOON, SINCE, "NotDue", id="a microsecond off"),
        pytest.param(NOON.replace(hour=2), NOON, BERLIN, "NotDue", id="not of its zone"),
        pytest.param(NOON.replace(day=6, hour=1), NOON + 24 * HOUR, BERLIN, 0, id="of its zone"),
        pytest.param(NOON, NOON + HOUR, SPREAD, "NotDue", id="without the host's spread"),
        pytest.param(NOON + OFFSET, NOON + HOUR, SPREAD, 0, id="with the host's spread"),
    ],
)
def test_only_a_time_at_which_its_schedule_is_due_on_that_host_becomes_a_job(
    due: datetime, now: datetime, schedule: PlacedSchedule, found: int | str
) -> None:
    assert judged(due, now, schedule=schedule) == found


def test_a_due_time_to_come_is_no_repeat_once_it_has_come() -> None:
    assert (judged(NOON, NOON - HOUR, schedule=SINCE), judged(NOON, NOON, schedule=SINCE)) == ("TooEarly", 0)


def test_what_a_run_stands_for_is_no_more_than_what_can_have_been_missed() -> None:
    assert judged(NOON, schedule=SINCE, missed=2**53) == 10 * 60 + 1
    assert judged(NOON, schedule=SINCE, missed=7) == 7


def test_nothing_was_due_on_a_host_before_it_was_known() -> None:
    it = Session(HostState("db-1", {}, NOON, 1, held(SINCE), NOON - 2 * HOUR))
    assert (judged(NOON - 2 * HOUR, it=it, schedule=SINCE), judged(NOON - HOUR, it=it, schedule=SINCE)) == ("NotDue", 0)


def retimed(at: datetime, *earlier: Timing) -> PlacedSchedule:
    """A schedule that was due at half past, and is due on the hour since then."""
    old = Timing(BEGAN, "30 * * * *", "UTC", 0)
    was = msgspec.structs.replace(placed("a", since=at), since=at)
    return msgspec.structs.replace(was, earlier=(*earlier, old))


def test_a_host_that_has_not_heard_of_a_new_timing_fires_by_the_old_one() -> None:
    new = retimed(NOON - 2 * HOUR)
    away = host(2, new)
    away.hello(1, hello(1, "old"))
    assert [judged(NOON - HOUR * hours / 2, it=away, schedule=new) for hours in (1, 3, 5, 19)] == [0, 0, 0, 0]
    assert judged(BEGAN - 30 * MINUTE, it=away, schedule=new) == "NotDue"
    assert judged(NOON - 4 * HOUR, it=away, schedule=new) == "NotDue"  # the new one did not count yet


def test_a_host_that_has_heard_of_a_new_timing_fires_by_the_old_one_only_what_was_due_before() -> None:
    new = retimed(NOON - 2 * HOUR)
    it = in_sync(2, new)
    it.received([], NOON - HOUR)
    assert judged(NOON - 90 * MINUTE, it=it, schedule=new) == 0
    assert judged(NOON - 30 * MINUTE, it=it, schedule=new) == "NotDue"
    change(it, 3, new)
    assert judged(NOON - 30 * MINUTE, it=it, schedule=new) == 0  # what it holds may be older again


def test_so_many_timings_are_remembered_and_one_that_comes_back_counts_from_its_first_beginning() -> None:
    earlier: tuple[Timing, ...] = ()
    for number in range(EARLIER_TIMINGS + 2):
        earlier = superseded(Timing(NOON + number * MINUTE, f"{number} * * * *", "UTC", 0), earlier)
    assert [it.cron.split()[0] for it in earlier] == [str(number) for number in range(9, 1, -1)]
    assert superseded(earlier[0]._replace(since=NOON + HOUR), earlier) == earlier


def test_a_schedule_put_while_the_servers_clock_was_ahead_counts_at_once() -> None:
    assert judged(NOON, schedule=msgspec.structs.replace(placed("a"), since=NOON + 24 * HOUR)) == 0


def known(*jobs: NewJob) -> Jobs:
    """A queue of host db-1, which is connected, with these jobs."""
    queue = Jobs(in_memory(), hosts=("db-1", "db-2"))
    queue.connected("db-1")
    queue.connected("db-2")
    queue.add(*jobs)
    return queue


def framed(
    schedule: PlacedSchedule, dues: list[datetime], queue: Jobs | None = None
) -> tuple[list[str], list[str | None]]:
    """What one frame of fires becomes: jobs that are stored, and reasons."""
    it = in_sync(1, schedule)
    (came,) = it.received([(ScheduleFire("a", due), "") for due in dues], NOON)
    assert isinstance(came, Fired)
    ids = [f"job-{at}" for at in range(len(came.fires))]
    jobs, refused = decide(came.fires, it, {"a": schedule}, NOON, ids)
    recorded, _ = (queue or known()).record(*jobs)
    send = answered(jobs, recorded.new, recorded.sendable, recorded.refused)
    assert send is not None
    why = [*([] if refused is None else reasons(refused)), *filter(None, reasons(send))]
    return sorted(recorded.new), [it for it in why if it != "Queued"]


def reasons(refused: Send | None) -> list[str | None]:
    """Why fires are refused, message by message; None for a message that refuses none."""
    assert refused is not None
    return [it.reason if isinstance(it, ScheduleRefused) else None for it in refused.messages]


MINUTELY: dict[str, Any] = {"since": NOON - timedelta(days=4), "cron": "* * * * *"}


@pytest.mark.parametrize(("policy", "most"), [("Forbid", 1), ("Replace", 1), ("Allow", MAX_OPEN_JOBS)])
def test_a_frame_makes_no_more_jobs_of_a_schedule_than_may_be_open(policy: str, most: int) -> None:
    schedule = placed("a", concurrencyPolicy=policy, **MINUTELY)
    jobs, refused = framed(schedule, [NOON - number * MINUTE for number in range(5000)])
    assert (len(jobs), refused) == (most, ["Concurrent"] * (5000 - most))


def test_a_schedule_has_no_more_open_jobs_on_a_host_than_the_bound() -> None:
    schedule = placed("a", concurrencyPolicy="Allow", **MINUTELY)
    queue = known(*(job(f"old-{at}", "db-1", schedule="a", policy="Allow") for at in range(MAX_OPEN_JOBS - 1)))
    jobs, refused = framed(schedule, [NOON, NOON - MINUTE], queue)
    assert (len(jobs), refused) == (1, ["Concurrent"])


def test_a_due_time_that_a_frame_says_twice_is_one() -> None:
    jobs, refused = framed(placed("a", concurrencyPolicy="Allow", **MINUTELY), [NOON, NOON])
    assert (len(jobs), refused) == (1, ["Duplicate"])


def test_a_fire_within_its_deadline_becomes_a_job() -> None:
    assert isinstance(fired(schedule=placed("a", startingDeadlineSeconds=60), now=NOON + MINUTE), NewJob)


def test_only_a_due_time_that_is_new_is_run() -> None:
    it = in_sync(1, A, B)
    schedules = {"a": A, "b": B}
    jobs: Any = [fires.fired(ScheduleFire(key, NOON), it, schedules, NOON, f"job-{key}", key) for key in schedules]
    queue = queued(due=NOON)
    stored, sent = queue.record(*jobs)
    assert (stored.new, sent) == ({"job-b"}, ["job-b"])
    send = answered(jobs, stored.new, stored.sendable, stored.refused)
    assert send is not None
    refused, command = send.messages
    assert isinstance(refused, ScheduleRefused)
    assert refused == ScheduleRefused("a", NOON, "Duplicate", refused.message)
    assert (command, send.answers) == (jobs[1].command, ["a", "b"])


def test_a_frame_is_stored_and_answered_as_a_whole() -> None:
    it = in_sync(1, A)
    log, end = JobLog("job", ["x"]), JobFinished("job", "succeeded", NOON)
    frame: list[FromAgent] = [ScheduleFire("a", NOON), ScheduleFire("gone", NOON), JobAccepted("job"), log, end]
    came, *stored = it.received([(message, str(at)) for at, message in enumerate(frame)], NOON)
    assert isinstance(came, Fired)
    jobs, refused = decide(came.fires, it, {"a": A}, NOON, ["id-0", "id-1"])
    assert refused is not None
    assert (reasons(refused), refused.answers) == (["NotFound"], ["1"])
    assert [(job.command.job_id, job.answers) for job in jobs] == [("id-0", "0")]
    assert [type(came), *stored] == [Fired, Accepted(["job"]), Reported([log]), Ended([end])]


def test_an_end_is_confirmed_once_it_is_stored() -> None:
    it, end = in_sync(1, A), JobFinished("job", "succeeded", NOON)
    assert it.received([(end, "")], NOON) == [Ended([end])]
    assert it.finished([end]) == [Send([JobConfirmed("job")])]


# What is open already.


def queued(host: str = "db-1", schedule_id: str = "a", due: datetime | None = NOON - MINUTE) -> Jobs:
    """A queue with a job that runs."""
    queue = known(job("old", host, schedule=schedule_id, due=due))
    assert queue.accepts("old") == ["old"]
    return queue


def recorded(queue: Jobs, schedule: PlacedSchedule = A) -> tuple[list[ScheduleRefused], list[str]]:
    """What follows when job "job" of a schedule is recorded: refusals, and what its host is sent."""
    new = fired(schedule=schedule)
    assert isinstance(new, NewJob)
    answer, sent = queue.record(new)
    send = answered([new], answer.new, answer.sendable, answer.refused)
    messages = [] if send is None else send.messages
    return [it for it in messages if isinstance(it, ScheduleRefused)], sent


def test_a_fire_is_refused_while_the_last_run_is_not_over() -> None:
    queue = queued()
    [refused], sent = recorded(queue)
    assert (refused.reason, "job old" in refused.message, sent) == ("Concurrent", True, [])
    assert list(queue.open()) == ["old"]


@pytest.mark.parametrize("old", [{"host": "db-2"}, {"schedule_id": "b"}], ids=["another host", "another schedule"])
def test_a_fire_is_not_refused_for_the_job_of(old: dict[str, Any]) -> None:
    assert recorded(queued(**old)) == ([], ["job"])


def test_a_repeat_of_a_due_time_whose_job_is_open_is_known_to_have_its_job() -> None:
    queue = queued(due=NOON)
    [refused], sent = recorded(queue)
    assert (refused.reason, sent, list(queue.open())) == ("Duplicate", [], ["old"])


def test_a_fire_is_not_refused_for_a_job_that_was_not_stored() -> None:
    queue = known()
    queue.conn.commit()
    queue.add(job("old", "db-1", schedule="a", due=NOON - MINUTE))
    queue.conn.rollback()
    assert recorded(queue) == ([], ["job"])


def test_with_allow_a_run_does_not_wait_for_another_and_with_replace_it_ends_it() -> None:
    queue = queued()
    assert recorded(queue, placed("a", concurrencyPolicy="Allow")) == ([], ["job"])
    assert (queue.row("job")["serial"], queue.asked) == (False, [])
    queue = queued()
    [waits], sent = recorded(queue, placed("a", concurrencyPolicy="Replace"))
    assert (waits.reason, sent, queue.row("job")["serial"], queue.asked) == ("Queued", [], True, ["old"])
    assert queue.row("old")["cancel_reason"] == "replaced by job job"
    assert queue.ends("old") == ["job"]


def test_with_replace_a_run_that_has_not_begun_ends_at_once() -> None:
    queue = known()
    queue.limits["main"] = ConcurrencyLimit(1)
    queue.add(job("other", "db-2", repository="main"), job("old", "db-1", schedule="a", repository="main"))
    [waits], sent = recorded(queue, placed("a", concurrencyPolicy="Replace"))
    assert (waits.reason, sent, queue.asked, queue.ended["old"].status) == ("Queued", [], [], "cancelled")
    assert queue.ends("other") == ["job"]


def test_a_job_knows_when_it_is_too_late_to_begin_with_it() -> None:
    job = fired(schedule=placed("a", startingDeadlineSeconds=60))
    assert isinstance(job, NewJob)
    assert job.start_by == NOON + MINUTE


def test_a_fire_whose_job_must_wait_is_told_so() -> None:
    job = fired()
    assert isinstance(job, NewJob)
    send = answered([job], {"job"}, set(), {})
    assert send is not None
    (refused,) = send.messages
    assert isinstance(refused, ScheduleRefused)
    assert (refused.reason, refused.scheduled_at) == ("Queued", NOON)


def test_a_run_that_somebody_asked_for_is_answered_only_by_its_command() -> None:
    job = new_job(A, "db-1", "job", None, NOON, ("user", "me"))
    assert answered([job], {"job"}, {"job"}, {}) == Send([job.command], [""])
    assert answered([job], {"job"}, set(), {}) is None


class Nowhere:
    """No host is reached."""

    def session(self, host: str) -> None:
        return None

    def is_connected_here(self, host: str) -> bool:
        return False

    def deliver(self, host: str, effects: Any) -> None:
        pass


def reports(queue: Jobs) -> Reports:
    """Reports of db-1 and db-2, which are connected, to this queue."""

    def submit(function: Any, item: Any, host: str = "") -> Any:
        """It is stored at once."""
        future: Future[Any] = Future()
        (result,) = function(queue.conn, [item])
        future.set_result(result)
        return future

    events, placement, active, clock = Events(), Placement(), ActiveAttempts(), lambda: NOON
    for row in queue.open().values():
        active.add(Attempt(row.id, row.id, row.host, CommandRun(row.id, "backup", [], "main")))
    repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), placement, events)
    later: Any = lambda *_: None  # noqa: E731 - what is to be called later never is
    stores = cast(Submit, submit)
    dispatcher = Dispatcher(stores, queue.queue, active, Nowhere(), repositories, events, clock, later)
    return Reports(stores, queue.queue, active, placement, repositories, dispatcher, events, clock)


def heard(it: Reports, said: JobAccepted | JobFinished | JobLog) -> None:
    """db-1 says something of a job."""
    match said:
        case JobAccepted(job_id):
            it.accept("db-1", [job_id])
        case JobFinished():
            it.finish("db-1", [said])
        case JobLog(job_id, lines):
            it.log("db-1", job_id, lines)


@pytest.mark.parametrize("said", [JobAccepted("old"), JobFinished("old", "succeeded", NOON), JobLog("old", ["x"])])
def test_what_a_host_says_of_another_hosts_job_is_not_heard(said: JobAccepted | JobFinished | JobLog) -> None:
    def stored(host: str) -> bool:
        queue = known(job("old", host))
        before = queue.row("old")
        heard(reports(queue), said)
        return queue.row("old") != before or list_log(queue.conn, "old", 0, 1) != []

    assert (stored("db-2"), stored("db-1")) == (False, True)


@pytest.mark.parametrize("said", [JobAccepted("old"), JobFinished("old", "succeeded", NOON), JobLog("old", ["x"])])
def test_what_a_host_says_of_other_hosts_jobs_is_logged_once_for_each_connection_and_counted(
    caplog: pytest.LogCaptureFixture, said: JobAccepted | JobFinished | JobLog
) -> None:
    it = reports(queued(host="db-2"))
    for _ in range(300):
        heard(it, said)
    assert len(caplog.records) == 1
    it.on_event(HostDisconnected("db-1", NOON))
    assert [getattr(record, "messages", None) for record in caplog.records] == [None, 300]


def test_of_what_a_host_leaves_out_some_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    it, many = in_sync(1, A), [LeftOut(f"s{at}", "unknown zone") for at in range(100)]
    it.acked(ScheduleAck(1, held(A).digest, many, 100))
    assert [vars(record)["left_out"] for record in caplog.records if record.levelname == "WARNING"] == [100] * 3


# Open jobs at a hello.


def resumed(running: list[str], *open_jobs: OpenRow) -> list[Effect]:
    return resumes(in_sync(1, A).capabilities, running, open_jobs, NOON)


def a_job(state: str, attempt: int = 1, cancelled: str = "") -> OpenRow:
    """An open job of db-1: it waits, was sent, or runs. `cancelled`: why it is to end."""
    queue = known()
    if state == "waiting":
        queue.disconnected("db-1")
    queue.add(job("job", "db-1"))
    if state == "running":
        queue.accepts("job")
    if cancelled:
        queue.cancel("job", why=cancelled)
    return queue.open()["job"]._replace(attempt=attempt)


def test_a_job_that_was_taken_and_forgotten_was_interrupted() -> None:
    (finish,) = resumed([], a_job("running"))
    assert isinstance(finish, Ended)
    (end,) = finish.ends
    assert (end.job_id, end.status) == ("job", "interrupted")


def test_an_agent_that_can_be_asked_says_itself_what_became_of_a_job() -> None:
    it = host(1, A)
    it.hello(1, Hello("db-1", "2", 1, held(A).digest, ["backup", "ask"]))
    assert resumes(it.capabilities, [], [a_job("running")], NOON) == [Send([JobAsk("job")])]


def test_a_job_that_was_not_taken_is_left_to_the_queue() -> None:
    assert resumed([], a_job("sent")) == resumed([], a_job("waiting")) == []


def test_a_job_that_the_host_has_is_known_to_be_taken() -> None:
    assert resumed(["job"], a_job("sent")) == [Accepted(["job"])]
    assert resumed(["job"], a_job("running")) == []


def test_a_job_that_is_over_is_cancelled() -> None:
    assert resumed(["over"]) == [Send([CommandCancel("over")])]


def test_an_attempt_that_is_over_is_cancelled_and_the_present_one_known() -> None:
    assert resumed(["job", "job.2"], a_job("running", attempt=2)) == [Send([CommandCancel("job")])]


def test_a_job_that_is_to_end_is_cancelled_again() -> None:
    assert resumed(["job"], a_job("running", cancelled="why")) == [Send([CommandCancel("job", "why")])]


@pytest.mark.parametrize("state", ["sent", "running"])
def test_a_job_that_is_to_end_and_does_not_run_has_ended(state: str) -> None:
    _, finish = resumed([], a_job(state, cancelled="why"))
    assert isinstance(finish, Ended)
    assert [(end.job_id, end.status, end.error) for end in finish.ends] == [("job", "cancelled", "why")]
