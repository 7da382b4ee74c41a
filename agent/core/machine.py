"""The agent as a state machine without I/O: an event and the time go in, effects come out.

A due time goes `tick` → `schedule.fire` → (the server records a job) → `command.run` → `StartJob` → `job.finished` →
`job.confirmed`. What must survive a kill is in `memory` and changes only by records, which the core asks to `Persist`;
effects that a record must precede on disk ride in that Persist's `then`. Whatever was in flight when a connection or
the process ended is sent again after the next hello; the server knows repeats by job id and by due time.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import NamedTuple

import msgspec
from msgspec import Struct

import cron
from agent.core import timetable
from agent.core.state import (
    Accepted,
    Answered,
    Confirmed,
    DiffApplied,
    Ended,
    Fired,
    Memory,
    Passed,
    Record,
    SetApplied,
)
from agent.core.timetable import CORRECTION, NEVER, Due, Timetable
from wire import entries
from wire.messages import (
    MAX_HOOK,
    MAX_HOOKS,
    CommandCancel,
    CommandRun,
    Entry,
    FromAgent,
    FromServer,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
    JobEnd,
    JobFinished,
    JobLog,
    JobProgress,
    LeftOut,
    RepoCredentials,
    Repository,
    ScheduleAck,
    ScheduleDiff,
    ScheduleFire,
    ScheduleRefused,
    ScheduleResync,
    ScheduleSet,
)

log = logging.getLogger(__name__)

TOLD = 20
"""Fires of one tick that are logged one by one; of more, their number is."""
CAPABILITIES = ("backup", "forget", "prune", "check", "unlock", "verify", "restore", "snapshots", "ls", "hooks", "ask")
"""The kinds of jobs that this agent runs, whether it runs hooks around them, and whether it answers job.ask."""
MAX_FIRES = 1000
"""Fires in one frame; a frame stays far below what the server reads."""
AHEAD = timedelta(minutes=1)
"""How far a clock may be ahead of the server's before due times are reckoned by the server's."""
TRUST = timedelta(hours=1)
"""How long the server's clock counts before a fire asks for it again."""
MAX_ENDS = 32
"""Ends in one frame: each may tell an error of 4096 characters, in JSON up to six bytes each."""

MAX_LEFT_OUT = 100
"""Entries that are not in force that are told one by one; beyond, their number is."""
MAX_REASON = 256
"""Characters of a reason why an entry is not in force."""

Push = ScheduleSet | ScheduleDiff


class Send(Struct, frozen=True):
    """Write one frame to the server; dropped when there is no connection."""

    messages: Sequence[FromAgent]


class Persist(Struct, frozen=True):
    """Append records to the journal; do `then` once they are on disk."""

    records: Sequence[Record]
    then: "Sequence[Effect]" = ()


class Apply(Struct, frozen=True):
    """Work out `built(push, …)` outside the read loop and hand the result back as `applied`."""

    push: Push | None


class StartJob(Struct, frozen=True):
    """Run a command; `job_ended` must follow, whatever happens."""

    command: CommandRun
    repository: Repository | None


class StopJob(Struct, frozen=True):
    """Have a job end soon, with this status, also when it has not begun."""

    job_id: str
    status: JobEnd


Effect = Send | Persist | Apply | StartJob | StopJob


class Built(Struct, frozen=True):
    """A push worked out: the set it gives, when its schedules are due, and from when those that it brings count."""

    push: Push | None
    held: entries.EntrySet
    table: Timetable
    begins: Mapping[str, datetime] = {}


class Early(NamedTuple):
    """A fire that came too early, what stands for those of its due times that have come, and the time by then."""

    fire: ScheduleFire
    come: ScheduleFire | None
    now: datetime


