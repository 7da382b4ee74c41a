"""The cluster's cache tells which event matters to which object, and a list never undoes a newer event."""

from typing import Any

import pytest

from controller.cluster.cache import Cache, resource_of
from controller.cluster.conditions import NotFoundError
from controller.cluster.credentials import credentials_of, secrets_named
from controller.resources import Key

HOME = "lamplighter-system"
MAIN = Key("Repository", "ns", "main")
ETC, HOME_DIR = Key("Schedule", "ns", "etc"), Key("Schedule", "ns", "home")
NODE, HOST = Key("Node", "", "n1"), Key("Host", HOME, "n1")


def body(
    key: Key, spec: dict[str, Any] | None = None, generation: int = 1, uid: str = "1", **others: Any
) -> dict[str, Any]:
    metadata = {"namespace": key.namespace, "name": key.name, "uid": uid, "generation": generation}
    metadata |= others.pop("metadata", {})
    return {"kind": key.kind, "metadata": metadata, "spec": spec or {}, **others}


def schedule(key: Key, repository: str = "main", **others: Any) -> Any:
    return body(key, {"repositoryRef": {"name": repository}}, **others)


@pytest.fixture
def cache() -> Cache:
    return Cache(HOME)


def test_what_is_new_changed_or_gone_is_to_be_looked_at(cache: Cache) -> None:
    assert cache.on_event(schedule(ETC)) == {ETC}
    assert cache.on_event(schedule(ETC, generation=2)) == {ETC}
    assert cache.on_event(schedule(ETC, generation=2, metadata={"labels": {"a": "b"}})) == {ETC}
    assert cache.on_event(schedule(ETC, generation=2, uid="2")) == {ETC}
    assert cache.on_event(schedule(ETC), deleted=True) == {ETC}
    assert cache.objects == {}


def test_a_status_alone_matters_to_nobody_but_is_kept(cache: Cache) -> None:
    cache.on_event(schedule(ETC))
    assert cache.on_event(schedule(ETC, status={"hosts": 1})) == set()
    assert cache.objects[ETC]["status"] == {"hosts": 1}


def test_a_requested_look_matters_to_that_object_alone(cache: Cache) -> None:
    cache.on_event(schedule(ETC))
    cache.on_event(body(MAIN))
    for value in ("1", "2", ""):
        asked = {"annotations": {"lamplighter.dev/reconcile-requested-at": value}}
        assert cache.on_event(body(MAIN, metadata=asked)) == {MAIN}
        assert cache.on_event(body(MAIN, metadata=asked, status={"lastHandledReconcileAt": value})) == set()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_repository_matters_to_the_schedules_that_name_it(cache: Cache, deleted: bool) -> None:
    cache.on_event(schedule(ETC))
    cache.on_event(schedule(HOME_DIR, "other"))
    cache.on_event(schedule(Key("Schedule", "elsewhere", "etc")))
    assert cache.on_event(body(MAIN), deleted=deleted) == {MAIN, ETC}


def test_a_copy_is_looked_at_for_each_of_its_repositories(cache: Cache) -> None:
    spec = {"repositoryRef": {"name": "far"}, "copy": {"fromRepositoryRef": {"name": "main"}}}
    cache.on_event(body(ETC, spec))
    far = Key("Repository", "ns", "far")
    assert (cache.on_event(body(MAIN)), cache.on_event(body(far))) == ({MAIN, ETC}, {far, ETC})


