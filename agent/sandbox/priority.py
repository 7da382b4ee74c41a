"""Lowers the priority of a job's programs: setpriority(2) and ioprio_set(2). Needs only the standard library."""

import ctypes
import os
import sys

_CALLS = {"x86_64": 251, "i386": 289, "i686": 289, "aarch64": 30, "riscv64": 30, "armv7l": 314, "ppc64le": 273}
"""The number of ioprio_set by the machine's name of uname(2), since the C library has no function for it. Source: the
kernel's syscall tables (arch/*/entry/syscalls, asm-generic/unistd.h)."""
CLASSES = {"BestEffort": (2 << 13) | 7, "Idle": 3 << 13}
"""Class and level: BestEffort has the lowest of its eight levels; Idle has none (linux/ioprio.h)."""
_THIS_PROCESS = 1  # IOPRIO_WHO_PROCESS, with 0 for the calling one


def lower(nice: int, io_class: str) -> None:
    """Lower the priority of this process and of those that it starts.

    `nice`: 0 to 19, added to its own. `io_class`: one of CLASSES, or "" to leave it. Where the kernel refuses, a line
    on stderr says so: the job is worth more than its priority.
    """
    if nice:
        os.nice(nice)
    if io_class and (why := _set_io_class(io_class)):
        sys.stderr.write(f"spec.ioClass {io_class} has no effect on this host: {why}\n")
        sys.stderr.flush()


def _set_io_class(io_class: str) -> str:
    """Set the class. Returns why it is not set; empty when it is."""
    machine = os.uname().machine
    if io_class not in CLASSES:
        return "its agent does not know this class"
    if machine not in _CALLS:
        return f"its agent cannot set it on a machine of kind {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CALLS[machine], _THIS_PROCESS, 0, CLASSES[io_class]) == 0:
        return ""
    return f"the kernel does not allow it ({os.strerror(ctypes.get_errno())})"
