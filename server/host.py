"""The server's side of one host, as a state machine without I/O: an event goes in, effects come out.

It knows which version of its set the host should hold and which it was told, and keeps at most one push on its way:
the next one waits for the ack, so that a slow host cannot pile them up. What must be stored comes out as an effect, and
what is said once it is stored (a command, a refusal of a repeat, a confirmation) follows in `recorded` and `finished`.

A connection's hello begins a session. What comes from an older session is not heard: its sender says it again.
"""

import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct

import cron
from server import commands, pushes
from server.desired import Target
from server.pushes import Push
from server.queue import Job, Queue
from server.timing import EARLY, most_missed, why_not
from wire.entries import EMPTY, EntrySet
from wire.messages import (
    AgentClock,
    CommandCancel,
    CommandRun,
    FromAgent,
    FromServer,
    Hello,
    JobAccepted,
    JobAsk,
    JobConfirmed,
    JobFinished,
    JobLog,
    JobProgress,
    RefusalReason,
    ScheduleAck,
    ScheduleFire,
    ScheduleRefused,
    ScheduleResync,
)

log = logging.getLogger(__name__)

MAX_SKEW_S = 60.0
"""Seconds by which a host's clock may differ from ours before that is told."""
DUPLICATE = timedelta(minutes=3)
"""For how long a second agent is told of after it was refused: it tries again at least once a minute."""
NAMED = 3
"""Schedules that are told by name where a count is not enough."""
MAX_RUNS = 1000
"""Open jobs of one schedule on one host, whatever its concurrencyPolicy; of no schedule, restores and looks."""


class NewJob(Struct, frozen=True):
    """A job to be recorded. `answers`: the id of the envelope of its fire.

    `alone`: not to run beside another run of its schedule on its host. `start_by`: when it is too late to begin with
    it. `replaces`: the jobs that it is to run in place of.
    """

    host: str
    command: CommandRun
    actor_kind: str
    actor_id: str
    missed: int
    created_at: datetime
    answers: str = ""
    alone: bool = True
    start_by: datetime | None = None
    replaces: tuple[str, ...] = ()


class Send(Struct, frozen=True):
    """Write these messages, as one frame, to the session's connection. `answers`: the ids of what they answer."""

    messages: Sequence[FromServer]
    answers: Sequence[str] = ()


class Record(Struct, frozen=True):
    """Store jobs, each once for its due time; then say which were new with `recorded`."""

    jobs: Sequence[NewJob]


class Acked(Struct, frozen=True):
    """Store what the host holds. `left_out`: what of it is not in force, where that has changed."""

    version: int
    digest: str
    left_out: "NotInForce | None" = None


class Accepted(Struct, frozen=True):
    """Store that the host took these attempts of jobs."""

    job_ids: Sequence[str]


class Finish(Struct, frozen=True):
    """Store how attempts of jobs ended, the first end of each; then say `finished`."""

    ends: Sequence[JobFinished]


class News(Struct, frozen=True):
    """Keep what running jobs tell."""

    news: Sequence[JobProgress | JobLog]


class Problem(Struct, frozen=True):
    """Something that is wrong with a host: for programs, and for people."""

    reason: Literal["EntriesLeftOut", "DuplicateAgent", "ClockSkew", "StoreEmpty"]
    message: str


class NotInForce(Struct, frozen=True):
    """The entries that a host holds and could not put in force: why, by schedule id, and how many there are.

    `count` is greater than the number of reasons where the host has more of them than it tells.
    """

    reasons: Mapping[str, str] = {}
    count: int = 0


ALL_IN_FORCE = NotInForce()

Effect = Send | Push | Record | Acked | Accepted | Finish | News


_EPOCH = datetime.fromtimestamp(0, UTC)


