"""Each row of the benchmarks runs to its end at its smallest size and says what it measured."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import ROWS
from bench.result import Result
from tests.cluster.apiserver import missing

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(argv, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, check=False)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_can_be_measured(row: str) -> None:
    if ROWS[row].needs_cluster and (programs := missing()):
        pytest.skip(f"needs a Kubernetes API server: {' and '.join(programs)} are not in KUBEBUILDER_ASSETS")
    done = bench("--smallest", "--json", row)
    assert done.returncode in (0, 1), done.stderr.decode()  # 1: limits are missed, which they may be at this size
    results = msgspec.json.decode(done.stdout, type=list[Result])
    assert {result.row for result in results} == {row}
    assert all(result.measured > 0 and result.what for result in results)


def test_a_table_shows_all_rows_that_were_asked_for() -> None:
    done = bench("--smallest", "load-server", "load-agent")
    assert done.returncode in (0, 1), done.stderr.decode()
    rows = [line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("│")]
    assert [name for name in rows if name in ROWS] == ["load-server", "load-agent"]


def test_a_row_that_is_not_there_is_named() -> None:
    done = bench("no-such-row")
    assert done.returncode == 2
    assert b"there is no row no-such-row" in done.stderr
