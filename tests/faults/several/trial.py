"""The trial: servers over one PostgreSQL behind a balancer, a crowd of agents, and what is done to them meanwhile."""

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg

from bench.servers import LAMPLIGHTER, free_port, resident
from server.access.vault import Vault
from tests.faults.checks import ENDS, Evidence, Held, Job, Kept, Row, due_times, violations
from tests.faults.fleet import Part
from tests.faults.several.balancer import Balancer

READY_S = 120.0
QUIET_S = 180.0
"""Seconds within which all must be quiet after the last fault."""
DOWN_S = 2.0
"""Seconds that a server is down, which is what a supervisor takes to start it again."""
WATCH_S = 10.0
"""Seconds between two looks at the servers' memory."""
SPREAD = 0.2
"""The share by which a server's connections may differ from the mean."""
OF_A_CROWD = 500
"""Agents in one process."""
EACH_CHANGED = 4
"""Every so many hosts get other labels. What is due on the others is to run, or to be stood for, whatever happens."""
RETRIES = {"limit": 2, "backoffSeconds": 1}
KEPT = {"minutely": 1, "pairs": 2}
"""Schedules that are never changed, and every how many minutes they are due."""


class Told(NamedTuple):
    """What a trial showed.

    `spread_s`: how long after each return of a server agents were spread, where they were before the next fault, and
    `not_spread`: how often they were not. `late_s`: of each command that waits for no repository, its due time in
    seconds since the trial's begin, and how long after that it came. `memory`: of the servers, resident bytes, each
    WATCH_S seconds.
    """

    faults: Counter[str]
    changes: int
    jobs: int
    spread_s: Sequence[float]
    not_spread: int
    late_s: Sequence[tuple[float, float]]
    memory: Sequence[Sequence[int]]
    wrong: Sequence[str]


class Plan(NamedTuple):
    """What a trial is to be. `seconds`: how long faults go on; `before`: the interpreter of an older release, whose
    server begins alone and is then upgraded; `calm`: without faults; `in_turn`: the balancer gives
    connections to the servers in turn; `kill_every_s`, `stop_every_s`: seconds from one server to the next that is
    killed, or stopped cleanly."""

    servers: int = 3
    agents: int = 2000
    seconds: float = 600.0
    seed: int = 0
    before: Path | None = None
    calm: bool = False
    in_turn: bool = False
    kill_every_s: float = 20.0
    stop_every_s: float = 50.0


