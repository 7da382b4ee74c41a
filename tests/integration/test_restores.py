"""What was backed up comes back: restores and lists, from REST or the command line, with real restic on real agents."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.journal import Journal
from agent.restic.runner import Runner
from agent.service import Config as AgentConfig
from agent.service import Service, utc_now
from server.app import Config, Running, serving
from server.changes import listings
from tests.conftest import NewRepository
from tests.integration.conftest import Connect, Declare, Lamplighter, Until
from tests.plain import NO_TLS

RunAgent = Callable[..., AbstractAsyncContextManager[Service, bool | None]]
Connected = Callable[..., Awaitable[None]]
Restore = Callable[..., Awaitable[httpx.Response]]
Ended = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.anyio

RESTIC = shutil.which("restic") or "restic"
LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
PASSWORD = "horse battery staple"
GRANTS = """
namespaces:
  team-a:
    hostSelector: {matchLabels: {pool: a}}
    pathPrefixes: [/srv/a]
"""
OPEN = ("pending", "running")


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory, new_repository: NewRepository) -> Path:
    """A repository of host web-1, with a snapshot of two days and one of files that are not easy to bring back."""
    folder = tmp_path_factory.mktemp("vault")
    source = folder / "src"
    (source / "sub").mkdir(parents=True)
    env = os.environ | {"RESTIC_REPOSITORY": str(folder / "repositories" / "web-1"), "RESTIC_PASSWORD": PASSWORD}

    def restic(*args: str | Path) -> None:
        subprocess.run([RESTIC, "--no-cache", *args], env=env, check=True, capture_output=True)

    new_repository(folder / "repositories" / "web-1", PASSWORD)
    (source / "day").write_text("monday")
    restic("backup", "--host", "web-1", "--time", "2026-03-02 12:00:00", source)
    (source / "day").write_text("tuesday")
    (source / "sub" / "[a]*").write_text("odd")
    (source / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (source / "sub" / "run").chmod(0o4750)
    (source / "sub" / "link").symlink_to("../day")
    restic("backup", "--host", "web-1", "--time", "2026-03-03 12:00:00", source)
    return folder


@pytest.fixture
def source(vault: Path) -> Path:
    return vault / "src"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "grants.yaml").write_text(GRANTS)
    async with serving(Config(tmp_path / "server", port=0, grants=tmp_path / "grants.yaml")) as running:
        yield running


@pytest.fixture
async def repository(api: httpx.AsyncClient, vault: Path) -> None:
    """Where web-1's snapshots are: each host has its own place."""
    body = {"spec": {"url": f"{vault}/repositories/{{host}}"}, "credentials": {"password": PASSWORD}}
    assert (await api.put("/repositories/ns/main", json=body)).is_success


