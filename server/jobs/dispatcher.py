"""The shell around the queue: what it decides is carried out, on hosts that are connected here and in what is told.

The queue decides in the store's transactions. What follows from that happens even if whoever asked for it has gone:
methods return futures of what they store; nobody has to await them. That a job may be sent is stored before it is sent,
so that a server that was killed knows which jobs may be running.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection

from server.agents.session import Effect, Send, Session
from server.events import (
    AttemptEnded,
    ClockSetBack,
    DeclarationChanged,
    Event,
    Events,
    FireRefused,
    GatesChanged,
    HostDisconnected,
    HostDraining,
    JobsChanged,
    JobsRecorded,
    JobsSent,
    LimitChanged,
    RecordedJob,
    ScheduleResumed,
)
from server.jobs import fires, notices
from server.jobs.active import ActiveAttempts, Attempt
from server.jobs.fires import NewJob
from server.jobs.kinds import repository_of
from server.jobs.pieces import PIECE
from server.jobs.queue import (
    Arrival,
    Arrived,
    Cancelling,
    JobQueue,
    Leading,
    Outcome,
    Recorded,
    Recording,
    Resuming,
    wire_id,
)
from server.jobs.repositories import RepositoryStates
from server.store.futures import Also, Submit, store_unattended, then
from server.store.queue import OpenRow
from server.store.rows import AuditRow, Retry
from wire.messages import CommandCancel, CommandRun, JobFinished, ScheduleRefused

MAX_SLEEP_S = 60.0
"""Maximum seconds between two looks at the clock while jobs wait for a time: the clock may be set meanwhile."""
HOLD_S = 1800.0
"""Seconds that jobs keep their slots after their host disconnected. restic takes a lock of that age for stale."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at what is due where other servers record jobs, too."""
STORE_AGAIN_S = 5.0
"""Seconds after which a write that failed is tried again."""

CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Agents(Protocol):
    """How hosts are reached: the hub."""

    def session(self, host: str) -> Session | None:
        """The session of a host; None for an unknown one."""

    def is_connected_here(self, host: str) -> bool:
        """Whether a host can be written to."""

    def deliver(self, host: str, effects: Sequence[Effect]) -> None:
        """Write to a host, if it is connected."""


