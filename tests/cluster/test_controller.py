"""With the chart's rights, the controller brings a real cluster's resources to a real server and their status back."""

import asyncio
import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from helm_python import Config as HelmConfig
from helm_python import HelmError

from agent.journal import Journal
from agent.restic.runner import Runner
from agent.service import Config as AgentConfig
from agent.service import Service, utc_now
from controller.client import Client
from controller.cluster.access import login
from controller.cluster.events import Recorder
from controller.cluster.follower import Timing
from controller.cluster.kube import Kube, KubeError
from controller.cluster.operator import operate
from controller.cluster.status import Notice
from server.app import Config, Running, serving
from server.events import RepositoryCounted
from server.store.counts import SNAPSHOTS, CountRow, put_counts
from tests.chart import rendered
from tests.cluster.apiserver import Cluster, OwnCluster
from tests.integration.clock import Clock
from tests.integration.conftest import Agent, dialled
from tests.integration.receivers import receiving
from tests.kstatus import kstatus
from tests.reverse_proxy import Proxy
from tests.specs import BACKUP, BAD_SCHEDULES

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("definitions")]

GROUP = "lamplighter.dev/v1alpha1"
PATIENCE_S = 60
RESTIC = shutil.which("restic") or "restic"
FAST = Timing(full=300, secrets=0.5, statuses=0.2, retry=0.1, max_retry=0.5, listed=0.5, write=0.2)
ROLES = {
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
}
PATHS = {
    "Schedule": f"/apis/{GROUP}/namespaces/{{namespace}}/schedules",
    "Repository": f"/apis/{GROUP}/namespaces/{{namespace}}/repositories",
    "Host": f"/apis/{GROUP}/namespaces/{{namespace}}/hosts",
    "Run": f"/apis/{GROUP}/namespaces/{{namespace}}/runs",
    "Restore": f"/apis/{GROUP}/namespaces/{{namespace}}/restores",
    "Alert": f"/apis/{GROUP}/namespaces/{{namespace}}/alerts",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    "Node": "/api/v1/nodes",
}
ACCEPTED = ("True", "Accepted")
NOWHERE = ("False", "NoHosts")
"""What is said of a Schedule that the server took, where there is no host."""
TAKEN = (ACCEPTED, NOWHERE)


class Kubectl:
    """What a person does in one namespace, and sees there."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._http, self.namespace = cluster.http, namespace

    def _path(self, kind: str, name: str = "") -> str:
        return PATHS[kind].format(namespace=self.namespace) + (f"/{name}" if name else "")

    def create(self, kind: str, name: str, spec: dict[str, Any] | None = None, **others: Any) -> None:
        metadata = {"name": name} | ({} if kind == "Node" else {"namespace": self.namespace})
        version = GROUP if self._path(kind).startswith(f"/apis/{GROUP}") else "v1"
        body = {"apiVersion": version, "kind": kind, "metadata": metadata | others.pop("metadata", {}), **others}
        body |= {} if spec is None else {"spec": spec}
        _succeeded(self._http.post(self._path(kind), json=body))

    def patch(self, kind: str, name: str, patch: dict[str, Any]) -> None:
        headers = {"content-type": "application/merge-patch+json"}
        _succeeded(self._http.patch(self._path(kind, name), json=patch, headers=headers))

    def delete(self, kind: str, name: str) -> None:
        _succeeded(self._http.delete(self._path(kind, name)))

    def get(self, kind: str, name: str) -> Any:
        answer = self._http.get(self._path(kind, name))
        return answer.json() if answer.is_success else None

    def list(self, kind: str) -> Any:
        return _succeeded(self._http.get(self._path(kind)))["items"]

    def row(self, kind: str, name: str) -> dict[str, Any]:
        """What `kubectl get` shows, by column."""
        as_table = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        shown = _succeeded(self._http.get(self._path(kind, name), headers=as_table))
        columns = [it["name"] for it in shown["columnDefinitions"]]
        return dict(zip(columns, shown["rows"][0]["cells"], strict=True))

    def conditions(self, kind: str, name: str) -> dict[str, Any]:
        status = (self.get(kind, name) or {}).get("status", {})
        return {it["type"]: (it["status"], it["reason"]) for it in status.get("conditions", ())}

    def ready(self, kind: str, name: str) -> Any:
        return self.conditions(kind, name).get("Ready")

    def secret(self, name: str, **data: str) -> None:
        self.create("Secret", name, data={key: base64.b64encode(it.encode()).decode() for key, it in data.items()})


def _succeeded(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str) -> Kubectl:
    return Kubectl(cluster, namespace)


@pytest.fixture
def home(cluster: Cluster) -> Kubectl:
    """The namespace of the controller and of Hosts."""
    return Kubectl(cluster, cluster.namespace())


@pytest.fixture(params=["cluster", "namespaces"])
def rights(request: pytest.FixtureRequest, cluster: Cluster, namespace: str, home: Kubectl) -> Any:
    return account(cluster, home, {} if request.param == "cluster" else {"tenancy": {"namespaces": [namespace]}})


@pytest.fixture
def token(cluster: Cluster, home: Kubectl) -> Any:
    return account(cluster, home, {})


def account(cluster: Cluster, home: Kubectl, values: Any) -> Any:
    """A token of the controller's service account, with the roles that the chart gives it and no others."""
    release = f"t-{uuid4().hex[:8]}"
    name = f"{release}-lamplighter-controller"
    for found in rendered(values, name=release, namespace=home.namespace):
        metadata = found["metadata"]
        if found["kind"] in ROLES and metadata["name"] in (name, f"{release}-lamplighter-follow"):
            cluster.apply(ROLES[found["kind"]].format(namespace=metadata.get("namespace")), found)
    return cluster.token(home.namespace, name, audience="")


