"""What restic's exit code and stderr mean, and how long to wait before restic is tried again. No I/O.

Source: restic's manual, chapter "Scripting" (exit codes), and its source (cmd/restic/main.go), read for 0.14, 0.17,
0.18 and 0.19.
"""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from agent.restic.output import clipped
from agent.sandbox.confine import NOT_CONFINED, NOT_EMPTY, NOT_GRANTED, NOT_PLACED, NOT_WRITABLE
from wire.messages import JobReason

End = Literal[
    "succeeded",
    "warning",
    "failed",
    "no_repository",
    "repository_exists",
    "damaged",
    "locked",
    "wrong_password",
    "no_snapshot",
]
_REASONS: Mapping[End, JobReason] = {
    "no_repository": "NoRepository",
    "locked": "Locked",
    "wrong_password": "WrongPassword",
    "no_snapshot": "NoSnapshot",
}
_LAUNCH_REASONS: Mapping[int, JobReason] = {
    NOT_GRANTED: "NotGranted",
    NOT_EMPTY: "TargetNotEmpty",
    NOT_CONFINED: "NotConfined",
    NOT_PLACED: "",
    NOT_WRITABLE: "TargetNotWritable",
}


class Outcome(Struct, frozen=True):
    """How a job, or one program of it, ended. `error`: for people, with the remedy; empty when it succeeded."""

    end: End
    error: str = ""
    reason: JobReason = ""


class _Problem(Struct, frozen=True):
    """A known failure. `code`: its exit code, None if restic has none for it; `pattern`: its text on stderr."""

    end: End
    code: int | None
    pattern: re.Pattern[str]
    remedy: str


_PROBLEMS = (
    _Problem(
        "no_repository",
        10,  # before 0.17 every exit code but 0 and 3 is 1, and the text tells
        re.compile(r"unable to open config file: .*(does not exist|doesn't exist|no such file|not found|\b404\b)"),
        "there is no repository: set spec.init: true on the Repository, or create it with `restic init`",
    ),
    _Problem(
        "locked",
        11,
        re.compile(r"repository is already locked"),
        "the repository is locked: let the other job end; if none is running, run a Schedule of kind unlock",
    ),
    _Problem(
        "wrong_password",
        12,  # since 0.17.1
        re.compile(r"wrong password or no key found|an empty password is not"),
        "the password does not open the repository: correct the Secret that spec.passwordSecretRef names",
    ),
    _Problem(
        "no_snapshot",
        None,  # before 0.15 such a snapshot is ignored, which makes an empty list
        re.compile(r"no snapshot found|no matching ID found"),
        "there is no such snapshot: list the snapshots, and choose one of them",
    ),
    _Problem(
        "repository_exists",
        None,
        re.compile(r"config file already exists|config already initialized|already contains keys"),
        "the repository exists already",
    ),
    _Problem(
        "damaged",
        None,
        re.compile(r"config.* ciphertext verification failed"),
        "the repository's key or config is damaged. If it is new, two hosts created it at once: delete it, run again",
    ),
    _Problem(
        "failed",
        None,
        re.compile(r"no space left on device|disk quota exceeded"),
        "the disk of the repository or of the agent's cache is full: free space there",
    ),
    _Problem(
        "failed",
        None,
        re.compile(r"unable to open config file"),
        "the repository cannot be reached: check spec.url, the Secret that spec.envSecretRef names, and the network",
    ),
)
_SEVERITY = re.compile(r"(Fatal|panic|fatal error|Warning|error): ?.*")
_KERNEL_REASON = re.compile(
    r"no space left on device|quota exceeded|read-only file system|permission denied|input/output error"
)


NAMED_PATHS = 3
"""How many unreadable paths an error names."""
MAX_PATH = 80
"""Characters of each such path; a longer one is cut at its beginning."""


def read_outcome(
    exit_code: int | None,
    stderr: Sequence[str],
    unreadable: int = 0,
    paths: Sequence[str] = (),
    *,
    heard: Sequence[str] | None = None,
) -> Outcome:
    """The outcome of restic, from its exit code, the last lines of stderr, and the number of unreadable paths.

    `exit_code`: negative for the signal that ended the process, as in subprocess; None if even SIGKILL did not end it.
    `paths`: some of the unreadable paths. `heard`: the lines before secrets were taken out of them, which tell what is
    wrong and are not shown. A backup that left out paths is a warning, also before restic 0.19, which
    exits with 0. Source: restic's manual, "Exit codes": an unknown one "MUST be treated as a command failure".
    """
    said = _cause(stderr)
    if exit_code == 0 and not unreadable:
        return Outcome("succeeded")
    if exit_code in (0, 3):
        which = f": {named_paths(paths, unreadable)}" if paths else ""
        missing = f"{unreadable} paths could not be read and are not in the snapshot{which}" if unreadable else ""
        return Outcome("warning", clipped(missing or said or "restic exit code 3: not everything could be done"))
    if exit_code is None or exit_code < 0 or exit_code in (2, 130):
        return Outcome("failed", clipped(_with_cause(_crash(exit_code), said)))
    if (reason := _LAUNCH_REASONS.get(exit_code)) is not None:
        return Outcome("failed", clipped(stderr[-1] if stderr else reason), reason)
    text = "\n".join(stderr if heard is None else heard)
    for problem in _PROBLEMS:
        if exit_code == problem.code or (exit_code == 1 and problem.pattern.search(text)):
            return Outcome(problem.end, clipped(_with_cause(problem.remedy, said)), _REASONS.get(problem.end, ""))
    return Outcome("failed", clipped(_with_cause(f"restic exit code {exit_code}", said)))


def named_paths(paths: Sequence[str], count: int) -> str:
    """The first NAMED_PATHS of `count` paths, shortened, and how many more there are."""
    named = [" ".join(path.split()) for path in paths[:NAMED_PATHS]]
    more = count - len(named)
    short = ", ".join(path if len(path) <= MAX_PATH else f"…{path[1 - MAX_PATH :]}" for path in named)
    return f"{short} and {more} more" if more > 0 else short


def _crash(exit_code: int | None) -> str:
    if exit_code is None:
        return "restic did not end on SIGKILL, so it hangs in the kernel: check the host's disks and network mounts"
    if exit_code == 130:
        return "restic was interrupted by a signal that the agent did not send"
    if exit_code == 2:
        return "restic crashed: check the host's memory, and update restic"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = (
        ": check whether the host ran out of memory, or the agent reached its memory limit" if name == "SIGKILL" else ""
    )
    return f"restic was ended by {name}{hint}"


def _cause(stderr: Sequence[str]) -> str:
    """The most useful line of stderr: the first with a severity, else the first with the kernel's reason, else the
    last."""
    lines = [line for line in stderr if line.strip()]
    said = (line for matches in (_SEVERITY.fullmatch, _KERNEL_REASON.search) for line in lines if matches(line))
    return next(said, lines[-1] if lines else "")


def _with_cause(advice: str, said: str) -> str:
    return f"{advice} ({said})" if said else advice


CREATION_WAITS = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each attempt on a repository that another host may be creating."""
_FIRST_LOCK_WAIT_S, _LAST_LOCK_WAIT_S = 5.0, 60.0


def lock_waits(limit_s: float) -> Iterator[float]:
    """Seconds to wait before each attempt on a locked repository. They double, and add up to `limit_s`."""
    wait, left = _FIRST_LOCK_WAIT_S, limit_s
    while left > 0:
        yield min(wait, left)
        left -= wait
        wait = min(2 * wait, _LAST_LOCK_WAIT_S)
