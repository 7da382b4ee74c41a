"""Promise 2: whatever the disk did and however the agent ended, its journal says again what was written."""

import asyncio
import logging
import resource
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from agent import journal as journals
from agent.core.state import (
    Accepted,
    AgentState,
    Answered,
    Confirmed,
    CursorsMoved,
    DiffApplied,
    Ended,
    Fired,
    Record,
    SetApplied,
    replay,
)
from agent.journal import Journal, JournalError, decode, encode, read
from wire.entries import encode_entry
from wire.messages import Entry, JobFinished, ScheduleDiff, ScheduleFire, ScheduleSet

pytestmark = pytest.mark.anyio

AT = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "journal.jsonl"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Journal, AgentState]]:
    """A journal at work, and the memory that it held when it was opened."""
    journal, memory = Journal.open(path)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(journal.run())
            yield journal, memory
            await journal.flush()
            running.cancel()
    finally:
        journal.close()


def reopened(path: Path) -> AgentState:
    journal, memory = Journal.open(path)
    journal.close()
    return memory


def entry(key: str, name: str = "ns/etc") -> Raw:
    return Raw(encode_entry(Entry(key, name, "0 2 * * *", AT, "1")))


def a_day() -> list[Any]:
    """Records of all kinds, as a day writes them."""
    due = AT + timedelta(hours=1)
    return [
        SetApplied(ScheduleSet(1, [entry("s1"), entry("s2")], AT)),
        DiffApplied(ScheduleDiff(1, 2, [entry("s3", "ns/größe")], ["s2"])),
        Fired([ScheduleFire("s1", due), ScheduleFire("s3", due, 4)]),
        Accepted("j1", "s1", due),
        Ended(JobFinished("j1", "succeeded", due, snapshot_id="5ea1ed")),
        Confirmed(["j1"]),
        Accepted("j2", "s3", due),
        CursorsMoved([("s1", due + timedelta(days=1))]),
        Answered("s3", due),
    ]


def state(memory: AgentState) -> list[Any]:
    entries = {key: item.raw for key, item in memory.entries.items.items()}
    names = ("version", "digest", "cursors", "fires", "running", "ends", "done")
    return [entries, *(getattr(memory, name) for name in names)]


# Records.


KEYS, JOBS = st.sampled_from(["s1", "s2", "s3"]), st.sampled_from(["j1", "j2", "j3"])
TIMES = st.integers(-3, 3).map(lambda hours: AT + timedelta(hours=hours))
ENTRIES = st.builds(entry, KEYS, st.sampled_from(["ns/a", "ns/b"]))
VERSIONS = st.integers(0, 3)
RECORDS = st.one_of(
    st.builds(SetApplied, st.builds(ScheduleSet, VERSIONS, st.lists(ENTRIES, max_size=3), st.none() | TIMES)),
    st.builds(
        DiffApplied,
        st.builds(ScheduleDiff, VERSIONS, VERSIONS, st.lists(ENTRIES, max_size=2), st.lists(KEYS), st.none() | TIMES),
    ),
    st.builds(CursorsMoved, st.lists(st.tuples(KEYS, TIMES), max_size=3)),
    st.builds(Fired, st.lists(st.builds(ScheduleFire, KEYS, TIMES, st.integers(0, 9)), max_size=3)),
    st.builds(Answered, KEYS, TIMES),
    st.builds(Accepted, JOBS, KEYS, st.none() | TIMES),
    st.builds(Ended, st.builds(JobFinished, JOBS, st.sampled_from(["succeeded", "failed"]), TIMES)),
    st.builds(Confirmed, st.lists(JOBS, max_size=3)),
)  # fmt: skip


@given(st.lists(RECORDS, max_size=12))
def test_a_compacted_journal_says_what_the_whole_one_said(records: list[Any]) -> None:
    memory = replay(records)
    assert state(replay(memory.records())) == state(memory)


