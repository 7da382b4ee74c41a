"""A story: what people want of a fleet in a month, and what goes wrong meanwhile."""

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import cron
from server.fleet.placement import PlacedSchedule, encoded_entry
from server.fleet.timing import superseded
from server.jobs import arguments as commands
from server.resources.manifests import schedule_spec
from server.resources.specs import ScheduleSpec
from tests.simulation.clock import DAY, HOUR, SECOND
from tests.simulation.replica import Replica
from tests.simulation.server import Server
from tests.simulation.world import Agent, World
from wire.messages import ScheduleFire

WAITED = timedelta(hours=12)
"""Jobs that came less than this before the end of a story may still wait for others, or be tried again."""
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
HALF_PAST_TWO = "30 2 * * *"
CRONS = (
    *["{m} {h} * * *"] * 4,
    *[HALF_PAST_TWO] * 2,
    "{m} {h} * * 1,4",
    "{m} {h} 1,15 * *",
    "{m} */6 * * *",
    "0-9 {h} * * 2",
    "@weekly",
)
WINDOWS: Sequence[tuple[tuple[str, str], ...]] = (
    (),
    (("22:00", "06:00"),),
    (("01:30", "07:00"),),
    (("00:00", "05:00"), ("12:00", "16:00")),
)
KINDS = ("backup",) * 9 + tuple(sorted(commands.KINDS & {"prune"}))
REPOSITORIES = ("repo",) * 6 + ("few", "one", "each")
KINDS_WITH_COPIES = ("backup", "backup", "prune", "copy", "copy", "copy")
CROWDED = ("few", "one", "each")
MISHAPS = (
    "cut",
    "cut",
    "kill",
    "kill",
    "power",
    "apart",
    "clock",
    "server",
    "edit",
    "edit",
    "labels",
    "cancel",
    "invents",
)
TROUBLES = (*MISHAPS, "older database", "server clock")
"""What goes wrong, with what touches the whole fleet at once."""
SHARED = (*MISHAPS, "server", "stop", "pause", "database")
"""What goes wrong where several servers share a database."""


class Scale(NamedTuple):
    """How large a fleet is, and what goes wrong in it. `groups`: of hosts; each schedule is for one of them.
    `servers`: how many share the database. `limits`: how many jobs hosts run at once, in turn. `windows`: whether
    schedules have some; `pauses`: whether some pause once they failed on too many hosts. `copies`: whether half of
    them copy, all in repositories with few slots."""

    agents: int = 50
    groups: int = 40
    schedules: int = 200
    mishaps: int = 300
    kinds: Sequence[str] = MISHAPS
    servers: int = 1
    days: int = 30
    limits: Sequence[int | None] = ()
    windows: bool = False
    pauses: bool = False
    copies: bool = False


MONTH = Scale()
"""The large fleet: `make test` tries one of its seeds, and `make faults` fifty. Drawn fleets take less time."""


RESTORED = Scale(agents=12, groups=10, schedules=50, mishaps=120, kinds=(*MISHAPS, "older database"))
"""A fleet whose server gets its own database of an hour or a day ago, now and then."""
MISLED = RESTORED._replace(kinds=TROUBLES)
"""A fleet of which, now and then, the server's clock is wrong as well."""


def drawn(seed: int) -> Scale:
    """A fleet drawn from a seed: of 2 to 32 hosts, with 3 to 30 mishaps for each, of some kinds only.

    What some features hide, others show when those are left out: Groce et al., "Swarm testing", ISSTA 2012.
    """
    rng = random.Random(f"scale of {seed}")
    agents = round(2 * 16 ** rng.random())
    groups = rng.randint(1, agents)
    kinds = [kind for kind in TROUBLES if rng.random() < 0.7] or TROUBLES
    return Scale(agents, groups, 5 * groups, round(agents * 3 * 10 ** rng.random()), kinds)


def shared(seed: int) -> Scale:
    """A small fleet drawn from a seed, for ten days, of 1 to 4 servers over one database."""
    rng = random.Random(f"servers of {seed}")
    servers = rng.choice((1, 2, 2, 3, 3, 4))
    agents = rng.randint(2, 8)
    groups = rng.randint(1, agents)
    kinds = [kind for kind in (SHARED if servers > 1 else TROUBLES) if rng.random() < 0.7] or MISHAPS
    return Scale(agents, groups, 5 * groups, round(agents * 3 * 5 ** rng.random()), kinds, servers, 10)


def held(seed: int) -> Scale:
    """A fleet like `shared`, of hosts that run few jobs at once, are drained, and whose agents are replaced."""
    rng = random.Random(f"limits of {seed}")
    scale = shared(seed)
    kinds = (*scale.kinds, *("drain",) * 4, *("upgrade",) * 4)
    return scale._replace(kinds=kinds, limits=[rng.choice((None, 1, 1, 2)) for _ in range(scale.agents)])