@pytest.fixture
def agent(server: Running, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Runs a host's agent, whole, until it is left."""

    @asynccontextmanager
    async def running(host: str, restic: str = RESTIC, to: Running = server) -> AsyncIterator[Service]:
        data = tmp_path / host
        journal, memory = Journal.open(data / "journal.jsonl")
        config = AgentConfig(host, f"ws://127.0.0.1:{to.port}/agent", to.agent_token)
        service = Service(config, journal, memory, Runner(str(restic), data / "cache", utc_now), clock=utc_now)
        task = asyncio.create_task(service.run())
        try:
            yield service
            await service.stop()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return running


@pytest.fixture
def connected(api: httpx.AsyncClient, until: Until) -> Connected:
    """Waits for hosts to be connected."""

    async def connected(*hosts: str) -> None:
        async def all_are() -> bool:
            items = (await api.get("/hosts")).json()["items"]
            return set(hosts) <= {it["name"] for it in items if it["connected"]}

        await until(all_are)

    return connected


@pytest.fixture
def restore(api: httpx.AsyncClient, tmp_path: Path) -> Restore:
    """Asks for a restore of web-1's files, below a folder of the test's own."""

    async def restore(name: str = "r1", namespace: str = "ns", **spec: Any) -> httpx.Response:
        wanted = {"repositoryRef": {"name": "main"}, "sourceHost": "web-1", "target": str(tmp_path / "out"), **spec}
        return await api.put(f"/restores/{namespace}/{name}", json={"spec": wanted})

    return restore


@pytest.fixture
def ended(api: httpx.AsyncClient, until: Until) -> Ended:
    """Waits for a restore's end: its job."""

    async def ended(name: str = "r1") -> Any:
        async def over() -> Any:
            job = (await api.get(f"/restores/ns/{name}")).json()
            return job if job["status"] not in OPEN else None

        return await until(over)

    return ended


def client(server: Running) -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{server.port}/api/v1"
    return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {server.admin_token}"}, verify=NO_TLS)


def below(target: Path, path: Path) -> Path:
    """Where a path is restored to."""
    return target / path.relative_to("/")


async def test_what_a_schedule_backed_up_comes_back(
    agent: RunAgent,
    api: httpx.AsyncClient,
    declare: Declare,
    connected: Connected,
    until: Until,
    restore: Restore,
    ended: Ended,
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("precious")
    there = {"spec": {"url": f"{tmp_path}/repository", "init": True}, "credentials": {"password": PASSWORD}}
    await api.put("/repositories/ns/main", json=there)
    async with agent("web-1"):
        await connected("web-1")
        await declare(backup={"paths": [str(tmp_path / "data")]})
        (job,) = (await api.post("/schedules/ns/etc/run")).json()["items"]

        async def backed_up() -> Any:
            return (await api.get(f"/jobs/{job['id']}")).json()["snapshot_id"]

        snapshot = await until(backed_up)
        await restore()
        done = await ended()
    assert (done["status"], done["kind"]) == ("succeeded", "restore")
    assert done["snapshot_id"].startswith(snapshot)
    assert (done["files_processed"], done["bytes_processed"]) == (1, 8)
    assert below(tmp_path / "out", tmp_path / "data" / "file").read_text() == "precious"


async def test_another_host_gets_the_files_of_one_that_is_gone(
    agent: RunAgent,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
) -> None:
    async with agent("web-2"):
        await connected("web-2")
        await restore(host="web-2", setuidAndDevices=True)
        assert (await ended())["status"] == "succeeded"
    there = below(tmp_path / "out", source)
    assert (there / "day").read_text() == "tuesday"
    assert stat.S_IMODE((there / "sub" / "run").stat().st_mode) == 0o4750
    assert (there / "sub" / "link").readlink() == Path("../day")


async def test_the_newest_before_a_time_or_one_by_its_id(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
) -> None:
    async with agent("web-1"):
        await connected("web-1")
        await restore("early", before="2026-03-02T23:00:00Z", target=str(tmp_path / "early"))
        early = await ended("early")
        assert below(tmp_path / "early", source / "day").read_text() == "monday"
        await restore("same", snapshot=early["snapshot_id"][:8], target=str(tmp_path / "same"))
        assert (await ended("same"))["snapshot_id"] == early["snapshot_id"]
        await restore("none", before="2026-03-01T00:00:00Z")
        none = await ended("none")
        await restore("unknown", snapshot="deadbeef")
        unknown = await ended("unknown")
    assert [job["reason"] for job in (none, unknown)] == ["NoSnapshot", "NoSnapshot"]
    assert "no snapshot of host web-1 with id deadbeef" in unknown["error"]


async def test_only_what_was_asked_for_comes_back(
    agent: RunAgent,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
) -> None:
    async with agent("web-1"):
        await connected("web-1")
        await restore(paths=[str(source / "sub" / "[a]*")])
        assert (await ended())["files_processed"] == 1
        await restore("r2", paths=[str(source / "gone")], target=str(tmp_path / "out2"))
        assert "does not hold" in (await ended("r2"))["error"]
    assert [path.name for path in below(tmp_path / "out", source).rglob("*")] == ["sub", "[a]*"]


async def test_what_is_there_is_overwritten_only_where_that_was_said(
    agent: RunAgent,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
) -> None:
    mine = below(tmp_path / "out", source / "day")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    async with agent("web-1"):
        await connected("web-1")
        await restore()
        job = await ended()
        assert (job["status"], job["reason"]) == ("failed", "TargetNotEmpty")
        assert "or set overwrite" in job["error"]
        assert mine.read_text() == "mine"
        await restore("r2", overwrite=True)
        assert (await ended("r2"))["status"] == "succeeded"
    assert mine.read_text() == "tuesday"


async def test_a_restore_that_runs_can_be_cancelled(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    until: Until,
    tmp_path: Path,
) -> None:
    slow = tmp_path / "restic"
    slow.write_text(f'#!/bin/sh\n[ "$1" = restore ] && touch "$TMPDIR/began" && exec sleep 600\nexec {RESTIC} "$@"\n')
    slow.chmod(0o755)
    async with agent("web-1", slow):
        await connected("web-1")
        job = (await restore()).json()

        async def began() -> Path | None:
            return next(tmp_path.rglob("began"), None)

        await until(began)
        assert (await api.post(f"/jobs/{job['id']}/cancel")).is_success
        assert (await ended())["status"] == "cancelled"


async def test_a_host_that_is_offline_restores_when_it_is_back(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
) -> None:
    await api.put("/hosts/web-1", json={"labels": {}})
    job = (await restore()).json()
    assert (job["status"], job["waits_for"]) == ("pending", "host web-1 to connect")
    async with agent("web-1"):
        assert (await ended())["status"] == "succeeded"
    assert below(tmp_path / "out", source / "day").read_text() == "tuesday"


async def test_a_restore_outlives_the_server_that_was_asked_for_it(
    agent: RunAgent,
    vault: Path,
    source: Path,
    tmp_path: Path,
    until: Until,
) -> None:
    config = Config(tmp_path / "again", port=0)
    async with serving(config) as first, client(first) as api:
        await api.put("/hosts/web-2", json={"labels": {}})
        body = {"spec": {"url": f"{vault}/repositories/{{host}}"}, "credentials": {"password": PASSWORD}}
        await api.put("/repositories/ns/main", json=body)
        spec = {"repositoryRef": {"name": "main"}, "sourceHost": "web-1", "host": "web-2"}
        await api.put("/restores/ns/r1", json={"spec": {**spec, "target": str(tmp_path / "out")}})
    async with serving(config) as second, client(second) as api, agent("web-2", to=second):

        async def restored() -> Any:
            return (await api.get("/restores/ns/r1")).json()["status"] == "succeeded"

        await until(restored)
    assert below(tmp_path / "out", source / "day").read_text() == "tuesday"


async def test_the_same_restore_is_asked_for_twice_and_done_once(
    api: httpx.AsyncClient, repository: None, restore: Restore
) -> None:
    await api.put("/hosts/web-1", json={"labels": {}})
    first, again = [(await restore()).json() for _ in range(2)]
    assert again["id"] == first["id"]
    assert [it["kind"] for it in (await api.get("/jobs")).json()["items"]] == ["restore"]
    assert (await restore(target="/elsewhere")).status_code == 409
    assert (await api.get("/restores/other/r1")).status_code == 404


# Who may, and what cannot be.


async def test_hosts_and_folders_beyond_the_grant_are_refused_and_named(
    api: httpx.AsyncClient, restore: Restore
) -> None:
    for host, pool in (("web-1", "a"), ("web-2", "b")):
        await api.put(f"/hosts/{host}", json={"labels": {"pool": pool}})
    await api.put("/repositories/team-a/main", json={"spec": {"url": "s3:https://s3.example.org/b"}})
    for spec, field in (
        ({"target": "/srv/ab"}, "spec.target[0]"),
        ({"target": "/srv/a", "host": "web-2"}, "spec.host"),
    ):
        answer = await restore(namespace="team-a", **spec)
        assert (answer.status_code, [it["field"] for it in answer.json()["errors"]]) == (403, [field])
    job = (await restore(namespace="team-a", target="/srv/a/out")).json()
    assert job["command"]["within"] == ["/srv/a"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"target": "/"}, "spec.target"),
        ({"target": "out"}, "spec.target"),
        ({"target": "/srv/../etc"}, "spec.target"),
        ({"paths": ["etc"]}, "spec.paths[0]"),
        ({"snapshot": "--help"}, "spec.snapshot"),
        ({"snapshot": "abcd", "before": "2026-03-02T00:00:00Z"}, "spec.before"),
        ({"before": "2026-02-30T00:00:00Z"}, "spec.before"),
        ({"sourceHost": "../web-2"}, "spec.sourceHost"),
        ({"host": "nobody"}, "spec.host"),
        ({"repositoryRef": {"name": "none"}}, "spec.repositoryRef.name"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_with_its_field(
    api: httpx.AsyncClient,
    repository: None,
    restore: Restore,
    spec: dict[str, Any],
    field: str,
) -> None:
    await api.put("/hosts/web-1", json={"labels": {}})
    answer = await restore(**spec)
    assert (answer.status_code, [it["field"] for it in answer.json()["errors"]]) == (422, [field])


async def test_a_host_is_told_what_opens_the_repository_for_as_long_as_the_restore_lasts(
    connect: Connect,
    connected: Connected,
    repository: None,
    restore: Restore,
    vault: Path,
) -> None:
    async with connect("web-2") as speaks:
        await speaks.follow()
        await connected("web-2")
        job = (await restore(host="web-2")).json()
        (told,) = (await speaks.hears("repo.credentials"))["repositories"]
        assert (told["url"], told["password"]) == (f"{vault}/repositories/web-1", PASSWORD)
        command = await speaks.hears("command.run")
        assert (command["job_id"], command["repository"]) == (job["id"], told["id"])
        end = {"job_id": job["id"], "status": "succeeded", "finished_at": "2026-03-29T02:00:00Z"}
        await speaks.say("job.finished", **end)
        assert (await speaks.hears("repo.credentials"))["repositories"] == []
        await speaks.hears("job.confirmed")


async def test_how_far_a_restore_is_can_be_seen(
    api: httpx.AsyncClient,
    connect: Connect,
    connected: Connected,
    repository: None,
    restore: Restore,
    until: Until,
) -> None:
    async with connect("web-1") as speaks:
        await speaks.follow()
        await connected("web-1")
        job = (await restore()).json()
        await speaks.say("job.accepted", job_id=job["id"])
        await speaks.say("job.progress", job_id=job["id"], fraction=0.5, files_done=3)

        async def told() -> Any:
            return (await api.get("/restores/ns/r1")).json()["progress"]

        assert (await until(told))["files_done"] == 3


# Looks.


async def test_snapshots_are_listed_page_by_page_newest_first(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    source: Path,
) -> None:
    async with agent("web-1"):
        await connected("web-1")
        first = (await api.get("/repositories/ns/main/snapshots", params={"host": "web-1", "limit": 1})).json()
        (newest,) = first["items"]
        assert (newest["time"][:10], newest["host"], newest["paths"]) == ("2026-03-03", "web-1", [str(source)])
        query = {"host": "web-1", "limit": 1, "cursor": first["next"]}
        second = (await api.get("/repositories/ns/main/snapshots", params=query)).json()
        assert ([it["time"][:10] for it in second["items"]], second["next"]) == (["2026-03-02"], None)
        gone = await api.get("/repositories/ns/main/snapshots", params=query)
        assert (gone.status_code, "first page" in gone.json()["detail"]) == (409, True)
    jobs = (await api.get("/jobs")).json()["items"]
    looks = (await api.get("/jobs?kind=snapshots")).json()["items"]
    assert (jobs, [it["status"] for it in looks]) == ([], ["succeeded"])
    assert (await api.get(f"/jobs/{looks[0]['id']}/log")).json()["items"] == []


async def test_what_a_folder_of_a_snapshot_holds_is_listed(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    source: Path,
) -> None:
    async def files(snapshot: str = "latest", **query: str) -> httpx.Response:
        return await api.get(f"/repositories/ns/main/snapshots/{snapshot}/files", params={"host": "web-1", **query})

    async with agent("web-2"), agent("web-1"):
        await connected("web-1")
        assert [it["path"] for it in (await files()).json()["items"]] == [f"/{source.parts[1]}"]
        items = {it["path"]: it for it in (await files(path=f"{source}/sub/")).json()["items"]}
        assert sorted(items) == [f"{source}/sub/{name}" for name in ("[a]*", "link", "run")]
        assert (items[f"{source}/sub/run"]["mode"], items[f"{source}/sub/run"]["size"]) == ("4750", 10)
        assert (await files(path=f"{source}/gone")).json()["detail"] == f"snapshot latest holds no {source}/gone"
        unknown = await files("deadbeef")
        assert (unknown.status_code, "no such snapshot" in unknown.json()["detail"]) == (404, True)
        assert (await files("--help")).status_code == 422
        assert (await files(host="")).json()["errors"][0]["field"] == "host"


async def test_a_look_that_fails_says_why(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    vault: Path,
) -> None:
    body = {"spec": {"url": f"{vault}/repositories/{{host}}"}, "credentials": {"password": "wrong"}}
    await api.put("/repositories/ns/main", json=body)
    async with agent("web-1"):
        await connected("web-1")
        answer = await api.get("/repositories/ns/main/snapshots?host=web-1")
    assert (answer.status_code, "password" in answer.json()["detail"]) == (502, True)


async def test_where_nobody_can_look_the_remedy_is_told(
    api: httpx.AsyncClient,
    connect: Connect,
    connected: Connected,
    repository: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listings, "ANSWER_S", 0.2)
    nobody = await api.get("/repositories/ns/main/snapshots?host=web-1")
    assert (nobody.status_code, "start the agent of web-1" in nobody.json()["detail"]) == (504, True)
    async with connect("web-1") as speaks:
        await speaks.follow()
        await connected("web-1")
        silent = await api.get("/repositories/ns/main/snapshots?host=web-1")
        assert (silent.status_code, "web-1 gave no answer" in silent.json()["detail"]) == (504, True)
        await speaks.hears("repo.credentials")
        job = await speaks.hears("command.run")
        assert (await speaks.hears("command.cancel"))["job_id"] == job["job_id"]


async def test_who_looks_often_does_not_keep_all_hosts_busy(
    api: httpx.AsyncClient,
    connect: Connect,
    connected: Connected,
    repository: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listings, "MAX_AT_ONCE", 1)
    async with connect("web-1") as speaks:
        await speaks.follow()
        await connected("web-1")
        first = asyncio.create_task(api.get("/repositories/ns/main/snapshots?host=web-1"))
        await speaks.hears("repo.credentials")
        job_id = (await speaks.hears("command.run"))["job_id"]
        second = await api.get("/repositories/ns/main/snapshots?host=web-1")
        assert (second.status_code, "try again" in second.json()["detail"]) == (503, True)
        end = {"job_id": job_id, "status": "succeeded", "finished_at": "2026-03-29T02:00:00Z"}
        await speaks.say("job.finished", **end)
        assert (await first).json()["items"] == []


async def test_what_a_host_leaves_out_of_a_list_is_told(
    api: httpx.AsyncClient, connect: Connect, connected: Connected, repository: None
) -> None:
    async with connect("web-1") as speaks:
        await speaks.follow()
        await connected("web-1")
        asking = asyncio.create_task(api.get("/repositories/ns/main/snapshots?host=web-1"))
        await speaks.hears("repo.credentials")
        job_id = (await speaks.hears("command.run"))["job_id"]
        known = json.dumps({"id": "ab" * 32, "time": "2026-03-29T02:00:00Z", "hostname": "web-1"})
        await speaks.say("job.log", job_id=job_id, lines=[known, '{"id": "cd', "… 3 more lines are left out"])
        end = {"job_id": job_id, "status": "succeeded", "finished_at": "2026-03-29T02:00:00Z"}
        await speaks.say("job.finished", **end)
        page = (await asking).json()
    assert ([it["id"] for it in page["items"]], page["truncated"]) == (["ab" * 32], True)


# Files are found by name, and a preview says what a restore would write.


FOUND = {
    "DAY": ["day"],
    "un": ["sub/run"],
    "[a]": ["sub/[a]*"],
    "su*": ["sub"],
    "???": ["day", "sub", "sub/run"],
    "sub/r": ["sub/run"],
    "--help": [],
    "nothing": [],
}


async def test_a_file_is_found_by_its_name(
    agent: RunAgent, api: httpx.AsyncClient, connected: Connected, repository: None, source: Path
) -> None:
    found = {}
    async with agent("web-1"):
        await connected("web-1")
        for name in FOUND:
            asked = {"host": "web-1", "name": name}
            items = (await api.get("/repositories/ns/main/snapshots/latest/find", params=asked)).json()["items"]
            found[name] = [Path(it["path"]).relative_to(source) for it in items if source in Path(it["path"]).parents]
    assert {name: sorted(map(str, paths)) for name, paths in found.items()} == FOUND


async def test_to_find_a_file_in_no_snapshot_is_an_error_and_not_an_empty_list(
    agent: RunAgent, api: httpx.AsyncClient, connected: Connected, repository: None
) -> None:
    path = "/repositories/ns/main/snapshots/{}/find"
    async with agent("web-1"):
        await connected("web-1")
        answer = await api.get(path.format("deadbeef"), params={"host": "web-1", "name": "day"})
    assert (answer.status_code, "no such snapshot" in answer.text) == (404, True)
    answer = await api.get(path.format("latest"), params={"host": "web-1"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "name")


@pytest.mark.parametrize("paths", [[], ["sub"], ["day", "sub/link"]])
async def test_a_preview_is_what_a_restore_then_writes(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    repository: None,
    restore: Restore,
    ended: Ended,
    source: Path,
    tmp_path: Path,
    paths: list[str],
) -> None:
    out = tmp_path / "out"
    spec = {"repositoryRef": {"name": "main"}, "sourceHost": "web-1", "host": "web-2", "target": str(out)}
    spec |= {"paths": [str(source / path) for path in paths]}
    async with agent("web-1"), agent("web-2"):
        await connected("web-1", "web-2")
        answer = await api.post("/restores/ns/r1/preview", json={"spec": spec})
        assert answer.status_code == 200, answer.text
        preview = answer.json()
        assert not out.exists()
        await restore(**spec)
        assert (await ended())["status"] == "succeeded"
    said = {it["to"]: it for it in preview["items"]}
    written = {str(path): path.lstat().st_size for path in out.rglob("*") if path.is_symlink() or path.is_file()}
    assert {to for to, it in said.items() if it["type"] != "dir"} == written.keys()
    assert {it["to"] for it in preview["items"] if it["type"] == "dir"} <= set(map(str, out.rglob("*")))
    assert preview["bytes"] == sum(written[to] for to, it in said.items() if it["type"] == "file")
    assert (preview["host"], preview["target"], preview["truncated"]) == ("web-2", str(out), False)
    assert preview["files"] == sum(it["type"] == "file" for it in said.values())


async def test_a_preview_of_what_cannot_be_restored_says_why(
    agent: RunAgent, api: httpx.AsyncClient, connected: Connected, repository: None
) -> None:
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"paths": ["/nowhere"]}, 404, "no snapshot of web-1 matches"),
        ({"before": "2026-03-01T00:00:00Z"}, 404, "no snapshot of web-1 matches"),
        ({"snapshot": "deadbeef"}, 404, "no such snapshot"),
        ({"host": "web-9"}, 422, "there is no host 'web-9'"),
        ({"target": "here"}, 422, "spec.target"),
    ]
    async with agent("web-1"):
        await connected("web-1")
        for changes, status, detail in wrong:
            spec = {"repositoryRef": {"name": "main"}, "sourceHost": "web-1", "target": "/srv/x", **changes}
            answer = await api.post("/restores/ns/r1/preview", json={"spec": spec})
            assert (answer.status_code, detail in answer.text) == (status, True), answer.text


