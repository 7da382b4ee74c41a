"""Moves a restore from its staging folder, which only root can enter, to its target, where others may be at work.

It uses only handles of folders and single names in them, so that no symbolic link is followed on either side. Needs
only the standard library.
"""

import ctypes
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EEXIST, ENOTSUP, EPERM, EXDEV
from typing import NamedTuple

from agent.sandbox import handles

MAX_ERRORS = 100
"""Errors of one restore that are reported; more are dropped."""
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Stripped(NamedTuple):
    """How much was removed from restored files: bits and capabilities that give privileges, and devices."""

    bits: int = 0
    capabilities: int = 0
    devices: int = 0

    def __bool__(self) -> bool:
        return any(self)

    def __str__(self) -> str:
        counts = zip(self, ("setuid or setgid bits of {} files", "capabilities of {} files", "{} devices"), strict=True)
        return "left out: " + ", ".join(what.format(count) for count, what in counts if count)


def strip(folder: int) -> Stripped:
    """Remove setuid and setgid bits, file capabilities and devices in a folder. Others must not be able to enter it.

    A folder keeps its setgid bit: it only sets the group of new files, and gives no privileges.
    """
    before, total = os.fstat(folder), Stripped()
    for name in handles.names(folder):
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            inner = handles.opened(name, folder)
            found = strip(inner)
            os.fchmod(inner, stat.S_IMODE(mode))
            os.close(inner)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            os.unlink(name, dir_fd=folder)
            found = Stripped(devices=1)
        else:
            found = _strip_file(name, folder, mode) if stat.S_ISREG(mode) else Stripped()
        total = Stripped(*map(sum, zip(total, found, strict=True)))
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    return total


def _strip_file(name: str, folder: int, mode: int) -> Stripped:
    special = mode & (stat.S_ISUID | stat.S_ISGID)
    if special:
        os.chmod(name, stat.S_IMODE(mode) & ~special, dir_fd=folder)
    capable = False
    with suppress(OSError):  # it has none; or this user is not root, and restic could not restore any
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.removexattr(fd, "security.capability")
            capable = True
        finally:
            os.close(fd)
    return Stripped(bool(special), capable)


