"""A server's keys are made once, kept, replaced when they no longer serve, and trusted."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from server.access import keys
from server.access.vault import Vault

NOW = datetime.now(UTC)
NAMES = ["lamplighter.lamplighter-system.svc", "192.0.2.7", "2001:db8::7"]


@pytest.fixture(scope="module")
def held() -> dict[str, bytes]:
    return keys.complete({}, NAMES, NOW)


def changed(old: dict[str, bytes], new: dict[str, bytes]) -> set[Any]:
    return {key for key in new if new[key] != old.get(key)}


def shake_hands(held: dict[str, bytes], name: str, folder: Path) -> str | None:
    """A TLS handshake between a server with these keys and a client that trusts the CA alone, without a network."""
    for key in (keys.CERT, keys.KEY, keys.CA_CERT):
        (folder / key).write_bytes(held[key])
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server_side.load_cert_chain(folder / keys.CERT, folder / keys.KEY)
    client_side.load_verify_locations(folder / keys.CA_CERT)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of Python 3.13
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    for end in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return client.version()


@pytest.mark.parametrize("name", NAMES)
def test_strict_clients_trust_the_certificate_by_each_of_its_names(
    held: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    assert shake_hands(held, name, tmp_path) == "TLSv1.3"


def test_clients_refuse_it_by_another_name(held: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(held, "elsewhere.example.org", tmp_path)


def test_the_vault_opens_with_the_key(held: dict[str, bytes]) -> None:
    assert Vault(held[keys.VAULT_KEY].decode().split())


def test_what_is_there_stays(held: dict[str, bytes]) -> None:
    assert keys.complete(held, NAMES, NOW) == held


def test_another_name_makes_another_certificate_by_the_same_ca(held: dict[str, bytes], tmp_path: Path) -> None:
    wanted = keys.complete(held, [*NAMES, "backup.example.org"], NOW)
    assert changed(held, wanted) == {keys.CERT, keys.KEY}
    assert shake_hands(wanted, "backup.example.org", tmp_path)


def test_a_certificate_in_its_last_year_is_made_anew(held: dict[str, bytes]) -> None:
    late = NOW + keys.LIFE - keys.RENEW + timedelta(days=1)
    assert changed(held, keys.complete(held, NAMES, late)) == {keys.CERT, keys.KEY}


def test_what_is_deleted_from_the_secret_is_made_anew(held: dict[str, bytes]) -> None:
    for gone, made in ((keys.CA_KEY, set()), (keys.CERT, {keys.CERT, keys.KEY}), (keys.VAULT_KEY, {keys.VAULT_KEY})):
        rest = {key: value for key, value in held.items() if key != gone}
        assert changed(rest, keys.complete(rest, NAMES, NOW)) == made


def test_a_damaged_certificate_is_made_anew(held: dict[str, bytes]) -> None:
    assert changed(held, keys.complete({**held, keys.CERT: b"?"}, NAMES, NOW)) == {keys.CERT, keys.KEY}


def test_only_what_is_asked_for_is_made() -> None:
    assert keys.complete({}, [], NOW).keys() == {keys.VAULT_KEY}
    assert keys.VAULT_KEY not in keys.complete({}, NAMES, NOW, vault=False)


@pytest.mark.parametrize(
    ("damaged", "remedy"),
    [
        ({keys.VAULT_KEY: b"hush"}, "vault-key: a key is not a Fernet key"),
        ({keys.CERT: b"?", keys.CA_CERT: b"?"}, "ca.crt or ca.key is not PEM: delete both"),
    ],
)
def test_what_cannot_be_used_is_told_and_not_replaced(
    held: dict[str, bytes], damaged: dict[str, bytes], remedy: str
) -> None:
    with pytest.raises(keys.KeysError, match=remedy) as refusal:
        keys.complete({**held, **damaged}, NAMES, NOW)
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("name", ["backup.example.org", keys.LOCAL])
def test_a_server_outside_a_cluster_has_a_certificate_of_its_own_authority(name: str, tmp_path: Path) -> None:
    names = ["backup.example.org"]
    assert set(keys.own_authority(tmp_path / "tls", names, NOW)) == {keys.CA_CERT, keys.CA_KEY, keys.CERT, keys.KEY}
    made = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {keys.CA_CERT: 0o644, keys.CERT: 0o644, keys.CA_KEY: 0o600, keys.KEY: 0o600}
    assert shake_hands(made, name, tmp_path) == "TLSv1.3"
    assert keys.own_authority(tmp_path / "tls", names, NOW) == []
    assert set(keys.own_authority(tmp_path / "tls", ["192.0.2.7"], NOW)) == {keys.CERT, keys.KEY}


def test_a_certificate_that_came_from_elsewhere_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / keys.CERT).write_text("of a public authority")
    with pytest.raises(keys.KeysError, match=r"tls.crt came from elsewhere, .*: choose another folder"):
        keys.own_authority(tmp_path, ["backup.example.org"], NOW)
    assert [path.name for path in tmp_path.iterdir()] == [keys.CERT]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ([], "give --secret for a server in a cluster, or --self-signed"),
        (["--self-signed"], "--self-signed also needs --tls-name"),
        (["--self-signed", "--tls-name", "a b"], "'a b' is neither a DNS name nor an address"),
        (["--self-signed", "--secret", "keys"], "--secret: not with --self-signed"),
    ],
)
def test_the_command_says_what_it_needs(words: list[str], remedy: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["keys", str(tmp_path / "tls"), *words])
    assert ended.exit_code != 0
    assert remedy in ended.output
    assert not (tmp_path / "tls").exists()
