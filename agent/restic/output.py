"""Reads the lines that restic prints. No I/O.

Sources: restic's manual, chapter "Scripting" (JSON output), and its source (internal/ui/backup/json.go,
internal/ui/restore/json.go), read for 0.14, 0.17, 0.18 and 0.19.
"""

import os
import re
from collections.abc import Collection
from contextlib import suppress

import msgspec
from msgspec import Raw, Struct

MAX_LINE = 1 << 20
"""Bytes of one line that are read; the rest of a longer line is dropped."""
MAX_TEXT = 4096
"""Characters of one text on the wire (`wire.messages.Text`)."""


class Status(Struct, frozen=True):
    """restic's progress. `fraction`: 0 to 1. Counts are 0 if restic does not report them."""

    fraction: float
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


class Summary(Struct, frozen=True):
    """The totals of a backup, or of a restore (since restic 0.16).

    `snapshot_id`: of a backup; 64 digits, or 8 before restic 0.15. `bytes_added`: before compression. `bytes_stored`:
    of them, what the repository grew by; 0 before restic 0.17.
    """

    snapshot_id: str
    files_processed: int
    bytes_processed: int
    bytes_added: int
    bytes_stored: int = 0


class Unreadable(Struct, frozen=True):
    """A path that restic could not read, so that it is not in the snapshot. `text`: path and reason, for people."""

    text: str
    path: str


class LogLine(Struct, frozen=True):
    """Text for people; it may contain line breaks."""

    text: str


Output = Status | Summary | Unreadable | LogLine


class _Message(Struct):
    """The fields of restic's JSON messages that are read here."""

    message_type: str = ""
    percent_done: float = 0.0
    files_done: int = 0
    total_files: int = 0
    bytes_done: int = 0
    total_bytes: int = 0
    snapshot_id: str = ""
    total_files_processed: int = 0
    total_bytes_processed: int = 0
    data_added: int = 0
    data_added_packed: int = 0
    files_restored: int = 0
    bytes_restored: int = 0
    error: Raw = Raw(b"{}")
    during: str = ""
    item: str = ""
    message: str = ""


class _Error(Struct):
    """A Go error as JSON: its text since 0.16, the fields of an os.PathError before."""

    message: str = ""
    op: str = msgspec.field(default="", name="Op")
    path: str = msgspec.field(default="", name="Path")
    errno: int = msgspec.field(default=0, name="Err")


_messages = msgspec.json.Decoder(_Message)
_errors = msgspec.json.Decoder(_Error)
_ERRORS = re.compile(r"(?:Fatal: )?There were (\d+) errors")
_BAR = re.compile(r"\[[0-9:]+\] +([0-9.]+)%  [0-9]+ / [0-9]+ .*")
_REMAINING = re.compile(r"remaining: +[0-9]+ blobs / ([0-9]{1,15}(?:\.[0-9]{1,3})?) (B|KiB|MiB|GiB|TiB)")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SKIPPED = re.compile(r"(.*) (does not exist|cannot be accessed), skipping")
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def read_line(line: bytes) -> Output | None:
    """Read a line of restic's stdout or stderr; None for a line that is not needed. Never raises.

    A line that is neither a JSON message of restic nor a progress bar is a log line.
    """
    if line.startswith(b"{"):
        try:
            return _read_message(_messages.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    text = printable(line)
    if bar := _BAR.fullmatch(text):
        return Status(_fraction(float(bar[1]) / 100)) if bar[1].count(".") == 1 else None
    if skipped := _SKIPPED.fullmatch(text):  # restic before 0.19 exits with 0 all the same
        return Unreadable(text, skipped[1])
    return LogLine(text) if text else None


def is_left_out(line: bytes, paths: Collection[str]) -> bool:
    """Whether a line reports that one of these paths, or the capabilities of any file, could not be restored."""
    if line.startswith(b"{"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = _messages.decode(line)
            is_error = message.message_type == "error" and message.during == "restore"
            return is_error and (message.item in paths or b"security.capability" in line)
    text = printable(line)
    _, begins, said = text.partition("ignoring error for ")
    parts = said.split(": ")  # a path may contain it, too
    found = any(": ".join(parts[:at]) in paths for at in range(1, len(parts)))
    return bool(begins) and (found or "security.capability" in text)


def count_of_errors(line: bytes) -> int | None:
    """The number of errors in restic's last line about a failed restore; None for any other line."""
    text = printable(line)
    if line.startswith(b"{"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = _messages.decode(line).message
    found = _ERRORS.fullmatch(text.strip())
    return int(found[1]) if found else None


def remaining_bytes(text: str) -> int | None:
    """The bytes that restic says are left in a repository after a prune; None for any other line.

    restic rounds to a thousandth of a unit. Source: cmd/restic/cmd_prune.go (printPruneStats) of 0.14 and 0.19.
    """
    if (found := _REMAINING.fullmatch(text)) is None:
        return None
    return _count(round(float(found[1]) * 1024 ** _UNITS.index(found[2])))


def printable(line: bytes) -> str:
    """The line as text, without control characters and escape sequences."""
    return _UNPRINTABLE.sub("", line.decode(errors="replace")).strip()


def _read_message(message: _Message) -> Output | None:
    match message.message_type:
        case "status":
            files, size = message.files_done or message.files_restored, message.bytes_done or message.bytes_restored
            counts = (files, message.total_files, size, message.total_bytes)
            return Status(_fraction(message.percent_done), *map(_count, counts))
        case "summary":
            files = message.total_files_processed or message.files_restored
            size = message.total_bytes_processed or message.bytes_restored
            sums = (files, size, message.data_added, message.data_added_packed)
            return Summary(_UNPRINTABLE.sub("", message.snapshot_id)[:64], *map(_count, sums))
        case "error":
            path = _UNPRINTABLE.sub("", message.item)
            text = _UNPRINTABLE.sub("", f"{message.item}: {_error_text(message)}")
            return LogLine(text) if message.during == "scan" else Unreadable(text, path)  # a scan only counts files
        case "exit_error":
            return LogLine(_UNPRINTABLE.sub("", message.message).strip())
    return None


def _error_text(message: _Message) -> str:
    try:
        error = _errors.decode(message.error)
    except msgspec.DecodeError:
        return bytes(message.error).decode(errors="replace")
    return error.message or f"{error.op} {error.path}: {os.strerror(error.errno)}"


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _count(value: int) -> int:
    return min(max(value, 0), 2**53)


def clipped(text: str) -> str:
    """The text, cut to MAX_TEXT characters."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


class Lines:
    """Splits a stream into lines, each cut to `limit` bytes."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._part = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this data completes."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._keep(piece)
            lines += self.rest()
        self._keep(rest)
        return lines

    def rest(self) -> list[bytes]:
        """The last line, if it had no line break. Call this at the end of the stream."""
        line, self._part = bytes(self._part), bytearray()
        return [line] if line else []

    def _keep(self, piece: bytes) -> None:
        self._part += piece[: max(0, self._limit - len(self._part))]
