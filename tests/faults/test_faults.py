"""Every promise holds after a few rounds of faults, and each check finds what was broken on purpose."""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from agent.core.state import Accepted
from agent.journal import encode
from tests.faults import __main__ as command
from tests.faults import finding, rounds
from tests.faults.checks import Evidence, Held, Job, Kept, Row, Run, violations
from tests.faults.clock import Clock, Clocks
from tests.faults.inject import KINDS as INJECTED
from tests.faults.link import Link
from tests.faults.plan import KINDS, plan

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


SEEDS = (1, 13)
"""With and without `lamplighter up`, and a stand-in for restic. `make faults` plays rounds with restic as well."""


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_promise_holds_after_a_round_of_faults(seed: int) -> None:
    async with aclosing(rounds.play(seed, 1)) as played:
        [it] = [it async for it in played]
    assert it.wrong == []
    assert it.done.total() > 0
    assert it.jobs > 0


def test_the_seeds_of_the_quick_rounds_differ_in_what_they_run() -> None:
    assert {plan(seed).setup for seed in SEEDS} == {(False, False), (True, False)}


def test_stories_are_played_as_they_are_played_again_and_only_rounds_are_hurried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[str] = []

    def stories(console: Console, seeds: int) -> bool:
        began.append(f"{seeds} stories")
        return True

    async def played(console: Console, first: int, count: int, jobs: int, *, keep_going: bool) -> bool:
        began.append(f"{count} rounds")
        return True

    monkeypatch.setattr(sys, "argv", ["faults", "--seeds", "7", "--rounds", "3"])
    monkeypatch.setattr(command, "simulate", stories)
    monkeypatch.setattr(command, "hurry", lambda: began.append("hurry"))
    monkeypatch.setattr(command, "play", played)
    monkeypatch.setattr(logging, "disable", lambda: None)
    assert command.main() == 0
    assert began == ["7 stories", "hurry", "3 rounds"]


def test_a_seed_always_makes_the_same_plan_and_every_kind_of_fault_comes() -> None:
    plans = [plan(seed) for seed in range(300)]
    assert plans == [plan(seed) for seed in range(300)]
    assert {fault.kind for it in plans for fault in it.faults} == KINDS.keys() == INJECTED.keys()


# What the checks find.


def job(minute: int, schedule: str = "minutely", **but: Any) -> Job:
    due = NOON + minute * MINUTE
    common = Job(f"job-{minute}", schedule, schedule, "node-1", "backup", due, 0, "succeeded", 1, due, f"{minute:08}")
    return common._replace(**but)


def found(jobs: list[Job], **but: Any) -> Evidence:
    """What is found where all is well, but for these jobs, and for what else is told."""
    kept = Kept("minutely", "minutely", "node-1", 1, NOON)
    row, held = Row((3, "ab"), (3, "ab")), Held(3, "ab", (), 0)
    runs = [Run(job.host, job.schedule, job.snapshot_id) for job in jobs]
    well = Evidence(
        NOON + 3 * MINUTE,
        jobs,
        [kept],
        {"node-1": row},
        {"node-1": held},
        runs,
        {"strict": 90.0},
        {"shared": 2, "rare": 0},
    )
    return well._replace(**but)


WELL = [job(1), job(2), job(3)]


def test_where_all_is_well_nothing_is_found() -> None:
    assert violations(found(WELL)) == []


def test_a_run_that_counts_those_before_it_stands_for_them() -> None:
    assert violations(found([job(3, missed=3)])) == []


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (found([*WELL, job(2, id="again", snapshot_id="9")]), "minutely on node-1 has 2 jobs due 2026-03-02 12:02"),
        (found([job(1), job(3)]), "has no job due 2026-03-02 12:02:00+00:00, and that of 2026-03-02 12:03"),
        (found([job(3, missed=2)]), "has no job due 2026-03-02 12:01:00+00:00, and that of 2026-03-02 12:03"),
        (found([job(1), job(2)]), "has no job due 2026-03-02 12:03:00+00:00, and no later one"),
        (found([*WELL, job(0, "strict", created_at=NOON + 2 * MINUTE)]), "strict on node-1, due 2026-03-02 12:00"),
        (found([*WELL, job(4, "rare")]), "rare on node-1 has a job due 2026-03-02 12:04"),
        (found([*WELL, job(3, "shared")]), "shared on node-1 has a job due 2026-03-02 12:03"),
        (found([*WELL, job(5, created_at=NOON + 3 * MINUTE)]), "due 2026-03-02 12:05:00+00:00, was let in at"),
        (found([job(1), job(2), job(3, status="running")]), "job job-3 of minutely on node-1"),
        (found(WELL, held={"node-1": Held(3, "ab", ("an end",), 0)}), "node-1 still has an end"),
        (found(WELL, hosts={"node-1": Row((3, "ab"), (2, "aa"))}), "node-1 acked (2, 'aa')"),
        (found(WELL, held={"node-1": Held(3, "cd", (), 0)}), "the journal of node-1 holds (3, 'cd')"),
        (found(WELL, runs=[Run("node-1", "minutely", f"{at:08}") for at in range(4)]), "ran 4 times in 3 attempts"),
        (found(WELL, runs=[Run("node-1", "minutely", f"{at:08}") for at in (1, 2)]), "and ran 2 times"),
        (found([job(1), job(2, snapshot_id="00000001"), job(3)]), "snapshot 00000001 is that of 2 jobs"),
        (found(WELL, runs=[Run("node-1", "minutely", "00000001")] * 3), "snapshot 00000001 was made 3 times"),
        (found([*WELL[:2], job(3, snapshot_id="99")], runs=found(WELL).runs), "snapshot 99 is told of by a job"),
        (found(WELL, held={"node-1": Held(3, "ab", (), 1)}), "the journal of node-1 has 1 lines"),
        (found(WELL, problems=["repository own is damaged"]), "repository own is damaged"),
    ],
)
def test_what_is_broken_on_purpose_is_found(broken: Evidence, says: str) -> None:
    assert any(says in wrong for wrong in violations(broken)), violations(broken)


