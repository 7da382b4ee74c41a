"""The controller brings resources to a real server and writes true statuses, on a simulated Kubernetes API."""

import asyncio
import base64
import contextlib
import copy
import gc
import itertools
import json
import math
import shutil
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import pytest
import yaml
from aiohttp import web
from kmock import KubernetesEmulator, KubernetesError, Request, Server, action, resource

from controller.client import Client
from controller.cluster.access import login
from controller.cluster.follower import Timing
from controller.cluster.kube import Kube
from controller.cluster.metrics import Metrics
from controller.cluster.operator import Health, operate
from controller.cluster.secret_watches import SecretWatches
from controller.cluster.watching import WatchTiming
from controller.resources import Key
from server.app import Config, Running, serving
from server.store import rollouts
from tests.certificates import Authority
from tests.plain import NO_TLS
from tests.reverse_proxy import Proxy

pytestmark = pytest.mark.anyio

HOME = "lamplighter-system"
PATIENCE_S = 20
WATCHED = WatchTiming(watch=1, stalled=30, check=0.2, again=0.1)
FAST = Timing(full=300, secrets=0.5, statuses=0.1, retry=0.05, max_retry=0.2, listed=0.2, write=0.1, watch=WATCHED)
GROUP = "lamplighter.dev/v1alpha1"
PLURALS = {
    "Schedule": f"{GROUP}/schedules",
    "Repository": f"{GROUP}/repositories",
    "Host": f"{GROUP}/hosts",
    "Run": f"{GROUP}/runs",
    "Restore": f"{GROUP}/restores",
    "Alert": f"{GROUP}/alerts",
    "Node": "v1/nodes",
    "Secret": "v1/secrets",
    "Event": "events.k8s.io/v1/events",
    "Namespace": "v1/namespaces",  # kopf waits until it has found these two
    "CustomResourceDefinition": "apiextensions.k8s.io/v1/customresourcedefinitions",
}
CLUSTER_SCOPED = ("Node", "Namespace", "CustomResourceDefinition")
OPENED = {"url": "/b", "passwordSecretRef": {"name": "opens"}}
BACKUP = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}


class Changes:
    """What has changed of one resource, in order. A watch goes on behind the resource version that it names.

    The emulator's own stream forgets what no watch was open for.
    """

    def __init__(self, versions: "itertools.count[int]") -> None:
        self._versions, self._changed = versions, asyncio.Condition()
        self._changes: list[tuple[int, Any]] = []

    async def put(self, change: Any) -> None:
        if change["type"] == "ERROR":  # not a change: only the watches that are open are told
            version = self._changes[-1][0] if self._changes else 0
        else:
            version = next(self._versions)
            change["object"]["metadata"]["resourceVersion"] = str(version)
        async with self._changed:
            self._changes.append((version, copy.deepcopy(change)))
            self._changed.notify_all()

    async def behind(self, version: int) -> AsyncIterator[Any]:
        position = sum(it <= version for it, _ in self._changes)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._changes) > position)  # noqa: B023 - asked at once
            yield self._changes[position][1]
            position += 1


class Api(KubernetesEmulator):
    """The mocked API, which keeps uids, generations and resource versions as the real one does.

    `refuse`: a status for a request, or 0. `ignores`: whether a request never gets an answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Callable[[Request], int] = lambda request: 0
        self.ignores: Callable[[Request], bool] = lambda request: False
        self.heard: list[Request] = []
        self._watched, self.most_watched = 0, 0
        self._ids, self._versions = itertools.count(1), itertools.count(1)
        self._changes: defaultdict[Any, Changes] = defaultdict(lambda: Changes(self._versions))
        self._buses: Any = self._changes  # where the emulator puts what has changed
        for name, path in PLURALS.items():
            namespaced, sub = name not in CLUSTER_SCOPED, {"status"}
            info = self.ResourceInfo(kind=name, namespaced=namespaced, subresources=sub, verbs={"list", "watch"})
            self.resources[resource(path)] = info

    async def _handle(self, request: Request) -> web.StreamResponse:
        self.heard.append(request)
        while self.ignores(request):
            await asyncio.sleep(0.05)
        if request.action and (status := self.refuse(request)):
            raise KubernetesError(status=status, message="not now")
        if request.action == action.CREATE:
            metadata = request.data["metadata"]
            metadata.setdefault("name", f"{metadata.get('generateName')}{next(self._ids)}")
            metadata |= {"uid": f"uid-{next(self._ids)}", "generation": 1}
        if request.headers.get("Content-Type") == "application/apply-patch+yaml":
            request.data["status"] = self._applied(request, request.data["status"])
            del request.data["metadata"]
        if request.action == action.UPDATE and "spec" in request.data:
            generation = self.body(request.resource, request.namespace, request.name)["metadata"]["generation"]
            request.data.setdefault("metadata", {})["generation"] = generation + 1
        return await super()._handle(request)

    def _applied(self, request: Request, status: dict[str, Any]) -> dict[str, Any]:
        """The merge patch for a status that is applied. There are no statuses of others here: see tests/cluster."""
        was = self.body(request.resource, request.namespace, request.name).get("status", {})
        return {**dict.fromkeys(was.keys() - status.keys()), **status}

    async def _serve_list(self, request: Request) -> dict[str, Any]:
        version = next(self._versions)  # before the objects are read: what changes meanwhile is told twice, not never
        page: Any = await super()._serve_list(request)
        return {**page, "metadata": {"resourceVersion": str(version)}}

    async def _serve_watch(self, request: Request) -> AsyncIterator[Any]:
        yield b""  # which sends the headers
        if "fieldSelector" in request.params:
            async for change in self._serve_watch_of_one(request):
                yield change
            return
        async for change in self._changes[request.resource].behind(int(request.params["resourceVersion"])):
            if request.namespace in (None, change["object"].get("metadata", {}).get("namespace")):
                yield change

    async def _serve_watch_of_one(self, request: Request) -> AsyncIterator[Any]:
        """The watch of one object, which begins with the object as it is, if it may come from the cache."""
        if request.params.get("resourceVersion") != "0":
            yield {"type": "ERROR", "object": {"message": "Timeout: Too large resource version: 2, current: 1"}}
            return
        self._watched += 1
        self.most_watched = max(self.most_watched, self._watched)
        name, version = request.params["fieldSelector"].removeprefix("metadata.name="), next(self._versions)
        assert request.resource is not None
        key = (request.resource, request.namespace, name)
        try:
            if key in self.objects and not self.objects[key].deleted:
                raw = self.objects[key].raw
                yield {"type": "ADDED", "object": {**raw, "metadata": {"resourceVersion": "1", **raw["metadata"]}}}
            async with asyncio.timeout(int(request.params["timeoutSeconds"])):
                async for change in self._changes[request.resource].behind(version):
                    metadata = change["object"].get("metadata", {})
                    if (metadata.get("namespace"), metadata.get("name")) == (request.namespace, name):
                        yield change
        except TimeoutError:
            pass
        finally:
            self._watched -= 1

    def body(self, of: Any, namespace: str | None, name: str | None) -> dict[str, Any]:  # type: ignore[override]
        assert name is not None
        return self.objects[of, namespace, name].raw

    async def lose_watch(self, kind: str) -> None:
        """End a kind's watch as the API server does when what it would go on from is compacted."""
        gone = {"kind": "Status", "apiVersion": "v1", "code": 410, "message": "too old"}
        await self._buses[resource(PLURALS[kind])].put({"type": "ERROR", "object": gone})

    def events(self) -> dict[str, Any]:
        """The reasons of Events by what they are about."""
        found: dict[str, Any] = {}
        for it in self.writes():
            if it.url.path.endswith("/events"):
                found.setdefault(it.data["regarding"]["name"], []).append(it.data["reason"])
        return found

    def writes(self) -> list[Any]:
        """Requests that changed something."""
        return [it for it in self.heard if it.method in ("POST", "PUT", "PATCH", "DELETE")]


