"""A Secret is sent to the repositories that it names, whatever a Repository says that refers to it."""

import pytest

from controller.reconcile import REPOSITORY_URLS, repository_urls
from server.bindings import ANNOTATION, binding_errors
from server.grants import Grant
from server.problems import Invalid
from server.resources import parse_repository
from server.specs import LabelSelector

LIMITED = Grant(path_prefixes=("/srv/a",))
REFS = {"passwordSecretRef": {"name": "p"}, "envSecretRef": {"name": "e"}}


def repository(url, urls=None, refs=REFS):
    credentials = {"password": "hush", "env": {"AWS_ACCESS_KEY_ID": "k"}, **({"urls": urls} if urls else {})}
    metadata = {"name": "main", "namespace": "team-a"}
    return parse_repository({"metadata": metadata, "spec": {"url": url, **refs}, "credentials": credentials})


def fields(*args, grant=LIMITED, **kwargs):
    return [error["field"] for error in binding_errors(repository(*args, **kwargs), grant)]


def test_a_limited_namespace_needs_secrets_that_say_what_they_are_for():
    assert fields("s3:h/b") == ["spec.passwordSecretRef", "spec.envSecretRef"]
    assert fields("s3:h/b", {"password": ["s3:h/b"]}) == ["spec.envSecretRef"]
    assert fields("s3:h/b", {"password": ["s3:h/b"], "env": ["s3:g", "s3:h"]}) == []
    assert fields("s3:h/b", grant=Grant()) == []
    assert fields("s3:h/b", grant=Grant(LabelSelector(match_labels={"pool": "a"}))) != []


def test_who_states_credentials_knows_them():
    assert fields("s3:h/b", refs={}) == []


@pytest.mark.parametrize("grant", [Grant(), LIMITED])
@pytest.mark.parametrize("url", ["s3:evil/b", "s3:h.evil/b", "s3:h/bb", "rest:https://h/b", "s3:http://h/b", "/srv/a"])
def test_a_secret_goes_nowhere_else_in_any_namespace(url, grant):
    bound = {"password": ["s3:h/b"], "env": ["s3:h/b", "s3:other"]}
    assert fields(url, bound, grant=grant) == ["spec.url", "spec.url"]


def test_a_secret_that_names_no_url_is_for_none():
    assert fields("s3:h/b", {"env": [], "password": ["s3:h"]}) == ["spec.url"]


def test_the_namespace_is_filled_in_and_a_host_is_only_itself():
    both = "rest:https://h/{namespace}/{host}"
    assert fields(both, {"password": ["rest:https://h/team-a"], "env": [both]}) == []
    assert fields(both, {"password": ["rest:https://h/team-b"], "env": ["rest:https://h/team-a/n"]}) == ["spec.url"] * 2


def test_a_prefix_that_is_none_is_named_by_the_field_of_its_secret():
    assert fields("s3:h/b", {"password": ["https://h"], "env": ["s3:h"]}) == ["spec.passwordSecretRef", "spec.url"]


@pytest.mark.parametrize("urls", ["s3:h", {"x": []}, {"env": "s3:h"}, {"env": [1]}, {"env": ["x"] * 65}, {"env": None}])
def test_what_is_no_list_of_urls_is_refused(urls):
    with pytest.raises(Invalid) as caught:
        repository("s3:h/b", urls)
    assert [error["field"] for error in caught.value.errors] == ["credentials.urls"]


def test_the_annotation_is_the_one_that_the_controller_reads():
    assert ANNOTATION == REPOSITORY_URLS
    assert repository_urls({"annotations": {ANNOTATION: " s3:h/b\n  /srv "}}) == ["s3:h/b", "/srv"]
    assert repository_urls({"annotations": {ANNOTATION: ""}}) == []
    assert (
        repository_urls({"annotations": {"a": "b"}})
        is repository_urls({})
        is repository_urls({"annotations": []})
        is None
    )
