"""The agent as a state machine without I/O: an event and the time go in, effects come out.

A due time goes `tick` → `schedule.fire` → (the server records a job) → `command.run` → `StartJob` → `job.finished` →
`job.confirmed`. What must survive a kill is in `state`, which changes only by records that the core asks to `Persist`.
An effect that must follow a record's write is in that Persist's `then`. What was unanswered when a connection or the
process ended is sent again after the next hello; the server recognises repeats by job id and by due time.
"""

import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta

from agent.core import fires, pushes, timetable
from agent.core.answers import end_as, known_end
from agent.core.clock import HostClock
from agent.core.closings import Closings
from agent.core.effects import MAX_FIRES, Apply, Effect, Persist, Push, Send, StartJob, StopJob, frames, merged
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
    AgentClock,
    CommandCancel,
    CommandRun,
    FromServer,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
    JobFinished,
    JobReport,
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

CAPABILITIES = (
    *("backup", "forget", "prune", "check", "unlock", "verify", "copy", "restore", "snapshots", "ls", "find"),
    *("hooks", "ask", "command", "crons", "options", "priority", "unchanged", "stop-after"),
)
"""The kinds of jobs that this agent runs; `hooks`: it runs hooks around them; `ask`: it answers job.ask; `command`: it
backs up what a program prints; `crons`: an entry may have several expressions; `options`, `priority`: it regards these
parts of a command; `unchanged`: a backup may succeed without a snapshot; `stop-after`: it regards `stop_after_s`."""
MAX_ENDS = 32
"""Ends in one frame: each error has up to 4096 characters, and JSON takes up to six bytes for one."""


