"""Runs restic for the server's commands, one job for each, and tells how it ended.

A stop, the time limit and a cancelled task are one thing: the wait for the program that runs is cancelled, and on its
way out that program is interrupted.
"""

import asyncio
import logging
import os
import random
import subprocess
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary

from agent.restic import hooks, kinds, process
from agent.restic.context import DEFAULT_TIMING, JobContext, Timing, discard
from agent.restic.hooks import When
from agent.restic.job import Job
from agent.restic.output import clipped
from agent.restic.reporter import Report, Reporter
from wire.messages import CommandRun, Hooks, JobEnd, JobFinished, Repository, Restore, Verify

log = logging.getLogger(__name__)

CACHE_DAYS = 30
"""Days after its last job that a repository's cache is kept: as many as restic itself keeps one."""
_ENDS: Mapping[JobEnd, tuple[int, str]] = {
    "succeeded": (logging.INFO, "job succeeded"),
    "warning": (logging.WARNING, "job succeeded, but not all of it"),
    "failed": (logging.ERROR, "job failed"),
    "timed_out": (logging.ERROR, "job timed out"),
    "cancelled": (logging.WARNING, "job cancelled"),
    "interrupted": (logging.WARNING, "job interrupted"),
}


class Runner:
    """Runs jobs, each program in a process group of its own.

    `restic`: the program, a name on PATH or a path. `cache_dir`: restic's caches, one for each repository; those that
    no job used for CACHE_DAYS are removed now. `clock`: aware datetimes in UTC. `env`: the agent's own environment, of
    which restic gets little (`restic_environment`).
    `root`: the folder that is restic's root (chroot(2)), where `cache_dir` must be too, by the same path.
    `allow_unconfined`: whether jobs of namespaces that are granted a part of the host run where the kernel cannot
    confine them.
    `allow_hooks`: absolute paths, below `root`, of the programs that a Schedule may have run around a job.
    Temporary folders, and what a verification restores, are put beside the cache; what an agent that was killed left
    there, and in the folders that it restored to, is removed now.
    Use it in a thread that lives as long as the process.
    """

    def __init__(  # noqa: PLR0913 - each is the operator's to say
        self,
        restic: str,
        cache_dir: Path,
        clock: Callable[[], datetime],
        *,
        env: Mapping[str, str] | None = None,
        root: Path = Path("/"),
        allow_hooks: Collection[str] = (),
        timing: Timing = DEFAULT_TIMING,
        rng: random.Random | None = None,
        allow_unconfined: bool = False,
    ) -> None:
        env = os.environ if env is None else env
        self._context = JobContext(restic, cache_dir.absolute(), env, root, timing, allow_unconfined)
        self._timing = timing
        self._clock = clock
        self._allow_hooks = frozenset(allow_hooks)
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        self._jobs: dict[str, Job] = {}
        self._stops: dict[str, JobEnd] = {}
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sweep()

    def _sweep(self) -> None:
        """Remove what an agent that was killed has left, and caches that nobody uses."""
        discard(self._context.scratch)
        oldest = self._clock().timestamp() - CACHE_DAYS * 86400
        for cache in self._context.as_seen(self._context.cache_dir).glob("*/"):
            if cache.stat().st_mtime < oldest:
                discard(cache)
        for note in self._context.notes.glob("*"):
            subprocess.run(process.python("staging", f"@{note}"), check=False)
            note.unlink()

    async def run(self, command: CommandRun, repository: Repository | None, report: Report) -> JobFinished:
        """Run a command to its end, and say how it ended; what restic and the host do never raises.

        A cancelled task interrupts the program that runs, waits at most its grace and LINGER_S for its end, and raises.
        """
        if (stopped := self._stops.pop(command.job_id, None)) is not None:
            return JobFinished(command.job_id, stopped, self._clock(), error=f"{stopped} before it began")
        started_at = self._clock()
        reporter = Reporter(command.job_id, report, self._timing.progress_s)
        job = self._jobs[command.job_id] = Job(self._context, command, reporter)
        try:
            await self._all(job, repository)
        finally:
            del self._jobs[command.job_id]
            job.close()
            reporter.close()
        end = job.finished(JobFinished(command.job_id, "failed", self._clock(), started_at))
        _tell(end, started_at)
        return end

    def stop(self, job_id: str, status: JobEnd) -> None:
        """Have a job end soon with this status, also one that has not begun. The first stop counts.

        A job that restic had finished by then tells that instead.
        """
        job = self._jobs.get(job_id)
        if job is None:
            self._stops.setdefault(job_id, status)
        else:
            job.stop(status)

    async def _all(self, job: Job, repository: Repository | None) -> None:
        """The hook before, the work, and the hook after, which has what is left of the time, or AFTER_STOP_S."""
        around = job.command.hooks or Hooks()
        try:
            hooks.check(around, self._allow_hooks)
            job.open(repository)
        except hooks.HookError as error:
            return job.fail(str(error), "HookFailed")
        except (OSError, ValueError) as error:  # ValueError: RepositoryError
            return job.fail(self._context.explain(error))
        loop = asyncio.get_running_loop()
        until = None if job.command.timeout_s is None else loop.time() + job.command.timeout_s
        async with job.limited(until):
            if await self._hook(job, "before", around):
                await self._work(job)
        async with job.limited(until if job.stopped is None else loop.time() + hooks.AFTER_STOP_S):
            await self._hook(job, "after", around)
        return None

    async def _work(self, job: Job) -> None:
        """What the kind of job asks for."""
        match job.command:
            case CommandRun(kind="verify", verify=Verify() as wanted):
                await kinds.check_restore(job, wanted, self._rng)
            case CommandRun(kind="restore", restore=Restore() as wanted):
                await kinds.restore(job, wanted)
            case CommandRun(kind="snapshots" | "ls"):
                await kinds.list_contents(job)
            case CommandRun(kind="backup"):
                await kinds.backup(job, self._creating.setdefault(job.url, asyncio.Lock()))
            case CommandRun(kind="forget" | "prune" | "check" | "unlock"):
                await kinds.plain(job, self._creating.setdefault(job.url, asyncio.Lock()))
            case CommandRun(kind=kind):
                job.fail(f"this agent does not run kind {kind!r}: update it")
        if job.status() in ("succeeded", "warning"):
            job.mark_opened()

    async def _hook(self, job: Job, when: When, around: Hooks) -> bool:
        """Run a hook, if there is one; whether the job may go on."""
        argv = around.before if when == "before" else around.after
        if not argv:
            return True
        status = None if when == "before" else job.status()
        env = hooks.environment(self._context.env, job.command.job_id, around.schedule, status)
        exit_code: int | None = None
        try:
            exit_code = await job.hook(argv, env)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            job.reporter.log(clipped(str(error)))
        finally:  # also when it is stopped
            if exit_code != 0:
                job.hook_failed(hooks.failure(when, argv, exit_code))
        return exit_code == 0


def _tell(end: JobFinished, started_at: datetime) -> None:
    """Say in the log how a job ended."""
    facts: dict[str, object] = {"job": end.job_id, "seconds": round((end.finished_at - started_at).total_seconds(), 1)}
    if end.snapshot_id:
        facts |= {"snapshot": end.snapshot_id, "files": end.files_processed, "bytes": end.bytes_processed}
        facts |= {"bytes_added": end.bytes_added}
    if end.error:
        facts |= {"reason": end.error}
    level, said = _ENDS[end.status]
    log.log(level, said, extra=facts)
