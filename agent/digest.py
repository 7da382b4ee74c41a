"""A program that tells of files what they hold: `digest.py ROOT FILE …` writes one line of JSON for each.

`{"size", "mtime_ns", "ctime_ns", "sha256"}`, or null for what is no regular file, cannot be read, or changed while it
was. It is a program of its own so that the host's files are looked up below ROOT (chroot(2)), symbolic links included,
and so that it can be ended. It needs nothing but the standard library.
"""

import hashlib
import json
import os
import stat
import sys


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


def main(root: str, paths: list[str]) -> None:
    """Write a line for each file, in order."""
    if root != "/":
        os.chroot(root)
    for path in paths:
        sys.stdout.write(json.dumps(digest(path)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
