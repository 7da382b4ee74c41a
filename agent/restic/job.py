"""One job while it runs: the programs that it runs, and what is known of its end."""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from agent.restic import process
from agent.restic.arguments import by_files
from agent.restic.environment import FILES_LENT, RepositoryError, local_folder, redactor, restic_environment
from agent.restic.outcome import NAMED_PATHS, Outcome, lock_waits, read_outcome
from agent.restic.output import (
    MAX_LINE,
    LogLine,
    Status,
    Summary,
    Unreadable,
    clipped,
    count_of_errors,
    is_left_out,
    plain,
    read_line,
)
from agent.restic.reporter import News
from agent.restic.verify import Digest
from agent.sandbox.confine import SPECIAL, STAGE, Launch
from wire.messages import CommandRun, JobEnd, JobFinished, JobReason, Repository

log = logging.getLogger(__name__)

MAX_TAIL = 50
"""Last lines of stderr that are kept to tell why a program failed."""

MAX_ANSWER = 64 << 20
"""Bytes of one line that restic was asked for: a list of some 100,000 snapshots is one."""

_STOPPED: Mapping[JobEnd, str] = {
    "timed_out": "stopped at its time limit: raise spec.timeoutSeconds if it needs longer",
    "cancelled": "cancelled while it ran",
    "interrupted": "the agent stopped while the job ran",
}
_LOCKED = "; it only waited for a lock of the repository"
_digests = msgspec.json.Decoder(Digest | None)

Sleep = Callable[[float], Awaitable[object]]


class Pace(Struct, frozen=True):
    """How fast things go. `progress_s`: seconds between two reports of a running job. `grace_s`: seconds for a program
    to end when it is asked to. Both above 0. `sleep`: waits that many seconds.
    """

    progress_s: float = 1.0
    grace_s: float = process.GRACE_S
    sleep: Sleep = asyncio.sleep


AT_EASE = Pace()


NOWHERE = Launch()
_OWN_KEYS = (".ssh", ".aws", ".azure", ".config/gcloud", ".config/rclone", ".mc", ".minio")
"""Where, in a home folder, the programs and libraries that restic uses look for who they are."""


class Setting(Struct, frozen=True):
    """What all jobs of an agent share; see `agent.restic.runner.Runner`."""

    program: str
    cache_dir: Path
    env: Mapping[str, str]
    root: Path
    pace: Pace
    allow_unconfined: bool = False

    def cache_of(self, repository_id: str) -> Path:
        """restic's cache for one repository alone. restic's own folders in it are named by what a repository says that
        it is: who makes a repository could say that it is another's, and have that one's cache removed or filled."""
        return self.cache_dir / hashlib.blake2b(repository_id.encode(), digest_size=16).hexdigest()

    def as_seen(self, path: Path) -> Path:
        """A path of restic's as the agent sees it."""
        return self.root / path.relative_to("/")

    @property
    def scratch_dir(self) -> Path:
        """Where jobs have their temporary folders, and restic puts what a verification restores."""
        return self.cache_dir.with_name("scratch")

    @property
    def opened(self) -> Path:
        """Where there is an empty file for each repository that was opened, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("opened"))

    @property
    def notes(self) -> Path:
        """Where there is a note for each restore under way, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("restoring"))

    @property
    def scratch(self) -> Path:
        """The same folder, as the agent sees it."""
        return self.as_seen(self.scratch_dir)


