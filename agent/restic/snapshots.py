"""What restic says of snapshots and the files in them, as data: to choose one, to restore parts of it, to list it.

Sources: restic's manual, chapters "Scripting" (`snapshots`, `ls`) and "Restoring from backup"; its source
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
"""Device nodes of one restore that are known by their paths."""


class SnapshotError(ValueError):
    """A snapshot, or something in it, does not exist; the message says what to ask for instead."""


class Snapshot(Struct, frozen=True):
    """One snapshot."""

    id: str
    time: datetime
    hostname: str = ""
    paths: list[str] = []
    tags: list[str] | None = None


class Node(Struct, frozen=True, omit_defaults=True):
    """A file, a folder or whatever else a snapshot holds. `mtime`, `ctime`: as restic writes them (RFC 3339)."""

    path: str
    type: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: str = ""
    ctime: str = ""


class _Kind(Struct):
    struct_type: str = ""


_kinds = msgspec.json.Decoder(_Kind)
_snapshots = msgspec.json.Decoder(Snapshot)
_lists = msgspec.json.Decoder(list[Snapshot] | None)
_nodes = msgspec.json.Decoder(Node)
_encoder = msgspec.json.Encoder()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


def read_list(line: bytes) -> list[Snapshot]:
    """What `snapshots --json` prints, oldest first. Raises SnapshotError for what is no list of them."""
    try:
        return sorted(_lists.decode(line) or [], key=lambda snapshot: snapshot.time)
    except _UNREADABLE as error:
        raise SnapshotError(f"restic's list of snapshots cannot be read: {error}") from None


def read_node(line: bytes) -> Snapshot | Node | None:
    """What a line of `ls --json` says: first the snapshot, then what is in it; None for what cannot be read."""
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
    """A line of `snapshots --json` or `ls --json` as lines of JSON, one for each thing, with the fields named here."""
    if line.startswith(b"["):  # the newest first: what is left out of a long list is the oldest
        return (_encoder.encode(snapshot).decode() for snapshot in reversed(read_list(line)))
    node = read_node(line)
    return () if node is None else (_encoder.encode(node).decode(),)


def pieces(text: str, size: int) -> list[str]:
    """A line of JSON in pieces of at most `size` characters; those that go on with one before begin with +."""
    return [text[:size], *("+" + text[at : at + size - 1] for at in range(size, len(text), size - 1))]


def choose(snapshots: Sequence[Snapshot], wanted: Restore) -> Snapshot:
    """The snapshot to restore. Raises SnapshotError, with what there is."""
    ours = [it for it in snapshots if wanted.source_host in ("", it.hostname)]
    whose = f" of host {wanted.source_host}" if wanted.source_host else ""
    if wanted.snapshot != "latest":
        found = [it for it in ours if it.id.startswith(wanted.snapshot)]
        if len(found) != 1:
            what = "several snapshots" if found else "no snapshot"
            raise SnapshotError(f"there is {what}{whose} with id {wanted.snapshot}: list them, and give a whole id")
        return found[0]
    paths = [posixpath.normpath(path) for path in wanted.paths]
    found = [it for it in ours if all(any(_related(path, root) for root in it.paths) for path in paths)]
    early = [it for it in found if wanted.before is None or it.time <= wanted.before]
    if not early:
        lack = f" from before {wanted.before:%Y-%m-%dT%H:%M:%SZ}" if found and wanted.before else ""
        of = f" of {', '.join(paths)}" if ours and not found else ""
        raise SnapshotError(f"there is no snapshot{whose}{of}{lack}: list the snapshots, and choose among those")
    return max(early, key=lambda snapshot: snapshot.time)


class LinkCheck:
    """Finds what no restic writes, and an attacker may: a path that is a symbolic link and something else as well, or
    has something below it.

    restic would make the link, and set mode, owner and attributes of the other one through it. `take` gets the lines of
    `ls`, in which a folder's entries are together but for what is below them. A line that cannot be read counts, too;
    names that are no UTF-8 may be taken for each other. `found`: the first such path, "" for none.
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
        """What a folder is known to hold, and which of it are links. What leads to it must be none."""
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
        """A function that hands each line to this check, and then to `take`."""

        def both(line: bytes) -> None:
            self.take(line)
            take(line)

        return both

    def check(self) -> None:
        """Raises SnapshotError for what was found."""
        if self.found:
            raise SnapshotError(
                f"the snapshot holds {self.found!r} as a symbolic link and as something else, which restic would follow"
                " out of the grant: restore another snapshot, or paths without it"
            )


class Tally:
    """Counts what a restore of `paths` takes from a snapshot, of which `take` gets the lines of `ls`.

    `devices`: the paths of device nodes, the first MAX_DEVICES of them.
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
        """The paths that the snapshot does not hold; "/" is in each."""
        return [path for path in self._missing if path != "/"]


def restore_args(
    snapshot_id: str, target: str, paths: Sequence[str], *, sparse: bool, options: Sequence[str] = ()
) -> list[str]:
    """The arguments that restore these paths, or all, below a folder."""
    options = [*["--sparse"] * sparse, *options]
    includes = [f"--include={pattern(path)}" for path in paths]
    return ["restore", "--json", *options, f"--target={target}", *includes, "--", snapshot_id]


def pattern(path: str) -> str:
    """The pattern that matches this path, whatever is in it, and what is below it."""
    return re.sub(r"([\\*?\[])", r"\\\1", posixpath.normpath(path))


def knows_sparse(version: str) -> bool:
    """Whether restic, by what `restic version` prints, has --sparse: since 0.15 (its changelog, "Enh #3931")."""
    found = re.search(r"restic (\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (0, 15)


def nanoseconds(time: str) -> int | None:
    """A time of restic's in nanoseconds since 1970, as st_mtime_ns; None for what is none."""
    found = re.fullmatch(r"(\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", time)
    if found is None:
        return None
    try:
        seconds = datetime.fromisoformat(found[1] + found[3]).timestamp()
    except ValueError:
        return None
    return int(seconds) * 10**9 + int((found[2] or "").ljust(9, "0"))


def _related(path: str, root: str) -> bool:
    """Whether one lies in the other."""
    return _lies_in(path, root) or _lies_in(root, path)


def _lies_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
