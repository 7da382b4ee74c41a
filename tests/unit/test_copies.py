"""Promise 11: whatever happens on servers, and whenever they hear of it, their copies agree with the rows in the end.

Real servers' parts over one SQLite that they share; connections of agents are what the hub sees of them.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, cast

import pytest
from sqlalchemy import Connection as Database

from server.access.identity import Files
from server.access.vault import Vault
from server.agents.hub import Connection
from server.app import Parts, assemble
from server.jobs.fires import new_job
from server.observe.controllers import ControllerReport, ReportedProblem
from server.store import news
from server.store.engine import Store
from server.store.tables import Actor
from tests.jobqueue import NOON, in_memory
from wire import codec
from wire.messages import (
    CommandCancel,
    CommandRun,
    Hello,
    JobAccepted,
    JobFinished,
    JobProgress,
    LeftOut,
    ScheduleAck,
)

HOSTS = ("a", "b", "c")
ME = Actor("user", "me")
VAULT = Vault([Vault.new_key()])


def named(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name}}


class Shared:
    """A store of one of the servers that share a database: each call is committed at once.

    `late`: whether news of some server may not be seen yet, though later ones of others are.
    """

    is_shared = True
    waiting = 0
    failing = False

    def __init__(self, conn: Database, server: str, rng: random.Random) -> None:
        self.conn, self.server, self.rng = conn, server, rng
        self.late = True

    def submit(self, function: Callable[..., Sequence[Any]], item: Any, host: str = "") -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(function(self.conn, [item])[0])
        return future

    async def write(self, function: Callable[..., Sequence[Any]], item: Any, host: str = "") -> Any:
        return await self.submit(function, item)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        found = function(self.conn, *args)
        if function is news.read and found and self.late:
            late = self.rng.choice(found)
            return [row for row in found if row.server != late.server or row.id < late.id]
        return found


class Agent:
    """A host's agent: the jobs that it has, and its connection, to whichever server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: dict[str, bool] = {}  # whether it said that it took them
        self.over: set[str] = set()
        self.connection: Connection | None = None
        self.server: Server | None = None
        self.received_at = 0.0
        self.cut: Callable[[], object] = lambda: None
        self.version, self.digest = 0, ""

    def write(self, frame: str) -> int:
        for message, _ in codec.from_server.read(frame):
            if isinstance(message, CommandRun) and message.job_id not in self.over:
                self.jobs.setdefault(message.job_id, False)
            elif isinstance(message, CommandCancel) and message.job_id in self.jobs:
                self.over.add(message.job_id)
        return 0

    def take_frames(self, take: object) -> None:
        """Its frames are said by hand."""

    async def send_text(self, frame: str) -> None:
        self.write(frame)


