"""All promises hold after each of over a hundred stories of fleets with random faults, each from a seed."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from server.store import rollouts
from tests.simulation.promises import BrokenPromiseError, check
from tests.simulation.replica import Replica
from tests.simulation.story import FLEETS, MISLED, RESTORED, copied, drawn, held, pausing, play, shared, windowed

SMALL = 20
"""A seed from which a small fleet is drawn."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(100))
def test_every_promise_holds_where_one_to_four_servers_share_a_database(seed: int) -> None:
    check(play(seed, shared(seed)))


@pytest.mark.parametrize("seed", range(5))
def test_every_promise_holds_where_hosts_run_few_jobs_at_once_and_are_drained(seed: int) -> None:
    """Nothing begins on a host that is drained, or whose agent stops; that interrupts nothing; and what falls due
    meanwhile is made up for once."""
    check(play(seed, held(seed)))


@pytest.mark.parametrize("seed", [0, 2, 5, 9])
def test_every_promise_holds_where_schedules_pause_and_nothing_of_them_begins_until_they_are_resumed(seed: int) -> None:
    told: list[str] = []
    check(play(seed, pausing(seed), told.append))
    assert sum("user: resumes" in line for line in told) > 2


def test_a_job_of_a_paused_schedule_that_begins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "paused", lambda conn, ids: set())
    with pytest.raises(BrokenPromiseError, match="is paused"):
        check(play(5, pausing(5)))


@pytest.mark.parametrize("seed", range(3))
def test_every_promise_holds_where_copies_need_two_repositories_that_have_few_slots(seed: int) -> None:
    """Both are never fuller than they may be; no prune of one of them runs beside a copy; and all get their turn."""
    story = play(seed, copied(seed))
    check(story)
    assert any(use.command.kind == "copy" for use in story.uses.values())


def test_a_copy_beside_a_job_that_needs_its_source_alone_is_found() -> None:
    story = play(1, copied(1))
    prune = next(it for it in story.uses.values() if it.command.kind == "prune" and it.end is not None)
    lane = prune.command.repository
    copies = (it for it in story.uses.values() if it.command.from_repository == lane)
    copy = next(it for it in copies if it.begin > prune.begin)
    copy.host, copy.begin = prune.host, prune.begin
    with pytest.raises(BrokenPromiseError, match=f"used {lane}.* at once"):
        check(story)


def test_every_promise_holds_after_a_month_of_faults() -> None:
    check(play(0))


@pytest.mark.parametrize("seed", range(3))
def test_every_promise_holds_after_a_month_of_faults_in_a_fleet_of_any_size(seed: int) -> None:
    check(play(seed, drawn(seed)))


@pytest.mark.parametrize("seed", range(2))
def test_every_promise_holds_where_older_databases_were_put_back(seed: int) -> None:
    story = play(seed, RESTORED)
    check(story)
    assert story.put_back


@pytest.mark.parametrize("seed", [7, 39, 196])
def test_every_promise_holds_where_the_servers_clock_was_wrong_as_well(seed: int) -> None:
    told: list[Any] = []
    check(play(seed, MISLED, told.append))
    assert any("server: clock is set" in line for line in told)


@pytest.mark.parametrize("seed", range(3))
def test_every_promise_holds_where_schedules_have_windows_and_nothing_begins_outside_them(seed: int) -> None:
    check(play(seed, windowed(seed)))


def test_a_job_that_begins_outside_its_windows_is_found() -> None:
    story = play(2, windowed(2))
    known = ((story.specs[it.command.schedule_id], it) for it in story.uses.values())
    use = next(it for specs, it in known if len(specs) == 1 and specs[0][1].windows)
    use.begin = use.begin.replace(hour=20)
    with pytest.raises(BrokenPromiseError, match="outside the windows"):
        check(story)


def test_a_job_that_runs_beyond_its_window_though_it_is_to_stop_is_found() -> None:
    story = play(1, windowed(1))
    check(story)
    stopped = [it for it in story.uses.values() if story.said.get(it.command.job_id) == "interrupted"]
    assert len(stopped) > 3
    use = next(it for it in stopped if len(story.specs[it.command.schedule_id]) == 1)
    use.end = use.begin + timedelta(hours=16)
    with pytest.raises(BrokenPromiseError, match="after its window had closed"):
        check(story)


def test_a_host_that_runs_twice_what_it_joined_is_found_and_one_that_does_not_run_it() -> None:
    story = play(7, windowed(7))
    check(story)
    joined = [row for row in story.db.jobs.values() if row.job.actor_kind == "join"]
    assert len(joined) > 5
    story.db.jobs["again"] = joined[0]
    with pytest.raises(BrokenPromiseError, match=r"as joined at .* and again"):
        check(story)
    del story.db.jobs["again"]
    agent = story.agents[0]
    agent.ills, agent.ill_since = [(story.begin, story.begin)], None
    schedule_id = next(iter(story.servers[0].placement.hosts[agent.name].entries.items))
    story.db.conn.driver.execute("INSERT OR REPLACE INTO met_hosts VALUES (?, ?, 1)", (schedule_id, agent.name))
    with pytest.raises(BrokenPromiseError, match=f"{agent.name} joined {schedule_id}, and has yet to run it"):
        check(story)


def test_a_seed_plays_the_same_story_in_every_process() -> None:
    def told(hash_seed: str) -> bytes:
        command = [sys.executable, "-m", "tests.simulation", f"{SMALL}", "--fleet", "drawn", "--about", "seed"]
        return subprocess.check_output(command, env=os.environ | {"PYTHONHASHSEED": hash_seed})

    trace = play(SMALL, drawn(SMALL)).trace.hexdigest()
    assert trace[:16] in told("1").decode()
    assert trace != play(SMALL + 1, drawn(SMALL)).trace.hexdigest()


def test_all_that_may_happen_to_servers_happens() -> None:
    told: list[str] = []
    for seed in (1, 7, 10, 23):
        play(seed, shared(seed), told.append)
    for what in (
        "is killed",
        "stops",
        "stands still",
        "goes on",
        "taken for dead",
        "takes",
        "leads",
        "is away",
        "back",
    ):
        assert any(what in line for line in told), what


def test_a_server_that_does_not_hear_the_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "follow_soon", lambda self, seconds: None)
    with pytest.raises(BrokenPromiseError, match="breaks promises"):
        check(play(1, shared(1)))


def test_a_broken_promise_is_told() -> None:
    story = play(SMALL, drawn(SMALL))
    story.db.jobs[next(iter(story.db.jobs))].end = None
    with pytest.raises(
        BrokenPromiseError, match=rf"has no end(.|\n)*python -m tests\.simulation {SMALL} --fleet drawn"
    ):
        check(story)


@pytest.mark.parametrize(("fleet", "seed"), [("misled", 3), ("drawn", SMALL)])
def test_a_broken_promise_says_how_to_play_its_story_again(fleet: str, seed: int) -> None:
    told: list[Any] = []
    story = play(seed, FLEETS[fleet](seed), told.append)
    story.db.jobs[next(iter(story.db.jobs))].end = None
    with pytest.raises(BrokenPromiseError) as broken:
        check(story)
    command = str(broken.value).partition("Play it again, line by line: python ")[2].split()
    assert subprocess.check_output([sys.executable, *command], text=True).splitlines()[: len(told)] == told
