"""Promise 7: credentials are encrypted at rest and appear nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from server.access.vault import Vault, VaultError
from server.resources.manifests import Credentials

SECRET = Credentials("correct horse", {"AWS_SECRET_ACCESS_KEY": "battery staple"})


def test_what_was_sealed_can_be_unsealed_and_not_be_read() -> None:
    vault = Vault([Vault.new_key()])
    sealed = vault.seal(SECRET)
    assert vault.unseal(sealed) == SECRET
    assert "horse" not in sealed
    assert vault.seal(SECRET) != sealed


def test_the_first_key_seals_and_all_open() -> None:
    old, new = Vault.new_key(), Vault.new_key()
    sealed_before = Vault([old]).seal(SECRET)
    rotated = Vault([new, old])
    assert rotated.unseal(sealed_before) == SECRET
    assert Vault([new]).unseal(rotated.seal(SECRET)) == SECRET


@pytest.mark.parametrize("spoil", [lambda sealed: sealed[:-4] + "AAAA", lambda sealed: "", lambda sealed: "é"])
def test_an_altered_value_is_refused_with_a_remedy(spoil: Callable[..., str]) -> None:
    vault = Vault([Vault.new_key()])
    with pytest.raises(VaultError, match="set the repository's credentials again"):
        vault.unseal(spoil(vault.seal(SECRET)))


def test_a_value_of_another_key_is_refused_without_showing_it() -> None:
    sealed = Vault([Vault.new_key()]).seal(SECRET)
    with pytest.raises(VaultError) as refused:
        Vault([Vault.new_key()]).unseal(sealed)
    assert sealed not in str(refused.value)
    assert refused.value.__suppress_context__


def test_nothing_shows_in_a_repr() -> None:
    key = Vault.new_key()
    assert key not in repr(Vault([key]))
    assert "horse" not in repr(SECRET)
    assert "staple" not in repr(SECRET)


def test_a_missing_key_file_is_made_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "vault-key"
    sealed = Vault.open(path).seal(SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Vault.open(path).unseal(sealed) == SECRET
    assert [file.name for file in path.parent.iterdir()] == ["vault-key"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "no key"), ("hunter2\n", "not a Fernet key"), ("A" * 100_000, "longer than")],
    ids=["empty", "no key", "long"],
)
def test_a_key_file_that_cannot_be_used_is_named_but_not_shown(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "vault-key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(VaultError, match=says) as refused:
        Vault.open(path)
    assert str(path) in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_key_file_that_every_user_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vault-key"
    path.write_text(Vault.new_key())
    path.chmod(0o644)
    with pytest.raises(VaultError, match="chmod it to 0600"):
        Vault.open(path)