def windowed(seed: int) -> Scale:
    """A small fleet drawn from a seed, for ten days, of 1 to 3 servers, whose schedules have windows."""
    rng = random.Random(f"windows of {seed}")
    agents, servers = rng.randint(2, 8), rng.choice((1, 1, 2, 3))
    kinds = [kind for kind in (SHARED if servers > 1 else MISHAPS) if rng.random() < 0.7] or MISHAPS
    return Scale(agents, 2, 12, round(agents * 3 * 5 ** rng.random()), kinds, servers, 10, windows=True)


def pausing(seed: int) -> Scale:
    """A fleet like `held`, whose schedules pause once they failed on too many hosts, until people resume them."""
    return held(seed)._replace(pauses=True)


def copied(seed: int) -> Scale:
    """A fleet like `held`, half of whose schedules copy, in all directions between repositories with few slots."""
    return held(seed)._replace(copies=True)


FLEETS: Mapping[str, Callable[[int], Scale]] = {
    "month": lambda seed: MONTH,
    "restored": lambda seed: RESTORED,
    "misled": lambda seed: MISLED,
    "drawn": drawn,
    "shared": shared,
    "held": held,
    "pausing": pausing,
    "windowed": windowed,
    "copied": copied,
}
"""Fleets by the names that a command knows them by; the last six are others for each seed."""


