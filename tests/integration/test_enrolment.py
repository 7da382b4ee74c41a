"""A one-time token gives a host outside the cluster a key, which opens the gateway for that host alone."""

import asyncio
import hashlib
import os
import secrets
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from agent import enrolment
from server.access.kubernetes import Config as Api
from server.app import Config, Running, serving
from server.store.tables import tables
from tests.integration.conftest import Agent, Connect, DataFolders
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")


@pytest.fixture
def now() -> list[Any]:
    return [datetime(2026, 3, 1, tzinfo=UTC)]


@pytest.fixture
async def server(tmp_path: Path, now: list[Any]) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path, port=0), lambda: now[0]) as running:
        yield running


@pytest.fixture
async def offer(api: httpx.AsyncClient) -> Callable[..., Awaitable[str]]:
    """A token to enrol a host with, which is made known."""

    return partial(offered, api)


async def offered(api: httpx.AsyncClient, host: str = "web-1", **body: Any) -> str:
    (await api.put(f"/hosts/{host}", json={"labels": {}})).raise_for_status()
    answer = await api.post(f"/hosts/{host}/enrolments", json=body)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store"), answer.text
    token: str = answer.json()["token"]
    return token


@pytest.fixture
def exchange(api: httpx.AsyncClient) -> Callable[..., Awaitable[int]]:
    """Registers a key with a token; answers the status."""

    async def exchange(token: str, key: str, host: str = "web-1") -> int:
        body = {"token": token, "host": host, "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
        return (await api.post("/enrol", json=body, headers={"authorization": ""})).status_code

    return exchange


def new_key() -> str:
    return "hostkey_" + secrets.token_urlsafe(32)


async def served(agent: Agent) -> None:
    """The server answers this agent."""
    await agent.say("schedule.resync", have=0)
    await agent.hears("schedule.set")


async def denied(connect: Connect, key: str, host: str = "web-1") -> bool:
    """Whether the gateway denies this key its handshake."""
    try:
        async with connect(host, token=key, hello=False):
            return False
    except InvalidStatus as refused:
        return refused.response.status_code == 401


async def test_a_key_opens_the_gateway_for_its_host_alone(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]], connect: Connect
) -> None:
    key = new_key()
    assert await exchange(await offer(), key) == 204
    async with connect("web-1", token=key) as agent:
        await served(agent)
    async with connect("web-2", token=key) as other:
        _, reason = await other.closed()
        assert reason is not None
        assert "web-2" in reason
    assert await denied(connect, new_key())


async def test_a_key_is_no_users_token(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]], api: httpx.AsyncClient
) -> None:
    key = new_key()
    await exchange(await offer(), key)
    assert (await api.get("/hosts", headers={"authorization": f"Bearer {key}"})).status_code == 401


async def test_a_token_is_good_once_but_the_same_exchange_may_be_made_again(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]], connect: Connect
) -> None:
    token, key = await offer(), new_key()
    assert [await exchange(token, key), await exchange(token, key), await exchange(token, new_key())] == [204, 204, 401]
    assert not await denied(connect, key)


async def test_a_token_is_for_its_host_and_its_time(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]], now: list[Any]
) -> None:
    token = await offer(expires_in_s=600)
    await offer("web-2")
    assert await exchange(token, new_key(), host="web-2") == 401
    assert await exchange("enrol_unknown", new_key()) == 401
    now[0] += timedelta(seconds=600)
    assert await exchange(token, new_key()) == 401


async def test_a_new_token_ends_the_older_one_and_a_new_key_the_older_key(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]], connect: Connect
) -> None:
    older = await offer()
    newer, key, next_key = await offer(), new_key(), new_key()
    assert [await exchange(older, key), await exchange(newer, key)] == [401, 204]
    async with connect("web-1", token=key) as agent:
        assert await exchange(await offer(), next_key) == 204
        assert await agent.closed()
    assert [await denied(connect, key), await denied(connect, next_key)] == [True, False]


async def test_a_key_is_one_hosts(
    offer: Callable[..., Awaitable[str]], exchange: Callable[..., Awaitable[int]]
) -> None:
    key = new_key()
    assert await exchange(await offer("web-1"), key) == 204
    assert await exchange(await offer("web-2"), key, host="web-2") == 401


