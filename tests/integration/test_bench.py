"""Each row of the benchmarks runs to its end at its smallest size and says what it measured."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import ROWS
from bench.line import TEXT, Frames, framed
from bench.result import Result, slope
from tests.cluster.apiserver import missing

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(argv, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, check=False)


SLOWER = {
    "schedules-ready",
    "controller-restart",
    "growth-hosts",
    "growth-schedules",
    "growth-jobs",
    "fleet",
    "servers",
    "lists",
    "scale",
    "fire-postgresql",
}
"""Rows that take longest to begin. `make faults` has them measured, too."""


@pytest.mark.parametrize("row", ROWS)
def test_a_row_can_be_measured(row: str) -> None:
    if row in SLOWER and "LAMPLIGHTER_FUZZ" not in os.environ:
        pytest.skip("`make faults` measures it")
    if ROWS[row].needs_cluster and (programs := missing()):
        pytest.skip(f"needs a Kubernetes API server: {' and '.join(programs)} are not in KUBEBUILDER_ASSETS")
    if ROWS[row].needs_postgresql:
        pytest.importorskip("pgserver")
    done = bench("--smallest", "--json", "-", row)
    assert done.returncode in (0, 1), done.stderr.decode()  # 1: limits are missed, which they may be at this size
    results = msgspec.json.decode(done.stdout, type=list[Result])
    assert {result.row for result in results} == {row}
    assert all(result.measured > 0 and result.what for result in results if result.unit != "slope")


def test_a_table_shows_all_rows_that_were_asked_for_and_a_file_has_them_too(tmp_path: Path) -> None:
    done = bench("--smallest", "--json", str(tmp_path / "found.json"), "load-server", "load-agent")
    assert done.returncode in (0, 1), done.stderr.decode()
    rows = [line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("│")]
    assert [name for name in rows if name in ROWS] == ["load-server", "load-agent"]
    written = msgspec.json.decode((tmp_path / "found.json").read_bytes(), type=list[Result])
    assert [result.row for result in written] == ["load-server", "load-agent"]


def test_the_loads_hosts_take_frames_in_whatever_pieces_they_come() -> None:
    frames = Frames()
    sent = [b"", b"a" * 125, b"b" * 126, b"c" * 70_000]
    data = b"".join(unmasked(text) for text in sent)
    heard = [frame for at in range(0, len(data), 37) for frame in frames.take(data[at : at + 37])]
    assert heard == [(TEXT, text) for text in sent]


def unmasked(text: bytes) -> bytes:
    """The frame that a server sends: without the mask's bit and key."""
    data = framed(text)
    head = len(data) - len(text) - 4
    return bytes((data[0], data[1] & 127)) + data[2:head] + text


def test_a_slope_is_the_exponent_of_growth_between_the_two_largest_sizes() -> None:
    assert slope({1: 9.0, 10: 10.0, 100: 100.0}) == pytest.approx(1)
    assert slope({10: 7.0, 1000: 7.0}) == 0
    assert slope({10: 1.0, 100: 100.0}) == pytest.approx(2)


def test_a_row_that_is_not_there_is_named() -> None:
    done = bench("no-such-row")
    assert done.returncode == 2
    assert b"there is no row no-such-row" in done.stderr