class Kubectl:
    """What a person does with the API, and sees there."""

    def __init__(self, api: Api, http: httpx.AsyncClient) -> None:
        self._api, self._http = api, http

    def _path(self, kind: str, namespace: str, name: str = "") -> str:
        version, _, plural = PLURALS[kind].rpartition("/")
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        within = "" if kind == "Node" else f"/namespaces/{namespace}"
        return f"{root}{within}/{plural}" + (f"/{name}" if name else "")

    async def create(
        self, kind: str, name: str, spec: dict[str, Any] | None = None, namespace: str = "ns", **others: Any
    ) -> None:
        metadata = {"name": name, **others.pop("metadata", {})}
        if kind != "Node":
            metadata["namespace"] = namespace
        version = PLURALS[kind].rpartition("/")[0]
        body = {"apiVersion": version, "kind": kind, "metadata": metadata, **others}
        body |= {} if spec is None else {"spec": spec}
        (await self._http.post(self._path(kind, namespace), json=body)).raise_for_status()

    async def patch(self, kind: str, name: str, namespace: str = "ns", **changes: Any) -> None:
        (await self._http.patch(self._path(kind, namespace, name), json=changes)).raise_for_status()

    async def delete(self, kind: str, name: str, namespace: str = "ns") -> None:
        (await self._http.delete(self._path(kind, namespace, name))).raise_for_status()

    def get(self, kind: str, name: str, namespace: str = "ns") -> Any:
        """What the API has; None where there is none."""
        key = (resource(PLURALS[kind]), None if kind == "Node" else namespace, name)
        if key not in self._api.objects or self._api.objects[key].deleted:
            return None
        return self._api.objects[key].raw

    def conditions(self, kind: str, name: str, namespace: str = "ns") -> dict[str, Any]:
        status = (self.get(kind, name, namespace) or {}).get("status", {})
        return {it["type"]: (it["status"], it["reason"]) for it in status.get("conditions", ())}

    def ready(self, kind: str, name: str, namespace: str = "ns") -> Any:
        return self.conditions(kind, name, namespace).get("Ready")

    async def secret(self, name: str, **data: str) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        await self.create("Secret", name, data=encoded)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with Api() as api:
        yield api


@pytest.fixture
async def kubectl(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kubectl]:
    async with (
        Server(api) as listening,
        httpx.AsyncClient(base_url=str(listening.url), trust_env=False, verify=NO_TLS) as http,
    ):
        config = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": str(listening.url).rstrip("/")}}],
            "users": [{"name": "test", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        there = Kubectl(api, http)
        await there.secret("opens", password="open sesame")
        yield there


@pytest.fixture
async def road(kubectl: Kubectl, tmp_path: Path) -> "AsyncIterator[Road]":
    """What the controller's connections to the API server go through."""
    async with _leading_by_road(tmp_path) as road:
        yield road


@pytest.fixture
async def road_with_tls(kubectl: Kubectl, tmp_path: Path) -> "AsyncIterator[Road]":
    """The same, with TLS."""
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "tls.pem").write_bytes(b"".join(authority.issue("api", "127.0.0.1")))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "tls.pem")
    async with _leading_by_road(tmp_path, tls) as road:
        yield road


@asynccontextmanager
async def _leading_by_road(folder: Path, tls: ssl.SSLContext | None = None) -> "AsyncIterator[Road]":
    config = yaml.safe_load((folder / "kubeconfig").read_text())
    cluster = config["clusters"][0]["cluster"]
    async with Road(int(cluster["server"].rpartition(":")[2]), tls) as road:
        cluster["server"] = f"{'https' if tls else 'http'}://127.0.0.1:{road.port}"
        if tls:
            cluster["certificate-authority"] = str(folder / "ca.crt")
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        yield road


class Road:
    """A TCP proxy, or one that ends TLS, that can cut all connections and refuse new ones for a while, or fall silent.

    `cut_after`: connections from now on, of which the last one is followed by a cut. `cut_within`: what a cut comes in
    the middle of, once.
    """

    def __init__(self, to: int, tls: ssl.SSLContext | None) -> None:
        self._to, self._tls = to, tls
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_after, self.cuts = 0, 0
        self.cut_within: bytes | None = None

    async def __aenter__(self) -> Self:
        await self._listen(0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()  # a cut may have just listened again

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", port, ssl=self._tls)

    def fall_silent(self) -> None:
        """Hear nothing more on the connections that are open."""
        for writer in self._open:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    def callers(self) -> list[socket.socket]:
        """This process's open sockets that lead here."""
        return [it for it in gc.get_objects() if type(it) is socket.socket and self._leads_here(it)]

    def _leads_here(self, it: socket.socket) -> bool:
        with contextlib.suppress(OSError):  # it is closed, or not connected
            return it.family == socket.AF_INET and it.getpeername()[1] == self.port
        return False

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.ExitStack() as stack:
            stack.callback(self._tasks.discard, task)
            stack.callback(writer.transport.abort)
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            stack.callback(back.transport.abort)
            self._open |= {writer, back}
            stack.callback(self._open.difference_update, {writer, back})
            self.cut_after -= 1
            if self.cut_after == 0:
                self._tasks.add(asyncio.create_task(self._cut()))
            with contextlib.suppress(OSError):
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65536):
            if self.cut_within and self.cut_within in some:
                writer.write(some.partition(self.cut_within)[0])
                await writer.drain()
                self.cut_within = None
                await self._cut(0)
                return
            writer.write(some)
            await writer.drain()
        writer.close()

    async def _cut(self, after_s: float = 0.005) -> None:
        await asyncio.sleep(after_s)
        self._server.close()
        self._cut_all()
        await asyncio.sleep(3)
        await self._listen(self.port)
        self.cuts += 1

    def _cut_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path / "data", port=0)) as running:
        yield running


