"""Promise 6, on a real API server: an agent is only the host that its token names; callers may do what RBAC allows."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.access.identity import ALLOWED_S, REFUSED_S, Permission, Reviews
from server.access.kubernetes import Client
from server.access.kubernetes import Config as Api
from server.app import Config, Running, serving
from server.errors import Forbidden, Unauthorized
from tests.cluster.apiserver import Cluster, OwnCluster
from tests.integration.conftest import dialled

pytestmark = pytest.mark.anyio

RIGHTS = {"apiGroups": ["lamplighter.dev"], "resources": ["schedules", "repositories"], "verbs": ["*"]}


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api(cluster: Cluster, namespace: str, tmp_path: Path) -> Api:
    """Where the server's own service account asks, with no more rights than that."""
    cluster.service_account(namespace, "server")
    cluster.bind_cluster_role("system:auth-delegator", namespace, "server")
    (tmp_path / "token").write_text(cluster.token(namespace, "server", audience=""))
    (tmp_path / "ca.crt").write_text(cluster.ca)
    return Api(cluster.url, tmp_path / "token", tmp_path / "ca.crt")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def identity(api: Api, namespace: str, clock: Clock) -> AsyncIterator[Reviews]:
    async with Client(api) as client:
        yield Reviews(client, f"{namespace}/agent", clock)


@pytest.fixture
async def server(api: Api, namespace: str, tmp_path: Path) -> AsyncIterator[Running]:
    config = Config(
        tmp_path / "data", port=0, auth="kubernetes", cluster=api, agent_service_account=f"{namespace}/agent"
    )
    async with serving(config) as running:
        yield running


@pytest.fixture
def agent(cluster: Cluster, namespace: str) -> "Agent":
    """A pod of the agents' service account on a node of its own; `agent.token()` is what is mounted there."""
    cluster.service_account(namespace, "agent")
    return Agent(cluster, namespace)


class Agent:
    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self.node = cluster.node()
        self.pod = cluster.pod(namespace, "agent", self.node)

    def token(self, **changes: Any) -> Any:
        return self._cluster.token(self._namespace, "agent", **{"pod": self.pod, **changes})

    def delete(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{self.pod['metadata']['name']}"
        self._cluster.delete(path, gracePeriodSeconds=0)


async def say_hello(socket: ClientConnection, host: str) -> None:
    await socket.send(json.dumps({"type": "hello", "payload": {"host": host, "agent_version": "1"}}))


def rest(server: Running, token: Any) -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{server.port}/api/v1"
    return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"})


# Agents.


async def test_an_agent_is_the_host_whose_node_its_pod_stands_on(
    server: Running, agent: Agent, cluster: Cluster, namespace: str
) -> None:
    cluster.service_account(namespace, "reader")
    rule = {"apiGroups": ["lamplighter.dev"], "resources": ["hosts"], "verbs": ["get"]}
    role = cluster.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterroles", {"metadata": {"generateName": "test-"}, "rules": [rule]}
    )
    cluster.bind_cluster_role(role["metadata"]["name"], namespace, "reader")
    async with dialled(server, agent.token()) as socket, rest(server, cluster.token(namespace, "reader")) as api:
        await say_hello(socket, agent.node)
        await socket.send(json.dumps({"type": "schedule.resync", "payload": {"have": 0}}))
        assert json.loads(await socket.recv())["type"] == "schedule.set"
        assert (await api.get(f"/hosts/{agent.node}")).json()["connected"]


async def test_a_token_of_another_node_is_not_this_hosts(
    server: Running, agent: Agent, cluster: Cluster, namespace: str
) -> None:
    other = Agent(cluster, namespace)
    async with dialled(server, other.token()) as socket:
        await say_hello(socket, agent.node)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert agent.node in closed.value.rcvd.reason


async def test_a_token_is_an_agents_only_as_it_is_mounted_in_its_pod(
    identity: Reviews, agent: Agent, cluster: Cluster, namespace: str
) -> None:
    cluster.service_account(namespace, "other")
    stranger = cluster.pod(namespace, "other", agent.node)
    refused = {
        "another audience": agent.token(audience="vault"),
        "the API server's audience": agent.token(audience=""),
        "no pod": agent.token(pod=None),
        "another service account": cluster.token(namespace, "other", pod=stranger),
        "garbage": "garbage",
        "a signature that was cut": agent.token()[:-8],
    }
    assert await identity.agent(agent.token()) == agent.node
    for name, token in refused.items():
        with pytest.raises(Unauthorized):
            pytest.fail(f"{name}: taken for {await identity.agent(token)}")


async def test_a_token_that_has_expired_is_refused(own_cluster: OwnCluster, identity: Reviews, agent: Agent) -> None:
    token, now = agent.token(), int(time.time())
    assert await identity.agent(own_cluster.resign(token, exp=now + 900)) == agent.node
    with pytest.raises(Unauthorized):
        await identity.agent(own_cluster.resign(token, exp=now - 60, iat=now - 3600, nbf=now - 3600))


async def test_a_token_outlives_its_pod_by_no_more_than_a_review_is_believed(
    identity: Reviews, agent: Agent, clock: Clock
) -> None:
    token = agent.token()
    assert await identity.agent(token) == agent.node
    agent.delete()
    clock.now += ALLOWED_S - 1
    assert await identity.agent(token) == agent.node

    async def asked_until_refused() -> None:  # the API server itself believes a token for 10 s
        while await identity.agent(token):
            clock.now += ALLOWED_S
            await asyncio.sleep(0.2)

    with pytest.raises(Unauthorized):
        await asyncio.wait_for(asked_until_refused(), 60)


