"""The program between the agent and restic: it ties restic to the agent's life, and to what the job may reach.

Run by the agent as `launch PID SETTINGS PROGRAM [ARGUMENT …]`: the agent's process, and a `Launch`. It needs
nothing but the standard library, for it runs without site-packages.

An agent that is killed cannot stop restic, and a job that nobody watches must not go on: the kernel interrupts restic
when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG = 1). Set here, since code after fork() in a process
with threads may deadlock (subprocess, preexec_fn). A program with file capabilities is exempt. The pipes to the agent
break with it, and a Go program that writes to a broken stdout or stderr is killed by SIGPIPE (os/signal), here before
it has removed its lock: so restic holds a reader of each itself.

What a job may reach is held by the kernel (`landlock`, `seccomp`) and by `handles`: a symbolic link that is planted, or
a folder that is swapped, before or during the job leads nowhere else. Only names are looked at where the kernel cannot
confine and the whole host is granted, or the agent's operator allowed it.
"""

import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from agent.sandbox import confine, handles, landlock, seccomp, staging
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
    """Become the program, or restore by it. Exits with a message where that is not to be."""
    agent, how, argv = int(arguments[0]), read_launch(arguments[1]), list(arguments[2:])
    program = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC) if how.own else -1
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (1, 2):
        os.set_inheritable(os.open(f"/proc/self/fd/{number}", os.O_RDONLY), True)
    die_with(agent)
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
        leave(NOT_EMPTY, f"{how.target} {found}: name another folder, or allow to overwrite what is there")
    if how.stage and target is not None:
        staging.restore(how, prefixes, target, rules, partial(_restore, how, argv, program))
    rules.enforce()
    if how.repository and not how.restores:
        _keep_modes(how)
    execute(how, argv, program)


def _keep_modes(how: Launch) -> None:
    """Keep restic from changing modes: in a repository, others may have put a link in a file's place."""
    strict = bool(how.within) and not how.unconfined
    machine = os.uname().machine
    if strict and not seccomp.knows(machine):
        leave(NOT_CONFINED, CHANGES_MODES.format(f" on a machine of kind {machine}, but on x86, Arm and RISC-V only"))
    try:
        seccomp.deny_changes(strict=strict)
    except OSError:
        if strict:
            leave(NOT_CONFINED, CHANGES_MODES.format(", for the kernel has no seccomp"))


def execute(how: Launch, argv: list[str], program: int) -> NoReturn:
    """Become the program."""
    try:
        if how.root == "/" or not how.own:
            os.execv(argv[0], argv)  # noqa: S606 - an argv list is what this is for
        os.execve(program, argv, os.environ)  # noqa: S606
    except OSError as error:
        leave(NOT_STARTED, f"{argv[0]} cannot be run: {error.strerror}")


def _restore(how: Launch, argv: list[str], program: int, where: str) -> NoReturn:
    """Become restic, which restores into the folder `where`."""
    execute(how, [it.replace(STAGE, where) for it in argv], program)


def occupied(target: Location) -> str:
    """Why a target is not vacant; empty where it is."""
    try:
        return "is not empty" if not target.rest and handles.names(handles.readable(target.handle)) else ""
    except NotADirectoryError:
        return "is no folder"
