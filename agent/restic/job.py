"""One running job: it starts restic, hooks and other programs, can be stopped, and knows how it ended."""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import cast

import msgspec

from agent.restic import process
from agent.restic.arguments import by_files
from agent.restic.context import JobContext, discard
from agent.restic.environment import (
    FILES_LENT,
    RepositoryError,
    copy_environment,
    local_folder,
    redactor,
    restic_environment,
)
from agent.restic.outcome import Outcome, lock_waits, read_outcome
from agent.restic.output import (
    MAX_LINE,
    Summary,
    clipped,
    printable,
)
from agent.restic.reporter import Reporter
from agent.restic.snapshots import SnapshotError
from agent.restic.transcript import Transcript
from agent.restic.verify import Digest
from agent.sandbox.confine import SPECIAL, STAGE, Launch
from wire.messages import CommandRun, JobEnd, JobFinished, JobReason, Repository

log = logging.getLogger(__name__)

MAX_ANSWER = 64 << 20
"""Bytes of one line of restic's answers: a list of about 100,000 snapshots is one line."""

_STOPPED: Mapping[JobEnd, str] = {
    "timed_out": "stopped at its time limit: raise spec.timeoutSeconds if the job needs longer",
    "cancelled": "cancelled while it ran",
    "interrupted": "the agent stopped while the job ran",
}
WINDOW_CLOSED = "stopped at the end of its window: it goes on in the next one"
"""The error of a job that `stopAtEnd` stopped."""
_LOCKED = "; until then it only waited for a lock of the repository"
_digests = msgspec.json.Decoder(Digest | None)

NO_FILES = Launch()
NO_SUMMARY = Summary("", 0, 0, 0)
"""The summary of a job for which restic gave none."""
_OWN_KEYS = (".ssh", ".aws", ".azure", ".config/gcloud", ".config/rclone", ".mc", ".minio")
"""Where, in a home folder, restic's backends look for keys and profiles."""


