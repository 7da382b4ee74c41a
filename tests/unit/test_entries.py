"""Promise 3: equal sets have equal digests, and a diff turns the old set into the new one."""

from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import entries
from wire.entries import EMPTY, Diff
from wire.messages import Entry

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


def raw(schedule_id: str, revision: str = "1") -> bytes:
    return entries.encode_entry(Entry(schedule_id, "default/x", "0 * * * *", NOON, revision))


raws = st.builds(raw, st.sampled_from("abcdefgh"), st.sampled_from("123"))
sets = st.lists(raws, unique_by=entries.entry_id)


@given(sets, sets)
def test_a_diff_applied_to_the_old_set_is_the_new_one(old: list[bytes], new: list[bytes]) -> None:
    a, b = entries.whole(old), entries.whole(new)
    changed = entries.apply(a, entries.diff(a, b))
    assert changed.items == b.items
    assert changed.digest == b.digest


@given(sets, sets)
def test_a_diff_carries_only_what_differs(old: list[bytes], new: list[bytes]) -> None:
    change = entries.diff(entries.whole(old), entries.whole(new))
    assert set(change.upsert) == set(new) - set(old)
    assert set(change.remove) == set(map(entries.entry_id, old)) - set(map(entries.entry_id, new))


@given(sets, sets)
def test_sets_are_equal_when_their_entries_are(old: list[bytes], new: list[bytes]) -> None:
    assert (entries.whole(old) == entries.whole(new)) == (set(old) == set(new))


@given(sets, st.randoms())
def test_digests_do_not_depend_on_order(raws: list[bytes], random: Random) -> None:
    shuffled = random.sample(raws, len(raws))
    one_by_one = EMPTY
    for each in shuffled:
        one_by_one = entries.patched(one_by_one, {entries.entry_id(each): entries.encoded(each)})
    assert entries.whole(raws).digest == entries.whole(shuffled).digest == one_by_one.digest


@given(sets, st.lists(st.one_of(raws, st.sampled_from("abcdefgh"))))
def test_a_digest_after_any_changes_is_that_of_the_whole(raws: list[bytes], changes: list[Any]) -> None:
    held = entries.whole(raws)
    for change in changes:
        held = entries.apply(held, Diff((change,), ()) if isinstance(change, bytes) else Diff((), (change,)))
    assert held.digest == entries.whole(item.raw for item in held.items.values()).digest


def test_the_digest_of_nothing_is_zeros() -> None:
    assert entries.whole([]).digest == EMPTY.digest == "0" * 64


def test_of_two_entries_with_one_id_the_later_counts() -> None:
    assert entries.whole([raw("a", "1"), raw("a", "2")]) == entries.whole([raw("a", "2")])


def test_a_field_of_a_later_version_counts_in_the_digest() -> None:
    later = raw("a")[:-1] + b',"colour":"red"}'
    assert entries.parse_entry(later) == entries.parse_entry(raw("a"))
    assert entries.whole([later]) != entries.whole([raw("a")])


def test_an_entry_without_an_id_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        entries.apply(EMPTY, Diff((b"{}",), ()))