class Trial:
    """Servers, agents and the database of a trial in a folder."""

    def __init__(self, folder: Path, database: str, plan: Plan) -> None:
        self.folder, self.database, self.plan = folder, database, plan
        self.ports = [free_port() for _ in range(plan.servers)]
        self.port = free_port()
        self.hosts = plan.agents
        self.rng = random.Random(plan.seed)
        key = folder / "vault-key"
        key.touch(0o600)
        key.write_text(Vault.new_key())
        self.servers = [self._server(number, port) for number, port in enumerate(self.ports)]
        self.crowds: list[asyncio.subprocess.Process] = []
        self.faults: Counter[str] = Counter()
        self.changes = 0
        self.memory: list[list[int]] = []
        self.spread_s: list[float] = []
        self.not_spread = 0
        self.begin = datetime.now(UTC)
        self.schedules: dict[str, str] = {}
        self.api: httpx.AsyncClient

    def _server(self, number: int, port: int) -> Part:
        data = self.folder / f"server-{number}"
        name = f"server-{number}"
        key = str(self.folder / "vault-key")
        served = ("server", "--data-dir", str(data), "--listen", f"127.0.0.1:{port}", "--database", self.database)
        shared = ("--vault-key-file", key, "--replica-name", name, "--drain-seconds", "3")
        return Part(name, (*LAMPLIGHTER, *served, *shared), self.folder / f"{name}.log")

    def older(self, python: Path) -> Part:
        """A server of an older release, which an interpreter has: in the place of the first, and alone."""
        first = self.servers[0]
        program = (str(python), *LAMPLIGHTER[1:])
        at = first.argv.index("--replica-name")
        return Part("older", (*program, *first.argv[len(LAMPLIGHTER) : at]), self.folder / "older.log", self.folder)

    def share_tokens(self) -> None:
        """Give all servers the tokens of the first."""
        first = self.folder / "server-0"
        for name in ("agent-token", "admin-token"):
            for number in range(1, len(self.ports)):
                (self.folder / f"server-{number}").mkdir(exist_ok=True)
                shutil.copy(first / name, self.folder / f"server-{number}" / name)
        shutil.copy(first / "agent-token", self.folder)

    async def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Ask any server until one answers for good."""
        async with asyncio.timeout(READY_S):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self.api.request(method, path, json=body)
                    if answer.status_code < 500:
                        return answer
                await asyncio.sleep(0.2)

    async def declare(self, path: str, spec: Any, **more: Any) -> None:
        """Declare a resource. Raises AssertionError where it is refused."""
        answer = await self.ask("PUT", path, {"spec": spec, **more})
        assert answer.is_success, answer.text

    async def put_schedule(self, name: str, cron: str, **spec: Any) -> None:
        """Declare a Schedule of all hosts."""
        own = {"kind": "backup", "cron": cron, "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": "wide"}}
        common = {"hostSelector": {"matchLabels": {}}, "concurrencyPolicy": "Allow", "retry": RETRIES}
        await self.declare(f"/schedules/trial/{name}", {**own, **common, **spec})

    async def declare_all(self, *, enabled: bool = True) -> None:
        """Declare what the trial runs."""
        secret = {"credentials": {"password": "a password of the tests"}}
        await self.declare("/repositories/trial/wide", {"url": "/repositories/wide", "init": False}, **secret)
        narrow = {"url": "/repositories/narrow", "init": False, "maxConcurrentJobs": 100}
        await self.declare("/repositories/trial/narrow", narrow, **secret)
        await self.put_schedule("minutely", "* * * * *", enabled=enabled)
        await self.put_schedule("pairs", "*/2 * * * *", repositoryRef={"name": "narrow"}, enabled=enabled)
        for item in (await self.ask("GET", "/schedules")).json()["items"]:
            self.schedules[item["metadata"]["name"]] = item["metadata"]["uid"]

    # The agents.

    async def start_crowds(self) -> None:
        """Start all agents."""
        for first in range(0, self.hosts, OF_A_CROWD):
            count = min(OF_A_CROWD, self.hosts - first)
            argv = (sys.executable, "-m", "tests.faults.several.crowd", f"ws://127.0.0.1:{self.port}/agent")
            more = (str(self.folder), str(first), str(count))
            self.crowds.append(await asyncio.create_subprocess_exec(*argv, *more))

    async def stop_crowds(self) -> dict[str, Held]:
        """Stop all agents; what each holds."""
        for crowd in self.crowds:
            crowd.terminate()
        for crowd in self.crowds:
            assert await crowd.wait() == 0, "a process of agents failed"
        found: dict[str, Held] = {}
        for path in self.folder.glob("crowd-*.held"):
            for host, (version, digest, left) in json.loads(path.read_text()).items():
                found[host] = Held(version, digest, tuple(left), 0)
        return found

    def runs(self) -> list[tuple[str, str, str | None, str, str]]:
        """Each run: its host, schedule, due time, attempt and lateness in seconds."""
        lines = [line for path in self.folder.glob("crowd-*.runs") for line in path.read_text().splitlines()]
        return [tuple(json.loads(line)) for line in lines]

    # The database.

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""
        with psycopg.connect(self.database.replace("+psycopg", "")) as conn:
            return conn.execute(statement.encode()).fetchall()

    def connections(self) -> dict[str, int]:
        """How many hosts each server has that takes agents."""
        statement = """SELECT servers.name, count(connections.host) FROM servers
            LEFT JOIN connections ON connections.server = servers.id
            WHERE NOT servers.stopping AND servers.seen_at > servers.started_at GROUP BY 1"""
        return dict(self.query(statement))

    def jobs(self) -> list[Job]:
        """All jobs."""
        names = {uid: name for name, uid in self.schedules.items()}
        statement = (
            """SELECT id, scheduled_id, host, kind, scheduled_at, missed, status, attempt, created_at FROM jobs"""
        )
        return [
            Job(job_id, schedule, names.get(schedule, schedule), host, kind, due, missed, status, attempt, created, "")
            for job_id, schedule, host, kind, due, missed, status, attempt, created in self.query(statement)
        ]

    def rows(self) -> dict[str, Row]:
        """All hosts."""
        names = "name, desired_version, desired_digest, applied_version, applied_digest"
        return {name: Row((v, d), (a, g)) for name, v, d, a, g in self.query(f"SELECT {names} FROM hosts")}  # noqa: S608

    # What happens meanwhile.

    async def upgrade(self, older: Part, after_s: float) -> None:
        """Start the servers of this release beside an older one, and end that; run until cancelled."""
        await asyncio.sleep(after_s)
        self.faults["release upgraded"] += 1
        async with asyncio.TaskGroup() as tasks:
            for part in self.servers[1:]:
                tasks.create_task(part.run())  # they wait for the older one to end
            await older.kill(signal.SIGTERM)
            tasks.create_task(self.servers[0].run())

    async def hurt(self, until: float) -> None:
        """Kill a server at intervals, and stop one cleanly at others."""
        begin, kills, stops = time.monotonic(), 0, 0
        while (now := time.monotonic()) < until:
            next_kill = begin + (kills + 1) * self.plan.kill_every_s
            next_stop = begin + (stops + 1) * self.plan.stop_every_s
            at = min(next_kill, next_stop)
            await asyncio.sleep(max(0.0, at - now))
            part = self.rng.choice(self.servers)
            if at == next_kill:
                kills += 1
                self.faults["server killed"] += 1
                await part.kill()
            else:
                stops += 1
                self.faults["server stopped"] += 1
                await part.kill(signal.SIGTERM)
            await asyncio.sleep(DOWN_S)
            part.release()
            await self.until_spread(until)

    async def hurt_database(self, database: Any, seconds: float) -> None:
        """Restart PostgreSQL after a third of the time, and crash it after two."""
        for crash in (False, True):
            await asyncio.sleep(seconds / 3)
            self.faults["PostgreSQL crashed" if crash else "PostgreSQL restarted"] += 1
            await asyncio.to_thread(restart, database, crash=crash)

    async def watch(self) -> None:
        """Note the memory of the servers each WATCH_S, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            look: list[int] = []
            for part in self.servers:
                with suppress(OSError, IndexError):  # it is being killed
                    look.append(resident(part.pid or 0))
            self.memory.append(look)

    async def until_spread(self, until: float) -> None:
        """Wait until the server is back and agents are spread over all of them again; note how long that took, from
        when the last one took agents."""
        begin, back_at = time.monotonic(), 0.0
        while time.monotonic() < min(until, begin + self.plan.kill_every_s - DOWN_S):
            with suppress(psycopg.Error):
                its = await asyncio.to_thread(self.connections)
                mean, now = self.hosts / len(self.servers), time.monotonic()
                if len(its) == len(self.servers):
                    back_at = back_at or now
                    if all(abs(it - mean) <= SPREAD * mean for it in its.values()):
                        self.spread_s.append(now - back_at)
                        return
            await asyncio.sleep(0.3)
        if back_at:
            self.not_spread += 1

    async def change(self) -> None:
        """Change something each second, until cancelled."""
        while True:
            host = f"host-{self.rng.randrange(0, self.hosts, EACH_CHANGED):05}"
            if self.rng.random() < 0.5:
                labels = {"group": str(self.rng.randrange(10))}
                answer = await self.ask("PUT", f"/hosts/{host}", {"labels": labels})
                assert answer.is_success, answer.text
            else:
                tags = [f"tag-{self.changes}"]
                where = {"matchLabels": {"group": str(self.rng.randrange(10))}}
                name = f"group-{self.rng.randrange(5)}"
                await self.put_schedule(
                    name, "0 0 29 2 *", hostSelector=where, backup={"paths": ["/etc"], "tags": tags}
                )
            self.changes += 1
            await asyncio.sleep(1.0)

    async def until_in_sync(self) -> None:
        """Wait until all agents are known, and hold what they should."""
        async with asyncio.timeout(READY_S):
            while await asyncio.to_thread(self._missing):
                await asyncio.sleep(0.5)

    def _missing(self) -> int:
        rows = self.rows()
        return self.hosts - len(rows) + sum(row.desired != row.applied for row in rows.values())

    # Its end.

    async def quiet(self, until: datetime) -> list[str]:
        """Wait until all that was due by then is over, and then have nothing be due. What is left after QUIET_S."""
        left = await self._until_nothing_is_left(until)
        if not left:
            await self.declare_all(enabled=False)
            left = await self._until_nothing_is_left(datetime.max.replace(tzinfo=UTC))
        return left[:20]

    async def _until_nothing_is_left(self, until: datetime) -> list[str]:
        end = time.monotonic() + QUIET_S
        left = ["nothing was found"]
        while time.monotonic() < end and left:
            await asyncio.sleep(1.0)
            with suppress(psycopg.Error):
                left = await asyncio.to_thread(self._left, until)
        return left

    def _left(self, until: datetime) -> list[str]:
        jobs = self.jobs()
        due = [it for it in jobs if it.due is not None and it.due <= until]
        left = [f"job {it.id} of {it.schedule} on {it.host} is {it.status}" for it in due if it.status not in ENDS]
        left += [f"{host} is out of sync" for host, row in self.rows().items() if row.desired != row.applied]
        latest: dict[tuple[str, str], datetime] = {}
        for it in jobs:
            if it.due is not None:
                latest[it.schedule_id, it.host] = max(it.due, latest.get((it.schedule_id, it.host), it.due))
        if until < datetime.now(UTC):
            for kept in self.kept():
                dues = due_times(kept, until)
                if dues and latest.get((kept.schedule_id, kept.host), kept.begin) < dues[-1]:
                    left.append(f"{kept.schedule} on {kept.host} has no job due {dues[-1]}, nor a later one")
        return left

    def kept(self) -> list[Kept]:
        """What was never changed."""
        return [
            Kept(self.schedules[name], name, f"host-{number:05}", minutes, self.begin)
            for name, minutes in KEPT.items()
            for number in range(self.hosts)
            if number % EACH_CHANGED
        ]


