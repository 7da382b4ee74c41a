"""A host's session pushes, records and answers what it should, event by event."""

from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

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
from server.fleet.placement import HostState, PlacedSchedule, Placement, encoded_entry
from server.fleet.pushes import Push
from server.fleet.timing import EARLIER_TIMINGS, EARLY, superseded
from server.jobs import fires
from server.jobs.dispatcher import Dispatcher
from server.jobs.fires import MAX_OPEN_JOBS, NewJob, answered, decide, new_job
from server.jobs.job import Job
from server.jobs.lanes import Lanes
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from server.jobs.resume import resumed as resumes
from server.observe.coverage import group_by_set
from server.resources.manifests import schedule_spec
from server.store.rows import Timing
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


def placed(schedule_id: str = "a", revision: str = "1", since: datetime | None = None, **more: Any) -> PlacedSchedule:
    spec = schedule_spec(
        {
            "kind": "backup",
            "cron": "0 * * * *",
            "timeZone": "UTC",
            "enabled": True,
            "hostSelector": {},
            "repositoryRef": {"name": "main"},
            "backup": {"paths": ["/etc"], "excludes": [], "tags": [], "oneFileSystem": False, "excludeCaches": False},
            "concurrencyPolicy": "Forbid",
            "missedRunPolicy": "RunOnce",
            "spreadSeconds": 0,
            "timeoutSeconds": 60,
            "retry": {"limit": 0, "backoffSeconds": 60},
            **more,
        }
    )
    name = f"default/{schedule_id}"
    entry = encoded_entry(schedule_id, name, spec, since or NOON, revision)
    return PlacedSchedule(
        schedule_id, name, spec, "main", init=True, entry=entry, since=since or NOON - timedelta(days=1)
    )


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
    queue: Lanes | None = None,
) -> NewJob | ScheduleRefused:
    fire, schedules = ScheduleFire("a", NOON, missed), {schedule.id: schedule}
    return fires.fired(fire, it or in_sync(1, A), schedules, queue or Lanes(), now, "job", "7")


def test_a_fire_becomes_a_job_whose_command_the_server_builds() -> None:
    args = ["backup", "--json", "--host=db-1", "--tag=lamplighter=default/a", "--", "/etc"]
    command = CommandRun("job", "backup", args, "main", 60, ["init"], "a", NOON)
    assert fired(missed=3) == NewJob("db-1", command, "schedule", "default/a", 3, NOON, "7")


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
    found = fires.fired(fire, it or in_sync(1, schedule), {schedule.id: schedule}, Lanes(), now, "job")
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


def framed(
    schedule: PlacedSchedule, dues: list[datetime], queue: Lanes | None = None
) -> tuple[list[NewJob], list[str | None]]:
    """What one frame of fires becomes: jobs, and reasons."""
    it = in_sync(1, schedule)
    (came,) = it.received([(ScheduleFire("a", due), "") for due in dues], NOON)
    assert isinstance(came, Fired)
    ids = [f"job-{at}" for at in range(len(came.fires))]
    jobs, refused = decide(came.fires, it, {"a": schedule}, queue or Lanes(), NOON, ids)
    return jobs, reasons(refused)


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
    queue = Lanes()
    commands = [CommandRun(f"old-{at}", "backup", [], schedule_id="a") for at in range(MAX_OPEN_JOBS - 1)]
    queue.add([Job(command, "db-1", NOON, serial=False) for command in commands])
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
    jobs: Any = [
        fires.fired(ScheduleFire(key, NOON), it, schedules, Lanes(), NOON, f"job-{key}", key) for key in schedules
    ]
    send = answered(jobs, {"job-b"}, {"job-a", "job-b"})
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
    jobs, refused = decide(came.fires, it, {"a": A}, Lanes(), NOON, ["id-0", "id-1"])
    assert refused is not None
    assert (reasons(refused), refused.answers) == (["NotFound"], ["1"])
    assert [(job.command.job_id, job.answers) for job in jobs] == [("id-0", "0")]
    assert [type(came), *stored] == [Fired, Accepted(["job"]), Reported([log]), Ended([end])]


def test_an_end_is_confirmed_once_it_is_stored() -> None:
    it, end = in_sync(1, A), JobFinished("job", "succeeded", NOON)
    assert it.received([(end, "")], NOON) == [Ended([end])]
    assert it.finished([end]) == [Send([JobConfirmed("job")])]


# What is open already.


def queued(host: str = "db-1", due: datetime = NOON - MINUTE, schedule_id: str = "a", **more: Any) -> Lanes:
    """A queue with a job that runs."""
    queue = Lanes()
    command = CommandRun("old", "backup", [], schedule_id=schedule_id, scheduled_at=due)
    queue.add([Job(command, host, NOON, state="running", **more)])
    return queue


