"""restic's arguments where they are too many for a command line: its paths and patterns go into files.

A command line holds 2 MiB as Linux is set up, environment and all (execve(2)). Source: restic's manual, "Including and
Excluding Files", and its source (cmd/restic/exclude.go of 0.14, internal/filter/exclude.go since).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT = 64 << 10
"""Bytes of arguments from which on files are used."""
_EXCLUDE = "--exclude="


def by_files(args: Sequence[str], folder: Callable[[], Path], write: Callable[[str, bytes], None]) -> list[str]:
    """The arguments of a backup, with files in place of paths and patterns where they are long; others as they are.

    `folder`: where restic finds the files; `write`: writes one of this name there.
    """
    if args[:1] != ["backup"] or "--" not in args or sum(len(it.encode()) + 1 for it in args) < LIMIT:
        return list(args)
    at = args.index("--")
    patterns = [it.removeprefix(_EXCLUDE) for it in args[:at] if it.startswith(_EXCLUDE)]
    lines = [exclude_line(it) for it in patterns if "\n" not in it]
    write("paths", b"".join(path.encode() + b"\0" for path in args[at + 1 :]))
    write(
        "patterns", "".join(f"\n{line}" for line in lines).encode()
    )  # restic drops a byte order mark at the beginning
    rest = [it for it in args[:at] if not it.startswith(_EXCLUDE) or "\n" in it]
    return [*rest, f"--exclude-file={folder() / 'patterns'}", f"--files-from-raw={folder() / 'paths'}"]


def exclude_line(pattern: str) -> str:
    """The line of an exclude file that means what --exclude means with this pattern, which holds no line break.

    In a file, restic trims lines, leaves out those that begin with #, and puts in the environment's variables.
    """
    text = pattern.replace("$", "$$")
    if text != text.rstrip():
        head, last = text[:-1], text[-1]
        escaped = (len(head) - len(head.rstrip("\\"))) % 2 == 1
        text = f"{head[:-1] if escaped else head}[{last}]"
    if text[:1].isspace() or text.startswith("#"):
        text = f"[{text[0]}]{text[1:]}"
    return text