@pytest.fixture
async def rest(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with resting(server) as http:
        yield http


@asynccontextmanager
async def resting(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}/api/v1", headers=headers, verify=NO_TLS
    ) as http:
        yield http


class Away(NamedTuple):
    """Where a server was that has ended."""

    port: int
    admin_token: str


@asynccontextmanager
async def controlling(
    server: "Running | Away | Proxy",
    namespaces: Sequence[str] = (),
    metrics: Metrics | None = None,
    health: Health | None = None,
    **times: Any,
) -> AsyncIterator[None]:
    """A controller at work."""
    stop, paced = asyncio.Event(), FAST._replace(**times)
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(
            operate(client, HOME, namespaces, stop, lease=False, times=paced, metrics=metrics, health=health)
        )
        try:
            yield
        finally:
            stop.set()


@pytest.fixture
async def controller(server: Running, kubectl: Kubectl) -> AsyncIterator[None]:
    async with controlling(server):
        yield


async def until(
    condition: Callable[..., bool]
    | Callable[..., Any]
    | Callable[..., Awaitable[bool]]
    | Callable[..., dict[str, Any] | None]
    | Callable[..., Awaitable[Any]]
    | Callable[..., int],
) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


async def known(rest: httpx.AsyncClient, path: str) -> Any:
    """What the server has there, or nothing."""
    answer = await rest.get(path)
    return answer.json() if answer.is_success else None


async def declare(kubectl: Kubectl, *names: str) -> None:
    """A Repository and Schedules, accepted and told."""
    await kubectl.create("Repository", "main", OPENED)
    for name in names:
        await kubectl.create("Schedule", name, BACKUP)
    for name in names:
        await until(lambda name=name: "InSync" in kubectl.conditions("Schedule", name))
    await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)


def message(kubectl: Kubectl, schedule: str) -> str:
    """What the first condition of a Schedule says."""
    conditions = kubectl.get("Schedule", schedule).get("status", {}).get("conditions") or [{"message": ""}]
    return str(conditions[0]["message"])


ACCEPTED = ("True", "Accepted")
NOWHERE = ("False", "NoHosts")
"""What is said of a Schedule that the server took, where there is no host."""


async def test_what_is_applied_reaches_the_server_and_each_status_is_written_once(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api
) -> None:
    await declare(kubectl, "etc")
    assert (await known(rest, "/schedules/ns/etc"))["spec"]["backup"]["paths"] == ["/etc"]
    assert kubectl.conditions("Schedule", "etc") == {
        "Ready": NOWHERE,
        "Reconciling": ("True", "NoHosts"),
        "InSync": ("Unknown", "NoHosts"),
        "Degraded": ("True", "NoHosts"),
    }
    assert kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 1
    assert sorted(it.url.path.rpartition("v1alpha1/")[2] for it in api.writes() if it.method == "PATCH") == [
        "namespaces/ns/repositories/main/status",
        "namespaces/ns/schedules/etc/status",
    ]


async def test_what_is_changed_is_changed_at_the_server(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declare(kubectl, "etc")
    await kubectl.patch("Schedule", "etc", spec={"cron": "0 3 * * *"})
    await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
    assert (await known(rest, "/schedules/ns/etc"))["spec"]["cron"] == "0 3 * * *"


async def test_a_change_that_is_refused_is_not_in_sync_and_its_message_says_why(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.create("Node", "n1")
    await declare(kubectl, "etc")
    await until(lambda: kubectl.ready("Schedule", "etc") == ACCEPTED)
    await kubectl.patch("Schedule", "etc", spec={"cron": "0 0 30 2 *"})
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "Invalid"))
    assert kubectl.conditions("Schedule", "etc")["InSync"] == ("Unknown", "NotAccepted")
    assert (await known(rest, "/schedules/ns/etc"))["spec"]["cron"] == BACKUP["cron"]


async def test_a_generation_is_observed_once_the_server_has_answered_it(kubectl: Kubectl, tmp_path: Path) -> None:
    async with serving(Config(tmp_path / "data", port=0)) as server, controlling(server):
        await declare(kubectl, "etc", "home")
        await kubectl.patch("Schedule", "home", spec={"cron": "0 0 30 2 *"})
        await until(lambda: kubectl.ready("Schedule", "home") == ("False", "Invalid"))
        assert generations(kubectl, "home") == (2, {2})  # it was answered, if by a no
    away = Away(server.port, server.admin_token)
    async with controlling(away):
        await kubectl.patch("Schedule", "etc", spec={"cron": "0 4 * * *"})
        await kubectl.create("Schedule", "new", BACKUP)
        for name in ("etc", "new"):
            await until(lambda name=name: kubectl.ready("Schedule", name) == ("Unknown", "ServerUnreachable"))
        assert generations(kubectl, "etc") == (1, {1})
        assert generations(kubectl, "new") == (-1, {None})
        async with serving(Config(tmp_path / "data", port=server.port)):
            await until(lambda: generations(kubectl, "etc") == (2, {2}))
            await until(lambda: generations(kubectl, "new") == (1, {1}))


def generations(kubectl: Kubectl, name: str) -> tuple[Any, set[Any]]:
    """The observed generations of a Schedule, and of its conditions."""
    status = kubectl.get("Schedule", name)["status"]
    return status.get("observedGeneration"), {it.get("observedGeneration") for it in status["conditions"]}


@pytest.mark.parametrize("status", [404, 403, 500])
@pytest.mark.parametrize("kind", ["schedules", "repositories"])
async def test_a_kind_that_cannot_be_listed_is_not_an_empty_list(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api, kind: str, status: int
) -> None:
    async with controlling(server):
        await declare(kubectl, "etc")

    def tries() -> list[Any]:
        return [it for it in api.heard if it.url.path.endswith(kind)]

    api.refuse = lambda request: status if request.url.path.endswith(kind) else 0
    api.heard.clear()
    async with controlling(server, full=0.1):
        await until(lambda: len(tries()) > 2)
    assert await known(rest, "/schedules/ns/etc")
    assert await known(rest, "/repositories/ns/main")


