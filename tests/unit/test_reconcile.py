"""Comparing what is declared with what a server holds, the right things are put and deleted, in the right order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.client import Client, Refused
from controller.reconcile import (
    OWNER_LABEL,
    Change,
    Declared,
    Delete,
    LastApplied,
    Observed,
    Put,
    Reconciler,
    foreign,
    manifest,
    observe,
    plan,
    withheld,
)
from controller.resources import Key, Resource

ME = "lamplighter-folder"
ETC = Key("Schedule", "default", "etc")
MAIN = Key("Repository", "default", "main")


def resource(**spec: Any) -> Resource:
    return Resource({"name": "x"}, spec)


def observed(generation: int = 1, owner: str | None = ME, **spec: str) -> Observed:
    labels = {} if owner is None else {OWNER_LABEL: owner}
    return Observed(generation, labels, {"timeZone": "UTC", **spec})


def changes(
    declared: dict[Key, Resource],
    seen: dict[Key, Observed] | None = None,
    agreed: dict[Key, LastApplied] | None = None,
    **others: Any,
) -> list[Change]:
    return plan(Declared(declared, **others), seen or {}, agreed or {}, ME)


def test_what_is_new_is_put() -> None:
    assert changes({ETC: resource(cron="1")}) == [Put(ETC, resource(cron="1"))]


def test_what_is_not_declared_any_more_is_deleted() -> None:
    assert changes({}, {ETC: observed()}) == [Delete(ETC)]


@pytest.mark.parametrize("owned", range(7))
def test_more_than_half_is_deleted_only_where_that_may_be(owned: int) -> None:
    seen = {Key("Schedule", "ns", f"s{at}"): observed() for at in range(owned)} | {MAIN: observed(owner="another")}
    for kept in range(owned + 1):
        declared = dict.fromkeys(list(seen)[:kept], resource())
        deleted = [it for it in changes(declared, seen, may_delete_most=False) if isinstance(it, Delete)]
        refused = withheld(Declared(declared, may_delete_most=False), seen, ME)
        assert len(deleted) == (owned - kept if 2 * kept >= owned else 0)
        assert len(deleted) + len(refused) == owned - kept
        assert withheld(Declared(declared), seen, ME) == []


def test_nothing_is_done_while_neither_side_has_changed() -> None:
    agreed = {ETC: LastApplied(resource(cron="1"), observed(cron="1"))}
    assert changes({ETC: resource(cron="1")}, {ETC: observed(cron="1")}, agreed) == []


@pytest.mark.parametrize(
    ("declared", "seen"),
    [
        pytest.param(resource(cron="2"), observed(cron="1"), id="declared otherwise"),
        pytest.param(resource(), observed(cron="1"), id="a field left out, whose default is to come back"),
        pytest.param(
            Resource({"name": "x"}, {"cron": "1"}, {"password": "new"}), observed(cron="1"), id="a new password"
        ),
        pytest.param(Resource({"name": "x", "labels": {"a": "b"}}, {"cron": "1"}), observed(cron="1"), id="a label"),
        pytest.param(resource(cron="1"), observed(2, cron="3"), id="changed by others"),
        pytest.param(resource(cron="1"), observed(3, cron="1"), id="changed by others and back"),
        pytest.param(resource(cron="1"), None, id="deleted by others"),
    ],
)
def test_a_change_on_either_side_is_put_right(declared: Resource, seen: Observed | None) -> None:
    agreed = {ETC: LastApplied(resource(cron="1"), observed(cron="1"))}
    assert changes({ETC: declared}, {ETC: seen} if seen else {}, agreed) == [Put(ETC, declared)]


def test_after_a_restart_everything_is_put_once() -> None:
    assert changes({ETC: resource(cron="1")}, {ETC: observed(cron="1")}) == [Put(ETC, resource(cron="1"))]


@pytest.mark.parametrize("owner", [None, "helm", "lamplighter-operator"])
def test_what_others_made_is_left_alone(owner: str | None) -> None:
    assert changes({}, {ETC: observed(owner=owner)}) == []
    assert changes({ETC: resource()}, {ETC: observed(owner=owner)}) == []


def test_a_name_that_others_use_is_told() -> None:
    seen = {ETC: observed(owner=None), MAIN: observed()}
    (outcome,) = foreign(Declared({ETC: resource(), MAIN: resource()}), seen, ME)
    assert outcome.change.key == ETC
    assert isinstance(outcome.error, Refused)
    assert OWNER_LABEL in str(outcome.error)


def test_what_cannot_be_understood_for_now_stays() -> None:
    assert changes({}, {ETC: observed()}, held=[ETC]) == []
    assert changes({}, {ETC: observed()}, complete=False) == []


def test_references_are_put_first_and_deleted_last() -> None:
    new = [Key(kind, "default", name) for kind in ("Schedule", "Repository") for name in "ba"]
    old = [Key(kind, "default", name) for kind in ("Repository", "Schedule") for name in "zy"]
    made = changes({key: resource() for key in new}, {key: observed() for key in old})
    assert [(type(change).__name__, change.key.kind[0], change.key.name) for change in made] == [
        ("Put", "R", "a"),
        ("Put", "R", "b"),
        ("Put", "S", "a"),
        ("Put", "S", "b"),
        ("Delete", "S", "y"),
        ("Delete", "S", "z"),
        ("Delete", "R", "y"),
        ("Delete", "R", "z"),
    ]


def test_a_manifest_says_whose_it_is_and_keeps_the_labels() -> None:
    declared = Resource({"name": "main", "labels": {"a": "b"}}, {"url": "/b"}, {"password": "hush"})
    assert manifest(Put(MAIN, declared), ME) == {
        "kind": "Repository",
        "metadata": {"name": "main", "labels": {"a": "b", OWNER_LABEL: ME}},
        "spec": {"url": "/b"},
        "credentials": {"password": "hush"},
    }
    assert "hush" not in repr(declared)


def test_labels_of_the_wrong_type_are_left_for_the_server_to_refuse() -> None:
    assert manifest(Put(ETC, Resource({"labels": "x"}, {})), ME)["metadata"]["labels"] == "x"
    assert "credentials" not in manifest(Put(ETC, resource()), ME)


KEYS = st.builds(Key, st.sampled_from(["Schedule", "Repository"]), st.sampled_from("ab"), st.sampled_from("xyz"))
SPECS = st.sampled_from("123")


class Server:
    """As much of a server as reconciling sees: it fills in defaults, and counts changes."""

    def __init__(self, held: dict[Key, Any]) -> None:
        self.held = held
        self.writes = 0

    def make(self, change: Change) -> None:
        if isinstance(change, Delete):
            del self.held[change.key]
            self.writes += 1
            return
        body = manifest(change, ME)
        old = self.held.get(change.key)
        generation = old["metadata"]["generation"] if old else 0
        spec = {"timeZone": "UTC", **body["spec"]}
        if old is None or (old["spec"], old["metadata"]["labels"]) != (spec, body["metadata"]["labels"]):
            metadata = {"labels": body["metadata"]["labels"], "generation": generation + 1}
            self.held[change.key] = {"metadata": metadata, "spec": spec}
            self.writes += 1

    def observed(self) -> dict[Key, Observed]:
        return {key: observe(answer) for key, answer in self.held.items()}


@given(st.dictionaries(KEYS, SPECS), st.dictionaries(KEYS, st.tuples(SPECS, st.sampled_from([ME, "other"]))))
def test_one_pass_makes_the_server_follow_the_next_does_nothing_and_a_restart_writes_nothing(
    wanted: dict[Key, str], held: dict[Key, tuple[str, str]]
) -> None:
    declared = Declared({key: resource(cron=cron) for key, cron in wanted.items()})
    theirs = {key for key, (_, owner) in held.items() if owner != ME}
    server = Server(
        {
            key: {
                "metadata": {"labels": {OWNER_LABEL: owner}, "generation": 1},
                "spec": {"timeZone": "UTC", "cron": cron},
            }
            for key, (cron, owner) in held.items()
        }
    )
    before = server.observed()
    made = plan(declared, before, {}, ME)
    for change in made:
        server.make(change)
    after = server.observed()
    assert {key: it.spec["cron"] for key, it in after.items() if key not in theirs} == {
        key: cron for key, cron in wanted.items() if key not in theirs
    }
    assert all(after[key] == before[key] for key in theirs)
    agreed = {change.key: LastApplied(change.resource, after[change.key]) for change in made if isinstance(change, Put)}
    assert plan(declared, after, agreed, ME) == []
    writes = server.writes
    for change in plan(declared, after, {}, ME):
        server.make(change)
    assert server.writes == writes


# What kubernetes has completed can be compared word for word.

FULL = {"cron": "1", "timeZone": "UTC"}


def test_after_a_restart_what_says_the_same_word_for_word_is_left_alone() -> None:
    assert changes({ETC: resource(**FULL)}, {ETC: observed(cron="1")}) == []


@pytest.mark.parametrize(
    "declared",
    [
        Resource({"name": "x"}, FULL, {"password": "may be another"}),
        Resource({"name": "x", "labels": {"a": "b"}}, FULL),
    ],
)
def test_after_a_restart_what_may_differ_is_put(declared: Resource) -> None:
    assert changes({ETC: declared}, {ETC: observed(cron="1")}) == [Put(ETC, declared)]


class Rest:
    """As much of a client as a reconciler uses."""

    def __init__(self, *held: dict[str, Any]) -> None:
        self.held = list(held)
        self.asked: list[tuple[str, str]] = []

    async def resources(self, plural: str) -> AsyncIterator[Any]:
        for item in self.held if plural == "schedules" else []:
            yield item

    async def put(self, plural: str, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(("PUT", name))
        return {"metadata": {"labels": body["metadata"]["labels"], "generation": 1}, "spec": body["spec"]}

    async def delete(self, plural: str, namespace: str, name: str) -> None:
        self.asked.append(("DELETE", name))


def held(name: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "default", "name": name, "labels": {OWNER_LABEL: ME}, "generation": 1},
        "spec": FULL,
    }


def test_a_touch_is_about_its_keys_alone() -> None:
    other = Key("Schedule", "default", "other")

    async def touched() -> list[Any]:
        rest = Rest(held("etc"), held("other"))
        reconciler = Reconciler(cast(Client, rest), ME)
        await reconciler.reconcile(Declared({ETC: resource(**FULL), other: resource(**FULL)}))
        await reconciler.reconcile_keys(Declared({}), {ETC})  # it is not declared any more
        await reconciler.reconcile_keys(Declared({}), {ETC})
        await reconciler.reconcile_keys(Declared({other: resource(cron="2")}), {other})
        await reconciler.reconcile_keys(Declared({other: resource(cron="2")}), {other})
        return rest.asked

    assert asyncio.run(touched()) == [("DELETE", "etc"), ("PUT", "other")]
