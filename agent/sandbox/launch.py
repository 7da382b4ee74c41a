"""The program `launch PID SETTINGS PROGRAM [ARGUMENT …]`: confines restic, and has it end with the agent.

PID is the agent's process, SETTINGS a `Launch`. It needs only the standard library, since it runs without
site-packages.

A killed agent cannot stop restic, and a job must not go on without its agent. So the kernel sends restic SIGINT when
the thread that started it ends (prctl(2), PR_SET_PDEATHSIG = 1). This is set here, since code after fork() in a process
with threads may deadlock (subprocess, preexec_fn). A program with file capabilities is exempt. The pipes to the agent
break with the agent, and a write to a broken stdout or stderr kills a Go program by SIGPIPE (os/signal), which would be
before restic removes its lock. So restic itself holds a reader of each pipe.

The kernel (`landlock`, `seccomp`) and `handles` keep the job to its grant, even if a symbolic link is planted or a
folder is swapped before or during the job. Only paths are checked, once, if the kernel cannot confine and either the
whole host is granted or the agent's operator allowed it.
"""

import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from agent.sandbox import confine, handles, landlock, priority, seccomp, staging
from agent.sandbox.confine import (
    CHANGES_MODES,
    NOT_CONFINED,
    NOT_EMPTY,
    NOT_GRANTED,
    NOT_STARTED,
    STAGE,
    UNCONFINED,
    Launch,
    die_with,
    enter,
    leave,
    read_launch,
)
from agent.sandbox.handles import Location, StrayError


def main(arguments: Sequence[str]) -> None:
    """Confine this process and become the program, or restore through `staging`. Exits with a message if not
    allowed."""
    agent, how, argv = int(arguments[0]), read_launch(arguments[1]), list(arguments[2:])
    program = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC) if how.own else -1
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (1, 2):
        os.set_inheritable(os.open(f"/proc/self/fd/{number}", os.O_RDONLY), True)
    die_with(agent)
    priority.lower(how.nice, how.io_class)
    enter(how)
    if not how.confined:
        execute(how, argv, program)
    if how.within and not how.unconfined and not landlock.abi():
        leave(NOT_CONFINED, UNCONFINED)
    try:
        prefixes = handles.prefixes_of(how.within)
        target = handles.granted(how.target, prefixes) if how.target else None
        rules = confine.rules(how, prefixes, program)
    except StrayError as error:
        leave(NOT_GRANTED, str(error))
    if how.vacant and target is not None and (found := occupied(target)):
        leave(NOT_EMPTY, f"{how.target} {found}: choose another folder, or set overwrite")
    if how.stage and target is not None:
        staging.restore(
            how, prefixes, target, rules, lambda where: execute(how, [it.replace(STAGE, where) for it in argv], program)
        )
    rules.enforce()
    if (how.repository or how.source) and not how.restores:
        _keep_modes(how)
    execute(how, argv, program)


def _keep_modes(how: Launch) -> None:
    """Keep restic from changing modes by path: in a repository, others may have replaced a file by a link."""
    strict = bool(how.within) and not how.unconfined
    machine = os.uname().machine
    if strict and not seccomp.knows(machine):
        leave(NOT_CONFINED, CHANGES_MODES.format(f" on a machine of kind {machine} (only on x86, Arm and RISC-V)"))
    try:
        seccomp.deny_changes(strict=strict)
    except OSError:
        if strict:
            leave(NOT_CONFINED, CHANGES_MODES.format(" without seccomp"))


def execute(how: Launch, argv: list[str], program: int) -> NoReturn:
    """Become the program."""
    try:
        if how.root == "/" or not how.own:
            os.execv(argv[0], argv)  # noqa: S606 - it is an argv list
        os.execve(program, argv, os.environ)  # noqa: S606
    except OSError as error:
        leave(NOT_STARTED, f"{argv[0]} cannot be run: {error.strerror}")


def occupied(target: Location) -> str:
    """Why a target is not vacant; empty if it is."""
    try:
        return "is not empty" if not target.rest and handles.names(handles.readable(target.handle)) else ""
    except NotADirectoryError:
        return "is no folder"
