"""Hooks and backup.command: which programs of the host a job may run, and their environment.

The author of a Schedule may not be the operator of the host, so the agent runs a program only if the operator allowed
it. The program gets its arguments from the Schedule: to allow a shell is to allow every program.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from wire.messages import Hooks, JobEnd

When = Literal["before", "after"]

AFTER_STOP_S = 30.0
"""Seconds for the `after` hook of a job that was stopped or timed out: it must undo what the `before` hook did."""


class HookError(ValueError):
    """A program is not allowed on this host; the message says what to change."""


def check(hooks: Hooks, stdin_command: Sequence[str], allowed: Collection[str]) -> None:
    """Raises HookError for a program that is not in `allowed`, or is no absolute path."""
    programs = (
        ("spec.hooks.before", hooks.before, "the hook"),
        ("spec.hooks.after", hooks.after, "the hook"),
        ("spec.backup.command", stdin_command, "the command"),
    )
    for field, argv, what in programs:
        if argv and (argv[0] not in allowed or not argv[0].startswith("/")):
            raise HookError(
                f"{field} is not run: {argv[0]!r} is not allowed on this host: "
                f"start its agent with --allow-hook and the program's path, or remove {what}"
            )


def environment(host_env: Mapping[str, str], job_id: str, schedule: str, status: JobEnd | None) -> dict[str, str]:
    """The whole environment of a program. `status`: how the job ended; None before its end."""
    env = {name: host_env[name] for name in ("PATH", "HOME") if name in host_env}
    env |= {"LAMPLIGHTER_JOB": job_id, "LAMPLIGHTER_SCHEDULE": schedule}
    return env if status is None else {**env, "LAMPLIGHTER_STATUS": status}


def failure(when: When, argv: Sequence[str], exit_code: int | None) -> str:
    """The message for a hook that failed. `exit_code`: None if it did not end."""
    how = "did not end" if exit_code is None else f"ended with exit code {exit_code}"
    skipped = ": the job did not start; see its log" if when == "before" else ": see the job's log"
    return f"the hook {when} the job failed: {argv[0]} {how}{skipped}"


def command_failure(argv: Sequence[str], exit_code: int) -> str:
    """The message for a backup.command that failed."""
    return (
        f"spec.backup.command failed: {argv[0]} ended with exit code {exit_code}, so there is no snapshot: see the log"
    )
