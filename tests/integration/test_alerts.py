"""Each alert tells of real trouble, and only of that: a real Prometheus scrapes real servers to which it happens.

What it scraped is given to promtool, which shows that alerts fire after as long as they should, and no sooner.
"""

import asyncio
import json
import re
import sqlite3
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from agent.core.machine import Core
from agent.core.state import AgentState
from agent.metrics import Metrics as AgentMetrics
from bench.servers import free_port
from cli import metrics
from controller.cluster.metrics import Metrics as ControllerMetrics
from server.app import Config, Running, serving
from tests.chart import CHART, Object, values
from tests.integration.clock import Clock, due
from tests.integration.conftest import Agent, Connect, Declare, leading
from tests.prometheus import JOB, Labels, input_series, needs_prometheus, promtool, rules, running, series

pytestmark = [pytest.mark.anyio, needs_prometheus]

ONE = values("monitoring")
THREE = {**ONE, "server": {"replicas": 3, "database": {"existingSecret": "lamplighter-database"}}}
NO_CONTROLLER = "LamplighterNotFollowing"
"""No cluster's controller is at work in these tests."""
OF_THE_STORE = {"LamplighterStoreFailing", "LamplighterStoreHanging"}


@asynccontextmanager
async def exported(registries: Sequence[CollectorRegistry], listens: Sequence[str]) -> AsyncIterator[None]:
    """Serve these parts' metrics at these ADDRESS:PORTs."""
    async with AsyncExitStack() as stack:
        for registry, listen in zip(registries, listens, strict=True):
            await stack.enter_async_context(metrics.serving(listen, registry, metrics.always_ready))
        yield


def addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{free_port()}" for _ in range(count)]


def named(groups: Iterable[Object]) -> dict[str, Object]:
    return {it["alert"]: it for group in groups for it in group["rules"]}


def names(alerts: Iterable[Any]) -> set[str]:
    return {it["labels"]["alertname"] for it in alerts}


async def accepted(agent: Agent) -> str:
    """The id of the next job, which the agent accepts."""
    job_id: str = (await agent.hears("command.run"))["job_id"]
    await agent.say("job.accepted", job_id=job_id)
    return job_id


async def fired(agent: Agent, schedule_id: str) -> str:
    await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due())
    return await accepted(agent)


async def end(agent: Agent, job_id: str, status: str = "succeeded", **how: Any) -> None:
    finished = agent.clock().isoformat()
    await agent.say("job.finished", job_id=job_id, status=status, finished_at=finished, **how)
    await agent.hears("job.confirmed")


async def is_running(api: httpx.AsyncClient, job_id: str) -> None:
    """Wait until it is stored that the host accepted a job."""
    async with asyncio.timeout(60):
        while (await api.get(f"/jobs/{job_id}")).json()["status"] != "running":
            await asyncio.sleep(0.02)


def on(role: str) -> dict[str, Any]:
    return {"hostSelector": {"matchLabels": {"role": role}}}


async def test_nothing_is_told_while_all_is_well_and_the_silence_of_the_server_is(
    server: Running, declare: Declare, connect: Connect, tmp_path: Path
) -> None:
    schedule_id, listens = await declare("etc"), addresses(1)
    async with running(tmp_path / "prometheus", rules(ONE), *listens) as prometheus, connect() as agent:
        await agent.follow()
        await end(agent, await fired(agent, schedule_id))
        async with exported([server.parts.registry], listens):
            await prometheus.scraped()
            assert names(await prometheus.alerts()) == {NO_CONTROLLER}
        await prometheus.scraped(up=0)
        assert names(await prometheus.alerts()) == {"LamplighterServerDown", NO_CONTROLLER}


@pytest.fixture
async def empty(tmp_path: Path, clock: Clock) -> AsyncIterator[Running]:
    """Another server, which was started on an empty folder."""
    async with serving(Config(tmp_path / "empty", port=0), clock) as running:
        await leading(running)
        yield running


