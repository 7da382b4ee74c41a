"""The vault key is replaced by a new first line and a restart; after that the old line can go."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from server.access.vault import Vault
from server.app import Config, Running, serving
from tests.integration.conftest import Connect
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

SECRET = {"password": "correct horse", "env": {"AWS_SECRET_ACCESS_KEY": "battery staple"}}
SCHEDULE = {"kind": "backup", "cron": "@daily", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}


async def test_after_a_restart_the_old_key_opens_nothing_any_more(tmp_path: Path, connect: Connect) -> None:
    config = Config(tmp_path / "data", port=0, vault_key=tmp_path / "keys")
    old, new = Vault.new_key(), Vault.new_key()
    await with_keys(config, old, declare)
    await with_keys(config, f"{new}\n{old}")

    told = []

    async def hear(server: Running) -> None:
        async with connect(to=server, token=server.agent_token) as agent:
            told.append((await agent.hears("repo.credentials"))["repositories"])

    await with_keys(config, new, hear)
    await with_keys(config, old, hear)
    ((repository,), without) = told
    assert {name: repository[name] for name in SECRET} == SECRET
    assert without == []


async def with_keys(config: Config, keys: str, act: Callable[..., Awaitable[None]] | None = None) -> None:
    """Start a server with these keys, do something with it, and stop it."""
    assert config.vault_key is not None
    config.vault_key.touch(0o600)
    config.vault_key.write_text(keys)
    async with serving(config) as server:
        if act is not None:
            await act(server)


async def declare(server: Running) -> None:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}/api/v1", headers=headers, verify=NO_TLS
    ) as api:
        repository = {"spec": {"url": "/backup"}, "credentials": SECRET}
        for path, body in (("repositories/ns/main", repository), ("schedules/ns/etc", {"spec": SCHEDULE})):
            assert (await api.put(path, json=body)).status_code == 201