async def test_what_is_deleted_is_deleted_at_the_server_at_once_and_in_any_order(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declare(kubectl, "etc")
    await kubectl.delete("Repository", "main")  # refused by the server for now, which no one need notice
    await kubectl.delete("Schedule", "etc")
    await until(lambda: _gone(rest, "/schedules/ns/etc"))
    await until(lambda: _gone(rest, "/repositories/ns/main"))


async def _gone(rest: httpx.AsyncClient, path: str) -> bool:
    return await known(rest, path) is None


async def test_nothing_of_lamplighter_holds_up_a_delete(controller: None, kubectl: Kubectl) -> None:
    await declare(kubectl, "etc")
    assert "finalizers" not in kubectl.get("Schedule", "etc")["metadata"]


async def request_look(kubectl: Kubectl, kind: str, name: str, value: str, namespace: str = "ns") -> None:
    asked = {"annotations": {"lamplighter.dev/reconcile-requested-at": value}}
    await kubectl.patch(kind, name, namespace, metadata=asked)


def handled(kubectl: Kubectl, kind: str, name: str) -> Any:
    return kubectl.get(kind, name)["status"].get("lastHandledReconcileAt")


async def test_a_requested_look_reads_the_secrets_and_the_server_again_before_it_is_answered(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    async with controlling(server, secrets=3600):
        await declare(kubectl, "etc")
        was = await known(rest, "/schedules/ns/etc")
        changed = {"kind": "Schedule", "metadata": was["metadata"], "spec": {**was["spec"], "cron": "0 5 * * *"}}
        (await rest.put("/schedules/ns/etc", json=changed)).raise_for_status()
        await request_look(kubectl, "Schedule", "etc", "now")
        await until(lambda: handled(kubectl, "Schedule", "etc") == "now")
        assert (await known(rest, "/schedules/ns/etc"))["spec"]["cron"] == BACKUP["cron"]
        assert kubectl.conditions("Schedule", "etc")["Ready"] == NOWHERE
        await kubectl.patch("Secret", "opens", data={"password": base64.b64encode(b"another").decode()})
        await request_look(kubectl, "Repository", "main", "")
        await until(lambda: handled(kubectl, "Repository", "main") == "")
        assert (await known(rest, "/repositories/ns/main"))["metadata"]["generation"] == 2
        await kubectl.delete("Secret", "opens")
        await request_look(kubectl, "Repository", "main", "again")
        await until(lambda: handled(kubectl, "Repository", "main") == "again")
        assert kubectl.ready("Repository", "main") == ("False", "SecretNotFound")


async def test_a_paused_schedule_goes_on_when_an_annotation_requests_it(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    async def pause() -> None:
        id_ = (await rest.get("/schedules/ns/etc")).json()["metadata"]["uid"]
        store = server.parts.services.store
        now = datetime.now(UTC)
        await store.write(lambda conn, ids: [rollouts.pause(conn, it, now, ["a", "b"]) for it in ids], id_)

    def resumed() -> Any:
        return kubectl.get("Schedule", "etc")["status"].get("lastHandledResumeAt")

    async with controlling(server):
        await declare(kubectl, "etc")
        await kubectl.patch("Schedule", "etc", spec={"rollout": {"failurePolicy": "Pause"}})
        await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
        for value in ("1", "2"):
            await pause()
            await request_look(kubectl, "Schedule", "etc", value)
            await until(lambda: kubectl.conditions("Schedule", "etc").get("Paused") == ("True", "RunsFail"))
            asked = {"annotations": {"lamplighter.dev/resume-requested-at": value}}
            await kubectl.patch("Schedule", "etc", "ns", metadata=asked)
            await until(lambda: resumed() == value)  # noqa: B023
            assert "Paused" not in kubectl.conditions("Schedule", "etc")
            assert (await known(rest, "/schedules/ns/etc"))["status"]["paused"] is None
        await pause()
        await kubectl.patch("Schedule", "etc", spec={"cron": "mended"})  # which the server refuses
        asked = {"annotations": {"lamplighter.dev/resume-requested-at": "3"}}
        await kubectl.patch("Schedule", "etc", "ns", metadata=asked)
        await request_look(kubectl, "Schedule", "etc", "3")
        await until(lambda: handled(kubectl, "Schedule", "etc") == "3")
        assert resumed() == "2"
        assert (await known(rest, "/schedules/ns/etc"))["status"]["paused"] is not None
        await kubectl.patch("Schedule", "etc", spec={"cron": "0 3 * * *"})
        await until(lambda: resumed() == "3")
        assert (await known(rest, "/schedules/ns/etc"))["status"]["paused"] is None


async def test_a_requested_look_stays_open_while_the_server_is_away(kubectl: Kubectl, tmp_path: Path) -> None:
    async with serving(Config(tmp_path / "data", port=0)) as server, controlling(server):
        await declare(kubectl, "etc")
        await request_look(kubectl, "Schedule", "etc", "1")
        await until(lambda: handled(kubectl, "Schedule", "etc") == "1")
    async with controlling(Away(server.port, server.admin_token)):
        await request_look(kubectl, "Schedule", "etc", "2")
        await kubectl.patch("Schedule", "etc", spec={"cron": "0 4 * * *"})
        await until(lambda: kubectl.ready("Schedule", "etc") == ("Unknown", "ServerUnreachable"))
        assert handled(kubectl, "Schedule", "etc") == "1"
        async with serving(Config(tmp_path / "data", port=server.port)):
            await until(lambda: handled(kubectl, "Schedule", "etc") == "2")
            assert kubectl.ready("Schedule", "etc") == NOWHERE


async def test_a_schedule_is_accepted_when_its_repository_comes(controller: None, kubectl: Kubectl) -> None:
    await kubectl.create("Schedule", "etc", BACKUP)
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "RepositoryNotFound"))
    await kubectl.create("Repository", "main", OPENED)
    await until(lambda: kubectl.ready("Schedule", "etc") == NOWHERE)


async def test_a_copy_is_accepted_when_both_its_repositories_are_there(controller: None, kubectl: Kubectl) -> None:
    spec = {"kind": "copy", "cron": "@daily", "repositoryRef": {"name": "far"}}
    await kubectl.create("Schedule", "copied", {**spec, "copy": {"fromRepositoryRef": {"name": "main"}}})
    await kubectl.create("Repository", "far", OPENED)
    await until(lambda: "'main'" in message(kubectl, "copied"))
    assert kubectl.ready("Schedule", "copied") == ("False", "RepositoryNotFound")
    await kubectl.create("Repository", "main", {**OPENED, "passwordSecretRef": {"name": "none"}})
    await until(lambda: kubectl.ready("Schedule", "copied") == ("False", "RepositoryNotReady"))
    assert message(kubectl, "copied").startswith("Repository main is not in force: there is no Secret none")
    await kubectl.patch("Repository", "main", spec={"passwordSecretRef": {"name": "opens"}})
    await until(lambda: kubectl.ready("Schedule", "copied") == NOWHERE)
    await kubectl.delete("Repository", "main")
    await until(lambda: message(kubectl, "copied").startswith("Repository main was deleted"))


async def test_a_schedule_is_accepted_when_its_repository_s_secret_comes(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.create("Repository", "main", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
    await kubectl.create("Schedule", "etc", BACKUP)
    await until(lambda: kubectl.ready("Repository", "main") == ("False", "SecretNotFound"))
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "RepositoryNotReady"))
    await kubectl.secret("hush", other="x")
    await until(lambda: kubectl.ready("Repository", "main") == ("False", "SecretKeyNotFound"))
    await kubectl.patch("Secret", "hush", data={"password": base64.b64encode(b"open sesame").decode()})
    await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)
    await until(lambda: kubectl.ready("Schedule", "etc") == NOWHERE)


