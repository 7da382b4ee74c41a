"""No status tells of trouble while an object is on its way to the server."""

from datetime import UTC, datetime

import pytest

from controller.client import ControllerError, Refused, Unreachable
from controller.cluster.cache import Cache
from controller.cluster.conditions import NotFoundError
from controller.cluster.kube import KubeError, Object
from controller.cluster.results import Request, Result, Results, version_of
from controller.cluster.server_state import ServerState
from controller.resources import RECONCILE_REQUESTED, RESUME_REQUESTED, Key

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


def asking(key: Key, value: str, **status: object) -> Object:
    its = body(key)
    its["metadata"]["annotations"] = {RECONCILE_REQUESTED: value}
    return {**its, "status": status}


@pytest.mark.parametrize(
    ("error", "done"),
    [
        (Refused(422, "no"), True),
        (Refused(409, "another owner"), True),
        (NotFoundError("SecretNotFound", "no Secret"), True),
        (NotFoundError("WrongNamespace", "elsewhere"), True),
        (KubeError(403, "forbidden"), True),
        (KubeError(503, "not now"), False),
        (Refused(500, "broken"), False),
        (Refused(401, "who?"), False),
        (Unreachable("away"), False),
    ],
    ids=str,
)
def test_a_requested_look_is_answered_once_it_found_out_how_things_are(
    results: Results, cache: Cache, error: ControllerError, done: bool
) -> None:
    key = Key("Schedule", HOME, "n1")
    its = asking(key, "2", lastHandledReconcileAt="1")
    cache.on_event(its)
    look = results.open_request(key, its)
    assert look == Request("u", "2")
    for _ in range(2):  # what ends when another object comes is told from the second time on
        results.record(key, Result(error, done=[look]))
    status = results.status(key, its, NOON)
    assert status is not None
    assert status["lastHandledReconcileAt"] == ("2" if done else "1")
    assert results.open_request(key, its) == (None if done else look)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
@pytest.mark.parametrize("kind", ["Run", "Restore"])
def test_a_look_at_what_has_ended_is_answered_and_changes_nothing_else(
    results: Results, cache: Cache, kind: str, phase: str
) -> None:
    key = Key(kind, HOME, "n1")
    its = asking(key, "", phase=phase, hosts=3)
    cache.on_event(its)
    assert results.status(key, its, NOON) is None
    look = results.open_request(key, its)
    assert look is not None
    results.record(key, Result(done=[look]))
    assert results.status(key, its, NOON) == {"phase": phase, "hosts": 3, "lastHandledReconcileAt": ""}


def test_a_look_that_was_answered_is_not_open_again_without_a_new_value(results: Results, cache: Cache) -> None:
    key = Key("Schedule", HOME, "n1")
    assert results.open_request(key, body(key)) is None
    assert results.open_request(key, asking(key, "1", lastHandledReconcileAt="1")) is None
    results.record(key, Result(done=[Request("u", "2")]))
    assert results.open_request(key, asking(key, "2", lastHandledReconcileAt="1")) is None
    assert results.open_request(key, asking(key, "1", lastHandledReconcileAt="1")) == Request("u", "1")
    of_another = asking(key, "2")
    of_another["metadata"]["uid"] = "another"
    assert results.open_request(key, of_another) == Request("another", "2")


def test_a_request_to_resume_is_answered_apart_from_a_look_and_of_a_schedule_alone(
    results: Results, cache: Cache
) -> None:
    key = Key("Schedule", HOME, "n1")
    its = asking(key, "1", lastHandledReconcileAt="1")
    its["metadata"]["annotations"][RESUME_REQUESTED] = "1"
    cache.on_event(its)
    assert results.open_request(key, its) is None
    resume = results.open_request(key, its, RESUME_REQUESTED)
    assert resume == Request("u", "1", RESUME_REQUESTED)
    results.record(key, Result(Refused(422, "no"), version_of(its), done=[resume]))
    status = results.status(key, its, NOON)
    assert status is not None
    assert (status["lastHandledReconcileAt"], status["lastHandledResumeAt"]) == ("1", "1")
    assert results.open_request(key, its, RESUME_REQUESTED) is None
    host = Key("Host", HOME, "n1")
    of_host = body(host)
    of_host["metadata"]["annotations"] = {RESUME_REQUESTED: "1"}
    assert results.open_request(host, of_host, RESUME_REQUESTED) is None
