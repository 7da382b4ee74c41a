"""Files that outlive a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have a rename in this folder outlive a power cut (fsync(2), on directories). Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
