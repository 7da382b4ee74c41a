"""The program between the agent and restic: it ties restic to the agent's life, and to the host's file system.

Run by the agent as `launch.py PID SETTINGS PROGRAM [ARGUMENT …]`: the agent's process, and a `Launch` as JSON. It needs
nothing but the standard library, for it runs without site-packages.

An agent that is killed cannot stop restic, and a job that nobody watches must not go on: the kernel interrupts restic
when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG = 1). Set here, since code after fork() in a process
with threads may deadlock (subprocess, preexec_fn). A program with file capabilities is exempt. The pipes to the agent
break with it, and a Go program that writes to a broken stdout or stderr is killed by SIGPIPE (os/signal), here before
it has removed its lock: so restic holds a reader of each itself.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

NOT_GRANTED, NOT_EMPTY, NOT_STARTED = 77, 73, 126
"""Exit codes of this program: EX_NOPERM and EX_CANTCREAT of sysexits.h, and the shell's. restic has none of them."""


class Launch(NamedTuple):
    """How a program is started. `root`: the folder that becomes its root.

    `own`: whether PROGRAM is the agent's, found in the agent's file system, or else the host's, found below `root`.
    `paths`: what must lead to somewhere in `within`, symbolic links followed, unless that is empty.
    `vacant`: a folder that must be empty or not there; "" for none.
    """

    root: str = "/"
    own: bool = True
    within: Sequence[str] = ()
    paths: Sequence[str] = ()
    vacant: str = ""


def main(agent: int, how: Launch, argv: list[str]) -> None:
    """Become the program. Exits with a message where that is not to be."""
    program = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC) if how.own else -1
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (1, 2):
        os.set_inheritable(os.open(f"/proc/self/fd/{number}", os.O_RDONLY), True)
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != agent:
        sys.exit("the agent ended before its program began")
    if how.root != "/":
        os.chroot(how.root)
        os.chdir("/")
    if path := strayed(how.paths, how.within):
        real = os.path.realpath(path)
        leave(NOT_GRANTED, f"{path} leads to {real}, which is not granted to the namespace: name another path")
    if how.vacant and (found := occupied(how.vacant)):
        leave(NOT_EMPTY, f"{how.vacant} {found}: name another folder, or allow to overwrite what is there")
    try:
        if how.root == "/" or not how.own:
            os.execv(argv[0], argv)  # noqa: S606 - an argv list is what this is for
        os.execve(program, argv, os.environ)  # noqa: S606
    except OSError as error:
        leave(NOT_STARTED, f"{argv[0]} cannot be run: {error.strerror}")


def strayed(paths: Sequence[str], within: Sequence[str]) -> str:
    """The first path that leads out of what it must lie in, symbolic links followed; empty for none."""
    granted = [os.path.realpath(prefix) for prefix in within]
    for path in paths if within else ():
        real = os.path.realpath(path)
        if not any(real == prefix or real.startswith(prefix.rstrip("/") + "/") for prefix in granted):
            return path
    return ""


def occupied(folder: str) -> str:
    """What keeps a folder from being written to as a new one; empty for nothing."""
    try:
        with os.scandir(folder) as found:
            return "is not empty" if next(found, None) else ""
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "is no folder"


def leave(code: int, message: str) -> NoReturn:
    """Exit with this code, and a message for people."""
    sys.stderr.write(message + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), Launch(**json.loads(sys.argv[2])), sys.argv[3:])
