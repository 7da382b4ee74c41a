"""Paths as handles: what a name means right now, by opened folders that nobody can swap any more.

A folder is found one component at a time, each opened without following it (O_NOFOLLOW), and never left upwards but to
the folder that it was found in. So nothing that is renamed meanwhile leads elsewhere than the handles say, and no
system call is needed that old kernels lack (openat2(2) with RESOLVE_NO_SYMLINKS does the same at once). Needs nothing
but the standard library.
"""

import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MAX_LINKS = 40
"""Symbolic links that one path may lead through: as many as the kernel takes (path_resolution(7))."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class StrayError(OSError):
    """A path leads to where it may not."""


class Location(NamedTuple):
    """Where a path leads. `chain`: handles of the root, each folder on the way, and the end of what is there.

    `rest`: the components that are not there.
    """

    chain: tuple[int, ...]
    rest: tuple[str, ...]

    @property
    def handle(self) -> int:
        """What is there of the path."""
        return self.chain[-1]

    def lies_in(self, other: "Location") -> bool:
        """Whether this is the other, or below it."""
        if other.rest:
            same = os.path.sameopenfile(self.handle, other.handle)
            return same and self.rest[: len(other.rest)] == other.rest
        return any(os.path.sameopenfile(fd, other.handle) for fd in self.chain)

    def close(self) -> None:
        """Close the handles."""
        for fd in self.chain:
            os.close(fd)

    def end(self) -> "Location":
        """The same, without the handles of the folders on the way."""
        for fd in self.chain[:-1]:
            os.close(fd)
        return Location(self.chain[-1:], self.rest)


def prefixes_of(within: Sequence[str]) -> list[Location]:
    """Where granted paths lead. Raises StrayError for one that others than root can have lead elsewhere."""
    return [locate(prefix, trusted=True).end() for prefix in within]


def locate(path: str, *, trusted: bool = False) -> Location:
    """Where an absolute path leads, symbolic links followed.

    `trusted`: only those that root made, or whom the agent runs as, in a folder in which nobody else may replace them:
    raises StrayError for others. Raises OSError also for links that lead round in circles.
    """
    chain, todo, links = [os.open("/", _ANYTHING)], _parts(path), 0
    while todo:
        name = todo.pop(0)
        if name == "..":
            chain = chain[: max(1, len(chain) - 1)]
            continue
        try:
            fd = os.open(name, _ANYTHING, dir_fd=chain[-1])
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return Location(tuple(chain), (name, *todo))
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            chain.append(fd)
            continue
        links += 1
        if links > MAX_LINKS:
            raise StrayError(f"{path} leads through too many symbolic links")
        if trusted and not _only_roots(fd, chain[-1]):
            raise StrayError(f"{path} leads through a symbolic link that others than root can replace")
        target = os.readlink("", dir_fd=fd)
        chain = chain[:1] if target.startswith("/") else chain
        todo = _parts(target) + todo
    return Location(tuple(chain), ())


def readable(handle: int) -> int:
    """A handle of the same folder by which it can be read. Raises OSError."""
    return os.open(".", FOLDER, dir_fd=handle)


def make(location: Location, mode: int = 0o700) -> int:
    """A handle of the folder, made with all that is missing of it, that can be read. Raises OSError."""
    fd = readable(location.handle)
    for name in location.rest:
        if name == "..":
            raise StrayError("a folder that is not there cannot be left by '..'")
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=fd)
        fd = os.open(name, FOLDER, dir_fd=fd)
    return fd


def names(folder: int) -> list[str]:
    """What is in an opened folder."""
    return os.listdir(folder)


def remove(name: str, parent: int) -> None:
    """Remove a file, or a folder that others cannot enter with all in it, whatever its mode. Raises OSError."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = opened(name, parent)
    try:
        os.fchmod(fd, 0o700)
        for entry in names(fd):
            remove(entry, fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def opened(name: str, parent: int) -> int:
    """A folder that can be read, in one that others cannot enter, whatever its mode. Raises OSError."""
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except PermissionError:  # who is not root needs the mode as well
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, FOLDER, dir_fd=parent)


def absolute(path: str) -> str:
    """The path as restic reads it: from where it runs, with "." and ".." resolved by names alone (Go, filepath.Abs)."""
    return posixpath.normpath(posixpath.join(Path.cwd(), path))


def granted(path: str, prefixes: Sequence[Location], *, trusted: bool = False) -> Location:
    """Where a path leads. Raises StrayError where that is not in one of `prefixes`, unless there are none."""
    found = locate(absolute(path), trusted=trusted)
    if ".." in found.rest or (prefixes and not any(found.lies_in(prefix) for prefix in prefixes)):
        real = os.path.realpath(path)
        raise StrayError(f"{path} leads to {real}, which is not granted to the namespace: name another path")
    return found


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _only_roots(link: int, folder: int) -> bool:
    """Whether only root, or the user whom the agent runs as, can have made or can replace a link."""
    ours, made, held = (0, os.geteuid()), os.fstat(link), os.fstat(folder)
    return made.st_uid in ours and held.st_uid in ours and (not held.st_mode & 0o022 or bool(held.st_mode & 0o1000))
