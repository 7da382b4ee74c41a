"""What a job would find on this host, without running it: the programs, the repository, and the files to back up."""

import asyncio
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.restic import hooks
from agent.restic.context import JobContext
from agent.restic.hooks import HookError
from agent.restic.job import NO_FILES, Job
from agent.restic.kinds import NOT_THERE
from agent.restic.reporter import Reporter
from agent.sandbox import handles
from wire.messages import CommandRun, Hooks, Repository

TRY_S = 60.0
"""Seconds in which restic must open a repository."""


class Readiness:
    """Looks what jobs would find, and at each repository once. It writes to no repository."""

    def __init__(self, context: JobContext, allow_hooks: Collection[str]) -> None:
        self._context = context
        self._allow_hooks = allow_hooks
        self._opened: dict[tuple[str, bool, bool], str] = {}

    async def problems(self, command: CommandRun, repository: Repository | None) -> list[str]:
        """What would keep a job from its work now, each for people, with the remedy."""
        which = command.repository, command.host_identity, command.init is not None
        if which not in self._opened:
            self._opened[which] = await _closed(self._context, command, repository)
        paths = [unreadable(self._context, path, command.within) for path in backed_up(command)]
        found = [self._forbidden(command), *self._missing(command), *paths, self._opened[which]]
        return [it for it in found if it]

    def _forbidden(self, command: CommandRun) -> str:
        try:
            hooks.check(command.hooks or Hooks(), command.stdin_command, self._allow_hooks)
        except HookError as error:
            return str(error)
        return ""

    def _missing(self, command: CommandRun) -> Iterator[str]:
        around = command.hooks or Hooks()
        for argv in (around.before, around.after, command.stdin_command):
            if argv and argv[0] in self._allow_hooks and not _is_program(self._context.as_seen(Path(argv[0]))):
                yield f"{argv[0]} is no program on this host: install it, or correct the Schedule"


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def backed_up(command: CommandRun) -> list[str]:
    """The paths that a backup reads; none for other kinds."""
    args = command.args
    return args[args.index("--") + 1 :] if command.kind == "backup" and "--" in args else []


def unreadable(context: JobContext, path: str, within: Collection[str]) -> str:
    """Why a path cannot be backed up; empty if it can. What is inside a folder is not looked at."""
    place = context.as_seen(Path(path))
    try:
        if within and context.root == Path("/"):  # below another root, only the job itself can follow links
            handles.granted(path, handles.prefixes_of(list(within))).close()
        if place.is_dir():
            os.scandir(place).close()
        else:
            with place.open("rb"):
                pass
    except handles.StrayError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): correct the Schedule, or run the agent as root"
    return ""


async def _closed(context: JobContext, command: CommandRun, repository: Repository | None) -> str:
    """Why restic does not open the repository; empty if it does, or if the job would create it."""
    job = Job(context, command, Reporter(command.job_id, lambda _: None, context.timing.progress_s))
    try:
        job.open(repository)
        async with asyncio.timeout(TRY_S):
            ended = await job.restic(["cat", "config", "--no-lock"], lambda line: None, NO_FILES)
    except TimeoutError:
        return f"restic did not open the repository within {TRY_S:.0f} s: check the network and spec.url"
    except (OSError, ValueError) as error:  # ValueError: RepositoryError
        return context.explain(error)
    finally:
        job.close()
        job.reporter.close()
    if ended.end == "no_repository" and command.init is not None:
        return NOT_THERE if job.was_opened else ""
    return ended.error if ended.end != "succeeded" else ""
