"""Finds and reads the files of a folder, and notices when they change."""

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
"""The most bytes of a file."""
MAX_FILES = 10_000
"""The most files of a folder."""
SETTLE_MS = 200
"""Milliseconds without a change before files are read, since editors save in several steps."""


class FolderError(ControllerError):
    """The folder cannot be read; the message says why and what to do."""


class Unreadable(NamedTuple):
    """In place of the text of a file that cannot be read."""

    reason: str


def read_texts(folder: Path) -> dict[Path, str | Unreadable]:
    """The texts of all YAML files below a folder, by their relative paths. Hidden files and folders are skipped.

    Raises FolderError if the folder or one below it cannot be listed, or has too many files.
    """
    texts: dict[Path, str | Unreadable] = {}
    try:
        for found, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(found, name)
                if path.suffix in SUFFIXES and not name.startswith(".") and (text := read_text(path)) is not None:
                    texts[path.relative_to(folder)] = text
                if len(texts) > MAX_FILES:
                    raise FolderError(f"{folder}: more than {MAX_FILES} files: put several resources into each")
    except OSError as error:
        raise FolderError(
            f"{error.filename}: {error.strerror}: make it readable; until then nothing is changed"
        ) from None
    return texts


def _raise(error: OSError) -> None:
    raise error


def read_text(path: Path) -> str | Unreadable | None:
    """The text of a file; None if it was deleted or is no regular file."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Unreadable(f"cannot be read: {error.strerror}")
    return text_of(content)


def text_of(content: bytes) -> str | Unreadable:
    """The text of a file's content, of which the first `MAX_FILE` bytes and one more are enough."""
    if len(content) > MAX_FILE:
        return Unreadable(f"longer than {MAX_FILE} bytes: split it")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return Unreadable("not UTF-8 text: save it as UTF-8")


async def notice(folder: Path, changed: asyncio.Event, again_s: float) -> None:
    """Set `changed` whenever files change. If watching fails, log it, and watch again after `again_s` seconds."""
    while True:
        try:
            async for _ in awatch(folder, watch_filter=_Visible(folder), step=SETTLE_MS, recursive=True):
                changed.set()
        except Exception as error:  # noqa: BLE001 - regular comparisons go on, and watching is tried again
            log.warning("changes go unnoticed until the next comparison", extra={"folder": folder, "detail": error})
        await asyncio.sleep(again_s)


class _Visible:
    """A filter for changes of YAML files and of folders: databases and editors' drafts change too often."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def __call__(self, change: Change, path: str) -> bool:
        inner = Path(os.path.relpath(path, self._folder))
        if inner.name == "..data":  # the link by which Kubernetes changes a mounted ConfigMap or Secret
            return True
        return inner.suffix in ("", *SUFFIXES) and not any(part.startswith(".") for part in inner.parts)
