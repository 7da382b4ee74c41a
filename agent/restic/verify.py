"""Verification: picks files of a snapshot to restore, and compares what was restored.

No I/O: the files come in as lines of `restic ls`, randomness as an argument, and the files' contents as digests.
"""

import random
from collections.abc import Sequence

from msgspec import Struct

from agent.restic.snapshots import Node, Snapshot, nanoseconds, read_node

MAX_PATHS = 256 << 10
"""Bytes of all paths of a sample: they are arguments of a program, whose length is limited (execve(2))."""
MAX_PATH = 4096
"""Bytes of one path (PATH_MAX): a longer one cannot be opened."""
MAX_NAMED = 20
"""Files that a failed verification names."""


class Digest(Struct, frozen=True):
    """Size, times and SHA-256 of a file on the disk, from `agent.sandbox.digest`."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


class Sample:
    """A random sample of a snapshot's regular files: reservoir sampling (Vitter's algorithm R).

    `count`: the most files to pick, above 0. `max_bytes`: their most bytes together; larger files are not picked.
    """

    def __init__(self, count: int, max_bytes: int, rng: random.Random) -> None:
        self.snapshot: Snapshot | None = None
        self.files = 0
        self._count = count
        self._max_bytes = max_bytes
        self._rng = rng
        self._held: list[Node] = []
        self._eligible = 0

    def take(self, line: bytes) -> None:
        """A line of `ls --json`."""
        match read_node(line):
            case Snapshot() as snapshot:
                self.snapshot = snapshot
            case Node(type="file") as node:
                self.files += 1
                # restic prints U+FFFD in a name that is not UTF-8, so the file cannot be named in a restore.
                askable = "\ufffd" not in node.path and len(node.path.encode()) < MAX_PATH
                if node.size <= self._max_bytes and askable:
                    self._sample(node)

    def _sample(self, node: Node) -> None:
        self._eligible += 1
        if len(self._held) < self._count:
            self._held.append(node)
        elif (at := self._rng.randrange(self._eligible)) < self._count:
            self._held[at] = node

    def picked(self) -> list[Node]:
        """The files to restore, in random order, as many as the limits allow."""
        files, size, length = [], 0, 0
        for node in self._rng.sample(self._held, len(self._held)):
            longer = length + len(node.path.encode())
            if size + node.size <= self._max_bytes and longer <= MAX_PATHS:
                files.append(node)
                size, length = size + node.size, longer
        return files


class Found(Struct, frozen=True):
    """The result of a comparison. `compared`: files that were also compared with their source; `differences`: for
    people."""

    compared: int
    differences: list[str]


def compare(files: Sequence[Node], restored: Sequence[Digest | None], sources: Sequence[Digest | None]) -> Found:
    """Compare restored files with the snapshot's sizes, and with their sources where these have not changed."""
    compared, differences = 0, []
    for node, copy, source in zip(files, restored, sources, strict=True):
        if copy is None:
            differences.append(f"{node.path}: was not restored")
        elif copy.size != node.size:
            differences.append(f"{node.path}: {copy.size} bytes were restored, {node.size} were backed up")
        elif source is not None and _unchanged(node, source):
            compared += 1
            if source.sha256 != copy.sha256:
                differences.append(
                    f"{node.path}: the restored content differs from the source, which has not changed since the backup"
                )
    return Found(compared, differences)


def named(differences: Sequence[str]) -> str:
    """The first MAX_NAMED differences in one text, and how many more there are."""
    more = len(differences) - MAX_NAMED
    return "; ".join([*differences[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _unchanged(node: Node, source: Digest) -> bool:
    """Whether a file is unchanged since its backup, by restic's own criteria (its manual, "File change detection")."""
    times = (nanoseconds(node.mtime), nanoseconds(node.ctime))
    return (source.size, source.mtime_ns, source.ctime_ns) == (node.size, *times)