def kubeconfig(path: Path, url: str, ca: str, token: str) -> Path:
    """A file that leads to an API server with a token."""
    there = {"server": url} | ({"certificate-authority-data": base64.b64encode(ca.encode()).decode()} if ca else {})
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": there}],
        "users": [{"name": "test", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path / "data", port=0)) as running:
        yield running


@pytest.fixture
async def rest(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    url = f"http://127.0.0.1:{server.port}/api/v1"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as http:
        yield http


async def names(rest: httpx.AsyncClient, plural: str) -> set[Any]:
    return {it["metadata"]["name"] for it in (await rest.get(f"/{plural}")).json()["items"]}


Controlling = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def controlling(
    cluster: Cluster, kubectl: Kubectl, home: Kubectl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Controlling:
    """A controller at work in this process, for a server and the test's namespace, with the rights of a token."""

    @asynccontextmanager
    async def controlling(server: Running, token: str, times: Timing = FAST) -> AsyncIterator[None]:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", cluster.url, cluster.ca, token)))
        stop, url = asyncio.Event(), f"http://127.0.0.1:{server.port}"
        async with Client(url, server.admin_token) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(operate(client, home.namespace, [kubectl.namespace], stop, times=times))
            try:
                yield
            finally:
                stop.set()

    return controlling


@pytest.fixture
async def controller(controlling: Controlling, server: Running, token: Any) -> AsyncIterator[None]:
    async with controlling(server, token):
        yield


async def until(
    condition: Callable[..., bool]
    | Callable[..., Any]
    | Callable[..., list[Any]]
    | Callable[..., Awaitable[Any]]
    | Callable[..., Awaitable[bool]],
) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.1)


async def declared(kubectl: Kubectl, *schedules: str) -> None:
    """A Repository with a Secret, and Schedules, all accepted."""
    kubectl.secret("hush", password="open sesame")
    kubectl.create("Repository", "main", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
    for name in schedules:
        kubectl.create("Schedule", name, BACKUP)
    for kind, name in [("Repository", "main"), *(("Schedule", name) for name in schedules)]:
        await until(lambda kind=kind, name=name: kubectl.ready(kind, name) in TAKEN)


# With the rights of the chart and no others.


async def test_what_is_applied_changed_and_deleted_follows_with_the_charts_rights(
    controlling: Controlling,
    cluster: Cluster,
    server: Running,
    rest: httpx.AsyncClient,
    kubectl: Kubectl,
    home: Kubectl,
    rights: Any,
) -> None:
    async with controlling(server, rights):
        await declared(kubectl, "etc", "home")
        await until(lambda: kubectl.conditions("Schedule", "etc").get("InSync"))
        kubectl.patch("Schedule", "etc", {"spec": {"cron": "@daily"}})
        await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
        assert (await rest.get(f"/schedules/{kubectl.namespace}/etc")).json()["spec"]["cron"] == "@daily"
        kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
        await until(lambda: kubectl.conditions("Run", "now").get("Failed") == ("True", "NoHosts"))
        kubectl.create("Schedule", "bad", {**BACKUP, "timeZone": "Mars/Olympus"})
        await until(lambda: [it for it in kubectl.list("Event") if it["regarding"]["name"] == "bad"])
        node = Kubectl(cluster, "")
        node.create("Node", kubectl.namespace, metadata={"labels": {"pool": "a"}})
        await until(lambda: home.ready("Host", kubectl.namespace) == ("False", "Disconnected"))
        node.patch("Node", kubectl.namespace, {"metadata": {"labels": {"pool": None, "other": "b"}}})
        await until(lambda: home.get("Host", kubectl.namespace)["metadata"]["labels"] == {"other": "b"})
        await until(lambda: _labels(rest, kubectl.namespace, {"other": "b"}))
        node.delete("Node", kubectl.namespace)
        await until(lambda: home.get("Host", kubectl.namespace) is None)
        for kind, name in (("Repository", "main"), ("Schedule", "etc"), ("Schedule", "home"), ("Schedule", "bad")):
            kubectl.delete(kind, name)
        await until(lambda: _empty(rest))
    assert home.get("Lease", "lamplighter-controller")["spec"]["holderIdentity"] == ""


async def test_a_look_at_each_kind_is_answered_when_it_was_done(
    controller: None, rest: httpx.AsyncClient, kubectl: Kubectl, home: Kubectl
) -> None:
    await declared(kubectl, "etc")
    kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
    await until(lambda: (kubectl.get("Run", "now").get("status") or {}).get("phase") == "Failed")
    kubectl.secret("on-call", urls="http://127.0.0.1:9")
    kubectl.create("Alert", "on-call", {"secretRef": {"name": "on-call"}})
    host = f"h-{kubectl.namespace}"
    home.create("Host", host, {})
    await until(lambda: home.ready("Host", host) == ("False", "Disconnected"))
    (await rest.put(f"/hosts/{host}", json={"labels": {"drifted": "yes"}})).raise_for_status()
    restored = {"repositoryRef": {"name": "main"}, "sourceHost": host, "target": "/restored"}
    kubectl.create("Restore", "back", restored)
    asked = (("Repository", "main"), ("Schedule", "etc"), ("Alert", "on-call"), ("Run", "now"), ("Restore", "back"))
    for who, kind, name in [*((kubectl, *it) for it in asked), (home, "Host", host)]:
        for value in ("2026-03-29T02:00:00Z", "again, please"):
            who.patch(kind, name, {"metadata": {"annotations": {"lamplighter.dev/reconcile-requested-at": value}}})
            await until(lambda: who.get(kind, name)["status"].get("lastHandledReconcileAt") == value)  # noqa: B023
    assert (await rest.get(f"/hosts/{host}")).json()["labels"] == {}
    assert kubectl.get("Run", "now")["status"]["phase"] == "Failed"


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "read"])
async def test_a_changed_secret_reaches_the_server_where_rbac_lets_it_be_watched_by_name_and_where_it_does_not(
    controlling: Controlling,
    cluster: Cluster,
    server: Running,
    rest: httpx.AsyncClient,
    kubectl: Kubectl,
    home: Kubectl,
    watched: bool,
) -> None:
    may = {"tenancy": {"namespaces": [kubectl.namespace]}, "rbac": {"watchSecrets": ["hush"] if watched else []}}
    times = FAST._replace(secrets=3600 if watched else 0.5)
    rights = account(cluster, home, may)
    async with controlling(server, rights, times):
        await declared(kubectl)
        for generation, password in ((2, b"another"), (3, b"a third")):
            kubectl.patch("Secret", "hush", {"data": {"password": base64.b64encode(password).decode()}})
            await until(lambda generation=generation: _has_generation(rest, kubectl.namespace, generation))
        if watched:
            later = {"metadata": {"labels": {"a": "b"}}}  # of which the cache of Secrets hears nothing
            kubectl.patch("Repository", "main", later)
            async with Kube(login) as kube:
                events = [it["type"] async for it in kube.watch("Secret", kubectl.namespace, "hush", 1)]
            assert events[:1] == ["ADDED"]
        kubectl.delete("Secret", "hush")
        await until(lambda: kubectl.ready("Repository", "main") == ("False", "SecretNotFound"))
        async with Kube(login) as kube:
            with pytest.raises(KubeError, match="forbidden"):
                await anext(kube.watch("Secret", kubectl.namespace, "other" if watched else "hush", 1))