async def declare_trouble(api: httpx.AsyncClient, declare: Declare) -> tuple[str, str, str]:
    """Nobody verifies a repository, a label was renamed, a colleague disabled a Schedule, and nothing takes messages.

    Returns the ids of Schedules of which runs will fail, warn and hang.
    """
    verified = {"spec": {"url": "/elsewhere", "verifyWithinDays": 1}, "credentials": {"password": "open sesame"}}
    await api.put("/repositories/ns/unverified", json=verified)
    key = "whsec_" + b64encode(bytes(32)).decode()
    unheard = {"urls": [f"http://127.0.0.1:{free_port()}/"], "signingKey": key}
    alert = {"spec": {"secretRef": {"name": "on-call"}}, "credentials": unheard}
    (await api.put("/alerts/ns/on-call", json=alert)).raise_for_status()
    for host, role in {"a": "db", "b": "db", "c": "other", "d": "db", "e": "other"}.items():
        await api.put(f"/hosts/{host}", json={"labels": {"role": role}})
    await declare("renamed", **on("old"))
    await declare("suspended", **on("db"), enabled=False)
    fails = await declare("fails", repository="shut", rollout={"failurePolicy": "Pause"}, **on("db"))
    warns = await declare("warns", **on("db"))
    return fails, warns, await declare("hangs", **on("db"), timeoutSeconds=3600)


@asynccontextmanager
async def agents_in_trouble(connect: Connect, clock: Clock, empty: Running) -> AsyncIterator[Agent]:
    """The agent of host a. Host b is not connected, c is selected by nothing, d does not ack, the clock of e is wrong,
    and f holds what another store declared."""
    wrong = (clock() + timedelta(hours=1)).isoformat()
    async with connect("a") as agent, connect("c") as idle, connect("d"), connect("e", now=wrong) as skewed:
        of_old = {"applied_version": 7, "digest": "1".rjust(64, "0")}
        async with connect("f", to=empty, token=empty.agent_token, **of_old):
            for it in (agent, idle, skewed):
                await it.follow()
            yield agent


