"""The files of a folder: which of them may hold resources, their texts, and when they change."""

import asyncio
import logging
import os
from pathlib import Path
from typing import NamedTuple

from watchfiles import Change, awatch

from controller.client import ControllerError

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")
MAX_FILE = 4 << 20
"""Bytes of a file that are read."""
MAX_FILES = 10_000
"""Files of a folder that are read."""
SETTLE_MS = 200
"""Milliseconds without a change after which files are read: editors save in several steps."""


class FolderError(ControllerError):
    """The folder cannot be read as a whole; the message says why and what to do."""


class Unreadable(NamedTuple):
    """Stands for the text of a file that cannot be read."""

    reason: str


def read_texts(folder: Path) -> dict[Path, str | Unreadable]:
    """The texts of all files below a folder that may hold resources, by their paths from there; hidden ones are not.

    Raises FolderError where it cannot be known what files there are.
    """
    texts: dict[Path, str | Unreadable] = {}
    try:
        for found, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(found, name)
                if path.suffix in SUFFIXES and not name.startswith(".") and (text := _text(path)) is not None:
                    texts[path.relative_to(folder)] = text
                if len(texts) > MAX_FILES:
                    raise FolderError(f"{folder}: more than {MAX_FILES} files; put several resources into each")
    except OSError as error:
        raise FolderError(f"{error.filename}: {error.strerror}; nothing is changed until it can be read") from None
    return texts


def _raise(error: OSError) -> None:
    raise error


def _text(path: Path) -> str | Unreadable | None:
    """The text of a file; None when it is gone, or no file."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Unreadable(f"cannot be read: {error.strerror}")
    if len(content) > MAX_FILE:
        return Unreadable(f"longer than {MAX_FILE} bytes: split it")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return Unreadable("not UTF-8 text: save it as that")


async def notice(folder: Path, changed: asyncio.Event, again_s: float) -> None:
    """Set `changed` whenever files have changed. Where that goes unnoticed, the regular comparisons have to do."""
    while True:
        try:
            async for _ in awatch(folder, watch_filter=_Visible(folder), step=SETTLE_MS, recursive=True):
                changed.set()
        except Exception as error:  # noqa: BLE001 - whatever it was, comparisons go on, and it is tried again
            log.warning("changes go unnoticed until the next comparison", extra={"folder": folder, "detail": error})
        await asyncio.sleep(again_s)


class _Visible:
    """Tells what may be files with resources, or folders with them, from all else: databases, editors' drafts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def __call__(self, change: Change, path: str) -> bool:
        inner = Path(os.path.relpath(path, self._folder))
        if inner.name == "..data":  # the link by which Kubernetes changes a mounted ConfigMap or Secret
            return True
        return inner.suffix in ("", *SUFFIXES) and not any(part.startswith(".") for part in inner.parts)