class Job:
    """One job: what it runs restic with, how it can be stopped, and what is known of its end.

    `ended`: how what counts of it has ended; None before. `stopped`: the first reason to stop it.
    """

    def __init__(self, setting: Setting, command: CommandRun, news: News) -> None:
        self.setting = setting
        self.command = command
        self.news = news
        self.hide: Callable[[str], str] = str
        self.limit = asyncio.timeout(None)
        self.stopped: JobEnd | None = None
        self.ended: Outcome | None = None
        self.exit_code: int | None = None
        self.summary = Summary("", 0, 0, 0)
        self.url = ""
        self._env: Mapping[str, str] = {}
        self._work: str | None = None
        self._lock_waits = lock_waits(command.lock_wait_s)
        self._unlocked = self._awaits_lock = self._has_arguments = False

    def open(self, repository: Repository | None) -> None:
        """Take what opens the repository. Raises RepositoryError."""
        if repository is None:
            raise RepositoryError(
                f"no credentials for repository {self.command.repository!r}: check that it and its Secrets exist, "
                "and that the Schedule's status shows no problem with it"
            )
        setting = self.setting
        lent = self.command.host_identity
        fps = 1 / setting.pace.progress_s
        cache = setting.cache_of(repository.id)
        env = restic_environment(repository, setting.env, cache, fps, identity=lent)
        temp = str(self.folder("tmp"))
        # All of TMPDIR can be read and written then; below a root of its own it need not be there.
        if "TMPDIR" not in env or self.command.within or setting.root != Path("/"):
            env["TMPDIR"] = temp
        env["HOME"] = setting.env.get("HOME", "/root") if lent else str(self.folder("home"))
        setting.as_seen(cache).mkdir(parents=True, exist_ok=True)
        os.utime(setting.as_seen(cache))
        self._env, self.url = env, repository.url
        self.hide = redactor(repository)

    @property
    def _opened(self) -> Path:
        """The file that says that this repository was opened here, at this URL."""
        which = f"{self.command.repository} {self.url}"
        return self.setting.opened / hashlib.blake2b(which.encode(), digest_size=16).hexdigest()

    @property
    def was_opened(self) -> bool:
        """Whether this host has opened the repository before, as far as its disk remembers."""
        return self._opened.exists()

    def remember_opened(self) -> None:
        """Remember that the repository is there."""
        with suppress(OSError):  # what was done in it is done; the next job remembers
            self._opened.parent.mkdir(parents=True, exist_ok=True)
            self._opened.touch()

    @property
    def lock_options(self) -> list[str]:
        """Whether a restore, and what it looks at before, lock the repository: not one that is a folder, where the
        grant has paths.

        restic changes the mode of a lock by its path, which a restore may do: a link in its place would lead it out.
        """
        return ["--no-lock"] if self.command.within and local_folder(self.url) else []

    async def restic(
        self,
        args: Sequence[str],
        answer: Callable[[bytes], None] | None = None,
        wanted: Launch = NOWHERE,
        expected: Collection[str] | None = None,
    ) -> Outcome:
        """Run restic, again while the repository is locked and the command's patience lasts.

        `wanted`: what it may touch of the host, beside what every job may.
        `expected`: of a restore that leaves out what gives powers, the paths of devices. That is no failure.

        Without `answer` it is what the job is for, and how it ended is how the job did. With it, it is asked for its
        lines on stdout, and only a failure is the job's.
        """
        args = by_files(args, lambda: self.folder("arguments"), self._write_argument)
        if self._has_arguments:
            wanted = wanted._replace(private=[*wanted.private, str(self.folder("arguments"))])
        how = self._launch(wanted)
        while True:
            outcome = await self._once(how, args, answer, expected)
            if outcome.end == "locked" and not self._unlocked:
                await self._unlock()
                continue
            wait = next(self._lock_waits, None) if outcome.end == "locked" else None
            if wait is None:
                return outcome
            self.ended = None
            self.news.log(f"the repository is locked: trying again in {wait:g} s")
            self._awaits_lock = True
            await self.setting.pace.sleep(wait)
            self._awaits_lock = False

    def _write_argument(self, name: str, content: bytes) -> None:
        self._has_arguments = True
        self.folder("arguments")
        (self._own("arguments") / name).write_bytes(content)

    async def _unlock(self) -> None:
        """Remove the locks of processes that are gone, once in a job; restic leaves those that may be in use.

        It knows a process as gone that ran on this host and is not there, or has not renewed its lock for half an hour.
        """
        self._unlocked = True
        self.news.log("the repository is locked: removing locks of processes that are gone")
        await self._once(self._launch(NOWHERE), ["unlock"], lambda line: None, None)
        self.ended = None

    def folder(self, name: str) -> Path:
        """A folder of the job's own, as restic sees it. It is gone when the job is."""
        if self._work is None:
            self.setting.scratch.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(dir=self.setting.scratch)).name
        self._own(name).mkdir(exist_ok=True)
        return self.setting.scratch_dir / self._work / name

    def _own(self, name: str) -> Path:
        """Something in the job's own folder, as the agent sees it."""
        return self.setting.scratch / (self._work or "") / name

    def close(self) -> None:
        """Remove the job's own folders."""
        if self._work is not None:
            discard(self.setting.scratch / self._work)

    @asynccontextmanager
    async def restoring(self, wanted: Launch) -> AsyncIterator[None]:
        """Around a restore: what is left of its fresh folder is removed after it, or when the agent starts again."""
        note = self.setting.notes / wanted.stage
        self.setting.notes.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(self._launch(wanted)._asdict()))
        try:
            yield
        finally:
            await process.run(process.python("staging", f"@{note}"), {}, lambda fd, line: None, lambda exit_code: None)
            note.unlink(missing_ok=True)

    def _launch(self, wanted: Launch) -> Launch:
        """How a program of this job starts that is to touch this of the host."""
        setting = self.setting
        own = [self._env["RESTIC_CACHE_DIR"], self._env["TMPDIR"]]
        lent = [self._env[name] for name in FILES_LENT if name in self._env]
        home = Path(self._env["HOME"])
        keys = [home / name for name in _OWN_KEYS] if self.command.host_identity else [home]
        return wanted._replace(
            root=str(setting.root),
            confined=True,
            unconfined=setting.allow_unconfined,
            within=self.command.within,
            readable=[*lent, *map(str, keys)],
            repository=local_folder(self.url),
            private=[*own, *wanted.private],
        )

    async def _once(
        self, how: Launch, args: Sequence[str], answer: Callable[[bytes], None] | None, expected: Collection[str] | None
    ) -> Outcome:
        program = shutil.which(self.setting.program, path=self._env.get("PATH"))
        if program is None:
            remedy = "install it, or name its path to the agent"
            raise FileNotFoundError(f"restic is not at {self.setting.program!r}: {remedy}")
        output = _Output(self.news, lambda text: self.hide(text.replace(STAGE, how.target)), answer, expected)
        outcome = Outcome("failed")

        def ended(exit_code: int | None) -> None:
            nonlocal outcome
            if exit_code == 1 and output.all_expected:
                exit_code = 0
            outcome = read_outcome(exit_code, output.stderr, output.unreadable, output.paths)
            self.exit_code = exit_code
            if output.capabilities:
                self.news.log(f"left out: capabilities of {output.capabilities} files: {SPECIAL}")
            self.summary = output.summary or self.summary
            if answer is None or outcome.end != "succeeded":
                self.ended = outcome

        argv = process.launched(how, [program, *args], self._own("launch.json"))
        max_line = MAX_LINE if answer is None else MAX_ANSWER
        grace_s = self.setting.pace.grace_s
        await process.run(argv, self._env, output.take, ended, grace_s=grace_s, max_line=max_line)
        return outcome

    async def hook(self, argv: Sequence[str], env: Mapping[str, str]) -> int | None:
        """Run a program of the host; its output goes into the job's log. Its exit code, or None for no end."""
        codes: list[int | None] = []

        def take(_: int, line: bytes) -> None:
            if text := plain(line):
                self.news.log(clipped(self.hide(text)))

        how = Launch(str(self.setting.root), own=False)
        await process.run(process.launched(how, argv), env, take, codes.append, grace_s=self.setting.pace.grace_s)
        return codes[0]

    async def digests(self, files: Sequence[str]) -> list[Digest | None]:
        """What files of the host hold, in order; None for what cannot be read."""
        lines: list[bytes] = []

        def take(fd: int, line: bytes) -> None:
            if fd == 1:
                lines.append(line)

        how = self._launch(Launch(paths=self.command.within, private=[str(self.folder("restored"))]))
        note = self._own("digest.json")
        note.write_text(json.dumps(how._asdict()))
        argv = process.python("digest", f"@{note}", *files)
        await process.run(argv, {}, take, lambda exit_code: None, grace_s=self.setting.pace.grace_s)
        found = [_digests.decode(line) for line in lines]
        return found + [None] * (len(files) - len(found))

    def fail(self, error: str, reason: JobReason = "") -> None:
        """What counts of the job has failed."""
        self.ended = Outcome("failed", clipped(self.hide(error)), reason)

    def hook_failed(self, error: str) -> None:
        """A hook around it has failed: what had succeeded, has not wholly; what had not begun, does not."""
        if self.ended is None:
            self.news.log(clipped(self.hide(error)))
            self.fail(error, "HookFailed")
        else:
            self.warn(error, "HookFailed")

    def warn(self, error: str, reason: JobReason = "") -> None:
        """Something was left undone: what had succeeded, has not wholly."""
        error = clipped(self.hide(error))
        self.news.log(error)
        if self.ended is not None and self.ended.end in ("succeeded", "warning"):
            said = f"{self.ended.error}; {error}" if self.ended.error else error
            self.ended = Outcome("warning", clipped(said), reason or self.ended.reason)

    def status(self) -> JobEnd:
        """How the job ended."""
        if self.ended is not None and self.ended.end in ("succeeded", "warning"):
            return cast(JobEnd, self.ended.end)
        return self.stopped or "failed"

    def finished(self, end: "JobFinished") -> JobFinished:
        """The end of the job, as the server is told; `end` says whose and when."""
        status, summary, ended = self.status(), self.summary, self.ended or Outcome("failed")
        told = status in ("succeeded", "warning", "failed")
        return msgspec.structs.replace(
            end,
            status=status,
            exit_code=self.exit_code,
            snapshot_id=summary.snapshot_id,
            files_processed=summary.files_processed,
            bytes_processed=summary.bytes_processed,
            bytes_added=summary.bytes_added,
            error=ended.error if told else _STOPPED.get(status, "") + _LOCKED * self._awaits_lock,
            reason=ended.reason if told else "Locked" if self._awaits_lock else "",
        )