class Story(World):
    """A month of a fleet, with mishaps, and three quiet days for all to come right.

    `specs`: those that each schedule had, with the time when it got them.
    """

    def __init__(self, seed: int, scale: Scale = MONTH, listen: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, scale.agents, listen, scale.servers)
        self.scale = scale
        self.quiet = self.begin
        given = zip(self.agents, scale.limits, strict=False)
        if scale.pauses:
            self.db.begun_at_pause = {}
            self.at(self.now + HOUR, self._resume)
        self.of_hosts |= {agent.name: limit for agent, limit in given if limit is not None}
        self.specs: dict[str, list[tuple[datetime, ScheduleSpec]]] = {}
        for agent in self.agents:
            self.db.labels[agent.name] = self._some_labels()
            self.db.since[agent.name] = self.now
            self.db.versions[agent.name] = 0
            self.db.open[agent.name] = {}
            self.at(self.now + self.rng.random() * HOUR, agent.start)
        if scale.servers > 1:
            self.replicas.declared_state = self.db.placement()
            self.replicas.audit()
        for server in self.servers:
            server.start()
        for _ in range(scale.schedules):
            self._create()

    def play(self) -> "Story":
        """Let it happen, from the first day to the last."""
        self.quiet = quiet = self.begin + self.scale.days * DAY
        for _ in range(self.scale.mishaps):
            self.at(self.begin + self.rng.random() * (quiet - self.begin), lambda: self._mishap(quiet))
        self.run_until(quiet)
        self.kills_at_commit = 0.0
        if self.scale.servers > 1:
            self.replicas.fails_at_commit = 0.0
        for server in self.servers:
            server.set_clock(timedelta())
        for agent in self.agents:
            agent.cut_off = False
            agent.set_clock(timedelta())
            self._undrain(agent.name)
        self.run_until(quiet + 3 * DAY)
        for _ in range(24):
            if all(row.end is not None or row.recorded_at >= self.settled for row in self.db.jobs.values()):
                break
            self.run_until(self.now + HOUR)  # where dozens wait for one repository, an hour each, they need longer
        return self

    @property
    def settled(self) -> datetime:
        """What came before is to be over. What came since may still wait for others, or be tried again."""
        return self.now - WAITED - (DAY if self.scale.windows else timedelta())

    # What goes wrong.

    def _mishap(self, before: datetime) -> None:
        """Something happens to somebody: half of the time at the worst moment, when a run is about to be due."""
        agent = self.rng.choice(self.agents)
        at = self.now
        if agent.core is not None and self.rng.random() < 0.5:
            due = max(at, min(agent.core.wake_at, before) - agent.skew)
            last = before - self.rng.random() * SECOND  # no two things happen at the very same time
            at = max(at, min(due + (self.rng.random() * 0.3 - 0.05) * SECOND, last))
        what = self.rng.choice(self.scale.kinds)
        self.at(at, lambda: self._happen(what, agent))

    def _happen(self, what: str, agent: Agent) -> None:
        rng = self.rng
        match what:
            case "cut" if agent.pipe is not None:
                self.tell(agent.name, "connection breaks")
                agent.pipe.cut()
            case "kill" | "power":
                agent.kill(power=what == "power")
            case "apart":
                self._cut_off(agent, rng.random() * 3 * DAY)
            case "clock":
                agent.set_clock(_some_skew(rng))
                self.at(self.now + rng.random() * 6 * HOUR, lambda: agent.set_clock(timedelta()))
            case "upgrade":
                agent.stop()
            case "drain" if agent.name not in self.db.drained and (server := self.any_server()) is not None:
                server.drain(agent.name, on=True)
                self.at(self.now + rng.random() * 12 * HOUR, lambda: self._undrain(agent.name))
            case "labels" if (server := self.any_server()) is not None:
                labels = self._some_labels()
                self.tell("user", f"gives {agent.name} {labels}")
                server.relabel(agent.name, labels)
            case "edit" if self.any_server() is not None:
                edits = (self._retime, self._change, self._delete) if self.db.schedules else ()
                rng.choice((self._create, *edits))()
            case "invents" if agent.pipe is not None and self.db.schedules:
                self._invent(agent)
            case "cancel" if (server := self.any_server()) is not None and (jobs := self.db.open[agent.name]):
                job_id = rng.choice(list(jobs))
                self.tell("user", f"cancels {job_id} on {agent.name}")
                server.cancel(job_id)
            case _:
                self._happen_to(what, rng.choice(self.servers) if len(self.servers) > 1 else self.servers[0])

    def _resume(self) -> None:
        """People have a look about each hour, and let go on what is paused."""
        self.at(self.now + (0.5 + self.rng.random()) * HOUR, self._resume)
        if (server := self.any_server()) is not None:
            for schedule_id in sorted(self.db.paused()):
                self.tell("user", f"resumes {schedule_id}")
                server.resume(schedule_id)

    def _undrain(self, name: str) -> None:
        if name not in self.db.drained:
            return
        if (server := self.any_server()) is None:
            self.at(self.now + HOUR, lambda: self._undrain(name))
            return
        server.drain(name, on=False)

    def _happen_to(self, what: str, server: Server) -> None:
        """Something happens to a server, or to the database."""
        rng = self.rng
        match what:
            case "server":
                server.kill()
            case "server clock":
                server.set_clock(_some_skew(rng))
                self.at(self.now + rng.random() * 6 * HOUR, lambda: server.set_clock(timedelta()))
            case "older database" if server.up:
                copy = server.copied()
                at = self.now + rng.choice((1, 24)) * HOUR
                if at < self.quiet:
                    self.at(at, lambda: server.put_back(*copy))
            case "stop" if isinstance(server, Replica):
                server.stop()
            case "pause" if isinstance(server, Replica):
                server.pause(rng.choice((3, 12, 60, 900)) * rng.random() * SECOND)
            case "database" if isinstance(server, Replica):
                if rng.random() < 0.5 and server.serves:
                    server.loses_answers()
                self.replicas.fail_over(rng.choice((2, 20, 60)) * rng.random() * SECOND)

    def _invent(self, agent: Agent) -> None:
        """A host says that schedules are due when they are not, or are yet to be."""
        self.tell(agent.name, "invents due times")
        fires = []
        for _ in range(20):
            schedule = self.db.schedules[self._some_id()]
            at = self.now + self.rng.uniform(-9, 9) * DAY
            if at > self.now + HOUR:
                spec = schedule.spec
                spread = cron.spread(agent.name, schedule.id, spec.spread_seconds)
                at = cron.next_due(cron.parse(spec.cron), cron.zone(spec.time_zone), at) + spread
            fires.append(ScheduleFire(schedule.id, at, self.rng.choice((0, 1, 2**53))))
        if agent.pipe is not None:
            agent.pipe.to_server(fires)

    def _cut_off(self, agent: Agent, width: timedelta) -> None:
        self.tell(agent.name, f"is cut off for {width}")
        agent.cut_off = True
        if agent.pipe is not None:
            agent.pipe.cut()

        def heal() -> None:
            agent.cut_off = False

        self.at(self.now + width, heal)

    # What people want.

    def _some_labels(self) -> dict[str, str]:
        return {"group": str(self.rng.randrange(self.scale.groups))}

    def _create(self) -> None:
        schedule_id = self.new_id()
        if self.scale.limits and int(schedule_id.rpartition("-")[2]) % 3 == 0:
            self.rollouts[schedule_id] = 1
        if self.scale.pauses and (number := int(schedule_id.rpartition("-")[2])) % 4:
            self.pausing[schedule_id] = number % 4 // 3
        self._put(schedule_id, self._some_timing(), "creates")

    def _retime(self) -> None:
        schedule_id = self._some_id()
        self._put(schedule_id, self._some_timing(), "changes the timing of")
        self._change_soon(schedule_id)

    def _change(self) -> None:
        schedule_id = self._some_id()
        self._put(schedule_id, None, "changes")
        self._change_soon(schedule_id)

    def _change_soon(self, schedule_id: str) -> None:
        """People save twice: a change may come while the last one is being pushed."""

        def change() -> None:
            if self.any_server() is not None and schedule_id in self.db.schedules:
                self._put(schedule_id, None, "changes")

        if self.rng.random() < 0.5:
            self.at(self.now + self.rng.random() * SECOND, change)

    def _delete(self) -> None:
        schedule_id = self._some_id()
        if (server := self.any_server()) is not None:
            self.tell("user", f"deletes {schedule_id}")
            server.remove(schedule_id)

    def _some_id(self) -> str:
        return self.rng.choice(list(self.db.schedules))

    def _some_timing(self) -> ScheduleSpec:
        """When something is to run, on which hosts, and what if it could not."""
        rng, copies = self.rng, self.scale.copies
        return _spec(
            rng.choice(CRONS).format(m=rng.randrange(60), h=rng.randrange(24)),
            rng.choice(ZONES),
            rng.random() > 0.05,
            rng.randrange(self.scale.groups),
            "RunOnce" if rng.random() < 0.9 else "Skip",
            None if rng.random() < 0.9 else 600,
            rng.choice((0, 0, 0, 1800)),
            rng.choice(KINDS_WITH_COPIES if copies else KINDS),
            rng.choice(("Forbid", "Forbid", "Allow", "Replace")),
            tuple(rng.sample(CROWDED, 2)) if copies else (rng.choice(REPOSITORIES), ""),
            rng.choice((0, 0, 2)),
            rng.choice(WINDOWS) if self.scale.windows else (),
            self.scale.windows and rng.random() < 0.5,
        )

    def _put(self, schedule_id: str, timing: ScheduleSpec | None, does: str) -> None:
        """Put a schedule; without a timing, it keeps the one it has and something else about it changes."""
        server = self.any_server()
        if server is None:
            return
        spec = timing or self.db.schedules[schedule_id].spec
        begun = server.clock if timing else self.db.begun[schedule_id]
        name = f"default/{schedule_id}"
        self.tell("user", f"{does} {schedule_id}: {spec.cron} {spec.time_zone} enabled={spec.enabled}")
        entry = encoded_entry(schedule_id, name, spec, begun, self.new_id())
        was = self.db.schedules.get(schedule_id)
        earlier = was.earlier if was else ()
        if was and timing and was.spec.enabled:
            earlier = superseded(was.timing, earlier)
        schedule = PlacedSchedule(
            schedule_id,
            name,
            spec,
            spec.repository,
            init=False,
            entry=entry,
            since=begun,
            earlier=earlier,
            from_repository_id=spec.from_repository,
        )
        self.specs.setdefault(schedule_id, []).append((self.now, spec))
        server.put(schedule, begun)


