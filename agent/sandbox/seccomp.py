"""seccomp(2): denies changes of a file's mode, owner and attributes by path, which Landlock does not cover.

restic's local backend changes, by path, the mode of each file that it writes or removes in a repository; before it
removes one, to 0666 (restic's internal/backend/local). An attacker may have replaced that file by a link to any file of
the host. restic ignores the error when it cannot change a mode. Needs only the standard library.
"""

import ctypes
import re
import struct
from collections.abc import Iterable
from errno import EPERM

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | EPERM  # linux/seccomp.h
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # struct seccomp_data
_X32 = 0x40000000
"""The bit in call numbers of x86-64's second ABI, x32."""
_GENERIC = (5, 6, 14, 15, 53, 54, 452, 463, 466)
"""setxattr, lsetxattr, removexattr, lremovexattr, fchmodat, fchownat, fchmodat2, setxattrat, removexattrat."""
CALLS = {
    0xC000003E: (90, 92, 94, 188, 189, 197, 198, 260, 268, 452, 463, 466),  # x86-64
    0x40000003: (15, 16, 182, 198, 212, 226, 227, 235, 236, 298, 306, 452, 463, 466),  # i386
    0x40000028: (15, 16, 182, 198, 212, 226, 227, 235, 236, 325, 333, 452, 463, 466),  # arm
    0xC00000B7: _GENERIC,  # aarch64
    0xC00000F3: _GENERIC,  # riscv64
}
"""The numbers of these system calls, and of chmod, chown and lchown where they exist, by AUDIT_ARCH_*. Source: the
kernel's syscall tables (arch/*/entry/syscalls, asm-generic/unistd.h)."""
_MACHINES = re.compile(r"x86_64|i[3-6]86|arm.*|aarch64.*|riscv64")
"""The names that uname(2) gives the machines in CALLS."""


def knows(machine: str) -> bool:
    """Whether CALLS has the machine with this name of uname(2)."""
    return _MACHINES.fullmatch(machine) is not None


def deny_changes(*, strict: bool) -> None:
    """Deny this process, and every program that it executes, changing modes, owners and attributes by path.

    `strict`: deny a program for a machine that is not in CALLS every system call; otherwise it may make all. Raises
    OSError if the kernel has no seccomp.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(_program(strict))
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))  # struct sock_fprog
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program):
        raise OSError(ctypes.get_errno(), "seccomp: cannot deny changes of modes and owners")


def _program(strict: bool) -> Iterable[bytes]:
    """The filter, as instructions of linux/filter.h."""
    for architecture, numbers in CALLS.items():
        yield _step(_LOAD, _ARCHITECTURE_AT)
        yield _step(_JUMP_IF_EQUAL, architecture, otherwise=len(numbers) + 4)
        yield _step(_LOAD, _NUMBER_AT)
        yield _step(_JUMP_IF_AT_LEAST, _X32, then=len(numbers) + 1)
        for at, number in enumerate(numbers):
            yield _step(_JUMP_IF_EQUAL, number, then=len(numbers) - at)
        yield _step(_RETURN, _ALLOW)
        yield _step(_RETURN, _DENY)
    yield _step(_RETURN, _DENY if strict else _ALLOW)


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction: struct sock_filter."""
    return struct.pack("=HBBI", code, then, otherwise, value)
