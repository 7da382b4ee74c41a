"""The agent as a state machine without I/O: an event and the time go in, effects come out.

A due time goes `tick` → `schedule.fire` → (the server records a job) → `command.run` → `StartJob` → `job.finished` →
`job.confirmed`. What must survive a kill is in `state` and changes only by records, which the core asks to `Persist`;
effects that a record must precede on disk ride in that Persist's `then`. Whatever was in flight when a connection or
the process ended is sent again after the next hello; the server knows repeats by job id and by due time.
"""

import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta

from agent.core import fires, pushes, timetable
from agent.core.answers import end_as, known_end
from agent.core.clock import HostClock
from agent.core.effects import MAX_FIRES, Apply, Effect, Persist, Push, Send, StartJob, StopJob, frames, gathered
from agent.core.fires import Early
from agent.core.pushes import Built
from agent.core.state import (
    Accepted,
    AgentState,
    Answered,
    Confirmed,
    CursorsMoved,
    DiffApplied,
    Ended,
    Fired,
    Record,
    SetApplied,
)
from agent.core.timetable import CORRECTION, NEVER, Timetable
from wire.messages import (
    MAX_HOOK,
    MAX_HOOKS,
    CommandCancel,
    CommandRun,
    FromServer,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
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

CAPABILITIES = ("backup", "forget", "prune", "check", "unlock", "verify", "restore", "snapshots", "ls", "hooks", "ask")
"""The kinds of jobs that this agent runs, whether it runs hooks around them, and whether it answers job.ask."""
MAX_ENDS = 32
"""Ends in one frame: each may tell an error of 4096 characters, in JSON up to six bytes each."""


class Core:
    """One agent. Call one method for each event, do the effects in order, call `tick` again at `wake_at`.

    Times that come in are what the host's clock shows; `HostClock` says what counts. What fires too early by the
    server's clock is fired again when its time has come.
    """

    def __init__(
        self,
        host: str,
        state: AgentState,
        version: str = "",
        instance: str = "",
        allowed_hooks: Sequence[str] | None = None,
    ) -> None:
        self.host = host
        self.instance = instance
        self.state = state
        self.agent_version = version
        self._allowed_hooks = _listed(allowed_hooks)
        self.connected = False
        self.stopping = False
        self._repositories: dict[str, Repository] = {}
        self._table: Timetable | None = None  # None while a push is being applied
        self._pushes: deque[Push] = deque()
        self._latest: datetime | None = None
        self._left_out: tuple[list[LeftOut], int] | None = None  # of the set that is held; None until it was worked out
        self._clock = HostClock()
        self._early: dict[str, Early] = {}  # fires that came too early, until there is a timetable to put them in

    @property
    def wake_at(self) -> datetime:
        """When `tick` has work to do; NEVER while there is none."""
        next_at = self._table.next_at if self._table is not None and not self.stopping else NEVER
        return self._clock.shown_at(next_at) if next_at < NEVER else NEVER

    @property
    def busy(self) -> bool:
        """Whether jobs are running."""
        return bool(self.state.running)

    @property
    def settled(self) -> bool:
        """Whether no job runs, and a server that is connected has confirmed all ends."""
        return not (self.state.running or (self.connected and self.state.ends))

    # The process and the connection.

    def started(self, shown: datetime) -> list[Effect]:
        """The process began: what ran when the last one ended was interrupted; the set it held is put in force."""
        now = self._clock.now(shown)
        error = "the agent stopped while the job ran"
        ends = [JobFinished(job_id, "interrupted", now, error=error) for job_id in self.state.running]
        return [*self._persist(*map(Ended, ends)), *self._counted_anew(now, CORRECTION), Apply(None)]

    def connection_made(self, shown: datetime) -> list[Effect]:
        """A connection is open: say hello, then whatever the server has not answered yet."""
        now = self._clock.now(shown)
        self.connected = True
        state = self.state
        left_out, left_out_count = self._left_out or (None, 0)
        hello = Hello(
            self.host,
            self.agent_version,
            state.version,
            state.digest,
            list(CAPABILITIES),
            [*state.running, *state.ends],
            self.instance,
            shown,
            left_out,
            left_out_count,
            self._allowed_hooks,
        )
        effects: list[Effect] = [Send((hello,))]
        effects += frames(list(state.ends.values()), MAX_ENDS)
        return effects + self._send_fires(list(state.fires.values()), now)

    def connection_lost(self) -> list[Effect]:
        """The connection is gone. The cron goes on; pushes that wait are left to the next hello."""
        self.connected = False
        self._pushes.clear()
        return []

    def stop(self) -> list[Effect]:
        """The process is to end: nothing new is begun, running jobs end as interrupted."""
        self.stopping = True
        return [StopJob(job_id, "interrupted") for job_id in self.state.running]

    # Time.

    def tick(self, shown: datetime) -> list[Effect]:
        """A due time may have come, or the clock may have been set."""
        now = self._clock.now(shown)
        if self._table is None or self.stopping:
            return []
        effects: list[Effect] = []
        if self._latest is not None and now < self._latest - CORRECTION:
            log.warning("clock was set back: due times are counted anew", extra={"was": self._latest, "now": now})
            effects = self._counted_anew(now, timedelta())
            self._table = timetable.build(self.state.entries, self.state.cursors, self.host, now)
            self._latest = now
        self._latest = max(now, self._latest or now)
        if self._table.next_at > now:
            return effects
        due = self._table.take(now)
        fired, dropped = [], []
        for late in due:
            if reason := fires.too_late(late.entry, late.at, now):
                log.warning("run skipped", extra={"schedule": late.entry.name, "due": late.at, "reason": reason})
                dropped.append((late.entry.id, late.at))
            else:
                fired.append(fires.fire(late, self.state.fires.get(late.entry.id)))
        fires.log_fires(due, fired)
        records: list[Record] = [Fired(fired)] if fired else []
        if dropped:
            records.append(CursorsMoved(dropped))
        sends = frames(fired, MAX_FIRES) if self.connected else []
        # The frame first: a fire that is not on disk is only fired again.
        return effects + sends + self._persist(*records)

    def _counted_anew(self, now: datetime, ahead: timedelta) -> list[Effect]:
        """Move cursors back to now that are more than `ahead` in the future: they come from a clock that was wrong."""
        wrong = [(key, now) for key, at in self.state.cursors.items() if at > now + ahead]
        return self._persist(CursorsMoved(wrong)) if wrong else []

    def _send_fires(self, waiting: list[ScheduleFire], now: datetime) -> list[Effect]:
        """Fires that were waiting for a connection, less those for which it is too late by now."""
        sent, dropped = [], []
        for fire in waiting:
            entry = self.state.entry(fire.schedule_id)
            if entry is not None and fires.too_late(entry, fire.scheduled_at, now):
                dropped.append(Answered(fire.schedule_id, fire.scheduled_at))
            else:  # of one that cannot be read any more, the server knows what is too late
                sent.append(fires.late_fire(fire, now))
        return self._persist(*dropped) + frames(sent, MAX_FIRES)

    # Messages.

    def heard(self, messages: Sequence[FromServer], shown: datetime) -> list[Effect]:
        """A frame came: all that its messages cause shares one write and one answer."""
        effects = [effect for message in messages for effect in self.received(message, shown)]
        return gathered(effects + self._fired_anew())

    def received(self, message: FromServer, shown: datetime) -> list[Effect]:
        """A message of the server came."""
        now = self._clock.now(shown)
        match message:
            case CommandRun():
                return self._run(message, now)
            case CommandCancel() | JobAsk():
                return self._asked_of(message, now)
            case JobConfirmed(job_id):
                return self._persist(Confirmed([job_id])) if job_id in self.state.ends else []
            case ScheduleRefused(reason="TooEarly"):
                self._too_early(message, shown)
            case ScheduleRefused(schedule_id, scheduled_at, reason):
                extra = {"schedule": self._name(schedule_id), "due": scheduled_at, "reason": reason}
                log.log(logging.DEBUG if reason == "Duplicate" else logging.WARNING, "fire refused", extra=extra)
                return self._persist(Answered(schedule_id, scheduled_at)) if schedule_id in self.state.fires else []
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
        elif job_id in self.state.running:
            return [StopJob(job_id, "cancelled")]
        else:
            unknown = JobFinished(job_id, "cancelled", now, error="cancelled before it began")
        known = self._what_became_of(job_id, now)
        return self.job_ended(unknown) if known is None else known

    def _what_became_of(self, job_id: str, now: datetime) -> list[Effect] | None:
        """The answer for a job that was taken before, whatever the server remembers of it; None for another."""
        if job_id in self.state.running:  # told again only once what was said of it before is on disk, too
            return [Persist((), (Send((JobAccepted(job_id),)),))]
        end = known_end(self.state, job_id, now)
        return [Send((end,))] if end is not None else None

    def _ran_as_another(self, command: CommandRun, now: datetime) -> list[Effect] | None:
        """The answer for a due time that was accepted as a job of another id, of which a server whose database is an
        older one does not know; None for any other."""
        schedule_id, due = command.schedule_id, command.scheduled_at
        other = self.state.ran_as(schedule_id, due, command.job_id)
        if other == command.job_id or due is None:
            return None
        log.warning("not run again", extra={"schedule": self._name(schedule_id), "due": due, "ran_as": other})
        answered = self._persist(Answered(schedule_id, due)) if schedule_id in self.state.fires else []
        return [*answered, Send((end_as(other, self.state, command, now),))]

    # Pushes: the old cron stops when one comes, and the new one starts once it is built.

    def _apply_next(self) -> list[Effect]:
        """Begin with the next push, unless one is being applied: the next follows it."""
        effects: list[Effect] = []
        while self._pushes and self._table is not None:
            push = self._pushes.popleft()
            if self.state.fits(push):
                self._table = None
                effects.append(Apply(push))
            else:
                effects.append(Send((ScheduleResync(self.state.version),)))
        return effects

    def applied(self, result: Built | str, shown: datetime) -> list[Effect]:
        """An Apply is done: what it built, or why the push cannot be read, which leaves the set that was in force."""
        now = self._clock.now(shown)
        if isinstance(result, str):
            log.error("push left out: it cannot be read", extra={"reason": result})
            self._table = timetable.build(self.state.entries, self.state.cursors, self.host, now)
            return self._fired_anew() + self.tick(shown) + self._apply_next()
        pushes.log_applied(result)
        self._table = result.table
        self._left_out = pushes.left_out(result.table.problems)
        effects: list[Effect] = []
        if (push := result.push) is not None:
            self.state.put(push, result.held, result.begins)
            record = SetApplied(push) if isinstance(push, ScheduleSet) else DiffApplied(push)
            effects.append(Persist((record,), (self._ack(),)))
        elif self.connected and self.state.digest:  # the hello went out before this was known
            effects.append(self._ack())
        return effects + self._fired_anew() + self.tick(shown) + self._apply_next()

    # Fires that came too early.

    def _too_early(self, refused: ScheduleRefused, shown: datetime) -> None:
        """A fire's time is yet to come by the server's clock."""
        ahead = self._clock.compare(shown, refused.now or shown)
        if ahead is not None:
            log.warning("clock is ahead of the server's, which counts", extra={"seconds": int(ahead.total_seconds())})
        fire = self.state.fires.get(refused.schedule_id)
        if fire is not None and fire.scheduled_at == refused.scheduled_at:
            now = self._clock.now(shown)
            come = fires.come(fire, self.state.entry(fire.schedule_id), self.host, now)
            self._early[refused.schedule_id] = Early(fire, come, now)

    def _fired_anew(self) -> list[Effect]:
        """Have fires that came too early be due again, and fire at once what they stood for that has come by now."""
        if self._table is None or not self._early:
            return []
        early = {key: it for key, it in self._early.items() if self.state.fires.get(key) == it.fire}
        self._early = {}
        cursors = {key: min(self.state.cursors.get(key, it.now), it.now) for key, it in early.items()}
        come = [it.come for it in early.values() if it.come is not None]
        answered = [Answered(key, it.fire.scheduled_at) for key, it in early.items()]
        self._table.recount(cursors)
        # A fire goes last: where a power failure leaves the first of these records only, it is still sent again.
        moved = CursorsMoved(list(cursors.items()))
        effects = self._persist(*([Fired(come)] if come else []), moved, *answered)
        return (frames(come, MAX_FIRES) if self.connected else []) + effects

    def _ack(self) -> Send:
        return Send((ScheduleAck(self.state.version, self.state.digest, *(self._left_out or ([], 0))),))

    # Jobs.

    def job_reported(self, report: JobProgress | JobLog) -> list[Effect]:
        """A job reports progress or log lines. They are dropped without a connection; only the end is kept."""
        return [Send((report,))] if self.connected else []

    def job_ended(self, end: JobFinished) -> list[Effect]:
        """A job has ended; told to the server until it confirms."""
        return self._persist(Ended(end), then=(Send((end,)),))

    def _persist(self, *records: Record, then: Sequence[Effect] = ()) -> list[Effect]:
        for record in records:
            self.state.add(record)
        return [Persist(records, then)] if records else []

    def _name(self, schedule_id: str) -> str:
        """A schedule's name for the log; its id when this host does not hold it any more."""
        entry = self.state.entry(schedule_id)
        return entry.name if entry is not None else schedule_id


def _listed(hooks: Sequence[str] | None) -> list[str] | None:
    """Allowed hooks as a hello tells them; None where they are unknown, or beyond what it holds."""
    if hooks is None or len(hooks) > MAX_HOOKS or any(len(program) > MAX_HOOK for program in hooks):
        return None
    return sorted(hooks)
