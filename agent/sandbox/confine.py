"""What a job may reach of a host: as `launch` is told it, and as rules for the kernel.

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
"""Exit codes of this program: EX_NOPERM, EX_CANTCREAT and EX_CONFIG of sysexits.h, and the shell's. restic has none of
them."""
UNCONFINED = (
    "the kernel cannot confine restic, and the namespace is granted a part of this host only: boot Linux 5.13 or "
    "newer with Landlock turned on (it is named in /sys/kernel/security/lsm), or have the host's operator start the "
    "agent with --allow-unconfined"
)
CHANGES_MODES = (
    "restic cannot be kept from changing modes of files by their paths{}, which it does in a repository that is a"
    " folder, and the namespace is granted a part of this host only: have the Repository's spec.url name another"
    " storage (s3:, rest:), or have the host's operator start the agent with --allow-unconfined"
)
STAGE_FD = 100
STAGE = f"/proc/self/fd/{STAGE_FD}/new"
"""Where restic restores to, in its arguments. The link of proc(5) leads to the folder itself, whatever its name."""
SPECIAL = "set setuidAndDevices, where the whole host is granted, to have them"
"""The remedy for what a restore leaves out."""
PROGRAMS = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32"),
    *("/usr/local/bin", "/usr/local/lib", "/nix/store"),
)
"""Where restic, what it runs (ssh, rclone) and their libraries are."""
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
"""What they read: names, networks, time zones and certificate authorities; no keys, no passwords."""


class Launch(NamedTuple):
    """How a program is started. `root`: the folder that becomes its root.

    `own`: whether PROGRAM is the agent's, found in the agent's file system, or else the host's, found below `root`.
    `confined`: whether what follows counts; `unconfined`: whether names decide where the kernel cannot confine.
    `within`: what is granted; empty for the whole host. `paths`: what is read, which must lead to somewhere in that.
    `readable`: what the agent's operator lends. `private`: the agent's own folders, which are written to.
    `repository`: the folder that is one; "" for none; `create`: whether it is made.
    `target`: where a restore goes, which must lead to somewhere in `within`; "" for none. `vacant`: whether it must be
    empty or not there. `stage`: the name of the fresh folder that the restore is built in; "" where none is built.
    `parts`: the paths of the snapshot that are restored; `chosen`: whether they were asked for, or are all of it.
    `special`: whether setuid and setgid bits, file capabilities and devices come back.
    `restores`: whether it restores: then it may change modes and owners, and only reads a repository that is a folder.
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
    create: bool = False
    target: str = ""
    vacant: bool = False
    overwrite: bool = False
    stage: str = ""
    parts: Sequence[str] = ()
    chosen: bool = False
    special: bool = False
    restores: bool = False


def rules(how: Launch, prefixes: Sequence[Location], program: int) -> Ruleset:
    """The Landlock rules of a program. Raises StrayError for a path that is not granted."""
    ruleset = Ruleset()
    for path in how.paths:
        location = handles.granted(path, prefixes)
        if not location.rest:
            ruleset.allow(location.handle, READ)
        location.close()
    if how.repository and (folder := _repository(how, prefixes)) is not None:
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
        except OSError:  # each host has some of them
            continue
        ruleset.allow(fd, access)
        os.close(fd)
    return ruleset


def _repository(how: Launch, prefixes: Sequence[Location]) -> int | None:
    """A handle of the folder that is the repository, None where it is not there.

    Raises StrayError where something in it is a link, which would have it lie elsewhere as well.
    """
    path = handles.absolute(how.repository)
    if any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in how.within):
        location = handles.granted(path, prefixes)
    else:
        location = handles.locate(path)
        if how.within and (real := os.path.realpath(path)) != path:
            raise StrayError(f"{path} leads to {real}: have the Repository's spec.url name the folder itself")
    if location.rest and not how.create:
        return None
    folder = handles.make(location)
    with os.scandir(folder) as entries:
        linked = next((entry.name for entry in entries if entry.is_symlink()), None)
    if linked is not None:
        raise StrayError(
            f"{how.repository}/{linked} is a symbolic link: move what it leads to into the repository's own folder"
        )
    return folder


def leave(code: int, message: str) -> NoReturn:
    """Exit with this code, and a message for people."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(code)


def read_launch(argument: str) -> Launch:
    """How a program is started, from JSON, or from the file that holds it and that "@" precedes."""
    text = Path(argument[1:]).read_text(encoding="utf-8") if argument.startswith("@") else argument
    return Launch(**json.loads(text))


def enter(how: Launch) -> None:
    """Make the host's root the root of this process (chroot(2))."""
    if how.root != "/":
        os.chroot(how.root)
        os.chdir("/")


def die_with(parent: int) -> None:
    """Have the kernel interrupt this process when its parent ends; exits where the parent has ended already."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != parent:
        sys.exit("the agent ended before its program began")
