"""Runs restic for the server's commands: starts it, reads it, stops it, and tells how it ended.

One `run` is one job: restic, and where there is no repository yet, `restic init` and restic again. A stop, the time
limit and a cancelled task are one thing: the wait for restic is cancelled, and on its way out restic is interrupted.

SIGINT is the one signal on which every version of restic removes its lock and leaves (cmd/restic/cleanup.go: SIGTERM
only since 0.17). It goes to restic alone, so that the ssh or rclone that it speaks through outlives the lock.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

from agent import restic
from wire.messages import CommandRun, JobEnd, JobFinished, JobLog, JobProgress, Repository

log = logging.getLogger(__name__)

PROGRESS_S = 1.0
"""Seconds between two reports of a running job."""
GRACE_S = 8.0
"""Seconds from SIGINT, in which restic may remove its lock, to SIGKILL."""
LINGER_S = 1.0
"""Seconds to wait for a killed process to be gone, and for the pipes of one that is gone to be closed."""
MAX_LOG_LINES = 5000
MAX_LOG_BYTES = 1 << 20
"""What is told of one job's log; how many lines follow that are not is told in one more."""
BATCH_LINES = 500
BATCH_BYTES = 1 << 17
"""What one JobLog holds at most, far below a frame's limit."""
MAX_TAIL = 50
"""Last lines of stderr that are kept to tell why restic failed."""

_LAUNCH = Path(__file__).with_name("launch.py")

_ENDS: Mapping[JobEnd, tuple[int, str]] = {
    "succeeded": (logging.INFO, "job succeeded"),
    "warning": (logging.WARNING, "job succeeded, but not all of it"),
    "failed": (logging.ERROR, "job failed"),
    "timed_out": (logging.ERROR, "job timed out"),
    "cancelled": (logging.WARNING, "job cancelled"),
    "interrupted": (logging.WARNING, "job interrupted"),
}
_STOPPED: Mapping[JobEnd, str] = {
    "timed_out": "stopped at its time limit: raise spec.timeoutSeconds if it needs longer",
    "cancelled": "cancelled while it ran",
    "interrupted": "the agent stopped while the job ran",
}

Report = Callable[[JobProgress | JobLog], None]


