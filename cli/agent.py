"""Starts an agent: journal, runner and service, until it is told to stop."""

import asyncio
import logging
import shutil
from pathlib import Path

from agent.journal import Journal
from agent.runner import Runner
from agent.service import Config, Service, utc_now

log = logging.getLogger(__name__)


def gateway_url(server: str) -> str:
    """The WebSocket URL of a server's gateway, from its HTTP URL."""
    scheme, _, rest = server.rstrip("/").partition("://")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest}/agent"


async def agent(server: str, token: str, data: Path, host: str, restic: str, stop: asyncio.Event) -> None:
    """Run an agent until `stop` is set; then running jobs end as interrupted. Raises JournalError."""
    if shutil.which(restic) is None:
        remedy = "install it (apt-get install restic), or name its path with --restic; until then every job fails"
        log.error("restic is missing", extra={"restic": restic, "remedy": remedy})
    journal, memory = Journal.open(data / "journal.jsonl")
    config = Config(host, gateway_url(server), token)
    service = Service(config, journal, memory, Runner(restic, data / "cache", utc_now), clock=utc_now)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(), name="agent")
        await stop.wait()
        await service.stop()
