"""Reads restic's lists of snapshots and files: to choose a snapshot, to restore parts of it, and to list it.

Sources: restic's manual, chapters "Scripting" (`snapshots`, `ls`, `find`) and "Restoring from backup"; its source
(cmd/restic/cmd_ls.go; internal/filter), read for 0.14 to 0.18: `ls` tells its lines apart by struct_type, since 0.17
also by message_type.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from wire.messages import Restore

MAX_DEVICES = 100_000
"""Device nodes of one restore whose paths are kept."""


class SnapshotError(ValueError):
    """A snapshot, or a path in it, does not exist or may not be restored; the message says what to do instead."""


class Snapshot(Struct, frozen=True):
    """One snapshot."""

    id: str
    time: datetime
    hostname: str = ""
    paths: list[str] = []
    tags: list[str] | None = None


class Node(Struct, frozen=True, omit_defaults=True):
    """A file, folder, link or device in a snapshot. `mtime`, `ctime`: as restic writes them (RFC 3339)."""

    path: str
    type: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: str = ""
    ctime: str = ""


class _Found(Struct):
    """What was found in one snapshot."""

    matches: list[Node]


class _Kind(Struct):
    struct_type: str = ""


_kinds = msgspec.json.Decoder(_Kind)
_snapshots = msgspec.json.Decoder(Snapshot)
_lists = msgspec.json.Decoder(list[Snapshot] | None)
_nodes = msgspec.json.Decoder(Node)
_found = msgspec.json.Decoder(list[_Found])
_encoder = msgspec.json.Encoder()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


def read_list(line: bytes) -> list[Snapshot]:
    """Read the output of `snapshots --json`, oldest first. Raises SnapshotError if it is no list of snapshots."""
    try:
        return sorted(_lists.decode(line) or [], key=lambda snapshot: snapshot.time)
    except _UNREADABLE as error:
        raise SnapshotError(f"restic's list of snapshots cannot be read: {error}: check restic's version") from None


def read_found(line: bytes) -> list[Node]:
    """Read the output of `find --json`. Raises SnapshotError if it cannot be read."""
    try:
        return [node for found in _found.decode(line) for node in found.matches]
    except _UNREADABLE as error:
        raise SnapshotError(f"restic's list of files cannot be read: {error}: check restic's version") from None


def read_node(line: bytes) -> Snapshot | Node | None:
    """Read a line of `ls --json`: the first is the snapshot, the others are its nodes. None if it cannot be read."""
    try:
        match _kinds.decode(line).struct_type:
            case "snapshot":
                return _snapshots.decode(line)
            case "node":
                return _nodes.decode(line)
    except _UNREADABLE:
        pass
    return None


def listed(line: bytes) -> Iterable[str]:
    """A line of `snapshots --json`, `ls --json` or `find --json` as lines of JSON: one for each Snapshot or Node."""
    if line.startswith(b'[{"matches"'):
        return (_encoder.encode(node).decode() for node in read_found(line))
    if line.startswith(b"["):  # newest first, since the end of a long list is left out
        return (_encoder.encode(snapshot).decode() for snapshot in reversed(read_list(line)))
    node = read_node(line)
    return () if node is None else (_encoder.encode(node).decode(),)


def pieces(text: str, size: int) -> list[str]:
    """A line of JSON in pieces of at most `size` characters; each piece but the first begins with +."""
    return [text[:size], *("+" + text[at : at + size - 1] for at in range(size, len(text), size - 1))]


def choose(snapshots: Sequence[Snapshot], wanted: Restore) -> Snapshot:
    """The snapshot to restore. Raises SnapshotError if there is none, or several."""
    ours = [it for it in snapshots if wanted.source_host in ("", it.hostname)]
    of_host = f" of host {wanted.source_host}" if wanted.source_host else ""
    if wanted.snapshot != "latest":
        found = [it for it in ours if it.id.startswith(wanted.snapshot)]
        if len(found) != 1:
            what = "several snapshots" if found else "no snapshot"
            raise SnapshotError(
                f"there is {what}{of_host} with id {wanted.snapshot}: list the snapshots, and give a whole id"
            )
        return found[0]
    paths = [posixpath.normpath(path) for path in wanted.paths]
    found = [
        it
        for it in ours
        if all(any(_lies_in(path, root) or _lies_in(root, path) for root in it.paths) for path in paths)
    ]
    early = [it for it in found if wanted.before is None or it.time <= wanted.before]
    if not early:
        before = f" from before {wanted.before:%Y-%m-%dT%H:%M:%SZ}" if found and wanted.before else ""
        of_paths = f" of {', '.join(paths)}" if ours and not found else ""
        raise SnapshotError(
            f"there is no snapshot{of_host}{of_paths}{before}: list the snapshots, and choose one of them"
        )
    return max(early, key=lambda snapshot: snapshot.time)


class LinkCheck:
    """Finds a path in a snapshot that is both a symbolic link and something else, or that has something below it.

    restic writes no such snapshot, but an attacker may: restic would restore the link, and then set mode, owner and
    attributes of the other node through it. `take` gets the lines of `ls`, which lists a folder's entries together,
    apart from what is below them. A line that cannot be read is reported, too. Names that are not UTF-8 may be mistaken
    for each other. `found`: the first such path, "" if there is none.
    """

    def __init__(self) -> None:
        self.found = ""
        self._open: list[tuple[str, dict[str, bool]]] = [("/", {})]

    def take(self, line: bytes) -> None:
        """A line of `ls --json`."""
        node = read_node(line)
        if node is None and line.startswith(b"{"):
            self.found = self.found or "a line of restic's that cannot be read"
        elif isinstance(node, Node) and node.path != "/":
            path = posixpath.normpath(posixpath.join("/", node.path))
            links, is_link = self._enter(posixpath.dirname(path)), node.type == "symlink"
            if path in links and (is_link or links[path]):
                self.found = self.found or path
            links[path] = is_link or links.get(path, False)

    def _enter(self, folder: str) -> dict[str, bool]:
        """The known paths in a folder, and whether each is a link. A link on the way to the folder is reported."""
        while not _lies_in(folder, self._open[-1][0]):
            self._open.pop()
        while self._open[-1][0] != folder:
            above, links = self._open[-1]
            way = posixpath.join(above, posixpath.relpath(folder, above).partition("/")[0])
            if links.setdefault(way, False):
                self.found = self.found or way
            self._open.append((way, {}))
        return self._open[-1][1]

    def before(self, take: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A function that passes each line to this check, and then to `take`."""

        def both(line: bytes) -> None:
            self.take(line)
            take(line)

        return both

    def check(self) -> None:
        """Raises SnapshotError if such a path was found."""
        if self.found:
            raise SnapshotError(
                f"the snapshot holds {self.found!r} as a symbolic link and as something else, and restic would follow "
                "that link out of the grant: restore another snapshot, or other paths"
            )