async def test_each_kind_of_trouble_is_told_and_in_time(
    server: Running,
    empty: Running,
    api: httpx.AsyncClient,
    declare: Declare,
    connect: Connect,
    clock: Clock,
    tmp_path: Path,
) -> None:
    """The dashboard shows it: each of its queries finds something."""
    agents, controller = AgentMetrics(Core("node-1", AgentState())), ControllerMetrics()
    registries = [it.registry for it in (server.parts, empty.parts, agents, controller)]
    groups, listens = rules(THREE), addresses(len(registries))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exported(registries, listens))
        prometheus = await stack.enter_async_context(running(tmp_path / "prometheus", groups, *listens))
        await prometheus.scraped()
        before = await prometheus.samples()
        fails, warns, hangs = await declare_trouble(api, declare)
        agent = await stack.enter_async_context(agents_in_trouble(connect, clock, empty))
        await end(agent, await fired(agent, fails), "failed", reason="WrongPassword", error="wrong password")
        await end(agent, await fired(agent, warns), "warning", error="a path is gone")
        restore = {"repositoryRef": {"name": "main"}, "sourceHost": "a", "host": "a", "target": "/srv/restored"}
        (await api.put("/restores/ns/r1", json={"spec": restore})).raise_for_status()
        await end(agent, await accepted(agent), "failed", error="no space left on device")
        await is_running(api, await fired(agent, hangs))
        async with asyncio.timeout(60):
            while not await prometheus.query("lamplighter_alert_undelivered"):
                await asyncio.sleep(0.1)
        clock.ahead += timedelta(days=3)
        gone = {"reason": "FolderNotRead", "message": "it cannot be read"}
        (await api.put("/controllers/folder", json={"problems": [gone]})).raise_for_status()
        await prometheus.scraped()
        alerts, after = await prometheus.alerts(), await prometheus.samples()
        await prometheus.scraped()  # a second sample, for rates
        assert [it for it in queries() if it not in EMPTY and not await prometheus.query(filled(it))] == []
    alerted = named(groups)
    assert names(alerts) == alerted.keys() - OF_THE_STORE - {"LamplighterServerDown"}
    texts = [text for it in alerts for text in it["annotations"].values()]
    assert [it for it in texts if re.search(r"\{\{|<no value>|<error|%!", it)] == []
    about = {tuple(it["labels"].get(key) for key in ("alertname", "schedule", "repository", "reason")) for it in alerts}
    assert about >= {
        ("LamplighterOverdue", "hangs", None, None),
        ("LamplighterScheduleDisabled", "suspended", None, None),
        ("LamplighterJobsFailing", "fails", None, None),
        ("LamplighterSchedulePaused", "fails", None, None),
        ("LamplighterJobsIncomplete", "warns", None, None),
        ("LamplighterRepositoryInTrouble", None, "shut", "WrongPassword"),
        ("LamplighterRepositoryInTrouble", None, "unverified", "NotVerified"),
        ("LamplighterHostHasProblem", None, None, "ClockSkew"),
        ("LamplighterStoreEmpty", None, None, "StoreEmpty"),
        ("LamplighterFolderNotFollowed", None, None, "FolderNotRead"),
    }
    well = {labels: it for labels, it in spoken_of(groups, before).items() if BUILD not in labels} | CONTROLLER
    slow = {"LamplighterScheduleDisabled"}  # after a day, which is long for promtool: see to that with its series alone
    disabled = {labels: it for labels, it in after.items() if ("__name__", "lamplighter_schedule_disabled") in labels}
    check_timing(tmp_path, groups, input_series({}, disabled, 1450), [it for it in alerts if names([it]) == slow])
    quick = [it for it in alerts if names([it]) != slow]
    check_timing(tmp_path, groups, input_series(well, spoken_of(groups, after), 70), quick)


BUILD = ("__name__", "lamplighter_build_info")
"""That fewer servers than three are at work was trouble from the start."""
CONTROLLER = {frozenset({"__name__": "lamplighter_controller_leader", "job": JOB}.items()): "1"}
"""What a controller said that then ended."""


EMPTY = {'lamplighter_store_commit_running_seconds{job=~"$job"} > 1', 'lamplighter_store_failing{job=~"$job"} == 1'}
"""What the dashboard finds only while a store hangs or fails, which another test brings about."""


def queries() -> list[str]:
    """Every query of the dashboard."""
    board = json.loads((CHART / "dashboards/lamplighter.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def filled(query: str) -> str:
    """A query as Grafana sends it."""
    return query.replace("$job", JOB).replace("$__rate_interval", "30s")


def spoken_of(groups: Iterable[Object], samples: Mapping[Labels, str]) -> dict[Labels, str]:
    """The samples of metrics that alerts name."""
    expressions = " ".join(it["expr"] for it in named(groups).values())
    metrics_named = set(re.findall(r"lamplighter_\w+", expressions))
    return {labels: it for labels, it in samples.items() if dict(labels)["__name__"] in metrics_named}


def check_timing(
    folder: Path, groups: Sequence[Object], given: Sequence[Object], alerts: Sequence[Any], begins_at: int = 1
) -> None:
    """With the series that are given, promtool sees each alert when it should fire, as Prometheus told it, and not the
    minute before. `begins_at`: the minute at which they are in trouble."""
    alerted = named(groups)
    tests: list[Object] = []
    for name in sorted(names(alerts)):
        fires_at = begins_at + minutes(alerted[name].get("for", "0m"))
        expected = [told(it) for it in alerts if it["labels"]["alertname"] == name]
        tests.append({"alertname": name, "eval_time": f"{fires_at - 1}m", "exp_alerts": []})
        tests.append({"alertname": name, "eval_time": f"{fires_at}m", "exp_alerts": expected})
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}))
    test: Object = {"interval": "1m", "input_series": list(given), "alert_rule_test": tests}
    whole: Object = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(whole))
    assert "SUCCESS" in promtool("test", "rules", folder / "test.yml")


