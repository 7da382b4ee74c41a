"""A fleet in virtual time: the real cores of the server and of the agents, with links, disks and clocks that fail.

Everything that happens comes from one heap of events and one seed, so a seed always plays the same story. What a real
disk keeps over a kill, `Database` and `Agent.disk` keep; what a process holds is lost with it. Links keep order and may
delay, repeat a frame, or break, at which both sides learn of it at different times; what was on its way is lost.
"""

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from agent import core as agent_core
from agent.core import Core
from agent.memory import DiffApplied, Memory, Record, SetApplied, replay
from agent.timetable import CORRECTION
from server import host as server_host
from server import pushes
from server.desired import Fleet, Member, Target
from server.host import Host, NewJob, OpenJob
from server.pushes import Push
from tests.simulation.expected import Expected
from wire import entries
from wire.messages import CommandCancel, CommandRun, JobFinished, RepoCredentials, Repository, ScheduleAck

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

MONTHS = (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 10, 8, tzinfo=UTC))  # each holds daylight-saving changes
CALM = 2 * 60 * SECOND
"""How long after a fault is over a host has answered all that waited."""
CREDENTIALS = (RepoCredentials([Repository("repo", "default/repo", "/repo", "secret")]),)


@dataclass
class Row:
    """A job as the database holds it."""

    job: NewJob
    accepted: bool = False
    end: JobFinished | None = None


@dataclass
class Database:
    """What the server's disk keeps. Changes are whole or absent. `begun`: when each schedule's timing began."""

    targets: dict[str, Target] = field(default_factory=dict)
    begun: dict[str, datetime] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    acked: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, Row] = field(default_factory=dict)
    open: dict[str, dict[str, Row]] = field(default_factory=dict)
    due: dict[tuple[str, str, datetime | None], str] = field(default_factory=dict)

    def record(self, jobs: Sequence[NewJob]) -> set[str]:
        """Keep the jobs whose due time has none yet, and say which those are."""
        new = set()
        for job in jobs:
            command = job.command
            key = (job.host, command.schedule_id, command.scheduled_at)
            if self.due.setdefault(key, command.job_id) == command.job_id:
                self.jobs[command.job_id] = self.open[job.host][command.job_id] = Row(job)
                new.add(command.job_id)
        return new

    def accept(self, job_ids: Sequence[str]) -> None:
        """Keep that a host took these jobs."""
        for job_id in job_ids:
            if job_id in self.jobs:
                self.jobs[job_id].accepted = True

    def finish(self, ends: Sequence[JobFinished]) -> Sequence[JobFinished]:
        """Keep the first end of each job; all of them are known then."""
        for end in ends:
            if (row := self.jobs.get(end.job_id)) is not None and row.end is None:
                row.end = end
                del self.open[row.job.host][end.job_id]
        return ends


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
        self.memory = Memory()
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
            if pipe is not None and pipe.open and self.pipe is pipe and not self.skew and self.ill_since is not None:
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
        for message in messages:
            if self.core is not None:
                self.perform(self.core.received(message, self.clock))  # type: ignore[arg-type]

    # Time.

    def set_clock(self, skew: timedelta) -> None:
        """Somebody sets this host's clock; the agent looks at it within ten seconds."""
        if skew != self.skew:
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

    def perform(self, effects: Sequence[agent_core.Effect]) -> None:
        """Do what the core asks for, then set the timer to what it waits for."""
        world, life, core = self.world, self.life, self.core
        for effect in effects:
            match effect:
                case agent_core.Send(messages):
                    if isinstance(messages[0], ScheduleAck) and messages[0].version != self._kept_version():
                        world.wrongs.append(f"{self.name} acked version {messages[0].version} before it was on disk")
                    if isinstance(messages[0], JobFinished):
                        world.said.update({end.job_id: end.status for end in messages})
                    if self.pipe is not None:
                        self.pipe.to_server(messages)
                case agent_core.Persist(records, then):
                    self.disk.extend(records)
                    if then:
                        self._sync(then)
                case agent_core.Apply(push):
                    world.later(0.5, life, self, partial(self._apply, push))
                case agent_core.StartJob(command, repository):
                    self._run(command, repository)
                case agent_core.StopJob(job_id, status):
                    self._stopped[job_id] = status
                    world.later(1, life, self, partial(self._end, job_id, status))
        if core is not None and (wake_at := core.wake_at) != agent_core.NEVER:
            at = max(wake_at - self.skew, world.now)
            if self._alarm is None or at < self._alarm:
                self._alarm = at
                world.at(at, lambda: self.tick() if self.life == life and self._alarm == at else None)

    def _sync(self, then: Sequence[agent_core.Effect]) -> None:
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

    def _apply(self, push: agent_core.Push | None) -> None:
        assert self.core is not None
        result = agent_core.built(self.core.memory, push, self.name, self.clock)
        self.perform(self.core.applied(result, self.clock))

    def _run(self, command: CommandRun, repository: Repository | None) -> None:
        job_id = command.job_id
        self.world.ran(self.name, command)
        self._jobs[job_id] = command
        if (stopped := self._stopped.pop(job_id, None)) is not None:  # before it had begun
            within_s, status = 1, stopped
        else:
            within_s, status = 1200, "failed" if repository is None else "succeeded"
        self.world.later(within_s, self.life, self, partial(self._end, job_id, status))

    def _end(self, job_id: str, status: str) -> None:
        if self._jobs.pop(job_id, None) is not None and self.core is not None:
            end = JobFinished(job_id, status, self.clock)  # type: ignore[arg-type]
            self.perform(self.core.job_ended(end))


