"""A fleet in virtual time: the real cores of the server and of the agents, with links, disks and clocks that fail.

Everything that happens comes from one heap of events and one seed, so a seed always plays the same story. What a real
disk keeps over a kill, `Database` and `Agent.disk` keep; what a process holds is lost with it. Links keep order and may
delay, repeat a frame, or break, at which both sides learn of it at different times; what was on its way is lost.
"""

import hashlib
import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from agent.core import effects as agent_effects
from agent.core import pushes as agent_pushes
from agent.core.clock import TRUST
from agent.core.machine import Core
from agent.core.state import AgentState, DiffApplied, Record, SetApplied, replay
from agent.core.timetable import CORRECTION, NEVER
from server.access.vault import Vault
from server.agents import session as server_session
from server.agents.session import Session
from server.events import Events
from server.fleet import pushes
from server.fleet.catalog import Catalog
from server.fleet.placement import HostState, PlacedSchedule, Placement, Plan
from server.fleet.pushes import Push
from server.jobs.active import ActiveAttempts
from server.jobs.dispatcher import Dispatcher
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.queue import JobQueue, wire_id
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from tests.simulation.database import Database, Row
from tests.simulation.expected import Expected
from wire import entries
from wire.messages import (
    CommandRun,
    Hello,
    JobFinished,
    RepoCredentials,
    Repository,
    ScheduleAck,
    ScheduleRefused,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

MONTHS = (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 10, 8, tzinfo=UTC))  # each holds daylight-saving changes
CALM = 2 * 60 * SECOND
"""How long after a fault is over a host has answered all that waited."""
LIMITS = {
    "repo": ConcurrencyLimit(),
    "few": ConcurrencyLimit(limit=3),
    "one": ConcurrencyLimit(limit=1),
    "each": ConcurrencyLimit(limit=1, per_host=True),
}
"""The repositories, and how many jobs may use each of them."""
CREDENTIALS = (RepoCredentials([Repository(name, f"default/{name}", f"/{name}", "secret") for name in LIMITS]),)


class Stored:
    """What a store answers at once, and completes when it is committed: an asyncio.Future as `Dispatch` uses it."""

    def __init__(self) -> None:
        self._result: object = None
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it when this is done."""
        self._callbacks.append(callback)

    def done(self, result: object) -> None:
        """It is committed."""
        self._result = result
        for callback in self._callbacks:
            callback(self)

    def cancelled(self) -> bool:
        """Never: nobody waits."""
        return False

    def exception(self) -> None:
        """None: a disk that fails takes the process with it."""

    def result(self) -> object:
        """What the store answered."""
        return self._result


class Timer:
    """Something to come, which can be called off."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def cancel(self) -> None:
        """It is not to come."""
        self._do = None

    def ring(self) -> None:
        """It comes."""
        if self._do is not None:
            self._do()


class Pipe:
    """One connection between an agent and the server: two ordered streams."""

    def __init__(self, world: "World", agent: "Agent", session: int) -> None:
        self.world, self.agent, self.session = world, agent, session
        self.open = True
        self.welcomed = False
        self.unread: list[Sequence[object]] = []
        self._last = [world.now, world.now]

    def carry(self, side: int, deliver: Callable[[Sequence[object]], None], messages: Sequence[object]) -> None:
        """Deliver a frame at the other side (0: the server, 1: the agent), later, in order, sometimes twice."""
        if not self.open:
            return
        world = self.world
        rng = world.rng
        delay = rng.random() * 0.05 if rng.random() < 0.99 else rng.random() * 20
        for _ in range(2 if rng.random() < world.duplicates else 1):
            at = self._last[side] = max(self._last[side], world.now + timedelta(seconds=delay))
            world.at(at, lambda: deliver(messages) if self.open else None)

    def to_agent(self, messages: Sequence[object]) -> None:
        """Send the agent a frame."""
        self.carry(1, self.agent.receive, messages)

    def to_server(self, messages: Sequence[object]) -> None:
        """Send the server a frame."""
        self.carry(0, partial(self.world.server.receive, self), messages)

    def cut(self) -> None:
        """Break the connection; each side notices in its own time."""
        if not self.open:
            return
        self.open = False
        self.agent.ails()
        rng, world = self.world.rng, self.world
        world.at(world.now + rng.random() * 40 * SECOND, lambda: self.agent.lost(self))
        world.at(world.now + rng.random() * 40 * SECOND, lambda: world.server.lost(self))