class Tally:
    """Counts the files and bytes of a restore of `paths`. `take` gets the lines of `ls`.

    `devices`: the paths of the first MAX_DEVICES device nodes.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.files = self.bytes = 0
        self.devices: set[str] = set()
        self._missing = dict.fromkeys(map(posixpath.normpath, paths))

    def take(self, line: bytes) -> None:
        """A line of `ls --json`."""
        node = read_node(line)
        if isinstance(node, Node):
            self._missing.pop(node.path, None)
            self.files += node.type == "file"
            self.bytes += node.size
            if node.type in ("dev", "chardev") and len(self.devices) < MAX_DEVICES:
                self.devices.add(node.path)

    @property
    def missing(self) -> list[str]:
        """The wanted paths that the snapshot does not hold. "/" is in every snapshot."""
        return [path for path in self._missing if path != "/"]


def restore_args(
    snapshot_id: str, target: str, paths: Sequence[str], *, sparse: bool, options: Sequence[str] = ()
) -> list[str]:
    """restic's arguments to restore these paths, or all if there are none, below a folder."""
    options = [*["--sparse"] * sparse, *options]
    includes = [f"--include={pattern(path)}" for path in paths]
    return ["restore", "--json", *options, f"--target={target}", *includes, "--", snapshot_id]


def pattern(path: str) -> str:
    """The pattern of restic that matches this path literally, and all below it."""
    return re.sub(r"([\\*?\[])", r"\\\1", posixpath.normpath(path))


def has_sparse(version: str) -> bool:
    """Whether restic has --sparse, from the output of `restic version`: since 0.15 (its changelog, "Enh #3931")."""
    return _is_since(version, (0, 15))


def has_stdin_from_command(version: str) -> bool:
    """Whether restic has --stdin-from-command, from the output of `restic version`: since 0.17 (its changelog, "Enh
    #4251")."""
    return _is_since(version, (0, 17))


def _is_since(version: str, first: tuple[int, int]) -> bool:
    found = re.search(r"restic (\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= first


def nanoseconds(time: str) -> int | None:
    """A time of restic in nanoseconds since 1970, like st_mtime_ns; None if it is no time."""
    found = re.fullmatch(r"(\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", time)
    if found is None:
        return None
    try:
        seconds = datetime.fromisoformat(found[1] + found[3]).timestamp()
    except ValueError:
        return None
    return int(seconds) * 10**9 + int((found[2] or "").ljust(9, "0"))


def _lies_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
