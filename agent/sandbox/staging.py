"""Restores into a staging folder that only root can enter, then moves the result to the target.

restic follows symbolic links, and Landlock does not stop a chmod, chown or utime through one. So restic restores into a
new folder on the target's file system, and gets it as a handle: nobody else can put a link there, and swapping the
folder's name has no effect. `merge` then moves the files by handles that follow no link: a link at the target is
replaced, not followed. Needs only the standard library.
"""

import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import EACCES, EROFS
from pathlib import Path
from typing import NoReturn

from agent.sandbox import handles
from agent.sandbox.confine import (
    NOT_PLACED,
    NOT_WRITABLE,
    SPECIAL,
    STAGE,
    STAGE_FD,
    Launch,
    die_with,
    enter,
    leave,
    read_launch,
)
from agent.sandbox.handles import Location, StrayError
from agent.sandbox.landlock import DEVICES, RESTORE, Access, Ruleset
from agent.sandbox.merge import Merger, Stripped, strip


def restore(
    how: Launch, prefixes: Sequence[Location], target: Location, rules: Ruleset, execute: Callable[[str], NoReturn]
) -> NoReturn:
    """Run restic by `execute`, which gets the folder to restore to; move the result; and exit with restic's code."""
    go_deep()
    parent, stage = _make_stage(how, prefixes, target)
    os.mkdir("new", 0o700, dir_fd=stage)
    new = os.open("new", handles.FOLDER, dir_fd=stage)
    rules.allow(new, RESTORE | (DEVICES if how.special else Access(0)))
    os.dup2(stage, STAGE_FD, inheritable=True)
    restic = Restic()
    try:
        code = restic.run(lambda: _become(how, rules, parent, execute))
        if code in (0, 1, 3) and not restic.stopped and handles.names(new):
            code = _place(how, prefixes, target, new, restic) or code
    finally:
        _discard(how.stage, parent, stage)
    if restic.stopped or code < 0:
        _die(signal.SIGINT if restic.stopped else signal.Signals(-code))
    sys.stdout.flush()
    os._exit(code)


class Restic:
    """restic as a child of this process. `stopped`: whether SIGINT asked the restore to end."""

    def __init__(self) -> None:
        self.stopped = False
        self._pid = 0

    def run(self, become: Callable[[], NoReturn]) -> int:
        """Run restic in a child, which calls `become`. Returns its exit code, negative for a signal."""
        me = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child's pid is known
        self._pid = os.fork()
        if not self._pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            die_with(me)
            become()
        signal.signal(signal.SIGINT, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)


def _place(how: Launch, prefixes: Sequence[Location], target: Location, new: int, restic: Restic) -> int:
    """Move the restored files to the target, and report what was left out or failed. Returns an exit code."""
    left_out = Stripped() if how.special else strip(new)

    def follow(path: str) -> int:
        return handles.make(handles.granted(how.target + path, prefixes, trusted=True))

    merger = Merger(how.overwrite, how.parts, how.chosen, follow, lambda: restic.stopped)
    merger.merge(new, handles.make(target), "")
    if left_out:
        sys.stdout.write(f"{left_out}: {SPECIAL}\n")
    for error in merger.errors:
        sys.stderr.write(error + "\n")
    return NOT_PLACED if merger.errors else 0


def main(arguments: Sequence[str]) -> None:
    """The program `staging SETTINGS`: sweep. SETTINGS: see `read_launch`."""
    how = read_launch(arguments[0])
    enter(how)
    go_deep()
    sweep(how)


def go_deep() -> None:
    """Raise the limits on recursion and open files, so that folders may be nested as deep as a path can be long."""
    sys.setrecursionlimit(20_000)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def sweep(how: Launch) -> None:
    """Remove the staging folder that a killed restore left, in one of the folders on the way to the target."""
    for place in _candidates([how.target, *_places(how)], handles.prefixes_of(how.within)):
        for folder in place.chain:
            with suppress(OSError):
                facts = os.stat(how.stage, dir_fd=folder, follow_symlinks=False)
                if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) == 0o700:
                    handles.remove(how.stage, handles.readable(folder))


def _places(how: Launch) -> list[str]:
    """The target of each restored part."""
    return [how.target.rstrip("/") + part for part in how.parts]


def _candidates(paths: Sequence[str], prefixes: Sequence[Location]) -> Iterator[Location]:
    """Where paths lead, without paths that are not granted."""
    for path in paths:
        with suppress(StrayError):
            yield handles.granted(path, prefixes)


def _make_stage(how: Launch, prefixes: Sequence[Location], target: Location) -> tuple[int, int]:
    """Create the staging folder in the first candidate that is writable. Returns that folder, and the staging
    folder."""
    _check_writable(how, prefixes)
    refused = ""
    for place in _candidates([how.target, *_places(how)], prefixes):
        parent = _nearest(place)
        try:
            os.mkdir(how.stage, 0o700, dir_fd=parent)
        except OSError as error:
            refused = refused or error.strerror or str(error)
            continue
        stage = os.open(how.stage, handles.FOLDER, dir_fd=parent)
        facts = os.fstat(stage)
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) != 0o700 or handles.names(stage):
            leave(
                NOT_WRITABLE,
                f"another program replaced the staging folder near {how.target}: stop it, and restore again",
            )
        return parent, stage
    return leave(NOT_WRITABLE, _not_writable(how.target, refused))


def _check_writable(how: Launch, prefixes: Sequence[Location]) -> None:
    """Exit with one message if the target of a part is not writable: restic would report each file."""
    for path in _places(how):
        for place in _candidates([path], prefixes):
            folder = _nearest(place)
            if not os.access(".", os.W_OK, dir_fd=folder):
                is_read_only = os.fstatvfs(folder).f_flag & os.ST_RDONLY
                leave(NOT_WRITABLE, _not_writable(path, os.strerror(EROFS if is_read_only else EACCES)))
            os.close(folder)


def _nearest(place: Location) -> int:
    """Open the folder that a path leads to; if that is missing or no folder, the nearest one above it."""
    is_folder = stat.S_ISDIR(os.fstat(place.handle).st_mode)
    return handles.readable(place.handle if is_folder else place.chain[-2])


def _not_writable(path: str, why: str) -> str:
    return (
        f"{path} cannot be written to ({why}): choose a target that the agent may write to; "
        "on nodes of a cluster, one below the chart's agent.restorePaths"
    )


def _become(how: Launch, rules: Ruleset, parent: int, execute: Callable[[str], NoReturn]) -> NoReturn:
    """Confine this process and become restic."""
    where = STAGE
    if not Path(STAGE).is_dir():  # no proc(5) below the root
        if how.within:
            leave(NOT_WRITABLE, "/proc is not mounted below the agent's --root: mount it there to restore")
        os.fchdir(parent)
        where = f"{Path.cwd()}/{how.stage}/new"
    rules.enforce()
    execute(where)


def _discard(name: str, parent: int, stage: int) -> None:
    """Empty the staging folder, even if it was renamed, and remove its name unless something else has that name now."""
    for entry in handles.names(stage):
        handles.remove(entry, stage)
    with suppress(OSError):
        if os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(stage)):
            os.rmdir(name, dir_fd=parent)


def _die(number: signal.Signals) -> NoReturn:
    """End by this signal, as restic did."""
    with suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)
