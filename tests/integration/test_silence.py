"""Promise 10: a missing success is reported from the moment it is due, and nothing else is."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import cron
from agent import service as agents
from agent.journal import Journal
from agent.restic.runner import Runner
from server.access.identity import Files
from server.access.vault import Vault
from server.api.services import Services
from server.app import Parts, Running, assemble
from server.errors import NotFound
from server.observe import clock as clocks
from server.observe.problems import no_host
from server.resources.specs import LabelSelector
from server.store.engine import Store
from server.store.futures import stored
from server.store.jobs import get_job
from server.store.tables import Actor
from tests.integration.conftest import Connect, Declare, Until, join
from wire.messages import JobEnd, JobFinished

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
START = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
ROLES = ("db", "web", None)
DAY = timedelta(days=1)
AT_TWO = datetime(2026, 3, 30, 2, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def reach(self, at: datetime) -> None:
        self.now = max(at, self.now)


class Story:
    """A control plane to which anything happens, and beside it what should be told of it."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.rng, self.clock = store, random.Random(seed), Clock()
        self.vault, self._ids = Vault([Vault.new_key()]), 0
        self.parts = self.fresh()
        self.hosts: dict[str, str] = {}  # roles by name
        self.schedules: dict[str, tuple[str | None, bool]] = {}  # role and whether it is enabled, by name
        self.began: dict[tuple[str, str], datetime] = {}
        self.succeeded: dict[tuple[str, str], datetime] = {}

    def fresh(self) -> Parts:
        return assemble(self.store, self.vault, self.clock, self.new_id, Files("admin", "agent"))

    @property
    def services(self) -> Services:
        return self.parts.services

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    async def begin(self) -> None:
        await join(self.parts)
        await self.services.repositories.put(ME, {"metadata": {"namespace": "ns", "name": "r"}, "spec": {"url": "/b"}})

    async def step(self) -> None:
        self.clock.now += timedelta(minutes=self.rng.randint(1, 600))
        happens = (self.put_host, self.put_schedule, self.put_schedule, self.succeed, self.succeed, self.delete)
        await self.rng.choice((*happens, self.restart))()
        should = {
            (schedule, host)
            for schedule, (role, enabled) in self.schedules.items()
            for host, has in self.hosts.items()
            if enabled and role in (None, has)
        }
        self.began = {pair: self.began.get(pair, self.clock.now) for pair in should}

    async def put_host(self) -> None:
        name, role = self.rng.choice("abcd"), self.rng.choice(("db", "web"))
        await self.services.hosts.put(ME, name, {"role": role})
        self.hosts[name] = role

    async def put_schedule(self) -> None:
        name, role, enabled = self.rng.choice("xyz"), self.rng.choice(ROLES), self.rng.random() < 0.7
        cron = self.rng.choice(("0 2 * * *", "@hourly"))
        selector = {} if role is None else {"matchLabels": {"role": role}}
        spec = {"kind": "prune", "cron": cron, "repositoryRef": {"name": "r"}, "enabled": enabled}
        metadata = {"namespace": "ns", "name": name}
        await self.services.schedules.put(ME, {"metadata": metadata, "spec": spec | {"hostSelector": selector}})
        self.schedules[name] = (role, enabled)

    async def succeed(self) -> None:
        """A run on some host ends, well or not."""
        if not self.began:
            return
        schedule, host = self.rng.choice(sorted(self.began))
        [job] = await self.services.runs.run_now(ME, "ns", schedule, [host])
        status: JobEnd = self.rng.choice(("succeeded", "warning", "failed"))
        await stored(self.parts.reports.finish(host, [JobFinished(job["id"], status, self.clock.now)]))
        if status != "failed":
            self.succeeded[schedule, host] = self.clock.now

    async def delete(self) -> None:
        name = self.rng.choice("abcdxyz")
        try:
            await (
                self.services.hosts.delete(ME, name)
                if name in "abcd"
                else self.services.schedules.delete(ME, "ns", name)
            )
        except NotFound:
            return
        self.hosts.pop(name, None)
        self.schedules.pop(name, None)
        self.succeeded = {pair: at for pair, at in self.succeeded.items() if name not in pair}

    async def restart(self) -> None:
        self.services.dispatcher.close()
        self.parts = self.fresh()
        await self.parts.loader.load(self.store, self.vault)
        await join(self.parts)

    def told(self) -> dict[tuple[str, str], float]:
        families = {it.name: it for it in self.parts.registry.collect()}
        samples = families["lamplighter_last_success_timestamp_seconds"].samples
        return {(it.labels["schedule"], it.labels["host"]): it.value for it in samples}

    def expected(self) -> dict[tuple[str, str], float]:
        return {pair: max(at, self.succeeded.get(pair, at)).timestamp() for pair, at in self.began.items()}


