"""A verification gives every file its chance, keeps to its limits, and misses no difference."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.restic import verify
from agent.restic.snapshots import Node
from agent.restic.verify import Digest, Found, Sample

NODE = Node("/a", "file", 5, mtime="1970-01-01T00:00:01Z", ctime="1970-01-01T00:00:02Z")
COPY = Digest(5, 9, 9, "same")
SOURCE = Digest(5, 10**9, 2 * 10**9, "same")


def sample(sizes: list[Any], count: int, max_bytes: int, seed: int = 0) -> Sample:
    made = Sample(count, max_bytes, random.Random(seed))
    for at, size in enumerate(sizes):
        made.take(json.dumps({"struct_type": "node", "type": "file", "path": f"/{at}", "size": size}).encode())
    return made


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 10), st.integers(1, 100), st.integers(0, 99))
def test_a_sample_keeps_to_its_limits_and_takes_what_it_can(
    sizes: list[Any], count: int, max_bytes: int, seed: int
) -> None:
    picked = sample(sizes, count, max_bytes, seed).picked()
    assert len({node.path for node in picked}) == len(picked) <= count
    assert sum(node.size for node in picked) <= max_bytes
    assert picked or not [size for size in sizes if size <= max_bytes]
    assert all(sizes[int(node.path[1:])] == node.size for node in picked)


def test_every_file_has_the_same_chance() -> None:
    seen = Counter(node.path for seed in range(3000) for node in sample([1] * 10, 2, 100, seed).picked())
    assert all(500 < count < 700 for count in (seen[f"/{at}"] for at in range(10)))  # 600, and 5 standard deviations


@pytest.mark.parametrize("odd", [{"type": "dir"}, {"type": "fifo"}, {"path": "/\ufffd"}, {"size": 11}])
def test_what_is_no_file_or_cannot_be_asked_for_or_is_too_large_is_not_chosen(odd: dict[str, Any]) -> None:
    made = Sample(5, 10, random.Random(0))
    node = {"struct_type": "node", "type": "file", "path": "/a", "size": 1}
    made.take(json.dumps(node | odd).encode())
    assert made.picked() == []


def test_paths_fit_into_the_arguments_of_a_program() -> None:
    made = Sample(500, 10**9, random.Random(0))
    for at in range(500):
        path = f"/{at}/" + "x" * 4000
        made.take(json.dumps({"struct_type": "node", "type": "file", "path": path, "size": 1}).encode())
    assert 50 < len(made.picked()) <= verify.MAX_PATHS // 4000


@pytest.mark.parametrize(
    ("copy", "source", "found"),
    [
        (COPY, SOURCE, Found(1, [])),
        (COPY, None, Found(0, [])),
        (None, SOURCE, Found(0, ["/a: was not restored"])),
        (Digest(4, 9, 9, "same"), SOURCE, Found(0, ["/a: 4 bytes were restored, 5 were backed up"])),
        (
            Digest(5, 9, 9, "other"),
            SOURCE,
            Found(1, ["/a: the restored content differs from the source, which has not changed since the backup"]),
        ),
        (Digest(5, 9, 9, "other"), Digest(5, 10**9 + 1, 2 * 10**9, "same"), Found(0, [])),
        (Digest(5, 9, 9, "other"), Digest(5, 10**9, 2 * 10**9 + 1, "same"), Found(0, [])),
        (Digest(5, 9, 9, "other"), Digest(6, 10**9, 2 * 10**9, "same"), Found(0, [])),
    ],
)
def test_what_came_back_is_what_was_backed_up_and_what_is_there_where_that_is_unchanged(
    copy: Digest | None, source: Digest | None, found: Found
) -> None:
    assert verify.compare([NODE], [copy], [source]) == found


def test_few_differences_are_named_and_the_rest_counted() -> None:
    assert verify.named(["a", "b"]) == "a; b"
    assert verify.named([str(at) for at in range(25)]).endswith("; 19; and 5 more")
