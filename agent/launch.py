"""The program between the agent and restic: it ties restic to the agent's life, and to the host's file system.

Run by the agent as `launch.py PID ROOT WITHIN PROGRAM [ARGUMENT …]`: the agent's process, the folder that becomes
restic's root, and a JSON list of the paths in which everything after `--` must lie. It needs nothing but the standard
library, for it runs without site-packages.

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


def main(agent: int, root: str, within: Sequence[str], argv: list[str]) -> None:
    """Become the program. Exits with a message where that is not to be."""
    program = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC)  # found by the agent in its own file system
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (1, 2):
        os.set_inheritable(os.open(f"/proc/self/fd/{number}", os.O_RDONLY), True)
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != agent:
        sys.exit("the agent ended before restic began")
    if root != "/":
        os.chroot(root)
        os.chdir("/")
    if within and (path := strayed(argv, within)):
        real = os.path.realpath(path)
        sys.exit(f"{path} leads to {real}, which is not granted to the Schedule's namespace: back up another path")
    if root == "/":
        os.execv(argv[0], argv)  # noqa: S606 - an argv list is what this is for
    os.execve(program, argv, os.environ)  # noqa: S606


def strayed(argv: Sequence[str], within: Sequence[str]) -> str:
    """The first path after `--` that leads out of what it must lie in, symbolic links followed; empty for none."""
    paths = argv[argv.index("--") + 1 :] if "--" in argv else ()
    granted = [os.path.realpath(prefix) for prefix in within]
    for path in paths:
        real = os.path.realpath(path)
        if not any(real == prefix or real.startswith(prefix.rstrip("/") + "/") for prefix in granted):
            return path
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:])
