"""Moves restic's paths and patterns into files when they are too long for a command line.

Linux limits arguments and environment to 2 MiB together (execve(2)). Source: restic's manual, "Including and Excluding
Files", and its source (cmd/restic/exclude.go of 0.14, internal/filter/exclude.go since).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT = 64 << 10
"""Bytes of arguments above which files are used."""
_PATTERNS = {"--exclude=": ("--exclude-file", "patterns"), "--iexclude=": ("--iexclude-file", "ipatterns")}
"""Options with a pattern, each with restic's option for a file of such patterns, and that file's name."""


def by_files(args: Sequence[str], folder: Callable[[], Path], write: Callable[[str, bytes], None]) -> list[str]:
    """The arguments, with files in place of the paths and patterns of a backup when they are longer than LIMIT.

    `folder`: the files' folder, as restic sees it. `write`: writes a file with this name and content there.
    """
    reads_paths = args[:1] == ["backup"] and "--" in args and "--stdin-from-command" not in args
    if not reads_paths or sum(len(it.encode()) + 1 for it in args) < LIMIT:
        return list(args)
    at = args.index("--")
    rest, files = list(args[:at]), []
    for option, (by_file, name) in _PATTERNS.items():
        moved = [it for it in rest if it.startswith(option) and "\n" not in it]
        rest = [it for it in rest if not it.startswith(option) or "\n" in it]
        if moved:
            # The file begins with a line break, since restic drops a byte order mark at the beginning of a file.
            write(name, "".join(f"\n{exclude_line(it.removeprefix(option))}" for it in moved).encode())
            files.append(f"{by_file}={folder() / name}")
    write("paths", b"".join(path.encode() + b"\0" for path in args[at + 1 :]))
    return [*rest, *files, f"--files-from-raw={folder() / 'paths'}"]


def exclude_line(pattern: str) -> str:
    """The line of an exclude file that is equivalent to --exclude with this pattern. The pattern has no line break.

    In such a file restic trims lines, skips those that begin with #, and expands environment variables.
    """
    text = pattern.replace("$", "$$")
    if text != text.rstrip():
        head, last = text[:-1], text[-1]
        escaped = (len(head) - len(head.rstrip("\\"))) % 2 == 1
        text = f"{head[:-1] if escaped else head}[{last}]"
    if text[:1].isspace() or text.startswith("#"):
        text = f"[{text[0]}]{text[1:]}"
    return text
