"""A fleet in virtual time: the real cores of the server and of the agents, with links, disks and clocks that fail.

Everything that happens comes from one heap of events and one seed, so a seed always plays the same story. What a real
disk keeps over a kill, `Database` and `Agent.disk` keep; what a process holds is lost with it. Links keep order and may
delay, repeat a frame, or break, at which both sides learn of it at different times; what was on its way is lost.
"""

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from agent import core as agent_core
from agent.core import Core
from agent.memory import Record, replay
from server import host as server_host
from server import pushes
from server.desired import Fleet, Member, Target, entry_item
from server.host import Host, NewJob, OpenJob
from server.pushes import Push
from server.resources import schedule_spec
from wire.messages import CommandRun, JobFinished, RepoCredentials, Repository

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
CRONS = (*["{m} {h} * * *"] * 4, "30 2 * * *", "{m} {h} * * 1,4", "{m} {h} 1,15 * *", "{m} */6 * * *", "@weekly")
MONTHS = (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 10, 8, tzinfo=UTC))  # each holds a daylight-saving change


class BrokenPromiseError(AssertionError):
    """A promise of the project did not hold; the message says which, where, and the seed that plays it again."""


@dataclass
class Row:
    """A job as the database holds it."""

    job: NewJob
    accepted: bool = False
    end: JobFinished | None = None


@dataclass
class Database:
    """What the server's disk keeps. Changes are whole or absent."""

    targets: dict[str, Target] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    acked: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, Row] = field(default_factory=dict)
    due: dict[tuple[str, str, datetime], str] = field(default_factory=dict)

    def record(self, jobs: Sequence[NewJob]) -> set[str]:
        """Keep the jobs whose due time has none yet, and say which those are."""
        new = set()
        for job in jobs:
            command = job.command
            assert command.scheduled_at is not None
            if (
                self.due.setdefault((job.host, command.schedule_id, command.scheduled_at), command.job_id)
                == command.job_id
            ):
                self.jobs[command.job_id] = Row(job)
                new.add(command.job_id)
        return new


class Pipe:
    """One connection between an agent and the server: two ordered streams."""

    def __init__(self, world: "World", agent: "Agent", session: int) -> None:
        self.world, self.agent, self.session = world, agent, session
        self.open = True
        self._last = [world.now, world.now]

    def carry(self, side: int, deliver: Callable[[], None]) -> None:
        """Deliver something at the other side (0: the server, 1: the agent), later, in order, sometimes twice."""
        if not self.open:
            return
        rng = self.world.rng
        delay = rng.random() * 0.05 if rng.random() < 0.99 else rng.random() * 20
        for _ in range(2 if rng.random() < self.world.duplicates else 1):
            at = self._last[side] = max(self._last[side], self.world.now + delay * SECOND)
            self.world.at(at, lambda: deliver() if self.open else None)

    def cut(self) -> None:
        """Break the connection; each side notices in its own time."""
        if not self.open:
            return
        self.open = False
        rng, world = self.world.rng, self.world
        world.at(world.now + rng.random() * 40 * SECOND, lambda: self.agent.lost(self))
        world.at(world.now + rng.random() * 40 * SECOND, lambda: world.server.lost(self))


