"""One of several servers over one database: it follows the changes and the news of the others, and may be paused.

What these do in threads and tasks in production is mirrored here as events: being woken, a look at what is due, signs
of life. What decides is the real code: the queue's transactions, the log of changes, the news and who reads them.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from server.agents import session as server_session
from server.agents.session import Session
from server.errors import Unavailable
from server.fleet.placement import HostState, Plan
from server.gateway.told import ToldHosts
from server.jobs import notices
from server.jobs.dispatcher import LOOK_EVERY_S
from server.jobs.queue import Ended, JobQueue, Outcome, Recording
from server.replicas.follower import POLL_S
from server.replicas.members import BEAT_S, LOOK_S, LOOKS
from server.store import changelog, news
from server.transport.connections import STALE_S
from tests.simulation.clock import SECOND, Stored, Timer
from tests.simulation.database import Edit
from tests.simulation.link import Pipe
from tests.simulation.server import Server, turned_by
from wire.messages import Hello

if TYPE_CHECKING:
    from tests.simulation.world import World

HELD_S = 30.0
"""Seconds for which a transaction may keep the id of its news to itself."""
LOCK_S = 25.0
"""Seconds after which PostgreSQL frees the lock of a machine that has vanished."""


class Replica(Server):
    """A server beside others. `revision`: of the newest change that is in force here. `paused`: it stands still."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.paused = self.stopping = False
        self.revision = 0
        self._position = news.Position()
        self._frozen: list[Callable[[], None]] = []
        self._early: tuple[int | None, datetime] = None, world.now
        self._still_since = world.now
        self._answer_at = world.now
        self._follows_at: datetime | None = None
        self._numbers: dict[str, int] = {}  # of the hellos that connections here began with
        self._newest: dict[str, int] = {}  # of the newest hellos on any server

    @property
    def id(self) -> str:
        """What the database knows this process by."""
        return f"{self.name}.{self.life}"

    @property
    def serves(self) -> bool:
        """Whether it answers, to hosts and to people."""
        return self.up and not self.paused and not self.stopping and not self.world.db.is_down

    @property
    def leads(self) -> bool:
        """Whether it sees to what is due."""
        return self.world.replicas.leader is self

    # The process.

    def start(self) -> None:
        """The process begins, beside those that run."""
        world, db = self.world, self.world.db
        if db.is_down:  # it would end, and be started again
            world.later(10, self.life, self, self.start)
            return
        self.paused = self.stopping = False
        self._numbers, self._newest = {}, {row.host: row.session for row in db.connections()}
        self._follows_at, self._early, self._frozen = None, (None, world.now), []
        db.living.add(self.id)
        self._position = news.here(db.conn, world.seconds)
        self.revision = db.revision
        super().start()
        world.replicas.elect()

    def own(self, do: Callable[[], None]) -> Callable[[], None]:
        """Something that this process does, unless it has died by then; when it goes on, where it stands still."""
        life = self.life

        def done() -> None:
            if self.life == life:
                if self.paused:
                    self._frozen.append(done)
                else:
                    do()

        return done

    def kill(self) -> None:
        """The process dies, wherever it is. The others find that out."""
        if self.up:
            self.world.replicas.died(self)
            super().kill()
            self.world.replicas.resign(self)

    def stop(self) -> None:
        """The process ends cleanly: it sends its agents to the others first."""
        world = self.world
        if not self.serves:
            return
        world.tell(self.name, "stops")
        self.stopping = True
        for pipe in self._accepted:
            world.later(30, self.life, self, self.own(pipe.close))
        world.at(world.now + 31 * SECOND, self.own(self._end))

    def _end(self) -> None:
        """It has sent all agents away, and what it had to store is stored."""
        world = self.world
        world.tell(self.name, "ends")
        world.db.living.discard(self.id)
        super().kill()
        world.replicas.resign(self)
        world.at(world.now + world.rng.random() * LOOKS * LOOK_S * SECOND, world.replicas.look_behind)

    def pause(self, width: timedelta) -> None:
        """The process stands still for a while, as on a machine that swaps, or is moved."""
        world = self.world
        if not self.serves:
            return
        world.tell(self.name, f"stands still for {width}")
        self.paused, self._still_since = True, world.now
        world.replicas.died(self)
        if world.rng.random() < 0.5:
            world.at(world.now + LOCK_S * SECOND, partial(world.replicas.vanished, self, self.id))
        for pipe in self._accepted:
            if pipe.open:
                pipe.agent.ails()
                world.at(world.now + (20 + world.rng.random() * 20) * SECOND, partial(self._unheard, pipe))
        life = self.life
        world.at(world.now + width, lambda: self._go_on() if self.life == life else None)

    def _unheard(self, pipe: Pipe) -> None:
        """An agent whose pings are not answered gives the connection up."""
        if self.paused:
            pipe.cut()

    def _go_on(self) -> None:
        world = self.world
        world.tell(self.name, "goes on")
        self.paused = False
        if world.now - self._still_since > STALE_S * SECOND:
            for pipe in self._accepted:  # what came on them is not read
                pipe.close()
                self.lost(pipe)
        frozen, self._frozen = self._frozen, []
        for do in frozen:
            do()
        self.follow_soon(0.0)
        for pipe in self._accepted:
            pipe.agent.recovers()
        if self.id not in world.db.living:
            world.later(BEAT_S, self.life, self, self.own(self._taken_for_dead))

    def _taken_for_dead(self) -> None:
        self.world.tell(self.name, "finds that it was taken for dead")
        self.kill()

    def _new_session(self, desired: HostState) -> Session:
        return Session(desired, *self.world.db.acked.get(desired.name, (0, "")))

    def _new_queue(self, *, is_shared: bool = True) -> JobQueue:
        return super()._new_queue(is_shared=is_shared)

    def _call_later(self, seconds: float, do: Callable[[], None]) -> Timer:
        """The looks at what is due are the world's, which knows when something is."""
        return Timer(do) if seconds == LOOK_EVERY_S else super()._call_later(seconds, do)

    # The store.

    def _submit(self, function: Any, item: Any, host: str = "") -> Stored:
        """Commit something soon; its answer comes a little later. When the database is lost meanwhile, nobody knows
        whether it was committed."""
        world, db, stored, begun = self.world, self.world.db, Stored(), self.world.now

        def commit() -> None:
            result = None
            if not self._survives():
                return
            world.replicas.may_fail_over()
            down = db.is_down
            if not down or (begun < db.lost_at and self.id in db.committing):
                early, taken_at = self._early
                if world.now - taken_at > HELD_S * SECOND:  # that transaction has failed
                    early = None
                result = db.perform(function, item, world.now, early) if function is not None else None
                self._early = (db.take_news_id() if world.rng.random() < 0.02 else None), world.now
                world.replicas.committed(self)
                world.replicas.look_when(_due_times(item, result))
            if self._survives():
                answer = partial(stored.failed, Unavailable("the database is away")) if down else None
                self._answer_at = max(self._answer_at, world.now + world.rng.random() * 0.01 * SECOND)
                world.at(self._answer_at, self.own(answer or partial(stored.done, result)))

        self._commit_at = max(self._commit_at, world.now + world.rng.random() * 0.02 * SECOND)
        world.at(self._commit_at, self.own(commit))
        return stored

    # Connections.

    def receive(self, pipe: Pipe, messages: Sequence[object]) -> None:
        """A frame came; nothing is read while this stands still."""
        if self.paused:
            self._frozen.append(partial(self.receive, pipe, messages))
        elif self.world.db.is_down and isinstance(messages[0], Hello):
            pipe.close()
        else:
            if isinstance(messages[0], Hello):
                self._numbers.pop(pipe.agent.name, None)
            super().receive(pipe, messages)

    def lost(self, pipe: Pipe) -> None:
        """A connection broke."""
        if self.paused:
            self._frozen.append(partial(self.lost, pipe))
        else:
            super().lost(pipe)

    def _welcomed(self, pipe: Pipe, arrived: Any) -> None:
        """A host's hello is stored; a newer one on another server may have been heard of."""
        super()._welcomed(pipe, arrived)
        name = pipe.agent.name
        if self.pipes.get(name) is pipe:
            self._numbers[name] = arrived.session
            session = self.sessions[name]
            self._ack(pipe, server_session.Acked(session.applied_version, session.applied_digest))
            if self._is_newest(name, arrived.session):
                self._newest[name] = arrived.session
            else:
                pipe.close()

    def _is_newest(self, name: str, number: int) -> bool:
        return self._newest.get(name, 0) <= number

    def _ack(self, pipe: Pipe, acked: server_session.Acked) -> None:
        if (number := self._numbers.get(pipe.agent.name)) is not None:  # that of a hello is stored after it
            ack = (pipe.agent.name, number, acked.version, acked.digest, self.clock)
            self._then(pipe, self._submit(self._store_acks, ack))

    def _store_acks(self, conn: Any, items: Sequence[tuple[str, int, int, str, datetime]]) -> list[None]:
        stored = ToldHosts(self.id, is_shared=True).acks(conn, items)
        for host, *_ in items:
            self.world.db.read_ack(host)
        return stored

    # What others did.

    def follow_soon(self, seconds: float) -> None:
        """Ask for news within so many seconds, if that is not to be earlier anyway."""
        world = self.world
        at = world.now + seconds * SECOND
        if self._follows_at is None or at < self._follows_at:
            self._follows_at = at
            world.at(at, self.own(partial(self._follow, at)))

    def _follow(self, at: datetime) -> None:
        if self._follows_at != at:
            return
        self._follows_at = None
        if self.world.db.is_down:
            self.follow_soon(POLL_S)
            return
        self.follow_changes()
        rows = news.read(self.world.db.conn, self._position, self.id)
        self._position = self._position.after((row.id for row in rows), self.world.seconds)
        for row in rows:
            for notice in notices.decode(row.body) if row.body else ():
                self._hear(notice)

    def _hear(self, notice: notices.AnyNotice) -> None:
        dispatcher = self.dispatcher
        match notice:
            case notices.SlotsGiven(jobs):
                ids = [id_ for host, its in jobs.items() if host in self.pipes for id_ in its]
                dispatcher.send_given(self.world.db.given(ids))
            case notices.EndAsked():
                dispatcher.ask_end(notice)
            case notices.Ended():
                dispatcher.heard_end(notice)
            case notices.Arrived(host, session, _, hello) if self._is_newest(host, session):
                self._newest[host] = session
                if host in self.pipes and host in self._numbers:
                    self.pipes[host].close()
                self.sessions[host].adopt_hello(hello)
                dispatcher.heard_arrival(host)
            case notices.Left(host):
                dispatcher.heard_left(host)
            case notices.Acked(hosts, version, digest):
                for host, number in hosts.items():
                    if self._is_newest(host, number):
                        self.sessions[host].adopt_ack(version, digest)

    def follow_changes(self) -> None:
        """Put in force what others changed."""
        db = self.world.db
        while self.revision != db.revision:  # it is asked for here, since asking takes most of a story's time
            for revision, body in changelog.after(db.conn, self.revision).entries:
                self._adopt(db.edits[int(body)])
                self.revision = revision

    def _adopt(self, edit: Edit) -> None:
        plan = edit.planned(self.placement)
        turned = turned_by(self.placement, plan)
        self.placement.commit(plan, edit.versions)
        for name in edit.versions:
            self._push(name)
        for name, on in turned:
            if not on:
                self.undrained(name)

    # What people change.

    def drains(self, name: str, *, on: bool) -> None:
        """In the transaction of a change that drains a host, or that ends it, its jobs are put where they belong."""
        super().drains(name, on=on)
        self.world.replicas.committed(self)

    def loses_answers(self) -> None:
        """The database is lost right after it committed a change that is made here."""
        name, labels = next(iter(self.world.db.labels.items()))
        self._change(lambda: self.placement.plan_host(name, labels | {"new": self.world.new_id()}, self.clock), False)

    def _change(self, make_plan: Callable[[], Plan], is_answered: bool = True) -> None:
        """Change what is declared, on what all others changed before. Nobody knows here of what is not answered."""
        db, revision = self.world.db, None
        while revision is None:
            plan = make_plan()
            edit = Edit.of(plan, self.placement.desired(plan))
            revision = db.append(self.revision, edit, self.world.now)
            if revision is None:
                self.follow_changes()
        self.world.replicas.declared(edit, self)
        turned = turned_by(self.placement, plan)
        for name, on in turned:
            self.drains(name, on=on)
        if is_answered:
            self.placement.commit(plan)
            self.revision = revision
            for name in edit.versions:
                self._push(name)
            for name, on in turned:
                if not on:
                    self.undrained(name)


def _due_times(item: object, result: Any) -> list[datetime]:
    """When something is due of what was stored."""
    outcome = result[0] if isinstance(result, tuple) and not isinstance(result, Outcome) else result
    outcome = getattr(result, "outcome", outcome)
    found = [outcome.wake_at] if isinstance(outcome, Outcome) else []
    if isinstance(item, Recording):
        found += [at for job in item.jobs for at in (job.start_by, job.not_before)]
    if isinstance(result, Ended):
        found += [retry.not_before for _, retry in result.again]
    return [at for at in found if at is not None]
