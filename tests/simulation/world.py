"""A fleet in virtual time: the real cores of the server and of the agents, with links, disks and clocks that fail.

Everything that happens comes from one heap of events and one seed, so a seed always plays the same story. What a real
disk keeps over a kill, `Database` and `Agent.disk` keep; what a process holds is lost with it. Links keep order and may
delay, repeat a frame, or break, at which both sides learn of it at different times; what was on its way is lost.
"""

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from agent.core import effects as agent_effects
from agent.core import pushes as agent_pushes
from agent.core.machine import Core
from agent.core.state import AgentState, DiffApplied, Record, SetApplied, replay
from agent.core.timetable import CORRECTION, NEVER
from server.fleet.placement import HostState
from server.jobs.limits import GateLimit, gate_of_host, gate_of_schedule
from tests.simulation.clock import CALM, SECOND
from tests.simulation.database import Database, Row
from tests.simulation.expected import Expected
from tests.simulation.link import Pipe
from tests.simulation.replica import Replica
from tests.simulation.replicas import Replicas
from tests.simulation.server import Server
from wire import entries
from wire.messages import (
    CommandRun,
    JobFinished,
    Repository,
    ScheduleAck,
    ScheduleRefused,
)

LONGEST_S = 1200.0
"""Seconds that a job takes at most, or that one takes at most after it should have been stopped."""
STOPS_S = 1800.0
"""Seconds for which an agent that is to end waits for its jobs, which take less."""
MONTHS = (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 10, 8, tzinfo=UTC))  # each holds daylight-saving changes


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
        self.stops_with: set[str] = set()
        self._stopped: dict[str, tuple[str, str]] = {}
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

    def stop(self) -> None:
        """The process is to end once its jobs have, at the latest after a while."""
        if self.core is None or self.core.draining:
            return
        self.world.tell(self.name, "agent stops")
        self.ails()
        self.stops_with = set(self.core.state.running)
        self.perform(self.core.drain(self.clock))
        life = self.life

        def end() -> None:
            if self.life == life:
                self.world.wrongs += [f"{self.name} was stopped while {it} ran" for it in self._jobs]
                self.kill(power=False)

        self.world.at(self.world.now + STOPS_S * SECOND, end)

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
            is_open = self.name not in self.world.db.drained and (self.core is None or not self.core.draining)
            right = is_open and not self.skew and not any(server.misleads for server in self.world.servers)
            if pipe is not None and pipe.open and self.pipe is pipe and right and self.ill_since is not None:
                self.ills.append((self.ill_since, self.world.now))
                self.ill_since = None

        self.world.at(self.world.now + CALM, well)

    # The connection.

    def connect(self) -> None:
        """Dial any server, and again a little later if nobody answers."""
        if self.core is None or self.pipe is not None:
            return
        if self.cut_off or (server := self.world.any_server()) is None:
            self.world.later(600 / len(self.world.servers), self.life, self, self.connect)
            return
        self.pipe = server.accept(self)
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
                case agent_effects.StopJob(job_id, status, reason):
                    self._stopped[job_id] = status, reason
                    world.later(1, life, self, partial(self._end, job_id, status, reason))
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
        reason = ""
        if (stopped := self._stopped.pop(job_id, None)) is not None:  # before it had begun
            within_s, (status, reason) = 1.0, stopped
        else:
            fails = repository is None or rng.random() < 0.1
            within_s, status = LONGEST_S, rng.choice(("failed", "timed_out")) if fails else "succeeded"
        closes_in_s = LONGEST_S if command.stop_after_s is None else float(command.stop_after_s)
        at_least_s = closes_in_s if closes_in_s < STOPS_S - LONGEST_S else 0.0  # then it is not over before
        end, life = self.world.now + (at_least_s + rng.random() * within_s) * SECOND, self.life
        self.world.at(end, lambda: self._end(job_id, status, reason) if self.life == life else None)

    def _end(self, job_id: str, status: str, reason: str = "") -> None:
        if self._jobs.pop(job_id, None) is not None and self.core is not None:
            self.world.over(job_id)
            end = JobFinished(job_id, status, self.clock, reason=reason)  # type: ignore[arg-type]
            self.perform(self.core.job_ended(end))


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
    its agent said that it ended; `wrongs`: what was seen to be wrong before the end; `of_hosts`: how many jobs hosts
    run at once; `rollouts`: on how many hosts schedules do; `pausing`: after how many that failed they pause. `listen`
    is told every line of the story; `trace` is their hash.
    """

    def __init__(self, seed: int, agents: int, listen: Callable[[str], None] | None = None, servers: int = 1) -> None:
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
        self.of_hosts: dict[str, int] = {}
        self.rollouts: dict[str, int] = {}
        self.pausing: dict[str, int] = {}
        self._sent: dict[str, set[str]] = {}  # to hosts that are drained, when that began
        self.trace = hashlib.sha256()
        self._listen = listen
        self._heap: list[tuple[datetime, int, Callable[[], None]]] = []
        self._sequence = 0
        self.expected = Expected()
        self.db = Database()
        self.servers: Sequence[Server] = [Server(self)]
        if servers > 1:
            replicas = [Replica(self, f"server-{number}") for number in range(servers)]
            self.servers, self.replicas = replicas, Replicas(self, replicas)
        self.agents = [Agent(self, f"host-{number}") for number in range(agents)]
        self.by_name = {agent.name: agent for agent in self.agents}

    @property
    def seconds(self) -> float:
        """The seconds that have passed."""
        return (self.now - self.begin).total_seconds()

    def any_server(self) -> Server | None:
        """A server that answers; None where none does."""
        if len(self.servers) == 1:
            return self.servers[0] if self.servers[0].serves else None
        able = [server for server in self.servers if server.serves]
        return self.rng.choice(able) if able else None

    def at(self, when: datetime, do: Callable[[], None]) -> None:
        """Do something at a time."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, do))

    def later(self, within_s: float, life: int, process: Agent | Server, do: Callable[[], None]) -> None:
        """Do something within so many seconds, if that process still lives then."""
        when = self.now + timedelta(seconds=self.rng.random() * within_s)
        self.at(when, lambda: do() if process.life == life else None)

    def run_until(self, end: datetime) -> None:
        """Let the story go on to that time."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, do = pop(heap)
            do()
        self.now = end

    def changed(self, state: HostState, version: int, behind: timedelta, *, relabelled: bool) -> None:
        """A host's set has become another; `behind`: how far behind the clock is by which people say so."""
        agent, db = self.by_name[state.name], self.db
        schedules = [db.schedules[key] for key in state.entries.items]
        self.expected.changed(agent, schedules, db.begun, state.since, self.now, behind, relabelled=relabelled)
        self.at(self.now + CALM, partial(self._check_known, agent, version, self.now))

    def _check_known(self, agent: Agent, version: int, since: datetime) -> None:
        """A change has long reached a host that was well all the time."""
        if agent.was_well(since) and self.db.acked[agent.name][0] < version:
            self.wrongs.append(f"{agent.name} was online and has not heard of version {version} of {since}")

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

    def gates_of(self, host: str, schedule_id: str) -> Sequence[GateLimit]:
        """The gates of a host's job."""
        hosts, jobs = self.rollouts.get(schedule_id), self.of_hosts.get(host)
        most = self.pausing.get(schedule_id)
        its = [] if (hosts, most) == (None, None) else [gate_of_schedule(schedule_id, hosts, most)]
        return its if jobs is None else [*its, gate_of_host(host, jobs)]

    def drains(self, host: str, *, on: bool) -> None:
        """Nothing new is to begin on a host, but for what was sent already."""
        self.tell("user", f"{'drains' if on else 'undrains'} {host}")
        if on:
            self.by_name[host].ails()
            self._sent[host] = self.db.sent_to(host)
        else:
            self._sent.pop(host, None)
            self.by_name[host].recovers()

    def _begins_wrongly(self, host: str, job_id: str) -> bool:
        agent = self.by_name[host]
        stops = agent.core is not None and agent.core.draining
        return job_id not in self._sent.get(host, {job_id}) or (stops and job_id not in agent.stops_with)

    def ran(self, host: str, command: CommandRun) -> None:
        """A job really began on a host."""
        if self._begins_wrongly(host, command.job_id):
            self.wrongs.append(f"{command.job_id} began on {host} at {self.now}, which is drained")
        attempt = command.job_id.partition(".")[2]
        self.runs.setdefault((host, command.schedule_id, command.scheduled_at, attempt), []).append(self.now)
        if command.job_id not in self.db.paused().get(command.schedule_id, {command.job_id}):
            self.wrongs.append(
                f"{command.job_id} began on {host} at {self.now}, though {command.schedule_id} is paused"
            )
        self.uses[command.job_id] = Use(host, command, self.now)
        self.tell(host, f"runs {command.schedule_id} due {command.scheduled_at} as {command.job_id}")

    def over(self, job_id: str) -> None:
        """An attempt of a job uses its repository no more."""
        self.uses[job_id].end = self.now

    def refused(self, host: str, messages: Sequence[object]) -> None:
        """A host was told why there is no command for its fires."""
        for message in messages:
            if isinstance(message, ScheduleRefused) and message.reason == "Concurrent":
                runs = self.db.in_the_way(host, message.schedule_id, message.scheduled_at)
                self.expected.excuse(host, message.schedule_id, message.scheduled_at, by=runs)
                self.tell(host, f"{message.schedule_id} due {message.scheduled_at} is refused: the last is not over")
