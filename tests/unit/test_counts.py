"""What a repository holds is counted rightly, in whatever order ends of jobs and counts of hosts are heard of."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.restic import counts as agent
from agent.restic.output import remaining_bytes
from server.jobs.counts import (
    MOST_HOSTS,
    Added,
    Counted,
    Counts,
    Looked,
    Lost,
    Told,
    latest,
    taken,
    told_by_count,
    told_by_end,
)
from server.observe.contents import MAX_HOSTS, contents
from server.resources.restic import rounded
from server.store.counts import BYTES, SNAPSHOTS, CountKey, CountRow
from wire.codec import MAX_AGENT_FRAME, encode
from wire.messages import CommandRun, HostSnapshots, JobCounted, JobFinished

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
HOSTS = ("a", "b", "c")


def at(hours: float) -> datetime:
    return BEGIN + timedelta(hours=hours)


def key(host: str, what: str = SNAPSHOTS) -> CountKey:
    return CountKey("r", what, host)


def total(known: Counts, host: str, what: str = SNAPSHOTS) -> int:
    row = known.get(key(host, what))
    return 0 if row is None else row.value + row.since


class World:
    """A repository in which backups add snapshots and forgets remove them, and hosts that look at it now and then."""

    def __init__(self, steps: Sequence[tuple[str, str]]) -> None:
        self.told: list[Told] = []
        self._made: list[tuple[str, float, float]] = []  # host, when its snapshot was made, when it was removed
        for hour, (what, host) in enumerate(steps, 1):
            if what == "backup":
                self._made.append((host, hour, float("inf")))
                self.told.append(Added(key(host), 1, at(hour), at(hour - 0.5)))
            elif what == "forget":
                self._made = [(it, made, min(end, hour) if it == host else end) for it, made, end in self._made]
            elif what == "look":
                self.told.append(Looked("r", SNAPSHOTS, {host: self._seen(host, hour)}, at(hour)))
            else:
                seen = {it: self._seen(it, hour) for it in HOSTS if self.count(it, hour)}
                self.told.append(Looked("r", SNAPSHOTS, seen | {"": Counted(0, at(hour))}, at(hour), is_whole=True))

    def _there(self, host: str, hour: float) -> list[float]:
        return [made for it, made, removed in self._made if it == host and made <= hour < removed]

    def count(self, host: str, hour: float) -> int:
        return len(self._there(host, hour))

    def _seen(self, host: str, hour: float) -> Counted:
        there = self._there(host, hour)
        return Counted(len(there), at(hour), at(max(there) - 0.5) if there else None)

    def made_after(self, host: str, hour: float) -> int:
        return sum(it == host and made > hour for it, made, _ in self._made)


STEPS = st.lists(st.tuples(st.sampled_from(["backup", "backup", "forget", "look", "all"]), st.sampled_from(HOSTS)))


@given(STEPS, st.randoms(use_true_random=False))
def test_a_count_is_what_was_there_when_it_was_counted_and_what_was_added_since_in_any_order(
    steps: Sequence[tuple[str, str]], rng: random.Random
) -> None:
    world = World(steps)
    told = list(world.told)
    rng.shuffle(told)
    known: Counts = {}
    for it in told:
        known = taken(known, [it])
    whole = known.get(key(""))
    for host in HOSTS:
        row = known.get(key(host))
        as_of = row.at if row is not None else whole.at if whole is not None else None
        hour = 0.0 if as_of is None else (as_of - BEGIN) / timedelta(hours=1)
        assert total(known, host) == world.count(host, hour) + world.made_after(host, hour)
    # Heard after all that came before, a look is right, and forgotten hosts leave nothing behind.
    end = len(steps) + 1
    rest = World([*steps, ("all", "a")])
    known = taken(known, rest.told[-1:])
    assert {host: total(known, host) for host in HOSTS} == {host: rest.count(host, end) for host in HOSTS}
    assert {it.host for it in known} == {"", *(host for host in HOSTS if rest.count(host, end))}
    newest = {host: latest(row) for host in HOSTS if (row := known.get(key(host))) is not None}
    assert newest == {host: rest._seen(host, end).newest for host in newest}


@given(STEPS, st.integers(1, 5))
def test_things_that_are_heard_together_count_as_one_after_the_other(
    steps: Sequence[tuple[str, str]], size: int
) -> None:
    told = World(steps).told
    one_by_one: Counts = {}
    for it in told:
        one_by_one = taken(one_by_one, [it])
    together: Counts = {}
    for begin in range(0, len(told), size):
        together = taken(together, told[begin : begin + size])
    assert together == one_by_one


def test_bytes_are_known_from_a_prune_or_a_creation_on_until_a_copy() -> None:
    added = [Added(key("", BYTES), 100, at(hour)) for hour in (1, 2, 3)]
    known = taken({}, added)
    assert known[key("", BYTES)].at is None
    known = taken(known, [Looked("r", BYTES, {"": Counted(0, at(0))}, at(0))])  # whoever created it ended last
    assert (total(known, "", BYTES), known[key("", BYTES)].at) == (300, at(0))
    known = taken(known, [Looked("r", BYTES, {"": Counted(120, at(4))}, at(4)), Added(key("", BYTES), 7, at(5))])
    assert total(known, "", BYTES) == 127
    assert key("", BYTES) not in taken(known, [Lost(key("", BYTES))])


# What jobs tell.


def command(kind: str, repository: str = "r", **more: Any) -> CommandRun:
    return CommandRun("j", kind, [], repository, **more)


def ended(**more: Any) -> JobFinished:
    return JobFinished("j", more.pop("status", "succeeded"), at(3), at(1), **more)


@pytest.mark.parametrize(
    ("kind", "end", "expected"),
    [
        ("backup", {"snapshot_id": "ab", "bytes_added": 9}, {"snapshots/a": 1, "bytes/": 9}),
        ("backup", {"snapshot_id": "ab", "bytes_added": 9, "bytes_stored": 5}, {"snapshots/a": 1, "bytes/": 5}),
        ("backup", {"snapshot_id": "ab", "status": "warning"}, {"snapshots/a": 1, "bytes/": 0}),
        ("backup", {"snapshot_id": ""}, {}),
        ("backup", {"snapshot_id": "ab", "status": "failed"}, {}),
        ("backup", {"status": "failed", "created": True}, {"=bytes/": 0}),
        ("restore", {"snapshot_id": "ab"}, {}),
        ("verify", {"snapshot_id": "ab"}, {}),
        ("prune", {"repository_bytes": 77}, {"=bytes/": 77}),
        ("prune", {"repository_bytes": 77, "status": "failed"}, {}),
        ("forget", {}, {}),
        ("copy", {}, {"?bytes/": None}),
        ("copy", {"status": "cancelled"}, {"?bytes/": None}),
    ],
)
def test_the_end_of_a_job_tells_what_it_added_or_counted(
    kind: str, end: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    told = told_by_end("a", command(kind), ended(**end), per_host=False)
    assert _plain(told) == expected
    in_own = _plain(told_by_end("a", command(kind), ended(**end), per_host=True))
    assert in_own == {name.replace("bytes/", "bytes/a"): it for name, it in expected.items()}


def _plain(told: Sequence[Told]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for it in told:
        match it:
            case Added(key, amount):
                found[f"{key.what}/{key.host}"] = amount
            case Lost(key):
                found[f"?{key.what}/{key.host}"] = None
            case Looked(_, what, hosts):
                found |= {f"={what}/{host}": counted.value for host, counted in hosts.items()}
    return found


def counted(*hosts: tuple[str, int], **more: Any) -> JobCounted:
    return JobCounted("j", at(2), [HostSnapshots(host, count, int(at(1).timestamp())) for host, count in hosts], **more)


@pytest.mark.parametrize(
    ("said", "repository", "per_host", "expected", "is_whole"),
    [
        (counted(("a", 3), ("b", 4)), "r", False, {"a": 3, "b": 4, "": 0}, True),
        (counted(("a", 3), ("NOT A HOST", 4), ("B\0", 1)), "r", False, {"a": 3, "": 5}, True),
        (counted(("a", 3), more=2), "r", False, {"a": 3}, False),
        (counted(("a", 3), of="a"), "r", False, {"a": 3}, False),
        (counted(of="a"), "r", False, {"a": 0}, False),
        (counted(("b", 3), of="b"), "r", False, None, False),
        (counted(("a", 3), ("b", 4)), "r", True, {"a": 3}, False),
        (counted(("b", 4)), "r", True, {"a": 0}, False),
        (counted(("a", 3), ("b", 4)), "r/b", True, {"b": 4}, False),
    ],
)
def test_a_host_tells_of_its_own_snapshots_or_of_those_of_all_hosts(
    said: JobCounted, repository: str, per_host: bool, expected: Mapping[str, int] | None, is_whole: bool
) -> None:
    told = told_by_count("a", command("forget", repository), said, at(9), per_host=per_host)
    if expected is None:
        assert told == []
        return
    (look,) = told
    assert isinstance(look, Looked)
    assert ({host: it.value for host, it in look.hosts.items()}, look.is_whole) == (expected, is_whole)


def test_a_clock_that_is_ahead_makes_no_count_of_the_future() -> None:
    said = JobCounted("j", at(99), [HostSnapshots("a", 1, int(at(98).timestamp()))])
    (look,) = told_by_count("a", command("check"), said, at(9), per_host=False)
    assert isinstance(look, Looked)
    assert (look.at, look.hosts["a"]) == (at(9), Counted(1, at(9), at(9)))


def test_a_clock_that_is_behind_makes_no_count_of_before_the_job_began() -> None:
    (look,) = told_by_count("a", command("check"), counted(("a", 3)), at(9), per_host=False, since=at(5))
    assert isinstance(look, Looked)
    assert look.at == at(5)
    known = taken({}, [Added(key("b"), 1, at(4), at(4)), Looked("r", SNAPSHOTS, {"b": Counted(1, look.at)}, look.at)])
    assert total(known, "b") == 1  # which would be 2 if it counted as of its own clock


def test_hosts_of_any_name_and_number_that_a_host_tells_of_have_a_bound() -> None:
    most = [(f"NOT A HOST {number}", 2**53) for number in range(2_000)]
    known: Counts = {}
    for number in range(30):
        names = [(f"n{number}-{it}", 2**53) for it in range(1_000)]
        said = counted(("a", number), *most, *names, more=1)
        said = msgspec.structs.replace(said, at=at(2 + number))
        known = taken(known, told_by_count("a", command("check"), said, at(99), per_host=False))
    assert len(known) == MOST_HOSTS
    assert total(known, "a") == 29  # one that is known is counted on
    known = taken(known, [Added(key("new"), 1, at(50), at(50))])
    assert total(known, "new") == 1
    found = contents(known.values(), lambda _: True)
    assert found.count == 2**53
    whole = msgspec.structs.replace(counted(*most), at=at(60))
    known = taken(known, told_by_count("a", command("check"), whole, at(99), per_host=False))
    assert {it.host: known[it].value for it in known} == {"": 2**53}


# What an agent counts.


def test_snapshots_are_counted_by_host_the_oldest_newest_first() -> None:
    listed = [
        {"time": "2026-11-01T03:00:00.5+01:00", "hostname": "a", "paths": ["/"]},
        {"time": "2026-11-01T04:00:00Z", "hostname": "b"},
        {"time": "2026-10-01T04:00:00Z", "hostname": "b"},
    ]
    assert agent.count(msgspec.json.encode(listed)) == [
        HostSnapshots("a", 1, int(at(2).timestamp())),
        HostSnapshots("b", 2, int(at(4).timestamp())),
    ]
    assert agent.count(b"null") == agent.count(b"[]") == []
    for wrong in (b"", b"{}", b'[{"time": "never"}]'):
        with pytest.raises(ValueError, match=r".+"):
            agent.count(wrong)


def test_what_is_told_of_a_count_fits_into_a_frame() -> None:
    hosts = [HostSnapshots(("é" * 120) + str(number), 1, 1) for number in range(9_000)]
    told = agent.told("j", at(0), hosts, "")
    assert len(encode([told]).encode()) < MAX_AGENT_FRAME
    assert told.hosts == hosts[: len(told.hosts)]
    assert len(told.hosts) + told.more == 9_000
    assert agent.told("j", at(0), hosts[:100], "").more == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("remaining:             3 blobs / 293.505 KiB", 300549),
        ("remaining:             0 blobs / 0 B", 0),
        ("remaining:      11234567 blobs / 1.250 TiB", 1374389534720),
        ("to delete:             5 blobs / 294.062 KiB", None),
        ("remaining: 1 blobs / 1.2.3 B", None),
        ("remaining: 1 blobs / . B", None),
    ],
)
def test_what_a_prune_leaves_is_read(line: str, expected: int | None) -> None:
    assert remaining_bytes(line) == expected


# What REST tells.


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (999, "999"), (1000, "1.0Ki"), (300_549, "294Ki"), (6_012_954_214, "5.6Gi"), (9 << 50, "9216Ti")],
)
def test_a_size_is_rounded_for_people(count: int, expected: str) -> None:
    assert rounded(count) == expected


def row(host: str, value: int, since: int = 0, counted_at: datetime | None = None, what: str = SNAPSHOTS) -> CountRow:
    made = None if what == BYTES else at(value)
    return CountRow("r", what, host, value, counted_at, since, None, None, made, None)


def test_a_status_names_the_hosts_whose_newest_snapshot_is_the_oldest() -> None:
    rows = [row(f"host-{number:03}", number, counted_at=at(500)) for number in range(250)]
    found = contents([*rows, row("", 9, counted_at=at(400))], lambda _: True)
    assert found.count == sum(range(250)) + 9
    assert (found.newest, found.as_of) == (at(249), at(400))
    assert [it.host for it in found.hosts] == [f"host-{number:03}" for number in range(1, MAX_HOSTS + 1)]
    assert found.hosts_omitted == 249 - MAX_HOSTS


def test_a_count_that_may_miss_something_says_so() -> None:
    found = contents([row("a", 3, counted_at=at(1)), row("b", 0, 1), row("", 10, 5, what=BYTES)], lambda _: True)
    assert (found.count, found.as_of, found.size_bytes, found.size_as_of) == (4, None, None, None)
    assert [it.as_of for it in found.hosts] == [None, at(1)]


def test_a_size_is_told_once_it_is_known_of_each_host() -> None:
    sizes = [row("a", 10, 5, at(1), BYTES), row("b", 0, 7, at(2), BYTES)]
    found = contents(sizes, lambda _: True)
    assert (found.size_bytes, found.size_as_of) == (22, at(1))
    assert contents([*sizes, row("c", 0, 1, what=BYTES)], lambda _: True).size_bytes is None


def test_a_namespace_is_told_of_the_hosts_alone_that_it_is_granted() -> None:
    rows = [row("a", 3, counted_at=at(2)), row("b", 4, counted_at=at(1)), row("", 5, counted_at=at(0))]
    sizes = [row("", 100, counted_at=at(3), what=BYTES)]
    found = contents([*rows, *sizes], {"a"}.__contains__)
    assert (found.count, found.newest, found.as_of, found.size_bytes) == (3, at(3), at(2), 100)
    assert [it.host for it in found.hosts] == ["a"]