async def _has_generation(rest: httpx.AsyncClient, namespace: str, generation: int) -> Any:
    found = (await rest.get(f"/repositories/{namespace}/main")).json()
    return found["metadata"]["generation"] == generation


async def test_what_has_ended_is_deleted_as_it_was_seen_and_finalizers_are_waited_for(
    controlling: Controlling,
    server: Running,
    rest: httpx.AsyncClient,
    kubectl: Kubectl,
    rights: Any,
) -> None:
    run = {"scheduleRef": {"name": "etc"}, "ttlSecondsAfterFinished": 0}
    async with controlling(server, rights):
        await declared(kubectl, "etc")
        kubectl.create("Run", "held", run, metadata={"finalizers": ["example.org/hold"]})
        kubectl.create("Run", "now", run)
        await until(lambda: kubectl.get("Run", "now") is None)
        held = await until(lambda: (its := kubectl.get("Run", "held"))["metadata"].get("deletionTimestamp") and its)
        assert held["status"]["phase"] == "Failed"
        assert (await rest.get(f"/runs/{kubectl.namespace}/{held['metadata']['uid']}")).json()["phase"] == "Failed"
        kubectl.patch("Run", "held", {"metadata": {"finalizers": None}})
        await until(lambda: kubectl.get("Run", "held") is None)
        kubectl.create("Run", "kept", {"scheduleRef": {"name": "etc"}})
        seen = await until(lambda: "Failed" in kubectl.conditions("Run", "kept") and kubectl.get("Run", "kept"))
        async with Kube(login) as kube:
            kubectl.patch("Run", "kept", {"metadata": {"labels": {"keep": "me"}}})
            metadata = seen["metadata"]
            await kube.delete("Run", kubectl.namespace, "kept", metadata["uid"], metadata["resourceVersion"])
        assert kubectl.get("Run", "kept") is not None  # it was changed after it was seen
        kubectl.patch("Schedule", "etc", {"spec": {"failedRunsHistoryLimit": 0}})
        await until(lambda: kubectl.get("Run", "kept") is None)


