"""Promise 10, in the store: a decision is stored with its messages or not at all, and a message until it arrived."""

from datetime import UTC, datetime, timedelta

import pytest

from server.store import alerts
from server.store.alerts import MAX_WAITING, AlertChange, Attempt, Decision, Message
from server.store.engine import Store
from server.store.rows import AlertRow

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def alert(name: str = "on-call", generation: int = 1, id_: str = "") -> AlertRow:
    return AlertRow(id_ or f"id-{name}", "default", name, {"a": "b"}, {"x": 1}, generation, NOW, NOW, "sealed")


async def put(db: Store, row: AlertRow, base: tuple[str, int] | None = None) -> bool:
    return await db.write(alerts.change_alerts, AlertChange(row.namespace, row.name, base, row))


def decision(base: int, *targets: str, owner: str = "id-on-call") -> Decision:
    messages = [Message(target, f"msg-{base}", '{"n": 1}') for target in targets]
    return Decision(owner, base, NOW + base * SECOND, "{}", 1, messages)


async def test_an_alert_is_stored_only_on_what_it_was_decided_on(db: Store) -> None:
    first, second = alert(), alert(generation=2)
    assert await put(db, first)
    assert not await put(db, first)
    assert not await put(db, second, ("id-on-call", 2))
    assert not await put(db, second, ("another", 1))
    assert await db.read(alerts.all_alerts) == [first]
    assert await put(db, second, ("id-on-call", 1))
    assert await db.read(alerts.find_alert, "default", "on-call") == second
    assert "sealed" not in repr(second)
    assert await db.read(alerts.count_alerts, "default") == 1


async def test_one_decision_of_two_is_stored_with_its_messages(db: Store) -> None:
    await put(db, alert())
    assert await db.write(alerts.decided, decision(0, "0", "1"))
    assert not await db.write(alerts.decided, decision(0, "0", "1"))
    assert not await db.write(alerts.decided, decision(0, "0", owner="unknown"))
    due = await db.read(alerts.due, NOW, 10, 2)
    assert [(it.target, it.key) for it in due] == [("0", "msg-0"), ("1", "msg-0")]
    assert (await db.read(alerts.states))["id-on-call"].version == 1


async def test_messages_to_one_url_go_one_after_the_other_and_wait_until_they_arrived(db: Store) -> None:
    await put(db, alert())
    for base in range(3):
        await db.write(alerts.decided, decision(base, "0"))
    later = NOW + 60 * SECOND
    (first,) = await db.read(alerts.due, later, 10, 2)
    assert first.key == "msg-0"
    await db.write(alerts.attempted, Attempt(first, later, "it answered 503", later + 30 * SECOND))
    assert await db.read(alerts.due, later, 10, 2) == []
    assert await db.read(alerts.next_due) == later + 30 * SECOND
    facts = (await db.read(alerts.delivery_facts, ["id-on-call"]))["id-on-call"]
    assert (facts["waiting"], facts["error"], facts["delivered_at"]) == (3, "it answered 503", None)
    for key in ("msg-0", "msg-1", "msg-2"):
        (message,) = await db.read(alerts.due, later + 30 * SECOND, 10, 2)
        assert message.key == key
        await db.write(alerts.attempted, Attempt(message, later + 30 * SECOND))
    facts = (await db.read(alerts.delivery_facts, ["id-on-call"]))["id-on-call"]
    assert (facts["waiting"], facts["error"], facts["delivered_at"]) == (0, None, later + 30 * SECOND)
    assert await db.read(alerts.next_due) is None


async def test_of_many_messages_that_wait_for_one_url_the_newest_stay_and_the_others_are_counted(db: Store) -> None:
    await put(db, alert())
    for base in range(MAX_WAITING + 5):
        await db.write(alerts.decided, decision(base, "0", "1") if base == 0 else decision(base, "0"))
    due = await db.read(alerts.due, NOW + 3600 * SECOND, 10, 2)
    assert sorted((it.target, it.key) for it in due) == [("0", "msg-5"), ("1", "msg-0")]
    facts = (await db.read(alerts.delivery_facts, ["id-on-call"]))["id-on-call"]
    assert (facts["waiting"], facts["dropped"]) == (MAX_WAITING + 1, 5)
    (given_up, *_) = [it for it in due if it.target == "0"]
    await db.write(alerts.attempted, Attempt(given_up, NOW, "gone", None))
    facts = (await db.read(alerts.delivery_facts, ["id-on-call"]))["id-on-call"]
    assert (facts["waiting"], facts["dropped"]) == (MAX_WAITING, 6)


async def test_an_alert_that_is_disabled_is_silent_at_once_and_begins_anew(db: Store) -> None:
    await put(db, alert())
    await db.write(alerts.decided, decision(0, "0", "1"))
    assert await db.read(alerts.waiting) == {"id-on-call": 2}
    disabled = alert(generation=2)._replace(spec={"enabled": False})
    assert await put(db, disabled, ("id-on-call", 1))
    assert await db.read(alerts.waiting) == {}
    assert await db.read(alerts.states) == {}


async def test_what_an_alert_told_goes_with_it(db: Store) -> None:
    await put(db, alert())
    await db.write(alerts.decided, decision(0, "0"))
    assert await db.write(alerts.change_alerts, AlertChange("default", "on-call", ("id-on-call", 1), None))
    assert await db.read(alerts.all_alerts) == []
    assert await db.read(alerts.states) == {}
    assert await db.read(alerts.due, NOW, 10, 2) == []
    assert await put(db, alert(id_="new"))
    assert await db.write(alerts.decided, decision(0, "0", owner="new"))
