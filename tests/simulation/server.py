"""A server's process: the real cores of the hosts' sessions and of jobs, over a database that outlives it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.core.clock import TRUST
from server.access.vault import Vault
from server.agents import session as server_session
from server.agents.session import Session
from server.events import DeclarationChanged, Events
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
from server.store.rows import AuditRow
from tests.simulation.clock import SECOND, Stored, Timer
from tests.simulation.database import Database
from tests.simulation.link import Pipe
from wire.messages import Hello, JobFinished, RepoCredentials, Repository

if TYPE_CHECKING:
    from tests.simulation.world import Agent, World

LIMITS = {
    "repo": ConcurrencyLimit(),
    "few": ConcurrencyLimit(limit=3),
    "one": ConcurrencyLimit(limit=1),
    "each": ConcurrencyLimit(limit=1, per_host=True),
}
"""The repositories, and how many jobs may use each of them."""
CREDENTIALS = (RepoCredentials([Repository(name, f"default/{name}", f"/{name}", "secret") for name in LIMITS]),)


class Server:
    """The control plane's process: the cores of all hosts over a database that outlives it.

    `id`: what the database knows it by, another one in each `life`.
    """

    def __init__(self, world: "World", name: str = "server") -> None:
        self.world, self.name = world, name
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
        self._commit_at = world.now

    @property
    def id(self) -> str:
        """What the database knows this process by."""
        return "server"

    @property
    def serves(self) -> bool:
        """Whether it answers, to hosts and to people."""
        return self.up

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
        world.tell(self.name, f"clock is set {skew.total_seconds():+.0f} s off")
        self._behind = min(skew, self.behind)
        self.skew, self._believed_until = skew, world.now + TRUST + SECOND
        for agent in world.agents:
            agent.clock_set.append(world.now)
            agent.ails()
            world.at(self._believed_until, agent.recovers)

    # The process.

    def start(self) -> None:
        """The process begins with what the database says."""
        self.world.tell(self.name, "starts")
        db = self.world.db
        self.up = True
        self.placement = db.placement()
        self.sessions = {name: self._new_session(state) for name, state in self.placement.hosts.items()}
        db.know(db.labels)
        self.queue, self.dispatcher, self.reports = self._new_jobs()
        self.dispatcher.begin()

    def _new_session(self, desired: HostState) -> Session:
        return Session(desired)

    def _new_jobs(self) -> tuple[JobQueue, Dispatcher, Reports]:
        events, active = Events(), ActiveAttempts()
        queue = self._new_queue()
        repositories = RepositoryStates(Catalog(Vault([Vault.new_key()])), self.placement, events)
        submit: Any = self._submit
        call_later: Any = self._call_later
        clock = lambda: self.clock  # noqa: E731
        dispatcher = Dispatcher(submit, queue, active, self, repositories, events, clock, call_later)
        reports = Reports(submit, queue, active, self.placement, repositories, dispatcher, events, clock)
        return queue, dispatcher, reports

    def _new_queue(self, *, is_shared: bool = False) -> JobQueue:
        limit_of = lambda name: LIMITS.get(name, ConcurrencyLimit())  # noqa: E731
        gates_of = self.world.gates_of
        return JobQueue(self.id, limit_of, self.placement.schedule_of, gates_of=gates_of, is_shared=is_shared)

    def session(self, host: str) -> Session | None:
        """The session of a host."""
        return self.sessions.get(host)

    def _call_later(self, seconds: float, do: Callable[[], None]) -> Timer:
        timer = Timer(do)
        self.world.at(self.world.now + seconds * SECOND, self.own(timer.ring))
        return timer

    def own(self, do: Callable[[], None]) -> Callable[[], None]:
        """Something that this process does, unless it has died by then."""
        life = self.life
        return lambda: do() if self.life == life else None

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
        self.world.tell(self.name, "is killed")
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
        world.tell(self.name, "gets an older database")
        world.put_back.append(world.now)
        for key, row in db.jobs.items():
            if key not in copy.jobs:
                world.lost[key] = replace(row, ended_at=row.ended_at or world.now)
        db.put_back(copy)
        for name, version in copy.versions.items():
            db.versions[name] = version + (digests[name] != self.placement.hosts[name].entries.digest)

    # Connections.

    def accept(self, agent: "Agent") -> Pipe:
        """A connection comes in; its hello follows on it."""
        self._sessions += 1
        pipe = Pipe(self.world, agent, self, self._sessions)
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
            self._then(pipe, self._submit(None, None), partial(self._resume, pipe, hello))
        elif not pipe.welcomed:
            pipe.unread.append(messages)  # nothing is read while the hello is being answered
        elif session.session == pipe.session:
            framed = [(message, self.world.new_id()) for message in messages]
            self.world.expected.fired(name, messages)
            self.perform(pipe, session.received(framed, self.clock))  # type: ignore[arg-type]

    def _then(self, pipe: Pipe, stored: Any, follow: Callable[[Any], None] = lambda _: None) -> None:
        """Go on with a connection when something is stored; close it when that may not be."""

        def done(stored: Any) -> None:
            if stored.exception() is not None:
                pipe.close()
            elif self.pipes.get(pipe.agent.name) is pipe:
                follow(stored.result())

        stored.add_done_callback(done)

    def _resume(self, pipe: Pipe, hello: Hello, _: object) -> None:
        """The open jobs are read in order with all writes; only then are further frames."""
        session = self.sessions[pipe.agent.name]
        running = set(hello.running_jobs)
        rows = self.world.db.open_jobs(session.name)
        effects = self.reports.resume(session, running, rows)
        effects += self.reports.resume_unknown(session, running.difference(map(wire_id, rows)))
        stored = self.perform(pipe, effects)

        def arrived(_: object = None) -> None:
            arriving = self.dispatcher.connected(session.name, running, stops=hello.stops)
            self._then(pipe, arriving, partial(self._welcomed, pipe))

        if stored is None:
            arrived()
        else:
            self._then(pipe, stored, arrived)

    def _welcomed(self, pipe: Pipe, _: object) -> None:
        """The hello is stored."""
        pipe.welcomed = True
        for messages in pipe.unread:
            self.receive(pipe, messages)
        pipe.agent.recovers()

    def _submit(self, function: Any, item: Any, host: str = "") -> Stored:
        """Commit something soon, in order; a kill right before loses it, and one right after the answer."""
        world, stored = self.world, Stored()

        def commit() -> None:
            if self._survives():
                result = world.db.perform(function, item, world.now) if function is not None else None
                if self._survives():
                    stored.done(result)

        self._commit_at = max(self._commit_at, world.now + timedelta(seconds=world.rng.random() * 0.02))
        world.at(self._commit_at, self.own(commit))
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
                    self._then(pipe, stored[-1], partial(self._confirm, pipe, ends))
                case server_session.Stops():
                    stored.append(reports.stops(name))
                case server_session.Accepted(job_ids):
                    stored.append(reports.accept(name, job_ids))
                case server_session.Acked():
                    self._ack(pipe, effect)
        for it in stored:
            self._then(pipe, it)
        return stored[-1] if stored else None

    def _ack(self, pipe: Pipe, acked: server_session.Acked) -> None:
        self.world.db.ack(pipe.agent.name, acked.version, acked.digest)

    def _refuse(self, pipe: Pipe, refusals: server_session.Send) -> None:
        self.perform(pipe, [refusals])

    def _confirm(self, pipe: Pipe, ends: Sequence[JobFinished], _: object) -> None:
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
        self._change(lambda: self.placement.plan((schedule,)))

    def remove(self, schedule_id: str) -> None:
        """Delete a schedule."""
        self._change(lambda: self.placement.plan((), (schedule_id,)))

    def relabel(self, name: str, labels: dict[str, str]) -> None:
        """Give a host other labels. It begins anew where that changes its set."""
        self._change(lambda: self.placement.plan_host(name, labels, self.clock))

    def drain(self, name: str, *, on: bool) -> None:
        """Have nothing new begin on a host, or have it begin again."""
        self._change(lambda: self.placement.plan_drain(name, "user" if on else ""))

    def drains(self, name: str, *, on: bool) -> None:
        """In the transaction of a change that drains a host, or that ends it, its jobs are put where they belong."""
        db = self.world.db
        db.know([name])
        self.world.drains(name, on=on)
        self.dispatcher.carry_out(db.perform(self.queue.drain, ([(name, on)], self.clock), self.world.now))

    def undrained(self, name: str) -> None:
        """A host is drained no more: its next hello brings what it missed."""
        if (pipe := self.pipes.get(name)) is not None:
            pipe.close()

    def cancel(self, job_id: str) -> None:
        """Have a job end as cancelled: by its host if that is online."""
        self.dispatcher.cancel([job_id], "cancelled")

    def resume(self, schedule_id: str) -> None:
        """Have a schedule go on that is paused."""
        line = AuditRow(self.clock, "user", "user", "resume", "Schedule", schedule_id, {})
        self.dispatcher.resume(schedule_id, line)

    def _change(self, make_plan: Callable[[], Plan]) -> None:
        plan = make_plan()
        desired = self.placement.desired(plan)
        turned = turned_by(self.placement, plan)
        joins = any(it.due for it in self.placement.met(plan))
        self.world.db.meet(self.placement, plan)
        self.placement.commit(plan)
        self.world.db.declare(plan, {name: version for name, version, _ in desired})
        for name, version, _ in desired:
            self.world.changed(self.placement.hosts[name], version, self.behind, relabelled=bool(plan.put_hosts))
            self._push(name)
        for name, on in turned:
            self.drains(name, on=on)
            if not on:
                self.undrained(name)
        self.dispatcher.on_event(DeclarationChanged(joins=joins))

    def _push(self, name: str) -> None:
        """A host's set is another one now."""
        effects = self.sessions[name].desired_changed()
        if (pipe := self.pipes.get(name)) is not None:
            self.perform(pipe, effects)


def turned_by(placement: Placement, plan: Plan) -> list[tuple[str, bool]]:
    """The hosts that a plan drains, or drains no more."""
    return [(it.name, it.drains) for it in plan.put_hosts if it.drains != placement.hosts[it.name].drains]