def ran_twice(runs: Sequence[tuple[str, str, str | None, str, str]]) -> Iterator[str]:
    """Attempts that ran more than once, and due times that ran as several jobs."""
    attempts = Counter(attempt for _, _, _, attempt, _ in runs)
    yield from (f"attempt {attempt} ran {count} times" for attempt, count in attempts.items() if count > 1)
    jobs: dict[tuple[str, str, str], set[str]] = {}
    for host, schedule, due, attempt, _ in runs:
        if due is not None:
            jobs.setdefault((host, schedule, due), set()).add(attempt.partition(".")[0])
    yield from (f"{key} ran as jobs {', '.join(ids)}" for key, ids in jobs.items() if len(ids) > 1)


@contextmanager
def postgresql(folder: Path) -> Iterator[Any]:
    """A PostgreSQL of its own in a folder."""
    (folder / "run").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "run"))
    pgserver: Any = import_module("pgserver")  # it warns where the variable is not set
    started = pgserver.get_server(folder / "postgresql")
    try:
        yield started
    finally:
        started.cleanup()


def restart(started: Any, *, crash: bool) -> None:
    """Restart a PostgreSQL: by a clean end of its sessions, or as after a crash. Blocks."""
    pg_ctl = import_module("pgserver._commands").pg_ctl
    mode = "immediate" if crash else "fast"
    pg_ctl(["-w", "-m", mode, "stop"], pgdata=started.pgdata, user=started.system_user)
    started.ensure_postgres_running()


