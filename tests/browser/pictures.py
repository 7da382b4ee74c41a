"""Makes the README's pictures: pages of a made-up fleet, in a real server and a real browser.

`make pictures` runs it: python -m tests.browser.pictures FOLDER.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from playwright.async_api import async_playwright
from sqlalchemy import Connection
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from server.app import Config, Running, serving
from server.store.tables import HOST_DAYS
from tests.browser.conftest import CHROMIUM
from tests.integration.clock import Clock
from tests.integration.conftest import Agent
from tests.plain import NO_TLS

HOSTS = [f"{role}-{number}" for role in ("app", "db", "mail", "web") for number in range(1, 6)]
SIZE = {"width": 1040, "height": 690}
DAYS = 14
SEED = 7


async def main(folder: Path) -> None:
    """Make the pictures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    with tempfile.TemporaryDirectory() as data:
        async with serving(Config(Path(data), port=0), clock) as server, AsyncExitStack() as stack:
            await past(server, clock)
            await declare(server)
            await nights(server, clock, stack)
            await photograph(server, folder)


async def past(server: Running, clock: Clock) -> None:
    """Two weeks in which most went well."""
    rng = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    for back in range(1, DAYS + 1):
        day = clock().date() - timedelta(days=back - 1)
        for host in HOSTS:
            failed = (host == "mail-3" and back in {2, 3}) or rng.random() < 0.012
            warned = not failed and rng.random() < 0.03
            added = 0 if failed else int(rng.lognormvariate(19, 0.8))
            ends = {"succeeded": int(not failed and not warned), "warned": int(warned), "failed": int(failed)}
            rows.append({"day": day, "host": host, "namespace": "default", **ends, "bytes_added": added})
        own = [it for it in rows if it["day"] == day]
        sums = {name: sum(it[name] for it in own) for name in (*ends, "bytes_added")}
        rows.append({"day": day, "host": "", "namespace": "default", **sums})
    await server.parts.services.store.write(store, rows)


def store(conn: Connection, items: Sequence[list[dict[str, Any]]]) -> list[None]:
    """Store days of hosts."""
    for rows in items:
        conn.execute(sa.insert(HOST_DAYS), rows)
    return [None] * len(items)


async def declare(server: Running) -> None:
    """Hosts in three zones, two repositories and three schedules."""
    headers = {"authorization": f"Bearer {server.admin_token}"}
    url = f"http://127.0.0.1:{server.port}/api/v1"
    async with httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as api:
        for at, host in enumerate(HOSTS):
            await put(api, f"/hosts/{host}", {"labels": {"role": host.partition("-")[0], "zone": "abc"[at % 3]}})
        for name in ("offsite", "local"):
            spec = {"url": f"s3:https://s3.example.org/{name}/{{host}}", "verifyWithinDays": 30}
            await put(api, f"/repositories/default/{name}", {"spec": spec, "credentials": {"password": "made up"}})
        files = {"kind": "backup", "backup": {"paths": ["/etc", "/home"]}, "repositoryRef": {"name": "offsite"}}
        await put(api, "/schedules/default/files", {"spec": {**files, "cron": "0 2 * * *"}})
        databases = {**files, "cron": "30 2 * * *", "hostSelector": {"matchLabels": {"role": "db"}}}
        await put(api, "/schedules/default/databases", {"spec": databases})
        check = {"kind": "check", "cron": "0 5 * * 0", "repositoryRef": {"name": "offsite"}}
        await put(api, "/schedules/default/check", {"spec": {**check, "hostSelector": {"matchLabels": {"zone": "a"}}}})


async def put(api: httpx.AsyncClient, path: str, body: object) -> None:
    (await api.put(path, json=body)).raise_for_status()


async def nights(server: Running, clock: Clock, stack: AsyncExitStack) -> None:
    """All agents connect, and last night's runs end: one fails, one is still at work. Then an agent goes away."""
    midnight = clock().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    agents = [await connected(server, clock, stack, host) for host in HOSTS]
    for name, due in (("files", midnight + timedelta(hours=2)), ("databases", midnight + timedelta(hours=2.5))):
        for agent in agents:
            for entry in agent.entries.values():
                if entry["name"] == f"default/{name}":
                    await run(agent, entry["id"], f"{due:%Y-%m-%dT%H:%M:%SZ}", clock, name)
    await next(it for it in agents if it.host == "web-4").socket.close()


async def connected(server: Running, clock: Clock, stack: AsyncExitStack, host: str) -> Agent:
    """An agent of a host, with its schedules."""
    socket = connect(
        f"ws://127.0.0.1:{server.port}/agent",
        subprotocols=[Subprotocol("lamplighter.v1")],
        additional_headers={"authorization": f"Bearer {server.agent_token}"},
        compression=None,
        proxy=None,
    )
    agent = Agent(await stack.enter_async_context(socket), host, clock)
    await agent.say("hello", host=host)
    await agent.follow()
    return agent


async def run(agent: Agent, schedule: str, due: str, clock: Clock, name: str) -> None:
    """Run a schedule on this host, and say how that goes."""
    await agent.say("schedule.fire", schedule_id=schedule, scheduled_at=due)
    job = (await agent.hears("command.run"))["job_id"]
    await agent.say("job.accepted", job_id=job)
    if (agent.host, name) == ("db-2", "databases"):
        await agent.say("job.progress", job_id=job, fraction=0.62, bytes_done=62 << 30, bytes_total=100 << 30)
        return
    how: dict[str, Any] = {"status": "succeeded", "exit_code": 0, "snapshot_id": "5f1c09ad", "bytes_added": 350 << 20}
    if agent.host == "mail-3":
        how = {"status": "failed", "exit_code": 1, "error": "the disk of the repository is full"}
    now = f"{clock():%Y-%m-%dT%H:%M:%SZ}"
    await agent.say("job.finished", job_id=job, finished_at=now, started_at=now, **how)
    await agent.hears("job.confirmed")


async def photograph(server: Running, folder: Path) -> None:
    """Take the pictures."""
    code, _ = await server.offer_link()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = await browser.new_page(base_url=f"http://127.0.0.1:{server.port}", viewport=SIZE)  # type: ignore[arg-type]
        await page.goto(f"/sign-in?code={code}")
        await page.wait_for_url("/")
        for name, path in (("overview", "/"), ("fleet", "/fleet")):
            await page.goto(path)
            await page.screenshot(path=folder / f"{name}.png", full_page=name == "fleet")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
