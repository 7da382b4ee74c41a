"""Makes changes of a folder durable."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make renames in this folder survive a power failure (fsync(2), on directories). Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
