"""Encryption at rest: credentials of repositories are stored sealed, under a key that is not in the database.

The key file has one Fernet key on each line (https://github.com/fernet/spec). The first key seals, every key opens. To
rotate: add a new key as the first line (`Vault.new_key`) and restart, which seals all credentials again; then remove
the old line.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar, overload

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.access import secretfile
from server.resources.manifests import Credentials

MAX_KEY_FILE = 64 << 10
"""Maximum bytes of a key file."""

Sealed = TypeVar("Sealed", bound=msgspec.Struct)


class VaultError(Exception):
    """A key or a sealed value cannot be used. The message says what to do, and contains no secret."""


class Vault:
    """Seals (encrypts) credentials and opens them again. Its repr hides the keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise VaultError("no key: give at least one Fernet key, 32 random bytes in URL-safe base64")
        try:
            self._first, self._fernet = Fernet(keys[0]), MultiFernet([Fernet(key) for key in keys])
            self._keys = [base64.urlsafe_b64decode(key) for key in keys]
        except ValueError:
            raise VaultError("a key is not a Fernet key: each is 32 random bytes in URL-safe base64") from None

    def __repr__(self) -> str:
        return "Vault(...)"

    @classmethod
    def open(cls, path: Path) -> Self:
        """The vault with the keys in this file, which is created with a new key (mode 0600) when missing.

        Raises VaultError for a file that has no valid keys or that every user may access, and OSError.
        """
        if not path.exists():
            secretfile.create(path, cls.new_key() + "\n")
        try:
            return cls(_read(path))
        except VaultError as error:
            raise VaultError(f"{path}: {error}") from None

    @staticmethod
    def new_key() -> str:
        """A new random key, as a line of a key file."""
        return Fernet.generate_key().decode()

    def seal(self, credentials: msgspec.Struct) -> str:
        """The text to store, which is another one each time."""
        return self._fernet.encrypt(msgspec.json.encode(credentials)).decode()

    @overload
    def unseal(self, sealed: str) -> Credentials: ...
    @overload
    def unseal(self, sealed: str, kind: type[Sealed]) -> Sealed: ...

    def unseal(self, sealed: str, kind: type[msgspec.Struct] = Credentials) -> msgspec.Struct:
        """The credentials in a sealed text. Raises VaultError when no key opens it, or it was altered."""
        try:
            return msgspec.json.decode(self._fernet.decrypt(sealed.encode()), type=kind)
        except (InvalidToken, msgspec.DecodeError):
            raise VaultError(
                "stored credentials cannot be opened with the keys in the key file: "
                "put back the key that sealed them, or set the repository's credentials again"
            ) from None

    def opened(self, sealed: str | None) -> Credentials | None:
        """The credentials in a sealed text, None for None. Raises VaultError."""
        return None if sealed is None else self.unseal(sealed)

    def sealer(self, purpose: str) -> "Sealer":
        """What seals other values than credentials. What is sealed for one purpose opens for no other."""
        return Sealer(self._keys, purpose)

    def renew(self, sealed: str) -> str:
        """The text sealed again with the first key; the same text if that key sealed it. Raises VaultError."""
        try:
            self._first.decrypt(sealed.encode())
        except InvalidToken:
            return self._renewed(sealed)
        return sealed

    def _renewed(self, sealed: str) -> str:
        try:
            return self._fernet.rotate(sealed).decode()
        except InvalidToken:
            raise VaultError("stored credentials cannot be opened with the keys in the key file") from None


class Sealer:
    """Seals values for one purpose, with keys that are derived from the vault's by HKDF (RFC 5869)."""

    def __init__(self, keys: Sequence[bytes], purpose: str) -> None:
        self._fernet = MultiFernet([Fernet(_derived(key, purpose)) for key in keys])

    def __repr__(self) -> str:
        return "Sealer(...)"

    def seal(self, value: bytes) -> str:
        """The sealed value, another text each time: letters, digits, `-`, `_` and `=`."""
        return self._fernet.encrypt(value).decode()

    def unseal(self, sealed: str) -> bytes | None:
        """The value; None when no key of this purpose opens it, or it was altered."""
        try:
            return self._fernet.decrypt(sealed.encode())
        except InvalidToken:
            return None


def _derived(key: bytes, purpose: str) -> bytes:
    derive = HKDF(SHA256(), length=32, salt=None, info=f"lamplighter {purpose}".encode())
    return base64.urlsafe_b64encode(derive.derive(key))


def _read(path: Path) -> list[str]:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & 0o007:
            raise VaultError(f"every user may access this file (mode {mode & 0o777:04o}): chmod it to 0600")
        content = file.read(MAX_KEY_FILE + 1)
    if len(content) > MAX_KEY_FILE:
        raise VaultError(f"longer than {MAX_KEY_FILE} bytes: a key file has one key on each line, and nothing else")
    return content.decode("ascii", "replace").split()