class Runner:
    """Runs jobs, each in a process group of its own.

    `restic`: the program, a name on PATH or a path. `cache_dir`: restic's cache, shared by all jobs. `clock`: aware
    datetimes in UTC. `env`: the agent's own environment, of which restic gets little (`restic.environment`).
    `root`: the folder that is restic's root (chroot(2)), where `cache_dir` must be too, by the same path.
    `progress_s`, `grace_s`: seconds above 0. Use it in a thread that lives as long as the process.
    """

    def __init__(
        self,
        restic: str,
        cache_dir: Path,
        clock: Callable[[], datetime],
        *,
        env: Mapping[str, str] | None = None,
        root: Path = Path("/"),
        progress_s: float = PROGRESS_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._program = restic
        self._root = root
        self._cache_dir = cache_dir
        self._clock = clock
        self._env = os.environ if env is None else env
        self._progress_s = progress_s
        self._grace_s = grace_s
        self._jobs: dict[str, _Job] = {}
        self._stops: dict[str, JobEnd] = {}
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, command: CommandRun, repository: Repository | None, report: Report) -> JobFinished:
        """Run a command to its end, and say how it ended; what restic and the host do never raises.

        A cancelled task interrupts restic, waits at most `grace_s` and LINGER_S for its end, and raises.
        """
        if (stopped := self._stops.pop(command.job_id, None)) is not None:
            return JobFinished(command.job_id, stopped, self._clock(), error=f"{stopped} before it began")
        started_at = self._clock()
        news = _News(command.job_id, report, self._progress_s)
        try:
            async with asyncio.timeout(command.timeout_s) as limit:
                job = self._jobs[command.job_id] = _Job(limit, news, command.within)
                await self._work(job, command, repository)
        except TimeoutError:
            job.stopped = job.stopped or "timed_out"
        except (OSError, ValueError) as error:  # ValueError: restic.RepositoryError, a NUL byte in the arguments
            job.ended = restic.Outcome("failed", restic.clipped(str(error)))
        finally:
            self._jobs.pop(command.job_id, None)
            news.close()
        end = job.finished(command.job_id, started_at, self._clock())
        _tell(end, started_at)
        return end

    def stop(self, job_id: str, status: JobEnd) -> None:
        """Have a job end soon with this status, also one that has not begun. The first stop counts.

        A job that restic had finished by then tells that instead.
        """
        job = self._jobs.get(job_id)
        if job is None:
            self._stops.setdefault(job_id, status)
        elif job.stopped is None and not job.limit.expired():
            job.stopped = status
            job.limit.reschedule(asyncio.get_running_loop().time())

    async def _work(self, job: "_Job", command: CommandRun, repository: Repository | None) -> None:
        if repository is None:
            raise restic.RepositoryError(
                f"no credentials for repository {command.repository!r}: check that it and its Secrets exist, "
                "and that the Schedule's status shows no problem with it"
            )
        env = restic.environment(repository, self._env, self._cache_dir, 1 / self._progress_s)
        if self._root != Path("/"):  # the host's file system need not be one that can be written
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            env["TMPDIR"] = str(self._cache_dir)
        job.hide = restic.redactor(repository)
        ended = await self._restic(job, command.args, env)
        if ended.end != "no_repository" or command.init is None:
            return
        lock = self._creating.setdefault(repository.url, asyncio.Lock())
        async with lock:  # two at once would each write a key, and leave a repository that neither can open
            job.ended = None
            created = await self._restic(job, command.init, env)
        if created.end in ("succeeded", "repository_exists"):  # another job or host may have been faster
            if created.end == "succeeded":
                log.info("repository created", extra={"repository": repository.name})
            job.ended = None
            await self._restic(job, command.args, env)

    def _launched(self, program: str, within: Sequence[str]) -> list[str]:
        """The start of an argv that runs a program as `launch` does."""
        start = [sys.executable, "-I", "-S", str(_LAUNCH)]
        return [*start, str(os.getpid()), str(self._root), json.dumps(list(within)), program]

    async def _restic(self, job: "_Job", args: list[str], env: Mapping[str, str]) -> restic.Outcome:
        """Run restic once. When cancelled, interrupt it, and kill it when it does not end in time."""
        program = shutil.which(self._program, path=env.get("PATH"))
        if program is None:
            raise FileNotFoundError(f"restic is not at {self._program!r}: install it, or name its path to the agent")
        output = job.output = _Output(job.news, job.hide)
        loop = asyncio.get_running_loop()
        transport, child = await loop.subprocess_exec(
            lambda: _Child(output.take),
            *self._launched(program, job.within),
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # a Ctrl-C at the agent's terminal is the agent's to handle
        )
        try:
            await child.ended.wait()
        except asyncio.CancelledError:
            child.interrupt(self._grace_s)
            await child.ended.wait()
            raise
        finally:
            child.close()
            output.exit_code = transport.get_returncode()
            job.ended = restic.outcome(output.exit_code, output.stderr, output.unreadable)
        return job.ended


class _Job:
    """One job: how it can be stopped, and what is known of it. `ended`: the outcome of the last restic that ended."""

    def __init__(self, limit: asyncio.Timeout, news: "_News", within: Sequence[str]) -> None:
        self.limit = limit
        self.within = within
        self.news = news
        self.hide: Callable[[str], str] = str
        self.stopped: JobEnd | None = None
        self.output: _Output | None = None
        self.ended: restic.Outcome | None = None

    def finished(self, job_id: str, started_at: datetime, now: datetime) -> JobFinished:
        """The end of the job, as the server is told."""
        output = self.output or _Output(self.news, self.hide)
        summary = output.summary or restic.Summary("", 0, 0, 0)
        status, error = self._status()
        return JobFinished(
            job_id,
            status,
            now,
            started_at,
            output.exit_code,
            summary.snapshot_id,
            summary.files_processed,
            summary.bytes_processed,
            summary.bytes_added,
            error,
        )

    def _status(self) -> tuple[JobEnd, str]:
        if self.ended is not None and self.ended.end in ("succeeded", "warning"):
            return cast(JobEnd, self.ended.end), self.ended.error
        if self.stopped is not None:
            return self.stopped, _STOPPED.get(self.stopped, "")
        return "failed", self.ended.error if self.ended is not None else ""