class Agent:
    """One host: the agent's core, its disk, its clock, and the jobs that it runs.

    `ill_since`: when a fault began that it has not got over yet; `ills`: those that it has.
    """

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.disk: list[Record] = []
        self.synced = 0
        self.memory = AgentState()
        self.core: Core | None = None
        self.life = 0
        self.skew = timedelta()
        self.pipe: Pipe | None = None
        self.cut_off = False
        self.ill_since: datetime | None = world.now
        self.ills: list[tuple[datetime, datetime]] = []
        self.clock_set: list[datetime] = []
        self._jobs: dict[str, CommandRun] = {}
        self._stopped: dict[str, str] = {}
        self._alarm: datetime | None = None
        self._sync_at = world.now

    @property
    def clock(self) -> datetime:
        """What this host's clock shows."""
        return self.world.now + self.skew

    # The process.

    def start(self) -> None:
        """The process begins, and with it a journal that says no more than it must."""
        if self.core is not None:
            return
        self.world.tell(self.name, "agent starts")
        self.disk = list(self.memory.records())
        self.synced = len(self.disk)
        self.core = Core(self.name, self.memory)
        self.perform(self.core.started(self.clock))
        self.world.later(2, self.life, self, self.connect)

    def kill(self, *, power: bool) -> None:
        """The process dies; with the power goes what was not synced."""
        if self.core is None:
            return
        self.world.tell(self.name, "power fails" if power else "agent is killed")
        self.ails()
        for job_id in self._jobs:
            self.world.over(job_id)
        self.core, self._jobs, self._stopped, self._alarm = None, {}, {}, None
        self.life += 1
        if power:
            del self.disk[self.world.rng.randint(self.synced, len(self.disk)) :]
        self.memory = replay(self.disk)
        if self.pipe is not None:
            self.pipe.cut()
            self.pipe = None
        self.world.later(600, self.life, self, self.start)

    def holds(self, schedule_id: str, begun: datetime) -> bool:
        """Whether it knows of a schedule with that timing."""
        item = self.memory.entries.items.get(schedule_id)
        return item is not None and entries.parse_entry(item.raw).since == begun

    def ails(self) -> None:
        """A fault begins."""
        if self.ill_since is None:
            self.ill_since = self.world.now

    def was_ill(self, at: datetime) -> bool:
        """Whether it had a fault then, or so little before that its clock may have been beyond that time already."""
        ills = [*self.ills, (self.ill_since, self.world.now)] if self.ill_since is not None else self.ills
        return any(begin - CALM <= at <= end + CORRECTION for begin, end in ills)

    def was_well(self, since: datetime) -> bool:
        """Whether it has had no fault since then."""
        return self.ill_since is None and self.ills[-1][1] <= since

    def recovers(self) -> None:
        """It is connected, or its clock is right: if all that is so for a while, it is well."""
        pipe = self.pipe

        def well() -> None:
            right = not self.skew and not self.world.server.misleads
            if pipe is not None and pipe.open and self.pipe is pipe and right and self.ill_since is not None:
                self.ills.append((self.ill_since, self.world.now))
                self.ill_since = None

        self.world.at(self.world.now + CALM, well)

    # The connection.

    def connect(self) -> None:
        """Dial the server, and again a little later if nobody answers."""
        if self.core is None or self.pipe is not None:
            return
        if not self.world.server.up or self.cut_off:
            self.world.later(600, self.life, self, self.connect)
            return
        self.pipe = self.world.server.accept(self)
        self.perform(self.core.connection_made(self.clock))

    def lost(self, pipe: Pipe) -> None:
        """The connection broke."""
        if self.pipe is pipe and self.core is not None:
            self.pipe = None
            self.perform(self.core.connection_lost())
            self.world.later(10, self.life, self, self.connect)

    def receive(self, messages: Sequence[object]) -> None:
        """A frame came."""
        if self.core is not None:
            self.perform(self.core.frame_received(messages, self.clock))  # type: ignore[arg-type]

    # Time.

    def set_clock(self, skew: timedelta) -> None:
        """Somebody sets this host's clock; the agent looks at it every ten seconds, so also a moment before."""
        if skew != self.skew:
            if self.core is not None:
                self.perform(self.core.tick(self.clock))
            self.world.tell(self.name, f"clock is set {skew.total_seconds():+.0f} s off")
            self.clock_set.append(self.world.now)
        self.skew = skew
        self.ails()
        self._alarm = None
        self.world.later(10, self.life, self, self.tick)
        self.world.at(self.world.now + 11 * SECOND, self.recovers)

    def tick(self) -> None:
        """The timer rings."""
        self._alarm = None
        if self.core is not None:
            self.perform(self.core.tick(self.clock))

    # What the core asks for.

    def perform(self, effects: Sequence[agent_effects.Effect]) -> None:
        """Do what the core asks for, then set the timer to what it waits for."""
        world, life, core = self.world, self.life, self.core
        for effect in effects:
            match effect:
                case agent_effects.Send(messages):
                    if isinstance(messages[0], ScheduleAck) and messages[0].version != self._kept_version():
                        world.wrongs.append(f"{self.name} acked version {messages[0].version} before it was on disk")
                    if isinstance(messages[0], JobFinished):
                        world.said.update({it.job_id: it.status for it in messages if isinstance(it, JobFinished)})
                    if self.pipe is not None:
                        self.pipe.to_server(messages)
                case agent_effects.Persist(records, then):
                    self.disk.extend(records)
                    if then:
                        self._sync(then)
                case agent_effects.Apply(push):
                    world.later(0.5, life, self, partial(self._apply, push))
                case agent_effects.StartJob(command, repository):
                    self._run(command, repository)
                case agent_effects.StopJob(job_id, status):
                    self._stopped[job_id] = status
                    world.later(1, life, self, partial(self._end, job_id, status))
        if core is not None and (wake_at := core.wake_at) != NEVER:
            at = max(wake_at - self.skew, world.now)
            if self._alarm is None or at < self._alarm:
                self._alarm = at
                world.at(at, lambda: self.tick() if self.life == life and self._alarm == at else None)

    def _sync(self, then: Sequence[agent_effects.Effect]) -> None:
        """Have the disk keep what was written so far, in order, and go on once it does."""
        world, life, size = self.world, self.life, len(self.disk)

        def synced() -> None:
            if self.life == life:
                self.synced = size
                self.perform(then)

        self._sync_at = max(self._sync_at, world.now + timedelta(seconds=0.02 * world.rng.random()))
        world.at(self._sync_at, synced)

    def _kept_version(self) -> int:
        """The version of the set that a power failure would leave."""
        kept = (self.disk[at] for at in reversed(range(self.synced)))
        return next((record.push.version for record in kept if isinstance(record, SetApplied | DiffApplied)), 0)

    def _apply(self, push: agent_effects.Push | None) -> None:
        assert self.core is not None
        result = agent_pushes.build(self.core.state, push, self.name, self.clock)
        self.perform(self.core.applied(result, self.clock))

    def _run(self, command: CommandRun, repository: Repository | None) -> None:
        job_id = command.job_id
        self.world.ran(self.name, command)
        self._jobs[job_id] = command
        rng = self.world.rng
        if (stopped := self._stopped.pop(job_id, None)) is not None:  # before it had begun
            within_s, status = 1, stopped
        else:
            fails = repository is None or rng.random() < 0.1
            within_s, status = 1200, rng.choice(("failed", "timed_out")) if fails else "succeeded"
        self.world.later(within_s, self.life, self, partial(self._end, job_id, status))

    def _end(self, job_id: str, status: str) -> None:
        if self._jobs.pop(job_id, None) is not None and self.core is not None:
            self.world.over(job_id)
            end = JobFinished(job_id, status, self.clock)  # type: ignore[arg-type]
            self.perform(self.core.job_ended(end))


