"""Runs one job for each of the server's commands, and returns how it ended.

A stop, the time limit and a cancelled task all cancel the wait for the running program, which then interrupts it.
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

from agent.restic import counts, hooks, kinds, process
from agent.restic.context import DEFAULT_TIMING, JobContext, Timing, discard
from agent.restic.hooks import When
from agent.restic.job import WINDOW_CLOSED, Job
from agent.restic.output import clipped
from agent.restic.reporter import Report, Reporter
from wire.messages import CommandRun, Hooks, JobEnd, JobFinished, JobReason, Repository, Restore, Verify

log = logging.getLogger(__name__)

CACHE_DAYS = 30
"""Days that a repository's cache is kept after its last job: as many as restic keeps its caches."""
_ENDS: Mapping[JobEnd, tuple[int, str]] = {
    "succeeded": (logging.INFO, "job succeeded"),
    "warning": (logging.WARNING, "job succeeded with warnings"),
    "failed": (logging.ERROR, "job failed"),
    "timed_out": (logging.ERROR, "job timed out"),
    "cancelled": (logging.WARNING, "job cancelled"),
    "interrupted": (logging.WARNING, "job interrupted"),
}


class Runner:
    """Runs jobs, each program in its own process group.

    - `restic`: the program, a name on PATH or a path.
    - `cache_dir`: the folder of restic's caches, one for each repository. Temporary folders are put beside it.
    - `clock`: returns aware datetimes in UTC.
    - `env`: the agent's environment, of which restic gets little (`restic_environment`).
    - `root`: restic's root (chroot(2)); below it, `cache_dir` must exist at the same path.
    - `allow_hooks`: absolute paths, below `root`, of programs that a Schedule may run around a job.
    - `allow_unconfined`: whether a job of a namespace with a grant for a part of the host may run when the kernel
      cannot confine it.

    Building a Runner removes caches that were not used for CACHE_DAYS, and what a killed agent left in temporary
    folders and in folders that it restored to. Use it in a thread that lives as long as the process.
    """

    def __init__(  # noqa: PLR0913 - the operator sets each of them
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
        self._stops: dict[str, tuple[JobEnd, JobReason]] = {}
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed agent left, and unused caches."""
        discard(self._context.scratch)
        oldest = self._clock().timestamp() - CACHE_DAYS * 86400
        for cache in self._context.as_seen(self._context.cache_dir).glob("*/"):
            if cache.stat().st_mtime < oldest:
                discard(cache)
        for note in self._context.notes.glob("*"):
            subprocess.run(process.python("staging", f"@{note}"), check=False)
            note.unlink()

    async def run(
        self, command: CommandRun, repository: Repository | None, report: Report, source: Repository | None = None
    ) -> JobFinished:
        """Run a command and return how it ended. No failure of restic or of the host raises.

        `source`: the repository that a copy reads from.

        When cancelled, it interrupts the running program, waits `grace_s` and LINGER_S at most for its end, and raises.
        """
        if (stopped := self._stops.pop(command.job_id, None)) is not None:
            status, reason = stopped
            error = WINDOW_CLOSED if reason == "WindowClosed" else f"{status} before it began"
            return JobFinished(command.job_id, status, self._clock(), error=error, reason=reason)
        started_at = self._clock()
        reporter = Reporter(command.job_id, report, self._timing.progress_s)
        job = self._jobs[command.job_id] = Job(self._context, command, reporter)
        try:
            await self._run_with_hooks(job, repository, source)
        finally:
            del self._jobs[command.job_id]
            job.close()
            reporter.close()
        end = job.finished(JobFinished(command.job_id, "failed", self._clock(), started_at))
        _log_end(end, started_at)
        return end

    def stop(self, job_id: str, status: JobEnd, reason: JobReason = "") -> None:
        """Stop a job, started or not, with this status, and for this reason. Only the first stop counts.

        If restic has finished by then, the job keeps that outcome.
        """
        job = self._jobs.get(job_id)
        if job is None:
            self._stops.setdefault(job_id, (status, reason))
        else:
            job.stop(status, reason)

    async def _run_with_hooks(self, job: Job, repository: Repository | None, source: Repository | None) -> None:
        """Run the `before` hook, the work, and the `after` hook, which has the rest of the time, or AFTER_STOP_S if
        stopped."""
        around = job.command.hooks or Hooks()
        try:
            hooks.check(around, job.command.stdin_command, self._allow_hooks)
            job.open(repository, source)
        except hooks.HookError as error:
            return job.fail(str(error), "HookFailed")
        except (OSError, ValueError) as error:  # ValueError: RepositoryError
            return job.fail(self._context.explain(error))
        loop = asyncio.get_running_loop()
        until = None if job.command.timeout_s is None else loop.time() + job.command.timeout_s
        async with job.limited(until):
            if await self._run_hook(job, "before", around):
                await self._run_kind(job)
        job.end_work()
        async with job.limited(until if job.stopped is None else loop.time() + hooks.AFTER_STOP_S):
            await self._run_hook(job, "after", around)
        return None

    async def _run_kind(self, job: Job) -> None:
        """Run the steps of the job's kind."""
        match job.command:
            case CommandRun(kind="verify", verify=Verify() as wanted):
                await kinds.check_restore(job, wanted, self._rng)
            case CommandRun(kind="restore", restore=Restore() as wanted):
                await kinds.restore(job, wanted)
            case CommandRun(kind="snapshots" | "ls" | "find"):
                await kinds.list_contents(job)
            case CommandRun(kind="backup", stdin_command=[_, *_], job_id=job_id, hooks=around):
                env = hooks.environment(self._context.env, job_id, around.schedule if around else "", None)
                await kinds.back_up_output(job, self._creating.setdefault(job.url, asyncio.Lock()), env)
            case CommandRun(kind="backup"):
                await kinds.backup(job, self._creating.setdefault(job.url, asyncio.Lock()))
            case CommandRun(kind="copy"):
                await kinds.copy(job, self._creating.setdefault(job.url, asyncio.Lock()))
            case CommandRun(kind="forget" | "prune" | "check" | "unlock"):
                await kinds.run_command(job, self._creating.setdefault(job.url, asyncio.Lock()))
            case CommandRun(kind=kind):
                job.fail(f"this agent cannot run jobs of kind {kind!r}: update the agent")
        if job.status() in ("succeeded", "warning"):
            job.mark_opened()
            job.mark_done(self._clock())
            job.end_work()  # a window that closes now leaves the hook after the work all its time
            await counts.follow(job, self._clock)

    async def _run_hook(self, job: Job, when: When, around: Hooks) -> bool:
        """Run the hook, if there is one. Returns whether the job may go on."""
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


def _log_end(end: JobFinished, started_at: datetime) -> None:
    """Log how a job ended."""
    facts: dict[str, object] = {"job": end.job_id, "seconds": round((end.finished_at - started_at).total_seconds(), 1)}
    if end.snapshot_id:
        facts |= {"snapshot": end.snapshot_id, "files": end.files_processed, "bytes": end.bytes_processed}
        facts |= {"bytes_added": end.bytes_added}
    if end.error:
        facts |= {"reason": end.error}
    level, message = _ENDS[end.status]
    log.log(level, message, extra=facts)