class _Output:
    """What one restic process has printed."""

    def __init__(self, news: "_News", hide: Callable[[str], str]) -> None:
        self._news = news
        self._hide = hide
        self.stderr: deque[str] = deque(maxlen=MAX_TAIL)
        self.summary: restic.Summary | None = None
        self.unreadable = 0
        self.exit_code: int | None = None

    def take(self, fd: int, line: bytes) -> None:
        """A line came on stdout (1) or stderr (2)."""
        match restic.read_line(line):
            case restic.Status() as status:
                self._news.progress(status)
            case restic.Summary() as summary:
                self.summary = summary
            case (restic.Unreadable(text) | restic.LogLine(text)) as said:
                self.unreadable += isinstance(said, restic.Unreadable)
                for part in map(restic.clipped, self._hide(text).splitlines()):
                    self._news.log(part)
                    if fd == 2:
                        self.stderr.append(part)


class _News:
    """Tells how a job goes: the latest progress and the lines since, at once and then once in `interval_s`."""

    def __init__(self, job_id: str, report: Report, interval_s: float) -> None:
        self._job_id = job_id
        self._report = report
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._progress: JobProgress | None = None
        self._lines: list[str] = []
        self._size = 0
        self._told_lines = self._told_bytes = self._left_out = 0
        self._tenth = -1

    def progress(self, status: restic.Status) -> None:
        """restic told how far it is."""
        self._progress = JobProgress(
            self._job_id,
            status.fraction,
            status.files_done,
            status.files_total,
            status.bytes_done,
            status.bytes_total,
        )
        self._arm()

    def log(self, line: str) -> None:
        """restic said something to people."""
        size = len(line.encode())
        if self._told_lines >= MAX_LOG_LINES or self._told_bytes + size > MAX_LOG_BYTES:
            self._left_out += 1
            return
        self._told_lines += 1
        self._told_bytes += size
        if len(self._lines) >= BATCH_LINES or self._size + size > BATCH_BYTES:
            self._tell_lines()
        self._lines.append(line)
        self._size += size
        self._arm()

    def close(self) -> None:
        """Tell what is yet to be told, and how much is not."""
        if self._left_out:
            self._lines.append(f"… {self._left_out} more lines are left out")
        self._tell()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(self._next, self._tell)

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = self._loop.time() + self._interval_s
        if self._progress is not None:
            self._tell_progress(self._progress)
            self._progress = None
        self._tell_lines()

    def _tell_progress(self, progress: JobProgress) -> None:
        self._report(progress)
        if (tenth := int(10 * progress.fraction)) != self._tenth:  # a line for each would fill the log
            self._tenth = tenth
            facts = {"percent": round(100 * progress.fraction), "files": progress.files_done}
            log.info("progress", extra={"job": self._job_id, **facts, "bytes": progress.bytes_done})

    def _tell_lines(self) -> None:
        if self._lines:
            self._report(JobLog(self._job_id, self._lines))
            self._lines, self._size = [], 0


class _Child(asyncio.SubprocessProtocol):
    """A process: hands its lines on, can be ended, and is `ended` within bounds once it is killed or gone."""

    def __init__(self, take: Callable[[int, bytes], None]) -> None:
        self._take = take
        self._lines = {1: restic.Lines(), 2: restic.Lines()}
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.SubprocessTransport
        self.ended = asyncio.Event()

    def interrupt(self, grace_s: float) -> None:
        """Ask it to end, and kill it when it has not after `grace_s` seconds."""
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                os.kill(self._transport.get_pid(), signal.SIGINT)
            self._timers.append(self._loop.call_later(grace_s, self._kill))

    def close(self) -> None:
        """Let go of it, and kill it if it is still there."""
        for timer in self._timers:
            timer.cancel()
        if not self.ended.is_set():
            self._kill_group()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It wrote something."""
        for line in self._lines[fd].feed(data):
            self._take(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It will write no more."""
        for line in self._lines[fd].rest():
            self._take(fd, line)

    def process_exited(self) -> None:
        """It is gone; a child of its own may still hold the pipes."""
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and all that it wrote is read."""
        self.ended.set()

    def _kill(self) -> None:
        log.warning("restic did not end when asked to: killed", extra={"pid": self._transport.get_pid()})
        self._kill_group()
        self._timers.append(self._loop.call_later(LINGER_S, self._give_up))

    def _give_up(self) -> None:
        self._kill_group()
        self.ended.set()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), signal.SIGKILL)


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
