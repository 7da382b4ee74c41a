"""Programs of the host around a job: which are allowed, and what they are told.

A Schedule's author need not be who runs the host, so a hook is run only where the host's operator named it to the
agent. It gets its arguments as they stand in the Schedule: one that runs what it is told (a shell) allows everything.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from wire.messages import Hooks, JobEnd

When = Literal["before", "after"]

AFTER_STOP_S = 30.0
"""Seconds for the hook after a job that was stopped or ran out of time: it must release what the one before took."""


class HookError(ValueError):
    """A hook is not allowed; the message says what to change."""


def check(hooks: Hooks, allowed: Collection[str]) -> None:
    """Raises HookError for a hook that the agent was not told to allow."""
    for when, argv in (("before", hooks.before), ("after", hooks.after)):
        if argv and (argv[0] not in allowed or not argv[0].startswith("/")):
            raise HookError(
                f"spec.hooks.{when} is not run: {argv[0]!r} is not allowed on this host: "
                "start its agent with --allow-hook and the program's path, or remove the hook"
            )


def environment(host_env: Mapping[str, str], job_id: str, schedule: str, status: JobEnd | None) -> dict[str, str]:
    """The whole environment of a hook. `status`: how the job ended, None before it."""
    env = {name: host_env[name] for name in ("PATH", "HOME") if name in host_env}
    env |= {"LAMPLIGHTER_JOB": job_id, "LAMPLIGHTER_SCHEDULE": schedule}
    return env if status is None else {**env, "LAMPLIGHTER_STATUS": status}


def failure(when: When, argv: Sequence[str], exit_code: int | None) -> str:
    """The error of a hook that failed. `exit_code`: None where it did not end."""
    how = "did not end" if exit_code is None else f"ended with exit code {exit_code}"
    skipped = ": the job was not begun; see its log" if when == "before" else ": see the job's log"
    return f"the hook {when} the job failed: {argv[0]} {how}{skipped}"
