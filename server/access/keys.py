"""The keys of a server: the vault's key, a CA, and a server certificate that the CA has issued.

In a cluster one Secret holds them, elsewhere a folder (`own_authority`). What is held and can still be used is kept;
whatever else is needed is generated. To replace a key, delete it and restart the server.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.access.vault import Vault, VaultError
from server.resources.selectors import is_dns_name

VAULT_KEY, CA_CERT, CA_KEY, CERT, KEY = "vault-key", "ca.crt", "ca.key", "tls.crt", "tls.key"
"""The Secret's keys; those of TLS are named as in Secrets of type kubernetes.io/tls."""
CA_LIFE = timedelta(days=20 * 365)
LIFE = timedelta(days=10 * 365)
"""Lifetimes of the CA and of the certificate. They are long because only a start of the server renews them."""
RENEW = timedelta(days=365)
"""A certificate with no more than this left is renewed when the server starts."""
SKEW = timedelta(hours=1)
"""How far behind a client's clock may be when it checks a new certificate."""

LOCAL = "localhost"
"""The name by which the server's own machine reaches it."""

SecretData = Mapping[str, bytes]


class KeysError(Exception):
    """The content of a Secret cannot be used. The message says what to do, and contains no secret."""


def complete(held: SecretData, names: Sequence[str], now: datetime, *, vault: bool = True) -> dict[str, bytes]:
    """The content that the Secret should have: `held`, and what has to be generated.

    `names`: the DNS names and IP addresses of the server; without any, no certificate is generated. `vault`: whether a
    vault key is needed. Raises KeysError.
    """
    wanted = dict(held)
    if vault and VAULT_KEY not in wanted:
        wanted[VAULT_KEY] = Vault.new_key().encode() + b"\n"
    if names and not _serves(wanted, names, now):
        if CA_CERT not in wanted or CA_KEY not in wanted:
            wanted.update(_authority(now))
        wanted.update(_certified(wanted, names, now))
    if vault:
        try:
            Vault(wanted[VAULT_KEY].decode("ascii", "replace").split())
        except VaultError as error:
            raise KeysError(f"{VAULT_KEY}: {error}") from None
    return wanted


def own_authority(folder: Path, names: Sequence[str], now: datetime) -> list[str]:
    """Complete the CA and the certificate in a folder, which is made if missing. Returns the files that are new.

    `names`: as in `complete`; the certificate is for LOCAL too. Keys can be read by this user alone, certificates by
    all. Raises KeysError and OSError.
    """
    for name in names:
        if _address(name) is None and not is_dns_name(name.lower()):
            raise KeysError(f"{name!r} is neither a DNS name nor an address")
    folder.mkdir(parents=True, exist_ok=True)
    there = [folder / name for name in (CA_CERT, CA_KEY, CERT, KEY)]
    held = {path.name: path.read_bytes() for path in there if path.exists()}
    if held and CA_KEY not in held:
        raise KeysError(f"{', '.join(held)} came from elsewhere, as there is no {CA_KEY}: choose another folder")
    wanted = complete(held, list(dict.fromkeys([*names, LOCAL])), now, vault=False)
    made = [name for name in wanted if wanted[name] != held.get(name)]
    for name in made:
        beside = folder / f".{name}.new"
        beside.unlink(missing_ok=True)
        mode = 0o600 if name in (CA_KEY, KEY) else 0o644
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask
            file.write(wanted[name])
        beside.rename(folder / name)
    return made


def _serves(held: SecretData, names: Sequence[str], now: datetime) -> bool:
    """Whether the CA issued the certificate for exactly these names, and it lasts longer than RENEW."""
    if not {CA_CERT, CERT, KEY} <= held.keys():
        return False
    try:
        authority = x509.load_pem_x509_certificate(held[CA_CERT])
        certificate = x509.load_pem_x509_certificate(held[CERT])
        certificate.verify_directly_issued_by(authority)
        carried = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is replaced
        return False
    return set(carried) == set(_general_names(names)) and certificate.not_valid_after_utc - now > RENEW


def _authority(now: datetime) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("lamplighter CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return {CA_CERT: _pem(certificate), CA_KEY: _pem_key(key)}


def _certified(held: SecretData, names: Sequence[str], now: datetime) -> dict[str, bytes]:
    """A new key and a certificate for it (RFC 5280), with the extensions that Python's strict checks require."""
    try:
        authority = x509.load_pem_x509_certificate(held[CA_CERT])
        signer = serialization.load_pem_private_key(held[CA_KEY], password=None)
    except ValueError:
        raise KeysError(f"{CA_CERT} or {CA_KEY} is not PEM: delete both to generate new ones") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeysError(f"{CA_KEY} is neither an EC nor an RSA key: delete it and {CA_CERT} to generate new ones")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer)
    certificate = (
        _builder(_name("lamplighter"), authority.subject, key, now, LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return {CERT: _pem(certificate), KEY: _pem_key(key)}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
