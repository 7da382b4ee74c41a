"""What a job may reach of a host: as settings for `launch`, and as rules for the kernel.

Needs nothing but the standard library.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from agent.sandbox import handles
from agent.sandbox.handles import Location, StrayError
from agent.sandbox.landlock import READ, RESTORE, RUN, STORE, Ruleset

NOT_GRANTED, NOT_EMPTY, NOT_CONFINED, NOT_STARTED = 77, 73, 78, 126
NOT_PLACED, NOT_WRITABLE = 74, 76
"""Exit codes of `launch`, from sysexits.h (EX_NOPERM, EX_CANTCREAT, EX_CONFIG, EX_IOERR, EX_PROTOCOL) and, for
NOT_STARTED, from the shell. restic uses none of them."""
UNCONFINED = (
    "the kernel cannot confine restic, and the namespace is granted only a part of this host: boot Linux 5.13 or "
    "newer with Landlock enabled (/sys/kernel/security/lsm then lists it), or have the host's operator start the agent "
    "with --allow-unconfined"
)
CHANGES_MODES = (
    "the kernel cannot keep restic from changing modes of files by path{}, as restic does in a repository that is a "
    "folder, and the namespace is granted only a part of this host: set the Repository's spec.url to another storage "
    "(s3:, rest:), or have the host's operator start the agent with --allow-unconfined"
)
STAGE_FD = 100
STAGE = f"/proc/self/fd/{STAGE_FD}/new"
"""The target in restic's arguments. This link of proc(5) leads to the folder itself, even after a rename."""
SPECIAL = "set setuidAndDevices, which needs a grant for the whole host, to restore them"
"""The remedy for setuid bits, capabilities and devices that a restore left out."""
PROGRAMS = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32"),
    *("/usr/local/bin", "/usr/local/lib", "/nix/store"),
)
"""Folders of restic, the programs that it runs (ssh, rclone), and their libraries."""
FILES = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf"),
    *("/etc/services", "/etc/protocols", "/etc/passwd", "/etc/group", "/etc/localtime", "/usr/share/zoneinfo"),
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem"),
    *("/etc/pki/ca-trust/extracted", "/etc/ca-certificates/extracted", "/var/lib/ca-certificates"),
    *("/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/etc/crypto-policies"),
    *("/etc/ssh/ssh_config", "/etc/ssh/ssh_config.d", "/etc/ssh/ssh_known_hosts", "/usr/share/crypto-policies"),
    *("/etc/mime.types", "/usr/share/mime", "/dev/urandom", "/dev/random", "/dev/zero"),
)
"""Files that these programs read: names, networks, time zones and certificates; no keys, no passwords."""


class Launch(NamedTuple):
    """How a program is started, and what it may reach.

    - `root`: the folder that becomes its root (chroot(2)).
    - `own`: whether the program is in the agent's file system; otherwise it is found below `root`.
    - `confined`: whether to confine it; the fields below apply only then.
    - `unconfined`: whether a job with `within` may run, with only paths checked, where the kernel cannot confine it.
    - `within`: the granted paths; empty for the whole host.
    - `paths`: paths that it reads; they must resolve to somewhere in `within`.
    - `readable`: files that the agent's operator gave it. `private`: folders of the agent that it may write to.
    - `repository`: the folder that is the repository, "" if there is none. `create`: whether to create that folder.
    - `source`: the folder that is the repository which a copy reads from, "" if there is none.
    - `target`: where a restore goes, in `within`; "" if it is no restore. `vacant`: whether the target must be empty or
      missing. `overwrite`: whether files there may be replaced.
    - `stage`: the name of the staging folder; "" to restore without one.
    - `parts`: the paths of the snapshot to restore. `chosen`: whether the user chose them; otherwise they are all of
      it.
    - `special`: whether to restore setuid and setgid bits, file capabilities and devices.
    - `restores`: whether it restores. Then it may change modes and owners, and with `within` it only reads a repository
      that is a folder.
    - `nice`, `io_class`: see `priority.lower`.
    """

    root: str = "/"
    own: bool = True
    confined: bool = False
    unconfined: bool = False
    within: Sequence[str] = ()
    paths: Sequence[str] = ()
    readable: Sequence[str] = ()
    private: Sequence[str] = ()
    repository: str = ""
    source: str = ""
    create: bool = False
    target: str = ""
    vacant: bool = False
    overwrite: bool = False
    stage: str = ""
    parts: Sequence[str] = ()
    chosen: bool = False
    special: bool = False
    restores: bool = False
    nice: int = 0
    io_class: str = ""


def rules(how: Launch, prefixes: Sequence[Location], program: int) -> Ruleset:
    """The Landlock rules of a program, which is an open file, or -1. Raises StrayError for a path that is not
    granted."""
    ruleset = Ruleset()
    for path in how.paths:
        location = handles.granted(path, prefixes)
        if not location.rest:
            ruleset.allow(location.handle, READ)
        location.close()
    for path, create in ((how.repository, how.create), (how.source, False)):
        if path and (folder := _repository(how, path, prefixes, create=create)) is not None:
            ruleset.allow(folder, READ if how.restores and how.within else STORE)
    if program >= 0:
        ruleset.allow(program, RUN)
    lent = (
        *((path, RUN) for path in (PROGRAMS if how.within else ("/",))),
        *((path, READ) for path in (*FILES, *how.readable)),
        *((path, RESTORE) for path in how.private),
        ("/dev/null", STORE),
    )
    for path, access in lent:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # no host has all of them
            continue
        ruleset.allow(fd, access)
        os.close(fd)
    return ruleset


def _repository(how: Launch, where: str, prefixes: Sequence[Location], *, create: bool) -> int | None:
    """A handle of a repository's folder; None if it is missing and must not be created.

    Raises StrayError if the folder is not granted or if an entry in it is a link, which would lead out of it.
    """
    path = handles.absolute(where)
    if any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in how.within):
        location = handles.granted(path, prefixes)
    else:
        location = handles.locate(path)
        if how.within and (real := os.path.realpath(path)) != path:
            raise StrayError(f"{path} leads to {real}: set the Repository's spec.url to that folder")
    if location.rest and not create:
        return None
    folder = handles.make(location)
    with os.scandir(folder) as entries:
        linked = next((entry.name for entry in entries if entry.is_symlink()), None)
    if linked is not None:
        raise StrayError(f"{where}/{linked} is a symbolic link: replace it by the files or folder that it points to")
    return folder


def leave(code: int, message: str) -> NoReturn:
    """Exit with this code and a message on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(code)


def read_launch(argument: str) -> Launch:
    """Read a Launch from JSON, or, after "@", from the file with this name."""
    text = Path(argument[1:]).read_text(encoding="utf-8") if argument.startswith("@") else argument
    return Launch(**json.loads(text))


def enter(how: Launch) -> None:
    """Make `root` the root of this process (chroot(2))."""
    if how.root != "/":
        os.chroot(how.root)
        os.chdir("/")


def die_with(parent: int) -> None:
    """Have the kernel send SIGINT when the parent ends (prctl(2)). Exits if the parent has ended already."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != parent:
        sys.exit("the agent ended before its program started")