class Merger:
    """Moves restored files to the target.

    - `overwrite`: whether existing files may be replaced.
    - `parts`: the restored paths. `chosen`: whether the user chose them; then existing folders above them keep their
      mode, owner and times.
    - `follow`: opens the folder that a symbolic link above a part leads to, from the link's path in the snapshot;
      raises OSError if it must not be followed.
    - `stopped`: whether to end early.
    - `errors`: what could not be moved, for people.
    """

    def __init__(
        self,
        overwrite: bool,
        parts: Sequence[str],
        chosen: bool,
        follow: Callable[[str], int],
        stopped: Callable[[], bool],
    ) -> None:
        self.errors: list[str] = []
        self._overwrite = overwrite
        self._parts = [os.path.normpath(path).rstrip("/") for path in parts]
        self._chosen = chosen
        self._follow = follow
        self._stopped = stopped
        self._copies = 0

    def merge(self, source: int, target: int, path: str) -> None:
        """Move all in one open folder into another. `path`: the folder's path in the snapshot, "" for the root."""
        for name in handles.names(source):
            if self._stopped():
                return
            try:
                self._put(name, source, target, f"{path}/{name}")
            except OSError as error:
                self._fail(f"{path}/{name}", error.strerror or str(error))

    def _put(self, name: str, source: int, target: int, path: str) -> None:
        mine = os.stat(name, dir_fd=source, follow_symlinks=False)
        try:
            theirs = os.stat(name, dir_fd=target, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return self._move(name, source, target, path, mine)
        if not self._overwrite:
            return self._fail(path, "was created meanwhile: choose another folder, or set overwrite")
        if not stat.S_ISDIR(theirs):
            if stat.S_ISLNK(theirs) and stat.S_ISDIR(mine.st_mode) and self._is_above(path):
                return self._merge_folder(name, source, self._follow(path), path, mine)
            if stat.S_ISDIR(mine.st_mode):
                os.unlink(name, dir_fd=target)
            return self._move(name, source, target, path, mine)
        if not stat.S_ISDIR(mine.st_mode):
            return self._fail(path, "is a folder here but not in the snapshot: remove it, or choose another target")
        return self._merge_folder(name, source, os.open(name, handles.FOLDER, dir_fd=target), path, mine)

    def _is_above(self, path: str) -> bool:
        return any(part.startswith(path + "/") for part in self._parts)

    def _merge_folder(self, name: str, source: int, inner: int, path: str, mine: os.stat_result) -> None:
        outer = handles.opened(name, source)
        try:
            self.merge(outer, inner, path)
            if not self._chosen or not self._is_above(path):
                _copy_facts(outer, inner, mine)
        finally:
            os.close(outer)
            os.close(inner)

    def _move(self, name: str, source: int, target: int, path: str, mine: os.stat_result) -> None:
        try:
            _rename(name, source, target, replace=self._overwrite)
        except OSError as error:
            if error.errno != EXDEV:
                raise
            self._copy(name, source, target, path, mine)

    def _copy(self, name: str, source: int, target: int, path: str, mine: os.stat_result) -> None:
        """Copy where rename(2) fails with EXDEV: another file system is mounted in the target."""
        if stat.S_ISDIR(mine.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            return self._merge_folder(name, source, os.open(name, handles.FOLDER, dir_fd=target), path, mine)
        self._copies += 1
        fresh = f".lamplighter-{os.getpid()}-{self._copies}"
        try:
            _copy_file(name, fresh, source, target, mine)
            _rename(fresh, target, target, replace=self._overwrite, name=name)
        except OSError:
            with suppress(OSError):
                os.unlink(fresh, dir_fd=target)
            raise
        return None

    def _fail(self, path: str, why: str) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(f"{path}: {why}")


def _rename(old: str, source: int, target: int, *, replace: bool, name: str = "") -> None:
    """Rename a file or folder, replacing an existing one only with `replace`. Raises OSError."""
    if replace:
        return os.rename(old, name or old, src_dir_fd=source, dst_dir_fd=target)
    names = (os.fsencode(old), os.fsencode(name or old))
    if _libc.renameat2(source, names[0], target, names[1], _RENAME_NOREPLACE):
        code = ctypes.get_errno()
        raise OSError(code, "was created meanwhile" if code == EEXIST else os.strerror(code))
    return None


def _copy_file(name: str, fresh: str, source: int, target: int, mine: os.stat_result) -> None:
    """Copy a file, link or device to a name that nobody else uses."""
    if stat.S_ISREG(mine.st_mode):
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source), "rb") as old:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=target), "wb") as new:
                shutil.copyfileobj(old, new, 1 << 20)
                new.flush()
                _copy_facts(old.fileno(), new.fileno(), mine)
        return
    if stat.S_ISLNK(mine.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), fresh, dir_fd=target)
    else:
        os.mknod(fresh, mine.st_mode, mine.st_rdev, dir_fd=target)
    with suppress(PermissionError):
        os.chown(fresh, mine.st_uid, mine.st_gid, dir_fd=target, follow_symlinks=False)
    os.utime(fresh, ns=(mine.st_atime_ns, mine.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_facts(source: int, target: int, mine: os.stat_result) -> None:
    """Copy owner, attributes, mode and times to another open file or folder. `mine`: the source's stat result."""
    with suppress(PermissionError):  # without root, files keep this user as owner
        os.fchown(target, mine.st_uid, mine.st_gid)
    for attribute in os.listxattr(source):
        try:
            os.setxattr(target, attribute, os.getxattr(source, attribute))
        except OSError as error:
            if error.errno not in (ENOTSUP, EPERM):
                raise
    os.fchmod(target, stat.S_IMODE(mine.st_mode))
    os.utime(target, ns=(mine.st_atime_ns, mine.st_mtime_ns))
