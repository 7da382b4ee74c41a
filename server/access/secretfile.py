"""Creates files that only this user can read. A kill leaves the whole file or none."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def create(path: Path, text: str) -> None:
    """Create a file (mode 0600) and its folder. A file that another process created meanwhile is kept."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as draft:
        draft.write(text)
        draft.flush()
        os.fsync(draft.fileno())
        with suppress(FileExistsError):
            os.link(draft.name, path)