# Callers.


async def test_a_role_in_one_namespace_opens_that_one(server: Running, cluster: Cluster, namespace: str) -> None:
    cluster.service_account(namespace, "team")
    cluster.allow(namespace, "team", RIGHTS)
    repository = {"spec": {"url": "/backup/{host}"}}
    async with rest(server, cluster.token(namespace, "team")) as api:
        assert (await api.put(f"/repositories/{namespace}/main", json=repository)).status_code == 201
        assert (await api.get(f"/repositories/{namespace}/main")).status_code == 200
        named = {"metadata": {"namespace": "other", "name": "main"}, **repository}
        refusals = {
            "create repositories.lamplighter.dev in namespace 'other'": [
                await api.put("/repositories/other/main", json=repository),
                await api.post("/repositories", json=named),
            ],
            "get repositories.lamplighter.dev in namespace 'other'": [await api.get("/repositories/other/main")],
            "list schedules.lamplighter.dev in all namespaces": [await api.get("/schedules")],
            "create hosts/enrolments": [await api.post("/hosts/node-1/enrolments")],
            f"create runs.lamplighter.dev in namespace '{namespace}'": [
                await api.post(f"/schedules/{namespace}/a/run")
            ],
            "list auditlogs.lamplighter.dev": [await api.get("/audit")],
            "list runs.lamplighter.dev in all namespaces": [
                await api.get(f"/jobs?namespace={namespace}&schedule=other/etc")
            ],
        }
        for path in ("/schedules", "/repositories"):
            assert (await api.get(f"{path}?namespace={namespace}")).status_code == 200
        async with api.stream("GET", f"/news?namespace={namespace}") as news:
            assert news.status_code == 200
    for missing, answers in refusals.items():
        for answer in answers:
            assert answer.status_code == 403, answer.text
            assert missing.split(".", maxsplit=1)[0].split("/", maxsplit=1)[0] in answer.json()["detail"]
            assert namespace in answer.json()["detail"]


async def test_a_role_may_name_one_object(server: Running, cluster: Cluster, namespace: str) -> None:
    cluster.service_account(namespace, "team")
    cluster.allow(namespace, "team", {**RIGHTS, "resourceNames": ["main"]})
    async with rest(server, cluster.token(namespace, "team")) as api:
        spec = {"spec": {"url": "/backup/{host}"}}
        assert (await api.put(f"/repositories/{namespace}/main", json=spec)).status_code == 201
        assert (await api.put(f"/repositories/{namespace}/other", json=spec)).status_code == 403


async def test_callers_are_known_by_their_names_in_the_cluster(
    server: Running, cluster: Cluster, namespace: str
) -> None:
    cluster.service_account(namespace, "boss")
    cluster.bind_cluster_role("cluster-admin", namespace, "boss")
    for audience in ("lamplighter", ""):
        async with rest(server, cluster.token(namespace, "boss", audience=audience)) as api:
            assert (await api.put(f"/hosts/node-{audience or 'x'}", json={"labels": {}})).status_code == 201
            written = (await api.get("/audit")).json()["items"][0]
    assert (written["actor_kind"], written["actor_id"]) == ("user", f"system:serviceaccount:{namespace}:boss")


async def test_who_is_not_known_is_told_so(server: Running, cluster: Cluster, namespace: str) -> None:
    cluster.service_account(namespace, "team")
    for token in ("garbage", cluster.token(namespace, "team", audience="vault")):
        async with rest(server, token) as api:
            assert (await api.get("/hosts")).status_code == 401


async def test_a_right_that_is_given_counts_when_the_refusal_is_not_believed_any_more(
    identity: Reviews, cluster: Cluster, namespace: str, clock: Clock
) -> None:
    cluster.service_account(namespace, "team")
    user = await identity.user(cluster.token(namespace, "team"))
    wanted = Permission("get", "schedules", namespace, "etc")
    with pytest.raises(Forbidden, match=f"get schedules.lamplighter.dev in namespace '{namespace}'"):
        await identity.authorize(user, wanted)
    cluster.allow(namespace, "team", RIGHTS)
    clock.now += REFUSED_S + 1
    await identity.authorize(user, wanted)


# An API server that is gone.


async def test_while_the_api_server_is_gone_nobody_new_is_let_in(
    own_cluster: OwnCluster, server: Running, agent: Agent, cluster: Cluster, namespace: str
) -> None:
    cluster.service_account(namespace, "boss")
    cluster.bind_cluster_role("cluster-admin", namespace, "boss")
    mounted, boss = agent.token(), cluster.token(namespace, "boss")
    async with rest(server, boss) as api:
        assert (await api.get("/hosts")).status_code == 200
        own_cluster.stop()
        assert (await api.get("/hosts")).status_code == 200  # a review is believed for a while
    async with rest(server, f"{boss}x") as api:
        answer = await api.get("/hosts")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    with pytest.raises(InvalidStatus) as denied:
        async with dialled(server, mounted):
            pass
    assert denied.value.response.status_code == 503
    own_cluster.start()
    async with dialled(server, mounted) as socket:
        await say_hello(socket, agent.node)
        await socket.send(json.dumps({"type": "schedule.resync", "payload": {"have": 0}}))
        assert json.loads(await socket.recv())["type"] == "schedule.set"