OLD = b"""
2cb14fa1 {"type":"set","push":{"version":3,"schedules":[{"id":"s1","name":"ns/a","cron":"0 2 * * *"}]}}
9a074290 {"type":"diff","push":{"base":3,"version":4,"upsert":[{"id":"s2","name":"ns/b","cron":"0 * * * *"}]}}
772d60d8 {"type":"passed","due":[["s1","2025-01-15T08:00:00Z"]]}
3587b0c5 {"type":"removed","due":[["s0","2025-01-14T08:00:00Z"]]}
7b7666f3 {"type":"fired","fires":[{"schedule_id":"s2","scheduled_at":"2025-01-15T08:00:00Z","missed":1}]}
d2db3164 {"type":"fired","fires":[{"schedule_id":"s1","scheduled_at":"2025-01-15T08:00:00Z"}]}
6ec978da {"type":"answered","schedule_id":"s1","scheduled_at":"2025-01-15T08:00:00Z"}
f52c7b50 {"type":"accepted","job_id":"j1","schedule_id":"s1","scheduled_at":"2025-01-15T08:00:00Z"}
b6129f27 {"type":"accepted","job_id":"j2","schedule_id":"","scheduled_at":null}
a6dc8822 {"type":"ended","end":{"job_id":"j1","status":"succeeded","finished_at":"2025-01-15T08:00:00Z"}}
767222f4 {"type":"confirmed","job_ids":["j1"]}
81b4dd80 {"type":"ran","runs":[["s2","2025-01-15T07:00:00Z","j0"]]}
"""
"""A journal of release 0.1.0, with a record of each kind."""


def test_a_journal_of_an_earlier_release_reads_as_it_did() -> None:
    old = OLD.lstrip()
    records, whole, lost = read(old)
    assert (whole, lost, b"".join(map(encode, records))) == (len(old), 0, old)
    held, at = replay(records), datetime(2025, 1, 15, 8, tzinfo=UTC)
    assert (held.version, list(held.entries.items)) == (4, ["s1", "s2"])
    assert held.cursors == {"s1": at, "s2": at}
    assert held.removed == {"s0": at - timedelta(days=1)}
    assert held.fires == {"s2": ScheduleFire("s2", at, 1)}
    assert (list(held.running), held.ends, list(held.done), list(held.confirmed)) == (["j2"], {}, ["j1"], ["j1"])
    assert set(held.ran.values()) == {"j0", "j1"}


@given(st.lists(RECORDS, max_size=12))
def test_records_come_back_from_their_lines(records: list[Any]) -> None:
    data = b"".join(map(encode, records))
    again, whole, lost = read(data)
    assert (whole, lost) == (len(data), 0)
    assert b"".join(map(encode, again)) == data


def test_a_record_of_a_later_version_is_left_out_and_its_neighbours_are_not() -> None:
    body = b'{"type":"invented","x":1}'
    later = b"%08x %s\n" % (zlib.crc32(body), body)
    assert read(encode(Confirmed(["j1"])) + later + encode(Confirmed(["j2"]))) == (
        [Confirmed(["j1"]), Confirmed(["j2"])],
        len(encode(Confirmed(["j1"])) * 2 + later),
        1,
    )


# Kills and damage.