@pytest.mark.parametrize("seed", range(6))
async def test_there_is_a_series_for_each_host_that_should_have_a_success_and_no_other(
    tmp_path: Path, seed: int
) -> None:
    store = Store.open(tmp_path / "lamplighter.db")
    story = Story(store, seed)
    await story.begin()
    for _ in range(60):
        await story.step()
        assert story.told() == story.expected()
    story.services.dispatcher.close()
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def status(api: httpx.AsyncClient, name: str = "etc") -> Any:
    return (await api.get(f"/schedules/ns/{name}")).raise_for_status().json()["status"]


def reasons(told: Any) -> list[Any]:
    return [it["reason"] for it in told["problems"]]


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


async def test_a_schedule_without_hosts_is_told_and_so_is_one_that_gets_none(
    api: httpx.AsyncClient, declare: Declare
) -> None:
    await declare("etc", hostSelector={"matchLabels": {"role": "db"}})
    told = await status(api)
    said = "it runs nowhere: there is no host that it may run on; start an agent, or declare a Host"
    assert told["problems"] == [{"reason": "NoHosts", "message": said}]
    await api.put("/hosts/db-1", json={"labels": {"role": "db"}})
    assert reasons(await status(api)) == []
    await api.put("/hosts/db-1", json={"labels": {"role": "web"}})
    [problem] = (await status(api))["problems"]
    assert problem["reason"] == "NoHosts"
    assert problem["message"].startswith(
        "it runs nowhere: hostSelector selects no host: no host has role db, there are"
    )


async def test_a_repository_that_no_password_opens_is_told_and_so_is_each_schedule_that_uses_it(
    api: httpx.AsyncClient, declare: Declare
) -> None:
    await api.put("/hosts/db-1", json={"labels": {}})
    for given in ({}, {"credentials": {"env": {"AWS_ACCESS_KEY_ID": "id"}}}):
        await api.put("/repositories/ns/main", json={"spec": {"url": "/b"}, **given})
        await declare("etc")
        await declare("paused", enabled=False)
        assert (reasons(await status(api)), reasons(await status(api, "paused"))) == (["NoPassword"], [])
        assert reasons((await api.get("/repositories/ns/main")).json()["status"]) == ["NoPassword"]
    await api.put("/repositories/ns/main", json={"spec": {"url": "/b"}, "credentials": {"password": "open sesame"}})
    assert reasons(await status(api)) == reasons((await api.get("/repositories/ns/main")).json()["status"]) == []


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ({"matchLabels": {"rule": "db"}}, "no host has the label rule, there are pool, role"),
        ({"matchLabels": {"role": "db", "pool": "b"}}, "none has all of the labels that it asks for"),
        (expression("role", "In", "x", "y"), "no host has role x or y, there are db, web"),
        (expression("rule", "Exists"), "no host has the label rule, there are pool, role"),
        (expression("role", "DoesNotExist"), "every host has the label role"),
        (expression("role", "NotIn", "db", "web"), "every host has the label role with one of db, web"),
    ],
)
def test_why_no_host_is_selected_is_told_by_the_labels_that_there_are(
    selector: dict[str, dict[str, str]], said: str
) -> None:
    hosts = [{"role": "db", "pool": "a"}, {"role": "web", "pool": "b"}]
    told = no_host(msgspec.convert(selector, LabelSelector), iter(hosts))
    assert told == f"hostSelector selects no host: {said}; change hostSelector, or the labels of a host"


