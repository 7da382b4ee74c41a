"""No status tells of trouble while an object is on its way to the server."""

from datetime import UTC, datetime

import pytest

from controller.client import Refused
from controller.cluster.cache import Cache
from controller.cluster.kube import Object
from controller.cluster.results import Result, Results, version_of
from controller.cluster.server_state import ServerState
from controller.resources import Key

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
HOME = "lamplighter-system"
KEYS = [Key(kind, HOME, "n1") for kind in ("Repository", "Schedule", "Host", "Run", "Restore")]
SPEC = {"repositoryRef": {"name": "main"}, "scheduleRef": {"name": "etc"}}


@pytest.fixture
def cache() -> Cache:
    cache = Cache(HOME)
    cache.on_event(body(Key("Repository", HOME, "main")))
    return cache


@pytest.fixture
def results(cache: Cache) -> Results:
    return Results(cache, ServerState())


def body(key: Key) -> Object:
    metadata = {"namespace": key.namespace, "name": key.name, "uid": "u", "generation": 1}
    return {"kind": key.kind, "metadata": metadata, "spec": SPEC}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.kind)
def test_nothing_is_said_of_what_the_server_was_not_asked_for_yet(results: Results, cache: Cache, key: Key) -> None:
    its = body(key)
    cache.on_event(its)
    assert results.status(key, its, NOON) is None


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.kind)
def test_what_the_server_refuses_is_said_at_once(results: Results, cache: Cache, key: Key) -> None:
    its = body(key)
    cache.on_event(its)
    results.record(key, Result(Refused(422, "no"), version_of(its)))
    status = results.status(key, its, NOON)
    assert status is not None
    assert status["observedGeneration"] == 1


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_generation_that_was_sent_and_not_judged_is_not_observed(results: Results, cache: Cache, status: int) -> None:
    key = Key("Schedule", HOME, "n1")
    its = body(key)
    cache.on_event(its)
    results.record(key, Result(None, version_of(its)))
    results.record(key, Result(Refused(status, "not now"), version_of(its)._replace(generation=2)))
    told = results.status(key, its, NOON)
    assert told is not None
    assert told["observedGeneration"] == 1
    assert results.is_new(key, {**its, "metadata": its["metadata"] | {"generation": 2}})


def test_a_host_that_the_server_was_given_and_does_not_have_is_told(results: Results, cache: Cache) -> None:
    key = Key("Host", HOME, "n1")
    its = body(key)
    cache.on_event(its)
    results.record(key, Result(None, version_of(its)))
    status = results.status(key, its, NOON)
    assert status is not None
    assert {it["reason"] for it in status["conditions"]} == {"Unknown"}
