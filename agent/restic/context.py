"""What all jobs of an agent share: restic's program, folders, environment and timing."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from msgspec import Struct

from agent.restic.process import GRACE_S

Sleep = Callable[[float], Awaitable[object]]


class Timing(Struct, frozen=True):
    """`progress_s`: seconds between two reports of a running job. `grace_s`: seconds that a program has to end when
    asked. Both above 0. `sleep`: waits that many seconds.
    """

    progress_s: float = 1.0
    grace_s: float = GRACE_S
    sleep: Sleep = asyncio.sleep


DEFAULT_TIMING = Timing()


class JobContext(Struct, frozen=True):
    """What all jobs of an agent share; see `agent.restic.runner.Runner`."""

    program: str
    cache_dir: Path
    env: Mapping[str, str]
    root: Path
    timing: Timing
    allow_unconfined: bool = False

    def cache_of(self, repository_id: str) -> Path:
        """restic's cache for one repository alone. restic's own folders in it are named by what a repository says that
        it is: who makes a repository could say that it is another's, and have that one's cache removed or filled."""
        return self.cache_dir / hashlib.blake2b(repository_id.encode(), digest_size=16).hexdigest()

    def as_seen(self, path: Path) -> Path:
        """A path of restic's as the agent sees it."""
        return self.root / path.relative_to("/")

    @property
    def scratch_dir(self) -> Path:
        """Where jobs have their temporary folders, and restic puts what a verification restores."""
        return self.cache_dir.with_name("scratch")

    @property
    def opened(self) -> Path:
        """Where there is an empty file for each repository that was opened, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("opened"))

    @property
    def notes(self) -> Path:
        """Where there is a note for each restore under way, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("restoring"))

    @property
    def scratch(self) -> Path:
        """The same folder, as the agent sees it."""
        return self.as_seen(self.scratch_dir)

    def explain(self, error: OSError | ValueError) -> str:
        """An error in words: of a disk with the path, which is in the agent's own folder where the error has none."""
        if not isinstance(error, OSError) or error.strerror is None:
            return str(error)
        where = error.filename or self.scratch.parent
        return f"{where}: {error.strerror}: check that its disk is there, writable and not full"


def discard(folder: Path) -> None:
    """Remove a folder of the agent's own with all that is in it, whatever its files' modes."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