async def test_a_schedule_that_is_disabled_is_no_trouble(
    api: httpx.AsyncClient, declare: Declare, clock: Clock
) -> None:
    await declare("etc", suspend=True)
    await declare("srv", enabled=False, hostSelector={"matchLabels": {"role": "db"}})
    await api.put("/hosts/a", json={"labels": {}})
    clock.now += 30 * DAY
    assert reasons(await status(api)) == reasons(await status(api, "srv")) == []


async def test_a_host_that_never_had_a_success_is_overdue(
    declare: Declare, api: httpx.AsyncClient, clock: Clock
) -> None:
    await declare("etc")
    for host in "abcdefg":
        await api.put(f"/hosts/{host}", json={"labels": {}})
    clock.now += 2 * DAY
    told = await status(api)
    assert (told["hosts"], told["hostsOverdue"], told["hostsWithoutSuccess"], reasons(told)) == (7, 0, 7, [])
    clock.now += timedelta(seconds=1)
    told = await status(api)
    assert (told["hostsOverdue"], told["overdue"]) == (7, ["a", "b", "c", "d", "e"])
    message = "no success for more than 2d on 7 of 7 hosts: a, b, c, d, e and 2 more"
    assert told["problems"] == [{"reason": "Overdue", "message": message}]
    await declare("etc", successWithin="49h")
    told = await status(api)
    assert (told["successWithinSeconds"], told["hostsOverdue"]) == (49 * 3600, 0)