class Server:
    """A server's parts."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.store = Shared(world.conn, name, world.rng)
        store = cast(Store, self.store)
        ids = count()
        self.parts: Parts = assemble(
            store, VAULT, lambda: world.now, lambda: f"{name}{next(ids):06}", Files("admin", "agent")
        )

    async def start(self) -> None:
        await self.parts.news.begin()
        await self.parts.loader.load(cast(Store, self.store), VAULT)
        await self.parts.news.load()

    async def follow(self) -> None:
        await self.parts.pipeline.follow()
        await self.parts.news.follow()

    def shown(self) -> dict[str, Any]:
        """What it answers."""
        services, catalog = self.parts.services, self.parts.catalog
        sessions = {it.name: it for it in services.hub.sessions()}
        schedules = [row.id for row in catalog.schedules.values()]
        coverage = services.coverage
        outcomes = {(it.namespace, it.schedule): (it.since, it.failed, it.warned) for it in coverage.expected()}
        return {
            "online": {name: services.hub.is_connected(name) for name in HOSTS},
            "applied": {name: (it.applied_version, it.applied_digest) for name, it in sessions.items()},
            "left out": {name: it.left_out for name, it in sessions.items()},
            "agents": {name: it.hello_facts for name, it in sessions.items()},
            "outcomes": outcomes,
            "controllers": services.controllers._states,
            "schedules": schedules,
        }

    def health(self) -> Any:
        """What it says of its repositories, of which a server that began later knows less."""
        health, limit = self.parts.services.health, self.parts.queue._limit_of
        ids = [row.id for row in self.parts.catalog.repositories.values()]
        return {it: (health.problem(it), health.verified(it), limit(it)) for it in ids}


class World:
    """Servers over one database, and agents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.conn = in_memory()
        self.now = NOON
        self.names = count()
        self.servers: list[Server] = []
        self.agents = [Agent(name) for name in HOSTS]
        self.tasks: set[asyncio.Task[None]] = set()

    async def started(self) -> Server:
        server = Server(self, f"server{next(self.names)}")
        await server.start()
        self.servers.append(server)
        return server

    async def declare(self) -> None:
        services = self.servers[0].parts.services
        for name in HOSTS:
            await services.hosts.put(ME, name, {})
        repository = {"spec": {"url": "/backup", "init": True}, "credentials": {"password": "secret"}}
        await services.repositories.put(ME, {**repository, **named("main")})
        spec = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": "main"}}
        for name in ("one", "two"):
            await services.schedules.put(ME, {"spec": {**spec, "concurrencyPolicy": "Allow"}, **named(name)})

    # What happens.

    async def hello(self, agent: Agent) -> None:
        """An agent connects to some server; its older connection may be gone already, or not."""
        if self.rng.random() < 0.5:
            agent.cut()
        server = agent.server = self.rng.choice(self.servers)
        parts, agent.received_at = server.parts, asyncio.get_running_loop().time()
        welcomed = asyncio.get_running_loop().create_future()

        async def connected() -> None:
            session = await parts.services.hosts.session(agent.name)
            connection = Connection(cast(Any, agent), session, next(self.names), f"process-{agent.name}")
            agent.connection = connection
            parts.services.hub.replace(connection)
            hello = Hello(
                agent.name, f"{self.rng.randint(1, 3)}", agent.version, agent.digest, ["backup"], [*agent.jobs]
            )
            try:
                await parts.gateway._welcome(connection, hello, cast(Any, agent), has_jobs=True)
                welcomed.set_result(None)
                await asyncio.get_running_loop().create_future()
            finally:
                parts.services.hub.remove(connection)

        task = asyncio.create_task(connected())
        self.tasks.add(task)
        agent.cut = task.cancel
        await asyncio.wait([welcomed, task], return_when=asyncio.FIRST_COMPLETED)

    async def says(self, agent: Agent, message: Any) -> None:
        """An agent says something, if its connection is there."""
        connection, server = agent.connection, agent.server
        if connection is None or server is None or server not in self.servers:
            return
        if server.parts.services.hub.newest(agent.name) is connection:
            await server.parts.gateway._perform(connection, connection.session.received([(message, "")], self.now))

    async def step(self) -> None:
        rng, agent, server = self.rng, self.rng.choice(self.agents), self.rng.choice(self.servers)
        self.now += timedelta(seconds=rng.randint(1, 60))
        attempts = [it for it in agent.jobs if it not in agent.over]
        match rng.choice(
            ["hello", "cut", "run", "run", "take", "end", "end", "ack", "cancel", "report", "kill", *FOLLOW]
        ):
            case "hello":
                await self.hello(agent)
            case "cut":
                agent.cut()
            case "run":
                await self.run(server, agent.name)
            case "take" if attempts:
                job_id = rng.choice(attempts)
                agent.jobs[job_id] = True
                await self.says(agent, JobAccepted(job_id))
                await self.says(agent, JobProgress(job_id, fraction=0.5))
            case "end" if attempts:
                await self.end(agent, rng.choice(attempts))
            case "ack":
                agent.version, agent.digest = rng.randint(0, 9), f"{rng.randint(0, 9)}" * 64
                left_out = [LeftOut("x", "unknown")] * rng.randint(0, 1)
                await self.says(agent, ScheduleAck(agent.version, agent.digest, left_out, len(left_out)))
            case "cancel" if attempts:
                parts = server.parts
                await parts.services.dispatcher.cancel([rng.choice(attempts).partition(".")[0]], "me")
            case "report":
                report = ControllerReport([ReportedProblem("Bad", f"{rng.random()}")])
                await server.parts.services.controllers.report("folder", report)
            case "kill" if len(self.servers) > 2:
                await self.kill(server)
            case _:
                await server.follow()
        await asyncio.sleep(0)

    async def run(self, server: Server, host: str) -> None:
        services, catalog = server.parts.services, server.parts.catalog
        row = self.rng.choice(list(catalog.schedules.values()))
        schedule = services.placement.schedules[row.id]
        job = new_job(schedule, host, f"{self.rng.getrandbits(128):032x}", None, self.now, ("user", "me"))
        await services.dispatcher.record([job])

    async def end(self, agent: Agent, attempt: str) -> None:
        status, reason = self.rng.choice(
            [("succeeded", ""), ("warning", ""), ("failed", ""), ("failed", "Locked"), ("failed", "WrongPassword")]
        )
        agent.over.add(attempt)
        end = JobFinished(attempt, cast(Any, status), self.now, error=f"{self.rng.random()}", reason=reason)
        await self.says(agent, end)

    async def kill(self, server: Server) -> None:
        """A server is gone, with its connections; another finds it, and a new one begins."""
        self.servers.remove(server)
        server.store.conn = in_memory()  # what it still stores, nobody sees
        for agent in self.agents:
            if agent.server is server:
                agent.cut()
        await asyncio.sleep(0)
        self.servers[0].parts.news.bury(server.name)
        await self.started()

    async def calm(self) -> None:
        """All that was told is heard, and what followed from it."""
        for server in self.servers:
            server.store.late = False
        for _ in range(4):
            for server in self.servers:
                await server.follow()
                await asyncio.sleep(0)


FOLLOW = ["follow"] * 4


async def story(seed: int) -> None:
    world = World(seed)
    await world.started()
    await world.declare()
    for _ in range(2):
        await world.started()
    oldest = list(world.servers)
    world.servers[0].parts.services.dispatcher.lead()
    for _ in range(120):
        await world.step()
    await world.calm()
    first, *others = world.servers
    for other in others:
        assert other.shown() == first.shown()
    assert all(it.health() == oldest[0].health() for it in oldest if {it, oldest[0]} <= {*world.servers})
    fresh = await world.started()
    assert fresh.shown() == first.shown()
    for task in world.tasks:
        task.cancel()
    await asyncio.wait(world.tasks)
    for server in world.servers:
        server.parts.services.dispatcher.close()


@pytest.mark.parametrize("seed", range(8))
def test_all_copies_agree_with_the_database_once_all_is_heard(seed: int) -> None:
    asyncio.run(story(seed))
