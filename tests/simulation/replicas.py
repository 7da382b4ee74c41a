"""What several servers over one database are to each other: who leads, who is taken for dead, and who is woken."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from server.fleet.placement import Placement
from server.jobs.dispatcher import LOOK_EVERY_S
from server.replicas.follower import POLL_S
from server.replicas.members import LOOK_S, LOOKS
from server.replicas.watch import DEAD_S
from tests.simulation.clock import CALM, HOUR, SECOND
from tests.simulation.database import Edit
from tests.simulation.replica import Replica

if TYPE_CHECKING:
    from tests.simulation.world import World


class Replicas:
    """The servers of a world, what is declared to them in the order of the log, and notifications, which may be late.

    `leader`: who has the lock; it may stand still. `led_since`: when it took that. `silent`: how many notifications
    are lost.
    """

    def __init__(self, world: "World", servers: list[Replica]) -> None:
        self.world, self.servers = world, servers
        self.leader: Replica | None = None
        self.led_since = world.now
        self.declared_state = Placement()
        self.silent = world.rng.choice((0.0, 0.05, 0.5))
        self.fails_at_commit = world.rng.choice((0.0, 0.002))

    # Who leads.

    def elect(self) -> None:
        """Somebody takes the leader's lock, if nobody has it."""
        self.world.at(self.world.now + self.world.rng.random() * 2 * SECOND, self._elect)

    def _elect(self) -> None:
        if self.leader is not None:
            return
        able = [server for server in self.servers if server.up and not server.paused]
        if self.world.db.is_down or not able:
            self.world.at(self.world.now + 2 * SECOND, self._elect)
            return
        self.leader = leader = self.world.rng.choice(able)
        self.led_since = self.world.now
        self.world.tell(leader.name, "leads")
        leader.dispatcher.lead()
        self.look_behind()

    def look_behind(self) -> None:
        """The leader has hosts count as away whose server has no row. It looks again and again: here, when one ends."""
        world, leader = self.world, self.leader
        if leader is None or leader.paused or not leader.up or world.db.is_down:
            world.at(world.now + LOOKS * LOOK_S * SECOND, self.look_behind)
            return
        for gone in world.db.without_row():
            leader.dispatcher.server_gone(gone)

    def resign(self, server: Replica) -> None:
        """A server has the lock no longer, if it had it."""
        if self.leader is server:
            self.leader = None
            self.elect()

    def look_when(self, due: Iterable[datetime]) -> None:
        """The leader looks each second at what is due: here, when there is something."""
        for at in due:
            self.world.at(max(at, self.world.now) + self.world.rng.random() * LOOK_EVERY_S * SECOND, self._look)

    def _look(self) -> None:
        if self.leader is not None and self.leader.up:
            self.leader.own(self.leader.dispatcher.advance)()

    # Who is dead.

    def died(self, server: Replica) -> None:
        """A server was killed, or stands still. It is dead if it is not heard of for a while."""
        rng, world = self.world.rng, self.world
        world.at(world.now + (DEAD_S + rng.random() * 3) * SECOND, partial(self._bury, server, server.id))

    def vanished(self, server: Replica, id_: str) -> None:
        """The machine of a server that stands still is not heard of any more: PostgreSQL frees its lock."""
        if self.leader is server and server.paused and server.id == id_:
            self.leader = None
            server.own(server.dispatcher.follow)()
            self.elect()

    def _bury(self, server: Replica, id_: str) -> None:
        world, db, leader = self.world, self.world.db, self.leader
        if id_ not in db.living or (server.up and server.id == id_ and not server.paused):
            return
        if leader is None or leader.paused or not leader.up or db.is_down:
            world.at(world.now + DEAD_S * SECOND, partial(self._bury, server, id_))
            return
        world.tell(leader.name, f"takes {id_} for dead")
        db.living.discard(id_)
        leader.dispatcher.server_gone(id_)

    # The database.

    def may_fail_over(self) -> None:
        """The database may be lost while something is being committed."""
        if self.world.rng.random() < self.fails_at_commit:
            self.fail_over(self.world.rng.random() * 20 * SECOND)

    def fail_over(self, width: timedelta) -> None:
        """The database is away, until another one with all that was committed takes its place."""
        world, db = self.world, self.world.db
        if db.is_down:
            return
        world.tell("database", f"is away for {width}")
        db.is_down, db.lost_at = True, world.now
        db.committing = {server.id for server in self.servers if world.rng.random() < 0.5}
        for agent in world.agents:
            agent.ails()
        if self.leader is not None:
            self.leader.own(self.leader.dispatcher.follow)()
            self.leader = None
        world.at(world.now + width, self._is_back)

    def _is_back(self) -> None:
        world = self.world
        world.tell("database", "is back")
        world.db.is_down = False
        self.elect()
        for server in self.servers:
            if server.up:
                server.follow_soon(world.rng.random() * POLL_S)
        for agent in world.agents:
            world.at(world.now + CALM, agent.recovers)

    def declared(self, edit: Edit, by: Replica) -> None:
        """A change is committed, whether or not its server hears of that."""
        world, state = self.world, self.declared_state
        plan = edit.planned(state)
        state.commit(plan, edit.versions)
        world.db.declare(plan, edit.versions)
        for name, version in edit.versions.items():
            world.changed(state.hosts[name], version, by.behind, relabelled=bool(plan.put_hosts))
        self.committed(by)

    def committed(self, by: Replica) -> None:
        """Wake the others if there is news. Who is not woken asks within POLL_S."""
        world = self.world
        if world.db.has_told():
            for server in self.servers:
                if server is not by and server.up:
                    is_late = world.rng.random() < self.silent
                    server.follow_soon(world.rng.random() * (POLL_S if is_late else 0.05))

    # What is right at all times.

    def audit(self, every: timedelta = HOUR) -> None:
        """Look now and then whether jobs with slots were sent, and hosts are known to be where they are."""
        world = self.world
        world.at(world.now + CALM, partial(self._audited, world.db.unsent(), self._not_there(), world.now))
        world.at(world.now + every, partial(self.audit, every))

    def _not_there(self) -> set[tuple[str, str]]:
        """The hosts that are known at servers which do not have them."""
        have = {(host, server.id) for server in self.servers for host in server.pipes if server.up}
        return self.world.db.connected() - have

    def _audited(self, unsent: set[tuple[str, str]], not_there: set[tuple[str, str]], since: datetime) -> None:
        world, db = self.world, self.world.db
        had_time = world.now - self.led_since > 2 * DEAD_S * SECOND  # to find who died before
        if self.leader is not None and not self.leader.paused and not db.is_down and had_time:
            for host, id_ in not_there & self._not_there():
                world.wrongs.append(f"{host} has been known at {id_} since {since}, and is not there")
        for agent in world.agents:
            if agent.pipe is None or not agent.was_well(since):
                continue
            if (agent.name, agent.pipe.server.id) not in db.connected():
                world.wrongs.append(f"{agent.name} is connected to {agent.pipe.server.id}, and not known there")
        for job_id, host in unsent & db.unsent():
            if world.by_name[host].was_well(since):
                world.wrongs.append(f"{job_id} was given a slot on {host} before {since}, and is not sent")

    # The end.

    def wrongs(self) -> list[str]:
        """Where servers do not hold what is declared, and rows that are of servers which are no more."""
        wrong = [f"a host is connected to {id_}, which is dead" for id_ in self.world.db.without_row()]
        for server in self.servers:
            for name, state in self.declared_state.hosts.items():
                held = server.placement.hosts[name]
                if (held.version, held.digest) != (state.version, state.digest):
                    wrong.append(f"{server.name} has version {held.version} of {name}, should {state.version}")
                if not server.sessions[name].in_sync:
                    wrong.append(f"{server.name} does not know that {name} is in sync")
        return wrong
