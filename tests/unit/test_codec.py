"""Every message comes back from its frame as it was sent, and a frame beyond a limit is refused with the place."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, inspect

from wire import codec
from wire.codec import FrameError, close_reason, from_agent, from_server
from wire.messages import (
    FROM_AGENT,
    FROM_SERVER,
    CommandRun,
    FromAgent,
    FromServer,
    JobConfirmed,
    JobLog,
    Repository,
    ScheduleFire,
    ScheduleSet,
)

AT = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
READERS: dict[str, codec.Reader[Any]] = {
    **dict.fromkeys(FROM_AGENT, from_agent),
    **dict.fromkeys(FROM_SERVER, from_server),
}
CLASSES = {**FROM_AGENT, **FROM_SERVER}
TEXT = st.characters(exclude_categories=["Cs"])
JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(TEXT) | st.sampled_from(sorted(CLASSES)),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "id", "payload", "job_id"]), inner),
)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - a line for each kind of field
    """Any value that the limits of a field allow, up to a size that a test can wait for."""
    match kind:
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= (kind.max_length or 80))
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(TEXT, min_size=low or 0, max_size=min(high or 80, 80))
        case inspect.IntType(ge=low, le=high, lt=beyond):
            return st.integers(low, high if beyond is None else beyond - 1)
        case inspect.FloatType(ge=low, le=high):
            return st.floats(low, high)
        case inspect.DateTimeType():
            return st.datetimes(
                datetime(codec.YEARS[0], 1, 1), datetime(codec.YEARS[-1], 12, 31), timezones=st.just(UTC)
            )
        case inspect.LiteralType(values=options):
            return st.sampled_from(options)
        case inspect.ListType(item_type=item):
            return st.lists(values(item), max_size=4)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=4)
        case inspect.UnionType(types=types):
            return st.one_of(*map(values, types))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.RawType():
            return st.dictionaries(st.text(TEXT), st.integers(-9, 9), max_size=2).map(msgspec.json.encode).map(Raw)
    raise AssertionError(kind)


def messages(names: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(sorted(names)).flatmap(lambda name: values(inspect.type_info(CLASSES[name])))


def plain(message: Any) -> Any:
    """A message as JSON says it: Raw has no equality of its own."""
    return msgspec.json.decode(msgspec.json.encode(message))


def frame(kind: str, payload: dict[str, Any] | None, **others: Any) -> str:
    return json.dumps({"type": kind, "payload": payload, **others})


# There and back.


@given(st.data())
@pytest.mark.parametrize("names", [FROM_AGENT, FROM_SERVER], ids=["from agent", "from server"])
def test_every_message_comes_back_as_it_was_sent_and_in_order(names: dict[str, Any], data: st.DataObject) -> None:
    sent = data.draw(st.lists(messages(names), min_size=1, max_size=4))
    ids = data.draw(st.just(()) | st.lists(st.text(TEXT, max_size=64), min_size=len(sent), max_size=len(sent)))
    text = codec.encode(sent, ids)
    for form in (text, text.encode()):
        received = READERS[next(iter(names))].read(form)
        assert [type(message) for message, _ in received] == [type(message) for message in sent]
        assert [plain(message) for message, _ in received] == [plain(message) for message in sent]
        assert [answers for _, answers in received] == (list(ids) or [""] * len(sent))


def test_a_lone_message_is_one_envelope_and_several_are_an_array() -> None:
    assert codec.encode([JobConfirmed("j1")]) == '{"type":"job.confirmed","payload":{"job_id":"j1"}}'
    assert json.loads(codec.encode([JobConfirmed("j1"), JobConfirmed("j2")], ["a", ""])) == [
        {"type": "job.confirmed", "id": "a", "payload": {"job_id": "j1"}},
        {"type": "job.confirmed", "payload": {"job_id": "j2"}},
    ]


def test_entries_travel_as_the_bytes_they_are() -> None:
    raw = '{"id": "s1",  "later": [1.50, "\\u00e9"]}'
    [(held, _)] = from_server.read(f'{{"type":"schedule.set","payload":{{"version":1,"schedules":[{raw}]}}}}')
    assert isinstance(held, ScheduleSet)
    assert bytes(held.schedules[0]) == raw.encode()


def test_times_are_of_a_zone_and_mean_the_same_moment_whichever_it_is() -> None:
    [(fire, _)] = from_agent.read(
        frame("schedule.fire", {"schedule_id": "s1", "scheduled_at": "2026-03-29T03:00:00+02:00"})
    )
    assert fire == ScheduleFire("s1", AT)
    with pytest.raises(FrameError, match=r"schedule.fire: .* timezone component - at `\$.scheduled_at`"):
        from_agent.read(frame("schedule.fire", {"schedule_id": "s1", "scheduled_at": "2026-03-29T03:00:00"}))


# Old and new versions talk.


def test_a_type_that_is_not_known_is_logged_and_its_neighbours_are_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wire")
    known = {"type": "job.confirmed", "payload": {"job_id": "j1"}}
    assert from_server.read(json.dumps([{"type": "x" * 9999, "payload": [5]}, known])) == [(JobConfirmed("j1"), "")]
    assert [(record.message, vars(record)["type"]) for record in caplog.records] == [
        ("messages of unknown type skipped", "x" * 64)
    ]


def test_a_frame_of_types_that_are_not_known_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wire")
    assert from_agent.read(json.dumps([{"type": f"x{at}"} for at in range(1000)])) == []
    assert [(vars(record)["type"], vars(record)["messages"]) for record in caplog.records] == [("x0", 1000)]


def test_a_message_of_the_other_side_is_not_known() -> None:
    assert from_agent.read(frame("job.confirmed", {"job_id": "j1"})) == []


def test_fields_that_are_not_known_are_ignored_and_absent_ones_have_their_defaults() -> None:
    payload = {"job_id": "j1", "kind": "backup", "args": [], "since_then": {"deep": [1]}}
    assert from_server.read(frame("command.run", payload, later=1)) == [(CommandRun("j1", "backup", []), "")]


# Limits.


@pytest.mark.parametrize(
    ("reader", "text", "says"),
    [
        (from_server, "", "frame: Input data was truncated"),
        (from_server, "{", "frame: Input data was truncated"),
        (from_server, "hello", "frame: JSON is malformed"),
        (from_server, "5", "frame: Expected `object | array`, got `int`"),
        (from_server, "{}", "frame: Object missing required field `type`"),
        (from_server, '[{"type": "job.confirmed"}, {"type": 5}]', r"frame: .* got `int` - at `\$\[1\].type`"),
        (from_server, frame("job.confirmed", None), "job.confirmed: Expected `object`, got `null`"),
        (from_server, frame("job.confirmed", {}), "job.confirmed: Object missing required field `job_id`"),
        (from_server, frame("job.confirmed", {"job_id": ""}), r"of length >= 1 - at `\$.job_id`"),
        (from_server, frame("job.confirmed", {"job_id": "j" * 65}), r"of length <= 64 - at `\$.job_id`"),
        (from_server, frame("job.confirmed", {"job_id": "j"}, id="i" * 65), r"frame: .* of length <= 64 - at `\$.id`"),
        (from_server, b'{"type":"job.confirmed","payload":{"job_id":"\xff"}}', "job.confirmed: 'utf-8' codec"),
        (from_server, '{"type":"job.confirmed","payload":{"job_id":"\ud800"}}', "frame: 'utf-8' codec"),
        (from_agent, frame("hello", {"host": "Node_1"}), r"hello: .* matching regex .* at `\$.host`"),
        (from_agent, frame("hello", {"host": "a" * 254}), r"of length <= 253 - at `\$.host`"),
        (from_agent, frame("schedule.ack", {"version": -1, "digest": ""}), r"`int` >= 0 - at `\$.version`"),
        (from_agent, frame("schedule.ack", {"version": 1.5, "digest": ""}), r"Expected `int`, got `float`"),
        (from_agent, frame("schedule.ack", {"version": 2**53 + 1, "digest": ""}), r"`int` <= 9007199254740992"),
        (from_agent, frame("job.progress", {"job_id": "j", "fraction": 1.1}), r"`float` <= 1.0 - at `\$.fraction`"),
        (from_agent, frame("job.progress", {"job_id": "j", "fraction": float("nan")}), "JSON is malformed"),
        (from_agent, frame("job.log", {"job_id": "j", "lines": ["x"] * 1001}), r"length <= 1000 - at `\$.lines`"),
        (from_agent, frame("job.finished", {"job_id": "j", "status": "done"}), r"enum value 'done' - at `\$.status`"),
    ],
)  # fmt: skip
def test_a_frame_that_breaks_the_protocol_is_refused_with_the_place(
    reader: codec.Reader[FromServer] | codec.Reader[FromAgent], text: str | bytes, says: str
) -> None:
    with pytest.raises(FrameError, match=says):
        reader.read(text)


def test_a_frame_may_be_as_long_and_hold_as_many_messages_as_the_limit_and_no_more() -> None:
    fits = codec.encode([JobLog("j", ["x"])]).ljust(codec.MAX_AGENT_FRAME)
    assert from_agent.read(fits) == [(JobLog("j", ["x"]), "")]
    with pytest.raises(FrameError, match="frame of 1048577 bytes: at most 1048576 are allowed"):
        from_agent.read(fits + " ")
    many = [JobConfirmed("j")] * codec.MAX_MESSAGES
    assert len(from_server.read(codec.encode(many))) == codec.MAX_MESSAGES
    with pytest.raises(FrameError, match="frame of 10001 messages: at most 10000 are allowed"):
        from_server.read(codec.encode([*many, JobConfirmed("j")]))


@pytest.mark.parametrize(
    "inside", ['{{"type":"x","payload":{}}}', '{{"type":"job.confirmed","payload":{{"job_id":"j","x":{}}}}}']
)
def test_depth_is_bounded_also_in_what_is_not_read(inside: str) -> None:
    with pytest.raises(FrameError, match="recursion"):
        from_server.read(inside.format("[" * 100_000 + "]" * 100_000))


@given(st.binary() | st.text(st.characters()) | JSON.map(json.dumps))
def test_no_bytes_raise_anything_but_a_frame_error(junk: Any) -> None:
    for reader in (from_agent, from_server):
        _read(reader, junk)


@given(messages(CLASSES), st.data())
def test_no_altered_frame_raises_anything_but_a_frame_error(message: Any, data: st.DataObject) -> None:
    spoilt = bytearray(codec.encode([message]).encode())
    for at in data.draw(st.lists(st.integers(0, len(spoilt) - 1), min_size=1, max_size=3)):
        spoilt[at] = data.draw(st.integers(0, 255))
    for reader in (from_agent, from_server):
        _read(reader, bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))]))
        _read(reader, bytes(spoilt))


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9999-06-01T00:00:00Z"])
def test_a_time_at_the_edge_of_the_calendar_is_refused_by_name(at: str) -> None:
    fire = {"type": "schedule.fire", "payload": {"schedule_id": "s1", "scheduled_at": at}}
    with pytest.raises(FrameError, match=r"schedule\.fire: scheduled_at must be in the years 2 to 9998"):
        from_agent.read(json.dumps(fire))
    end = {"job_id": "j1", "status": "failed", "finished_at": "2026-01-01T00:00:00Z", "started_at": at}
    with pytest.raises(FrameError, match="started_at"):
        from_agent.read(json.dumps({"type": "job.finished", "payload": end}))


def _read(reader: codec.Reader[FromAgent] | codec.Reader[FromServer], junk: Any) -> None:
    try:
        reader.read(junk)
    except FrameError as error:
        reason = close_reason(error)
        assert 0 < len(reason.encode()) <= 123


def test_a_reason_is_cut_where_a_letter_ends() -> None:
    assert close_reason(FrameError("é" * 99)) == "é" * 61


# Secrets.


def test_a_repository_shows_no_secret() -> None:
    assert "hunter2" not in repr(Repository("r1", "ns/main", "s3:x", "hunter2", {"AWS_SECRET_ACCESS_KEY": "hunter2"}))
