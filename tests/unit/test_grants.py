"""Promise 8: a namespace may only reach the hosts and paths that the operator of the cluster granted it."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.resources.grants import NOTHING, Grant, Grants, GrantsError, path_errors, url_errors
from server.resources.selectors import selector_matches
from server.resources.urls import folder_of

TEAM = Grant(path_prefixes=("/srv/a", "/var/log/"))


def load(tmp_path: Path, text: str) -> Grants:
    path = tmp_path / "grants.yaml"
    path.write_text(text)
    return Grants.load(path)


@pytest.mark.parametrize(
    "path", ["/srv/a", "/srv/a/", "/srv/a/b", "//srv//a/./b", "/srv/b/../a/c", "/var/log", "/var/log/x"]
)
def test_what_lies_in_a_prefix_is_granted(path: str) -> None:
    assert TEAM.covers(path)


@pytest.mark.parametrize(
    "path", ["/", "/srv", "/srv/ab", "/srv/a/..", "/srv/a/../b", "//srv/a/../../etc", "/etc/srv/a"]
)
def test_what_lies_elsewhere_is_not_however_it_is_written(path: str) -> None:
    assert not TEAM.covers(path)


@given(st.text("ab./", max_size=20), st.sampled_from(["/a", "/a/b", "/b", "/"]))
def test_what_is_granted_is_what_the_system_finds_below_a_prefix(text: str, prefix: Any) -> None:
    found = PurePosixPath("/" + os.path.normpath("/" + text).lstrip("/"))
    assert Grant(path_prefixes=(prefix,)).covers("/" + text) == found.is_relative_to(prefix)


def test_a_path_that_is_not_granted_is_named_with_what_is() -> None:
    (error,) = path_errors(TEAM, "team-a", ["/srv/a/x", "/etc"], "spec.backup.paths")
    assert error["field"] == "spec.backup.paths[1]"
    assert "namespace team-a: granted are /srv/a, /var/log/" in error["detail"]


@pytest.mark.parametrize(
    "url", ["s3:https://s3.example.org/b", "rest:https://host/", "sftp:user@host:/srv", "b2:bucket:path"]
)
def test_a_repository_that_is_elsewhere_needs_no_path(url: str) -> None:
    assert folder_of(url) is None
    assert not list(url_errors(Grant(path_prefixes=()), "team-a", url))


@pytest.mark.parametrize(
    "url", ["/etc/cron.d/x", "local:/etc", "relative", "local:relative", "/srv/a/../b", "/srv/{namespace}"]
)
def test_a_repository_on_the_hosts_is_a_path_like_others(url: str) -> None:
    assert [error["field"] for error in url_errors(TEAM, "team-a", url)] == ["spec.url"]


def test_a_namespace_in_a_url_is_its_own() -> None:
    assert not list(url_errors(TEAM, "a", "/srv/{namespace}/{host}"))


def test_who_is_granted_everything_may_use_any_folder() -> None:
    assert not list(url_errors(Grant(), "team-a", "relative"))


def test_a_namespace_that_is_not_named_has_the_default(tmp_path: Path) -> None:
    grants = load(tmp_path, "default: {pathPrefixes: []}\nnamespaces: {a: {hostSelector: {matchLabels: {pool: a}}}}")
    assert grants.of("b").path_prefixes == ()
    assert grants.of("a").everywhere
    assert selector_matches(grants.of("a").host_selector, {"pool": "a"})
    assert not selector_matches(grants.of("a").host_selector, {"pool": "b"})


def test_who_is_granted_no_path_reaches_less_than_who_is_granted_one() -> None:
    """An empty list in a command means anywhere."""
    assert Grant().within == Grant(path_prefixes=("/srv", "/")).within == ()
    assert TEAM.within == ("/srv/a", "/var/log/")
    assert Grant(path_prefixes=()).within == ("/dev/null",)


OTHER, INNER, NONE = Grant(path_prefixes=("/srv",)), Grant(path_prefixes=("/srv/a/b",)), Grant(path_prefixes=())


@pytest.mark.parametrize(
    ("was", "still"),
    [
        (Grant(), ()),
        (OTHER, (OTHER,)),
        (INNER, (OTHER, TEAM)),
        (NONE, (OTHER, TEAM, NONE)),
    ],
)
def test_what_was_given_to_a_job_before_the_grant_was_limited_is_not_granted_any_more(
    was: Grant, still: tuple[Grant, ...]
) -> None:
    assert tuple(it for it in (OTHER, TEAM, NONE) if it.still_grants(was.within, False)) == still
    assert Grant().still_grants(was.within, False)
    assert not Grant().still_grants(was.within, True)


def test_an_empty_file_grants_everything(tmp_path: Path) -> None:
    assert load(tmp_path, "").of("any") == Grant()


@pytest.mark.parametrize("labels", [{}, {"lamplighter.dev/nothing": ""}, {"lamplighter.dev/nothing": "x"}])
def test_nothing_selects_nothing(labels: dict[str, str]) -> None:
    assert not selector_matches(NOTHING, labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "grants.yaml"),
        ("defaults: {}", "defaults"),
        ("default: {pathPrefixes: [srv]}", "must be absolute"),
        ("default: {pathPrefixes: [/srv/../etc]}", "'..'"),
        ("default: {pathPrefixes: /srv}", "pathPrefixes"),
        ("namespaces: {a: {hostSelector: {matchLabels: {'-': b}}}}", "hostSelector.matchLabels"),
        ("namespaces: {a: {hostSelector: {matchlabels: {pool: a}}}}", "matchlabels"),
        ("namespaces: {a: {hostSelector: {pool: a}}}", "pool"),
        ("default: {hostSelector: {matchExpressions: [{key: a, operator: NotIn, value: [b]}]}}", "value"),
        ("default: {hostSelector: {matchExpressions: [{key: '-', operator: Exists}]}}", "matchExpressions[0].key"),
        ("default: {hostSelector: {matchExpressions: [{key: a, operator: NotIn}]}}", "NotIn need at least one value"),
        ("default: {hostSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", "take no values"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(GrantsError, match=r"grants\.yaml") as error:
        load(tmp_path, text)
    assert said in str(error.value)
