"""Runs an agent: builds its journal, runner and service, and stops them when asked."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from agent import enrolment
from agent.check import check
from agent.enrolment import KEY_FILE
from agent.journal import Journal
from agent.link import AskError, Dialler
from agent.restic.context import DEFAULT_TIMING, JobContext
from agent.restic.runner import Runner
from agent.restic.version import Installed
from agent.sandbox import landlock
from agent.service import Config, Service, utc_now
from cli import metrics, systemd
from cli.reach import reason
from cli.terminal import say

log = logging.getLogger(__name__)


STOP_S = 60.0
"""Seconds that an agent may take to stop, beside those for which it lets jobs run: as in its unit for systemd."""


class Local(NamedTuple):
    """How an agent runs jobs on its host; see `Runner`. `max_jobs`: how many at once; None for any number.
    `drain_s`: see `Config`."""

    restic: str
    root: Path = Path("/")
    allow_hooks: tuple[str, ...] = ()
    allow_unconfined: bool = False
    max_jobs: int | None = None
    drain_s: float = 0.0


def gateway_url(server: str) -> str:
    """The WebSocket URL of a server's gateway, from its HTTP URL."""
    scheme, _, rest = server.rstrip("/").partition("://")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest}/agent"


def enrol(server: str, token: str, host: str, data: Path, ca_file: Path | None) -> None:
    """Register a key for this host, unless it has one. Raises click.ClickException, with the remedy."""
    if (data / KEY_FILE).exists():
        log.info("enrolled already: delete the key to enrol again", extra={"key": data / KEY_FILE})
        return
    try:
        enrolment.enrol(server, token, host, data, ca_file)
    except enrolment.EnrolmentError as error:
        raise click.ClickException(reason(server, ca_file)(error)) from None
    log.info("enrolled", extra={"host": host, "key": data / KEY_FILE})


def own_key(data: Path, token_file: Path | None) -> Path | None:
    """The file with this host's own key; None if it has no key.

    The key is used instead of `token_file`, which may come from an environment that other commands share.
    """
    key = data / KEY_FILE
    if not key.exists():
        return None
    if token_file is not None:
        log.info("enrolled: the key is used instead of the token file", extra={"key": key, "token_file": token_file})
    return key


async def once(
    server: str,
    token: str | Callable[[], str],
    data: Path,
    host: str,
    local: Local,
    ca_file: Path | None = None,
) -> None:
    """Check this host, and show each finding. Raises click.ClickException if anything is wrong."""
    dialler = Dialler(gateway_url(server), token, ca_file=ca_file, host=host, explain=reason(server, ca_file))
    cache = (data / "cache").absolute()
    context = JobContext(local.restic, cache, os.environ, local.root, DEFAULT_TIMING, local.allow_unconfined)
    problems = 0
    try:
        async for finding in check(host, dialler, context, local.allow_hooks, utc_now()):
            problems += bool(finding.problem)
            state, colour = ("problem", "red") if finding.problem else ("ok", "green")
            say(f"{state:<8} {finding.about}{': ' * bool(finding.problem)}{finding.problem}", colour)
    except AskError as error:
        raise click.ClickException(f"{server} does not answer for {host}: {error}") from None
    if problems:
        raise click.ClickException(f"{host} is not ready: {problems} problem{'s' * (problems > 1)}")


async def agent(
    server: str,
    token: str | Callable[[], str],
    data: Path,
    host: str,
    local: Local,
    stop: asyncio.Event,
    ca_file: Path | None = None,
    metrics_listen: str = "",
) -> None:
    """Run an agent until `stop` is set; then running jobs end as interrupted. Raises JournalError."""
    if shutil.which(local.restic) is None:
        remedy = "install it (apt-get install restic), or give its path with --restic; until then every job fails"
        log.error("restic is missing", extra={"restic": local.restic, "remedy": remedy})
    if not landlock.abi():
        remedy = "boot Linux 5.13 or newer with Landlock; until then jobs of namespaces that are granted paths fail"
        log.warning("the kernel cannot confine restic", extra={} if local.allow_unconfined else {"remedy": remedy})
    journal, memory = Journal.open(data / "journal.jsonl")
    config = Config(
        host,
        gateway_url(server),
        token,
        ca_file,
        reason(server, ca_file),
        local.allow_hooks,
        local.max_jobs,
        local.drain_s,
    )
    runner = Runner(
        local.restic,
        data / "cache",
        utc_now,
        root=local.root,
        allow_hooks=local.allow_hooks,
        allow_unconfined=local.allow_unconfined,
    )
    service = Service(config, journal, memory, runner, clock=utc_now, restic=Installed(local.restic))

    async def waits_for() -> str:
        return "" if service.core.connected else "not connected to the server"

    async def starts() -> str:  # it need not be connected: it keeps to its schedules without the server
        return "" if service.core.in_force else "putting its schedules in force"

    async with metrics.serving(metrics_listen, service.metrics.registry, waits_for), asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(), name="agent")
        async with systemd.supervised(waits_for, starts, stop_s=local.drain_s + STOP_S):
            await stop.wait()
        await service.stop()
