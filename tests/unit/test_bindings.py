"""A Secret is sent only to the repositories that it names, whatever a Repository says."""

from typing import Any

import pytest

from controller.resources import REPOSITORY_URLS, repository_urls
from server.errors import Invalid
from server.resources.bindings import ANNOTATION, binding_errors
from server.resources.grants import Grant
from server.resources.manifests import Repository, parse_repository
from server.resources.specs import LabelSelector

LIMITED = Grant(path_prefixes=("/srv/a",))
REFS = {"passwordSecretRef": {"name": "p"}, "envSecretRef": {"name": "e"}}


def repository(
    url: str,
    urls: dict[str, Any] | str | None = None,
    refs: dict[str, dict[str, str]] = REFS,
    env: dict[str, str] | None = None,
) -> Repository:
    credentials = {"password": "hush", "env": env or {"AWS_ACCESS_KEY_ID": "k"}, **({"urls": urls} if urls else {})}
    metadata = {"name": "main", "namespace": "team-a"}
    return parse_repository({"metadata": metadata, "spec": {"url": url, **refs}, "credentials": credentials})


def fields(*args: Any, grant: Grant = LIMITED, **kwargs: Any) -> list[str]:
    found = repository(*args, **kwargs)
    assert found.credentials is not None
    return [error["field"] for error in binding_errors(found.namespace, found.spec, found.credentials, grant)]


def test_a_limited_namespace_needs_secrets_that_say_what_they_are_for() -> None:
    assert fields("s3:h/b") == ["spec.passwordSecretRef", "spec.envSecretRef"]
    assert fields("s3:h/b", {"password": ["s3:h/b"]}) == ["spec.envSecretRef"]
    assert fields("s3:h/b", {"password": ["s3:h/b"], "env": ["s3:g", "s3:h"]}) == []
    assert fields("s3:h/b", grant=Grant()) == []
    assert fields("s3:h/b", grant=Grant(LabelSelector(match_labels={"pool": "a"}))) != []


def test_who_states_credentials_knows_them() -> None:
    assert fields("s3:h/b", refs={}) == []


@pytest.mark.parametrize("grant", [Grant(), LIMITED])
@pytest.mark.parametrize("url", ["s3:evil/b", "s3:h.evil/b", "s3:h/bb", "rest:https://h/b", "s3:http://h/b", "/srv/a"])
def test_a_secret_goes_nowhere_else_in_any_namespace(url: str, grant: Grant) -> None:
    bound = {"password": ["s3:h/b"], "env": ["s3:h/b", "s3:other"]}
    assert fields(url, bound, grant=grant) == ["spec.url", "spec.url"]


def test_a_secret_that_names_no_url_is_for_none() -> None:
    assert fields("s3:h/b", {"env": [], "password": ["s3:h"]}) == ["spec.url"]


def test_the_namespace_is_filled_in_and_a_host_is_only_itself() -> None:
    both = "rest:https://h/{namespace}/{host}"
    assert fields(both, {"password": ["rest:https://h/team-a"], "env": [both]}) == []
    assert fields(both, {"password": ["rest:https://h/team-b"], "env": ["rest:https://h/team-a/n"]}) == ["spec.url"] * 2


AMAZON = "s3:https://s3.eu-central-1.amazonaws.com/b"
LED = [
    ("swift:c:/p", {"OS_AUTH_URL": "https://evil/v3"}),
    ("swift:c:/p", {"OS_STORAGE_URL": "https://evil", "OS_AUTH_TOKEN": "t"}),
    ("swift:c:/p", {"ST_AUTH": "https://evil", "ST_USER": "u", "ST_KEY": "k"}),
    ("swift:c:/p", {"OS_PROJECT_NAME": "mine"}),
    ("azure:c:/p", {"AZURE_ACCOUNT_NAME": "evil", "AZURE_ACCOUNT_KEY": "k"}),
    ("azure:c:/p", {"AZURE_ENDPOINT_SUFFIX": "evil.example"}),
    (AMAZON, {"AWS_DEFAULT_REGION": "cn-north-1"}),
    ("s3:s3.amazonaws.com/b", {"AWS_REGION": "us-gov-west-1"}),
]
NOT_LED = [
    (AMAZON, {"AWS_DEFAULT_REGION": "us-east-1"}),
    ("s3:https://minio.example.org/b", {"AWS_DEFAULT_REGION": "cn-north-1"}),
    ("s3:https://amazonaws.com.example.org/b", {"AWS_DEFAULT_REGION": "cn-north-1"}),
    ("gs:b:/p", {"GOOGLE_ACCESS_TOKEN": "t", "GOOGLE_PROJECT_ID": "p"}),
    ("b2:b:p", {"B2_ACCOUNT_ID": "i", "B2_ACCOUNT_KEY": "k"}),
    ("rest:https://h/", {"RESTIC_REST_USERNAME": "u"}),
]


@pytest.mark.parametrize(("url", "env"), LED)
@pytest.mark.parametrize("grant", [Grant(), LIMITED])
def test_no_environment_of_another_secret_leads_what_a_bound_password_opens_to_another_server(
    url: str, env: dict[str, str], grant: Grant
) -> None:
    bound = {"password": [url], "env": [url]}
    assert fields(url, bound, grant=grant, env=env) == ["spec.envSecretRef"]
    assert fields(url, bound, grant=grant, env=env, refs={"passwordSecretRef": {"name": "p"}}) == ["spec.envSecretRef"]
    one = {"passwordSecretRef": {"name": "s"}, "envSecretRef": {"name": "s"}}
    assert fields(url, bound, grant=grant, env=env, refs=one) == []


@pytest.mark.parametrize(("url", "env"), NOT_LED)
def test_other_environments_may_be_of_another_secret(url: str, env: dict[str, str]) -> None:
    assert fields(url, {"password": [url], "env": [url]}, env=env) == []


def test_a_password_that_is_bound_to_no_url_may_go_where_the_environment_says() -> None:
    assert fields(*LED[0][:1], env=LED[0][1], grant=Grant()) == []


def test_a_prefix_that_is_none_is_named_by_the_field_of_its_secret() -> None:
    assert fields("s3:h/b", {"password": ["https://h"], "env": ["s3:h"]}) == ["spec.passwordSecretRef", "spec.url"]


@pytest.mark.parametrize("urls", ["s3:h", {"x": []}, {"env": "s3:h"}, {"env": [1]}, {"env": ["x"] * 65}, {"env": None}])
def test_what_is_no_list_of_urls_is_refused(urls: str | dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        repository("s3:h/b", urls)
    assert [error["field"] for error in caught.value.errors] == ["credentials.urls"]


def test_the_annotation_is_the_one_that_the_controller_reads() -> None:
    assert ANNOTATION == REPOSITORY_URLS
    assert repository_urls({"annotations": {ANNOTATION: " s3:h/b\n  /srv "}}) == ["s3:h/b", "/srv"]
    assert repository_urls({"annotations": {ANNOTATION: ""}}) == []
    assert (
        repository_urls({"annotations": {"a": "b"}})
        is repository_urls({})
        is repository_urls({"annotations": []})
        is None
    )