class Dispatcher:
    """Records, sends and ends jobs.

    One server leads: it sees to what is due, and to the slots of hosts that are away. A server without others always
    leads; others do from `lead` to `follow`.

    `submit` stores as `Store.submit` does. `call_later` is an event loop's; that of the running loop when None.
    """

    def __init__(
        self,
        submit: Submit,
        queue: JobQueue,
        active: ActiveAttempts,
        agents: Agents,
        repositories: RepositoryStates,
        events: Events,
        clock: Callable[[], datetime],
        call_later: CallLater | None = None,
    ) -> None:
        self._submit = submit
        self._queue = queue
        self._active = active
        self._agents = agents
        self._repositories = repositories
        self._events = events
        self._clock = clock
        self._call_later = call_later
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = clock()
        self._unsent: defaultdict[str, list[OpenRow]] = defaultdict(list)  # jobs given slots, to connected hosts
        self._holds: dict[str, asyncio.TimerHandle] = {}  # of disconnected hosts whose jobs keep their slots
        self._tells_again = False
        self._has_begun = False
        self._leads = not queue.is_shared
        self._closed = False

    def begin(self) -> "asyncio.Future[list[str]]":
        """The server begins: where it has no others, all hosts count as disconnected, and their jobs keep their slots
        for a while.

        Raises Unavailable.
        """
        future: asyncio.Future[list[str]] = self._submit(self._queue.begin, self._clock())

        def begun(hosts: list[str]) -> None:
            self._has_begun = True
            for host in hosts:
                self._hold_slots(host)
            self.advance()

        return then(future, begun)

    def lead(self) -> None:
        """See to what is due from now on, and to the slots of hosts that are away. If that fails, it is tried again."""

        def leads(found: Leading) -> None:
            self.carry_out(found.outcome)
            now = self._clock()
            for host, lost_at in found.lost:
                gone_s = 0.0 if lost_at is None else (now - lost_at).total_seconds()
                self._hold_slots(host, min(max(HOLD_S - gone_s, 0.0), HOLD_S))
            self.advance()

        def again() -> None:
            if not self._closed:
                self._later(STORE_AGAIN_S, lambda: self.lead() if self._leads else None)

        self._leads = True
        store_unattended(self._submit, self._queue.lead, self._clock(), leads, again)

    def follow(self) -> None:
        """Leave to another server what is due, and the slots of hosts that are away."""
        self._leads = False
        self._stop_timers()

    def close(self) -> None:
        """Stop all timers."""
        self._closed = True
        self._stop_timers()

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for host in list(self._holds):
            self._cancel_hold(host)

    # From a fire or a request to a stored job.

    def record(
        self, jobs: Sequence[NewJob], audit: AuditRow | None = None, host: str = ""
    ) -> "asyncio.Future[Recorded]":
        """Store jobs, each once for its due time, and send those that may start. `audit`: who asked for them. `host`:
        which host's fires they are, if they are.

        Raises Unavailable; the future Conflict where somebody asked for a job and too many are open.
        """
        recording = Recording(jobs, self._clock(), audit)
        future: asyncio.Future[Recorded] = self._submit(self._queue.record, recording, host)
        return then(future, partial(self._recorded, jobs), self.answer_lost)

    def _recorded(self, jobs: Sequence[NewJob], recorded: Recorded) -> None:
        by_host: dict[str, list[NewJob]] = defaultdict(list)
        for job in jobs:
            by_host[job.host].append(job)
        for host, of_host in by_host.items():
            unsupported = self._unsupported((it.id, host, it.command) for it in of_host if it.id in recorded.sendable)
            going = set(recorded.sendable) - {end.job_id for end in unsupported}
            self._note_sent(Attempt(job.id, job.id, host, job.command) for job in of_host if job.id in going)
            if (send := fires.answered(of_host, recorded.new, going, recorded.refused)) is not None:
                self._agents.deliver(host, [send])
                self.publish_refused(host, send)
            self.end(unsupported)
        stored = [job for job in jobs if job.id in recorded.new]
        if stored:
            self._events.publish(JobsRecorded([_recorded(it) for it in stored]))
        self.carry_out(recorded.outcome)
        waiting = [job for job in stored if job.id not in recorded.sendable]
        if times := [at for job in waiting for at in (job.start_by, job.not_before) if at is not None]:
            self._wake_at(min(times))

    def _note_sent(self, attempts: Iterable[Attempt]) -> None:
        """Note the attempts that are sent now.

        One whose host has gone since the store gave it a slot is not sent: its host's next hello has it sent again.
        """
        for attempt in attempts:
            if self._agents.is_connected_here(attempt.host):
                self._active.add(attempt)

    def publish_refused(self, host: str, send: Send) -> None:
        """Publish the refusals among messages to a host."""
        for message in send.messages:
            if isinstance(message, ScheduleRefused):
                self._events.publish(FireRefused(host, message.schedule_id, message.reason))

    # To its host.

    def connected(
        self, host: str, running: Collection[str], instance: str = "", *, stops: bool = False
    ) -> "asyncio.Future[Arrived]":
        """A host can be written to and its hello is answered. `running`: ids of the attempts that it has. `instance`:
        the agent's process; `stops`: whether that begins nothing more.

        Raises Unavailable.
        """
        self._cancel_hold(host)
        self._unsent.pop(host, None)  # the queue has them sent again
        known = {*running, *self._active.wire_ids(host)}  # what it was sent since its hello is not lost
        session = self._agents.session(host) if self._queue.is_shared else None
        facts = None if session is None else session.hello_facts
        arrival = Arrival(host, known, self._clock(), instance, facts, stops)
        future: asyncio.Future[Arrived] = self._submit(self._queue.arrived, arrival, host)
        return then(future, self._arrived, self.answer_lost)

    def _arrived(self, arrived: Arrived) -> None:
        self.carry_out(arrived.outcome)
        if arrived.put_back or arrived.joins:
            self._call_in(0.0)

    def on_event(self, event: Event) -> None:
        """Hear of a host that disconnected, of other limits and windows, and of a clock that was wrong."""
        if isinstance(event, HostDisconnected):
            self.disconnected(event.host)
        elif isinstance(event, ClockSetBack):
            self._unattended(self._queue.clock_set_back, event.now, self.carry_out)
            self.advance()
        elif isinstance(event, DeclarationChanged) and self._has_begun:
            if event.other_windows:
                self._windows_changed(event.other_windows)
            if event.joins:
                self._call_in(0.0)
        elif isinstance(event, LimitChanged) and self._has_begun:
            change = self._queue.move_lanes if event.lanes_moved else self._queue.relimit
            self._unattended(change, (event.repository_id, self._clock()), self.carry_out)
        elif isinstance(event, GatesChanged) and self._has_begun:
            self.open_gates(event.gates)

    def _windows_changed(self, schedule_ids: Collection[str]) -> None:
        """Schedules have other windows: tell the hosts here that run their jobs, and look at the jobs that wait."""
        for attempt in self._active.of_schedules(schedule_ids):
            self._agents.deliver(attempt.host, self.closings([attempt]))
        if self._leads:
            changed = schedule_ids, self._clock()
            self._unattended(self._queue.windows_changed, changed, lambda _: self.advance())

    def closings(self, attempts: Iterable[Attempt]) -> list[Effect]:
        """The commands of attempts that run, to be sent again where they are to stop at the end of a window: with when
        that is by now, or without where it is no longer so."""
        now = self._clock()
        effects: list[Effect] = []
        for it in attempts:
            if not self._queue.has_schedule(it.host, it.command):
                continue
            known = it.take_command(self._queue.timed(it.host, it.command, now))
            if known.stop_after_s is not None or it.command.stop_after_s is not None:
                effects.append(Send((msgspec.structs.replace(it.command, job_id=it.wire_id),)))
        return effects

    def open_gates(self, gates: Collection[str]) -> None:
        """The limits of gates may have changed. If that is not stored, it is tried again: nothing else looks at what
        waits at a gate that is none any more."""

        def again() -> None:
            if not self._closed:
                self._later(STORE_AGAIN_S, partial(self.open_gates, gates))

        self._unattended(self._queue.open_gates, (gates, self._clock()), self.carry_out, again)

    def disconnected(self, host: str) -> None:
        """A host disconnected."""
        self._active.forget(host)
        self._unsent.pop(host, None)
        self._hold_slots(host)
        self._store_disconnect(host)

    def _store_disconnect(self, host: str) -> None:
        """Store that a host disconnected. If that fails, it is tried again while the host stays away: what counts as
        connected is given slots, and keeps them."""

        def done(result: tuple[Outcome, bool]) -> None:
            outcome, has_slots = result
            if not has_slots and not self._queue.is_shared:  # another server may have given it one meanwhile
                self._cancel_hold(host)
            self.carry_out(outcome)

        def try_again() -> None:
            if not self._agents.is_connected_here(host) and not self._closed:
                self._store_disconnect(host)

        def again() -> None:
            self._later(STORE_AGAIN_S, try_again)

        self._unattended(self._queue.disconnected, (host, self._clock()), done, again, host)

    def _hold_slots(self, host: str, seconds: float = HOLD_S) -> None:
        """Have a host's jobs keep their slots for a while, by the loop's clock, which nobody can set."""
        self._cancel_hold(host)
        if self._leads and not self._closed:
            self._holds[host] = self._later(seconds, partial(self._release_slots, host))

    def _cancel_hold(self, host: str) -> None:
        if (timer := self._holds.pop(host, None)) is not None:
            timer.cancel()

    def _release_slots(self, host: str) -> None:
        del self._holds[host]
        again = partial(self._hold_slots, host, STORE_AGAIN_S)
        self._unattended(self._queue.given_up, (host, self._clock()), self.carry_out, again)

    def advance(self) -> None:
        """Let attempts that are due join their lanes, end jobs that missed their deadline, and set the timer for the
        next call."""

        def done(result: tuple[Outcome, datetime | None]) -> None:
            outcome, next_at = result
            self.carry_out(outcome)
            if next_at is not None:
                self._wake_at(next_at)
            if self._queue.is_shared:
                self._call_in(LOOK_EVERY_S)

        if self._leads and not self._closed:
            self._unattended(self._queue.tick, self._clock(), done)

    def carry_out(self, outcome: Outcome) -> None:
        """What the queue decided is stored: tell hosts and listeners."""
        if outcome.recorded:
            self._events.publish(JobsRecorded([_recorded(it) for it in outcome.recorded]))
        self._send(outcome.sent)
        for job in outcome.asked:
            self._send_now(self._unsent.pop(job.host, ()))  # an attempt comes before the request to end it
            self._agents.deliver(job.host, [Send((CommandCancel(wire_id(job), job.cancel_reason or "cancelled"),))])
        self.ended(outcome.ended)
        if outcome.wake_at is not None:
            self._wake_at(outcome.wake_at)
        if outcome.more:
            self._unattended(self._queue.look_again, (outcome.more, self._clock()), self.carry_out)

    def _send(self, jobs: Sequence[OpenRow]) -> None:
        """Send jobs that were given slots: where these are many, a piece in each turn of the event loop."""
        if rest := jobs[PIECE:]:
            if not self._unsent:
                self._later(0.0, self._send_more)
            for job in rest:
                self._unsent[job.host].append(job)
        self._send_now(jobs[:PIECE])

    def _send_more(self) -> None:
        if self._closed or not self._unsent:
            return
        host, jobs = self._unsent.popitem()
        if rest := jobs[PIECE:]:
            self._unsent[host] = rest
        if self._unsent:
            self._later(0.0, self._send_more)
        self._send_now(jobs[:PIECE])

    def _send_now(self, jobs: Sequence[OpenRow]) -> None:
        """Send jobs that were given slots; end those whose Schedule has gone and those that their hosts cannot run."""
        if not jobs:
            return
        kept: list[OpenRow] = []
        orphaned: list[OpenRow] = []
        commands = {job.id: _to_send(job) for job in jobs}
        for job in jobs:
            (kept if self._queue.has_schedule(job.host, commands[job.id]) else orphaned).append(job)
        now = self._clock()
        commands |= {job.id: self._queue.timed(job.host, commands[job.id], now) for job in kept}
        unsupported = self._unsupported((job.id, job.host, commands[job.id]) for job in kept)
        self.end([*(JobFinished(job.id, "cancelled", now, error=_NO_SCHEDULE) for job in orphaned), *unsupported])
        over = {end.job_id for end in unsupported}
        by_host: dict[str, list[Effect]] = defaultdict(list)
        for job in kept:
            if job.id not in over:
                self._note_sent([Attempt(job.id, wire_id(job), job.host, commands[job.id])])
                by_host[job.host].append(Send((commands[job.id],)))
        for host, sends in by_host.items():
            self._agents.deliver(host, sends)
        self._events.publish(JobsSent([job.id for job in kept if job.id not in over]))

    def _unsupported(self, jobs: Iterable[tuple[str, str, CommandRun]]) -> list[JobFinished]:
        """The ends of those jobs, each with its host, that their hosts cannot run or are not granted any more."""
        found = ((job_id, self._obstacle(host, command)) for job_id, host, command in jobs)
        return [JobFinished(job_id, "failed", self._clock(), error=error) for job_id, error in found if error]

    def _obstacle(self, host: str, command: CommandRun) -> str:
        """Why a host cannot run a command, or is not granted it any more, as text for users; empty if it can."""
        session = self._agents.session(host)
        why = "" if session is None else session.obstacle(command)
        return f"{why} of {host}" if why else self._repositories.withdrawn(host, command)

    def answer_lost(self) -> None:
        """A write failed. A database that was lost may have stored it all the same, so look soon at what it decided."""
        if not self._tells_again and not self._closed:
            self._tells_again = True
            self._later(STORE_AGAIN_S, self._tell_again)

    def _tell_again(self) -> None:
        self._tells_again = False
        store_unattended(self._submit, self._queue.to_tell, None, self._told_again, self.answer_lost)

    def _told_again(self, jobs: Sequence[OpenRow]) -> None:
        self.send_given(job for job in jobs if job.status == "pending")
        for job in jobs:
            if job.cancel_requested:
                self.ask_end(notices.EndAsked(job.host, wire_id(job), job.cancel_reason or "cancelled"))

    # What other servers decided.

    def tell(self, notice: notices.AnyNotice) -> None:
        """Tell the other servers, if there are any, what is stored nowhere."""
        if self._queue.is_shared:
            store_unattended(self._submit, self._queue.tell, (notice, self._clock()), lambda _: None, lambda: None)

    def send_given(self, jobs: Iterable[OpenRow]) -> None:
        """Send jobs that were given slots elsewhere, to hosts that are connected here; what they have already is left
        out."""
        unsent = {job.id for its in self._unsent.values() for job in its}
        self._send([job for job in jobs if job.id not in unsent and self._active.find(job.host, wire_id(job)) is None])

    def ask_end(self, asked: notices.EndAsked) -> None:
        """Ask a host, if it is connected here, to end an attempt."""
        self._send_now(self._unsent.pop(asked.host, ()))
        self._agents.deliver(asked.host, [Send((CommandCancel(asked.attempt, asked.why),))])

    def heard_end(self, ended: notices.Ended) -> None:
        """An attempt ended on another server."""
        end, host = ended.end, ended.host
        if (attempt := self._active.get(end.job_id)) is not None and attempt.number == ended.attempt:
            self._active.remove(end.job_id)
        event = AttemptEnded(
            end.job_id, host, ended.schedule_id, ended.kind, end, ended.final, ended.repository, ended.created_at
        )
        self._repositories.heard_end(event, ended.url)
        self._events.publish_heard(event)
        if (session := self._agents.session(host)) is not None and session.desired.drains:
            self._events.publish_heard(HostDraining(host))
        if ended.final and not ended.schedule_id:
            self._agents.deliver(host, ())

    def heard_arrival(self, host: str) -> None:
        """A host is connected to another server."""
        self._cancel_hold(host)

    def heard_left(self, host: str) -> None:
        """A host's connection to another server is gone."""
        if self._leads:
            self._hold_slots(host)  # what has no slots then loses none

    def server_gone(self, server: str) -> None:
        """A server has died, by its id in the store: its hosts are away. If that is not stored, it is tried again."""

        def gone(result: tuple[Outcome, list[str]]) -> None:
            outcome, hosts = result
            for host in hosts:
                self._hold_slots(host)
            self.carry_out(outcome)

        def again() -> None:
            if not self._closed:
                self._later(STORE_AGAIN_S, partial(self.server_gone, server))

        store_unattended(self._submit, self._queue.server_gone, (server, self._clock()), gone, again)

    # Time.

    def _wake_at(self, at: datetime) -> None:
        self._call_in(min(max((at - self._clock()).total_seconds(), 0.0), MAX_SLEEP_S))

    def _call_in(self, seconds: float) -> None:
        """Call `advance` after that time, unless an earlier call is set."""
        at = self._clock() + timedelta(seconds=seconds)
        if self._closed or not self._leads or (self._timer is not None and self._wakes_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = self._later(seconds, self._woken), at

    def _later(self, seconds: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        return (self._call_later or asyncio.get_running_loop().call_later)(seconds, do)

    def _woken(self) -> None:
        self._timer = None
        self.advance()

    # Its end.

    def cancel(self, job_ids: Collection[str], why: str, audit: AuditRow | None = None) -> "asyncio.Future[Outcome]":
        """Have jobs end: at once if they were not sent or their hosts are offline, or else by their hosts.

        Raises Unavailable.
        """
        future: asyncio.Future[Outcome] = self._submit(
            self._queue.cancel, Cancelling(job_ids, why, self._clock(), audit)
        )
        return then(future, self.carry_out, self.answer_lost)

    def resume(self, schedule_id: str, audit: AuditRow) -> "asyncio.Future[Outcome | None]":
        """Have a paused Schedule go on. The future's result is None if it is not paused. Raises Unavailable."""
        item = Resuming(schedule_id, self._clock(), audit)
        future: asyncio.Future[Outcome | None] = self._submit(self._queue.resume, item)

        def resumed(outcome: Outcome | None) -> None:
            if outcome is not None:
                self.carry_out(outcome)
                self._events.publish(ScheduleResumed(schedule_id))

        return then(future, resumed, self.answer_lost)

    def ending_host(self, host: str, error: str) -> Also:
        """The end of all open jobs of a host, to be stored with the host's deletion."""
        return Also(self._queue.end_host, (host, error, self._clock()), self.carry_out)

    def draining(self, hosts: Sequence[tuple[str, bool]]) -> Also:
        """Whether nothing new is to begin on these hosts, to be stored with the change that says so."""
        return Also(self._queue.drain, (hosts, self._clock()), self.carry_out)

    def agent_stops(self, host: str) -> "asyncio.Future[Outcome]":
        """An agent begins nothing more, as it is about to end. Raises Unavailable."""
        future: asyncio.Future[Outcome] = self._submit(self._queue.agent_stops, (host, self._clock()), host)

        def stored(outcome: Outcome) -> None:
            self.carry_out(outcome)
            self._events.publish(HostDraining(host))

        return then(future, stored, self.answer_lost)

    def end(self, ends: Sequence[JobFinished]) -> None:
        """Store the ends of jobs that do not run. If that fails, it is tried again."""
        if ends:
            again = partial(self._end_later, ends)
            self._unattended(self._queue.end, (ends, self._clock()), self.carry_out, again)

    def _end_later(self, ends: Sequence[JobFinished]) -> None:
        if not self._closed:
            self._later(STORE_AGAIN_S, partial(self.end, ends))

    def ended(self, ended: Iterable[tuple[OpenRow, JobFinished]]) -> None:
        """The ends of jobs are stored."""
        hosts: dict[str, None] = {}
        for job, end in ended:
            self._attempt_ended(job, end, final=True)
            if (session := self._agents.session(job.host)) is not None and session.desired.drains:
                self._events.publish(HostDraining(job.host))
            if job.scheduled_id is None:
                hosts[job.host] = None
        for host in hosts:
            self._agents.deliver(host, ())  # it needs the credentials of that job no more

    def retried(self, retried: Sequence[tuple[OpenRow, Retry]]) -> None:
        """Failed attempts are stored, with the times of the next ones."""
        for job, retry in retried:
            self._attempt_ended(job, retry.end, final=False)
        if retried:
            self._events.publish(JobsChanged([job.id for job, _ in retried]))
            self._wake_at(min(retry.not_before for _, retry in retried))

    def _attempt_ended(self, job: OpenRow, end: JobFinished, *, final: bool) -> None:
        command = _command.decode(job.command)
        repository = repository_of(command)
        schedule_id, created_at = job.scheduled_id or "", job.created_at
        event = AttemptEnded(job.id, job.host, schedule_id, command.kind, end, final, repository, created_at)
        self._active.remove(job.id)
        self._repositories.attempt_ended(event)
        self._events.publish(event)

    def _unattended(
        self,
        function: Callable[[Connection, Sequence[Any]], Sequence[Any]],
        item: object,
        follow: Callable[[Any], None],
        failed: Callable[[], None] = lambda: None,
        host: str = "",
    ) -> None:
        """Store something that nobody waits for. If that fails, the clock is looked at again soon."""

        def not_stored() -> None:
            failed()
            self.answer_lost()
            self._call_in(STORE_AGAIN_S)

        store_unattended(self._submit, function, item, follow, not_stored, host)


def _recorded(job: NewJob) -> RecordedJob:
    return RecordedJob(job.id, job.host, job.command.scheduled_at, job.missed, job.created_at)


def _to_send(job: OpenRow) -> CommandRun:
    """The command of a job's current attempt."""
    command = _command.decode(job.command)
    return command if job.attempt == 1 else msgspec.structs.replace(command, job_id=wire_id(job))


_NO_SCHEDULE = "its schedule was deleted, or does not select this host any more"
_command = msgspec.json.Decoder(CommandRun)