def watches(api: Api) -> list[str]:
    """What the watches of Secrets selected, in order."""
    asked = [it for it in api.heard if it.url.path.endswith("/secrets")]
    return [it.params["fieldSelector"].removeprefix("metadata.name=") for it in asked if "watch" in it.params]


async def test_a_changed_secret_reaches_the_server_at_once_where_it_may_be_watched(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api
) -> None:
    async with controlling(server, secrets=3600):
        await declare(kubectl, "etc")
        await until(lambda: watches(api))
        await kubectl.patch("Secret", "opens", data={"password": base64.b64encode(b"another").decode()})
        await until(lambda: _generation(rest, 2))
        await kubectl.delete("Secret", "opens")
        await until(lambda: kubectl.ready("Repository", "main") == ("False", "SecretNotFound"))
        await kubectl.patch("Repository", "main", spec={"passwordSecretRef": {"name": "other"}})
        await until(lambda: "other" in watches(api))
        await kubectl.secret("other", password="open sesame")
        await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)


async def test_a_secret_that_may_not_be_watched_is_read_again_and_again(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api
) -> None:
    api.refuse = lambda it: 403 if "watch" in it.params and it.url.path.endswith("/secrets") else 0
    async with controlling(server):
        await declare(kubectl, "etc")
        for generation, password in ((2, b"another"), (3, b"a third")):
            await kubectl.patch("Secret", "opens", data={"password": base64.b64encode(password).decode()})
            await until(lambda generation=generation: _generation(rest, generation))
    assert watches(api) == ["opens"]  # and a refused watch is not requested again for long


async def _generation(rest: httpx.AsyncClient, generation: int) -> Any:
    return (await known(rest, "/repositories/ns/main"))["metadata"]["generation"] == generation


async def test_of_many_secrets_so_many_are_watched_at_once_and_each_has_its_turn(kubectl: Kubectl, api: Api) -> None:
    names, told = [f"s{number}" for number in range(5)], set[Key]()
    for name in names:
        await kubectl.secret(name, password="x")
    async with Kube(login) as kube, asyncio.TaskGroup() as tasks:
        watching = SecretWatches(kube, told.update, 0.05, 0.2, limit=2, watch_s=1)
        running = tasks.create_task(watching.run())
        for name in names:
            watching.follow(Key("Repository", "ns", name), [name])
        await until(lambda: {key.name for key in told} == set(names))
        running.cancel()
    assert api.most_watched == 2


async def test_a_repository_whose_secret_is_gone_stays_as_it_was(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.secret("hush", password="open sesame")
    await kubectl.create("Repository", "main", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
    await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)
    await kubectl.delete("Secret", "hush")
    await until(lambda: kubectl.ready("Repository", "main") == ("False", "SecretNotFound"))
    assert await known(rest, "/repositories/ns/main")


async def test_what_names_something_that_is_there_and_not_in_force_says_so_and_why(
    controller: None, kubectl: Kubectl
) -> None:
    await kubectl.create("Repository", "main", {**OPENED, "passwordSecretRef": {"name": "none"}})
    await kubectl.create("Schedule", "etc", BACKUP)
    await kubectl.create("Restore", "back", RESTORE)
    await kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
    for kind, name, named in (
        ("Schedule", "etc", "Repository"),
        ("Restore", "back", "Repository"),
        ("Run", "now", "Schedule"),
    ):
        await until(lambda it=(kind, name), of=named: kubectl.ready(*it) == ("False", f"{of}NotReady"))
    said = kubectl.get("Schedule", "etc")["status"]["conditions"][0]["message"]
    assert said == "Repository main is not in force: there is no Secret none in namespace ns: create it"


async def test_a_schedule_whose_repository_is_deleted_is_not_ready_though_its_hosts_go_on(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declare(kubectl, "etc")
    await kubectl.delete("Repository", "main")
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "RepositoryNotFound"))
    assert kubectl.conditions("Schedule", "etc")["InSync"] == ("Unknown", "NotAccepted")
    assert await known(rest, "/schedules/ns/etc")
    await kubectl.create("Repository", "main", OPENED)
    await until(lambda: kubectl.ready("Schedule", "etc") == NOWHERE)


async def test_a_secret_is_read_only_where_a_repository_names_it_and_shown_nowhere(
    controller: None, kubectl: Kubectl, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "controller")
    await kubectl.secret("hush", password="open sesame")
    await kubectl.secret("other", password="not asked for")
    await kubectl.create("Repository", "main", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
    await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)
    path = "/api/v1/namespaces/ns/secrets"
    asked = {(f"{path}/hush", None), (path, "metadata.name=hush")}
    await until(lambda: _secrets_asked_for(api) == asked)
    told = json.dumps([it.data for it in api.writes() if "/secrets" not in it.url.path])
    assert "sesame" not in told + caplog.text


def _secrets_asked_for(api: Api) -> set[Any]:
    asked = [it for it in api.heard if it.method == "GET" and "/secrets" in it.url.path]
    return {(it.url.path, it.params.get("fieldSelector")) for it in asked}


async def test_a_wrong_declaration_is_told_with_the_remedy_and_an_event(
    controller: None, kubectl: Kubectl, api: Api
) -> None:
    await kubectl.create("Repository", "main", OPENED)
    await kubectl.create("Schedule", "etc", {**BACKUP, "cron": "0 0 30 2 *"})
    await until(lambda: kubectl.ready("Schedule", "etc") == ("False", "Invalid"))
    (event,) = await until(lambda: [it.data for it in api.writes() if it.url.path.endswith("/events")])
    assert (event["type"], event["reason"], event["regarding"]["name"]) == ("Warning", "Invalid", "etc")
    assert event["note"].startswith("spec.cron: ")


