"""The program `stream PID SETTINGS FIFO COMPLETE PROGRAM [ARGUMENT …]`: runs a program whose output restic stores.

PID is the agent's process, SETTINGS a `Launch`. restic's own command is `cat FIFO COMPLETE`: it stores what it reads
from FIFO only if it can open COMPLETE, too (its manual, "Reading data from a command"). The file COMPLETE is made once
the program has succeeded, before FIFO is closed. So whatever fails or is killed, restic makes no snapshot of a part.

The program is no child of restic. It has neither the repository's credentials in its environment nor restic's
confinement, which could keep it from a socket or a configuration that it needs: it is one that the host's operator
allowed. It starts when restic reads, and not while restic waits for a lock.

Needs nothing but the standard library, since it runs without site-packages.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from agent.sandbox import priority
from agent.sandbox.confine import die_with, enter, read_launch
from agent.sandbox.launch import execute

_SIGNALLED = 128
"""Added to the number of the signal that ended the program, as a shell does, for the exit code."""


def main(arguments: Sequence[str]) -> None:
    """Run the program once restic reads, and exit with its exit code."""
    agent, how, fifo, complete, argv = int(arguments[0]), read_launch(arguments[1]), *arguments[2:4], arguments[4:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with(agent)
    priority.lower(how.nice, how.io_class)
    output = os.open(fifo, os.O_WRONLY)
    own = os.getpid()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is executed would
        die_with(own)
        os.dup2(output, 1)
        enter(how)
        execute(how, list(argv), -1)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if exit_code == 0:
        Path(complete).touch()
    os._exit(exit_code if exit_code >= 0 else _SIGNALLED - exit_code)