async def test_hosts_that_are_online_and_do_not_hold_a_schedule_are_told(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    await declare("etc")
    for host in "ab":  # b stays offline
        await api.put(f"/hosts/{host}", json={"labels": {}})

    async def counted(in_sync: int, behind: list[str]) -> None:
        async with asyncio.timeout(20):
            while True:
                told = await status(api)
                if (told["hosts"], told["hostsInSync"], told["behind"]) == (2, in_sync, behind):
                    assert told["hostsBehind"] == len(behind)
                    return
                await asyncio.sleep(0.01)

    async with connect("a") as agent:
        await counted(0, ["a"])
        await agent.follow()
        await counted(1, [])
        await declare("etc", cron="0 3 * * *")
        await counted(0, ["a"])
    await counted(0, [])


HOOKS = {"before": ["/bin/freeze", "--now"], "after": ["/bin/thaw"]}


async def test_a_hook_that_agents_do_not_allow_is_told_with_the_hosts_names(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    await declare("etc", hooks=HOOKS)
    for host, allowed in {"a": [], "b": ["/bin/freeze"], "c": ["/bin/thaw", "/bin/freeze"], "d": None}.items():
        said = {} if allowed is None else {"allowed_hooks": allowed}
        async with connect(host, **said) as agent:
            await agent.follow()
    told = await status(api)
    assert (told["hosts"], told["hostsRefusingHooks"]) == (4, 2)
    assert reasons(told) == ["HookNotAllowed", "HookNotAllowed"]
    freeze, thaw = (it["message"] for it in told["problems"])
    assert "1 of 4 hosts do not allow '/bin/freeze' as a hook, and fail each run: a; start them with" in freeze
    assert "2 of 4 hosts do not allow '/bin/thaw' as a hook, and fail each run: a, b; start them with" in thaw
    await declare("etc", hooks=HOOKS, enabled=False)
    assert reasons(await status(api)) == []
    await declare("etc", hooks={"before": ["/bin/freeze"]})
    assert reasons(await status(api)) == ["HookNotAllowed"]
    async with connect("a", allowed_hooks=["/bin/freeze"]) as agent:
        await agent.follow()
    assert reasons(await status(api)) == []
    await declare("etc", backup={"command": ["/bin/dump", "--all"]})
    assert reasons(await status(api)) == ["HookNotAllowed"]


async def test_a_run_on_no_host_has_failed(api: httpx.AsyncClient, declare: Declare) -> None:
    await declare("etc", hostSelector={"matchLabels": {"role": "db"}})
    await api.put("/hosts/db-1", json={"labels": {"role": "db"}})
    nowhere = {"schedule": "etc", "hostSelector": {"matchLabels": {"role": "web"}}}
    run = (await api.put("/runs/ns/one", json=nowhere)).raise_for_status().json()
    assert (run["phase"], run["reason"], run["hosts"], run["failures"]) == ("Failed", "NoHosts", 0, [])
    run = (await api.put("/runs/ns/two", json={"schedule": "etc"})).raise_for_status().json()
    assert (run["phase"], run["reason"], run["hosts"]) == ("Pending", "", 1)
    await api.put("/hosts/db-1", json={"labels": {"role": "web"}})
    answer = await api.post("/schedules/ns/etc/run")
    assert (answer.status_code, "hostSelector" in answer.json()["detail"]) == (httpx.codes.CONFLICT, True)


async def test_why_a_run_failed_is_told_with_the_hosts_name(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until
) -> None:
    await declare("etc")
    async with connect() as agent:
        await agent.follow()
        await api.put("/runs/ns/one", json={"schedule": "etc"})
        job_id = (await agent.hears("command.run"))["job_id"]
        assert (await api.get("/runs/ns/one")).json()["phase"] == "Pending"
        await agent.say("job.accepted", job_id=job_id)
        end = {"status": "failed", "finished_at": START.isoformat(), "error": "no such key", "reason": "WrongPassword"}
        await agent.say("job.finished", job_id=job_id, **end)
        await agent.hears("job.confirmed")
    run = (await api.get("/runs/ns/one")).json()
    assert (run["phase"], run["reason"], run["message"]) == ("Failed", "RunsFail", "its host failed")
    failure = {"host": "node-1", "status": "failed", "reason": "WrongPassword", "error": "no such key"}
    assert run["failures"] == [failure]


async def test_a_run_that_left_something_undone_is_told_also_after_a_restart(
    server: Running, clock: Clock, connect: Connect, api: httpx.AsyncClient, declare: Declare
) -> None:
    """A path of the backup that is gone is a warning, after which the snapshot of the others counts as a success."""
    await declare("etc")
    said = "1 paths could not be read and are not in the snapshot"
    async with connect() as agent:
        await agent.follow()
        incomplete = {"status": "warning", "error": said}
        for end in (incomplete, {"status": "succeeded"}, incomplete):
            clock.now += timedelta(minutes=1)
            [job] = (await api.post("/schedules/ns/etc/run")).json()["items"]
            assert (await agent.hears("command.run"))["job_id"] == job["id"]
            await agent.say("job.finished", job_id=job["id"], finished_at=START.isoformat(), **end)
            await agent.hears("job.confirmed")
            told = await status(api)
            wrong = [] if end["status"] == "succeeded" else ["RunsIncomplete"]
            assert (reasons(told), told["hostsFailed"], told["hostsWithoutSuccess"]) == (wrong, 0, 0)
    message = f"the last run left something undone on its only host: node-1 ({said})"
    assert told["problems"] == [{"reason": "RunsIncomplete", "message": message}]
    again = assemble(server.parts.services.store, Vault([Vault.new_key()]), clock, lambda: "", Files("admin", "agent"))
    await again.loader.load(server.parts.services.store, Vault([Vault.new_key()]))
    [covers] = (await again.services.coverage.schedules([again.catalog.schedules["ns", "etc"].id])).values()
    assert (covers.warned, covers.warned_names, covers.errors) == (1, ["node-1"], {"node-1": said})
    again.services.dispatcher.close()


async def test_a_failure_stays_in_the_metric_until_the_next_success(
    server: Running, clock: Clock, connect: Connect, declare: Declare
) -> None:
    """A job that runs once a day is not forgotten after an hour."""

    def told(server: Running) -> list[Any]:
        families = {it.name: it.samples for it in server.parts.registry.collect()}
        names = ("lamplighter_failed_hosts", "lamplighter_incomplete_hosts")
        return [sum(it.value for it in families[name]) for name in names]

    schedule_id = await declare("etc")
    async with connect() as agent:
        await agent.follow()
        ends = {"failed": [1, 0], "warning": [0, 1], "succeeded": [0, 0]}
        for due, (end, means) in zip((AT_TWO + n * DAY for n in range(3)), ends.items(), strict=True):
            await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due.isoformat())
            job_id = (await agent.hears("command.run"))["job_id"]
            await agent.say("job.finished", job_id=job_id, status=end, finished_at=due.isoformat())
            await agent.hears("job.confirmed")
            clock.now += timedelta(hours=20)
            assert told(server) == means


async def test_a_clock_that_is_set_wrong_while_its_agent_is_connected_is_told(
    server: Running, api: httpx.AsyncClient, clock: Clock, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.service.CLOCK_S", 0.01)
    ahead = timedelta()
    journal, memory = Journal.open(tmp_path / "journal.jsonl")
    config = agents.Config("node-1", f"ws://127.0.0.1:{server.port}/agent", server.agent_token)
    service = agents.Service(
        config, journal, memory, Runner("restic", tmp_path / "cache", clock), clock=lambda: clock() + ahead
    )
    running = asyncio.create_task(service.run())

    async def problems() -> list[Any] | None:
        answer = await api.get("/hosts/node-1")
        return [it["reason"] for it in answer.json()["problems"]] if answer.is_success else None

    async def well() -> Any:
        return await problems() == []

    async def told() -> Any:
        return await problems() == ["ClockSkew"]

    await until(well)
    ahead = timedelta(hours=2)
    await until(told)
    ahead = timedelta()
    await until(well)
    await service.stop()
    await running


async def test_a_host_that_no_enabled_schedule_selects_is_counted(
    server: Running, api: httpx.AsyncClient, declare: Declare
) -> None:
    def told() -> list[Any]:
        families = {it.name: it.samples for it in server.parts.registry.collect()}
        return [it.value for it in families["lamplighter_hosts_without_schedules"]]

    await declare("etc", hostSelector={"matchLabels": {"role": "db"}})
    await api.put("/hosts/a", json={"labels": {"role": "bd"}})
    assert ((await api.get("/hosts/a")).json()["schedules"], told()) == (0, [1])
    await api.put("/hosts/a", json={"labels": {"role": "db"}})
    assert ((await api.get("/hosts/a")).json()["schedules"], told()) == (1, [0])
    await declare("etc", hostSelector={"matchLabels": {"role": "db"}}, enabled=False)
    assert ((await api.get("/hosts/a")).json()["schedules"], told()) == (0, [1])


async def test_a_run_that_goes_on_beyond_its_limit_is_told_also_after_a_restart(
    server: Running, clock: Clock, connect: Connect, api: httpx.AsyncClient, declare: Declare, until: Until
) -> None:
    """Its agent should have stopped it, and hangs."""
    schedule_id = await declare("etc", timeoutSeconds=3600)
    async with connect() as agent:
        await agent.follow()
        due = cron.next_due(cron.parse("0 2 * * *"), cron.zone("UTC"), START)
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due.isoformat())
        job_id = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job_id)

        async def running() -> bool:
            return bool((await api.get(f"/jobs/{job_id}")).json()["status"] == "running")

        await until(running)
    clock.now += timedelta(minutes=75)
    assert reasons(await status(api)) == []
    assert (await api.get(f"/jobs/{job_id}")).json()["problem"] is None
    clock.now += timedelta(seconds=1)
    told = await status(api)
    message = "a run goes on beyond its timeoutSeconds on its only host, whose agent may hang: node-1"
    assert told["problems"] == [{"reason": "RunsHang", "message": message}]
    assert (await api.get(f"/jobs/{job_id}")).json()["problem"].startswith("runs for longer than its limit of 1h")
    store = server.parts.services.store
    again = assemble(store, Vault([Vault.new_key()]), clock, lambda: "", Files("admin", "agent"))
    await join(again)
    await again.loader.load(store, Vault([Vault.new_key()]))
    families = {it.name: it.samples[0].value for it in again.registry.collect() if len(it.samples) == 1}
    assert families["lamplighter_jobs_hanging"] == 1
    again.services.dispatcher.close()


