"""Promise 8, at the server: what a namespace is not granted is refused, and ungranted hosts are left out."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from server.app import Config, ServerError, serving
from tests.integration.conftest import Connect, Until
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

GRANTS = """
namespaces:
  team-a:
    hostSelector: {matchLabels: {pool: a}}
    pathPrefixes: [/srv/a]
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def manifest(of: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {"kind": of, "metadata": {"namespace": namespace, "name": "etc"}, "spec": spec}


def schedule(namespace: str, *paths: str) -> Any:
    ref = {"name": "etc"}
    return manifest("Schedule", namespace, kind="backup", cron="@daily", repositoryRef=ref, backup={"paths": paths})


Result = TypeVar("Result")


class Server:
    """A server with grants, which can be started again with others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def with_grants(
        self,
        grants: str,
        work: Callable[[httpx.AsyncClient], Awaitable[Result]],
    ) -> Result:
        path = self.folder / "grants.yaml"
        path.write_text(grants)
        async with serving(Config(self.folder, port=0, grants=path)) as running:
            url = f"http://127.0.0.1:{running.port}/api/v1"
            headers = {"authorization": f"Bearer {running.admin_token}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as api:
                return await work(api)


async def declared(
    api: httpx.AsyncClient, namespace: str = "team-a", url: str = "s3:https://s3.example.org/b"
) -> httpx.Response:
    for host, pool in (("one", "a"), ("two", "b")):
        assert (await api.put(f"/hosts/{host}", json={"labels": {"pool": pool}})).is_success
    assert (await api.post("/repositories", json=manifest("Repository", namespace, url=url))).is_success
    return await api.post("/schedules", json=schedule(namespace, "/srv/a/data"))


def told(status: dict[str, Any]) -> dict[str, Any]:
    return {it["reason"]: it["message"] for it in status["problems"]}


async def test_a_path_beyond_the_grant_is_refused_and_named(tmp_path: Path) -> None:
    async def work(api: httpx.AsyncClient) -> httpx.Response:
        await declared(api)
        return await api.put("/schedules/team-a/etc", json=schedule("team-a", "/srv/./a", "/srv//ab"))

    answer = await Server(tmp_path).with_grants(GRANTS, work)
    assert answer.status_code == 403
    assert [error["field"] for error in answer.json()["errors"]] == ["spec.backup.paths[1]"]


async def test_a_secret_goes_only_where_it_says_and_never_to_a_url_that_was_changed(tmp_path: Path) -> None:
    """In a namespace with limits. What was taken stays, with the URL that it was taken with."""
    bound = {"password": ["rest:https://good.example/a"]}
    urls = [
        "rest:https://good.example/a/{host}",
        "rest:https://good.example.evil/a",
        "rest:https://good.example@evil/a",
    ]

    async def work(api: httpx.AsyncClient) -> tuple[list[int], Any]:
        async def put(url: str, **more: Any) -> int:
            body = manifest("Repository", "team-a", url=url, passwordSecretRef={"name": "s"})
            answer = await api.put("/repositories/team-a/etc", json={**body, "credentials": {"password": "p", **more}})
            return answer.status_code

        statuses = [await put(urls[0]), *[await put(url, urls=bound) for url in urls]]
        return statuses, (await api.get("/repositories/team-a/etc")).json()["spec"]["url"]

    assert await Server(tmp_path).with_grants(GRANTS, work) == ([403, 201, 403, 403], urls[0])


async def test_a_repository_on_a_path_beyond_the_grant_is_refused(tmp_path: Path) -> None:
    async def work(api: httpx.AsyncClient) -> httpx.Response:
        return await api.post("/repositories", json=manifest("Repository", "team-a", url="/etc/cron.d"))

    answer = await Server(tmp_path).with_grants(GRANTS, work)
    assert answer.status_code == 403
    assert [error["field"] for error in answer.json()["errors"]] == ["spec.url"]


async def test_hosts_beyond_the_grant_do_not_get_what_selects_them(tmp_path: Path) -> None:
    answer = await Server(tmp_path).with_grants(GRANTS, declared)
    assert answer.status_code == 201
    assert (answer.json()["status"]["hosts"], answer.json()["status"]["hostsNotGranted"]) == (1, 1)


async def test_a_namespace_without_a_grant_of_its_own_has_the_default(tmp_path: Path) -> None:
    answer = await Server(tmp_path).with_grants(GRANTS, lambda api: declared(api, "team-b", "/anywhere"))
    assert answer.json()["status"]["hosts"] == 2


async def test_what_is_granted_no_more_is_on_no_host(tmp_path: Path) -> None:
    server = Server(tmp_path)
    await server.with_grants(GRANTS, declared)

    async def held(api: httpx.AsyncClient) -> tuple[Any, Any]:
        return (await api.get("/schedules/team-a/etc")).json()["status"], (await api.get("/hosts/one")).json()

    status, host = await server.with_grants(GRANTS.replace("/srv/a", "/srv/b"), held)
    assert (status["hosts"], status["hostsNotGranted"]) == (0, 2)
    assert host["desired_version"] == 2


async def test_a_file_of_grants_that_is_wrong_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--grants"):
        await Server(tmp_path).with_grants("default: {pathPrefixes: [relative]}", declared)


async def test_powers_come_back_only_where_the_whole_host_is_granted(tmp_path: Path) -> None:
    ref = {"name": "etc"}

    async def work(api: httpx.AsyncClient) -> list[httpx.Response]:
        answers = []
        for namespace in ("team-a", "team-b"):
            await declared(api, namespace)
            spec = {"repositoryRef": ref, "sourceHost": "one", "target": "/srv/a/back", "setuidAndDevices": True}
            answers.append(await api.put(f"/restores/{namespace}/r1", json={"spec": spec}))
        return answers

    refused, taken = await Server(tmp_path).with_grants(GRANTS, work)
    assert (refused.status_code, taken.status_code) == (403, 200)
    assert refused.json()["errors"] == [
        {
            "field": "spec.setuidAndDevices",
            "detail": "needs a grant of all paths: leave it out, or ask the cluster's operator for one",
        }
    ]


async def test_every_command_says_what_the_namespace_is_granted(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "grants.yaml").write_text(GRANTS + "    hostIdentity: true\n")
    async with serving(Config(tmp_path / "data", port=0, grants=tmp_path / "grants.yaml")) as running:
        url = f"http://127.0.0.1:{running.port}/api/v1"
        headers = {"authorization": f"Bearer {running.admin_token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as api:
            await declared(api)
            async with connect("one", token=running.agent_token, to=running) as agent:
                await agent.follow()
                spec = {"repositoryRef": {"name": "etc"}, "sourceHost": "one", "target": "/srv/a/back"}
                await api.put("/restores/team-a/r1", json={"spec": spec})
                asked = [await agent.hears("command.run")]
                look = asyncio.create_task(api.get("/repositories/team-a/etc/snapshots"))
                asked.append(await agent.hears("command.run"))
                look.cancel()
                assert [it["kind"] for it in asked] == ["restore", "snapshots"]
                assert [(it["within"], it["host_identity"]) for it in asked] == [(["/srv/a"], True)] * 2


async def test_a_grant_that_is_limited_later_withdraws_what_is_not_bound_and_says_so(tmp_path: Path) -> None:
    """The Repository was taken when its namespace had no limits, and its Secret needed to name no URL."""
    spec = {"url": "rest:https://good.example/", "passwordSecretRef": {"name": "s"}}
    body = {**manifest("Repository", "team-a", **spec), "credentials": {"password": "hush"}}

    async def declare(api: httpx.AsyncClient) -> None:
        assert (await declared(api)).is_success
        assert (await api.put("/repositories/team-a/etc", json=body)).is_success

    async def held(api: httpx.AsyncClient) -> tuple[Any, httpx.Response, Any]:
        status = (await api.get("/schedules/team-a/etc")).json()["status"]
        look = await api.get("/repositories/team-a/etc/snapshots")
        repository = (await api.get("/repositories/team-a/etc")).json()["status"]
        assert told(repository)["NotGranted"] == told(status)["NotGranted"].removeprefix("it runs nowhere: ")
        bound = {**body, "credentials": {"password": "hush", "urls": {"password": [spec["url"]]}}}
        assert (await api.put("/repositories/team-a/etc", json=bound)).is_success
        return status, look, (await api.get("/schedules/team-a/etc")).json()["status"]

    server = Server(tmp_path)
    await server.with_grants("{}", declare)
    status, look, after = await server.with_grants(GRANTS, held)
    assert status["hosts"] == 0
    assert "Secret s must say which repositories it is for" in told(status)["NotGranted"]
    assert (look.status_code, look.json()["errors"][0]["field"]) == (403, "spec.passwordSecretRef")
    assert (after["hosts"], told(after).get("NotGranted", "")) == (1, "")


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ("{}", ""),
        (GRANTS, "namespace team-a was granted more"),
        (GRANTS.replace("pool: a", "pool: b").replace("[/srv/a]", "[/]"), "namespace team-a was granted more"),
        ("{namespaces: {team-a: {pathPrefixes: [/]}}}", ""),
    ],
)
async def test_a_job_that_waited_for_its_host_has_no_more_than_is_granted_now(
    tmp_path: Path, connect: Connect, until: Until, later: str, said: str
) -> None:
    async def ask(api: httpx.AsyncClient) -> httpx.Response:
        assert (await declared(api)).is_success
        spec = {"repositoryRef": {"name": "etc"}, "sourceHost": "one", "target": "/srv/a/back"}
        return await api.put("/restores/team-a/r1", json={"spec": spec})

    (tmp_path / "data").mkdir()
    assert (await Server(tmp_path / "data").with_grants("{}", ask)).is_success
    (tmp_path / "grants.yaml").write_text(later)
    async with serving(Config(tmp_path / "data", port=0, grants=tmp_path / "grants.yaml")) as running:
        url = f"http://127.0.0.1:{running.port}/api/v1"
        headers = {"authorization": f"Bearer {running.admin_token}"}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as api,
            connect("one", token=running.agent_token, to=running) as agent,
        ):
            await agent.follow()
            if not said:
                assert (await agent.hears("command.run"))["kind"] == "restore"
                return

            async def ended() -> Any:
                job = (await api.get("/restores/team-a/r1")).json()
                return job if job["status"] == "failed" else None

            assert said in (await until(ended))["error"]
            assert "command.run" not in agent.told


async def test_a_look_of_a_namespace_without_any_path_is_held_to_none(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "grants.yaml").write_text(GRANTS.replace("[/srv/a]", "[]"))
    async with serving(Config(tmp_path / "data", port=0, grants=tmp_path / "grants.yaml")) as running:
        url = f"http://127.0.0.1:{running.port}/api/v1"
        headers = {"authorization": f"Bearer {running.admin_token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as api:
            body = manifest("Repository", "team-a", url="s3:https://s3.example.org/b")
            assert (await api.post("/repositories", json=body)).is_success
            assert (await api.put("/hosts/one", json={"labels": {"pool": "a"}})).is_success
            async with connect("one", token=running.agent_token, to=running) as agent:
                await agent.follow()
                look = asyncio.create_task(api.get("/repositories/team-a/etc/snapshots"))
                assert (await agent.hears("command.run"))["within"] == ["/dev/null"]
                look.cancel()