async def test_a_key_that_is_revoked_ends_its_connection_and_opens_no_other(
    offer: Callable[..., Awaitable[str]],
    exchange: Callable[..., Awaitable[int]],
    api: httpx.AsyncClient,
    connect: Connect,
    now: list[Any],
) -> None:
    token, key = await offer(), new_key()
    await exchange(token, key)
    async with connect("web-1", token=key) as agent, connect("web-1", token=key, hello=False) as late:
        await served(agent)
        assert (await api.delete("/hosts/web-1/key")).status_code == 204
        assert await agent.closed()
        await late.say("hello", host="web-1")
        assert (await late.closed())[0] == 4001
    assert await denied(connect, key)
    assert await exchange(token, key) == 401
    assert (await api.delete("/hosts/web-1/key")).status_code == 404


@pytest.mark.parametrize("waits_for", ["_limit_hellos", "session"])
async def test_a_key_that_is_revoked_while_its_hello_waits_for_the_store_opens_nothing(
    server: Running,
    offer: Callable[..., Awaitable[str]],
    exchange: Callable[..., Awaitable[int]],
    api: httpx.AsyncClient,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    waits_for: str,
) -> None:
    """Promise 6."""
    key, waits, revoked = new_key(), asyncio.Event(), asyncio.Event()
    await exchange(await offer(), key)
    gateway = server.parts.gateway
    owner: Any = gateway if waits_for == "_limit_hellos" else gateway._hosts
    done = getattr(owner, waits_for)

    async def slow(*args: Any) -> Any:
        waits.set()
        found = await done(*args)
        await revoked.wait()
        return found

    monkeypatch.setattr(owner, waits_for, slow)
    async with connect("web-1", token=key) as agent:
        await waits.wait()
        assert (await api.delete("/hosts/web-1/key")).status_code == 204
        revoked.set()
        assert (await agent.closed())[0] == 4001
    assert not server.parts.services.hub.is_connected("web-1")


async def test_a_host_that_is_deleted_leaves_no_key_behind(
    offer: Callable[..., Awaitable[str]],
    exchange: Callable[..., Awaitable[int]],
    api: httpx.AsyncClient,
    connect: Connect,
) -> None:
    token, key = await offer(), new_key()
    await exchange(token, key)
    async with connect("web-1", token=key) as agent:
        await served(agent)
        assert (await api.delete("/hosts/web-1")).status_code == 204
        assert await agent.closed()
    assert (await api.put("/hosts/web-1", json={"labels": {}})).status_code == 201
    assert await denied(connect, key)
    assert await exchange(token, key) == 401