# What a person types.


@pytest.fixture
def lamplighter(server: Running, tmp_path: Path) -> Lamplighter:
    """Runs a command to its end: its exit code, stdout and stderr."""

    async def run(*words: str) -> tuple[int | None, str, str]:
        here = {
            "LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}",
            "LAMPLIGHTER_DATA_DIR": str(tmp_path / "server"),
        }
        process = await asyncio.create_subprocess_exec(
            LAMPLIGHTER, *words, env=os.environ | here, stdout=-1, stderr=-1, cwd=tmp_path
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    return run


async def test_a_person_finds_a_snapshot_looks_into_it_and_gets_a_file_back(
    agent: RunAgent,
    connected: Connected,
    repository: None,
    lamplighter: Lamplighter,
    source: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    async with agent("web-1"), agent("web-2"):
        await connected("web-1", "web-2")
        code, told, _ = await lamplighter("snapshots", "ns/main", "--host", "web-1")
        head, newest, _ = told.splitlines()
        assert (code, head.split()) == (0, ["SNAPSHOT", "TIME", "HOST", "TAGS", "PATHS"])
        _, told, _ = await lamplighter("ls", "ns/main", newest.split()[0], str(source), "--host", "web-1")
        assert [line.split()[0] for line in told.splitlines()[1:]] == ["-rw-r--r--", "drwxr-xr-x"]
        words = ("restore", "ns/main", "--host", "web-1", "--target", str(out))
        code, told, err = await lamplighter(*words, "--to", "web-2", "--before", "2026-03-02T23:00Z")
        assert (code, err) == (0, "")
        assert f"of web-1 below {out} on web-2: 1 file, 6 B" in told
        assert below(out, source / "day").read_text() == "monday"
        code, told, err = await lamplighter(*words)
        assert (code, told, "is not empty" in err) == (1, "", True)
    code, _, err = await lamplighter("ls", "ns/main", "latest", "--host", "web-1")
    assert (code, "start the agent of web-1" in err) == (1, True)


@pytest.mark.parametrize(("host", "remedy"), [("", "give --host"), ("web-1", "a Schedule of kind forget")])
async def test_a_list_of_more_snapshots_than_are_told_has_the_newest_and_says_so(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    lamplighter: Lamplighter,
    tmp_path: Path,
    host: str,
    remedy: str,
) -> None:
    await api.put("/repositories/ns/all", json={"spec": {"url": "rest:https://b"}, "credentials": {"password": "pass"}})
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    found = [
        {"id": f"{at:064x}", "time": (begin + timedelta(minutes=at)).isoformat(), "hostname": "web-1", "paths": ["/a"]}
        for at in range(12_000)
    ]
    (tmp_path / "answer").write_text(json.dumps(found))
    many = tmp_path / "restic"
    many.write_text(f"#!/bin/sh\nexec cat {tmp_path}/answer\n")
    many.chmod(0o755)
    async with agent("web-1", many):
        await connected("web-1")
        option = ["--host", host] if host else []
        code, out, err = await lamplighter("snapshots", "ns/all", *option, "--output", "json")
        page = (await api.get("/repositories/ns/all/snapshots", params={"limit": 1})).json()
    said = json.loads(out)
    assert (code, said["truncated"], len(said["items"])) == (0, True, 10_000)
    assert [it["id"] for it in said["items"]] == [it["id"] for it in found[:-10_001:-1]]
    assert err.startswith("Warning: the repository holds more snapshots than can be listed, these are the newest: ")
    assert remedy in err
    assert (page["truncated"], page["items"][0]["id"]) == (True, found[-1]["id"])


async def test_a_folder_of_more_files_than_are_told_is_listed_page_by_page_and_says_so(
    agent: RunAgent,
    api: httpx.AsyncClient,
    connected: Connected,
    lamplighter: Lamplighter,
    tmp_path: Path,
) -> None:
    source = tmp_path / "many"
    (source / "folder").mkdir(parents=True)
    for name in ("folder/one", *(f"{at:05}" for at in range(10_050))):
        (source / name).touch()
    body = {"spec": {"url": str(tmp_path / "store")}, "credentials": {"password": PASSWORD}}
    assert (await api.put("/repositories/ns/many", json=body)).is_success
    env = os.environ | {"RESTIC_REPOSITORY": str(tmp_path / "store"), "RESTIC_PASSWORD": PASSWORD}
    for words in (["init"], ["backup", "--host", "web-1", source]):
        process = await asyncio.create_subprocess_exec(RESTIC, "--no-cache", *words, env=env, stdout=-1)
        assert (await process.communicate(), process.returncode)[1] == 0
    async with agent("web-1"):
        await connected("web-1")
        ls = ("ls", "--host", "web-1", "ns/many", "latest")
        code, out, err = await lamplighter(*ls, str(source))
        assert code == 0, err
        _, told, _ = await lamplighter(*ls, str(source), "-o", "json")
        narrow = await lamplighter(*ls, str(source / "folder"))
    head, *rows = out.splitlines()
    said = json.loads(told)
    shown = {row.split()[-1] for row in rows}
    assert head.split() == ["MODE", "OWNER", "SIZE", "MODIFIED", "PATH"]
    assert 10_000 - 2 <= len(shown) == len(rows) <= 10_000  # restic's lines on the snapshot and the folder count too
    assert err == f"Warning: {source} holds more files than can be listed: name a folder below it\n"
    assert (said["truncated"], {it["path"] for it in said["items"]}) == (True, shown)
    assert (narrow[0], len(narrow[1].splitlines()), narrow[2]) == (0, 2, "")