@pytest.mark.parametrize("ahead", [timedelta(hours=2), 400 * DAY])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_was_ahead_hides_nothing_and_holds_nothing_up(
    tmp_path: Path, ahead: timedelta, restarted: bool, until: Until
) -> None:
    """A machine may start with a wrong clock, which is set right while the server runs, or before its next start.
    What was declared and run by then is due, overdue and hangs by the right clock."""
    store = Store.open(tmp_path / "lamplighter.db")
    story = Story(store, 0)
    clock = story.clock
    clock.now += ahead
    await story.begin()
    retry = {"retry": {"limit": 3, "backoffSeconds": 60}, "timeoutSeconds": 60}
    for name in ("never", "went-well", "failed", "hangs"):
        spec = {"kind": "prune", "cron": "@hourly", "repositoryRef": {"name": "r"}} | retry
        await story.services.schedules.put(ME, {"metadata": {"namespace": "ns", "name": name}, "spec": spec})
    await story.services.hosts.put(ME, "a", {})
    jobs = {
        name: (await story.services.runs.run_now(ME, "ns", name, ["a"]))[0]["id"]
        for name in ("went-well", "failed", "hangs")
    }
    for name in ("went-well", "failed"):
        end = JobFinished(jobs[name], "succeeded" if name == "went-well" else "failed", clock.now)
        await stored(story.parts.reports.finish("a", [end]))
    await stored(story.parts.reports.accept("a", [jobs["hangs"]]))
    following = asyncio.create_task(clocks.follow(story.parts.events, clock, 0.01))
    await asyncio.sleep(0)
    clock.now = START
    if restarted:
        await story.restart()

    async def noticed() -> Any:
        return max(story.told().values()) <= START.timestamp()

    await until(noticed)
    clock.now += timedelta(hours=2, seconds=1)

    async def told() -> dict[str, Any]:
        covers = await story.services.coverage.schedules([it.id for it in story.parts.catalog.schedules.values()])
        names = {row.id: row.name for row in story.parts.catalog.schedules.values()}
        return {names[id_]: (it.overdue, len(it.hanging)) for id_, it in covers.items()}

    await stored(story.services.dispatcher.connected("a", [jobs["hangs"]]))
    assert await told() == {"never": (1, 0), "went-well": (1, 0), "failed": (1, 0), "hangs": (1, 1)}

    async def next_attempt_has_come() -> bool:
        failed = await store.read(get_job, jobs["failed"])
        assert failed is not None
        return not failed["deferred"]

    await until(next_attempt_has_come)
    following.cancel()
    story.services.dispatcher.close()
    await store.close()