class Host:
    """One host. `version` and `held` are what it should hold; `applied` what it said it does.

    `left_out`: what of that is not in force. `instance`: which agent process it is. `clock_skew_s`: how many seconds
    the agent's clock was ahead of ours when it last told, None where it did not. `duplicate_at`: when a second
    agent of this name was last refused. `allowed_hooks`: the programs that the agent runs as hooks, None while that
    is not known. `held_back`: whether the agent was left the schedules of another store. `created_at`: when it was made
    known; no due time before that is its own. `others`: how many messages of this session were of another host's jobs.
    """

    __slots__ = (
        "_heard_at",
        "_on_way",
        "_ready",
        "_resent",
        "_resync",
        "_told",
        "agent_version",
        "allowed_hooks",
        "applied_digest",
        "applied_version",
        "capabilities",
        "clock_skew_s",
        "created_at",
        "duplicate_at",
        "held",
        "held_back",
        "instance",
        "left_out",
        "name",
        "others",
        "session",
        "since",
        "version",
    )

    def __init__(
        self,
        name: str,
        since: datetime,
        version: int,
        held: EntrySet,
        created_at: datetime = _EPOCH,
    ) -> None:
        self.name = name
        self.since = since
        self.created_at = created_at
        self.version = version
        self.held = held
        self.applied_version = 0
        self.applied_digest = ""
        self.agent_version = ""
        self.capabilities: frozenset[str] = frozenset()
        self.allowed_hooks: frozenset[str] | None = None
        self.left_out = ALL_IN_FORCE
        self.instance = ""
        self.clock_skew_s: float | None = None
        self.duplicate_at: datetime | None = None
        self.held_back = False
        self.others = 0
        self.session: int | None = None
        self._ready = False  # whether the first push was written and changes may follow
        self._told: tuple[int, EntrySet] | None = None  # what the host holds once it applied what it was sent
        self._on_way = False  # whether that was sent and not acked
        self._resync = False  # whether that is the whole set, sent because the host asked for it
        self._resent = -1  # the version sent whole again, because digests differed
        self._heard_at: datetime | None = None  # when it was known to hold the set that it should

    @property
    def proved(self) -> bool:
        """Whether the host proved that it holds what it should: same version, same digest."""
        return self.applied_version == self.version and self.applied_digest == self.held.digest

    @property
    def in_sync(self) -> bool:
        """Whether the host proved that it holds what it should, and has all of it in force."""
        return self.proved and not self.left_out.count

    def problems(self, now: datetime, names: Mapping[str, str]) -> list[Problem]:
        """What is wrong with this host's agent, as far as the server can tell. `names`: of schedules, by id."""
        found = []
        if count := self.left_out.count:
            told = [f"{names.get(key, key)} ({why})" for key, why in list(self.left_out.reasons.items())[:NAMED]]
            more = f" and {count - len(told)} more" if count > len(told) else ""
            found.append(Problem("EntriesLeftOut", f"its agent cannot put in force: {', '.join(told)}{more}"))
        if self.is_duplicate(now):
            error = "a second agent of this name tries to connect: stop it, or give it a name of its own"
            found.append(Problem("DuplicateAgent", error))
        if (skew := self.clock_skew_s) is not None and abs(skew) > MAX_SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            error = f"its clock is {abs(skew):.0f} s {way} the server's: have both follow a time server"
            found.append(Problem("ClockSkew", error))
        if self.held_back:
            error = "its agent holds schedules, and nothing is declared here: did the server start on the wrong store?"
            found.append(Problem("StoreEmpty", error))
        return found

    def is_duplicate(self, now: datetime) -> bool:
        """Whether a second agent of this name was refused a short while ago."""
        return self.duplicate_at is not None and abs(now - self.duplicate_at) < DUPLICATE

    def lacks(self, command: CommandRun) -> str:
        """What of a command this host's agent does not do, in words; empty where it does all, or never said."""
        needs = {command.kind, *(["hooks"] if command.hooks else [])}
        lacking = sorted(needs - self.capabilities) if self.capabilities else ()
        version = f" {self.agent_version}" if self.agent_version else ""
        return (
            f"agent{version} does not run {' and '.join(lacking)}: update the agent of {self.name}" if lacking else ""
        )

    # The connection.

    def hello(self, session: int, hello: Hello, now: datetime | None = None, *, empty: bool = False) -> list[Effect]:
        """A connection's first message: what to write to it before anything else.

        `now`: what our clock shows. `empty`: whether nothing is declared here: an agent that holds schedules of another
        store keeps them until something is.
        """
        self.session = session
        self._ready = False
        self.others = 0
        self._resent = -1
        self.agent_version = hello.agent_version
        self.capabilities = frozenset(map(sys.intern, hello.capabilities))
        self.allowed_hooks = None if hello.allowed_hooks is None else frozenset(map(sys.intern, hello.allowed_hooks))
        self.instance = hello.instance
        self.clock_skew_s = None
        if hello.now is not None and now is not None:
            self._clock_shows(hello.now, now)
        facts = {"agent": hello.agent_version, "desired": self.version, "applied": hello.applied_version}
        log.info("host connected", extra={"host": self.name, **facts})
        effects: list[Effect] = [self._applied(hello)]
        self.held_back = empty and self.version == 0 and hello.digest not in ("", EMPTY.digest)
        if self.held_back:
            log.warning("agent holds schedules, and nothing is declared here: it keeps them", extra={"host": self.name})
            self._told = None
        elif self.proved and self.version > 0:
            self._told, self._on_way = (self.version, self.held), False
        else:
            self._heard_at = None
            effects += self._push_whole()
        return effects

    def _clock_shows(self, theirs: datetime, ours: datetime) -> None:
        """Its agent said what its clock shows."""
        was_wrong = abs(self.clock_skew_s or 0) > MAX_SKEW_S
        self.clock_skew_s = (theirs - ours).total_seconds()
        if abs(self.clock_skew_s) > MAX_SKEW_S and not was_wrong:
            log.warning("host's clock is wrong", extra={"host": self.name, "ahead_s": round(self.clock_skew_s)})

    def registered(self) -> list[Effect]:
        """The first push is written and the connection can be found by others: catch up with changes since."""
        self._ready = True
        return self._push_whole() if self._told is None and not self.held_back else self._push()

    def resumed(self, running: Collection[str], open_jobs: Sequence[Job], now: datetime) -> list[Effect]:
        """What a hello's running jobs teach about the jobs that are open here.

        Jobs that it had taken, and does not name, are asked for: they are over there, which a database that was
        restored may not know, or its journal was lost. Those that it runs though they are over here, or are to end, are
        cancelled. Those that it has not taken are back in the queue.
        """
        running = set(running)
        taken = [job.wire_id for job in open_jobs if job.state != "running" and job.wire_id in running]
        stop = [CommandCancel(job.wire_id, job.cancelled) for job in open_jobs if job.cancelled]
        over = running - {job.wire_id for job in open_jobs}
        missing = [job for job in open_jobs if job.wire_id not in running and (job.cancelled or job.state == "running")]
        ask = [JobAsk(job.wire_id) for job in missing if "ask" in self.capabilities and not job.cancelled]
        gone = [
            cancelled(job, now) if job.cancelled else JobFinished(job.wire_id, "interrupted", now, error=_FORGOTTEN)
            for job in missing
            if job.cancelled or not ask
        ]
        effects: list[Effect] = []
        told: list[FromServer] = [*stop, *map(CommandCancel, sorted(over)), *ask]
        if told:
            effects.append(Send(told))
        if taken:
            effects.append(Accepted(taken))
        if gone:
            effects.append(Finish(gone))
        return effects

    def lost(self, session: int) -> None:
        """A connection is gone; another one may have taken its place before."""
        if self.session == session:
            self.session = None
            self._ready = False
            if self.others > 1:
                log.warning(_OTHERS, extra={"host": self.name, "messages": self.others})

    # What the host should hold.

    def changed(self, version: int, held: EntrySet, since: datetime) -> list[Effect]:
        """The set that this host should hold is another."""
        self.version, self.held, self.since = version, held, since
        self._heard_at = None
        return self.declared() or self._push()

    def declared(self) -> list[Effect]:
        """Something is declared here: an agent that was left those of another store gets what it should hold."""
        if not self.held_back:
            return []
        self.held_back = False
        return self._push_whole() if self._ready else []

    def acked(self, ack: ScheduleAck) -> list[Effect]:
        """The host says what is in force."""
        effects: list[Effect] = [self._applied(ack)]
        if self._told is None or ack.version != self._told[0]:
            return effects  # of an earlier push; the one on its way will be acked too
        self._on_way = False
        if ack.digest != self._told[1].digest:
            return effects + self._mismatched(ack)
        log.log(_level(ack.version), "acked", extra={"host": self.name, "version": ack.version, "digest": ack.digest})
        return effects + self._push()

    def _applied(self, told: Hello | ScheduleAck) -> Acked:
        """Take in what the host says that it holds. A hello that tells nothing of what is left out keeps what was told
        of the same set: its agent is yet to work that out, and acks once it has."""
        version = told.applied_version if isinstance(told, Hello) else told.version
        known = (self.applied_version, self.applied_digest) == (version, told.digest)
        self.applied_version, self.applied_digest = version, told.digest
        if told.left_out is None and known:
            return Acked(version, told.digest)
        reasons = {it.schedule_id: it.reason for it in told.left_out or ()}
        left_out = NotInForce(reasons, max(told.left_out_count, len(reasons)))
        if left_out == self.left_out:
            return Acked(version, told.digest)
        self.left_out = left_out
        for key, reason in list(reasons.items())[:NAMED]:
            facts = {"host": self.name, "schedule": key, "reason": reason, "left_out": left_out.count}
            log.warning("host left a schedule out", extra=facts)
        return Acked(version, told.digest, left_out)

    def resync(self, message: ScheduleResync) -> list[Effect]:
        """The host cannot apply the diff that it was sent."""
        if self._on_way and self._resync:  # it is on its way
            return []
        log.warning("host asks for its whole set", extra={"host": self.name, "has": message.have})
        effects = self._push_whole()
        self._resync = True
        return effects

    def _mismatched(self, ack: ScheduleAck) -> list[Effect]:
        extra = {"host": self.name, "version": ack.version, "digest": ack.digest}
        if self._resent == ack.version:  # it had the whole set and still differs: the next change tries again
            log.warning("host holds another set than it was sent", extra=extra)
            return []
        log.warning("digests differ: sending the whole set", extra=extra)
        self._resent = ack.version
        return self._push_whole()

    def _push(self) -> list[Effect]:
        if not self._ready or self._on_way or self._told is None or self._told[0] == self.version:
            return []
        base, old = self._told
        return self._tell(pushes.change(base, self.version, old, self.held, self.since))

    def _push_whole(self) -> list[Effect]:
        return self._tell(pushes.whole(self.version, self.held, self.since))

    def _tell(self, push: Push) -> list[Effect]:
        self._told, self._on_way, self._resync = (push.version, push.new), True, False
        facts = {"version": push.version, "schedules": len(push.new)}
        log.log(_level(push.version), "pushed", extra={"host": self.name, **facts})
        return [push]

    # Messages.

    def received(
        self,
        messages: Sequence[tuple[FromAgent, str]],
        targets: Mapping[str, Target],
        queue: Queue,
        now: datetime,
        new_ids: Sequence[str],
    ) -> list[Effect]:
        """One frame of the session: what to store and to answer. `new_ids`: one for each message, for jobs.

        What it says of another host's jobs is not heard.
        """
        effects: list[Effect] = []
        fires: list[tuple[ScheduleFire, str, str]] = []
        taken: list[str] = []
        ends: list[JobFinished] = []
        news: list[JobProgress | JobLog] = []
        for (message, answers), new_id in zip(messages, new_ids, strict=True):
            match message:
                case ScheduleFire() if self.held_back:
                    pass  # of another store: its agent keeps it until something is declared here
                case ScheduleFire():
                    fires.append((message, answers, new_id))
                case ScheduleAck():
                    effects += self.acked(message)
                case ScheduleResync():
                    effects += self.resync(message)
                case JobAccepted() | JobFinished() | JobProgress() | JobLog() if queue.is_anothers(
                    self.name, message.job_id
                ):
                    self.others += 1
                    if self.others == 1:  # the rest is counted, and told when the connection is gone
                        log.warning(_OTHERS, extra={"host": self.name, "job": message.job_id})
                case JobAccepted(job_id):
                    taken.append(job_id)
                case JobFinished():
                    ends.append(message)
                case JobProgress() | JobLog():
                    news.append(message)
                case AgentClock(theirs):
                    self._clock_shows(theirs, now)
        effects += self._fires(fires, targets, queue, now)
        if taken:
            effects.append(Accepted(taken))
        if news:
            effects.append(News(news))
        if ends:
            effects.append(Finish(ends))
        if self._heard_at is None and self.in_sync:
            self._heard_at = now
        return effects

    def _fires(
        self,
        fires: Sequence[tuple[ScheduleFire, str, str]],
        targets: Mapping[str, Target],
        queue: Queue,
        now: datetime,
    ) -> list[Effect]:
        """What the fires of one frame become, each with the id of its envelope and one for its job."""
        jobs: list[NewJob] = []
        refused: list[ScheduleRefused] = []
        refused_ids: list[str] = []
        framed: dict[str, set[datetime]] = {}
        for fire, answers, new_id in fires:
            its = framed.setdefault(fire.schedule_id, set())
            answer = self.fire(fire, targets, queue, now, new_id, answers, its)
            if isinstance(answer, NewJob):
                jobs.append(answer)
                its.add(fire.scheduled_at)
            else:
                refused.append(answer)
                refused_ids.append(answers)
        effects: list[Effect] = [Send(refused, refused_ids)] if refused else []
        return [*effects, Record(jobs)] if jobs else effects

    def fire(
        self,
        fire: ScheduleFire,
        targets: Mapping[str, Target],
        queue: Queue,
        now: datetime,
        new_id: str,
        answers: str = "",
        framed: Collection[datetime] = (),
    ) -> NewJob | ScheduleRefused:
        """What a due time becomes: a job to record, or the reason why there is none.

        `framed`: the due times of the same schedule that the same frame brought, whose jobs are not open yet.
        """
        target = targets.get(fire.schedule_id)
        if target is None:
            return _refused(fire, "NotFound", "there is no such schedule (any more)")
        runs = queue.runs(fire.schedule_id, self.name)
        refused = (
            self._not_its_own(target, fire)
            or self._not_due(target, fire, now)
            or _too_late(target, fire, now)
            or _beside_others(target, fire, runs, framed)
        )
        if refused is not None:
            return refused
        job = new_job(target, self.name, new_id, fire.scheduled_at, now, runs, ("schedule", target.name))
        oldest = target.earlier[-1] if target.earlier else target.timing
        missed = min(fire.missed, most_missed(oldest, fire.scheduled_at))
        return msgspec.structs.replace(job, missed=missed, answers=answers)

    def _not_its_own(self, target: Target, fire: ScheduleFire) -> ScheduleRefused | None:
        """Why a schedule is not to fire on this host; None when it is."""
        if fire.schedule_id not in self.held.items:
            return _refused(fire, "NotThisHost", f"{target.name} does not select {self.name}")
        return None if target.spec.enabled else _refused(fire, "Disabled", f"{target.name} is disabled")

    def _not_due(self, target: Target, fire: ScheduleFire, now: datetime) -> ScheduleRefused | None:
        """Why a time is not one that the host may fire now; None when it is."""
        due = fire.scheduled_at
        if due > now + EARLY:
            message = f"it is {now:%Y-%m-%dT%H:%M:%SZ} here: the clock of {self.name} is ahead"
            return ScheduleRefused(fire.schedule_id, due, "TooEarly", message, now)
        heard = self._heard_at or now
        if due <= self.created_at <= now:
            why = f"{self.name} is known since {self.created_at:%Y-%m-%dT%H:%M:%SZ}"
        else:
            why = why_not(target.timing, target.earlier, self.name, target.id, due, now, heard)
        return _refused(fire, "NotDue", f"{target.name}: {why}") if why else None

    def finished(self, ends: Sequence[JobFinished]) -> list[Effect]:
        """Ends are stored: the host may forget them."""
        return [Send([JobConfirmed(end.job_id) for end in ends])]