class Core:
    """One agent. Call one method for each event, do the effects in order, call `tick` again at `wake_at`.


    Times that come in are what the host's clock shows. Due times are reckoned by that clock, less how far it is ahead
    of the server's once the server has said so: what it fires too early it fires again when its time has come. After
    TRUST it goes by its own clock again, until it is told anew: it may have been the server's clock that was wrong.
    """

    def __init__(
        self,
        host: str,
        memory: Memory,
        version: str = "",
        instance: str = "",
        allowed_hooks: Sequence[str] | None = None,
    ) -> None:
        self.host = host
        self.instance = instance
        self.memory = memory
        self.agent_version = version
        self._allowed_hooks = _listed(allowed_hooks)
        self.connected = False
        self.stopping = False
        self._repositories: dict[str, Repository] = {}
        self._table: Timetable | None = None  # None while a push is being applied
        self._pushes: deque[Push] = deque()
        self._latest: datetime | None = None
        self._left_out: tuple[list[LeftOut], int] | None = None  # of the set in memory; None until it was worked out
        self._shown: datetime | None = None  # what the host's clock showed last
        self._ahead = timedelta()  # how far that is ahead of the server's
        self._ahead_until = datetime.min.replace(tzinfo=UTC)  # how long that is believed, by the host's clock
        self._early: dict[str, Early] = {}  # fires that came too early, until there is a timetable to put them in

    @property
    def wake_at(self) -> datetime:
        """When `tick` has work to do; NEVER while there is none."""
        next_at = self._table.next_at if self._table is not None and not self.stopping else NEVER
        return min(next_at + self._ahead, max(next_at, self._ahead_until)) if next_at < NEVER else NEVER

    @property
    def busy(self) -> bool:
        """Whether jobs are running."""
        return bool(self.memory.running)

    def _reckoned(self, shown: datetime) -> datetime:
        """The time by which due times are reckoned. A clock that is set back is so much less ahead."""
        if self._shown is not None and shown < self._shown:
            ahead = self._ahead - (self._shown - shown)
            self._ahead = ahead if ahead > AHEAD else timedelta()
            self._ahead_until = min(self._ahead_until, shown + TRUST)
        elif shown >= self._ahead_until:
            self._ahead = timedelta()  # the server's clock may have been the wrong one, and set right
        self._shown = shown
        return shown - self._ahead

    # The process and the connection.

    def started(self, shown: datetime) -> list[Effect]:
        """The process began: what ran when the last one ended was interrupted; the set it held is put in force."""
        now = self._reckoned(shown)
        error = "the agent stopped while the job ran"
        ends = [JobFinished(job_id, "interrupted", now, error=error) for job_id in self.memory.running]
        return [*self._persist(*map(Ended, ends)), *self._counted_anew(now, CORRECTION), Apply(None)]

    def connection_made(self, shown: datetime) -> list[Effect]:
        """A connection is open: say hello, then whatever the server has not answered yet."""
        now = self._reckoned(shown)
        self.connected = True
        memory = self.memory
        left_out, left_out_count = self._left_out or (None, 0)
        hello = Hello(
            self.host,
            self.agent_version,
            memory.version,
            memory.digest,
            list(CAPABILITIES),
            [*memory.running, *memory.ends],
            self.instance,
            shown,
            left_out,
            left_out_count,
            self._allowed_hooks,
        )
        effects: list[Effect] = [Send((hello,))]
        effects += _frames(list(memory.ends.values()), MAX_ENDS)
        return effects + self._send_fires(list(memory.fires.values()), now)

    def connection_lost(self) -> list[Effect]:
        """The connection is gone. The cron goes on; pushes that wait are left to the next hello."""
        self.connected = False
        self._pushes.clear()
        return []

    def stop(self) -> list[Effect]:
        """The process is to end: nothing new is begun, running jobs end as interrupted."""
        self.stopping = True
        return [StopJob(job_id, "interrupted") for job_id in self.memory.running]

    # Time.

    def tick(self, shown: datetime) -> list[Effect]:
        """The clock may have come to a due time, or may have been set."""
        now = self._reckoned(shown)
        if self._table is None or self.stopping:
            return []
        effects: list[Effect] = []
        if self._latest is not None and now < self._latest - CORRECTION:
            log.warning("clock was set back: due times are counted anew", extra={"was": self._latest, "now": now})
            effects = self._counted_anew(now, timedelta())
            self._table = timetable.build(self.memory.entries, self.memory.passed, self.host, now)
            self._latest = now
        self._latest = max(now, self._latest or now)
        if self._table.next_at > now:
            return effects
        due = self._table.take(now)
        fires, dropped = [], []
        for late in due:
            if reason := _too_late(late.entry, late.at, now):
                log.warning("run skipped", extra={"schedule": late.entry.name, "due": late.at, "reason": reason})
                dropped.append((late.entry.id, late.at))
            else:
                fires.append(self._fire(late))
        _log_fires(due, fires)
        records: list[Record] = [Fired(fires)] if fires else []
        if dropped:
            records.append(Passed(dropped))
        sends = _frames(fires, MAX_FIRES) if self.connected else []
        # The frame first: a fire that is not on disk is only fired again.
        return effects + sends + self._persist(*records)

    def _counted_anew(self, now: datetime, ahead: timedelta) -> list[Effect]:
        """Due times that passed by a clock that was so far ahead, or further, are still to come."""
        wrong = [(key, now) for key, at in self.memory.passed.items() if at > now + ahead]
        return self._persist(Passed(wrong)) if wrong else []

    def _fire(self, due: Due) -> ScheduleFire:
        waiting = self.memory.fires.get(due.entry.id)
        missed = due.missed
        if waiting is not None:  # no answer has come since: one run stands for all that were missed
            missed = max(1, waiting.missed) + max(1, missed)
        return ScheduleFire(due.entry.id, due.at, missed)

    def _send_fires(self, fires: list[ScheduleFire], now: datetime) -> list[Effect]:
        """Fires that were waiting for a connection, less those for which it is too late by now."""
        sent, dropped = [], []
        for fire in fires:
            entry = self._entry(fire.schedule_id)
            if entry is not None and _too_late(entry, fire.scheduled_at, now):
                dropped.append(Answered(fire.schedule_id, fire.scheduled_at))
            else:  # of one that cannot be read any more, the server knows what is too late
                late = now - fire.scheduled_at >= cron.ON_TIME
                sent.append(ScheduleFire(fire.schedule_id, fire.scheduled_at, max(fire.missed, int(late))))
        return self._persist(*dropped) + _frames(sent, MAX_FIRES)

    # Messages.

    def heard(self, messages: Sequence[FromServer], shown: datetime) -> list[Effect]:
        """The server said several things in one frame: what they cause goes to disk, and is answered, together."""
        effects = [effect for message in messages for effect in self.received(message, shown)]
        return gathered(effects + self._fired_anew())

    def received(self, message: FromServer, shown: datetime) -> list[Effect]:
        """The server said something."""
        now = self._reckoned(shown)
        match message:
            case CommandRun():
                return self._run(message, now)
            case CommandCancel() | JobAsk():
                return self._asked_of(message, now)
            case JobConfirmed(job_id):
                return self._persist(Confirmed([job_id])) if job_id in self.memory.ends else []
            case ScheduleRefused(reason="TooEarly"):
                self._too_early(message, shown)
            case ScheduleRefused(schedule_id, scheduled_at, reason):
                extra = {"schedule": self._name(schedule_id), "due": scheduled_at, "reason": reason}
                log.log(logging.DEBUG if reason == "Duplicate" else logging.WARNING, "fire refused", extra=extra)
                return self._persist(Answered(schedule_id, scheduled_at)) if schedule_id in self.memory.fires else []
            case ScheduleSet() | ScheduleDiff():
                self._pushes.append(message)
                return self.tick(shown) + self._apply_next()  # what is due by now is due by the old set
            case RepoCredentials(repositories):
                self._repositories = {repository.id: repository for repository in repositories}
        return []

    def _run(self, command: CommandRun, now: datetime) -> list[Effect]:
        job_id = command.job_id
        if (known := self._what_became_of(job_id, now) or self._ran_as_another(command, now)) is not None:
            return known
        if self.stopping:  # the server sends what was not accepted after the next hello
            return []
        facts = {"kind": command.kind} | ({"schedule": name} if (name := self._name(command.schedule_id)) else {})
        log.info("job started", extra={"job": job_id, **facts})
        start = StartJob(command, self._repositories.get(command.repository))
        accepted = Accepted(job_id, command.schedule_id, command.scheduled_at)
        return self._persist(accepted, then=(Send((JobAccepted(job_id),)), start))

    def _asked_of(self, message: CommandCancel | JobAsk, now: datetime) -> list[Effect]:
        """End a job, or say what became of it. One that was never taken has ended."""
        job_id = message.job_id
        if isinstance(message, JobAsk):
            error = "the agent has no memory of this job: its journal was lost"
            unknown = JobFinished(job_id, "interrupted", now, error=error)
        elif job_id in self.memory.running:
            return [StopJob(job_id, "cancelled")]
        else:
            unknown = JobFinished(job_id, "cancelled", now, error="cancelled before it began")
        known = self._what_became_of(job_id, now)
        return self.job_ended(unknown) if known is None else known

    def _what_became_of(self, job_id: str, now: datetime) -> list[Effect] | None:
        """The answer for a job that was taken before, whatever the server remembers of it; None for another."""
        memory = self.memory
        if job_id in memory.running:  # told again only once what was said of it before is on disk, too
            return [Persist((), (Send((JobAccepted(job_id),)),))]
        end = memory.ends.get(job_id) or memory.confirmed.get(job_id)
        if end is None and job_id in memory.done:
            error = "this job is over; how it ended was confirmed and is not known here any more"
            end = JobFinished(job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
        return [Send((end,))] if end is not None else None

    def _ran_as_another(self, command: CommandRun, now: datetime) -> list[Effect] | None:
        """The answer for a due time that was accepted as a job of another id, of which a server whose database is an
        older one does not know; None for any other."""
        job_id, schedule_id, due, memory = command.job_id, command.schedule_id, command.scheduled_at, self.memory
        other = memory.ran_as(schedule_id, due, job_id)
        if other == job_id or due is None:
            return None
        log.warning("not run again", extra={"schedule": self._name(schedule_id), "due": due, "ran_as": other})
        end = memory.ends.get(other) or memory.confirmed.get(other)
        if end is None:
            error = f"this due time was run as job {other}, of which the server does not know any more"
            end = JobFinished(job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
        answered = self._persist(Answered(schedule_id, due)) if schedule_id in memory.fires else []
        return [*answered, Send((msgspec.structs.replace(end, job_id=job_id),))]

    # Pushes: the old cron stops when one comes, and the new one starts once it is built.

    def _apply_next(self) -> list[Effect]:
        """Begin with the next push, unless one is being applied: the next follows it."""
        effects: list[Effect] = []
        while self._pushes and self._table is not None:
            push = self._pushes.popleft()
            if self.memory.fits(push):
                self._table = None
                effects.append(Apply(push))
            else:
                effects.append(Send((ScheduleResync(self.memory.version),)))
        return effects

    def applied(self, result: Built | str, shown: datetime) -> list[Effect]:
        """An Apply is done: what it built, or why the push cannot be read, which leaves the set that was in force."""
        now = self._reckoned(shown)
        if isinstance(result, str):
            log.error("push left out: it cannot be read", extra={"reason": result})
            self._table = timetable.build(self.memory.entries, self.memory.passed, self.host, now)
            return self._fired_anew() + self.tick(shown) + self._apply_next()
        for key, problem in result.table.problems.items():
            log.warning("schedule left out", extra={"schedule": key, "reason": problem})
        self._table = result.table
        self._left_out = _left_out(result.table.problems)
        _tell(result)
        effects: list[Effect] = []
        if (push := result.push) is not None:
            self.memory.put(push, result.held, result.begins)
            record = SetApplied(push) if isinstance(push, ScheduleSet) else DiffApplied(push)
            effects.append(Persist((record,), (self._ack(),)))
        elif self.connected and self.memory.digest:  # the hello went out before this was known
            effects.append(self._ack())
        return effects + self._fired_anew() + self.tick(shown) + self._apply_next()

    # Fires that came too early.

    def _too_early(self, refused: ScheduleRefused, shown: datetime) -> None:
        """A fire's time is yet to come by the server's clock."""
        ahead = max(shown - (refused.now or shown), timedelta())
        if abs(ahead - self._ahead) > AHEAD:
            log.warning("clock is ahead of the server's, which counts", extra={"seconds": int(ahead.total_seconds())})
        self._ahead = ahead if ahead > AHEAD else timedelta()
        self._ahead_until = shown + TRUST
        fire = self.memory.fires.get(refused.schedule_id)
        if fire is not None and fire.scheduled_at == refused.scheduled_at:
            now = shown - self._ahead
            self._early[refused.schedule_id] = Early(fire, self._come(fire, now), now)

    def _come(self, fire: ScheduleFire, now: datetime) -> ScheduleFire | None:
        """What stands for those of a fire's due times that have come by now; None where none has."""
        entry = self._entry(fire.schedule_id)
        try:
            slot = timetable.slot(entry, self.host) if entry is not None else None
        except cron.CronError:
            slot = None
        if slot is None:
            return None
        to_come = max(1, slot.latest(now, fire.scheduled_at).times)
        late = slot.latest(slot.entry.since, now)
        come = max(1, fire.missed) - to_come
        return ScheduleFire(fire.schedule_id, late.due, come) if come > 0 and late.times else None

    def _fired_anew(self) -> list[Effect]:
        """Have fires that came too early be due again, and fire at once what they stood for that has come by now."""
        if self._table is None or not self._early:
            return []
        memory = self.memory
        early = {key: it for key, it in self._early.items() if memory.fires.get(key) == it.fire}
        self._early = {}
        passed = {key: min(memory.passed.get(key, it.now), it.now) for key, it in early.items()}
        fires = [it.come for it in early.values() if it.come is not None]
        answered = [Answered(key, it.fire.scheduled_at) for key, it in early.items()]
        self._table.recount(passed)
        # A fire goes last: where a power failure leaves the first of these records only, it is still sent again.
        effects = self._persist(*([Fired(fires)] if fires else []), Passed(list(passed.items())), *answered)
        return (_frames(fires, MAX_FIRES) if self.connected else []) + effects

    def _ack(self) -> Send:
        return Send((ScheduleAck(self.memory.version, self.memory.digest, *(self._left_out or ([], 0))),))

    # Jobs.

    def job_news(self, news: JobProgress | JobLog) -> list[Effect]:
        """A job tells how far it is. Lost when there is no connection: its end is what counts."""
        return [Send((news,))] if self.connected else []

    def job_ended(self, end: JobFinished) -> list[Effect]:
        """A job has ended; told to the server until it confirms."""
        return self._persist(Ended(end), then=(Send((end,)),))

    def _persist(self, *records: Record, then: Sequence[Effect] = ()) -> list[Effect]:
        for record in records:
            self.memory.add(record)
        return [Persist(records, then)] if records else []

    def _entry(self, schedule_id: str) -> Entry | None:
        """A schedule of the set that is held; None when it is not there, or cannot be read."""
        held = self.memory.entries.items.get(schedule_id)
        try:
            return entries.parse_entry(held.raw) if held is not None else None
        except msgspec.DecodeError:
            return None

    def _name(self, schedule_id: str) -> str:
        """What people call a schedule; its id when it is not of this host any more."""
        entry = self._entry(schedule_id)
        return entry.name if entry is not None else schedule_id


def _log_fires(due: Sequence[Due], fires: Sequence[ScheduleFire]) -> None:
    """Log fires, each in a line of its own where that can be read, and is soon written."""
    if len(fires) > TOLD:
        log.info("fires", extra={"schedules": len(fires), "due": max(fire.scheduled_at for fire in fires)})
        return
    names = {late.entry.id: late.entry.name for late in due}
    for fire in fires:
        late = {"missed": fire.missed} if fire.missed else {}
        log.info("fire", extra={"schedule": names[fire.schedule_id], "due": fire.scheduled_at, **late})


def gathered(effects: Sequence[Effect]) -> list[Effect]:
    """The same effects with neighbours made one: records that share a write, acceptances that share a frame.

    What follows a write is first said and then done: a job that begins a moment later is the same job.
    """
    made: list[Effect] = []
    for kind, group in groupby(effects, type):
        alike = list(group)
        if kind is Persist and len(alike) > 1:
            writes = [effect for effect in alike if isinstance(effect, Persist)]
            then = [effect for write in writes for effect in write.then]
            then.sort(key=lambda effect: not isinstance(effect, Send))
            made.append(Persist([record for write in writes for record in write.records], gathered(then)))
        elif kind is Send:
            made += _gathered_sends([effect for effect in alike if isinstance(effect, Send)])
        else:
            made += alike
    return made


def _gathered_sends(sends: Sequence[Send]) -> Iterator[Effect]:
    for accepts, group in groupby(sends, lambda send: all(isinstance(it, JobAccepted) for it in send.messages)):
        alike = list(group)
        yield from _frames([it for send in alike for it in send.messages], MAX_FIRES) if accepts else alike


def built(memory: Memory, push: Push | None, host: str, now: datetime) -> Built | str:
    """What a push, or None for the set in memory, makes of the agent's set: the work of `Apply`.

    Pure and free of the core's state but for reading `memory`, which nothing but the push's own record changes in
    `version`, `entries` and `passed` meanwhile: without a timetable nothing fires. An entry that says no id makes the
    whole push unreadable.
    """
    if push is None:
        return Built(None, memory.entries, timetable.build(memory.entries, memory.passed, host, now))
    try:
        held = memory.after(push)
    except msgspec.DecodeError as error:
        return str(error)
    begins = memory.begins(push, held)
    return Built(push, held, timetable.build(held, memory.passed | begins, host, now), begins)


def _listed(hooks: Sequence[str] | None) -> list[str] | None:
    """Allowed hooks as a hello tells them; None where they are unknown, or beyond what it holds."""
    if hooks is None or len(hooks) > MAX_HOOKS or any(len(program) > MAX_HOOK for program in hooks):
        return None
    return sorted(hooks)


def _left_out(problems: Mapping[str, str]) -> tuple[list[LeftOut], int]:
    """What is told of entries that are not in force, and how many there are."""
    told = islice(problems.items(), MAX_LEFT_OUT)
    return [LeftOut(key, reason[:MAX_REASON]) for key, reason in told], len(problems)


def _frames(messages: Sequence[FromAgent], size: int) -> list[Effect]:
    """Messages in frames of at most `size`."""
    return [Send(messages[at : at + size]) for at in range(0, len(messages), size)]


def _tell(result: Built) -> None:
    """Say in the log what is in force, and what comes next."""
    facts: dict[str, object] = {"schedules": len(result.held)}
    if (entry := result.table.next_entry) is not None and result.table.next_at < NEVER:
        facts |= {"next": entry.name, "due": result.table.next_at}
    log.log(logging.INFO if result.held else logging.DEBUG, "schedules in force", extra=facts)


def _too_late(entry: Entry, due: datetime, now: datetime) -> str:
    """Why a due time is not to be run any more; empty when it is."""
    if entry.deadline_s is not None and now - due > timedelta(seconds=entry.deadline_s):
        return "startingDeadlineSeconds passed"
    if entry.missed_run_policy == "Skip" and now - due >= cron.ON_TIME:
        return "missedRunPolicy is Skip"
    return ""
