"""The agent's state on disk: an append-only file of records that a kill at any byte leaves readable.

One record a line: eight hexadecimal digits of CRC-32, a space, JSON. A line that was torn by a kill fails its sum and
is dropped at the next start; a damaged line elsewhere costs only itself. When the file has outgrown what it says, it is
written anew beside itself and renamed over (rename(2) is atomic), file and folder synced. Appends happen in order, off
the event loop; all that gathered during one write share the next write and its fdatasync(2).
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
"""A journal below this is not worth compacting."""
COMPACT_FACTOR = 4
"""A journal is compacted when it has grown to this many times what it held after the last compaction."""
FLUSH_S = 5.0
"""Seconds that a flush waits for the disk."""
RETRY_S = 5.0
"""Seconds between attempts to write while the disk refuses."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


def encode(record: Record) -> bytes:
    """The line that stands for a record."""
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
    """The records of a journal, how many bytes of it end in a whole line, and how many lines were left out."""
    whole = data.rfind(b"\n") + 1
    decoded = [decode(line) for line in data[:whole].split(b"\n")[:-1]]
    records = [record for record in decoded if record is not None]
    return records, whole, len(decoded) - len(records) + (whole < len(data))


class Journal:
    """An open journal, written while `run` runs. One process at a time; `close` it, or let the process end."""

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
        """Open the journal at that path, making it and its folder where missing, and the state that it holds.

        Raises JournalError when another process has it open or the file cannot be read or written.
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
            raise JournalError(f"{path} is in use by another agent: stop it, or choose another folder") from None
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}: the agent needs a folder that it can write") from error

    def _load(self) -> AgentState:
        """Lock the journal, and write it anew with the state that it holds, without what was torn."""
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        records, _, lost = read(self.path.read_bytes() if self.path.exists() else b"")
        if lost:
            log.warning("journal: lines left out that were torn or damaged", extra={"path": self.path, "lines": lost})
        state = replay(records)
        self._write_anew(_lines(state))
        return state

    def append(self, records: Sequence[Record], then: Callable[[], None] | None = None) -> None:
        """Write records soon, in order, and call `then` once they are on disk. While the disk refuses, that waits."""
        self._lines.extend(map(encode, records))
        if then is not None:
            self._waiting.append(then)
        self._more.set()

    def compact(self, state: AgentState) -> bool:
        """Write the file anew from that state, which holds all that was appended, if the file has outgrown it."""
        if self._size < max(COMPACT_BYTES, COMPACT_FACTOR * self._base) or self._rewrite is not None:
            return False
        self._rewrite, self._lines = _lines(state), []
        self.append(())
        return True

    async def flush(self) -> None:
        """Return when all that was appended is on disk, or after FLUSH_S seconds."""
        flushed = asyncio.Event()
        self.append((), flushed.set)
        try:
            async with asyncio.timeout(FLUSH_S):
                await flushed.wait()
        except TimeoutError:
            log.error("journal: the disk took too long for the last records", extra={"path": self.path})

    def close(self) -> None:
        """Release the file; what is not on disk by now never happened. Idempotent."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    async def run(self) -> None:
        """Write what is appended until cancelled; what gathers during one write goes with the next. Raises what a
        `then` raises."""
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
        write = partial(self._write, lines, sync=sync) if anew is None else partial(self._write_anew, anew + lines)
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # the file is not let go of while a thread writes to it
            raise
        except OSError as error:
            log.error("journal: cannot write, trying again", extra={"reason": error.strerror, "path": self.path})
            return False
        return True

    def _write(self, lines: bytes, *, sync: bool) -> None:
        os.ftruncate(self._fd, self._size)  # an attempt that failed may have left half a line
        done = 0
        while done < len(lines):
            done += os.write(self._fd, lines[done:])
        if sync:
            os.fdatasync(self._fd)
        self._size += done

    def _write_anew(self, lines: bytes) -> None:
        """Put a file with these lines in place of the journal, whole or not at all."""
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
