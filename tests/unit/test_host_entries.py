"""What differs on a host is told entry by entry (promise 3): the differences turn what it holds into what it should."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from server.observe.entries import Timed, compared, names, next_due
from wire import entries
from wire.entries import EMPTY, EntrySet
from wire.messages import Entry

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


def held(versions: dict[str, int]) -> EntrySet:
    """A set of entries, each in a version of its own."""
    made = (Entry(id_, f"ns/{id_}", "0 2 * * *", NOON, str(version)) for id_, version in versions.items())
    return entries.patched(EMPTY, {it.id: entries.encoded(entries.encode_entry(it)) for it in made})


SETS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)).map(held)


@given(desired=SETS, applied=SETS)
def test_the_differences_turn_one_set_into_the_other(desired: EntrySet, applied: EntrySet) -> None:
    found = {id_: compared(id_, desired, applied, "") for _, id_ in names(desired, applied, {})}
    diff = entries.diff(applied, desired)
    put = {entries.entry_id(raw) for raw in diff.upsert}
    assert {id_ for id_, it in found.items() if it.state in ("ToAdd", "ToChange")} == put
    assert {id_ for id_, it in found.items() if it.state == "ToRemove"} == set(diff.remove)
    assert {id_ for id_, it in found.items() if it.state == "InForce"} == found.keys() - put - set(diff.remove)
    assert all(bool(it.differs) == (it.state == "ToChange") for it in found.values())


def test_fields_that_differ_are_named() -> None:
    old = Entry("a", "ns/a", "0 2 * * *", NOON, "r1")
    new = msgspec.structs.replace(old, cron="0 3 * * *", spread_s=60, revision="r2")
    one, other = (entries.patched(EMPTY, {"a": entries.encoded(entries.encode_entry(it))}) for it in (old, new))
    it = compared("a", other, one, "")
    assert (it.schedule, it.state, it.differs) == ("ns/a", "ToChange", ["cron", "spreadSeconds", "revision"])
    assert it.applied == Timed("0 2 * * *", "UTC", 0, enabled=True, revision="r1")


def test_what_was_left_out_and_what_is_not_known_are_no_silent_success() -> None:
    it = held({"a": 1})
    assert compared("a", it, it, "its zone is unknown").state == "LeftOut"
    assert compared("a", it, None, "").state == "Unknown"


def test_the_next_due_time_of_a_host_has_its_offset() -> None:
    entry = Timed("0 2 * * *", "UTC", 3600, enabled=True, revision="")
    at = next_due(entry, "web-1", "s1", NOON)
    assert at is not None
    assert timedelta(0) <= at - datetime(2026, 3, 6, 2, tzinfo=UTC) < timedelta(hours=1)
    assert next_due(entry, "web-1", "s1", at - timedelta(seconds=1)) == at
    assert next_due(msgspec.structs.replace(entry, enabled=False), "web-1", "s1", NOON) is None
    assert next_due(msgspec.structs.replace(entry, time_zone="Mars/Olympus"), "web-1", "s1", NOON) is None
