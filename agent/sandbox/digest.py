"""The program `digest SETTINGS FILE …`: writes the size, times and SHA-256 of each file as a line of JSON.

A line is `{"size", "mtime_ns", "ctime_ns", "sha256"}`; or null if it is no regular file, cannot be read, or changed
while it was read. As a program of its own it can change its root (chroot(2)), so that the host's symbolic links resolve
below the host's root; it can be confined to the grant; and it can be killed. SETTINGS: see `read_launch`. It needs only
the standard library.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Sequence

from agent.sandbox import confine, handles, priority
from agent.sandbox.confine import enter, read_launch


def digest(path: str) -> dict[str, int | str] | None:
    """Size, times and SHA-256 of one regular file; None otherwise. It does not block on a pipe or a device."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                return None
            content = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError:
        return None
    facts = {"size": after.st_size, "mtime_ns": after.st_mtime_ns, "ctime_ns": after.st_ctime_ns}
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != tuple(facts.values()):
        return None
    return {**facts, "sha256": content}


def main(arguments: Sequence[str]) -> None:
    """Write a line for each file, in order."""
    how = read_launch(arguments[0])
    priority.lower(how.nice, how.io_class)
    enter(how)
    prefixes = handles.prefixes_of(how.within)
    confine.rules(how, prefixes, -1).enforce()
    for path in arguments[1:]:
        sys.stdout.write(json.dumps(digest(path)) + "\n")
