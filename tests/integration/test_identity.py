"""A cluster's reviews decide who a caller is; answers are remembered for their time and no longer."""

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import httpx
import kmock
import pytest

from server.access.identity import ALLOWED_S, NODE_NAME, REFUSED_S, Permission, Reviews, User
from server.access.kubernetes import Client
from server.access.kubernetes import Config as Api
from server.api.operations import OPERATIONS
from server.app import Config, ServerError, serving
from server.errors import Forbidden, Unauthorized, Unavailable
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

TOKENS = "post /apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "post /apis/authorization.k8s.io/v1/subjectaccessreviews"
AGENT = {"username": "system:serviceaccount:ns:agent", "uid": "1", "groups": ["g"], "extra": {NODE_NAME: ["node-1"]}}


@pytest.fixture
async def kube() -> AsyncIterator[kmock.RawHandler]:
    """An API server that answers what it is told to."""
    async with kmock.RawHandler() as kube, kmock.Server(kube):
        yield kube


class Clock:
    """Seconds, set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(kube: kmock.RawHandler, tmp_path: Path) -> Api:
    (tmp_path / "token").write_text("ours\n")
    return Api(str(kube.url), tmp_path / "token")


@pytest.fixture
async def identity(api: Api, clock: Clock) -> AsyncIterator[Reviews]:
    async with Client(api) as client:
        yield Reviews(client, "ns/agent", clock)


def known(
    user: dict[str, Collection[str]] = AGENT, audiences: tuple[str, ...] = ("lamplighter",), **status: Any
) -> dict[str, Any]:
    return {"status": {"authenticated": True, "user": user, "audiences": list(audiences), **status}}


UNKNOWN = {"status": {"authenticated": False}}
YES, NO = {"status": {"allowed": True}}, {"status": {"allowed": False}}


# Agents.


async def test_an_agent_is_asked_for_once_in_a_while(kube: kmock.RawHandler, identity: Reviews, clock: Clock) -> None:
    kube[TOKENS] << known()
    assert await asyncio.gather(*(identity.agent("a.b.c") for _ in range(50))) == ["node-1"] * 50
    clock.now = ALLOWED_S - 1
    await identity.agent("a.b.c")
    assert [request.data["spec"] for request in kube] == [{"token": "a.b.c", "audiences": ["lamplighter"]}]
    clock.now = ALLOWED_S + 1
    await identity.agent("a.b.c")
    assert len(kube) == 2


async def test_a_refusal_is_believed_for_a_shorter_time(
    kube: kmock.RawHandler, identity: Reviews, clock: Clock
) -> None:
    kube[TOKENS] << UNKNOWN
    for at in (0, REFUSED_S - 1, REFUSED_S + 1):
        clock.now = at
        with pytest.raises(Unauthorized):
            await identity.agent("a.b.c")
    assert len(kube) == 2


@pytest.mark.parametrize(
    "answer",
    [
        known(audiences=()),  # an authenticator that knows nothing of audiences
        known(audiences=("https://kubernetes.default.svc",)),
        known(authenticated=False),
        known(authenticated="true"),
        known({**AGENT, "username": ""}),
        known({**AGENT, "username": "system:serviceaccount:ns:other"}),
        known({**AGENT, "username": "system:serviceaccount:ns:agent:x"}),
        known({**AGENT, "extra": {}}),
        known({**AGENT, "extra": {NODE_NAME: []}}),
        known({**AGENT, "extra": {NODE_NAME: [""]}}),
        known({**AGENT, "extra": {NODE_NAME: ["node-1", "node-2"]}}),
        {"status": {}},
    ],
)
async def test_what_does_not_prove_one_node_is_refused(kube: kmock.RawHandler, identity: Reviews, answer: Any) -> None:
    kube[TOKENS] << answer
    with pytest.raises(Unauthorized):
        await identity.agent("a.b.c")


@pytest.mark.parametrize("answer", [403, 500, b"<html>", {"kind": "Status"}, []])
async def test_an_answer_that_is_no_review_is_no_yes(
    kube: kmock.RawHandler, identity: Reviews, answer: int | bytes | dict[str, str] | list[Any]
) -> None:
    kube[TOKENS] << answer
    with pytest.raises(Unavailable):
        await identity.agent("a.b.c")


async def test_what_the_server_lacks_is_logged_and_no_token_is(
    kube: kmock.RawHandler, identity: Reviews, caplog: pytest.LogCaptureFixture
) -> None:
    kube[TOKENS] << 403 << {"message": "user 'server' cannot create resource 'tokenreviews'"}
    with pytest.raises(Unavailable) as told:
        await identity.agent("a.b.c")
    (record,) = [record for record in caplog.records if record.name == "server.access.identity"]
    assert "cannot create resource 'tokenreviews'" in vars(record)["reason"]
    assert "server" not in told.value.detail
    assert "a.b.c" not in vars(record)["reason"] + told.value.detail


async def test_our_own_token_is_read_for_every_request(
    kube: kmock.RawHandler, identity: Reviews, tmp_path: Path
) -> None:
    kube[TOKENS] << known()
    await identity.agent("one")
    (tmp_path / "token").write_text("renewed")
    await identity.agent("two")
    assert [request.headers["Authorization"] for request in kube] == ["Bearer ours", "Bearer renewed"]
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable):
        await identity.agent("three")


# Callers.


async def test_all_that_is_known_of_a_caller_is_asked_about(kube: kmock.RawHandler, identity: Reviews) -> None:
    user = User("jane", "7", ["team"], {"scopes": ["a"]})
    kube[ACCESS] << YES
    await identity.authorize(user, Permission("create", "hosts/enrolments", "", "node-1"))
    attributes = {"group": "lamplighter.dev", "verb": "create", "resource": "hosts", "subresource": "enrolments"}
    spec = {"user": "jane", "uid": "7", "groups": ["team"], "extra": {"scopes": ["a"]}}
    (asked,) = kube
    assert asked.data["spec"] == {**spec, "resourceAttributes": {**attributes, "namespace": "", "name": ""}}


async def test_who_may_all_of_a_namespace_is_asked_about_once(kube: kmock.RawHandler, identity: Reviews) -> None:
    kube[ACCESS] << YES
    for name in "abc":
        await identity.authorize(User("jane"), Permission("get", "schedules", "team-a", name))
    assert len(kube) == 1


async def test_a_right_is_that_users_and_that_namespaces_alone(kube: kmock.RawHandler, identity: Reviews) -> None:
    def answer(request: kmock.Request) -> dict[str, dict[str, bool]]:
        spec = request.data["spec"]
        return YES if (spec["user"], spec["resourceAttributes"]["namespace"]) == ("jane", "team-a") else NO

    kube[ACCESS] << answer
    await identity.authorize(User("jane"), Permission("get", "schedules", "team-a", "etc"))
    for user, namespace in ((User("joe"), "team-a"), (User("jane"), "team-b"), (User("jane", groups=["g"]), "")):
        with pytest.raises(Forbidden, match="get schedules"):
            await identity.authorize(user, Permission("get", "schedules", namespace, "etc"))


async def test_a_denial_outweighs_what_is_allowed(kube: kmock.RawHandler, identity: Reviews) -> None:
    kube[ACCESS] << {"status": {"allowed": True, "denied": True}}
    with pytest.raises(Forbidden):
        await identity.authorize(User("jane"), Permission("get", "schedules"))


async def test_every_operation_says_what_it_needs() -> None:
    open_to_all = [operation.path for operation in OPERATIONS if operation.needs is None]
    assert open_to_all == ["/enrol"]
    verbs = {"GET": {"get", "list"}, "PUT": {"create", "update"}, "POST": {"create", "delete"}, "DELETE": {"delete"}}
    for operation in OPERATIONS:
        if operation.needs is not None:
            allowed = {"update"} if operation.path.endswith("/drain") else verbs[operation.method]  # a part of a Host
            assert set(operation.needs.verbs.split()) <= allowed, operation.path


async def test_no_operation_is_done_for_who_may_nothing(kube: kmock.RawHandler, api: Api, tmp_path: Path) -> None:
    kube[TOKENS] << known({"username": "jane"})
    kube[ACCESS] << NO
    settings = Config(tmp_path / "data", port=0, auth="kubernetes", cluster=api, agent_service_account="ns/agent")
    async with (
        serving(settings) as server,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}/api/v1", headers={"authorization": "Bearer janes"}, verify=NO_TLS
        ) as client,
    ):
        for operation in OPERATIONS:
            if operation.needs is not None and operation.needs.verbs:
                path = operation.path.format(namespace="ns", name="a", id="1", run="1", snapshot="latest")
                answer = await client.request(operation.method, path, json={})
                assert answer.status_code == 403, operation
                assert "jane" in answer.json()["detail"]


@pytest.mark.parametrize("account", ["", "agent", "ns/"])
async def test_without_the_agents_account_a_server_does_not_start(api: Api, tmp_path: Path, account: str) -> None:
    settings = Config(tmp_path / "data", port=0, auth="kubernetes", cluster=api, agent_service_account=account)
    with pytest.raises(ServerError, match="--agent-service-account"):
        async with serving(settings):
            pass