class Core:
    """One agent. Call one method for each event, perform the effects in order, and call `tick` again at `wake_at`.

    `shown` is always what the host's clock shows; `HostClock` corrects it. A fire that was too early by the server's
    clock is repeated at its due time.
    """

    def __init__(
        self,
        host: str,
        state: AgentState,
        version: str = "",
        instance: str = "",
        allowed_hooks: Sequence[str] | None = None,
        max_jobs: int | None = None,
    ) -> None:
        self.host = host
        self.instance = instance
        self.state = state
        self.agent_version = version
        fits = len(allowed_hooks or ()) <= MAX_HOOKS and all(len(path) <= MAX_HOOK for path in allowed_hooks or ())
        self._allowed_hooks = sorted(allowed_hooks) if allowed_hooks is not None and fits else None
        self._restic_version = ""
        self._max_jobs = max_jobs
        self.connected = False
        self.stopping = False
        self.draining = False
        self._repositories: dict[str, Repository] = {}
        self._table: Timetable | None = None  # None while a push is being applied
        self._pushes: deque[Push] = deque()
        self._latest: datetime | None = None
        self._left_out: tuple[list[LeftOut], int] | None = None  # None until the first timetable is built
        self._clock = HostClock()
        self._early: dict[str, Early] = {}  # fires that were too early, until a timetable can take them back
        self._closings = Closings()

    @property
    def wake_at(self) -> datetime:
        """When, by the host's clock, `tick` has work to do; NEVER while there is none."""
        next_at = self._table.next_at if self._table is not None and not self._begins_nothing else NEVER
        return min(self._clock.shown_at(next_at) if next_at < NEVER else NEVER, self._closings.next_at)

    @property
    def in_force(self) -> bool:
        """Whether the set is in force, and due times fire; not before it is built, nor while a push is applied."""
        return self._table is not None

    @property
    def _begins_nothing(self) -> bool:
        return self.stopping or self.draining

    @property
    def running(self) -> int:
        """How many jobs are running."""
        return len(self.state.running)

    @property
    def busy(self) -> bool:
        """Whether jobs are running."""
        return bool(self.state.running)

    @property
    def settled(self) -> bool:
        """Whether no job is running and a connected server has confirmed all ends."""
        return not (self.state.running or (self.connected and self.state.ends))

    # The process and the connection.

    def started(self, shown: datetime) -> list[Effect]:
        """The process started: jobs of the last process count as interrupted, and the stored set is put in force."""
        now = self._clock.now(shown)
        error = "the agent stopped while the job ran"
        ends = [JobFinished(job_id, "interrupted", now, error=error) for job_id in self.state.running]
        return [*self._persist(*map(Ended, ends)), *self._reset_cursors(now, CORRECTION), Apply(None)]

    def connection_made(self, shown: datetime) -> list[Effect]:
        """A connection is open: send hello, then all that the server has not answered yet."""
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
            self._restic_version,
            self._max_jobs,
            self.draining,
        )
        effects: list[Effect] = [Send((hello,))]
        effects += frames(list(state.ends.values()), MAX_ENDS)
        return effects + self._send_fires(list(state.fires.values()), now)

    def restic_found(self, version: str) -> bool:
        """restic was looked at, and has this version; empty where none runs. Returns whether a new hello is needed."""
        is_news, self._restic_version = version != self._restic_version, version
        return is_news and self.connected

    def connection_lost(self) -> list[Effect]:
        """The connection is lost. The cron goes on. Waiting pushes are dropped: the server sends what is due after
        hello."""
        self.connected = False
        self._pushes.clear()
        return []

    def drain(self, shown: datetime) -> list[Effect]:
        """The process ends once its jobs have: begin nothing more, and tell the server so. What falls due meanwhile is
        missed, and made up for by the next process."""
        self.draining = True
        return [Send((AgentClock(shown, stops=True),))] if self.connected else []

    def stop(self) -> list[Effect]:
        """The process is about to end: start nothing new, and stop running jobs as interrupted."""
        self.stopping = True
        return [StopJob(job_id, "interrupted") for job_id in self.state.running]

    # Time.

    def tick(self, shown: datetime) -> list[Effect]:
        """Fire what is due, stop jobs whose windows close, and notice a clock that was set back."""
        now = self._clock.now(shown)
        effects: list[Effect] = [
            StopJob(job_id, "interrupted", "WindowClosed") for job_id in self._closings.due(shown) if not self.stopping
        ]
        if self._table is None or self._begins_nothing:
            return effects
        if self._latest is not None and now < self._latest - CORRECTION:
            log.warning(
                "clock was set back: due times count from the new time", extra={"was": self._latest, "now": now}
            )
            effects += self._reset_cursors(now, timedelta())
            self._table = timetable.build(self.state.entries, self.state.cursors, self.host, now)
            self._latest = now
        self._latest = max(now, self._latest or now)
        if self._table.next_at > now:
            return effects
        due = self._table.take(now)
        fired, dropped = [], []
        for late in due:
            if reason := fires.skip_reason(late.entry, late.at, now):
                log.warning("run skipped", extra={"schedule": late.entry.name, "due": late.at, "reason": reason})
                dropped.append((late.entry.id, late.at))
            else:
                fired.append(fires.fire_for(late, self.state.fires.get(late.entry.id)))
        fires.log_fires(due, fired)
        records: list[Record] = [Fired(fired)] if fired else []
        if dropped:
            records.append(CursorsMoved(dropped))
        sends = frames(fired, MAX_FIRES) if self.connected else []
        # The frame goes first: a fire that is lost before it is on disk is fired again, which does no harm.
        return effects + sends + self._persist(*records)

    def _reset_cursors(self, now: datetime, ahead: timedelta) -> list[Effect]:
        """Move cursors that are more than `ahead` in the future back to now: they come from a wrong clock."""
        wrong = [(key, now) for key, at in self.state.cursors.items() if at > now + ahead]
        return self._persist(CursorsMoved(wrong)) if wrong else []

    def _send_fires(self, waiting: list[ScheduleFire], now: datetime) -> list[Effect]:
        """Send the fires that waited for a connection, and drop those that are now to be skipped."""
        sent, dropped = [], []
        for fire in waiting:
            entry = self.state.entry(fire.schedule_id)
            if entry is not None and fires.skip_reason(entry, fire.scheduled_at, now):
                dropped.append(Answered(fire.schedule_id, fire.scheduled_at))
            else:  # of an entry that cannot be read, the server decides what is too late
                sent.append(fires.resent(fire, now))
        return self._persist(*dropped) + frames(sent, MAX_FIRES)

    # Messages.

    def frame_received(self, messages: Sequence[FromServer], shown: datetime) -> list[Effect]:
        """A frame arrived: the effects of all its messages share one write and one answer."""
        effects = [effect for message in messages for effect in self.message_received(message, shown)]
        return merged(effects + self._fire_early_again())

    def message_received(self, message: FromServer, shown: datetime) -> list[Effect]:
        """One message of a frame."""
        now = self._clock.now(shown)
        match message:
            case CommandRun():
                return self._run(message, now, shown)
            case CommandCancel() | JobAsk():
                return self._cancel_or_answer(message, now)
            case JobConfirmed(job_id):
                return self._persist(Confirmed([job_id])) if job_id in self.state.ends else []
            case ScheduleRefused(reason="TooEarly"):
                self._put_back(message, shown)
            case ScheduleRefused(schedule_id, scheduled_at, reason):
                extra = {"schedule": self._name(schedule_id), "due": scheduled_at, "reason": reason}
                log.log(logging.DEBUG if reason == "Duplicate" else logging.WARNING, "fire refused", extra=extra)
                return self._persist(Answered(schedule_id, scheduled_at)) if schedule_id in self.state.fires else []
            case ScheduleSet() | ScheduleDiff():
                self._pushes.append(message)
                return self.tick(shown) + self._apply_next()  # what is due by now fires by the old set
            case RepoCredentials(repositories):
                self._repositories = {repository.id: repository for repository in repositories}
        return []

    def _run(self, command: CommandRun, now: datetime, shown: datetime) -> list[Effect]:
        """Begin a job. The command of a job that runs comes again when its window has another end."""
        job_id = command.job_id
        if job_id in self.state.running:
            self._closings.put(job_id, command.stop_after_s, shown)
        if (known := self._answer_of_known(job_id, now) or self._answer_of_other_job(command, now)) is not None:
            return known
        if self._begins_nothing:  # the server sends it again after the next hello
            return []
        facts = {"kind": command.kind} | ({"schedule": name} if (name := self._name(command.schedule_id)) else {})
        log.info("job started", extra={"job": job_id, **facts})
        self._closings.put(job_id, command.stop_after_s, shown)
        source = self._repositories.get(command.from_repository)
        start = StartJob(command, self._repositories.get(command.repository), source)
        accepted = Accepted(job_id, command.schedule_id, command.scheduled_at)
        return self._persist(accepted, then=(Send((JobAccepted(job_id),)), start))

    def _cancel_or_answer(self, message: CommandCancel | JobAsk, now: datetime) -> list[Effect]:
        """Stop the job, or tell the server its end. A job that was never accepted gets an end here."""
        job_id = message.job_id
        if isinstance(message, JobAsk):
            error = "the agent has no memory of this job: its journal was lost"
            unknown = JobFinished(job_id, "interrupted", now, error=error)
        elif job_id in self.state.running:
            return [StopJob(job_id, "cancelled")]
        else:
            unknown = JobFinished(job_id, "cancelled", now, error="cancelled before it began")
        known = self._answer_of_known(job_id, now)
        return self.job_ended(unknown) if known is None else known

    def _answer_of_known(self, job_id: str, now: datetime) -> list[Effect] | None:
        """The answer for a job that was accepted before; None for an unknown job."""
        if job_id in self.state.running:  # empty, so that the answer follows the write of the first acceptance
            return [Persist((), (Send((JobAccepted(job_id),)),))]
        end = known_end(self.state, job_id, now)
        return [Send((end,))] if end is not None else None

    def _answer_of_other_job(self, command: CommandRun, now: datetime) -> list[Effect] | None:
        """The answer for a due time that already ran as a job with another id; None if it did not.

        A server whose database was restored from a backup asks for such a due time again.
        """
        schedule_id, due = command.schedule_id, command.scheduled_at
        other = self.state.ran_as(schedule_id, due, command.job_id)
        if other == command.job_id or due is None:
            return None
        log.warning(
            "due time ran already, not run again",
            extra={"schedule": self._name(schedule_id), "due": due, "ran_as": other},
        )
        answered = self._persist(Answered(schedule_id, due)) if schedule_id in self.state.fires else []
        return [*answered, Send((end_as(other, self.state, command, now),))]

    # Pushes: the old cron stops when one arrives; the new one starts once it is built.

    def _apply_next(self) -> list[Effect]:
        """Start applying the next push, unless another is being applied."""
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
        """An Apply is done. `result`: what it built; or why the push cannot be read, and then the old set stays in
        force."""
        now = self._clock.now(shown)
        if isinstance(result, str):
            log.error("push ignored: it cannot be read", extra={"reason": result})
            self._table = timetable.build(self.state.entries, self.state.cursors, self.host, now)
            return self._fire_early_again() + self.tick(shown) + self._apply_next()
        pushes.log_applied(result)
        self._table = result.table
        self._left_out = pushes.left_out(result.table.problems)
        effects: list[Effect] = []
        if (push := result.push) is not None:
            self.state.hold(push, result.held, result.new_cursors)
            record = SetApplied(push) if isinstance(push, ScheduleSet) else DiffApplied(push)
            effects.append(Persist((record,), (self._ack(),)))
        elif self.connected and self.state.digest:  # the hello was sent without the entries that are left out
            effects.append(self._ack())
        return effects + self._fire_early_again() + self.tick(shown) + self._apply_next()

    # Fires that were too early by the server's clock.

    def _put_back(self, refused: ScheduleRefused, shown: datetime) -> None:
        """The server refused a fire as too early: follow its clock, and keep the fire for `_fire_early_again`."""
        ahead = self._clock.compare(shown, refused.now or shown)
        if ahead is not None:
            log.warning(
                "clock is ahead of the server's: following the server's", extra={"seconds": int(ahead.total_seconds())}
            )
        fire = self.state.fires.get(refused.schedule_id)
        if fire is not None and fire.scheduled_at == refused.scheduled_at:
            now = self._clock.now(shown)
            past = fires.past_part(fire, self.state.entry(fire.schedule_id), self.host, now)
            self._early[refused.schedule_id] = Early(fire, past, now)

    def _fire_early_again(self) -> list[Effect]:
        """Make early fires due again, and fire at once for those of their due times that are past."""
        if self._table is None or not self._early:
            return []
        early = {key: it for key, it in self._early.items() if self.state.fires.get(key) == it.fire}
        self._early = {}
        cursors = {key: min(self.state.cursors.get(key, it.now), it.now) for key, it in early.items()}
        past = [it.past for it in early.values() if it.past is not None]
        answered = [Answered(key, it.fire.scheduled_at) for key, it in early.items()]
        self._table.set_cursors(cursors)
        # `Answered` goes last: if a power failure keeps only the first of these records, the fire is still sent again.
        moved = CursorsMoved(list(cursors.items()))
        effects = self._persist(*([Fired(past)] if past else []), moved, *answered)
        return (frames(past, MAX_FIRES) if self.connected else []) + effects

    def _ack(self) -> Send:
        return Send((ScheduleAck(self.state.version, self.state.digest, *(self._left_out or ([], 0))),))

    # Jobs.

    def job_reported(self, report: JobReport) -> list[Effect]:
        """A job reports something while it runs. Without a connection they are dropped; only a job's end is kept."""
        return [Send((report,))] if self.connected else []

    def job_ended(self, end: JobFinished) -> list[Effect]:
        """A job has ended: tell the server until it confirms the end."""
        self._closings.drop(end.job_id)
        return self._persist(Ended(end), then=(Send((end,)),))

    def _persist(self, *records: Record, then: Sequence[Effect] = ()) -> list[Effect]:
        for record in records:
            self.state.add(record)
        return [Persist(records, then)] if records else []

    def _name(self, schedule_id: str) -> str:
        """A schedule's name for the log; its id when this host no longer holds it."""
        entry = self.state.entry(schedule_id)
        return entry.name if entry is not None else schedule_id