async def test_an_alert_tells_where_its_secret_says_with_the_charts_rights(
    controlling: Controlling,
    server: Running,
    kubectl: Kubectl,
    rights: Any,
) -> None:
    with receiving() as receiver:
        async with controlling(server, rights):
            kubectl.create("Alert", "on-call", {"secretRef": {"name": "on-call"}})
            await until(lambda: kubectl.ready("Alert", "on-call") == ("False", "SecretNotFound"))
            kubectl.secret("on-call", urls=f"# ours\n{receiver.url}\n")
            await until(lambda: kubectl.ready("Alert", "on-call") == ACCEPTED)
            kubectl.secret("check", url=receiver.url)
            await declared(kubectl, "etc")
            kubectl.patch("Schedule", "etc", {"spec": {"ping": {"urlSecretRef": {"name": "check"}}}})
            await until(lambda: kubectl.conditions("Alert", "on-call").get("Delivering") == ("True", "Delivered"))
            status = kubectl.get("Alert", "on-call")["status"]
            assert (status["firing"], status["observedGeneration"]) == (1, 1)
            assert receiver.told() == [("firing", f"Schedule/{kubectl.namespace}/etc/NoHosts")]
            await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
            kubectl.delete("Alert", "on-call")
            kubectl.delete("Schedule", "etc")
            kubectl.delete("Repository", "main")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file that was backed up by a host that is gone."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost")
    env = os.environ | {"RESTIC_REPOSITORY": str(tmp_path / "repository" / "gone"), "RESTIC_PASSWORD": "sesame"}
    for args in (["init"], ["backup", "--host", "gone", tmp_path / "hosts"]):
        subprocess.run([RESTIC, "--no-cache", *args], env=env, check=True, capture_output=True)
    return tmp_path / "hosts"


async def test_what_is_to_be_restored_is_back_and_told_with_the_charts_rights(
    controlling: Controlling,
    server: Running,
    kubectl: Kubectl,
    home: Kubectl,
    rights: Any,
    saved: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "restored"
    spec = {"repositoryRef": {"name": "main"}, "sourceHost": "gone", "host": "web-2", "target": str(target)}
    async with (
        controlling(server, rights),
        agent(server, "web-2", tmp_path / "agent"),
    ):
        kubectl.create("Restore", "back", spec)
        kubectl.secret("hush", password="sesame")
        url = f"{tmp_path}/repository/{{host}}"
        kubectl.create("Repository", "main", {"url": url, "passwordSecretRef": {"name": "hush"}})
        home.create("Host", "web-2", {})
        await until(lambda: kubectl.conditions("Restore", "back").get("Complete") == ("True", "Succeeded"))
    status = kubectl.get("Restore", "back")["status"]
    assert (status["phase"], status["host"], status["files"], status["bytes"]) == ("Succeeded", "web-2", 1, 19)
    assert (target / saved.relative_to("/")).read_text() == saved.read_text()


async def test_what_a_repository_holds_is_told_after_each_job_and_of_a_hundred_hosts_by_name(
    cluster: Cluster, server: Running, controller: None, kubectl: Kubectl, home: Kubectl, saved: Path, tmp_path: Path
) -> None:
    def held() -> Any:
        return (kubectl.get("Repository", "main").get("status") or {}).get("snapshots", {})

    def by_host() -> dict[str, int]:
        return {it["host"]: it["count"] for it in held().get("hosts", ())}

    where = {"url": f"{tmp_path}/repository/gone", "passwordSecretRef": {"name": "hush"}}
    every = {"cron": "@yearly", "repositoryRef": {"name": "main"}}
    async with agent(server, "web-1", tmp_path / "agent"):
        kubectl.secret("hush", password="sesame")
        home.create("Host", "web-1", {})
        kubectl.create("Repository", "main", where)
        kubectl.create("Schedule", "etc", {**every, "kind": "backup", "backup": {"paths": [str(saved)]}})
        kubectl.create("Schedule", "old", {**every, "kind": "forget", "retention": {"keepLast": 9, "allHosts": True}})
        kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
        await until(lambda: by_host() == {"web-1": 1})
        kubectl.create("Run", "then", {"scheduleRef": {"name": "old"}})
        await until(lambda: by_host() == {"gone": 1, "web-1": 1})
    assert (held()["count"], held()["asOf"] > held()["newest"]) == (2, True)
    store, now = server.parts.services.store, utc_now()
    (repository,) = server.parts.catalog.repositories.values()
    hosts = [f"{at:05}.{'x' * 60}.{'x' * 60}.example.org" for at in range(10_000)]
    rows = [CountRow(repository.id, SNAPSHOTS, host, 7, now, 0, None, None, now, None) for host in hosts]
    await asyncio.gather(*(store.write(put_counts, row) for row in rows))
    server.parts.events.publish(RepositoryCounted(repository.id))
    await until(lambda: held().get("count") == 70_002)
    assert (len(held()["hosts"]), held()["hostsOmitted"], held()["hosts"][0]["host"]) == (100, 9_902, "gone")
    assert len(json.dumps(kubectl.get("Repository", "main"))) < 40_000  # of the 1.5 MiB that etcd takes
    assert kubectl.row("Repository", "main")["Snapshots"] == 70_002


async def test_a_second_copy_is_made_and_restored_with_the_charts_rights(
    controlling: Controlling,
    server: Running,
    kubectl: Kubectl,
    home: Kubectl,
    rights: Any,
    saved: Path,
    tmp_path: Path,
) -> None:
    copy = {"kind": "copy", "cron": "@yearly", "repositoryRef": {"name": "far"}}
    back = {"repositoryRef": {"name": "far"}, "sourceHost": "gone", "host": "web-2", "target": str(tmp_path / "back")}
    async with (
        controlling(server, rights),
        agent(server, "web-2", tmp_path / "agent"),
    ):
        kubectl.create("Schedule", "copied", {**copy, "copy": {"fromRepositoryRef": {"name": "main"}}})
        kubectl.secret("hush", password="sesame")
        its = {"passwordSecretRef": {"name": "hush"}}
        kubectl.create("Repository", "main", {"url": f"{tmp_path}/repository/gone", **its})
        kubectl.create("Repository", "far", {"url": f"{tmp_path}/far", "init": True, **its})
        home.create("Host", "web-2", {})
        await until(lambda: kubectl.ready("Schedule", "copied") == ACCEPTED)
        kubectl.create("Run", "now", {"scheduleRef": {"name": "copied"}})
        await until(lambda: kubectl.conditions("Run", "now").get("Complete") == ("True", "Succeeded"))
        kubectl.create("Restore", "back", back)
        await until(lambda: kubectl.conditions("Restore", "back").get("Complete") == ("True", "Succeeded"))
    assert (tmp_path / "back" / saved.relative_to("/")).read_text() == saved.read_text()


@asynccontextmanager
async def agent(server: Running, host: str, folder: Path) -> AsyncIterator[None]:
    """A host's agent, whole."""
    journal, memory = Journal.open(folder / "journal.jsonl")
    config = AgentConfig(host, f"ws://127.0.0.1:{server.port}/agent", server.agent_token)
    runner = Runner(RESTIC, folder / "cache", utc_now)
    service = Service(config, journal, memory, runner, clock=utc_now)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run())
        try:
            yield
        finally:
            await service.stop()


