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
    """`progress_s`: seconds between two reports of a running job. `grace_s`: seconds from SIGINT to SIGKILL. Both are
    above 0. `sleep`: waits this many seconds.
    """

    progress_s: float = 1.0
    grace_s: float = GRACE_S
    sleep: Sleep = asyncio.sleep


DEFAULT_TIMING = Timing()


class JobContext(Struct, frozen=True):
    """What all jobs of an agent share. The fields are explained at `agent.restic.runner.Runner`."""

    program: str
    cache_dir: Path
    env: Mapping[str, str]
    root: Path
    timing: Timing
    allow_unconfined: bool = False

    def cache_of(self, repository_id: str) -> Path:
        """The cache folder of one repository.

        Repositories do not share a cache: restic names its folders in there by the id in a repository's config, and a
        repository with a forged id could change the cache of another.
        """
        return self.cache_dir / hashlib.blake2b(repository_id.encode(), digest_size=16).hexdigest()

    def begin_cache(self, cache: Path) -> None:
        """Make a cache folder, and mark it as used now. Raises OSError."""
        self.as_seen(cache).mkdir(parents=True, exist_ok=True)
        os.utime(self.as_seen(cache))

    def as_seen(self, path: Path) -> Path:
        """A path below restic's root, as the agent sees it."""
        return self.root / path.relative_to("/")

    @property
    def scratch_dir(self) -> Path:
        """The folder of the jobs' temporary folders, where verifications restore to, as restic sees it."""
        return self.cache_dir.with_name("scratch")

    @property
    def opened(self) -> Path:
        """The folder with an empty file for each repository that was opened, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("opened"))

    @property
    def notes(self) -> Path:
        """The folder with a note for each running restore, for cleaning up after a kill, as the agent sees it."""
        return self.as_seen(self.cache_dir.with_name("restoring"))

    @property
    def scratch(self) -> Path:
        """`scratch_dir` as the agent sees it."""
        return self.as_seen(self.scratch_dir)

    def explain(self, error: OSError | ValueError) -> str:
        """An error as a message. An error of a disk gets its path, or the agent's folder if it has none, and a
        remedy."""
        if not isinstance(error, OSError) or error.strerror is None:
            return str(error)
        where = error.filename or self.scratch.parent
        return f"{where}: {error.strerror}: check that its disk is mounted, writable and not full"


def discard(folder: Path) -> None:
    """Remove a folder of the agent and all in it, also folders that are not writable."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
