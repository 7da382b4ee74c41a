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
        """The cache of one repository alone. restic names its own cache folders by the id that a repository has in its
        config: a forged id would have another repository's cache removed or filled."""
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
        """The folder with an empty file for each repository that was opened, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("opened"))

    @property
    def notes(self) -> Path:
        """The folder with a note for each restore that runs, as the agent sees it."""
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
    """Remove one of the agent's folders and all in it, whatever the modes of its files."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
