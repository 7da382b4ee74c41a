"""Resolves paths to open handles, so that a rename or a new symbolic link cannot lead a later use elsewhere.

A path is resolved one component at a time. Each is opened without following links (O_NOFOLLOW), and ".." goes back to
the handle before it. openat2(2) with RESOLVE_NO_SYMLINKS does the same in one call, but old kernels do not have it.
Needs only the standard library.
"""

import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MAX_LINKS = 40
"""Symbolic links that are followed for one path: the kernel's limit (path_resolution(7))."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class StrayError(OSError):
    """A path leads to where it must not; the message says what to do."""


class Location(NamedTuple):
    """Where a path leads. `chain`: handles of the root, of each folder on the way, and of the last component that
    exists.

    `rest`: the components that do not exist.
    """

    chain: tuple[int, ...]
    rest: tuple[str, ...]

    @property
    def handle(self) -> int:
        """The last component that exists."""
        return self.chain[-1]

    def lies_in(self, other: "Location") -> bool:
        """Whether this location is the other one or below it."""
        if other.rest:
            same = os.path.sameopenfile(self.handle, other.handle)
            return same and self.rest[: len(other.rest)] == other.rest
        return any(os.path.sameopenfile(fd, other.handle) for fd in self.chain)

    def close(self) -> None:
        """Close the handles."""
        for fd in self.chain:
            os.close(fd)

    def end(self) -> "Location":
        """The same location, with the handles of the folders on the way closed."""
        for fd in self.chain[:-1]:
            os.close(fd)
        return Location(self.chain[-1:], self.rest)


def prefixes_of(within: Sequence[str]) -> list[Location]:
    """Where the granted paths lead. Raises StrayError for a path with a link that users other than root can replace."""
    return [locate(prefix, trusted=True).end() for prefix in within]


def locate(path: str, *, trusted: bool = False) -> Location:
    """Where an absolute path leads, with symbolic links followed.

    `trusted`: raise StrayError for a link unless only root, or the agent's user, can have made or can replace it.
    Raises StrayError for too many links, and OSError.
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
            raise StrayError(f"{path} leads through more than {MAX_LINKS} symbolic links: check them for a circle")
        if trusted and not _only_roots(fd, chain[-1]):
            raise StrayError(
                f"{path} leads through a symbolic link that users other than root can replace: use the path it leads to"
            )
        target = os.readlink("", dir_fd=fd)
        chain = chain[:1] if target.startswith("/") else chain
        todo = _parts(target) + todo
    return Location(tuple(chain), ())


def readable(handle: int) -> int:
    """Open the same folder for reading. Raises OSError."""
    return os.open(".", FOLDER, dir_fd=handle)


def make(location: Location, mode: int = 0o700) -> int:
    """Create the missing folders of a location, and open the last one for reading. Raises OSError."""
    fd = readable(location.handle)
    for name in location.rest:
        if name == "..":
            raise StrayError("the path has '..' after a folder that does not exist: write it without '..'")
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=fd)
        fd = os.open(name, FOLDER, dir_fd=fd)
    return fd


def names(folder: int) -> list[str]:
    """The names in an open folder."""
    return os.listdir(folder)


def remove(name: str, parent: int) -> None:
    """Remove a file, or a folder with all in it, whatever its mode. Others must not be able to enter it. Raises
    OSError."""
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
    """Open a folder for reading, whatever its mode. Others must not be able to enter `parent`. Raises OSError."""
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except PermissionError:  # who is not root needs the mode as well
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, FOLDER, dir_fd=parent)


def absolute(path: str) -> str:
    """The path as restic reads it: from where it runs, with "." and ".." resolved by names alone (Go, filepath.Abs)."""
    return posixpath.normpath(posixpath.join(Path.cwd(), path))


def granted(path: str, prefixes: Sequence[Location], *, trusted: bool = False) -> Location:
    """Where a path leads. Raises StrayError if it is not in one of `prefixes`; no prefixes grant the whole host."""
    found = locate(absolute(path), trusted=trusted)
    if ".." in found.rest or (prefixes and not any(found.lies_in(prefix) for prefix in prefixes)):
        real = os.path.realpath(path)
        raise StrayError(f"{path} leads to {real}, which is not granted to the namespace: choose another path")
    return found


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _only_roots(link: int, folder: int) -> bool:
    """Whether only root, or the agent's user, can have made and can replace a link."""
    ours, made, held = (0, os.geteuid()), os.fstat(link), os.fstat(folder)
    return made.st_uid in ours and held.st_uid in ours and (not held.st_mode & 0o022 or bool(held.st_mode & 0o1000))
