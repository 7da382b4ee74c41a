"""A program that tells of files what they hold: `digest SETTINGS FILE …` writes one line of JSON for each.

`{"size", "mtime_ns", "ctime_ns", "sha256"}`, or null for what is no regular file, cannot be read, or changed while it
was. It is a program of its own so that the host's files are looked up below the host's root (chroot(2)), symbolic links
included, so that it is confined to what is granted, and so that it can be ended. SETTINGS: as `read_launch` reads it.
It needs nothing but the standard library.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Sequence

from agent.sandbox import confine, handles
from agent.sandbox.confine import enter, read_launch


def digest(path: str) -> dict[str, int | str] | None:
    """What one file holds. A pipe or a device in its place is not waited for."""
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
    enter(how)
    prefixes = handles.prefixes_of(how.within)
    confine.rules(how, prefixes, -1).enforce()
    for path in arguments[1:]:
        sys.stdout.write(json.dumps(digest(path)) + "\n")
