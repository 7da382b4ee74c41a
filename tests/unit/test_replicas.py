"""Dead servers are found by what this one sees, an outage of the database kills nobody, and agents spread evenly."""

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.replicas.balance import LONGEST_PAUSE_S, PAUSE_S, SentAway, surplus
from server.replicas.leader import Leader
from server.replicas.watch import DEAD_S, STARTING_S, Watch
from server.store.servers import ServerRow

STARTED = datetime(2026, 3, 5, 12, tzinfo=UTC)


@dataclass
class Fleet:
    """Servers' rows, looked at each second; `alive` ones write theirs every other second."""

    watch: Watch = field(default_factory=lambda: Watch("a"))
    rows: dict[str, ServerRow] = field(default_factory=dict)
    now: float = 1000.0

    def starts(self, name: str) -> None:
        self.rows[name] = ServerRow(name, name, STARTED, STARTED)

    def passes(self, seconds: int, *alive: str) -> set[str]:
        """Who was found dead meanwhile."""
        dead: set[str] = set()
        for _ in range(seconds):
            self.now += 1
            for name in alive if self.now % 2 == 0 else ():
                self.rows[name] = self.rows[name]._replace(seen_at=STARTED + timedelta(seconds=self.now))
            dead |= {row.id for row in self.watch.look(list(self.rows.values()), self.now)}
        return dead


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    for name in ("a", "b"):
        fleet.starts(name)
    assert fleet.passes(10, "a", "b") == set()
    return fleet


def test_a_server_whose_row_stands_still_is_dead_within_ten_seconds(fleet: Fleet) -> None:
    assert fleet.passes(int(DEAD_S) - 1, "a") == set()
    assert fleet.passes(3, "a") == {"b"}


@pytest.mark.parametrize("away_s", [4, 30, 3600])
def test_an_outage_of_the_database_kills_nobody(fleet: Fleet, away_s: int) -> None:
    assert fleet.passes(5) == set()  # it still answered, but took nothing
    fleet.now += away_s
    assert fleet.passes(int(DEAD_S) - 1) == set()  # the others need a moment to be back
    assert fleet.passes(60, "a", "b") == set()


def test_a_long_transaction_while_which_nobody_can_write_kills_nobody(fleet: Fleet) -> None:
    assert fleet.passes(600) == set()
    assert fleet.passes(60, "a", "b") == set()


def test_a_server_that_cannot_write_itself_takes_nobody_for_dead(fleet: Fleet) -> None:
    assert fleet.passes(60) == set()
    assert fleet.passes(int(DEAD_S) + 2, "a") == {"b"}


@pytest.mark.parametrize(("alive", "dead"), [(("a",), {"b"}), (("a", "b"), set())])
def test_a_dead_server_is_found_though_each_look_takes_seconds(
    fleet: Fleet, alive: tuple[str, ...], dead: set[str]
) -> None:
    found: set[str] = set()
    for _ in range(5):
        fleet.now += 3
        found |= fleet.passes(1, *alive)
    assert found == dead


def test_a_clock_that_jumps_on_another_machine_kills_nobody(fleet: Fleet) -> None:
    fleet.rows["b"] = fleet.rows["b"]._replace(seen_at=STARTED - timedelta(days=3650))
    assert fleet.passes(60, "a", "b") == set()


def test_a_server_that_loads_has_time(fleet: Fleet) -> None:
    fleet.starts("c")
    assert fleet.passes(int(STARTING_S) - 1, "a", "b") == set()
    assert fleet.passes(5, "a", "b") == {"c"}


# Balance.


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(100, 2_000), st.integers())
def test_a_server_that_returned_fills_up_to_within_a_fifth_of_its_share(servers: int, each: int, seed: int) -> None:
    rng = random.Random(seed)
    agents = servers * each
    counts = [0, *(agents // (servers - 1) for _ in range(servers - 1))]
    for _ in range(4):
        away = [surplus(count, counts[:n] + counts[n + 1 :]) for n, count in enumerate(counts)]
        counts = [count - gone for count, gone in zip(counts, away, strict=True)]
        for _ in range(sum(away)):
            counts[rng.randrange(servers)] += 1
    mean = sum(counts) / servers
    assert all(abs(count - mean) <= 0.2 * mean for count in counts)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_as_many_are_sent_away_as_bring_those_that_lack_agents_to_the_mean(counts: list[int]) -> None:
    away = [surplus(count, counts[:n] + counts[n + 1 :]) for n, count in enumerate(counts)]
    mean = sum(counts) / len(counts)
    lacks = [mean - count for count in counts if count < mean]
    arriving = sum(away) * len(lacks) / len(counts)
    assert arriving <= sum(lacks) + 1e-6
    assert all(0 <= gone <= count for gone, count in zip(away, counts, strict=True))
    assert not any(gone for gone, count in zip(away, counts, strict=True) if count <= mean)


@pytest.mark.parametrize("counts", [[3, 2, 4], [0, 1], [1, 0, 0], [100, 91, 109]])
def test_what_chance_makes_is_left(counts: list[int]) -> None:
    for n, count in enumerate(counts):
        assert surplus(count, counts[:n] + counts[n + 1 :]) == 0


def test_a_host_that_comes_back_each_time_is_sent_away_ever_less_often() -> None:
    sent, times = SentAway(), list[float]()
    for second in range(3600):
        if sent.may_go(["here"], second):
            sent.sent(["here"], second)
            times.append(second)
    assert times[:6] == [0, 10, 30, 70, 150, 310]
    assert {later - earlier for earlier, later in pairwise(times[7:])} == {LONGEST_PAUSE_S}


def test_other_hosts_may_go_meanwhile_and_what_is_long_ago_is_forgotten() -> None:
    sent = SentAway()
    sent.sent(["a"], 0)
    assert sent.may_go(["a", "b"], 1) == ["b"]
    later = PAUSE_S + LONGEST_PAUSE_S
    assert sent.may_go(["a", "b"], later) == ["a", "b"]
    sent.sent(["a"], later)
    assert sent.may_go(["a"], later + PAUSE_S) == ["a"]


def test_a_host_that_was_elsewhere_when_its_pause_was_over_begins_anew() -> None:
    sent = SentAway()
    for time in (0.0, PAUSE_S):
        assert sent.may_go(["a"], time) == ["a"]
        sent.sent(["a"], time)
    assert sent.may_go(["b"], 3 * PAUSE_S) == ["b"]
    sent.sent(["a"], 3 * PAUSE_S)
    assert sent.may_go(["a"], 4 * PAUSE_S) == ["a"]


# The leader.


def test_work_of_the_leader_runs_while_it_leads() -> None:
    async def follow() -> list[str]:
        leader, told = Leader(leads=False), list[str]()
        begun, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            told.append("begins")
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                told.append("ends")
                ended.set()

        task = asyncio.create_task(leader.while_leading(work))
        for _ in range(2):
            leader.elected(True)
            await begun.wait()
            leader.elected(False)
            await ended.wait()
            begun.clear()
            ended.clear()
        task.cancel()
        await asyncio.wait([task])
        return told

    assert asyncio.run(follow()) == ["begins", "ends"] * 2