@asynccontextmanager
async def running(plan: Plan, folder: Path, database: Any) -> AsyncIterator[Trial]:
    """A trial that has begun. Its processes are gone at the end."""
    where = database.get_uri().partition("?")[2]
    database.psql("CREATE DATABASE trial")
    trial = Trial(folder, f"postgresql+psycopg://postgres:@/trial?{where}", plan)
    first = trial.servers[0] if plan.before is None else trial.older(plan.before)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(_tasks())
        tasks.append(asyncio.create_task(first.run()))
        async with asyncio.timeout(READY_S):
            while not (folder / "server-0" / "admin-token").exists():
                await asyncio.sleep(0.1)
        trial.share_tokens()
        others = [part for part in trial.servers if part is not first]
        if plan.before is None:
            tasks += [asyncio.create_task(part.run()) for part in others]
        tasks.append(asyncio.create_task(Balancer(trial.port, trial.ports, in_turn=plan.in_turn).run()))
        token = (folder / "server-0" / "admin-token").read_text().strip()
        trial.api = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{trial.port}/api/v1",
            headers={"authorization": f"Bearer {token}"},
            timeout=10,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # each request may go to another server
        )
        await stack.enter_async_context(trial.api)
        await trial.declare_all()
        await trial.start_crowds()
        try:
            await trial.until_in_sync()
            trial.begin = datetime.now(UTC)
            if plan.before is not None:
                tasks.append(asyncio.create_task(trial.upgrade(first, plan.seconds / 3)))
            yield trial
        finally:
            for crowd in trial.crowds:
                if crowd.returncode is None:
                    crowd.kill()