def test_a_journal_tells_what_is_left_to_say_and_what_cannot_be_read(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(encode(Accepted("job-1")) + b"00000000 {}\n")
    held = finding.held(journal)
    assert (len(held.open), held.lost) == (1, 1)
    assert "job-1" in held.open[0]


def test_a_due_time_that_an_older_database_lost_and_has_again_may_run_once() -> None:
    lost = {"lost": job(2, id="lost", attempt=2), "gone": job(1, id="gone", status="pending")}
    known = finding.with_lost([job(2), job(3)], lost)
    assert {(it.id, it.attempt, it.status) for it in known} == {
        ("job-2", 2, "succeeded"),
        ("job-3", 1, "succeeded"),
        ("gone", 1, "forgotten"),
    }
    runs = [Run("node-1", "minutely", f"{at:08}") for at in (2, 3, 4, 5, 6)]
    assert any("ran 5 times in 4 attempts" in wrong for wrong in violations(found(known, runs=runs)))


def test_seeds_of_one_fleet_are_played_together() -> None:
    assert rounds.fleets(7, 25) == [(7, 10), (10, 20), (20, 30), (30, 32)]
    assert rounds.fleets(20, 10) == [(20, 30)]
    assert rounds.fleets(20, 0) == []


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lamplighter.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, filler TEXT)")
        database.executemany("INSERT INTO jobs VALUES (?, ?)", ((str(at), "x" * 500) for at in range(200)))
    database.close()
    assert finding.unsound(path) == []
    data = bytearray(path.read_bytes())
    data[5 * 4096 : 5 * 4096 + 64] = bytes(64)
    path.write_bytes(data)
    assert finding.unsound(path)


# What the faults are made of.


def test_a_clock_runs_fast_and_is_set_for_all_who_read_it(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path, ["node-1", "node-2"], NOON)
    clocks.run(NOON, 1e3)
    clocks.move("node-1", timedelta(days=-5))
    first, second = (Clock(tmp_path / f"{name}.clock") for name in ("node-1", "node-2"))
    assert first() < second()
    earlier = second()
    assert NOON < earlier < second()
    clocks.move("node-1", timedelta(days=5))
    ahead = first()
    clocks.move("node-1", timedelta())
    assert first() < ahead <= clocks.farthest()


@pytest.fixture
async def echo() -> AsyncIterator[Any]:
    """A WebSocket server that says all again."""

    async def say_again(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with serve(say_again, "127.0.0.1", 0, compression=None) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.anyio
async def test_a_link_doubles_whole_frames_and_loses_what_is_said_while_it_is_deaf(echo: Any) -> None:
    async with Link(echo) as link, connect(f"ws://127.0.0.1:{link.port}/agent", compression=None, proxy=None) as socket:
        long = "x" * 70_000
        link.twice = {"agent", "server"}
        await socket.send(long)
        assert [await socket.recv() for _ in range(4)] == [long] * 4
        link.twice = set()
        link.stall()
        await socket.send("late")
        link.flow()
        assert await socket.recv() == "late"
        link.deaf = True
        await socket.send("lost")
        link.cut("server")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                assert not await socket.recv()
        link.deaf = False
        await socket.wait_closed()


@pytest.mark.slow
def test_a_round_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    heeding = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_module"
    command = [sys.executable, "-c", f"{heeding}('tests.faults', run_name='__main__')", "--seed", "1", "--rounds", "2"]
    assert asyncio.run(interrupted(command, tmp_path)) == 130
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in said(path)] == []


async def interrupted(command: list[str], folder: Path) -> int | None:
    """The exit code of a command that gets a Ctrl-C once its agents run, with all of their files in a folder."""
    env = {**os.environ, "TMPDIR": str(folder)}
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, env=env, cwd=Path(__file__).parents[2])
    while not list(folder.glob("*/node-1.log")):
        assert process.returncode is None
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    return process.returncode


def said(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
