"""Promises 1 to 5: the agent's core fires, runs, remembers and reports what it should, event by event."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from msgspec import Raw

from agent.core.clock import TRUST
from agent.core.effects import Apply, Effect, Persist, Send, StartJob, StopJob
from agent.core.machine import MAX_ENDS, Core
from agent.core.pushes import Built, build
from agent.core.state import (
    Accepted,
    AgentState,
    Answered,
    Confirmed,
    CursorsMoved,
    Ended,
    Fired,
    Record,
    SetApplied,
    replay,
)
from agent.core.timetable import NEVER
from wire import entries
from wire.codec import encode, from_agent
from wire.messages import (
    CommandCancel,
    CommandRun,
    Entry,
    FromAgent,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
    JobEnd,
    JobFinished,
    JobLog,
    ScheduleAck,
    ScheduleDiff,
    ScheduleFire,
    ScheduleRefused,
    ScheduleResync,
    ScheduleSet,
)

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def raw(schedule_id: str = "a", cron: str = "0 * * * *", since: datetime = NOON, **more: Any) -> Raw:
    return Raw(entries.encode_entry(Entry(schedule_id, f"default/{schedule_id}", cron, since, "1", **more)))


def whole(version: int, *schedules: Raw) -> ScheduleSet:
    return ScheduleSet(version, list(schedules))


def run(job_id: str = "job", schedule_id: str = "a", scheduled_at: datetime = NOON + HOUR) -> CommandRun:
    return CommandRun(job_id, "backup", ["backup"], "repo", None, None, schedule_id, scheduled_at)


def end(job_id: str = "job", status: JobEnd = "succeeded") -> JobFinished:
    return JobFinished(job_id, status, NOON)


class Process:
    """A core and its shell: effects are done at once, and kept to look at."""

    def __init__(
        self, memory: AgentState | None = None, *schedules: Raw, now: datetime = NOON, builds: bool = True
    ) -> None:
        self.disk: list[Record] = [] if memory is not None else [SetApplied(whole(1, *schedules))]
        self.core = Core("host", memory or replay(self.disk))
        self.sent: list[FromAgent] = []
        self.started: list[str] = []
        self.stopped: list[tuple[str, str]] = []
        self.applying: tuple[Any, ...] | None = None
        self.do(self.core.started(now))
        if builds:
            self.applied(now)

    def do(self, effects: list[Effect] | Sequence[Effect]) -> Self:
        for effect in effects:
            match effect:
                case Send(messages):
                    self.sent += messages
                case Persist(records, then):
                    self.disk += records
                    self.do(then)
                case Apply(push):
                    assert self.applying is None
                    self.applying = (push,)
                case StartJob(command):
                    self.started.append(command.job_id)
                case StopJob(job_id, status, _):
                    self.stopped.append((job_id, status))
        return self

    def applied(self, now: datetime = NOON) -> Self:
        (push,), self.applying = self.applying or (None,), None
        return self.do(self.core.applied(build(self.core.state, push, "host", now), now))

    def connect(self, now: datetime = NOON) -> Self:
        self.sent.clear()
        return self.do(self.core.connection_made(now))

    def lose(self) -> Self:
        return self.do(self.core.connection_lost())

    def tick(self, now: datetime) -> Self:
        return self.do(self.core.tick(now))

    def hear(
        self,
        message: ScheduleSet | ScheduleDiff | CommandRun | ScheduleRefused | JobConfirmed | CommandCancel | JobAsk,
        now: datetime = NOON,
    ) -> "Process":
        return self.do(self.core.message_received(message, now))

    def hear_frame(self, *messages: ScheduleRefused, now: datetime = NOON) -> "Process":
        return self.do(self.core.frame_received(messages, now))

    def said(
        self,
        kind: type[ScheduleFire]
        | type[ScheduleAck]
        | type[Hello]
        | type[ScheduleResync]
        | type[JobAccepted]
        | type[JobFinished]
        | type[JobLog],
    ) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def restart(self, now: datetime) -> "Process":
        return Process(replay(self.disk), now=now)


# Pushes.


def test_a_push_stops_the_cron_and_starts_the_new_one_once_it_is_built() -> None:
    agent = Process(None, raw())
    agent.hear(whole(2, raw("b", "30 * * * *")))
    assert agent.core.wake_at == NEVER
    assert agent.applied().core.wake_at == NOON + 30 * MINUTE


def test_nothing_due_while_a_push_is_applied_is_dropped() -> None:
    agent = Process(None, raw()).connect()
    agent.hear(whole(2, raw(), raw("b"))).tick(NOON + HOUR)
    assert not agent.said(ScheduleFire)
    agent.applied(NOON + HOUR)
    assert [fire.schedule_id for fire in agent.said(ScheduleFire)] == ["a", "b"]


def test_a_set_is_acked_only_once_it_is_on_disk() -> None:
    agent = Process(AgentState()).connect()
    agent.core.message_received(push := whole(1, raw()), NOON)
    (persist,) = agent.core.applied(build(agent.core.state, push, "host", NOON), NOON)
    assert isinstance(persist, Persist)
    assert persist.records == (SetApplied(push),)
    assert persist.then == (Send((ScheduleAck(1, entries.whole([raw()]).digest),)),)


def test_the_ack_and_each_hello_tell_which_entries_are_not_in_force() -> None:
    bad = raw("b", time_zone="Nowhere/At_All")
    agent = Process(AgentState()).connect().hear(whole(1, raw(), bad)).applied()
    [ack] = agent.said(ScheduleAck)
    assert ([it.schedule_id for it in ack.left_out], ack.left_out_count) == (["b"], 1)
    assert "Nowhere/At_All" in ack.left_out[0].reason
    [hello] = agent.restart(NOON).connect().said(Hello)
    assert (hello.left_out, hello.left_out_count) == (ack.left_out, 1)


@pytest.mark.parametrize(
    ("allowed", "told"),
    [
        (None, None),
        ((), []),
        (("/b", "/a"), ["/a", "/b"]),
        ([f"/{i}" for i in range(65)], None),
        (["/" + "a" * 1024], None),
    ],
)
def test_a_hello_tells_the_allowed_hooks_unless_they_are_too_many(
    allowed: tuple[str, ...] | list[str] | None, told: list[str] | None
) -> None:
    core = Core("host", replay([]), allowed_hooks=allowed)
    [send] = core.connection_made(NOON)
    assert isinstance(send, Send)
    [hello] = send.messages
    assert isinstance(hello, Hello)
    assert hello.allowed_hooks == told
    assert from_agent.read(encode((hello,)))


def test_a_hello_tells_restics_version_and_another_version_needs_another_hello() -> None:
    core = Core("host", replay([]))
    assert not core.restic_found("0.14.0")  # the first hello is still to come
    [send] = core.connection_made(NOON)
    assert isinstance(send, Send)
    [hello] = send.messages
    assert isinstance(hello, Hello)
    assert hello.restic_version == "0.14.0"
    assert [core.restic_found(it) for it in ("0.14.0", "0.18.0", "0.18.0", "")] == [False, True, False, True]


def test_what_is_left_out_is_acked_where_the_hello_went_out_before_it_was_known() -> None:
    agent = Process(None, raw(), builds=False).connect()
    [hello] = agent.said(Hello)
    assert hello.left_out is None
    agent.applied()
    assert agent.said(ScheduleAck) == [ScheduleAck(1, agent.core.state.digest)]


def test_entries_that_are_not_in_force_are_told_within_bounds() -> None:
    many = [raw(f"{at:03}", cron="* * * * x" + "y" * 400) for at in range(150)]
    agent = Process(AgentState()).connect().hear(whole(1, *many)).applied()
    [ack] = agent.said(ScheduleAck)
    assert (len(ack.left_out), ack.left_out_count) == (100, 150)
    assert len(from_agent.read(encode([ack]))) == 1


def test_an_empty_set_removes_what_was_there() -> None:
    agent = Process(None, raw()).connect().hear(whole(2)).applied()
    assert agent.core.wake_at == NEVER
    assert agent.said(ScheduleAck) == [ScheduleAck(2, entries.EMPTY.digest)]


def test_a_diff_on_another_base_asks_for_the_whole_set_and_holds_up_no_other_push() -> None:
    agent = Process(None, raw()).connect()
    agent.hear(whole(2)).hear(ScheduleDiff(7, 8, [raw("b")])).hear(whole(3, raw("c"))).applied().applied()
    assert agent.said(ScheduleResync) == [ScheduleResync(2)]
    assert (agent.core.state.version, set(agent.core.state.entries.items)) == (3, {"c"})


def test_pushes_of_a_lost_connection_are_left_to_the_next_hello() -> None:
    agent = Process(None, raw()).connect()
    agent.hear(whole(2)).hear(whole(3, raw("b"))).lose().applied()
    assert (agent.core.state.version, agent.applying) == (2, None)


def test_a_bad_entry_is_left_out_and_hurts_no_other() -> None:
    agent = Process(AgentState()).hear(whole(1, raw("bad", "61 * * * *"), raw("worse", time_zone="No/Where"), raw()))
    agent.applied().connect().tick(NOON + HOUR)
    assert [fire.schedule_id for fire in agent.said(ScheduleFire)] == ["a"]


def test_a_push_that_cannot_be_read_leaves_what_was_in_force() -> None:
    agent = Process(None, raw()).hear(whole(2, Raw(b"{}"))).applied()
    assert (agent.core.state.version, agent.core.wake_at) == (1, NOON + HOUR)


def test_a_disabled_schedule_does_not_fire() -> None:
    assert Process(None, raw(enabled=False)).core.wake_at == NEVER


def test_what_was_due_before_a_push_came_runs_by_the_set_of_that_time() -> None:
    agent = Process(None, raw()).connect()
    agent.hear(whole(2, raw(since=NOON + HOUR + MINUTE)), NOON + HOUR + MINUTE)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR, 1)]


def test_a_changed_schedule_counts_from_its_last_due_time_unless_it_began_anew() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR)
    agent.hear(whole(2, raw(enabled=True, deadline_s=7)), NOON + HOUR).applied(NOON + HOUR)
    assert agent.core.wake_at == NOON + 2 * HOUR


@pytest.mark.parametrize("push", ["set", "diff"])
def test_what_was_due_by_a_new_timing_that_it_had_not_heard_of_runs_though_the_old_one_came_later(push: str) -> None:
    new = raw(cron="30 14 * * *", since=NOON + HOUR)  # and the old timing was due at 15:00
    agent = Process(None, raw(deadline_s=600)).tick(NOON + HOUR).tick(NOON + 2 * HOUR).tick(NOON + 3 * HOUR)
    later = NOON + 3 * HOUR + 30 * MINUTE
    agent.connect(later).hear(whole(2, new) if push == "set" else ScheduleDiff(1, 2, [new], []), later).applied(later)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + 2 * HOUR + 30 * MINUTE, 1)]
    assert agent.restart(later).connect(later).said(ScheduleFire) == agent.said(ScheduleFire)


def test_a_set_that_is_sent_again_has_nothing_run_again() -> None:
    agent = Process(None, raw(since=NOON - DAY)).connect().tick(NOON + HOUR).hear(run())
    agent = agent.hear(whole(2, raw(since=NOON - DAY)), NOON + HOUR).applied(NOON + HOUR).restart(NOON + HOUR)
    assert agent.connect(NOON + HOUR).said(ScheduleFire) == []


# Fires.


def test_a_due_time_is_fired_once_and_on_time() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR).tick(NOON + HOUR)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]


def test_it_never_fires_early() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR - timedelta(microseconds=1))
    assert not agent.said(ScheduleFire)


def test_a_tick_without_a_connection_is_remembered_until_it_is_answered() -> None:
    agent = Process(None, raw()).tick(NOON + HOUR)
    assert agent.sent == []
    assert agent.connect(NOON + HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]
    agent.hear(ScheduleRefused("a", NOON + HOUR, "Duplicate")).lose()
    assert agent.connect(NOON + HOUR).said(ScheduleFire) == []


def test_missed_due_times_run_once_the_latest_with_their_number() -> None:
    agent = Process(None, raw())
    for hours in (1, 2, 3):
        agent.tick(NOON + hours * HOUR)
    assert agent.connect(NOON + 3 * HOUR + MINUTE).said(ScheduleFire) == [ScheduleFire("a", NOON + 3 * HOUR, 3)]


def test_missed_due_times_run_once_after_a_restart_too() -> None:
    agent = Process(None, raw()).tick(NOON + HOUR).restart(NOON + 5 * HOUR + MINUTE)
    assert agent.connect(NOON + 5 * HOUR + MINUTE).said(ScheduleFire) == [ScheduleFire("a", NOON + 5 * HOUR, 5)]


def test_a_fire_lost_with_a_dying_connection_is_counted_by_the_next() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR).tick(NOON + 2 * HOUR).lose()
    assert agent.connect(NOON + 2 * HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + 2 * HOUR, 2)]


def test_an_answer_to_another_due_time_does_not_answer_this_one() -> None:
    agent = Process(None, raw()).tick(NOON + HOUR).hear(run(scheduled_at=NOON + 9 * HOUR))
    assert agent.connect(NOON + HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]


def test_a_missed_time_is_not_run_where_the_policy_is_skip() -> None:
    agent = Process(None, raw(missed_run_policy="Skip")).tick(NOON + HOUR)
    assert agent.connect(NOON + HOUR + MINUTE).said(ScheduleFire) == []
    assert agent.tick(NOON + 3 * HOUR + MINUTE).said(ScheduleFire) == []
    assert agent.tick(NOON + 4 * HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + 4 * HOUR)]


@pytest.mark.parametrize(("late", "fires"), [(600, 1), (601, 0)])
def test_a_missed_time_is_not_run_after_its_deadline(late: int, fires: int) -> None:
    agent = Process(None, raw(deadline_s=600)).tick(NOON + HOUR)
    assert len(agent.connect(NOON + HOUR + timedelta(seconds=late)).said(ScheduleFire)) == fires


def test_a_fire_that_is_too_late_is_not_thought_of_again() -> None:
    agent = Process(None, raw(deadline_s=600)).tick(NOON + HOUR).connect(NOON + HOUR + 20 * MINUTE)
    assert Answered("a", NOON + HOUR) in agent.disk


def test_a_fire_whose_schedule_was_lost_with_the_journal_is_left_to_the_server() -> None:
    fire = ScheduleFire("a", NOON)
    assert Process(replay([Fired([fire])])).connect().said(ScheduleFire) == [fire]


# Clocks.


def test_a_clock_set_forward_runs_what_it_skipped_once() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 26 * HOUR)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + 26 * HOUR, 26)]


def too_early(due: datetime, now: datetime) -> ScheduleRefused:
    return ScheduleRefused("a", due, "TooEarly", now=now)


@pytest.mark.parametrize("ahead", [10 * MINUTE, 2 * HOUR, 26 * HOUR, timedelta(days=4000)])
def test_a_clock_that_is_ahead_of_the_servers_fires_again_when_its_time_has_come(ahead: timedelta) -> None:
    agent = Process(None, raw()).connect()
    agent.tick(NOON + ahead + 55 * MINUTE)
    (fire,) = agent.said(ScheduleFire)
    agent.sent.clear()
    shown = NOON + ahead + 55 * MINUTE
    agent.hear_frame(too_early(fire.scheduled_at, NOON + 55 * MINUTE), now=shown)
    assert agent.core.wake_at == NOON + ahead + HOUR
    assert not agent.tick(shown + MINUTE).said(ScheduleFire)
    assert agent.tick(NOON + ahead + HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]


def test_what_a_fire_that_came_too_early_stood_for_and_has_come_is_fired_at_once() -> None:
    agent = Process(None, raw()).tick(NOON + HOUR).tick(NOON + 2 * HOUR).tick(NOON + 5 * HOUR).connect()
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + 5 * HOUR, 5)]
    agent.sent.clear()
    agent.hear_frame(too_early(NOON + 5 * HOUR, NOON + 2 * HOUR + MINUTE), now=NOON + 5 * HOUR)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + 2 * HOUR, 2)]
    assert replay(agent.disk).fires == {"a": ScheduleFire("a", NOON + 2 * HOUR, 2)}


@pytest.mark.parametrize("come", [NOON + MINUTE, NOON + 2 * HOUR + MINUTE], ids=["none has come", "two have come"])
def test_a_power_failure_between_the_records_of_a_fire_that_came_too_early_drops_no_due_time(come: datetime) -> None:
    agent = Process(None, raw()).tick(NOON + HOUR).tick(NOON + 2 * HOUR).tick(NOON + 5 * HOUR).connect()
    before = len(agent.disk)
    agent.hear_frame(too_early(NOON + 5 * HOUR, come), now=NOON + 5 * HOUR)
    for kept in range(before, len(agent.disk) + 1):
        after = Process(replay(agent.disk[:kept]), now=NOON + 5 * HOUR).connect(NOON + 5 * HOUR).tick(NOON + 5 * HOUR)
        assert NOON + 5 * HOUR in {fire.scheduled_at for fire in after.said(ScheduleFire)}


def test_a_clock_that_was_ahead_and_is_set_right_is_gone_by_again() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 3 * HOUR)
    agent.hear_frame(too_early(NOON + 3 * HOUR, NOON + MINUTE), now=NOON + 3 * HOUR)
    agent.sent.clear()
    agent.tick(NOON + MINUTE)
    assert agent.core.wake_at == NOON + HOUR
    assert agent.tick(NOON + HOUR).said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]


def test_a_servers_clock_that_was_behind_and_is_set_right_does_not_keep_runs_back() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 7 * HOUR)
    agent.hear_frame(too_early(NOON + 7 * HOUR, NOON + MINUTE), now=NOON + 7 * HOUR)
    agent.sent.clear()
    assert agent.core.wake_at <= NOON + 7 * HOUR + TRUST  # the server's clock is right meanwhile, and nothing says so
    agent.tick(NOON + 7 * HOUR + TRUST)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + 7 * HOUR + TRUST, 8)]
    agent.sent.clear()
    agent.hear_frame(too_early(NOON + 8 * HOUR, NOON + HOUR + MINUTE), now=NOON + 8 * HOUR)  # or it is as it was
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR, 1)]


def test_a_fire_that_came_too_early_is_not_lost_while_a_push_is_applied() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 5 * HOUR)
    agent.hear(whole(2, raw(), raw("b")), now=NOON + 5 * HOUR)
    agent.hear_frame(too_early(NOON + 5 * HOUR, NOON + MINUTE), now=NOON + 5 * HOUR)
    assert replay(agent.disk).fires
    agent.applied(NOON + 5 * HOUR)
    agent.sent.clear()
    assert agent.core.wake_at == NOON + 5 * HOUR - MINUTE + HOUR
    agent.tick(NOON + 6 * HOUR - MINUTE)
    assert ScheduleFire("a", NOON + HOUR) in agent.said(ScheduleFire)


def test_a_clock_set_back_a_little_repeats_nothing() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 2 * HOUR)
    agent.sent.clear()
    assert not agent.tick(NOON + MINUTE).tick(NOON + HOUR).said(ScheduleFire)
    assert agent.tick(NOON + 3 * HOUR).said(ScheduleFire)


def test_a_clock_set_back_far_was_wrong_before_and_the_new_time_counts_at_once() -> None:
    agent = Process(None, raw()).connect().tick(NOON + 26 * HOUR).tick(NOON + MINUTE)
    agent.sent.clear()
    assert agent.tick(NOON + HOUR).said(ScheduleFire)[0].scheduled_at == NOON + HOUR


def test_what_a_wrong_clock_skipped_counts_anew_for_good_once_the_agent_starts_with_the_right_one() -> None:
    agent = Process(None, raw(cron="0 16 * * *", missed_run_policy="Skip")).tick(NOON + 5 * HOUR).restart(NOON)
    agent.hear(whole(2, raw(cron="0 16 * * *")), NOON + 2 * HOUR).applied(NOON + 2 * HOUR)
    assert agent.connect(NOON + 2 * HOUR).tick(NOON + 4 * HOUR).said(ScheduleFire) == [
        ScheduleFire("a", NOON + 4 * HOUR)
    ]


def test_what_a_wrong_clock_skipped_runs_when_the_right_clock_comes_to_it() -> None:
    agent = Process(None, raw(cron="0 13 * * *", missed_run_policy="Skip")).connect().tick(NOON + 10 * HOUR)
    assert agent.disk[-1] == CursorsMoved([("a", NOON + HOUR)])
    agent = agent.tick(NOON + MINUTE).restart(NOON + 2 * MINUTE).connect().tick(NOON + HOUR)
    assert agent.said(ScheduleFire) == [ScheduleFire("a", NOON + HOUR)]


# Jobs.


def test_a_command_is_accepted_and_run_only_once_it_is_on_disk() -> None:
    (persist,) = Process(None, raw()).core.message_received(run(), NOON)
    assert isinstance(persist, Persist)
    assert persist.records == (Accepted("job", "a", NOON + HOUR),)
    assert persist.then == (Send((JobAccepted("job"),)), StartJob(run(), None))


def test_a_command_that_comes_twice_is_accepted_twice_and_only_once_it_is_on_disk() -> None:
    core = Process(None, raw()).core
    core.message_received(run(), NOON)
    (persist,) = core.message_received(run(), NOON)
    assert isinstance(persist, Persist)
    assert (persist.records, persist.then) == ((), (Send((JobAccepted("job"),)),))


def test_commands_of_one_frame_share_a_write_and_are_accepted_in_one_frame() -> None:
    commands = [run(f"j{number}", f"s{number}") for number in range(3)]
    (write,) = Process(None, raw()).core.frame_received(commands, NOON)
    assert isinstance(write, Persist)
    assert [record.job_id for record in write.records if isinstance(record, Accepted)] == ["j0", "j1", "j2"]
    accepts = Send([JobAccepted(f"j{number}") for number in range(3)])
    assert write.then == [accepts, *(StartJob(command, None) for command in commands)]


def test_a_command_answers_its_fire() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR).hear(run()).lose()
    assert agent.connect(NOON + HOUR).said(ScheduleFire) == []


def ended(*job_ids: str, reopened: bool = True) -> Process:
    """An agent whose jobs of these ids are over and confirmed, before or after its journal was written anew."""
    agent = Process(None, raw()).connect()
    for hours, job_id in enumerate(job_ids, start=1):
        agent.hear(run(job_id, scheduled_at=NOON + hours * HOUR))
        agent.do(agent.core.job_ended(end(job_id))).hear(JobConfirmed(job_id))
    if not reopened:
        return agent
    compacted = Process(replay(list(replay(agent.disk).records())))
    return compacted.connect()


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("asks", [run("job"), CommandCancel("job"), JobAsk("job")], ids=lambda it: type(it).__name__)
def test_whatever_the_server_forgot_it_is_told_again_how_a_job_ended(
    asks: CommandRun | CommandCancel | JobAsk, reopened: bool
) -> None:
    agent = ended("job", "other", reopened=reopened)
    agent.sent.clear()
    agent.hear(asks)
    assert agent.said(JobFinished) == [end()]
    assert agent.started == ([] if reopened else ["job", "other"])


@pytest.mark.parametrize("asks", [run("job"), CommandCancel("job"), JobAsk("job")], ids=lambda it: type(it).__name__)
def test_of_a_job_whose_end_is_remembered_no_more_it_is_told_that_it_is_over(
    asks: CommandRun | CommandCancel | JobAsk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.core.state.REMEMBERED_ENDS", 1)
    agent = ended("job", "other")
    agent.hear(asks)
    [told] = agent.said(JobFinished)
    assert (told.job_id, told.status, told.reason) == ("job", "interrupted", "OutcomeUnknown")


def test_a_job_that_runs_is_said_to_run_when_it_is_asked_for() -> None:
    agent = Process(None, raw()).connect().hear(run())
    assert agent.hear(JobAsk("job")).said(JobAccepted) == [JobAccepted("job")] * 2


def test_a_job_that_the_agent_never_had_is_said_to_be_interrupted_and_that_is_on_disk() -> None:
    agent = Process(None, raw()).connect().hear(JobAsk("job"))
    [told] = agent.said(JobFinished)
    assert (told.status, Ended(told) in agent.disk) == ("interrupted", True)


def test_what_is_remembered_of_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.core.state.REMEMBERED_ENDS", 3)
    monkeypatch.setattr("agent.core.state.REMEMBERED_JOBS", 5)
    memory = ended(*map(str, range(9))).core.state
    assert (list(memory.confirmed), list(memory.done)) == (list("678"), list("45678"))
    assert list(memory.ran.values()) == list("45678")


@pytest.mark.parametrize("removal", [whole(2), ScheduleDiff(1, 2, [], ["a"])], ids=["set", "diff"])
def test_a_schedule_that_an_older_database_brings_back_does_not_run_again_what_it_ran(
    removal: ScheduleSet | ScheduleDiff,
) -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR)
    agent.hear(run()).do(agent.core.job_ended(end())).hear(removal).applied(NOON + HOUR)
    agent = Process(replay(list(replay(agent.disk).records())), now=NOON + HOUR).connect()
    agent.hear(whole(1, raw()), NOON + HOUR + MINUTE).applied(NOON + HOUR + MINUTE)
    assert agent.said(ScheduleFire) == []
    assert agent.core.wake_at == NOON + 2 * HOUR


@pytest.mark.parametrize("reopened", [False, True])
def test_a_due_time_that_an_older_database_knows_as_another_job_is_told_of_and_does_not_run_again(
    reopened: bool,
) -> None:
    agent = ended("job", reopened=reopened)
    agent.sent.clear()
    agent.started.clear()
    agent.hear(run("other"))
    assert (agent.said(JobFinished), agent.started) == ([end("other")], [])
    agent.hear(run("other.2")).hear(run("next", scheduled_at=NOON + 2 * HOUR))
    assert agent.started == ["other.2", "next"]


@pytest.mark.parametrize("runs", [False, True], ids=["forgotten", "running"])
def test_a_due_time_that_ran_as_a_job_whose_end_is_not_known_is_said_to_be_interrupted(
    runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.core.state.REMEMBERED_ENDS", 0)
    agent = Process(None, raw()).connect().hear(run()) if runs else ended("job", reopened=False)
    agent.hear(run("other"))
    [told] = agent.said(JobFinished)[-1:]
    assert (told.job_id, told.status, told.reason) == ("other", "interrupted", "OutcomeUnknown")
    assert agent.started == ["job"]


def test_a_fire_of_a_due_time_that_ran_is_answered() -> None:
    agent = Process(None, raw()).connect().tick(NOON + HOUR)
    agent.core.state.ran["a", NOON + HOUR, ""] = "job"
    agent.hear(run("other"))
    assert agent.core.state.fires == {}


def test_a_command_that_is_repeated_runs_once() -> None:
    agent = Process(None, raw()).connect().hear(run()).hear(run())
    assert agent.said(JobAccepted) == [JobAccepted("job")] * 2
    agent.do(agent.core.job_ended(end())).hear(run()).hear(JobConfirmed("job")).hear(run())
    assert agent.said(JobFinished) == [end()] * 3
    assert agent.started == ["job"]


def test_an_end_is_told_on_every_connection_until_it_is_confirmed() -> None:
    agent = Process(None, raw()).connect().hear(run()).lose()
    agent.do(agent.core.job_ended(end()))
    agent = agent.restart(NOON)
    assert agent.connect().said(JobFinished) == [end()]
    assert agent.said(Hello)[0].running_jobs == ["job"]
    agent.hear(JobConfirmed("job")).lose()
    assert agent.disk[-1] == Confirmed(["job"])
    assert agent.connect().said(JobFinished) == []


def test_ends_go_in_frames_that_the_server_reads() -> None:
    agent = Process(replay(Ended(end(f"job-{number}")) for number in range(MAX_ENDS + 1)))
    effects = agent.core.connection_made(NOON)
    assert [len(effect.messages) if isinstance(effect, Send) else None for effect in effects] == [1, MAX_ENDS, 1]


def test_a_job_that_ran_when_the_agent_died_was_interrupted() -> None:
    agent = Process(None, raw()).hear(run()).restart(NOON + MINUTE)
    assert [(told.job_id, told.status) for told in agent.connect().said(JobFinished)] == [("job", "interrupted")]


def test_cancel_stops_a_job() -> None:
    assert Process(None, raw()).hear(run()).hear(CommandCancel("job")).stopped == [("job", "cancelled")]


def test_a_job_cancelled_before_it_came_never_begins() -> None:
    agent = Process(None, raw()).connect().hear(CommandCancel("job")).hear(run())
    assert [told.status for told in agent.said(JobFinished)] == ["cancelled", "cancelled"]
    assert agent.started == []


def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    agent = Process(None, raw()).hear(run())
    agent.do(agent.core.job_ended(end())).hear(CommandCancel("job"))
    assert agent.connect().said(JobFinished) == [end()]


def test_news_of_a_job_is_sent_while_there_is_a_connection() -> None:
    agent = Process(None, raw()).connect()
    agent.do(agent.core.job_reported(JobLog("job", ["x"]))).lose()
    agent.do(agent.core.job_reported(JobLog("job", ["y"])))
    assert agent.said(JobLog) == [JobLog("job", ["x"])]


def test_stop_interrupts_what_runs_and_begins_nothing_new() -> None:
    agent = Process(None, raw()).connect().hear(run())
    agent.do(agent.core.stop()).hear(run("other")).tick(NOON + HOUR)
    assert agent.stopped == [("job", "interrupted")]
    assert (agent.started, agent.said(ScheduleFire), agent.core.wake_at) == (["job"], [], NEVER)


def test_built_does_not_change_the_memory() -> None:
    memory = AgentState()
    assert isinstance(build(memory, whole(1, raw()), "host", NOON), Built)
    assert (memory.version, len(memory.entries), memory.cursors) == (0, 0, {})