@asynccontextmanager
async def _tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that are cancelled at the end."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def play(plan: Plan, folder: Path) -> Told:
    """Play a trial; what it showed."""
    with postgresql(folder) as database:
        async with running(plan, folder, database) as trial:
            async with asyncio.TaskGroup() as tasks:
                meanwhile = [tasks.create_task(trial.change()), tasks.create_task(trial.watch())]
                if not plan.calm and plan.before is None:
                    tasks.create_task(trial.hurt(time.monotonic() + plan.seconds))
                    tasks.create_task(trial.hurt_database(database, plan.seconds))
                await asyncio.sleep(plan.seconds)
                for task in meanwhile:
                    task.cancel()
            due = datetime.now(UTC).replace(second=0, microsecond=0)
            left = await trial.quiet(due)
            return await _found(trial, due, left)


async def _found(trial: Trial, due: datetime, left: Sequence[str]) -> Told:
    held = await trial.stop_crowds()
    jobs, runs = await asyncio.to_thread(trial.jobs), trial.runs()
    problems = [f"not quiet in time: {what}" for what in left]
    problems += [death for part in trial.servers for death in part.deaths]
    problems += ran_twice(runs)
    rows = await asyncio.to_thread(trial.rows)
    before = due - timedelta(seconds=1) if left else due
    found = Evidence(before, jobs, trial.kept(), rows, held, None, {}, {"minutely": 1, "pairs": 2}, problems)
    begin = trial.begin
    minutely = trial.schedules["minutely"]
    late = [
        ((datetime.fromisoformat(due) - begin).total_seconds(), float(late))
        for _, schedule, due, _, late in runs
        if schedule == minutely and due and late
    ]
    return Told(
        trial.faults, trial.changes, len(jobs), trial.spread_s, trial.not_spread, late, trial.memory, violations(found)
    )