def told(alert: Any) -> Object:
    """An alert of Prometheus, as promtool expects it."""
    labels = {key: it for key, it in alert["labels"].items() if key != "alertname"}
    return {"exp_labels": labels, "exp_annotations": alert["annotations"]}


def minutes(duration: str) -> int:
    return int(duration[:-1]) * {"m": 1, "h": 60, "d": 1440}[duration[-1]]


@pytest.mark.sqlite("locks the file of the store")
async def test_a_store_that_hangs_is_told_and_so_is_one_that_fails(
    server: Running, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    groups, listens = rules(ONE), addresses(1)
    running_s, failing = "lamplighter_store_commit_running_seconds", "lamplighter_store_failing"
    async with (
        exported([server.parts.registry], listens),
        running(tmp_path / "prometheus", groups, *listens) as prometheus,
    ):
        await prometheus.scraped()
        before = await prometheus.samples()
        with closing(sqlite3.connect(tmp_path / "lamplighter.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            put = asyncio.create_task(api.put("/hosts/a", json={"labels": {}}))
            async with asyncio.timeout(60):
                while not (hanging := await prometheus.query(f"{running_s} > 0.5")):
                    await asyncio.sleep(0.1)
                while not await prometheus.query(f"{failing} == 1"):
                    await asyncio.sleep(0.1)
            assert (await put).status_code == httpx.codes.SERVICE_UNAVAILABLE
            await prometheus.scraped()
            alerts, after = await prometheus.alerts(), await prometheus.samples()
            assert set(queries()) >= EMPTY
            assert [it for it in EMPTY if not await prometheus.query(f"last_over_time(({filled(it)})[1m:500ms])")] == []
        (await api.put("/hosts/a", json={"labels": {}})).raise_for_status()
        await prometheus.scraped()
        assert names(await prometheus.alerts()) == {NO_CONTROLLER, *TOLD_OF_A}
    assert names(alerts) == {NO_CONTROLLER, "LamplighterStoreFailing"}
    failed = [it for it in alerts if it["labels"]["alertname"] == "LamplighterStoreFailing"]
    check_timing(tmp_path, groups, input_series(spoken_of(groups, before), spoken_of(groups, after), 10), failed)
    check_hanging(tmp_path, groups, hanging[0]["metric"])


TOLD_OF_A = {"LamplighterHostGone", "LamplighterHostNotInSync", "LamplighterHostWithoutBackup"}
"""The host that was put into the store, and has no agent."""


def check_hanging(folder: Path, groups: Sequence[Object], labels: dict[str, str]) -> None:
    """A commit that goes on is told when it has done so for more than a minute, two minutes later."""
    rule = named(groups)["LamplighterStoreHanging"]
    texts = {key: it.replace("{{ $labels.pod }}", "") for key, it in rule["annotations"].items()}
    texts["summary"] = texts["summary"].replace("{{ humanizeDuration $value }}", "3m 30s")
    own = {key: it for key, it in labels.items() if key != "__name__"} | rule["labels"]
    alert = {"labels": {"alertname": "LamplighterStoreHanging", **own}, "annotations": texts}
    grows = {"series": series(labels.items()), "values": "0 30+60x10"}
    check_timing(folder, groups, [grows], [alert], begins_at=2)


@pytest.mark.parametrize("given", [ONE, THREE], ids=["one", "three"])
def test_promtool_takes_the_rules(given: Object, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": rules(given)}))
    assert f"{len(named(rules(given)))} rules found" in promtool("check", "rules", tmp_path / "rules.yml")