async def test_what_a_clock_that_was_ahead_recorded_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "lamplighter.db")
    story = Story(store, 0)
    await story.begin()
    spec = {"kind": "prune", "cron": "@hourly", "repositoryRef": {"name": "r"}}
    row, _ = await story.services.schedules.put(ME, {"metadata": {"namespace": "ns", "name": "x"}, "spec": spec})
    await story.services.hosts.put(ME, "a", {})
    ends: list[tuple[timedelta, JobEnd]] = [(DAY, "succeeded"), (400 * DAY, "succeeded"), (2 * DAY, "failed")]
    for at, status in ends:
        story.clock.now = START + at
        [job] = await story.services.runs.run_now(ME, "ns", "x", ["a"])
        await stored(story.parts.reports.finish("a", [JobFinished(job["id"], status, story.clock.now)]))
    await story.restart()
    [covers] = (await story.services.coverage.schedules([row["id"]])).values()
    assert (covers.failed, covers.oldest_success, covers.overdue) == (1, START + DAY, 1)
    story.services.dispatcher.close()
    await store.close()


async def test_a_repository_that_nobody_verified_in_time_is_told(
    api: httpx.AsyncClient, clock: Clock, server: Running
) -> None:
    for name, spec in (("main", {"url": "/b", "verifyWithinDays": 7}), ("other", {"url": "/b"})):
        body = {"spec": spec, "credentials": {"password": "open sesame"}}
        await api.put(f"/repositories/ns/{name}", json=body)

    async def problems() -> dict[str, Any]:
        found = (await api.get("/repositories")).json()["items"]
        return {it["metadata"]["name"]: reasons(it["status"]) for it in found}

    clock.now += 7 * DAY
    assert await problems() == {"main": [], "other": []}
    clock.now += timedelta(seconds=1)
    assert await problems() == {"main": ["NotVerified"], "other": []}
    samples = {it.name: it.samples for it in server.parts.registry.collect()}
    [problem] = samples["lamplighter_repository_problem"]
    assert problem.labels == {"namespace": "ns", "repository": "main", "reason": "NotVerified"}
    [verified] = samples["lamplighter_last_verified_timestamp_seconds"]
    assert verified.value == START.timestamp()