async def _labels(rest: httpx.AsyncClient, host: str, labels: dict[str, str]) -> Any:
    answer = await rest.get(f"/hosts/{host}")
    return answer.is_success and answer.json()["labels"] == labels


async def _empty(rest: httpx.AsyncClient) -> bool:
    return not await names(rest, "schedules") | await names(rest, "repositories")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/namespaces/{namespace}/secrets"),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/{namespace}/secrets?watch=1&fieldSelector=metadata.name%3Dhush"),
        ("DELETE", "/api/v1/nodes/none"),
        ("GET", "/api/v1/namespaces/{namespace}/configmaps/none"),
        ("PATCH", f"/apis/{GROUP}/namespaces/{{namespace}}/schedules/none"),
        ("PATCH", f"/apis/{GROUP}/namespaces/{{namespace}}/repositories/none"),
    ],
)
def test_the_controller_may_not_do_what_it_does_not_need(
    cluster: Cluster, kubectl: Kubectl, token: Any, method: str, path: str
) -> None:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/merge-patch+json"}
    with httpx.Client(base_url=cluster.url, verify=_trusting(cluster), headers=headers, trust_env=False) as http:
        answer = http.request(method, path.format(namespace=kubectl.namespace), content=b"{}")
    assert answer.status_code == 403


def _trusting(cluster: Cluster) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=cluster.ca)


async def test_what_only_the_server_can_tell_becomes_a_condition(controller: None, kubectl: Kubectl) -> None:
    kubectl.create("Repository", "main", {"url": "/b"})
    bad = {f"bad-{at}": it for at, it in enumerate(it for it in BAD_SCHEDULES if it.by == "server")}
    for name, it in bad.items():
        kubectl.create("Schedule", name, it.spec)
    for name, it in bad.items():
        await until(lambda name=name: kubectl.ready("Schedule", name) == ("False", "Invalid"))
        conditions = kubectl.get("Schedule", name)["status"]["conditions"]
        assert {it["type"] for it in conditions} == {"Ready", "Stalled"}
        for condition in conditions:
            assert condition["message"].startswith(f"{it.field}: ")
            assert it.detail in condition["message"]


async def test_what_happens_again_is_counted_in_one_event(controller: None, kubectl: Kubectl) -> None:
    kubectl.create("Schedule", "etc", BACKUP)
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "RepositoryNotFound"))
    (event,) = await until(lambda: kubectl.list("Event"))
    async with Kube(login) as kube:
        recorder = Recorder(kube, lambda: datetime.now(UTC))  # as after a restart
        for _ in range(3):
            await recorder.record(kubectl.get("Schedule", "etc"), Notice("Warning", "RepositoryNotFound", "again"))
        await recorder.flush()
    (again,) = kubectl.list("Event")
    assert again["metadata"]["uid"] == event["metadata"]["uid"]
    assert again["series"]["count"] == 4


async def test_a_host_elsewhere_is_told_where_hosts_count(controller: None, kubectl: Kubectl, home: Kubectl) -> None:
    kubectl.create("Host", "laptop", {})
    home.create("Host", "laptop", {})
    await until(lambda: kubectl.ready("Host", "laptop") == ("False", "WrongNamespace"))
    await until(lambda: home.ready("Host", "laptop") == ("False", "Disconnected"))


async def test_a_status_is_not_written_onto_another_object_that_has_taken_the_name(
    controller: None, kubectl: Kubectl
) -> None:
    await declared(kubectl, "etc")
    for _ in range(3):
        kubectl.delete("Schedule", "etc")
        kubectl.create("Schedule", "etc", {**BACKUP, "cron": "0 0 30 2 *"})
        await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "Invalid"))
        kubectl.delete("Schedule", "etc")
        kubectl.create("Schedule", "etc", BACKUP)
        await until(lambda: kubectl.ready("Schedule", "etc") == NOWHERE)


# What tools wait for.


AUDITED = {"type": "example.org/Audited", "status": "True", "reason": "Audit", "message": "seen"}