def _some_skew(rng: random.Random) -> timedelta:
    """How far a clock that somebody sets is off: from seconds to a day."""
    return rng.choice((-26, -4, -1, -0.01, 0.01, 1, 4, 26)) * rng.random() * HOUR


@lru_cache(maxsize=4096)
def _spec(
    cron: str,
    zone: str,
    enabled: bool,
    group: int,
    missed: str,
    deadline: int | None,
    spread: int,
    kind: str,
    concurrency: str,
    repositories: tuple[str, str],
    retries: int,
    windows: tuple[tuple[str, str], ...],
    stop_at_end: bool,
) -> ScheduleSpec:
    backup = {"paths": ["/etc"], "excludes": [], "tags": [], "oneFileSystem": False, "excludeCaches": False}
    repository, source = repositories
    return schedule_spec(
        {
            "kind": kind,
            "cron": cron,
            "timeZone": zone,
            "enabled": enabled,
            "hostSelector": {"matchLabels": {"group": str(group)}},
            "repositoryRef": {"name": repository},
            "backup": backup,
            "copy": {"fromRepositoryRef": {"name": source}} if kind == "copy" else None,
            "concurrencyPolicy": concurrency,
            "missedRunPolicy": missed,
            "startingDeadlineSeconds": deadline,
            "spreadSeconds": spread,
            "retry": {"limit": retries, "backoffSeconds": 60},
            "windows": [{"from": begin, "to": end} for begin, end in windows],
            "stopAtEnd": stop_at_end,
            "runOnJoin": stop_at_end,
        }
    )


def play(seed: int, scale: Scale = MONTH, listen: Callable[[str], None] | None = None) -> Story:
    """The whole story of a seed."""
    gc.collect(1)  # what the last story left, and not all that was before it
    gc.disable()  # hardly a thing in one is garbage before its end
    try:
        return Story(seed, scale, listen).play()
    finally:
        gc.enable()
