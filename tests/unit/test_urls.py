"""The URLs of repositories: told apart as restic does, and refused where the operator does not allow their kind."""

import pytest

from server.urls import SCHEMES, folder_of, scheme_errors, scheme_of


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("/backup:old", "local"),
        ("backup", "local"),
        ("./a:b", "local"),
        ("../a:b", "local"),
        ("local:/backup", "local"),
        ("s3:https://s3.example.org/b", "s3"),
        ("rclone:remote:b", "rclone"),
        ("Rclone:remote:b", "Rclone"),
        (":b", ""),
    ],
)
def test_a_url_is_of_the_kind_that_restic_takes_it_for(url, scheme):
    assert scheme_of(url) == scheme


def test_a_folder_is_a_path_with_or_without_its_scheme():
    assert [folder_of(url) for url in ("/b", "local:b", "b2:bucket:b")] == ["/b", "b", None]


@pytest.mark.parametrize("url", ["rclone:remote:b", "Sftp:host:/b", "ftp://host/b", "a:b", ":b"])
def test_a_kind_that_is_not_allowed_is_refused_with_those_that_are(url):
    [error] = scheme_errors(url, SCHEMES)
    assert error["field"] == "spec.url"
    assert "use one of local:, rest:, s3:" in error["detail"]


def test_the_operator_allows_a_kind_and_no_other():
    assert not list(scheme_errors("rclone:remote:b", ("rclone",)))
    assert list(scheme_errors("/b", ("rclone",)))