async def test_nodes_become_hosts_whose_labels_follow_and_go_with_them(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.create("Node", "n1", metadata={"labels": {"pool": "a"}})
    await until(lambda: kubectl.get("Host", "n1", HOME))
    assert kubectl.get("Host", "n1", HOME)["metadata"]["ownerReferences"][0]["name"] == "n1"
    await until(lambda: _labels(rest, "n1", {"pool": "a"}))
    await kubectl.patch("Node", "n1", metadata={"labels": {"pool": "b", "more": ""}})
    await until(lambda: _labels(rest, "n1", {"pool": "b", "more": ""}))
    assert kubectl.get("Host", "n1", HOME)["metadata"]["labels"] == {"pool": "b", "more": ""}
    await kubectl.delete("Node", "n1")
    await until(lambda: kubectl.get("Host", "n1", HOME) is None)
    await until(lambda: _gone(rest, "/hosts/n1"))


async def _labels(rest: httpx.AsyncClient, host: str, labels: dict[str, str]) -> Any:
    return (await known(rest, f"/hosts/{host}") or {}).get("labels") == labels


async def test_a_host_whose_labels_cannot_be_kept_says_so_though_the_server_has_it(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api
) -> None:
    await kubectl.create("Node", "n1", metadata={"labels": {"pool": "a"}})
    await until(lambda: kubectl.ready("Host", "n1", HOME) == ("False", "Disconnected"))
    api.refuse = lambda it: 403 if it.method.upper() == "PATCH" and it.url.path.endswith("/hosts/n1") else 0
    await kubectl.patch("Node", "n1", metadata={"labels": {"pool": "b"}})
    await until(lambda: kubectl.ready("Host", "n1", HOME) not in (None, ("False", "Disconnected")))
    assert await _labels(rest, "n1", {"pool": "a"})
    api.refuse = lambda request: 0
    await kubectl.patch("Node", "n1", metadata={"labels": {"pool": "c"}})
    await until(lambda: kubectl.ready("Host", "n1", HOME) == ("False", "Disconnected"))
    await until(lambda: _labels(rest, "n1", {"pool": "c"}))


async def test_a_host_elsewhere_is_told_where_hosts_count(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.create("Host", "laptop", {}, namespace=HOME)
    await kubectl.create("Host", "laptop", {}, namespace="ns", metadata={"labels": {"a": "b"}})
    await until(lambda: kubectl.ready("Host", "laptop", "ns") == ("False", "WrongNamespace"))
    await until(lambda: kubectl.ready("Host", "laptop", HOME) == ("False", "Disconnected"))
    await kubectl.delete("Host", "laptop", "ns")
    await kubectl.patch("Host", "laptop", HOME, metadata={"labels": {"c": "d"}})
    await until(lambda: _labels(rest, "laptop", {"c": "d"}))


async def test_a_run_is_asked_for_once_and_followed_to_its_end(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await declare(kubectl, "etc")
    await kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
    await until(lambda: kubectl.conditions("Run", "now").get("Failed") == ("True", "NoHosts"))
    assert kubectl.conditions("Run", "now")["Complete"] == ("False", "NoHosts")
    assert kubectl.ready("Run", "now") == ACCEPTED


async def test_runs_that_have_ended_are_deleted_by_age_and_by_number_and_the_server_keeps_their_jobs(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    async with controlling(server):
        await declare(kubectl, "etc")
        for name in ("first", "second", "third"):
            await kubectl.create("Run", name, {"scheduleRef": {"name": "etc"}})
            await until(lambda name=name: "Failed" in kubectl.conditions("Run", name))
        uid = kubectl.get("Run", "first")["metadata"]["uid"]
        await kubectl.create("Run", "at-once", {"scheduleRef": {"name": "etc"}, "ttlSecondsAfterFinished": 0})
        await until(lambda: kubectl.get("Run", "at-once") is None)
        await kubectl.patch("Schedule", "etc", spec={"failedRunsHistoryLimit": 2})
        await until(lambda: kubectl.get("Run", "first") is None)
    await kubectl.patch("Schedule", "etc", spec={"failedRunsHistoryLimit": 1})
    async with controlling(server):  # as after a restart
        await until(lambda: kubectl.get("Run", "second") is None)
        await kubectl.create("Node", "n1")
        waits = {"scheduleRef": {"name": "etc"}, "ttlSecondsAfterFinished": 0}
        await until(lambda: kubectl.ready("Schedule", "etc") == ACCEPTED)
        await kubectl.create("Run", "waits", waits)
        await until(lambda: kubectl.ready("Run", "waits") == ACCEPTED)
    assert kubectl.get("Run", "third") is not None
    assert kubectl.get("Run", "waits") is not None
    assert (await known(rest, f"/runs/ns/{uid}"))["phase"] == "Failed"


@pytest.mark.parametrize("status", [403, 429])
async def test_what_may_not_be_deleted_keeps_nothing_else_from_it_and_is_not_asked_for_at_each_change(
    server: Running, kubectl: Kubectl, api: Api, status: int
) -> None:
    api.refuse = lambda it: status if it.method == "DELETE" and it.url.path.endswith("/stays") else 0

    def asked() -> int:
        return sum(it.method == "DELETE" and it.url.path.endswith("/stays") for it in api.heard)

    async with controlling(server, retry=60, max_retry=60):
        await declare(kubectl, "etc")
        for name in ("stays", *(f"goes-{n}" for n in range(3))):
            await kubectl.create("Run", name, {"scheduleRef": {"name": "etc"}, "ttlSecondsAfterFinished": 0})
            await until(lambda name=name: asked() if name == "stays" else kubectl.get("Run", name) is None)
    assert kubectl.get("Run", "stays") is not None
    assert asked() == 1
    api.refuse = lambda it: 0
    async with controlling(server):
        await until(lambda: kubectl.get("Run", "stays") is None)


async def test_what_was_refused_is_deleted_once_that_is_allowed(server: Running, kubectl: Kubectl, api: Api) -> None:
    api.refuse = lambda it: 403 if it.method == "DELETE" else 0
    async with controlling(server, full=0.5):
        await declare(kubectl, "etc")
        await kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}, "ttlSecondsAfterFinished": 0})
        await until(lambda: any(it.method == "DELETE" for it in api.heard))
        api.refuse = lambda it: 0
        await until(lambda: kubectl.get("Run", "now") is None)


async def test_a_run_waits_for_its_schedule(controller: None, kubectl: Kubectl) -> None:
    await kubectl.create("Run", "now", {"scheduleRef": {"name": "etc"}})
    await until(lambda: kubectl.ready("Run", "now") == ("False", "ScheduleNotFound"))
    await declare(kubectl, "etc")
    await until(lambda: kubectl.ready("Run", "now") == ACCEPTED)


RESTORE = {"repositoryRef": {"name": "main"}, "sourceHost": "gone", "host": "laptop", "target": "/restored"}


async def test_a_restore_waits_for_its_repository_and_its_host_and_is_followed_to_its_end(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    await kubectl.create("Restore", "back", RESTORE)
    await until(lambda: kubectl.ready("Restore", "back") == ("False", "RepositoryNotFound"))
    await kubectl.create("Repository", "main", OPENED)
    await until(lambda: kubectl.ready("Restore", "back") == ("False", "HostNotFound"))
    await kubectl.create("Host", "laptop", {}, namespace=HOME)
    await until(lambda: kubectl.ready("Restore", "back") == ACCEPTED)
    (job,) = (await rest.get("/jobs")).json()["items"]
    assert job["command"]["restore"]["target"] == "/restored"
    waiting = kubectl.get("Restore", "back")["status"]
    assert (waiting["phase"], waiting["host"], waiting["job"]) == ("Pending", "laptop", job["id"])
    await rest.post(f"/jobs/{job['id']}/cancel")
    await until(lambda: kubectl.conditions("Restore", "back")["Failed"] == ("True", "Cancelled"))
    assert kubectl.conditions("Restore", "back")["Complete"] == ("False", "Cancelled")
    assert kubectl.get("Restore", "back")["status"]["phase"] == "Failed"


async def test_a_restart_writes_nothing(server: Running, kubectl: Kubectl, api: Api, rest: httpx.AsyncClient) -> None:
    async with controlling(server):
        await kubectl.create("Node", "n1")
        await until(lambda: kubectl.ready("Host", "n1", HOME) == ("False", "Disconnected"))
        await declare(kubectl, "etc")
        await kubectl.create("Schedule", "bad", {**BACKUP, "cron": "never"})
        await until(lambda: (kubectl.get("Host", "n1", HOME) or {}).get("status", {}).get("desiredVersion") == 1)
        await until(lambda: kubectl.conditions("Schedule", "etc")["InSync"] == ("False", "HostsBehind"))
        await until(lambda: kubectl.ready("Schedule", "etc") == ACCEPTED)
        await until(lambda: kubectl.ready("Schedule", "bad") == ("False", "Invalid"))
        await until(lambda: api.events() == {"n1": ["Disconnected"], "bad": ["Invalid"]})
    before, audit = len(api.writes()), (await known(rest, "/audit"))["items"]
    async with controlling(server, full=0.3):
        compared = len(api.heard)

        def lists() -> list[Any]:
            return [it for it in list(api.heard)[compared:] if it.url.path.endswith("/runs")]

        await until(lambda: len(lists()) > 4)  # compared, watched, and compared again
    assert [(it.method, it.url.path, it.data) for it in api.writes()][before:] == []
    assert (await known(rest, "/audit"))["items"] == audit


async def test_what_was_deleted_while_nobody_looked_is_removed(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    async with controlling(server):
        await declare(kubectl, "etc", "home")
    await kubectl.delete("Schedule", "home")
    async with controlling(server):
        await until(lambda: _gone(rest, "/schedules/ns/home"))
    assert await known(rest, "/schedules/ns/etc")


async def test_what_others_made_at_the_server_is_left_alone(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    (await rest.put("/repositories/ns/main", json={"spec": {"url": "/theirs"}})).raise_for_status()
    (await rest.put("/repositories/ns/other", json={"spec": {"url": "/theirs"}})).raise_for_status()
    async with controlling(server):
        await kubectl.create("Repository", "main", OPENED)
        await until(lambda: kubectl.ready("Repository", "main") == ("False", "Conflict"))
    assert [(await known(rest, f"/repositories/ns/{name}"))["spec"]["url"] for name in ("main", "other")] == [
        "/theirs",
        "/theirs",
    ]


async def test_what_was_deleted_during_a_lost_watch_is_removed(
    controller: None, kubectl: Kubectl, rest: httpx.AsyncClient, api: Api
) -> None:
    await declare(kubectl, "etc", "home")
    del api.objects[resource(PLURALS["Schedule"]), "ns", "home"]  # and no watch tells
    await api.lose_watch("Schedule")
    await until(lambda: _gone(rest, "/schedules/ns/home"))
    await kubectl.create("Schedule", "new", BACKUP)
    await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)


@pytest.mark.parametrize("status", [500, 429, 503])
async def test_a_status_that_the_api_server_cannot_write_now_is_written_later(
    controller: None, kubectl: Kubectl, api: Api, status: int
) -> None:
    api.refuse = lambda request: status if request.method == "PATCH" else 0
    await kubectl.create("Repository", "main", OPENED)
    await until(lambda: [it for it in api.heard if it.method == "PATCH"])
    api.refuse = lambda request: 0
    await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)


async def test_what_the_controller_may_not_do_hurts_nothing_else(controller: None, kubectl: Kubectl, api: Api) -> None:
    denied = ("/secrets/", "/events", "/schedules/etc/status")
    api.refuse = lambda request: 403 if any(part in request.url.path for part in denied) else 0
    await kubectl.create("Repository", "locked", {"url": "/b", "passwordSecretRef": {"name": "hush"}})
    await kubectl.create("Repository", "main", {"url": "/b"})
    await kubectl.create("Schedule", "etc", BACKUP)
    await kubectl.create("Schedule", "home", BACKUP)
    await until(lambda: kubectl.ready("Repository", "locked") == ("False", "SecretForbidden"))
    await until(lambda: kubectl.ready("Schedule", "home") == NOWHERE)


async def test_the_controller_begins_when_the_api_server_lets_it(server: Running, kubectl: Kubectl, api: Api) -> None:
    await kubectl.create("Repository", "main", OPENED)
    api.refuse = lambda request: 403
    async with controlling(server):
        await until(lambda: len(api.heard) > 3)
        api.refuse = lambda request: 0
        await until(lambda: kubectl.ready("Repository", "main") == ACCEPTED)


async def test_a_server_that_is_away_is_told_of_what_is_new_and_all_is_well_when_it_is_back(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    config = Config(tmp_path / "data", port=0)
    async with serving(config) as server:
        port, token = server.port, server.admin_token
        async with controlling(server):
            await declare(kubectl, "etc")
    away = Away(port, token)
    before = kubectl.get("Schedule", "etc")["status"]
    async with controlling(away):
        await kubectl.create("Schedule", "new", BACKUP)
        await until(lambda: kubectl.ready("Schedule", "new") == ("Unknown", "ServerUnreachable"))
        await kubectl.patch("Schedule", "etc", spec={"cron": "0 4 * * *"})
        await until(lambda: kubectl.ready("Schedule", "etc") == ("Unknown", "ServerUnreachable"))
        assert kubectl.get("Schedule", "etc")["status"]["hosts"] == before["hosts"]
        async with serving(Config(tmp_path / "data", port=port)):
            await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)
            await until(lambda: kubectl.ready("Schedule", "etc") == NOWHERE)


@asynccontextmanager
async def proxied(server: Running) -> AsyncIterator[Proxy]:
    """The server, through a proxy."""
    async with Proxy(f"http://127.0.0.1:{server.port}", server.admin_token).serving() as proxy:
        yield proxy


@pytest.mark.parametrize("failing", [500, 503, "silent"])
@pytest.mark.parametrize("kind", ["Repository", "Schedule"])
async def test_an_object_that_fails_sets_no_other_back(
    server: Running, kubectl: Kubectl, kind: str, failing: int | str
) -> None:
    def fails(method: str, path: str) -> bool:
        return (method, path.rpartition("/")[2]) == ("PUT", "bad")

    await kubectl.create("Repository", "main", OPENED)
    await kubectl.create(kind, "bad", OPENED if kind == "Repository" else BACKUP)
    await kubectl.create("Schedule", "there", BACKUP)
    async with proxied(server) as proxy:
        if failing == "silent":
            proxy.ignores = fails
        else:
            assert isinstance(failing, int)
            proxy.refuse = lambda method, path: failing if fails(method, path) else 0
        async with controlling(proxy, max_retry=300):
            await until(lambda: kubectl.ready("Schedule", "there") == NOWHERE)
            await kubectl.create("Schedule", "new", BACKUP)
            await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)
            await kubectl.patch("Schedule", "there", spec={"cron": "0 4 * * *"})
            await until(lambda: generations(kubectl, "there") == (2, {2}))
            assert kubectl.ready(kind, "bad") != ACCEPTED
            proxy.refuse, proxy.ignores = lambda method, path: 0, lambda method, path: False


async def test_an_object_that_fails_is_tried_ever_more_rarely_whatever_it_is_told_and_whatever_others_do(
    server: Running, kubectl: Kubectl
) -> None:
    clock = asyncio.get_running_loop().time
    async with proxied(server) as proxy, controlling(proxy, max_retry=300):
        await declare(kubectl)
        proxy.refuse = lambda method, path: 500 if (method, path.rpartition("/")[2]) == ("PUT", "bad") else 0
        begin = clock()
        await kubectl.create("Schedule", "bad", BACKUP)
        names = (f"etc-{count}" for count in itertools.count())
        while clock() < begin + 2:
            name = next(names)
            await kubectl.create("Schedule", name, {**BACKUP, "cron": "0 0 30 2 *"})
            await until(lambda name=name: kubectl.ready("Schedule", name) == ("False", "Invalid"))
        tries = len([it for it in proxy.heard if it[1].endswith("/bad")])
        assert 2 <= tries <= 2 + math.log2((clock() - begin) / FAST.retry)


async def _has_cron(rest: httpx.AsyncClient, path: str, cron: str) -> Any:
    return (await known(rest, path))["spec"]["cron"] == cron


async def test_a_server_restored_from_an_old_backup_is_put_right_at_once(kubectl: Kubectl, tmp_path: Path) -> None:
    config = Config(tmp_path / "data", port=0)
    async with serving(config) as server, controlling(server):
        await declare(kubectl, "etc", "old")
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    async with contextlib.AsyncExitStack() as stack:
        async with serving(config) as server:
            await stack.enter_async_context(controlling(server))
            await kubectl.create("Schedule", "new", BACKUP)
            await until(lambda: kubectl.ready("Schedule", "new") == NOWHERE)
            await kubectl.delete("Schedule", "old")
            await kubectl.patch("Schedule", "etc", spec={"cron": "0 5 * * *"})
            async with resting(server) as rest:
                await until(lambda: _gone(rest, "/schedules/ns/old"))
            await until(lambda: kubectl.get("Schedule", "etc")["status"]["observedGeneration"] == 2)
        async with serving(Config(tmp_path / "backup", port=server.port)) as server, resting(server) as rest:
            await until(lambda: known(rest, "/schedules/ns/new"))
            await until(lambda: _gone(rest, "/schedules/ns/old"))
            await until(lambda: _has_cron(rest, "/schedules/ns/etc", "0 5 * * *"))


async def test_no_connection_outlives_the_watches_of_an_api_server_that_fell_silent(
    server: Running, kubectl: Kubectl, road_with_tls: Road
) -> None:
    async with controlling(server, watch=WATCHED._replace(watch=300)):
        await declare(kubectl, "etc")
        assert road_with_tls.callers()
        road_with_tls.fall_silent()
    assert road_with_tls.callers() == []


async def test_requests_go_through_the_proxy_that_the_kubeconfig_names(kubectl: Kubectl, tmp_path: Path) -> None:
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    cluster = config["clusters"][0]["cluster"]
    cluster |= {"server": "http://kubernetes.invalid", "proxy-url": cluster["server"]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    async with Kube(login) as kube:
        assert [it["metadata"]["name"] async for it in kube.list("Secret", "ns")] == ["opens"]


async def test_only_the_namespaces_that_are_named_count(
    server: Running, kubectl: Kubectl, rest: httpx.AsyncClient
) -> None:
    async with controlling(server, namespaces=["ns"]):
        await declare(kubectl, "etc")
        await kubectl.create("Repository", "main", OPENED, namespace="elsewhere")
        await kubectl.create("Repository", "second", OPENED)
        await until(lambda: kubectl.ready("Repository", "second") == ACCEPTED)
    assert kubectl.ready("Repository", "main", "elsewhere") is None
    assert await known(rest, "/repositories/elsewhere/main") is None


async def test_prometheus_is_told_which_replica_is_at_work(server: Running, kubectl: Kubectl) -> None:
    metrics = Metrics()
    told = metrics.registry.get_sample_value
    assert told("lamplighter_controller_leader") == 0
    async with controlling(server, metrics=metrics):
        await declare(kubectl, "etc")
        assert told("lamplighter_controller_leader") == 1
        assert (told("lamplighter_controller_objects") or 0) >= 2
        await until(lambda: told("lamplighter_controller_status_writes_total") == 2)
    assert told("lamplighter_controller_leader") == 0


@pytest.mark.parametrize("connections", [3, 5])
async def test_a_network_that_breaks_while_watches_begin_holds_nothing_up(
    server: Running, kubectl: Kubectl, road: Road, connections: int
) -> None:
    road.cut_after = 1 + connections  # the first is the controller's own
    async with controlling(server):
        async with asyncio.timeout(PATIENCE_S):
            while not road.cuts:
                await asyncio.sleep(0.05)
        await declare(kubectl, "etc")


@pytest.mark.parametrize("within", [b"APIResourceList", b"APIGroupList", b"APIVersions"])
async def test_a_scan_that_is_cut_in_the_middle_is_begun_anew(
    server: Running, kubectl: Kubectl, road: Road, within: bytes
) -> None:
    road.cut_within = within
    async with controlling(server):
        await until(lambda: road.cuts)
        await declare(kubectl, "etc")


@pytest.mark.parametrize("kind", ["schedules", "nodes"])
async def test_a_watch_that_is_never_answered_is_begun_anew_and_the_probe_tells(
    server: Running, kubectl: Kubectl, api: Api, kind: str
) -> None:
    health = Health()
    hangs = lambda request: request.method == "GET" and request.url.path.endswith(kind) and "watch" in request.url.query  # noqa: E731
    async with controlling(server, health=health, watch=WATCHED._replace(stalled=1.5)):
        await declare(kubectl, "etc")
        await until(lambda: _is_well(health))
        api.ignores = hangs
        await until(lambda: _is_told(health, kind))
        api.ignores = lambda request: False
        await until(lambda: _is_well(health))
        await kubectl.create("Schedule", "home", BACKUP)
        await until(lambda: kubectl.ready("Schedule", "home") == NOWHERE)


async def _is_told(health: Health, kind: str) -> bool:
    return kind in await health.problem()  # on a busy machine another one may be told before it


async def _is_well(health: Health) -> bool:
    return await health.problem() == ""