def test_a_node_matters_to_its_host_which_has_its_labels_and_goes_with_it(cache: Cache) -> None:
    assert cache.on_event(body(NODE, uid="u", metadata={"labels": {"pool": "a"}})) == {NODE, HOST}
    host = cache.node_host("n1")
    assert host is not None
    assert (host["metadata"]["namespace"], host["spec"]) == (HOME, {"nodeName": "n1"})
    assert host["metadata"]["labels"] == {"pool": "a"}
    assert host["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}]
    cache.on_event(body(NODE), deleted=True)
    assert cache.node_host("n1") is None


def test_a_list_says_what_there_is(cache: Cache) -> None:
    cache.on_event(schedule(ETC))
    cache.begin()
    cache.replace([schedule(HOME_DIR)])
    assert cache.objects.keys() == {HOME_DIR}


def test_what_is_seen_while_a_list_is_read_is_newer_than_the_list(cache: Cache) -> None:
    cache.on_event(schedule(ETC))
    cache.begin()
    cache.on_event(schedule(ETC), deleted=True)
    cache.on_event(schedule(HOME_DIR, generation=2))
    cache.replace([schedule(ETC), schedule(HOME_DIR)])
    assert cache.objects == {HOME_DIR: schedule(HOME_DIR, generation=2)}


def version(number: int, **others: Any) -> Any:
    return schedule(ETC, metadata={"resourceVersion": str(number)}, **others)


def test_an_event_that_is_older_than_what_is_known_changes_nothing(cache: Cache) -> None:
    cache.on_event(version(7, generation=2, status={"hosts": 1}))  # as a write of its status was answered
    assert cache.on_event(version(5)) == set()
    assert cache.on_event(version(6, generation=2), deleted=True) == set()  # of the object that had the name before
    assert cache.objects[ETC] == version(7, generation=2, status={"hosts": 1})
    assert cache.on_event(version(10, generation=3)) == {ETC}


@pytest.mark.parametrize("late", [8, 9])
def test_what_was_deleted_does_not_come_back_by_an_answer_that_came_late(cache: Cache, late: int) -> None:
    cache.on_event(version(7))
    assert cache.on_event(version(9), deleted=True) == {ETC}
    assert cache.on_event(version(late)) == set()
    assert cache.objects == {}
    cache.begin()
    cache.replace([])
    assert cache.on_event(version(10, uid="2")) == {ETC}


def test_a_run_that_has_ended_is_left_alone(cache: Cache) -> None:
    for phase in ("", "Pending", "Running", "Succeeded", "Failed"):
        cache.on_event(body(Key("Run", "ns", f"run-{phase}"), status={"phase": phase} if phase else {}))
    assert [key.name for key in cache.active()] == ["run-", "run-Pending", "run-Running"]


def test_a_declaration_leaves_out_what_kubernetes_adds() -> None:
    declared = resource_of(schedule(ETC, metadata={"labels": {"a": "b"}, "managedFields": []}), {"password": "hush"})
    assert declared.metadata == {"namespace": "ns", "name": "etc", "labels": {"a": "b"}}
    assert "hush" not in repr(declared)


SECRETS = {
    "s": {"password": b"hush", "other": b"also", "bytes": b"\xff\x00"},
    "e": {"AWS_ACCESS_KEY_ID": b"id"},
    "b": {"OS_AUTH_URL": b"u", "password": b"hush"},
    "bytes": {"AWS_ACCESS_KEY_ID": b"\xffid"},
}


@pytest.mark.parametrize(
    ("spec", "credentials"),
    [
        ({}, None),
        ({"passwordSecretRef": {"name": "s"}}, {"password": "hush"}),
        ({"passwordSecretRef": {"name": "s", "key": "other"}}, {"password": "also"}),
        ({"envSecretRef": {"name": "e"}}, {"env": {"AWS_ACCESS_KEY_ID": "id"}}),
        (
            {"envSecretRef": {"name": "b"}, "passwordSecretRef": {"name": "b"}},
            {"password": "hush", "env": {"OS_AUTH_URL": "u"}},
        ),
        (
            {"envSecretRef": {"name": "b"}, "passwordSecretRef": {"name": "s"}},
            {"password": "hush", "env": {"OS_AUTH_URL": "u", "password": "hush"}},
        ),
    ],
)
def test_what_opens_a_repository_comes_from_the_secrets_that_it_names(
    spec: dict[str, dict[str, str]], credentials: dict[str, Any] | None
) -> None:
    assert credentials_of(body(MAIN, spec), SECRETS) == credentials
    assert secrets_named(body(MAIN, spec)) <= SECRETS.keys()


@pytest.mark.parametrize(
    ("reference", "reason", "message"),
    [
        ({"name": "none"}, "SecretNotFound", "there is no Secret none in namespace ns: create it"),
        ({"name": "s", "key": "none"}, "SecretKeyNotFound", "Secret s has no key none: add it"),
        ({"name": "s", "key": "bytes"}, "SecretNotText", "Secret s holds no UTF-8 text under bytes: put text there"),
    ],
)
def test_a_secret_or_a_key_that_is_missing_is_named(reference: dict[str, str], reason: str, message: str) -> None:
    with pytest.raises(NotFoundError, match=message) as missing:
        credentials_of(body(MAIN, {"passwordSecretRef": reference}), SECRETS)
    assert missing.value.reason == reason


def test_an_environment_that_is_no_text_is_refused() -> None:
    with pytest.raises(NotFoundError, match="Secret bytes holds no UTF-8 text under AWS_ACCESS_KEY_ID"):
        credentials_of(body(MAIN, {"envSecretRef": {"name": "bytes"}}), SECRETS)