class Server:
    """The control plane's process: the cores of all hosts over a database that outlives it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.skew = self._behind = timedelta()
        self._believed_until = world.now
        self.up = False
        self.life = 0
        self.placement = Placement()
        self.queue, self.dispatcher, self.reports = self._new_jobs()
        self.sessions: dict[str, Session] = {}
        self.pipes: dict[str, Pipe] = {}
        self._accepted: list[Pipe] = []
        self._sessions = 0

    @property
    def clock(self) -> datetime:
        """What its clock shows."""
        return self.world.now + self.skew

    @property
    def misleads(self) -> bool:
        """Whether its clock is wrong, or was so little ago that agents may still go by it."""
        return bool(self.skew) or self.world.now < self._believed_until

    @property
    def behind(self) -> timedelta:
        """How far agents may go by a time that is behind, as a time difference of nought or less."""
        return self._behind if self.misleads else timedelta()

    def set_clock(self, skew: timedelta) -> None:
        """Somebody sets its clock."""
        if skew == self.skew:
            return
        world = self.world
        world.tell("server", f"clock is set {skew.total_seconds():+.0f} s off")
        self._behind = min(skew, self.behind)
        self.skew, self._believed_until = skew, world.now + TRUST + SECOND
        for agent in world.agents:
            agent.clock_set.append(world.now)
            agent.ails()
            world.at(self._believed_until, agent.recovers)

    # The process.

    def start(self) -> None:
        """The process begins with what the database says."""
        self.world.tell("server", "starts")
        db = self.world.db
        self.up = True
        self.placement = Placement()
        self.placement.put(db.schedules.values())
        for name, labels in db.labels.items():
            held = self.placement.match(labels)
            self.placement.commit(Plan(put_hosts=[HostState(name, labels, db.since[name], db.versions[name], held)]))
            self.sessions[name] = Session(self.placement.hosts[name])
        db.know(db.labels)
        self.queue, self.dispatcher, self.reports = self._new_jobs()
        self.dispatcher.begin()

    def _new_jobs(self) -> tuple[JobQueue, Dispatcher, Reports]:
        events, active = Events(), ActiveAttempts()
        queue = JobQueue("server", lambda name: LIMITS.get(name, ConcurrencyLimit()), self.placement.schedule_of)
        repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), self.placement, events)
        submit: Any = self._submit
        call_later: Any = self._call_later
        clock = lambda: self.clock  # noqa: E731
        dispatcher = Dispatcher(submit, queue, active, self, repositories, events, clock, call_later)
        reports = Reports(submit, queue, active, self.placement, repositories, dispatcher, events, clock)
        return queue, dispatcher, reports

    def session(self, host: str) -> Session | None:
        """The session of a host."""
        return self.sessions.get(host)

    def _call_later(self, seconds: float, do: Callable[[], None]) -> Timer:
        timer, life = Timer(do), self.life
        self.world.at(self.world.now + seconds * SECOND, lambda: timer.ring() if self.life == life else None)
        return timer

    def is_connected_here(self, host: str) -> bool:
        """Whether a host can be written to."""
        return host in self.pipes

    def deliver(self, name: str, effects: Sequence[server_session.Effect]) -> None:
        """Write to a host that is online."""
        if (pipe := self.pipes.get(name)) is not None:
            self.perform(pipe, effects)

    def kill(self) -> None:
        """The process dies, wherever it is."""
        if not self.up:
            return
        self.world.tell("server", "is killed")
        self.up = False
        self.life += 1
        for pipe in self._accepted:
            pipe.cut()
        self._accepted, self.pipes, self.sessions = [], {}, {}
        self.world.later(300, self.life, self, self.start)

    def copied(self) -> tuple[Database, dict[str, str]]:
        """A copy of the database, and the digest of what each host should hold by it."""
        return self.world.db.copy(), {name: state.entries.digest for name, state in self.placement.hosts.items()}

    def put_back(self, copy: Database, digests: Mapping[str, str]) -> None:
        """The process ends, and begins anew with an older database, in which what is declared now is declared again."""
        self.kill()
        world, db = self.world, self.world.db
        world.tell("server", "gets an older database")
        world.put_back.append(world.now)
        for key, row in db.jobs.items():
            if key not in copy.jobs:
                world.lost[key] = replace(row, ended_at=row.ended_at or world.now)
        db.put_back(copy)
        for name, version in copy.versions.items():
            db.versions[name] = version + (digests[name] != self.placement.hosts[name].entries.digest)

    # Connections.

    def accept(self, agent: Agent) -> Pipe:
        """A connection comes in; its hello follows on it."""
        self._sessions += 1
        pipe = Pipe(self.world, agent, self._sessions)
        self._accepted = [*(it for it in self._accepted if it.open), pipe]
        return pipe

    def lost(self, pipe: Pipe) -> None:
        """A connection broke."""
        name = pipe.agent.name
        if self.pipes.get(name) is pipe:
            del self.pipes[name]
            self.sessions[name].disconnected(pipe.session)
            self.dispatcher.disconnected(name)

    def receive(self, pipe: Pipe, messages: Sequence[object]) -> None:
        """A frame came."""
        if not self.up:
            return
        name = pipe.agent.name
        session = self.sessions[name]
        if isinstance(hello := messages[0], Hello):
            if session.session == pipe.session:
                return  # a repeated frame
            if (old := self.pipes.get(name)) is not None:
                old.cut()
                self.dispatcher.disconnected(name)
            self.pipes[name] = pipe
            effects = session.hello(pipe.session, hello)
            pipe.to_agent(CREDENTIALS)
            self.perform(pipe, effects)
            self.perform(pipe, session.registered())
            self._submit(None, None).add_done_callback(lambda _: self._resume(pipe, session, hello))
        elif not pipe.welcomed:
            pipe.unread.append(messages)  # nothing is read while the hello is being answered
        elif session.session == pipe.session:
            framed = [(message, self.world.new_id()) for message in messages]
            self.world.expected.fired(name, messages)
            self.perform(pipe, session.received(framed, self.clock))  # type: ignore[arg-type]

    def _resume(self, pipe: Pipe, session: Session, hello: Hello) -> None:
        """The open jobs are read in order with all writes; only then are further frames."""
        if self.pipes.get(session.name) is not pipe:
            return
        running = set(hello.running_jobs)
        rows = self.world.db.open_jobs(session.name)
        effects = self.reports.resume(session, running, rows)
        effects += self.reports.resume_unknown(session, running.difference(map(wire_id, rows)))
        stored = self.perform(pipe, effects)

        def arrived(_: object = None) -> None:
            if self.pipes.get(session.name) is pipe:
                self.dispatcher.connected(session.name, running).add_done_callback(welcomed)

        def welcomed(_: object) -> None:
            if self.pipes.get(session.name) is not pipe:
                return
            pipe.welcomed = True
            for messages in pipe.unread:
                self.receive(pipe, messages)
            pipe.agent.recovers()

        if stored is None:
            arrived()
        else:
            stored.add_done_callback(arrived)

    def _submit(self, function: Any, item: Any) -> Stored:
        """Commit something soon, in order; a kill right before loses it, and one right after the answer."""
        world, stored = self.world, Stored()

        def commit() -> None:
            if self._survives():
                result = world.db.perform(function, item, world.now) if function is not None else None
                if self._survives():
                    stored.done(result)

        world.commit(self.life, commit)
        return stored

    def perform(self, pipe: Pipe, effects: Sequence[server_session.Effect]) -> Stored | None:
        """Do what a host's core asks for. Answers the last that is being stored, if anything is."""
        name, reports = pipe.agent.name, self.reports
        stored: list[Any] = []
        for effect in effects:
            match effect:
                case server_session.Send(messages):
                    self.world.refused(name, messages)
                    pipe.to_agent(messages)
                case Push():
                    pipe.to_agent((pushes.message(effect),))
                case server_session.Fired(fires):  # here the ids of their envelopes are those of their jobs
                    ids = [new_id for _, new_id in fires]
                    refuse = partial(self._refuse, pipe)
                    stored += reports.fire(self.sessions[name], fires, ids, self.world.now, refuse)
                case server_session.Ended(ends):
                    stored.append(reports.finish(name, ends))
                    stored[-1].add_done_callback(partial(self._confirm, pipe, ends))
                case server_session.Accepted(job_ids):
                    stored.append(reports.accept(name, job_ids))
                case server_session.Acked(version, digest):
                    self.world.db.acked[name] = version, digest
        return stored[-1] if stored else None

    def _refuse(self, pipe: Pipe, refusals: server_session.Send) -> None:
        self.perform(pipe, [refusals])

    def _confirm(self, pipe: Pipe, ends: Sequence[JobFinished], _: object = None) -> None:
        if self.pipes.get(pipe.agent.name) is pipe:
            self.perform(pipe, self.sessions[pipe.agent.name].finished(ends))

    def _survives(self) -> bool:
        """Whether the process gets past this moment, right before or right after a commit."""
        if self.world.rng.random() < self.world.kills_at_commit:
            self.kill()
        return self.up

    # What people change.

    def put(self, schedule: PlacedSchedule, begun: datetime) -> None:
        """Create or replace a schedule."""
        self.world.db.begun[schedule.id] = begun
        self._change(put=(schedule,))

    def remove(self, schedule_id: str) -> None:
        """Delete a schedule."""
        self._change(remove=(schedule_id,))

    def relabel(self, name: str, labels: dict[str, str]) -> None:
        """Give a host other labels. It begins anew where that changes its set."""
        db = self.world.db
        plan = self.placement.plan_host(name, labels, self.clock)
        moved = bool(self.placement.desired(plan))
        self.placement.commit(plan)
        db.labels[name], db.since[name] = labels, self.placement.hosts[name].since
        if moved:
            self._changed([name], relabelled=True)

    def cancel(self, job_id: str) -> None:
        """Have a job end as cancelled: by its host if that is online."""
        self.dispatcher.cancel([job_id], "cancelled")

    def _change(self, put: Sequence[PlacedSchedule] = (), remove: Sequence[str] = ()) -> None:
        db = self.world.db
        plan = self.placement.plan(put, remove)
        db.schedules.update({schedule.id: schedule for schedule in put})
        for schedule_id in remove:
            del db.schedules[schedule_id]
        self.placement.commit(plan)
        self._changed(list(plan.sets))

    def _changed(self, names: Sequence[str], *, relabelled: bool = False) -> None:
        world, db = self.world, self.world.db
        for name in names:
            db.versions[name] += 1
            state = self.placement.hosts[name]
            schedules = [db.schedules[key] for key in state.entries.items]
            world.expected.changed(
                world.by_name[name], schedules, db.begun, state.since, world.now, self.behind, relabelled=relabelled
            )
            effects = self.sessions[name].desired_changed()
            if (pipe := self.pipes.get(name)) is not None:
                self.perform(pipe, effects)
            world.at(world.now + CALM, partial(self._check_known, world.by_name[name], db.versions[name], world.now))

    def _check_known(self, agent: Agent, version: int, since: datetime) -> None:
        """A change has long reached a host that was well all the time."""
        if agent.was_well(since) and self.world.db.acked[agent.name][0] < version:
            self.world.wrongs.append(f"{agent.name} was online and has not heard of version {version} of {since}")


