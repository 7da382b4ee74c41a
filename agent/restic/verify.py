"""Which files of a snapshot are restored to see whether that can be done, and whether they came back as they were.

Pure: the files come in as lines of `restic ls`, chance as an argument, what the disk holds as digests.
"""

import random
from collections.abc import Sequence

from msgspec import Struct

from agent.restic.snapshots import Node, Snapshot, nanoseconds, read_node

MAX_PATHS = 256 << 10
"""Bytes of all paths of a sample: they stand in the arguments of a program, which are bounded (execve(2))."""
MAX_PATH = 4096
"""Bytes of one path (PATH_MAX): nothing longer can be asked for."""
MAX_NAMED = 20
"""Files that a failed verification names."""


class Digest(Struct, frozen=True):
    """What a file on the disk holds (agent/digest.py)."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


class Sample:
    """Some of a snapshot's regular files, each with the same chance: reservoir sampling (Vitter's algorithm R).

    `count`: how many at most, above 0. `max_bytes`: of all together; files larger than that are not in it.
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
                # A name that is no UTF-8 comes with U+FFFD in it, and cannot be asked for.
                askable = "\ufffd" not in node.path and len(node.path.encode()) < MAX_PATH
                if node.size <= self._max_bytes and askable:
                    self._put(node)

    def _put(self, node: Node) -> None:
        self._eligible += 1
        if len(self._held) < self._count:
            self._held.append(node)
        elif (at := self._rng.randrange(self._eligible)) < self._count:
            self._held[at] = node

    def picked(self) -> list[Node]:
        """The files to restore: in random order, as many as fit the limits."""
        files, size, length = [], 0, 0
        for node in self._rng.sample(self._held, len(self._held)):
            longer = length + len(node.path.encode())
            if size + node.size <= self._max_bytes and longer <= MAX_PATHS:
                files.append(node)
                size, length = size + node.size, longer
        return files


class Found(Struct, frozen=True):
    """What a comparison found. `compared`: files whose source was unchanged; `differences`: for people."""

    compared: int
    differences: list[str]


def compare(files: Sequence[Node], restored: Sequence[Digest | None], sources: Sequence[Digest | None]) -> Found:
    """Whether what was restored is what the snapshot says, and what the source holds where that is unchanged."""
    compared, differences = 0, []
    for node, copy, source in zip(files, restored, sources, strict=True):
        if copy is None:
            differences.append(f"{node.path}: was not restored")
        elif copy.size != node.size:
            differences.append(f"{node.path}: {copy.size} bytes were restored, {node.size} were backed up")
        elif source is not None and _unchanged(node, source):
            compared += 1
            if source.sha256 != copy.sha256:
                differences.append(f"{node.path}: its content is not that of the file, which has not changed since")
    return Found(compared, differences)


def named(differences: Sequence[str]) -> str:
    """The differences in one text, bounded."""
    more = len(differences) - MAX_NAMED
    return "; ".join([*differences[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _unchanged(node: Node, source: Digest) -> bool:
    """Whether a file is as it was when it was backed up, by what restic itself goes by (its manual, "File change
    detection")."""
    times = (nanoseconds(node.mtime), nanoseconds(node.ctime))
    return (source.size, source.mtime_ns, source.ctime_ns) == (node.size, *times)