def audit(cluster: Cluster, kubectl: Kubectl, name: str) -> None:
    """Have somebody else apply a condition to a Schedule's status."""
    metadata = {"name": name, "namespace": kubectl.namespace}
    status = {"conditions": [{**AUDITED, "lastTransitionTime": "2026-03-29T02:00:00Z"}]}
    answer = cluster.http.patch(
        f"{PATHS['Schedule'].format(namespace=kubectl.namespace)}/{name}/status",
        params={"fieldManager": "auditor"},
        headers={"content-type": "application/apply-patch+yaml"},
        json={"apiVersion": GROUP, "kind": "Schedule", "metadata": metadata, "status": status},
    )
    _succeeded(answer)


async def test_conditions_of_others_stay_and_those_of_the_controller_go_when_they_are_over(
    cluster: Cluster, controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declared(kubectl, "etc")
    assert kubectl.conditions("Schedule", "etc")["Reconciling"] == ("True", "NoHosts")
    audit(cluster, kubectl, "etc")
    kubectl.patch("Schedule", "etc", {"spec": {"cron": "@daily"}})
    await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
    (await rest.put("/hosts/a", json={"labels": {}})).raise_for_status()
    await until(lambda: kubectl.ready("Schedule", "etc") == ACCEPTED)
    assert kubectl.conditions("Schedule", "etc").keys() == {"Ready", "InSync", "Degraded", "example.org/Audited"}
    assert kstatus(kubectl.get("Schedule", "etc")) == "Current"
    managers = {it["manager"] for it in kubectl.get("Schedule", "etc")["metadata"]["managedFields"]}
    assert {"lamplighter-controller", "auditor"} <= managers
    written = kubectl.get("Schedule", "etc")["metadata"]["resourceVersion"]
    (await rest.put("/hosts/a", json={"labels": {"a": "b"}})).raise_for_status()  # which has everything be read anew
    kubectl.create("Schedule", "new", BACKUP)
    await until(lambda: kubectl.ready("Schedule", "new") == ACCEPTED)
    assert kubectl.get("Schedule", "etc")["metadata"]["resourceVersion"] == written


async def test_a_status_is_applied_to_the_object_that_it_is_of(controller: None, kubectl: Kubectl) -> None:
    await declared(kubectl, "etc")
    was = kubectl.get("Schedule", "etc")
    kubectl.delete("Schedule", "etc")
    async with Kube(login) as kube:
        assert await kube.apply_status(was, {"hosts": 7}) is None
        kubectl.create("Schedule", "etc", BACKUP)
        with pytest.raises(KubeError) as refused:
            await kube.apply_status(was, {"hosts": 7})
    assert not refused.value.passing
    assert kubectl.get("Schedule", "etc").get("status", {}).get("hosts") != 7


async def test_kubectl_waits_until_it_is_so_and_for_the_present_generation(
    cluster: Cluster, controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declared(kubectl, "etc")

    async def wait(what: str, name: str) -> asyncio.subprocess.Process:
        argv = ("-n", kubectl.namespace, "wait", f"--for={what}", "--timeout=60s", f"schedule/{name}")
        env = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
        return await asyncio.create_subprocess_exec("kubectl", *argv, env=env, stdout=subprocess.DEVNULL)

    waiting = await wait("condition=Ready", "etc")
    kubectl.create("Schedule", "bad", {**BACKUP, "timeZone": "Mars/Olympus"})
    stalled = await wait("condition=Stalled", "bad")
    assert await stalled.wait() == 0
    assert kstatus(kubectl.get("Schedule", "bad")) == "Failed"
    assert waiting.returncode is None
    (await rest.put("/hosts/a", json={"labels": {}})).raise_for_status()
    assert await waiting.wait() == 0
    kubectl.patch("Schedule", "etc", {"spec": {"timeZone": "Mars/Olympus"}})
    again = await wait("condition=Ready=false", "etc")
    assert await again.wait() == 0
    assert kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2


async def test_kubectl_waits_until_a_host_is_drained_and_a_paused_schedule_is_resumed(
    cluster: Cluster, controller: None, kubectl: Kubectl, home: Kubectl, server: Running, rest: httpx.AsyncClient
) -> None:
    async def wait(who: Kubectl, what: str, about: str) -> asyncio.subprocess.Process:
        argv = ("-n", who.namespace, "wait", f"--for={what}", "--timeout=60s", about)
        env = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
        return await asyncio.create_subprocess_exec("kubectl", *argv, env=env, stdout=subprocess.DEVNULL)

    host = f"h-{kubectl.namespace}"
    home.create("Host", host, {})
    await declared(kubectl, "etc")
    kubectl.patch("Schedule", "etc", {"spec": {"rollout": {"failurePolicy": "Pause"}}})
    await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
    async with agent_of(server, host) as agent:
        await until(lambda: kubectl.get("Schedule", "etc")["status"].get("hostsInSync") == 1)
        (await rest.post(f"/schedules/{kubectl.namespace}/etc/run")).raise_for_status()
        job_id = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job_id)
        home.patch("Host", host, {"spec": {"drain": True}})
        await until(lambda: home.conditions("Host", host).get("Drained") == ("False", "Draining"))
        drained = await wait(home, "condition=Drained", f"host/{host}")
        paused = await wait(kubectl, "condition=Paused", "schedule/etc")
        assert drained.returncode is None
        await agent.say("job.finished", job_id=job_id, status="failed", finished_at=datetime.now(UTC).isoformat())
        assert await drained.wait() == 0
        assert await paused.wait() == 0
    asked = {"metadata": {"annotations": {"lamplighter.dev/resume-requested-at": "now"}}}
    kubectl.patch("Schedule", "etc", asked)
    resumed = await wait(kubectl, "jsonpath={.status.lastHandledResumeAt}=now", "schedule/etc")
    assert await resumed.wait() == 0
    assert "Paused" not in kubectl.conditions("Schedule", "etc")


@asynccontextmanager
async def agent_of(server: Running, host: str) -> AsyncIterator[Agent]:
    """The agent of a host, of which a test says what it does; it holds what is declared."""
    async with dialled(server, server.agent_token) as socket:
        agent = Agent(socket, host, Clock())
        await agent.say("hello", host=host)
        await agent.follow()
        yield agent


async def test_helm_waits_until_all_is_current_and_ends_where_something_is_refused(
    cluster: Cluster, controller: None, kubectl: Kubectl, rest: httpx.AsyncClient, tmp_path: Path
) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: backups, version: 0.1.0}")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hush"}, "stringData": {"password": "s"}}
    ours = {"Repository": {"url": "/b", "passwordSecretRef": {"name": "hush"}}, "Schedule": BACKUP}
    objects = [{"apiVersion": GROUP, "kind": it, "metadata": {"name": "main"}, "spec": ours[it]} for it in ours]
    (chart / "templates" / "all.yaml").write_text(yaml.safe_dump_all([secret, *objects]))
    helm = HelmConfig(kubeconfig_path=cluster.kubeconfig, namespace=kubectl.namespace)
    installing = asyncio.create_task(
        asyncio.to_thread(helm.install, chart, "backups", {}, namespace=kubectl.namespace, wait="watcher", timeout=60)
    )
    await until(lambda: kubectl.ready("Schedule", "main") == NOWHERE)
    assert not installing.done()
    (await rest.put("/hosts/a", json={"labels": {}})).raise_for_status()
    await installing
    assert kubectl.ready("Schedule", "main") == ACCEPTED
    objects[1]["spec"] = {**BACKUP, "timeZone": "Mars/Olympus"}
    (chart / "templates" / "all.yaml").write_text(yaml.safe_dump_all([secret, *objects]))
    with pytest.raises(HelmError) as failed:
        await asyncio.to_thread(
            helm.upgrade, chart, "backups", {}, namespace=kubectl.namespace, wait="watcher", timeout=5
        )
    assert "main" in str(failed.value)
    helm.close()