class Alike:
    """Hosts that should hold the same set. `names`: those of all `hosts`."""

    def __init__(self, held: EntrySet, hosts: Sequence[Host]) -> None:
        self.held = held
        self.hosts = hosts
        self.names = frozenset(host.name for host in hosts)
        self._behind: list[str] = []  # those that have nothing in force, as far as is known
        self._left_out: dict[str, list[str]] = {}  # the others that left a schedule out, by its id
        for host in hosts:
            if not host.proved or host.left_out.count != len(host.left_out.reasons):
                self._behind.append(host.name)
                continue
            for key in host.left_out.reasons:
                self._left_out.setdefault(key, []).append(host.name)

    def behind(self, schedule_id: str) -> list[str]:
        """Those on which a schedule of the set is not known to be in force."""
        return [*self._behind, *self._left_out.get(schedule_id, ())]


def held_alike(hosts: Iterable[Host]) -> list[Alike]:
    """Hosts by the set that they should hold."""
    groups: dict[EntrySet, list[Host]] = {}
    for host in hosts:
        groups.setdefault(host.held, []).append(host)
    return [Alike(held, its) for held, its in groups.items()]


def new_job(
    target: Target,
    host: str,
    job_id: str,
    due: datetime | None,
    now: datetime,
    runs: Collection[Job],
    actor: tuple[str, str],
) -> NewJob:
    """The job that does on a host what a schedule says. `due`: None for run now. `runs`: those that are not over."""
    spec = target.spec
    deadline = spec.starting_deadline_seconds
    start_by = None if deadline is None else (due or now) + timedelta(seconds=deadline)
    replaces = tuple(job.id for job in runs) if spec.concurrency_policy == "Replace" else ()
    command = command_for(target, host, job_id, due)
    alone = spec.concurrency_policy != "Allow"
    return NewJob(host, command, *actor, 0, now, "", alone, start_by, replaces)