class Server:
    """The control plane's process: the cores of all hosts over a database that outlives it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.up = False
        self.life = 0
        self.fleet = Fleet()
        self.hosts: dict[str, Host] = {}
        self.pipes: dict[str, Pipe] = {}
        self._accepted: list[Pipe] = []
        self._sessions = 0

    # The process.

    def start(self) -> None:
        """The process begins with what the database says."""
        self.world.tell("server", "starts")
        db = self.world.db
        self.up = True
        self.fleet = Fleet()
        self.fleet.targets = dict(db.targets)
        for name, labels in db.labels.items():
            held = self.fleet.match(labels)
            self.fleet.members[name] = Member(labels, db.since[name], held)
            self.hosts[name] = Host(name, db.since[name], db.versions[name], held)

    def kill(self) -> None:
        """The process dies, wherever it is."""
        if not self.up:
            return
        self.world.tell("server", "is killed")
        self.up = False
        self.life += 1
        for pipe in self._accepted:
            pipe.cut()
        self._accepted, self.pipes, self.hosts = [], {}, {}
        self.world.later(300, self.life, self, self.start)

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
            self.hosts[name].lost(pipe.session)

    def receive(self, pipe: Pipe, messages: Sequence[object]) -> None:
        """A frame came."""
        if not self.up:
            return
        name = pipe.agent.name
        host = self.hosts[name]
        if isinstance(hello := messages[0], server_host.Hello):
            if host.session == pipe.session:
                return  # a repeated frame
            if (old := self.pipes.get(name)) is not None:
                old.cut()
            self.pipes[name] = pipe
            effects = host.hello(pipe.session, hello)
            pipe.to_agent(CREDENTIALS)
            self.perform(pipe, effects)
            self.perform(pipe, host.registered())
            self._store(lambda: self._resume(pipe, host, hello))
        elif not pipe.welcomed:
            pipe.unread.append(messages)  # nothing is read while the hello is being answered
        elif host.session == pipe.session:
            ids = [self.world.new_id() for _ in messages]
            framed = [(message, "") for message in messages]
            self.perform(pipe, host.received(framed, self.fleet.targets, self.world.now, ids))  # type: ignore[arg-type]

    def _resume(self, pipe: Pipe, host: Host, hello: server_host.Hello) -> None:
        """The open jobs are read in order with all writes; only then are further frames."""
        if self.pipes.get(host.name) is not pipe:
            return
        open_jobs = [OpenJob(row.job.command, row.accepted) for row in self.world.db.open[host.name].values()]
        self.perform(pipe, host.resumed(hello.running_jobs, open_jobs, self.world.now))
        pipe.welcomed = True
        for messages in pipe.unread:
            self.receive(pipe, messages)
        pipe.agent.recovers()

    def _store(self, commit: Callable[[], None]) -> None:
        """Commit something soon, in order; a kill before that loses it."""
        self.world.commit(self.life, lambda: commit() if self._survives() else None)

    def perform(self, pipe: Pipe, effects: Sequence[server_host.Effect]) -> None:
        """Do what a host's core asks for; the answer to what is stored comes after a commit that a kill may follow."""
        db, name = self.world.db, pipe.agent.name
        host = self.hosts[name]
        for effect in effects:
            match effect:
                case server_host.Send(messages):
                    pipe.to_agent(messages)
                case Push():
                    pipe.to_agent((pushes.message(effect),))
                case server_host.Record(jobs):
                    self._store(lambda jobs=jobs: self._answer(pipe, host.recorded(jobs, db.record(jobs))))
                case server_host.Finish(ends):
                    self._store(lambda ends=ends: self._answer(pipe, host.finished(db.finish(ends))))
                case server_host.Accepted(job_ids):
                    self._store(partial(db.accept, job_ids))
                case server_host.Acked(version, digest):
                    db.acked[name] = version, digest

    def _answer(self, pipe: Pipe, effects: Sequence[server_host.Effect]) -> None:
        """After a commit: say so, unless the process is killed just then."""
        if self._survives() and self.pipes.get(pipe.agent.name) is pipe:
            self.perform(pipe, effects)

    def _survives(self) -> bool:
        """Whether the process gets past this moment, right before or right after a commit."""
        if self.world.rng.random() < self.world.kills_at_commit:
            self.kill()
        return self.up

    # What people change.

    def put(self, target: Target, begun: datetime) -> None:
        """Create or replace a schedule."""
        self.world.db.begun[target.id] = begun
        self._change(put=(target,))

    def remove(self, schedule_id: str) -> None:
        """Delete a schedule."""
        self._change(remove=(schedule_id,))

    def relabel(self, name: str, labels: dict[str, str]) -> None:
        """Give a host other labels. It begins anew where that changes its set."""
        db, member = self.world.db, self.fleet.members[name]
        held = self.fleet.match(labels)
        db.labels[name] = labels
        if held != member.held:
            db.since[name] = self.world.now
        self.fleet.members[name] = Member(labels, db.since[name], held)
        if held != member.held:
            self._changed([name], relabelled=True)

    def cancel(self, job_id: str) -> None:
        """Have a job end as cancelled: by its host if that is online."""
        row = self.world.db.jobs[job_id]
        if (pipe := self.pipes.get(row.job.host)) is not None:
            pipe.to_agent((CommandCancel(job_id),))
        else:
            self.world.db.finish([JobFinished(job_id, "cancelled", self.world.now)])

    def _change(self, put: Sequence[Target] = (), remove: Sequence[str] = ()) -> None:
        db = self.world.db
        plan = self.fleet.plan(put, remove)
        db.targets.update({target.id: target for target in put})
        for schedule_id in remove:
            del db.targets[schedule_id]
        self.fleet.commit(plan)
        self._changed(list(plan.sets))

    def _changed(self, names: Sequence[str], *, relabelled: bool = False) -> None:
        world, db = self.world, self.world.db
        for name in names:
            db.versions[name] += 1
            member = self.fleet.members[name]
            targets = [db.targets[key] for key in member.held.items]
            world.expected.changed(world.by_name[name], targets, db.begun, world.now, relabelled=relabelled)
            effects = self.hosts[name].changed(db.versions[name], member.held, member.since)
            if (pipe := self.pipes.get(name)) is not None:
                self.perform(pipe, effects)
            world.at(world.now + CALM, partial(self._check_known, world.by_name[name], db.versions[name], world.now))

    def _check_known(self, agent: Agent, version: int, since: datetime) -> None:
        """A change has long reached a host that was well all the time."""
        if agent.was_well(since) and self.world.db.acked[agent.name][0] < version:
            self.world.wrongs.append(f"{agent.name} was online and has not heard of version {version} of {since}")


class World:
    """What all have in common: the time, the events to come, chance, the database, and what was seen to happen.

    `runs`: when each job of a due time really began; `said`: how its agent said that it ended; `wrongs`: what
    was seen to be wrong before the end. `listen` is told every line of the story; `trace` is their hash.
    """

    def __init__(self, seed: int, agents: int, listen: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now = self.begin = rng.choice(MONTHS)
        self.duplicates = rng.choice((0.0, 0.01, 0.05))
        self.kills_at_commit = rng.choice((0.0, 0.0005))
        self.runs: dict[tuple[str, str, datetime | None], list[datetime]] = {}
        self.said: dict[str, str] = {}
        self.wrongs: list[str] = []
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
        self.runs.setdefault((host, command.schedule_id, command.scheduled_at), []).append(self.now)
        self.tell(host, f"runs {command.schedule_id} due {command.scheduled_at} as {command.job_id}")
