"""A copy of a repository has its snapshots as they are, and can be restored, checked and verified like the first."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.restic.runner import Runner
from tests.conftest import NewRepository
from tests.integration.clock import due
from tests.integration.conftest import Connect, Declare
from tests.integration.crafted import Crafted
from tests.restics import Program, programs
from wire.messages import CommandRun, JobFinished, Repository, Restore, Verify

pytestmark = pytest.mark.anyio
PASSWORD, OTHER = "correct horse battery", "staple staple staple"


class Host:
    """A host with a repository of a snapshot of its data, and none yet at the place of the copy."""

    def __init__(self, folder: Path, restic: str) -> None:
        self.folder = folder
        self.restic = restic
        self.source = Repository("r1", "ns/main", str(folder / "main"), PASSWORD)
        self.copied = Repository("r2", "ns/far", str(folder / "far"), OTHER)

    async def run(self, kind: str, args: list[str], *, on: Repository | None = None, **more: Any) -> JobFinished:
        env = {"PATH": os.environ["PATH"], "HOME": "/root"}
        runner = Runner(self.restic, self.folder / "cache", lambda: datetime.now(UTC), env=env)
        source = self.source if kind == "copy" else None
        more |= {"from_repository": "r1"} if kind == "copy" else {}
        on = on or self.copied
        return await runner.run(CommandRun(kind, kind, args, on.id, **more), on, lambda news: None, source)

    async def copy(self, **more: Any) -> JobFinished:
        return await self.run("copy", ["copy"], init=["init", "--copy-chunker-params"], **more)

    def argv(self, repository: Repository, *args: str) -> list[str]:
        return [self.restic, "--no-cache", "--repo", repository.url, *args]

    def env(self, repository: Repository) -> dict[str, str]:
        return {**os.environ, "RESTIC_PASSWORD": repository.password}

    def tell(self, repository: Repository, *args: str) -> bytes:
        argv, env = self.argv(repository, *args), self.env(repository)
        return subprocess.run(argv, env=env, check=True, capture_output=True).stdout

    def snapshots(self, repository: Repository) -> Any:
        return json.loads(self.tell(repository, "snapshots", "--json"))

    def config(self, repository: Repository) -> Any:
        return json.loads(self.tell(repository, "cat", "config"))

    def locks(self, repository: Repository) -> set[Path]:
        return {it for it in Path(repository.url, "locks").iterdir() if len(it.name) == 64}

    def leave_an_exclusive_lock(self, repository: Repository) -> None:
        """Have restic lock a repository alone, and die."""
        argv, env = self.argv(repository, "check", "--read-data"), self.env(repository)
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as dies:
            while not self.locks(repository):
                assert dies.poll() is None
            dies.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "letter").write_text("of the host")
    return folder


@pytest.fixture(params=programs(), ids=str)
async def host(request: pytest.FixtureRequest, tmp_path: Path, data: Path, new_repository: NewRepository) -> Host:
    restic: Program = request.param
    host = Host(tmp_path, restic.path)
    new_repository(Path(host.source.url), PASSWORD)
    made = await host.run("backup", ["backup", "--json", "--host=db-1", "--tag=a", "--", str(data)], on=host.source)
    assert (made.status, made.error) == ("succeeded", "")
    return host


async def test_a_copy_restores_and_keeps_tags_hosts_and_paths(host: Host, data: Path) -> None:
    within = [str(host.folder)]
    end = await host.copy(within=within)
    assert (end.status, end.error) == ("succeeded", "")
    Crafted(Path(host.copied.url), OTHER).cheapen(OTHER)
    assert (await host.copy(within=within)).status == "succeeded"  # what is there is not copied again
    [first], [copied] = host.snapshots(host.source), host.snapshots(host.copied)
    shown = ("time", "hostname", "tags", "paths", "tree")
    assert [copied[it] for it in shown] == [first[it] for it in shown]
    target = host.folder / "restored"
    assert (await host.run("restore", [], restore=Restore(str(target), source_host="db-1"))).status == "succeeded"
    assert next(target.rglob("letter")).read_text() == "of the host"
    assert (await host.run("check", ["check", "--read-data"])).status == "succeeded"
    verified = await host.run("verify", ["ls", "--json", "--host=db-1", "--", "latest"], verify=Verify(5, 1 << 20))
    assert (verified.status, verified.files_processed) == ("succeeded", 1)
    assert not list((host.folder / "scratch").glob("*"))  # the files with the passwords are gone


async def test_no_password_is_in_arguments_or_the_environment(host: Host) -> None:
    wrapper, seen = host.folder / "restic", '"$RESTIC_CACHE_DIR/seen"'  # where a job may write
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nenv >> {seen}\nexec {host.restic} "$@"\n')
    wrapper.chmod(0o755)
    host.restic = str(wrapper)
    assert (await host.copy()).status == "succeeded"
    [told] = [it.read_text() for it in (host.folder / "cache").glob("*/seen")]
    assert "RESTIC_FROM_REPOSITORY=" in told
    assert PASSWORD not in told
    assert OTHER not in told


async def test_nothing_yet_is_copied_into_a_repository_that_cuts_files_alike(host: Host) -> None:
    host.tell(host.source, "forget", "latest")
    host.copied = Repository("r2", "ns/far", host.copied.url, PASSWORD)  # the same for both
    end = await host.copy()
    assert (end.status, end.error, host.snapshots(host.copied)) == ("succeeded", "", [])
    assert host.config(host.copied)["chunker_polynomial"] == host.config(host.source)["chunker_polynomial"]
    assert host.config(host.copied)["id"] != host.config(host.source)["id"]


async def test_locks_of_the_dead_are_removed_in_both(host: Host, new_repository: NewRepository) -> None:
    new_repository(Path(host.copied.url), OTHER)
    for repository in (host.source, host.copied):
        host.leave_an_exclusive_lock(repository)
    end = await host.copy()
    assert (end.status, end.error) == ("succeeded", "")
    assert not host.locks(host.source) | host.locks(host.copied)


OF_SOURCE = "the Repository that is copied from: "


async def test_which_of_the_two_cannot_be_opened_is_told(host: Host) -> None:
    far, main = host.copied, host.source
    end = await host.run("copy", ["copy"])
    assert (end.reason, end.error.startswith("there is no repository: set spec.init: true")) == ("NoRepository", True)
    host.source = Repository("r1", "ns/main", f"{main.url}-gone", PASSWORD)
    end = await host.copy()
    assert (end.reason, end.error.startswith(f"{OF_SOURCE}there is no repository: check its")) == ("NoRepository", True)
    host.source = Repository("r1", "ns/main", main.url, "wrong one")
    end = await host.copy()
    assert (end.reason, end.error.startswith(f"{OF_SOURCE}the password does not")) == ("WrongPassword", True)
    assert not Path(far.url).exists()
    host.source = main
    assert (await host.copy()).status == "succeeded"
    host.copied = Repository("r2", "ns/far", far.url, "wrong one")
    end = await host.copy()
    assert (end.reason, end.error.startswith("the password does not open")) == ("WrongPassword", True)
    Path(far.url).rename(f"{far.url}-unmounted")
    host.copied = far
    end = await host.copy()
    assert (end.reason, "existed before and is missing now" in end.error) == ("NoRepository", True)
    assert not Path(far.url).exists()


async def test_what_restic_could_not_do_for_both_is_told_before_it_starts(host: Host) -> None:
    far, main = host.copied, host.source
    keys = {"B2_ACCOUNT_ID": "a", "B2_ACCOUNT_KEY": "a"}
    host.source = Repository("r1", "ns/main", "b2:main", PASSWORD, keys)
    host.copied = Repository("r2", "ns/far", "b2:far", OTHER, {**keys, "B2_ACCOUNT_KEY": "b"})
    end = await host.copy()
    assert "repositories ns/far and ns/main need different values of B2_ACCOUNT_KEY" in end.error
    for password in (OTHER + " ", "\ufeff" + OTHER):
        host.source, host.copied = main, Repository("r2", "ns/far", far.url, password)
        assert "ns/far: its password begins or ends with a space, or begins" in (await host.copy()).error


async def test_a_folder_that_is_not_granted_is_neither_read_nor_written(host: Host) -> None:
    (host.folder / "granted").mkdir()
    real = host.copied
    host.copied = Repository("r2", "ns/far", str(host.folder / "granted/far"), OTHER)
    (host.folder / "granted/main").symlink_to(host.source.url)
    host.source = Repository("r1", "ns/main", str(host.folder / "granted/main"), PASSWORD)
    end = await host.copy(within=[str(host.folder / "granted")])
    assert (end.status, end.reason) == ("failed", "NotGranted")
    assert not Path(real.url).exists()


COPY = {"kind": "copy", "backup": None, "repository": "far", "copy": {"fromRepositoryRef": {"name": "main"}}}


async def test_the_host_that_copies_gets_what_opens_both_and_neither_repository_can_go(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    for name, url in (("main", "/main/{host}"), ("far", "/far")):
        there = {"spec": {"url": url, "init": True}, "credentials": {"password": f"of {name}"}}
        (await api.put(f"/repositories/ns/{name}", json=there)).raise_for_status()
    (await api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
    schedule = await declare("copied", **COPY)
    async with connect("node-1") as agent:
        told = (await agent.hears("repo.credentials"))["repositories"]
        assert {it["url"]: it["password"] for it in told} == {"/main/node-1": "of main", "/far": "of far"}
        await agent.follow()
        await agent.say("schedule.fire", schedule_id=schedule, scheduled_at=due())
        command = await agent.hears("command.run")
        assert (command["args"], command["init"]) == (["copy"], ["init", "--copy-chunker-params"])
        by_url = {it["url"]: it["id"] for it in told}
        assert (command["repository"], command["from_repository"]) == (by_url["/far"], by_url["/main/node-1"])
    async with connect("node-1", agent_version="9.9", capabilities=["backup"]) as agent:
        await agent.follow()
        [told] = (await api.get("/schedules/ns/copied")).json()["status"]["problems"]
        assert (told["reason"], "agent 9.9 does not run copy" in told["message"]) == ("NotSupported", True)
    for name in ("main", "far"):
        gone = await api.delete(f"/repositories/ns/{name}")
        assert (gone.status_code, "is used by Schedule ns/copied" in gone.text) == (409, True)
        users = (await api.get(f"/repositories/ns/{name}/schedules")).json()["items"]
        assert [it["metadata"]["name"] for it in users] == ["copied"]


async def test_a_copy_is_of_a_repository_of_its_own_namespace_that_exists(
    api: httpx.AsyncClient, declare: Declare
) -> None:
    (await api.put("/repositories/elsewhere/main", json={"spec": {"url": "/main"}})).raise_for_status()
    (await api.put("/repositories/ns/far", json={"spec": {"url": "/far"}})).raise_for_status()
    with pytest.raises(httpx.HTTPStatusError) as error:
        await declare("copied", **COPY)
    assert "spec.copy.fromRepositoryRef.name" in error.value.response.text
