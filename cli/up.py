"""Runs a server alone, or in one process with a controller and an agent; each part stops before those it needs."""

import asyncio
import logging
import platform
from pathlib import Path

from cli import metrics, systemd
from cli.agent import Local, agent
from cli.controller import folder as follow_folder
from cli.terminal import say
from controller.client import Client
from server.access import kubernetes
from server.app import Config, serving

log = logging.getLogger(__name__)


async def up(
    folder: Path,
    config: Config,
    host: str,
    local: Local,
    stop: asyncio.Event,
    *,
    allow_empty: bool,
    metrics_listen: str = "",
) -> None:
    """Run everything until `stop` is set. The agent stops first, while the server can still store its last jobs."""
    logging.getLogger("agent.link").setLevel(logging.WARNING)  # the server logs connections itself
    data = config.data
    async with (
        serving(config) as server,
        metrics.serving(metrics_listen, server.parts.registry, server.refuses),
    ):
        url = f"http://{_authority(config.host, server.port)}"
        log.info("ready", extra={"url": url, "data": data, "folder": folder})
        code, _ = await server.offer_link()
        say(f"The pages, once within 10 minutes without a token: {url}/sign-in?code={code}")  # no log keeps it
        async with Client(url, server.admin_token) as client:
            known = [it["labels"] async for it in client.resources("hosts") if it["name"] == host]
            await client.put_host(host, {**(known[0] if known else {}), **this_machine(host)})
        agent_stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(agent(url, server.agent_token, data / "agent", host, local, agent_stop))
            access = (url, server.admin_token, None)
            watching = tasks.create_task(follow_folder(folder, access, stop, allow_empty=allow_empty))
            async with systemd.supervised(server.refuses):  # before the agent of this process, which then tells nothing
                await _either(stop, running, watching)
            log.info("stopping")
            agent_stop.set()
    log.info("stopped")


def cluster(url: str | None, token_file: Path | None, ca_file: Path | None) -> kubernetes.Config | None:
    """The API server that these options name; None for that of the cluster that this runs in."""
    if url is None:
        return None
    return kubernetes.Config(url, token_file or kubernetes.SERVICE_ACCOUNT / "token", ca_file)


async def server(config: Config, metrics_listen: str, stop: asyncio.Event) -> None:
    """Run a server until `stop` is set."""
    async with (
        serving(config) as running,
        metrics.serving(metrics_listen, running.parts.registry, running.refuses),
    ):
        log.info("ready", extra={"listen": _authority(config.host, running.port), "data": config.data})
        async with systemd.supervised(running.refuses):
            await stop.wait()
        log.info("stopping")


def this_machine(host: str) -> dict[str, str]:
    """The labels that this machine would have as a Kubernetes node."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    system = platform.system().lower()
    return {"kubernetes.io/hostname": host, "kubernetes.io/os": system, "kubernetes.io/arch": machine}


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _either(stop: asyncio.Event, *tasks: "asyncio.Task[None]") -> None:
    """Return when `stop` is set, or one of the tasks has ended."""
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
