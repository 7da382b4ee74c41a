"""The journal: the agent's state on disk, an append-only file of records that stays readable after a kill at any byte.

Each line is one record: eight hexadecimal digits of CRC-32, a space, JSON. A torn or damaged line fails its checksum,
and the next start drops that line alone. Compaction writes the state to a new file, syncs it, and renames it over the
old one (rename(2) is atomic). Writes happen in order, in a thread; records that arrive during one write share the next
write and its fdatasync(2).
"""

import asyncio
import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agent.core.state import AgentState, Record, replay
from agent.disk import sync_folder

log = logging.getLogger(__name__)

COMPACT_BYTES = 256 << 10
"""Bytes below which a journal is not compacted."""
COMPACT_FACTOR = 4
"""A journal is compacted when it has grown to this multiple of its size after the last compaction."""
FLUSH_S = 5.0
"""Seconds that a flush waits for the disk."""
RETRY_S = 5.0
"""Seconds between attempts to write while the disk reports errors."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


def encode(record: Record) -> bytes:
    """The line of a record."""
    body = _encoder.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record | None:
    """The record of a line, without its newline; None where the line is torn, damaged or from a later version."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        return _decoder.decode(line[9:])
    except (ValueError, msgspec.DecodeError):
        return None


def read(data: bytes) -> tuple[list[Record], int, int]:
    """The records of a journal, the number of bytes in whole lines, and the number of lines that were dropped."""
    whole = data.rfind(b"\n") + 1
    decoded = [decode(line) for line in data[:whole].split(b"\n")[:-1]]
    records = [record for record in decoded if record is not None]
    return records, whole, len(decoded) - len(records) + (whole < len(data))


class Journal:
    """An open journal, locked for this process until `close`. It is written while `run` runs."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._fd = -1
        self._size = self._base = 0
        self._lines: list[bytes] = []
        self._rewrite: bytes | None = None
        self._waiting: list[Callable[[], None]] = []
        self._more = asyncio.Event()

    @classmethod
    def open(cls, path: Path) -> tuple["Journal", AgentState]:
        """Open the journal at this path, creating file and folder if missing. Returns it, and the state that it holds.

        Raises JournalError when another process has it open, or the file cannot be read or written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            journal = cls(path, os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                return journal, journal._load()
            except BaseException:
                journal.close()
                raise
        except BlockingIOError:
            raise JournalError(
                f"{path} is in use by another agent: stop that agent, or choose another data folder"
            ) from None
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}: choose a data folder that the agent can write to") from error

    def _load(self) -> AgentState:
        """Lock the journal, read its state, and compact it, which removes torn and damaged lines."""
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        records, _, dropped = read(self.path.read_bytes() if self.path.exists() else b"")
        if dropped:
            log.warning("journal: torn or damaged lines dropped", extra={"path": self.path, "lines": dropped})
        state = replay(records)
        self._replace(_lines(state))
        return state

    def append(self, records: Sequence[Record], then: Callable[[], None] | None = None) -> None:
        """Have `run` write these records, in order, and call `then` once they are on disk."""
        self._lines.extend(map(encode, records))
        if then is not None:
            self._waiting.append(then)
        self._more.set()

    def compact(self, state: AgentState) -> bool:
        """If the file has grown enough, have `run` replace it by this state, which includes all appended records."""
        if self._size < max(COMPACT_BYTES, COMPACT_FACTOR * self._base) or self._rewrite is not None:
            return False
        self._rewrite, self._lines = _lines(state), []
        self.append(())
        return True

    async def flush(self) -> None:
        """Wait until all appended records are on disk, for at most FLUSH_S seconds."""
        flushed = asyncio.Event()
        self.append((), flushed.set)
        try:
            async with asyncio.timeout(FLUSH_S):
                await flushed.wait()
        except TimeoutError:
            log.error("journal: the last records were not written in time", extra={"path": self.path})

    def close(self) -> None:
        """Close and unlock the file. Records that are not on disk by now are lost. Idempotent."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    async def run(self) -> None:
        """Write appended records until cancelled. Raises what a `then` raises."""
        while True:
            await self._more.wait()
            self._more.clear()
            waiting, self._waiting = self._waiting, []
            anew, lines = self._rewrite, b"".join(self._lines)
            self._rewrite, self._lines = None, []
            while not await self._written(anew, lines, sync=bool(waiting)):
                await asyncio.sleep(RETRY_S)
            for then in waiting:
                then()

    async def _written(self, anew: bytes | None, lines: bytes, *, sync: bool) -> bool:
        write = partial(self._write, lines, sync=sync) if anew is None else partial(self._replace, anew + lines)
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # the thread must not write to a closed file
            if (error := writing.exception()) is not None:
                log.error("journal: not written at the end", extra={"reason": str(error), "path": self.path})
            raise
        except OSError as error:
            log.error("journal: not written, trying again", extra={"reason": error.strerror, "path": self.path})
            return False
        return True

    def _write(self, lines: bytes, *, sync: bool) -> None:
        os.ftruncate(self._fd, self._size)  # remove half a line that a failed attempt left
        done = 0
        while done < len(lines):
            done += os.write(self._fd, lines[done:])
        if sync:
            os.fdatasync(self._fd)
        self._size += done

    def _replace(self, lines: bytes) -> None:
        """Replace the journal by these lines, atomically."""
        beside = self.path.with_suffix(".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            while done < len(lines):
                done += os.write(fd, lines[done:])
            os.fsync(fd)
            beside.rename(self.path)
            sync_folder(self.path.parent)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._base = fd, len(lines), len(lines)


def _lines(state: AgentState) -> bytes:
    return b"".join(map(encode, state.records()))