async def test_a_denial_is_no_error_of_ours(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    assert await denied(connect, new_key())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_only_known_hosts_are_enrolled_and_for_a_bounded_time(
    api: httpx.AsyncClient, offer: Callable[..., Awaitable[str]]
) -> None:
    assert (await api.post("/hosts/nobody/enrolments")).status_code == 404
    await offer()
    for seconds in (59, 7 * 24 * 3600 + 1, "1"):
        assert (await api.post("/hosts/web-1/enrolments", json={"expires_in_s": seconds})).status_code == 422


async def test_secrets_are_told_once_and_stored_hashed(
    offer: Callable[..., Awaitable[str]],
    exchange: Callable[..., Awaitable[int]],
    api: httpx.AsyncClient,
    connect: Connect,
    tmp_path: Path,
    data_folders: DataFolders,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    token, key = await offer(), new_key()
    await exchange(token, key)
    async with connect("web-1", token=key):
        audit = await api.get("/audit")
    written = b"".join(path.read_bytes() for path in tmp_path.glob("lamplighter.db*"))
    written += repr({table: data_folders.rows(tmp_path, table) for table in tables}).encode()
    assert b"web-1" in written
    for secret in (token, key):
        assert secret not in audit.text
        assert secret.encode() not in written
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("server"))
    assert token not in ours
    assert key not in ours
    acts = [(row["actor_kind"], row["action"], row["object_kind"]) for row in audit.json()["items"]]
    assert acts[:2] == [("agent", "enrol", "Host"), ("user", "create", "Enrolment")]


async def test_a_key_opens_the_gateway_though_the_cluster_cannot_be_asked(tmp_path: Path, connect: Connect) -> None:
    async with serving(Config(tmp_path / "data", port=0)) as before:
        headers = {"authorization": f"Bearer {before.admin_token}"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{before.port}/api/v1", headers=headers, verify=NO_TLS
        ) as api:
            key = await enrol(before, await offered(api), tmp_path / "agent")
    (tmp_path / "token").write_text("of the server")
    nowhere = Api("http://127.0.0.1:9", tmp_path / "token")
    config = Config(tmp_path / "data", port=0, auth="kubernetes", cluster=nowhere, agent_service_account="ns/agent")
    async with serving(config) as clustered:
        async with connect("web-1", token=key, to=clustered) as agent:
            await served(agent)
        with pytest.raises(InvalidStatus) as refused:
            async with connect("web-1", token="token.of.a-pod", to=clustered):
                pass
    assert refused.value.response.status_code == 503


# The agent's side.


async def enrol(server: Running, token: str, data: Path, host: str = "web-1") -> str:
    await asyncio.to_thread(enrolment.enrol, f"http://127.0.0.1:{server.port}", token, host, data)
    return (data / "host-key").read_text().strip()


async def test_an_agent_keeps_its_key_where_only_it_can_read_it(
    server: Running, offer: Callable[..., Awaitable[str]], connect: Connect, tmp_path: Path
) -> None:
    key = await enrol(server, await offer(), tmp_path / "agent")
    assert not await denied(connect, key)
    assert [path.name for path in (tmp_path / "agent").iterdir()] == ["host-key"]
    assert ((tmp_path / "agent").stat().st_mode & 0o777, (tmp_path / "agent/host-key").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


async def test_an_agent_that_was_killed_after_the_exchange_makes_it_again(
    server: Running, offer: Callable[..., Awaitable[str]], connect: Connect, tmp_path: Path
) -> None:
    token = await offer()
    key = await enrol(server, token, tmp_path / "agent")
    (tmp_path / "agent/host-key").rename(tmp_path / "agent/.host-key.new")  # as if killed before this step
    assert await enrol(server, token, tmp_path / "agent") == key
    assert not await denied(connect, key)


async def test_a_key_that_was_cut_while_it_was_written_is_made_anew(
    server: Running, offer: Callable[..., Awaitable[str]], connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/.host-key.new").write_text("hostkey_short")
    assert not await denied(connect, await enrol(server, await offer(), tmp_path / "agent"))


async def test_a_refusal_says_what_to_do_and_not_the_token(
    server: Running, offer: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    await offer()
    with pytest.raises(enrolment.EnrolmentError, match="lamplighter enrol web-1") as refused:
        await enrol(server, "enrol_secret", tmp_path / "agent")
    assert "enrol_secret" not in str(refused.value)
    assert not (tmp_path / "agent/host-key").exists()


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(enrolment.EnrolmentError, match=r"127\.0\.0\.1:9"):
        enrolment.enrol("http://127.0.0.1:9", "enrol_secret", "web-1", tmp_path / "agent")


# The command line.


async def lamplighter(server: Running, data: Path, *arguments: str) -> tuple[Any, ...]:
    """What a real process of the command says: its stdout, its stderr and its exit code."""
    asked: list[str | Path] = [
        LAMPLIGHTER,
        *arguments,
        "--server",
        f"http://127.0.0.1:{server.port}",
        "--data-dir",
        data,
    ]
    process = await asyncio.create_subprocess_exec(*asked, stdout=PIPE, stderr=PIPE)
    told = await process.communicate()
    return (*(text.decode() for text in told), process.returncode)


async def test_a_host_is_enrolled_and_revoked_from_the_command_line(
    server: Running, api: httpx.AsyncClient, connect: Connect, tmp_path: Path
) -> None:
    assert "create it first" in (await lamplighter(server, tmp_path, "enrol", "web-1"))[1]
    await api.put("/hosts/web-1", json={"labels": {}})
    token, hint, _ = await lamplighter(server, tmp_path, "enrol", "web-1")
    key = await enrol(server, token.strip(), tmp_path / "agent")
    assert "--host web-1 --enrol-token-file FILE" in hint
    async with connect("web-1", token=key) as agent:
        await served(agent)
        assert (await lamplighter(server, tmp_path, "revoke", "web-1"))[2] == 0
        assert await agent.closed()
    assert await denied(connect, key)


async def test_an_enrolled_agent_calls_with_its_key_whatever_token_file_the_environment_names(
    server: Running, offer: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    (tmp_path / "enrol-token").write_text(await offer())
    (tmp_path / "other").write_text("token of the command line\n")
    at = ("--server", f"http://127.0.0.1:{server.port}", "--data-dir", tmp_path / "agent", "--host", "web-1")
    agent = await asyncio.create_subprocess_exec(
        *(LAMPLIGHTER, "agent", *at, "--enrol-token-file", tmp_path / "enrol-token"),
        env=os.environ | {"LAMPLIGHTER_TOKEN_FILE": str(tmp_path / "other")},
        stderr=PIPE,
    )
    try:
        assert agent.stderr is not None
        said = b""
        while b"connected" not in said:  # also in "not connected"
            said = await asyncio.wait_for(agent.stderr.readline(), 60)
            assert said, "the agent ended"
        assert b"not connected" not in said
    finally:
        agent.terminate()
        await agent.communicate()
