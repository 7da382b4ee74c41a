"""A token file is made once, whole, and only its owner can read it."""

from pathlib import Path

import pytest

from server.access import secretfile as private
from server.access import tokens


def test_a_token_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "admin-token"
    token = tokens.load(path)
    assert len(token) >= 43  # 32 random bytes
    assert (tokens.load(path), path.read_text()) == (token, f"{token}\n")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_tokens_differ(tmp_path: Path) -> None:
    assert tokens.load(tmp_path / "a") != tokens.load(tmp_path / "b")


def test_an_empty_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "admin-token").touch()
    with pytest.raises(ValueError, match="is empty: delete it, and restart to generate a new token"):
        tokens.load(tmp_path / "admin-token")


@pytest.mark.parametrize(("given", "same"), [("abc", True), ("abd", False), ("", False), ("é", False)])
def test_tokens_are_compared_whatever_is_given(given: str, same: bool) -> None:
    assert tokens.same(given, "abc") is same


def test_of_two_that_make_a_file_the_first_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("first", "second"):
        private.create(tmp_path / "key", text)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"key": "first"}


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        private.create(tmp_path / "key", "\udc80")
    assert list(tmp_path.iterdir()) == []