async def test_a_kill_at_any_byte_loses_the_torn_record_and_no_other(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.append(a_day())
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for length in range(len(data) + 1):
        whole = [decode(line[:-1]) for line in data[:length].splitlines(keepends=True) if line.endswith(b"\n")]
        records, end, lost = read(data[:length])
        assert records == [decode(line[:-1]) for line in lines[: len(whole)]]
        assert (end, lost) == (sum(map(len, lines[: len(whole)])), int(end < length))


async def test_a_flipped_bit_loses_the_lines_it_is_in_and_no_other(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.append(a_day())
    data = path.read_bytes()
    for at in range(len(data)):
        records, _, _ = read(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        neighbours = [line for line, begin, end in _spans(data) if not begin <= at < end]
        kept = list(map(encode, records))
        missing = 1 if data[at : at + 1] == b"\n" else 0  # it was all that kept the next line apart
        assert len(kept) >= len(neighbours) - missing
        assert set(kept) <= set(data.splitlines(keepends=True))


def _spans(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    begin = 0
    for line in data.splitlines(keepends=True):
        yield line, begin, begin + len(line)
        begin += len(line)


async def test_a_torn_journal_is_opened_with_a_warning_and_carries_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as (journal, _):
        journal.append(a_day())
    path.write_bytes(path.read_bytes()[:-7])
    async with opened(path) as (journal, memory):
        assert state(memory) == state(replay(a_day()[:-1]))
        journal.append(a_day()[-1:])
    assert state(reopened(path)) == state(replay(a_day()))
    assert [record.getMessage() for record in caplog.records] == ["journal: torn or damaged lines dropped"]


DIES = """
import asyncio, os, pathlib, signal, sys
from agent.journal import Journal
from agent.core.state import Confirmed

async def main():
    journal, _ = Journal.open(pathlib.Path(sys.argv[1]))
    journal.append([Confirmed(["j1"])], lambda: os.kill(os.getpid(), signal.SIGKILL))
    await journal.run()

asyncio.run(main())
"""


def test_what_then_was_called_for_is_on_disk_when_the_process_is_killed(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIES, path], check=False).returncode == -signal.SIGKILL
    assert reopened(path).done == {"j1": None}


async def test_a_lost_diff_leaves_the_set_in_force_until_the_server_sends_it_whole(path: Path) -> None:
    records: list[Record] = [SetApplied(ScheduleSet(4, [entry("s1")])), DiffApplied(ScheduleDiff(5, 6, [entry("s2")]))]
    async with opened(path) as (journal, _):
        journal.append(records)
    for memory in (reopened(path), reopened(path)):
        assert (memory.version, list(memory.entries.items)) == (0, ["s1"])
        assert not memory.fits(ScheduleDiff(6, 7))


# Order, compaction, replay.


async def test_then_is_called_in_order_once_its_records_are_on_disk(path: Path) -> None:
    seen = []
    async with opened(path) as (journal, _):
        for record in a_day():
            journal.append([record], lambda: seen.append(len(read(path.read_bytes())[0])))
    assert seen == sorted(seen)
    assert all(found >= at for at, found in enumerate(seen, start=1))


async def test_a_journal_that_has_outgrown_what_it_says_is_written_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "COMPACT_BYTES", 4096)
    async with opened(path) as (journal, memory):
        for day in range(500):
            records = [CursorsMoved([("s1", AT + timedelta(days=day))])]
            for record in records:
                memory.add(record)
            journal.append(records)
            journal.compact(memory)
            await journal.flush()
            assert path.stat().st_size < 4096 + 200
    assert reopened(path).cursors == {"s1": AT + timedelta(days=499)}


async def test_opening_again_changes_nothing(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.append(a_day())
    first = state(reopened(path))
    data = path.read_bytes()
    assert state(reopened(path)) == first
    assert path.read_bytes() == data


async def test_an_error_of_then_ends_the_journal_and_is_seen(path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        async with opened(path) as (journal, _):
            journal.append([], fail)
    assert raised.group_contains(ZeroDivisionError)


# Disks.


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The system refuses to write files beyond so many bytes, to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Heard(logging.Handler):
    """Tells when something is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.set()


async def test_a_full_disk_is_waited_for_and_nothing_is_told_before_it_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journals, "RETRY_S", 0.01)
    told, heard = [], Heard()
    async with opened(path) as (journal, _):
        with files_no_longer_than(100):
            journals.log.addHandler(heard)
            journal.append(a_day(), lambda: told.append(True))
            await asyncio.wait_for(heard.said.wait(), 10)
            journals.log.removeHandler(heard)
            assert not told
    assert "not written, trying again" in caplog.text
    assert told
    assert state(reopened(path)) == state(replay(a_day()))


async def test_a_disk_that_stays_full_does_not_hold_up_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journals, "RETRY_S", 0.01)
    monkeypatch.setattr(journals, "FLUSH_S", 0.05)
    with files_no_longer_than(0):
        async with opened(path) as (journal, _):
            journal.append(a_day())
    assert "the last records were not written in time" in caplog.text
    assert state(reopened(path)) == state(AgentState())


async def test_a_write_that_fails_while_the_agent_ends_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, may_fail = threading.Event(), threading.Event()

    def write(*_: object, **__: object) -> None:
        begun.set()
        may_fail.wait(20)
        raise OSError(28, "No space left on device")

    journal, _ = Journal.open(path)
    monkeypatch.setattr(journal, "_write", write)
    running = asyncio.create_task(journal.run())
    journal.append(a_day())
    await asyncio.to_thread(begun.wait, 20)
    running.cancel()
    asyncio.get_running_loop().call_soon(may_fail.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    journal.close()
    assert "not written at the end" in caplog.text


# Who may have it.


async def test_two_agents_on_one_folder_are_one_too_many(path: Path) -> None:
    async with opened(path):
        with pytest.raises(
            JournalError, match="in use by another agent: stop that agent, or choose another data folder"
        ):
            Journal.open(path)
    assert reopened(path)


def test_the_files_are_for_this_user_only(path: Path) -> None:
    reopened(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()} == {
        "journal.jsonl": "0o600",
        "journal.lock": "0o600",
    }


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").touch()
    path.mkdir(parents=True)
    for bad in (tmp_path / "file" / "journal.jsonl", path, Path("/proc/lamplighter/journal.jsonl")):
        with pytest.raises(JournalError, match="choose a data folder that the agent can write to") as refused:
            Journal.open(bad)
        assert str(refused.value).startswith(f"{bad}: ")
        assert "\n" not in str(refused.value)


def test_a_refused_start_leaves_the_folder_free_for_the_next(path: Path) -> None:
    reopened(path)
    path.write_bytes(encode(Confirmed(["j1"])))
    with files_no_longer_than(3), pytest.raises(JournalError, match="File too large"):
        Journal.open(path)
    assert reopened(path).done == {"j1": None}