async def test_a_delete_is_not_held_up_when_server_and_controller_are_gone_for_good(
    controlling: Controlling,
    kubectl: Kubectl,
    token: Any,
    tmp_path: Path,
) -> None:
    async with (
        serving(Config(tmp_path / "data", port=0)) as server,
        controlling(server, token),
    ):
        await declared(kubectl, "etc")
    for kind, name in (("Schedule", "etc"), ("Repository", "main")):
        kubectl.delete(kind, name)
        assert kubectl.get(kind, name) is None


# The API server goes, comes back, and forgets.


async def test_an_api_server_that_is_killed_and_restarted_is_followed_on(
    own_cluster: OwnCluster, controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declared(kubectl, "etc", "home")
    await asyncio.to_thread(own_cluster.stop)
    (await rest.delete(f"/schedules/{kubectl.namespace}/etc")).raise_for_status()  # news that can be told to nobody
    await asyncio.to_thread(own_cluster.start)
    kubectl.create("Schedule", "new", BACKUP)
    kubectl.delete("Schedule", "home")
    await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)
    await until(lambda: _without(rest, "home"))


async def _without(rest: httpx.AsyncClient, name: str) -> bool:
    return name not in await names(rest, "schedules")


async def test_what_is_deleted_while_the_history_is_compacted_is_removed(
    own_cluster: OwnCluster, controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declared(kubectl, "etc", "home")
    seen = kubectl.get("Schedule", "home")["metadata"]["resourceVersion"]
    await asyncio.to_thread(own_cluster.stop)
    await asyncio.to_thread(own_cluster.compact)
    await asyncio.to_thread(own_cluster.start)
    kubectl.delete("Schedule", "home")
    path = f"/apis/{GROUP}/namespaces/{kubectl.namespace}/schedules"
    since = {"watch": "true", "resourceVersion": seen, "timeoutSeconds": 1}
    await until(lambda: '"code":410' in own_cluster.http.get(path, params=since).text)  # once its storage is ready
    await until(lambda: _without(rest, "home"))
    kubectl.create("Schedule", "new", BACKUP)
    await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)


# The controller is killed, as a process of its own.


class Replica:
    """`lamplighter controller`, between proxies."""

    def __init__(
        self, api: Proxy, rest: Proxy, folder: Path, home: Kubectl, kubectl: Kubectl, token: str, admin_token: str
    ) -> None:
        folder.mkdir()
        (folder / "admin-token").write_text(admin_token)
        self.api, self.rest = api, rest
        self.process: Process | None = None
        self._env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig(folder / "kubeconfig", f"http://127.0.0.1:{api.port}", "", token)),
        }
        self._argv: list[str | Path] = [
            Path(sys.executable).with_name("lamplighter"),
            "controller",
            f"--server=http://127.0.0.1:{rest.port}",
            f"--token-file={folder / 'admin-token'}",
            f"--host-namespace={home.namespace}",
            f"--namespace={kubectl.namespace}",
        ]
        self._log = folder / "log"

    async def start(self, *more: str) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self._argv, *more, env=self._env, stderr=log)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            if self.process.returncode is None:
                self.process.send_signal(how)
            await self.process.wait()

    def writes(self) -> list[Any]:
        """What it changed, on either side."""
        return [it for it in (*self.rest.heard, *self.api.heard) if it[0] != "GET" and "/leases" not in it[1]]