def test_a_fire_is_refused_while_the_last_run_is_not_over() -> None:
    refused = fired(queue=queued())
    assert isinstance(refused, ScheduleRefused)
    assert (refused.reason, "job old" in refused.message) == ("Concurrent", True)


@pytest.mark.parametrize(
    "queue",
    [
        pytest.param(queued(host="db-2"), id="another host's"),
        pytest.param(queued(schedule_id="b"), id="another schedule's"),
        pytest.param(queued(due=NOON), id="a repeat of the same due time, which the store tells"),
        pytest.param(queued(recorded=False), id="one that may yet not be stored"),
    ],
)
def test_a_fire_is_not_refused_for(queue: Lanes) -> None:
    assert isinstance(fired(queue=queue), NewJob)


def test_with_allow_a_run_does_not_wait_for_another_and_with_replace_it_ends_it() -> None:
    allowed = fired(schedule=placed("a", concurrencyPolicy="Allow"), queue=queued())
    assert isinstance(allowed, NewJob)
    assert (allowed.serial, allowed.replaces) == (False, ())
    replacing = fired(schedule=placed("a", concurrencyPolicy="Replace"), queue=queued())
    assert isinstance(replacing, NewJob)
    assert (replacing.serial, replacing.replaces) == (True, ("old",))


def test_a_job_knows_when_it_is_too_late_to_begin_with_it() -> None:
    job = fired(schedule=placed("a", startingDeadlineSeconds=60))
    assert isinstance(job, NewJob)
    assert job.start_by == NOON + MINUTE


def test_a_fire_whose_job_must_wait_is_told_so() -> None:
    job = fired()
    assert isinstance(job, NewJob)
    send = answered([job], {"job"}, set())
    assert send is not None
    (refused,) = send.messages
    assert isinstance(refused, ScheduleRefused)
    assert (refused.reason, refused.scheduled_at) == ("Queued", NOON)


def test_a_run_that_somebody_asked_for_is_answered_only_by_its_command() -> None:
    job = new_job(A, "db-1", "job", None, NOON, (), ("user", "me"))
    assert answered([job], {"job"}, {"job"}) == Send([job.command], [""])
    assert answered([job], {"job"}, set()) is None


class Nowhere:
    """No host is reached."""

    def session(self, host: str) -> None:
        return None

    def deliver(self, host: str, effects: Any) -> None:
        pass


def reports(lanes: Lanes) -> Any:
    events = Events()
    repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), Placement(), lanes, events)
    later: Any = lambda *_: Future()  # noqa: E731 - what is stored, or to be called later, never is
    placement, clock = Placement(), lambda: NOON
    dispatcher = Dispatcher(later, lanes, placement, Nowhere(), repositories, events, clock, later)
    return Reports(later, lanes, placement, repositories, dispatcher, events, clock)


def heard(it: Any, said: JobAccepted | JobFinished | JobLog) -> Any:
    """What is stored of what db-1 says."""
    match said:
        case JobAccepted(job_id):
            return it.accept("db-1", [job_id])
        case JobFinished():
            return it.finish("db-1", [said])
        case JobLog(job_id, lines):
            return it.log("db-1", job_id, lines)


@pytest.mark.parametrize("said", [JobAccepted("old"), JobFinished("old", "succeeded", NOON), JobLog("old", ["x"])])
def test_what_a_host_says_of_another_hosts_job_is_not_heard(said: JobAccepted | JobFinished | JobLog) -> None:
    assert heard(reports(queued(host="db-2")), said) == []
    assert heard(reports(queued()), said) != []


def test_what_a_host_says_of_other_hosts_jobs_is_logged_once_for_each_connection_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = reports(queued(host="db-2"))
    for _ in range(300):
        heard(it, JobLog("old", ["x"]))
    assert len(caplog.records) == 1
    it.on_event(HostDisconnected("db-1", NOON))
    assert [getattr(record, "messages", None) for record in caplog.records] == [None, 300]


def test_of_what_a_host_leaves_out_some_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    it, many = in_sync(1, A), [LeftOut(f"s{at}", "unknown zone") for at in range(100)]
    it.acked(ScheduleAck(1, held(A).digest, many, 100))
    assert [vars(record)["left_out"] for record in caplog.records if record.levelname == "WARNING"] == [100] * 3


# Open jobs at a hello.

COMMAND = CommandRun("job", "backup", [])


def resumed(running: list[str], *open_jobs: Job) -> list[Effect]:
    return resumes(in_sync(1, A).capabilities, running, open_jobs, NOON)


def a_job(state: Any, **more: Any) -> Job:
    return Job(COMMAND, "db-1", NOON, state=state, **more)


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
