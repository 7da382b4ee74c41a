"""The right snapshot is chosen, and of it the paths that were asked for."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.restic import snapshots
from agent.restic.snapshots import Node, Snapshot, SnapshotError, Tally
from wire.messages import Restore

NODE = {"name": "a", "type": "file", "path": "/a", "size": 5, "mtime": "2026-01-01T00:00:00.5Z", "struct_type": "node"}
SNAPSHOT = {"id": "ab" * 32, "time": "2026-01-01T12:00:00.123456789+01:00", "hostname": "n", "paths": ["/a"]}


def at(day: int, paths: Sequence[str] = ("/srv",), host: str = "node-1", id_: str = "00") -> Snapshot:
    return Snapshot(id_ + f"{day:02}" * 31, datetime(2026, 1, day, tzinfo=UTC), host, list(paths))


def chosen(found: list[Snapshot], *paths: str, **wanted: Any) -> int:
    return snapshots.choose(found, Restore("/t", paths=list(paths), **wanted)).time.day


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (NODE, Node("/a", "file", 5, mtime="2026-01-01T00:00:00.5Z")),
        (NODE | {"message_type": "node"}, Node("/a", "file", 5, mtime="2026-01-01T00:00:00.5Z")),  # since 0.17
        (
            SNAPSHOT | {"struct_type": "snapshot"},
            Snapshot("ab" * 32, datetime(2026, 1, 1, 11, 0, 0, 123457, UTC), "n", ["/a"]),
        ),
        (NODE | {"size": "big"}, None),
        ({"message_type": "summary"}, None),
        ([], None),
    ],
)
def test_a_line_of_ls_is_read_in_any_version(line: dict[str, Any] | list[Any], means: Node | Snapshot | None) -> None:
    assert snapshots.read_node(json.dumps(line).encode()) == means


@given(st.binary())
def test_no_line_is_too_odd_to_be_read(line: bytes) -> None:
    assert snapshots.read_node(line) is None


@pytest.mark.parametrize(("said", "count"), [(b"null", 0), (b"[]", 0), (json.dumps([SNAPSHOT]).encode(), 1)])
def test_a_list_of_snapshots_may_be_null(said: bytes, count: int) -> None:
    assert len(snapshots.read_list(said)) == count


def test_what_is_no_list_of_snapshots_is_told_as_that() -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read_list(b"[5]")


def test_the_latest_is_the_one_with_the_latest_time_that_has_to_do_with_every_path() -> None:
    found = [at(3), at(2), at(4, ["/home"]), at(5, host="node-2")]
    assert chosen(found) == 5
    assert chosen(found, source_host="node-1") == 4
    assert chosen(found, "/srv/a", source_host="node-1") == 3
    assert chosen(found, "/", source_host="node-1") == 4
    assert chosen(found, "/srv", before=datetime(2026, 1, 2, tzinfo=UTC)) == 2


def test_a_path_that_only_begins_alike_is_another() -> None:
    with pytest.raises(SnapshotError, match="of /srvother"):
        chosen([at(3)], "/srvother")


def test_an_id_must_mean_one_snapshot() -> None:
    found = [at(1, id_="aabb"), at(2, id_="aacc")]
    assert chosen(found, snapshot="aacc") == 2
    with pytest.raises(SnapshotError, match="several snapshots with id 0001"):
        snapshots.choose([at(1), at(1)], Restore("/t", snapshot="0001"))
    with pytest.raises(SnapshotError, match="give a whole id"):
        chosen(found, snapshot="dddd")


def test_what_a_restore_takes_is_counted_and_what_is_not_there_is_known() -> None:
    tally = Tally(["/a/", "/b", "/"])
    for node in (NODE, NODE | {"path": "/a/x", "size": 2}, NODE | {"path": "/a", "type": "dir", "size": 0}):
        tally.take(json.dumps(node).encode())
    assert (tally.files, tally.bytes, tally.missing) == (2, 7, ["/b"])


@pytest.mark.parametrize(
    ("path", "pattern"),
    [("/a/b/", "/a/b"), ("/a*[b]?", r"/a\*\[b]\?"), ("/a\\b", r"/a\\b"), ("/**", r"/\*\*"), ("/!a$b", "/!a$b")],
)
def test_a_path_is_no_pattern(path: str, pattern: str) -> None:
    assert snapshots.pattern(path) == pattern


@pytest.mark.parametrize(
    ("version", "knows"),
    [("restic 0.14.0 compiled with go1.19.8", False), ("restic 0.15.0", True), ("restic 1.0.0", True), ("", False)],
)
def test_holes_are_asked_for_where_restic_knows_them(version: str, knows: bool) -> None:
    assert snapshots.has_sparse(version) == knows
    assert ("--sparse" in snapshots.restore_args("ab", "/t", [], sparse=knows)) == knows


@pytest.mark.parametrize(
    ("time", "ns"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("2026-11-24T22:18:16.891520662Z", 1795558696891520662),
        ("yesterday", None),
        ("2026-13-01T00:00:00Z", None),
    ],
)
def test_a_time_is_read_to_the_nanosecond(time: str, ns: int | None) -> None:
    assert snapshots.nanoseconds(time) == ns


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("dir:/d file:/d/f symlink:/d/l dir:/e symlink:/e/f", ""),
        ("symlink:/d dir:/d file:/d/f", "/d"),
        ("dir:/d file:/d/f dir:/d/e file:/d/e/f symlink:/d", "/d"),
        ("dir:/a dir:/a/b file:/a/b/key symlink:/a/b/key", "/a/b/key"),
        ("dir:/a file:/a/key file:/a/key symlink:/a/key", "/a/key"),
        ("dir:/a file:/a/key file:/a/key", ""),
        ("file:/in/a symlink:/in/a", "/in/a"),
        ("symlink:/a/l file:/a/l/k", "/a/l"),
        ("symlink:/a/l file:/a/l/x/y/k", "/a/l"),
        ("file:/a/l/k symlink:/a/l", "/a/l"),
        ("dir:/a dir:/a/b file:/a/l/x/k file:/b symlink:/a/c", ""),
        ("dir:/a dir:/a/b file:/a/b/k symlink:/a/c dir:/a/d file:/a/d/k", ""),
    ],
)
def test_a_path_that_is_a_link_and_something_else_is_found(nodes: str, found: str) -> None:
    check = snapshots.LinkCheck()
    for node in nodes.split():
        kind, path = node.split(":")
        check.take(json.dumps({"struct_type": "node", "type": kind, "path": path}).encode())
    assert check.found == found


def test_a_node_that_cannot_be_read_might_be_a_link() -> None:
    check = snapshots.LinkCheck()
    check.take(b'{"struct_type": "node", "type": "symlink", "path": "/d", "size": "?"}')
    with pytest.raises(snapshots.SnapshotError, match="cannot be read"):
        check.check()
