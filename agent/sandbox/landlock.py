"""Landlock: limits which files this process, and every program that it executes, may open and change.

Needs only the standard library. Sources: landlock(7), linux/landlock.h, and, for what each ABI added,
Documentation/userspace-api/landlock.rst. Landlock does not cover stat, chmod, chown, xattr and utime (the same page,
"Filesystem flags"), so other means must keep a confined program from using those on files that are not granted.
"""

import ctypes
import os
import stat
import struct
from enum import IntFlag

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_NET_BIND_TCP, _SCOPE_ABSTRACT_UNIX_SOCKET = 1, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Access(IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
RUN = READ | Access.EXECUTE
STORE = (
    READ
    | (Access.WRITE_FILE | Access.TRUNCATE | Access.REMOVE_DIR | Access.REMOVE_FILE)
    | (Access.MAKE_DIR | Access.MAKE_REG | Access.REFER)
)
"""Read, write and remove files and folders."""
RESTORE = STORE | Access.MAKE_SYM | Access.MAKE_FIFO | Access.MAKE_SOCK
DEVICES = Access.MAKE_CHAR | Access.MAKE_BLOCK
_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def abi() -> int:
    """The ABI version of the kernel's Landlock, 1 or more; 0 if it has none or it is disabled."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)))


def handled(version: int) -> Access:
    """The rights on files that an ABI version can deny. Versions after 5 add none."""
    known = Access((1 << 13) - 1 if version else 0)
    if version >= 2:
        known |= Access.REFER
    if version >= 3:
        known |= Access.TRUNCATE
    return known | Access.IOCTL_DEV if version >= 5 else known


class Ruleset:
    """What is allowed. Landlock denies the rest of what it covers; where `abi()` is 0, it denies nothing. Raises
    OSError.

    Always denied, from the ABI version in brackets on: to listen on a TCP port (4), and to connect to an abstract
    socket of a process outside (6). Signals are allowed: restic sends one to find out whether a lock's process is
    alive, and would otherwise regard all locks as stale (restic's internal/restic/lock_unix.go).
    """

    def __init__(self) -> None:
        version = abi()
        self._handled = handled(version)
        parts = (self._handled, *[_NET_BIND_TCP] * (version >= 4), *[_SCOPE_ABSTRACT_UNIX_SOCKET] * (version >= 6))
        attr = struct.pack(f"={len(parts)}Q", *parts)  # struct landlock_ruleset_attr, as long as this ABI has it
        self._fd = version and _checked(_libc.syscall(_CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), 0))

    def allow(self, fd: int, access: Access) -> None:
        """Allow `access` to an open file, or to all below an open folder. A symbolic link is skipped."""
        mode = os.fstat(fd).st_mode
        if self._handled and not stat.S_ISLNK(mode):
            allowed = access & self._handled & (~Access(0) if stat.S_ISDIR(mode) else _OF_FILES)
            attr = struct.pack("=Qi", allowed, fd)  # struct landlock_path_beneath_attr
            _checked(_libc.syscall(_ADD_RULE, self._fd, _RULE_PATH_BENEATH, attr, 0))

    def enforce(self) -> None:
        """Confine this process for good. From then on, executing a setuid program gives no privileges
        (no_new_privs)."""
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        if self._handled:
            _checked(_libc.syscall(_RESTRICT_SELF, self._fd, 0))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