@dataclass
class Use:
    """An attempt of a job that really used a repository, from its begin to its end."""

    host: str
    command: CommandRun
    begin: datetime
    end: datetime | None = None


class World:
    """What all have in common: the time, the events to come, chance, the database, and what was seen to happen.

    `runs`: when each attempt of a due time's job really began; `uses`: for how long, by its job's id; `said`: how
    its agent said that it ended; `wrongs`: what was seen to be wrong before the end. `listen` is told every line of
    the story; `trace` is their hash.
    """

    def __init__(self, seed: int, agents: int, listen: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now = self.begin = rng.choice(MONTHS)
        self.duplicates = rng.choice((0.0, 0.01, 0.05))
        self.kills_at_commit = rng.choice((0.0, 0.0005))
        self.runs: dict[tuple[str, str, datetime | None, str], list[datetime]] = {}
        self.uses: dict[str, Use] = {}
        self.said: dict[str, str] = {}
        self.wrongs: list[str] = []
        self.put_back: list[datetime] = []
        self.lost: dict[str, Row] = {}
        self.trace = hashlib.sha256()
        self._listen = listen
        self._heap: list[tuple[datetime, int, Callable[[], None]]] = []
        self._sequence = 0
        self._commit_at = self.now
        self.expected = Expected()
        self.db = Database()
        self.server = Server(self)
        self.agents = [Agent(self, f"host-{number}") for number in range(agents)]
        self.by_name = {agent.name: agent for agent in self.agents}

    def at(self, when: datetime, do: Callable[[], None]) -> None:
        """Do something at a time."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, do))

    def later(self, within_s: float, life: int, process: Agent | Server, do: Callable[[], None]) -> None:
        """Do something within so many seconds, if that process still lives then."""
        when = self.now + timedelta(seconds=self.rng.random() * within_s)
        self.at(when, lambda: do() if process.life == life else None)

    def commit(self, life: int, do: Callable[[], None]) -> None:
        """Do something in the order of commits."""
        self._commit_at = max(self._commit_at, self.now + timedelta(seconds=self.rng.random() * 0.02))
        self.at(self._commit_at, lambda: do() if self.server.life == life else None)

    def run_until(self, end: datetime) -> None:
        """Let the story go on to that time."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, do = pop(heap)
            do()
        self.now = end

    def new_id(self) -> str:
        """An id that no other thing of this story has."""
        self._sequence += 1
        return f"id-{self._sequence}"

    def tell(self, who: str, what: str) -> None:
        """Something happened that a reader of the story wants to know."""
        line = f"{self.now:%m-%d %H:%M:%S.%f} {who}: {what}"
        self.trace.update(line.encode())
        if self._listen is not None:
            self._listen(line)

    def ran(self, host: str, command: CommandRun) -> None:
        """A job really began on a host."""
        attempt = command.job_id.partition(".")[2]
        self.runs.setdefault((host, command.schedule_id, command.scheduled_at, attempt), []).append(self.now)
        self.uses[command.job_id] = Use(host, command, self.now)
        self.tell(host, f"runs {command.schedule_id} due {command.scheduled_at} as {command.job_id}")

    def over(self, job_id: str) -> None:
        """An attempt of a job uses its repository no more."""
        self.uses[job_id].end = self.now

    def refused(self, host: str, messages: Sequence[object]) -> None:
        """A host was told why there is no command for its fires."""
        for message in messages:
            if isinstance(message, ScheduleRefused) and message.reason == "Concurrent":
                runs = [row for row in self.db.open[host].values() if row.scheduled_id == message.schedule_id]
                self.expected.excuse(host, message.schedule_id, message.scheduled_at, by=[row.job.id for row in runs])
                self.tell(host, f"{message.schedule_id} due {message.scheduled_at} is refused: the last is not over")