@pytest.fixture
async def replica(
    cluster: Cluster, server: Running, kubectl: Kubectl, home: Kubectl, token: Any, tmp_path: Path
) -> AsyncIterator[Replica]:
    async with replicating(cluster, server, kubectl, home, token, tmp_path / "replica") as replica:
        yield replica


@asynccontextmanager
async def replicating(
    cluster: Cluster, server: Running, kubectl: Kubectl, home: Kubectl, token: str, folder: Path
) -> AsyncIterator[Replica]:
    api = Proxy(cluster.url, verify=_trusting(cluster))
    rest = Proxy(f"http://127.0.0.1:{server.port}")
    async with api.serving(), rest.serving():
        replica = Replica(api, rest, folder, home, kubectl, token, server.admin_token)
        try:
            yield replica
        finally:
            await replica.end()


STEPS = {
    "the repository's put": ("rest", "PUT", "/main"),
    "the schedule's put": ("rest", "PUT", "/etc"),
    "the repository's status": ("api", "PATCH", "/main/status"),
    "the schedule's status": ("api", "PATCH", "/etc/status"),
    "the schedule's delete": ("rest", "DELETE", "/etc"),
    "the repository's delete": ("rest", "DELETE", "/main"),
}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_controller_killed_at_any_step_leaves_nothing_undone_and_nothing_orphaned(
    replica: Replica, kubectl: Kubectl, rest: httpx.AsyncClient, when: str
) -> None:
    kubectl.secret("hush", password="open sesame")
    await replica.start("--no-lease")
    for step, (side, method, suffix) in STEPS.items():
        killed = asyncio.Event()

        def strike(killed: asyncio.Event = killed) -> None:
            if not killed.is_set():
                assert replica.process is not None
                replica.process.kill()
                killed.set()

        proxy = getattr(replica, side)
        proxy.fatal = lambda asked, path, method=method, suffix=suffix: asked == method and path.endswith(suffix)
        proxy.when, proxy.strike = when, strike
        if method == "DELETE":
            kubectl.delete("Schedule" if suffix == "/etc" else "Repository", suffix.strip("/"))
        elif kubectl.get("Schedule", "etc") is None:
            kubectl.create("Repository", "main", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
            kubectl.create("Schedule", "etc", BACKUP)
        else:  # a change of both, for their next steps
            kubectl.patch("Repository", "main", {"spec": {"url": f"/b/{len(step)}"}})
            kubectl.patch("Schedule", "etc", {"spec": {"spreadSeconds": len(step)}})
        await until(killed.is_set)
        assert replica.process is not None
        await replica.process.wait()
        proxy.fatal = lambda method, path: False
        await replica.start("--no-lease")
        await until(lambda: _converged(kubectl, rest))
    assert await _empty(rest)


async def _converged(kubectl: Kubectl, rest: httpx.AsyncClient) -> bool:
    """Whether the server holds just what is declared, and the statuses say so."""
    for kind, plural in (("Schedule", "schedules"), ("Repository", "repositories")):
        there = {it["metadata"]["name"]: it["spec"] for it in (await rest.get(f"/{plural}")).json()["items"]}
        if there != {it["metadata"]["name"]: it["spec"] for it in kubectl.list(kind)}:
            return False
        for it in kubectl.list(kind):
            status = it.get("status", {})
            ready = kubectl.ready(kind, it["metadata"]["name"]) in TAKEN
            if not ready or status["observedGeneration"] != it["metadata"]["generation"]:
                return False
    return True


async def test_of_two_replicas_one_works_and_the_other_takes_over(
    cluster: Cluster,
    server: Running,
    rest: httpx.AsyncClient,
    kubectl: Kubectl,
    home: Kubectl,
    token: Any,
    tmp_path: Path,
) -> None:
    async with (
        replicating(cluster, server, kubectl, home, token, tmp_path / "one") as one,
        replicating(cluster, server, kubectl, home, token, tmp_path / "other") as other,
    ):
        await one.start()
        await declared(kubectl, "etc")
        await other.start()
        await until(lambda: [it for it in other.api.heard if "/leases/" in it[1]])
        kubectl.create("Schedule", "home", BACKUP)
        await until(lambda: kubectl.ready("Schedule", "home") == NOWHERE)
        assert other.writes() == []
        await one.end()
        kubectl.create("Schedule", "new", BACKUP)
        await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)
        made = [it for it in other.writes() if it[0] == "PUT" and "/schedules/" in it[1]]
        assert made == [("PUT", f"/api/v1/schedules/{kubectl.namespace}/new")]
        audit = (await rest.get("/audit")).json()["items"]
        assert sorted(it["object_name"] for it in audit if it["object_kind"] == "Schedule") == sorted(
            f"{kubectl.namespace}/{name}" for name in ("etc", "home", "new")
        )
        await other.end(signal.SIGTERM)
        assert other.process is not None
        assert other.process.returncode == 0
    assert home.get("Lease", "lamplighter-controller")["spec"]["holderIdentity"] == ""