class _Output:
    """What one restic process has printed."""

    def __init__(
        self,
        news: News,
        hide: Callable[[str], str],
        answer: Callable[[bytes], None] | None,
        expected: Collection[str] | None,
    ) -> None:
        self._news = news
        self._hide = hide
        self._answer = answer
        self._expected = expected
        self._met = self.capabilities = 0
        self.all_expected = False
        self.stderr: deque[str] = deque(maxlen=MAX_TAIL)
        self.summary: Summary | None = None
        self.unreadable = 0
        self.paths: list[str] = []

    def take(self, fd: int, line: bytes) -> None:
        """A line came on stdout (1) or stderr (2)."""
        if fd == 1 and self._answer is not None:
            self._answer(line)
            return
        if self._expected is not None and is_left_out(line, self._expected):
            self._met += 1
            self.capabilities += b"security.capability" in line
            return
        if self._met and count_of_errors(line) == self._met:  # told by what is left out
            self.all_expected = True
            return
        match read_line(line):
            case Status() as status:
                self._news.progress(status)
            case Summary() as summary:
                self.summary = summary
            case (Unreadable(text) | LogLine(text)) as said:
                if isinstance(said, Unreadable):
                    self.unreadable += 1
                    if len(self.paths) < NAMED_PATHS:
                        self.paths.append(self._hide(said.path))
                for part in map(clipped, self._hide(text).splitlines()):
                    self._news.log(part)
                    if fd == 2:
                        self.stderr.append(part)


def discard(folder: Path) -> None:
    """Remove a folder of the agent's own with all that is in it, whatever its files' modes."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
