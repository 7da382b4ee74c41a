"""Checks a host once: asks the server what the host is to hold, and looks whether its jobs would find what they need.

It runs beside the host's agent: it takes neither the journal nor the agent's place at the server, and runs no job.
"""

from collections.abc import AsyncIterator, Collection
from datetime import datetime

from msgspec import Struct

import cron
from agent.core import timetable
from agent.core.machine import CAPABILITIES
from agent.link import Dialler
from agent.restic import readiness
from agent.restic.context import JobContext
from agent.restic.version import Installed
from agent.sandbox import landlock
from wire.messages import CommandRun, Entry, Hello, HostExpected, Repository
from wire.version import __version__


class Finding(Struct, frozen=True):
    """What was looked at, and what is wrong with it, with the remedy; empty when all is well."""

    about: str
    problem: str = ""


async def check(
    host: str, dialler: Dialler, context: JobContext, allow_hooks: Collection[str], now: datetime
) -> AsyncIterator[Finding]:
    """Check the host of this machine, and tell each finding when it is known. Raises AskError."""
    version = await Installed(context.program, context.env).version()
    yield _restic(version, context.program)
    yield _confines(context)
    hello = Hello(host, __version__, capabilities=list(CAPABILITIES), now=now, restic_version=version)
    expected = await dialler.ask(hello)
    yield _holds(host, expected)
    repositories = {it.id: it for it in expected.repositories}
    looks = readiness.Readiness(context, allow_hooks)
    for entry, command in zip(expected.entries, expected.commands, strict=True):
        about, never = _due(entry, host, now)
        wrong = [*never, *await _problems(looks, command, repositories)]
        yield Finding(f"{entry.name}: {command.kind}{about}", "; ".join(wrong))


def _restic(version: str, program: str) -> Finding:
    if not version:
        remedy = "install it (apt-get install restic), or give its path with --restic"
        return Finding("restic", f"{program} does not run as restic: {remedy}")
    return Finding(f"restic {version}")


def _confines(context: JobContext) -> Finding:
    if (version := landlock.abi()) or context.allow_unconfined:
        return Finding(f"the kernel confines restic (Landlock {version})" if version else "restic is not confined")
    remedy = "boot Linux 5.13 or newer with Landlock; until then jobs of namespaces that are granted paths fail"
    return Finding("Landlock", f"the kernel cannot confine restic: {remedy}")


def _holds(host: str, expected: HostExpected) -> Finding:
    if not expected.schedules:
        remedy = f"see the labels of {host} with `lamplighter describe host {host}`, and each Schedule's hostSelector"
        return Finding(f"the server knows {host}", f"no Schedule selects it: {remedy}")
    disabled = expected.schedules - len(expected.entries)
    said = f"the server knows {host}, which is to hold {expected.schedules} schedules, at version {expected.version}"
    return Finding(said + (f"; {disabled} of them are not looked at, as they are disabled" if disabled else ""))


def _due(entry: Entry, host: str, now: datetime) -> tuple[str, list[str]]:
    """When an entry is next due here, and why it never is."""
    try:
        return f", next at {timetable.slot(entry, host).next(now):%Y-%m-%dT%H:%M:%SZ}", []
    except cron.CronError as error:
        return "", [f"it is never due on this host: {error}"]


async def _problems(looks: readiness.Readiness, command: CommandRun, known: dict[str, Repository]) -> list[str]:
    if command.kind not in CAPABILITIES:
        return [f"this agent cannot run jobs of kind {command.kind!r}: update the agent"]
    return await looks.problems(command, known.get(command.repository))