def answered(jobs: Sequence[NewJob], new: Collection[str], going: Collection[str]) -> Send | None:
    """What a host is told once its jobs are stored, of which some were `new` and some are `going` to it at once."""
    messages: list[FromServer] = []
    answers: list[str] = []
    for job in jobs:
        job_id = job.command.job_id
        if job_id in going and job_id in new:
            messages.append(job.command)
        elif job.command.scheduled_at is not None:
            messages.append(_not_now(job.command, "Queued" if job_id in new else "Duplicate"))
        else:
            continue
        answers.append(job.answers)
    return Send(messages, answers) if messages else None


def cancelled(job: Job, now: datetime) -> JobFinished:
    """The end of a job that somebody wanted to end, and that does not run."""
    return JobFinished(job.wire_id, "cancelled", now, error=job.cancelled)


def command_for(target: Target, host: str, job_id: str, scheduled_at: datetime | None) -> CommandRun:
    """The command that does on a host what a schedule says. `scheduled_at`: its due time, None for run now."""
    spec = target.spec
    return CommandRun(
        job_id,
        spec.kind,
        commands.run_args(spec, target.name, host),
        target.repository_id,
        spec.timeout_seconds,
        target.init if spec.kind == "backup" else None,  # nothing else has a use for an empty repository
        target.id,
        scheduled_at,
        list(target.within),
        hooks=commands.hooks_part(spec, target.name),
        verify=commands.verify_part(spec),
        host_identity=target.host_identity,
    )