class Agent:
    """One host: the agent's core, its disk, its clock, and the jobs that it runs."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.disk: list[Record] = []
        self.synced = 0
        self.core: Core | None = None
        self.life = 0
        self.skew = timedelta()
        self.pipe: Pipe | None = None
        self._jobs: dict[str, CommandRun] = {}
        self._stopped: set[str] = set()
        self._alarm: datetime | None = None

    @property
    def clock(self) -> datetime:
        """What this host's clock shows."""
        return self.world.now + self.skew

    def start(self) -> None:
        """The process begins."""
        if self.core is not None:
            return
        self.core = Core(self.name, replay(self.disk))
        self.perform(self.core.started(self.clock))
        self.world.later(2, self.life, self, self.connect)

    def kill(self, *, power: bool) -> None:
        """The process dies; with the power goes what was not synced."""
        if self.core is None:
            return
        self.core, self._jobs, self._alarm = None, {}, None
        self.life += 1
        if power:
            del self.disk[self.world.rng.randint(self.synced, len(self.disk)) :]
        if self.pipe is not None:
            self.pipe.cut()
            self.pipe = None
        self.world.later(600, self.life, self, self.start)

    def connect(self) -> None:
        """Dial the server, and again a little later if nobody answers."""
        if self.core is None or self.pipe is not None:
            return
        if not self.world.server.up or self.name in self.world.cut_off:
            self.world.later(60, self.life, self, self.connect)
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

    def set_clock(self, skew: timedelta) -> None:
        """Somebody sets this host's clock; the agent looks at it within ten seconds."""
        self.skew = skew
        self._alarm = None
        self.world.later(10, self.life, self, self.tick)

    def tick(self) -> None:
        """The timer rings."""
        self._alarm = None
        if self.core is not None:
            self.perform(self.core.tick(self.clock))

    def perform(self, effects: Sequence[agent_core.Effect]) -> None:
        """Do what the core asks for."""
        world, life = self.world, self.life
        for effect in effects:
            match effect:
                case agent_core.Send(messages):
                    if (pipe := self.pipe) is not None:
                        pipe.carry(0, lambda pipe=pipe, messages=messages: world.server.receive(pipe, messages))
                case agent_core.Persist(records, then):
                    self.disk.extend(records)
                    if then:
                        world.later(0.02, life, self, partial(self._synced, len(self.disk), then))
                case agent_core.Apply(push):
                    world.later(0.5, life, self, lambda push=push: self._apply(push))
                case agent_core.StartJob(command, repository):
                    self._run(command, repository)
                case agent_core.StopJob(job_id, status):
                    self._stopped.add(job_id)
                    world.later(1, life, self, lambda job_id=job_id, status=status: self._end(job_id, status))
        if self.core is not None and self.core.wake_at != agent_core.NEVER:
            at = max(self.core.wake_at - self.skew, world.now)
            if self._alarm is None or at < self._alarm:
                self._alarm = at
                world.at(at, lambda: self.tick() if self.life == life and self._alarm == at else None)

    def _synced(self, size: int, then: Sequence[agent_core.Effect]) -> None:
        self.synced = max(self.synced, size)
        self.perform(then)

    def _apply(self, push: agent_core.Push | None) -> None:
        assert self.core is not None
        result = agent_core.built(self.core.memory, push, self.name, self.clock)
        self.perform(self.core.applied(result, self.clock))

    def _run(self, command: CommandRun, repository: Repository | None) -> None:
        self.world.ran(self.name, command)
        self._jobs[command.job_id] = command
        status = "failed" if repository is None else "succeeded"
        job_id = command.job_id
        self.world.later(self.world.rng.random() * 1200, self.life, self, lambda: self._end(job_id, status))

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
        self._sessions = 0

    def start(self) -> None:
        """The process begins with what the database says."""
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
        self.up = False
        self.life += 1
        for pipe in self.pipes.values():
            pipe.cut()
        self.pipes, self.hosts = {}, {}
        self.world.later(300, self.life, self, self.start)

    def accept(self, agent: Agent) -> Pipe:
        """A connection comes in; its hello follows on it."""
        self._sessions += 1
        return Pipe(self.world, agent, self._sessions)

    def lost(self, pipe: Pipe) -> None:
        """A connection broke."""
        name = pipe.agent.name
        if self.pipes.get(name) is pipe:
            del self.pipes[name]
            if name in self.hosts:
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
            host.lost(host.session or 0)
            self.pipes[name], host.session = pipe, pipe.session
            self.store(lambda: self._welcome(pipe, host, hello))
        elif host.session == pipe.session:
            ids = [self.world.new_id() for _ in messages]
            framed = [(message, "") for message in messages]
            self.perform(pipe, host.received(framed, self.fleet.targets, self.world.now, ids))  # type: ignore[arg-type]

    def _welcome(self, pipe: Pipe, host: Host, hello: server_host.Hello) -> None:
        """The open jobs are read in order with all writes; then the first push, then the connection counts."""
        if self.pipes.get(host.name) is not pipe:
            return
        rows = [row for row in self.world.db.jobs.values() if row.job.host == host.name and row.end is None]
        open_jobs = [OpenJob(row.job.command, row.accepted) for row in rows]
        credentials = RepoCredentials([Repository("repo", "default/repo", "/repo", "secret")])
        pipe.carry(1, lambda: pipe.agent.receive((credentials,)))
        self.perform(pipe, host.hello(pipe.session, hello))
        self.perform(pipe, host.registered())
        self.perform(pipe, host.resumed(hello.running_jobs, open_jobs, self.world.now))

    def store(self, commit: Callable[[], None]) -> None:
        """Commit something soon, in order; a kill before that loses it."""
        self.world.commit(self.life, commit)

    def perform(self, pipe: Pipe, effects: Sequence[server_host.Effect]) -> None:
        """Do what a host's core asks for; the answer to what is stored comes after a commit that a kill may follow."""
        db, host = self.world.db, self.hosts.get(pipe.agent.name)
        for effect in effects:
            match effect:
                case server_host.Send(messages):
                    pipe.carry(1, lambda messages=messages: pipe.agent.receive(messages))
                case Push():
                    pipe.carry(1, lambda effect=effect: pipe.agent.receive((pushes.message(effect),)))
                case server_host.Record(jobs):
                    self.store(lambda jobs=jobs: self._then(pipe, host, "recorded", jobs, db.record(jobs)))
                case server_host.Finish(ends):
                    self.store(lambda ends=ends: self._finish(pipe, host, ends))
                case server_host.Accepted(job_ids):
                    self.store(lambda job_ids=job_ids: self._accept(job_ids))
                case server_host.Acked(version, digest):
                    db.acked[pipe.agent.name] = version, digest

    def _accept(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            if job_id in self.world.db.jobs:
                self.world.db.jobs[job_id].accepted = True

    def _finish(self, pipe: Pipe, host: Host | None, ends: Sequence[JobFinished]) -> None:
        for end in ends:
            row = self.world.db.jobs.get(end.job_id)
            if row is not None and row.end is None:
                row.end = end
        self._then(pipe, host, "finished", ends)

    def _then(self, pipe: Pipe, host: Host | None, method: str, *args: object) -> None:
        """After a commit: say so, unless the process is killed just then."""
        if self.world.rng.random() < self.world.kills_after_commit:
            self.kill()
        elif self.up and host is not None and self.pipes.get(host.name) is pipe:
            self.perform(pipe, getattr(host, method)(*args))

    # What people change.

    def put(self, target: Target) -> None:
        """Create or replace a schedule."""
        self._change(put=(target,))

    def remove(self, schedule_id: str) -> None:
        """Delete a schedule."""
        self._change(remove=(schedule_id,))

    def relabel(self, name: str, labels: dict[str, str]) -> None:
        """Give a host other labels."""
        db = self.world.db
        held = self.fleet.match(labels)
        changed = held != self.fleet.members[name].held
        db.labels[name], db.since[name] = labels, self.world.now
        self.fleet.members[name] = Member(labels, self.world.now, held)
        self._changed([name] if changed else [])

    def _change(self, put: Sequence[Target] = (), remove: Sequence[str] = ()) -> None:
        db = self.world.db
        plan = self.fleet.plan(put, remove)
        for target in put:
            db.targets[target.id] = target
        for schedule_id in remove:
            db.targets.pop(schedule_id, None)
        self.fleet.commit(plan)
        self._changed(list(plan.sets))

    def _changed(self, names: Sequence[str]) -> None:
        db = self.world.db
        for name in names:
            db.versions[name] += 1
            member = self.fleet.members[name]
            effects = self.hosts[name].changed(db.versions[name], member.held, member.since)
            if (pipe := self.pipes.get(name)) is not None:
                self.perform(pipe, effects)


class World:
    """One story from one seed."""

    def __init__(self, seed: int, agents: int = 50, schedules: int = 200) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now = self.begin = rng.choice(MONTHS)
        self.duplicates = rng.choice((0.0, 0.01, 0.05))
        self.kills_after_commit = rng.choice((0.0, 0.0005))
        self.cut_off: set[str] = set()
        self.runs: Counter[tuple[str, str, datetime]] = Counter()
        self.trace = hashlib.sha256()
        self._heap: list[tuple[datetime, int, Callable[[], None]]] = []
        self._sequence = 0
        self._commit_at = self.now
        self.db = Database()
        self.server = Server(self)
        self.agents = [Agent(self, f"host-{number}") for number in range(agents)]
        for agent in self.agents:
            self.db.labels[agent.name] = self.some_labels()
            self.db.since[agent.name] = self.now
            self.db.versions[agent.name] = 0
        self.server.start()
        self.groups = schedules
        for _ in range(schedules):
            self.server.put(self.some_schedule())
        for agent in self.agents:
            self.at(self.now + rng.random() * HOUR, agent.start)

    # The machinery.

    def at(self, when: datetime, do: Callable[[], None]) -> None:
        """Do something at a time."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, do))

    def later(self, within_s: float, life: int, process: "Agent | Server", do: Callable[[], None]) -> None:
        """Do something within so many seconds, if that process still lives then."""
        when = self.now + self.rng.random() * within_s * SECOND
        self.at(when, lambda: do() if process.life == life else None)

    def commit(self, life: int, do: Callable[[], None]) -> None:
        """Do something in the order of commits."""
        self._commit_at = max(self._commit_at, self.now + self.rng.random() * 0.02 * SECOND)
        self.at(self._commit_at, lambda: do() if self.server.up and self.server.life == life else None)

    def run_until(self, end: datetime) -> None:
        """Let the story go on to that time."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, do = heapq.heappop(heap)
            do()
        self.now = end

    def new_id(self) -> str:
        """An id that no other thing of this story has."""
        self._sequence += 1
        return f"id-{self._sequence}"

    def ran(self, host: str, command: CommandRun) -> None:
        """A job really began on a host."""
        assert command.scheduled_at is not None
        self.runs[host, command.schedule_id, command.scheduled_at] += 1
        self.trace.update(f"{self.now} {host} {command.schedule_id} {command.scheduled_at}\n".encode())

    # The story.

    def some_labels(self) -> dict[str, str]:
        """Labels of a host: one of 25 groups."""
        return {"group": str(self.rng.randrange(25))}

    def some_schedule(self, schedule_id: str | None = None) -> Target:
        """A schedule for about two hosts."""
        rng = self.rng
        spec = schedule_spec(
            {
                "kind": "backup",
                "cron": rng.choice(CRONS).format(m=rng.randrange(60), h=rng.randrange(24)),
                "timeZone": rng.choice(ZONES),
                "enabled": rng.random() > 0.05,
                "hostSelector": {"matchLabels": {"group": str(rng.randrange(25))}},
                "repositoryRef": {"name": "repo"},
                "backup": {
                    "paths": ["/etc"],
                    "excludes": [],
                    "tags": [],
                    "oneFileSystem": False,
                    "excludeCaches": False,
                },
                "concurrencyPolicy": "Forbid",
                "missedRunPolicy": "RunOnce",
                "spreadSeconds": rng.choice((0, 0, 0, 1800)),
                "retry": {"limit": 0, "backoffSeconds": 60},
            }
        )
        schedule_id = schedule_id or self.new_id()
        item = entry_item(schedule_id, f"default/{schedule_id}", spec, self.now, self.new_id())
        return Target(schedule_id, f"default/{schedule_id}", spec, "repo", None, item)

    def mishap(self) -> None:
        """Something goes wrong, or somebody changes something."""
        rng = self.rng
        agent = rng.choice(self.agents)
        match rng.choice(("cut", "cut", "kill", "kill", "power", "apart", "clock", "server", "edit", "edit", "labels")):
            case "cut" if agent.pipe is not None:
                agent.pipe.cut()
            case "kill":
                agent.kill(power=False)
            case "power":
                agent.kill(power=True)
            case "apart":
                self.cut_off.add(agent.name)
                if agent.pipe is not None:
                    agent.pipe.cut()
                self.at(self.now + rng.random() * 3 * DAY, lambda: self.cut_off.discard(agent.name))
            case "clock":
                agent.set_clock(rng.choice((-26, -4, -1, -0.01, 0.01, 1, 4, 26)) * rng.random() * HOUR)
                self.at(self.now + rng.random() * 6 * HOUR, lambda: agent.set_clock(timedelta()))
            case "server":
                self.server.kill()
            case "edit" if self.server.up:
                self.edit()
            case "labels" if self.server.up:
                self.server.relabel(agent.name, self.some_labels())

    def edit(self) -> None:
        """Somebody creates, changes or deletes a schedule."""
        ids = list(self.db.targets)
        match self.rng.choice(("create", "change", "delete")):
            case "create":
                self.server.put(self.some_schedule())
            case "change":
                self.server.put(self.some_schedule(self.rng.choice(ids)))
            case "delete" if len(ids) > 100:
                self.server.remove(self.rng.choice(ids))

    def play(self, days: int = 30, mishaps: int = 300) -> None:
        """A month with mishaps, and then three quiet days for everything to come right."""
        end = self.begin + days * DAY
        for _ in range(mishaps):
            self.at(self.begin + self.rng.random() * (end - self.begin), self.mishap)
        self.run_until(end)
        self.kills_after_commit = 0.0
        self.cut_off.clear()
        for agent in self.agents:
            agent.set_clock(timedelta())
        self.run_until(end + 3 * DAY)
