"""`lamplighter agent --once` tells what would keep a host's jobs from their work, and changes nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from websockets.asyncio.server import serve
from websockets.typing import Subprotocol

from cli.agent import Local, once
from server.app import Running
from tests.conftest import NewRepository
from tests.integration.conftest import Connect, Declare
from wire.messages import PROTOCOL

pytestmark = pytest.mark.anyio

PASSWORD = "open sesame"


@pytest.fixture
def checked(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Checks a host; what is shown, and the error with which the command ends."""

    async def checked(host: str = "db-1", url: str = "", **local: Any) -> tuple[list[str], str]:
        at = url or f"http://127.0.0.1:{server.port}"
        how = Local(**({"restic": "restic"} | local))
        error = ""
        try:
            await once(at, server.agent_token, tmp_path / "agent", host, how)
        except click.ClickException as raised:
            error = raised.message
        return capsys.readouterr().out.splitlines(), error

    return checked


@pytest.fixture
async def host(api: httpx.AsyncClient) -> str:
    (await api.put("/hosts/db-1", json={"labels": {}})).raise_for_status()
    return "db-1"


async def repository(api: httpx.AsyncClient, name: str, url: Path, password: str = PASSWORD, **spec: Any) -> None:
    body = {"spec": {"url": str(url), **spec}, "credentials": {"password": password}}
    (await api.put(f"/repositories/ns/{name}", json=body)).raise_for_status()


async def test_a_host_that_is_ready_is_told_to_be_so_and_nothing_is_changed(
    checked: Callable[..., Any],
    host: str,
    api: httpx.AsyncClient,
    declare: Declare,
    new_repository: NewRepository,
    tmp_path: Path,
) -> None:
    new_repository(tmp_path / "main", PASSWORD)
    await repository(api, "main", tmp_path / "main")
    await repository(api, "new", tmp_path / "new", init=True)
    await declare("etc")
    await declare("later", repository="new")
    await declare("off", enabled=False)
    shown, error = await checked()
    assert error == ""
    assert [line.split()[0] for line in shown] == ["ok"] * 5
    assert shown[0].startswith("ok       restic 0.")
    assert "db-1, which is to hold 3 schedules" in shown[2]
    assert "1 of them are not looked at" in shown[2]
    assert shown[3].startswith("ok       ns/etc: backup, next at 20")
    assert not (tmp_path / "new").exists()
    assert (await api.get("/hosts/db-1")).json()["connected"] is False
    assert (await api.get("/jobs")).json()["items"] == []
    assert not (tmp_path / "agent" / "journal.jsonl").exists()


async def test_each_thing_that_a_job_would_miss_is_named(
    checked: Callable[..., Any],
    host: str,
    api: httpx.AsyncClient,
    declare: Declare,
    new_repository: NewRepository,
    tmp_path: Path,
) -> None:
    new_repository(tmp_path / "main", "another password")
    await repository(api, "main", tmp_path / "main")
    await repository(api, "gone", tmp_path / "gone")
    await declare("a-path", backup={"paths": [str(tmp_path / "nothing-here")]})
    await declare("b-hook", repository="gone", hooks={"before": ["/usr/bin/freeze"]})
    await declare("c-hook", repository="gone", hooks={"after": [str(tmp_path / "thaw")]})
    shown, error = await checked(allow_hooks=(str(tmp_path / "thaw"),))
    path, before, after = shown[3:]
    assert path.startswith("problem  ns/a-path: backup, next at ")
    assert f"{tmp_path / 'nothing-here'} cannot be read (No such file or directory)" in path
    assert "the password does not open the repository" in path
    assert "'/usr/bin/freeze' is not allowed on this host" in before
    assert "there is no repository" in before
    assert f"{tmp_path / 'thaw'} is no program on this host" in after
    assert error == "db-1 is not ready: 3 problems"


async def test_a_host_without_restic_or_schedules_is_not_ready(checked: Callable[..., Any], host: str) -> None:
    shown, error = await checked(restic="/nowhere/restic")
    assert shown[0].startswith("problem  restic: /nowhere/restic does not run as restic: install it")
    assert shown[2].startswith("problem  the server knows db-1: no Schedule selects it")
    assert error == "db-1 is not ready: 2 problems"


async def test_the_agent_that_runs_stays_connected(
    checked: Callable[..., Any], host: str, connect: Connect, declare: Declare
) -> None:
    async with connect("db-1", instance="running") as agent:
        await agent.follow()
        await checked()
        await declare("etc")
        assert (await agent.follow())["upsert"]


async def test_a_server_that_gives_no_answer_is_told_with_the_remedy(checked: Callable[..., Any], host: str) -> None:
    _, error = await checked("db-2")
    assert "host db-2 is not declared: create it with `lamplighter create host db-2`" in error
    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, subprotocols=[Subprotocol(PROTOCOL)]) as older:
        port = next(iter(older.sockets)).getsockname()[1]
        _, error = await checked(url=f"http://127.0.0.1:{port}")
        assert "update the server, which is older than this agent" in error
    _, error = await checked(url=f"http://127.0.0.1:{port}")
    assert "does not answer for db-1" in error