class Job:
    """One job. `outcome`: the outcome so far; None until a step that decides it has ended. `stopped`: why the job was
    stopped first; None if it was not. `redact`: removes the repository's secrets from a text. `repository_bytes`: what
    a prune left, None if restic did not say; `created`: whether restic has created the repository; `done_at`: when it
    had done the job's work.
    """

    def __init__(self, context: JobContext, command: CommandRun, reporter: Reporter) -> None:
        self._context = context
        self._timing = context.timing
        self.command = command
        self.reporter = reporter
        self.redact: Callable[[str], str] = str
        self._limit = asyncio.timeout(None)
        self.stopped: JobEnd | None = None
        self._work_is_over = False
        self._stop_reason: JobReason = ""
        self.outcome: Outcome | None = None
        self.exit_code: int | None = None
        self.summary = NO_SUMMARY
        self.repository_bytes: int | None = None
        self.created = False
        self.done_at: datetime | None = None
        self.url = ""
        self._env: Mapping[str, str] = {}
        self._source_url, self._source_env = "", self._env
        self._keys: list[str] = []
        self._work: str | None = None
        self._lock_waits = lock_waits(command.lock_wait_s)
        self._unlocked = self._awaits_lock = self._has_arguments = False

    def open(self, repository: Repository | None, source: Repository | None = None) -> None:
        """Prepare restic's environment and cache for the repository, and for `source`, which a copy reads from.

        Raises RepositoryError and OSError.
        """
        if repository is None:
            raise _no_credentials(self.command.repository)
        context = self._context
        lent = self.command.host_identity
        fps = 1 / context.timing.progress_s
        cache = context.cache_of(repository.id)
        env = restic_environment(repository, context.env, cache, fps, identity=lent)
        temp = str(self.folder("tmp"))
        # A confined job must not share TMPDIR with other programs, and below another root TMPDIR may not exist.
        if "TMPDIR" not in env or self.command.within or context.root != Path("/"):
            env["TMPDIR"] = temp
        env["HOME"] = context.env.get("HOME", "/root") if lent else str(self.folder("home"))
        context.begin_cache(cache)
        self._env, self.url = env, repository.url
        self.redact = redactor(repository)
        if self.command.from_repository:
            self._open_source(repository, source)

    def _open_source(self, repository: Repository, source: Repository | None) -> None:
        """Prepare restic's environment for a copy from another repository. Raises RepositoryError and OSError."""
        if source is None:
            raise _no_credentials(self.command.from_repository)
        context, redacted = self._context, (self.redact, redactor(source))
        cache = context.cache_of(f"{source.id} {repository.id}")  # restic has one for both
        keys = self.folder("keys")
        of_source = restic_environment(source, context.env, cache, identity=self.command.host_identity)
        files = []
        for name, it in (("to", repository), ("from", source)):
            (self._own("keys") / name).touch(0o600)
            (self._own("keys") / name).write_text(it.password, encoding="utf-8")
            files.append(str(keys / name))
        self._env = copy_environment(repository, source, self._env, of_source, files)
        opens_source = {"RESTIC_REPOSITORY": self._env["RESTIC_FROM_REPOSITORY"], "RESTIC_PASSWORD_FILE": files[1]}
        self._source_env = self._env | opens_source
        context.begin_cache(cache)
        self._source_url, self._keys = source.url, [str(keys)]
        self.redact = lambda text: redacted[1](redacted[0](text))

    @property
    def _opened(self) -> Path:
        """The file that exists once a job of this host has opened the repository at this URL."""
        which = f"{self.command.repository} {self.url}"
        return self._context.opened / hashlib.blake2b(which.encode(), digest_size=16).hexdigest()

    @property
    def was_opened(self) -> bool:
        """Whether this host has opened the repository before, by the file on its disk."""
        return self._opened.exists()

    def mark_opened(self) -> None:
        """Remember, on disk, that the repository exists."""
        _touch(self._opened)

    @property
    def counted_at(self) -> float:
        """When this host last counted the repository's snapshots, in seconds since 1970; 0 if it never did."""
        try:
            return self._counted.stat().st_mtime
        except OSError:
            return 0.0

    def mark_counted(self) -> None:
        """Remember, on disk, that its snapshots were counted now."""
        _touch(self._counted)

    @property
    def _counted(self) -> Path:
        return self._opened.with_suffix(".counted")

    def mark_created(self) -> None:
        """restic has created the repository."""
        self.created = True

    def mark_done(self, at: datetime) -> None:
        """restic has done the job's work."""
        self.done_at = at

    @property
    def lock_options(self) -> list[str]:
        """restic's options for locking in a restore: no lock in a repository that is a folder, if the grant has paths.

        restic changes a lock's mode by path, and a restore is allowed to change modes. A symbolic link in the lock's
        place would lead it to a file that is not granted.
        """
        return ["--no-lock"] if self.command.within and local_folder(self.url) else []

    async def restic(
        self,
        args: Sequence[str],
        answer: Callable[[bytes], None] | None = None,
        wanted: Launch = NO_FILES,
        expected: Collection[str] | None = None,
        *,
        may_lack: bool = False,
    ) -> Outcome:
        """Run restic. While the repository is locked, try again for the command's `lock_wait_s`.

        `wanted`: what restic may reach of the host, in addition to what every job may. `answer`: gets restic's lines on
        stdout. With it, restic answers a question, and only a failure becomes the job's outcome. Without it, restic
        does the job's work, and its outcome is the job's. `expected`: paths of devices that a restore leaves out on
        purpose: errors about them are no failure. `may_lack`: whether the repository may be missing, which is then no
        failure that the log shows.
        """
        args = by_files(args, lambda: self.folder("arguments"), self._write_argument)
        if self._has_arguments:
            wanted = wanted._replace(private=[*wanted.private, str(self.folder("arguments"))])
        how = self._launch(wanted)
        while True:
            outcome = await self._once(how, args, answer, expected, may_lack=may_lack)
            if outcome.end == "locked" and not self._unlocked:
                await self._unlock()
                continue
            wait = next(self._lock_waits, None) if outcome.end == "locked" else None
            if wait is None:
                return outcome
            self.outcome = None
            self.reporter.log(f"the repository is locked: trying again in {wait:g} s")
            self._awaits_lock = True
            await self.pause(wait)
            self._awaits_lock = False

    @contextmanager
    def at_source(self) -> Iterator[None]:
        """While this lasts, restic works in the repository that a copy reads from."""
        own, self._env = self._env, self._source_env
        try:
            yield
        finally:
            self._env, self._unlocked = own, False

    async def ask(self, args: Sequence[str]) -> bytes:
        """restic's answer to a question beside the job's work, whose outcome stays. Raises SnapshotError, OSError."""
        lines: list[bytes] = []
        outcome, exit_code = self.outcome, self.exit_code
        try:
            ended = await self.restic(args, lines.append)
        finally:
            self.outcome, self.exit_code = outcome, exit_code
        if ended.end != "succeeded":
            raise SnapshotError(ended.error)
        return b"".join(lines)

    def _write_argument(self, name: str, content: bytes) -> None:
        self._has_arguments = True
        self.folder("arguments")
        (self._own("arguments") / name).write_bytes(content)

    async def _unlock(self) -> None:
        """Remove stale locks, once in a job.

        restic regards a lock as stale when its process ran on this host and has ended, or when the lock was not renewed
        for half an hour.
        """
        self._unlocked = True
        self.reporter.log("the repository is locked: removing stale locks")
        await self._once(self._launch(NO_FILES), ["unlock"], lambda line: None, None)
        self.outcome = None

    def folder(self, name: str) -> Path:
        """A folder of this job, as restic sees it. `close` removes it."""
        if self._work is None:
            self._context.scratch.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(dir=self._context.scratch)).name
        self._own(name).mkdir(exist_ok=True)
        return self._context.scratch_dir / self._work / name

    def _own(self, name: str) -> Path:
        """A path in this job's folder, as the agent sees it."""
        return self._context.scratch / (self._work or "") / name

    def close(self) -> None:
        """Remove the job's folders."""
        if self._work is not None:
            discard(self._context.scratch / self._work)

    @asynccontextmanager
    async def restoring(self, wanted: Launch) -> AsyncIterator[None]:
        """Around a restore: remove its staging folder at the end, or, after a kill, when the agent starts again."""
        note = self._context.notes / wanted.stage
        self._context.notes.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(self._launch(wanted)._asdict()))
        try:
            yield
        finally:
            await process.run(process.python("staging", f"@{note}"), {}, lambda fd, line: None, lambda exit_code: None)
            note.unlink(missing_ok=True)

    def _launch(self, wanted: Launch) -> Launch:
        """How a program of this job is started. `wanted`: what it may reach of the host."""
        context = self._context
        own = [self._env["RESTIC_CACHE_DIR"], self._env["TMPDIR"]]
        lent = [self._env[name] for name in FILES_LENT if name in self._env]
        home = Path(self._env["HOME"])
        keys = [home / name for name in _OWN_KEYS] if self.command.host_identity else [home]
        return wanted._replace(
            root=str(context.root),
            confined=True,
            unconfined=context.allow_unconfined,
            within=self.command.within,
            readable=[*lent, *map(str, keys)],
            repository=local_folder(self.url),
            source=local_folder(self._source_url),
            private=[*own, *self._keys, *wanted.private],
            nice=self.command.nice,
            io_class=self.command.io_class,
        )

    async def _once(
        self,
        how: Launch,
        args: Sequence[str],
        answer: Callable[[bytes], None] | None,
        expected: Collection[str] | None,
        *,
        may_lack: bool = False,
    ) -> Outcome:
        program = shutil.which(self._context.program, path=self._env.get("PATH"))
        if program is None:
            remedy = "install restic, or start the agent with --restic and its path"
            raise FileNotFoundError(f"restic was not found as {self._context.program!r}: {remedy}")
        transcript = Transcript(
            self.reporter,
            lambda text: self.redact(text.replace(STAGE, how.target)),
            answer,
            expected,
            holds_fatal=may_lack,
        )
        outcome = Outcome("failed")

        def ended(exit_code: int | None) -> None:
            nonlocal outcome
            if exit_code == 1 and transcript.all_expected:
                exit_code = 0
            outcome = read_outcome(
                exit_code, transcript.stderr, transcript.unreadable, transcript.paths, heard=transcript.heard
            )
            self.exit_code = exit_code
            if outcome.end != "no_repository":
                transcript.release()
            if transcript.capabilities:
                self.reporter.log(f"left out: capabilities of {transcript.capabilities} files: {SPECIAL}")
            self.summary = transcript.summary or self.summary
            self.repository_bytes = self.repository_bytes if transcript.remaining is None else transcript.remaining
            if answer is None or outcome.end != "succeeded":
                self.outcome = outcome

        argv = process.launched(how, [program, *self.command.options, *args], self._own("launch.json"))
        max_line = MAX_LINE if answer is None else MAX_ANSWER
        grace_s = self._timing.grace_s
        await process.run(argv, self._env, transcript.take, ended, grace_s=grace_s, max_line=max_line)
        return outcome

    async def hook(self, argv: Sequence[str], env: Mapping[str, str]) -> int | None:
        """Run a program of the host, with its output in the job's log. Returns its exit code; None if it did not
        end."""
        codes: list[int | None] = []
        how = Launch(str(self._context.root), own=False)
        await process.run(process.launched(how, argv), env, self._log_line, codes.append, grace_s=self._timing.grace_s)
        return codes[0]

    @property
    def stream(self) -> tuple[Path, Path]:
        """The FIFO through which restic reads what a program prints, and the file that says that it is complete, as
        restic sees them. See `agent.sandbox.stream`."""
        folder = self.folder("stream")
        if not (fifo := self._own("stream") / "output").exists():
            os.mkfifo(fifo, 0o600)
        return folder / "output", folder / "complete"

    async def feed(self, argv: Sequence[str], env: Mapping[str, str], ended: Callable[[int | None], None]) -> None:
        """Run a program of the host as soon as restic reads its output, with its stderr in the job's log.

        `ended`: gets its exit code, as `process.run` has it.
        """
        its = self.command
        launch = Launch(str(self._context.root), own=False, nice=its.nice, io_class=its.io_class)
        how = json.dumps(launch._asdict())
        files = [str(self._context.as_seen(it)) for it in self.stream]
        program = process.python("stream", str(os.getpid()), how, *files, *argv)
        await process.run(program, env, self._log_line, ended, grace_s=self._timing.grace_s)

    def _log_line(self, _: int, line: bytes) -> None:
        """Put a line of a program of the host into the job's log."""
        if text := printable(line):
            self.reporter.log(clipped(self.redact(text)))

    async def digests(self, files: Sequence[str]) -> list[Digest | None]:
        """The digests of files of the host, in order; None for a file that cannot be read."""
        lines: list[bytes] = []

        def take(fd: int, line: bytes) -> None:
            if fd == 1:
                lines.append(line)

        how = self._launch(Launch(paths=self.command.within, private=[str(self.folder("restored"))]))
        note = self._own("digest.json")
        note.write_text(json.dumps(how._asdict()))
        argv = process.python("digest", f"@{note}", *files)
        await process.run(argv, {}, take, lambda exit_code: None, grace_s=self._timing.grace_s)
        found = [_digests.decode(line) for line in lines]
        return found + [None] * (len(files) - len(found))

    @asynccontextmanager
    async def limited(self, until: float | None) -> AsyncIterator[None]:
        """Around a part of the job: cancel it at `until` (in the loop's time) or at a stop; its errors fail the job."""
        try:
            async with asyncio.timeout_at(until) as self._limit:
                yield
        except TimeoutError:
            self.stopped = self.stopped or "timed_out"
        except SnapshotError as error:
            self.fail(str(error), "NoSnapshot")
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the arguments
            self.fail(self._context.explain(error))

    def stop(self, status: JobEnd, reason: JobReason = "") -> None:
        """Stop the job with this status, and for this reason. Only the first stop counts, and none does after the time
        limit. A window that closes does not stop what comes after the work."""
        if self.stopped is None and not self._limit.expired() and not (reason == "WindowClosed" and self._work_is_over):
            self.stopped, self._stop_reason = status, reason
            self._limit.reschedule(asyncio.get_running_loop().time())

    def end_work(self) -> None:
        """At most a count, and the hook after the work, are left."""
        self._work_is_over = True

    async def pause(self, seconds: float) -> None:
        """Wait before restic is tried again."""
        await self._timing.sleep(seconds)

    def conclude(self, outcome: Outcome | None) -> None:
        """Set the outcome; None if the step that decides it is still to come."""
        self.outcome = outcome

    def summarise(self, summary: Summary) -> None:
        """Report this summary in place of restic's."""
        self.summary = summary

    def fail(self, error: str, reason: JobReason = "") -> None:
        """Set the outcome to a failure."""
        self.outcome = Outcome("failed", clipped(self.redact(error)), reason)

    def hook_failed(self, error: str) -> None:
        """A hook failed: before the work, the job fails; after it, a success becomes a warning."""
        if self.outcome is None:
            self.reporter.log(clipped(self.redact(error)))
            self.fail(error, "HookFailed")
        else:
            self.warn(error, "HookFailed")

    def warn(self, error: str, reason: JobReason = "") -> None:
        """Turn a success into a warning with this error."""
        error = clipped(self.redact(error))
        self.reporter.log(error)
        if self.outcome is not None and self.outcome.end in ("succeeded", "warning"):
            said = f"{self.outcome.error}; {error}" if self.outcome.error else error
            self.outcome = Outcome("warning", clipped(said), reason or self.outcome.reason)

    def status(self) -> JobEnd:
        """How the job ended."""
        if self.outcome is not None and self.outcome.end in ("succeeded", "warning"):
            return cast(JobEnd, self.outcome.end)
        return self.stopped or "failed"

    def finished(self, end: "JobFinished") -> JobFinished:
        """The end of the job for the server. `end`: gives the job's id and times."""
        status, summary, ended = self.status(), self.summary, self.outcome or Outcome("failed")
        ran_to_end = status in ("succeeded", "warning", "failed")
        return msgspec.structs.replace(
            end,
            status=status,
            exit_code=self.exit_code,
            snapshot_id=summary.snapshot_id,
            files_processed=summary.files_processed,
            bytes_processed=summary.bytes_processed,
            bytes_added=summary.bytes_added,
            bytes_stored=summary.bytes_stored,
            repository_bytes=self.repository_bytes,
            created=self.created,
            done_at=self.done_at,
            error=ended.error if ran_to_end else self._why_stopped(status) + _LOCKED * self._awaits_lock,
            reason=ended.reason if ran_to_end else self._stop_reason or ("Locked" if self._awaits_lock else ""),
        )

    def _why_stopped(self, status: JobEnd) -> str:
        return WINDOW_CLOSED if self._stop_reason == "WindowClosed" else _STOPPED.get(status, "")


def _no_credentials(repository_id: str) -> RepositoryError:
    return RepositoryError(
        f"no credentials for repository {repository_id!r}: check that it and its Secrets exist, "
        "and that the Schedule's status shows no problem with it"
    )


def _touch(mark: Path) -> None:
    with suppress(OSError):  # the job is done all the same; the next one marks it
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
