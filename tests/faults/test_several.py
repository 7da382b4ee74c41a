"""The trial of several servers, at its smallest: it works, and every promise holds in it."""

import tempfile
from pathlib import Path

import pytest

from tests.faults.several.trial import Plan, play


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.slow
async def test_every_promise_holds_after_a_short_trial() -> None:
    pytest.importorskip("pgserver")
    with tempfile.TemporaryDirectory(prefix="lamplighter-several-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        told = await play(Plan(servers=2, agents=20, seconds=12, kill_every_s=5, stop_every_s=8), Path(folder))
    assert told.wrong == []
    assert told.faults["server killed"] > 0
    assert told.changes > 0