def _level(version: int) -> int:
    """How much a push matters to people: version 0 is the empty set of a host that nothing was ever declared for."""
    return logging.INFO if version else logging.DEBUG


def _not_now(command: CommandRun, reason: RefusalReason) -> ScheduleRefused:
    assert command.scheduled_at is not None  # noqa: S101 - only fires are answered so
    message = "its job waits for its turn" if reason == "Queued" else _REPEATED
    return ScheduleRefused(command.schedule_id, command.scheduled_at, reason, message)


_OTHERS = "left out: what a host said of another host's job"
_REPEATED = "this due time has its job already"
_FORGOTTEN = "the agent has no memory of this job: its journal was lost"


def _too_late(target: Target, fire: ScheduleFire, now: datetime) -> ScheduleRefused | None:
    """Why a due time is not to be run any more, where its host has not heard of that, or came late; None when it is."""
    spec, late = target.spec, now - fire.scheduled_at
    deadline = spec.starting_deadline_seconds
    if deadline is not None and late > timedelta(seconds=deadline):
        return _refused(fire, "DeadlineExceeded", f"{target.name} must start within {deadline} s of its due time")
    if spec.missed_run_policy == "Skip" and fire.missed and late >= cron.ON_TIME:
        return _refused(fire, "Missed", f"{target.name} skips runs that were missed")
    return None


def _beside_others(
    target: Target, fire: ScheduleFire, runs: Collection[Job], framed: Collection[datetime]
) -> ScheduleRefused | None:
    """Why a due time is not to be run beside others of its schedule on its host; None when it is."""
    if fire.scheduled_at in framed:
        return _refused(fire, "Duplicate", _REPEATED)
    if len(runs) + len(framed) >= MAX_RUNS:
        return _refused(fire, "Concurrent", f"{MAX_RUNS} runs of {target.name} are not over")
    policy = target.spec.concurrency_policy
    if policy == "Allow":
        return None
    if framed:
        return _refused(fire, "Concurrent", f"another run of {target.name} came with it")
    may_be_repeat = not all(job.recorded and job.command.scheduled_at != fire.scheduled_at for job in runs)
    if policy == "Forbid" and runs and not may_be_repeat:
        return _refused(fire, "Concurrent", f"the last run of {target.name} is not over: job {next(iter(runs)).id}")
    return None


def _refused(fire: ScheduleFire, reason: RefusalReason, message: str) -> ScheduleRefused:
    return ScheduleRefused(fire.schedule_id, fire.scheduled_at, reason, message)
