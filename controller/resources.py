"""Resources as they are declared, and what names them. What both a folder and a cluster declare is said here once."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

PLURALS: Mapping[str, str] = {"Repository": "repositories", "Schedule": "schedules"}
"""The kinds, those that others refer to first."""
FOLDER_PLURALS: Mapping[str, str] = {"Host": "hosts", **PLURALS}
"""The kinds of a folder. A cluster's Hosts are brought one by one, and are not compared."""

SECRET_PARTS: Mapping[str, str] = {"passwordSecretRef": "password", "envSecretRef": "env"}
"""What of a Repository's credentials is in the Secret that each field of its spec names."""
REPOSITORY_URLS = "lamplighter.dev/repository-urls"
"""The annotation by which a Secret says which repositories it is for. The server holds it to that."""

Value = TypeVar("Value", str, bytes)
"""A value of a Secret: text in a folder, bytes in a cluster."""


class Key(NamedTuple):
    """What names a resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Resource(NamedTuple):
    """A resource as it is declared. `credentials`: what opens a Repository. Its repr hides them."""

    metadata: Mapping[str, Any]
    spec: Any
    credentials: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Resource({self.metadata!r}, {self.spec!r})"


def repository_urls(secret_metadata: Mapping[str, Any]) -> list[str] | None:
    """The URL prefixes that a Secret is for; None where it does not say."""
    annotations = secret_metadata.get("annotations")
    value = annotations.get(REPOSITORY_URLS) if isinstance(annotations, dict) else None
    return None if value is None else str(value).split()


def environment_of(spec: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Value]:
    """The variables in the values of the Secret that envSecretRef names.

    Where passwordSecretRef names the same Secret, its key is the password and no variable.
    """
    env, password = spec.get("envSecretRef"), spec.get("passwordSecretRef")
    if not isinstance(env, dict) or not isinstance(password, dict) or env.get("name") != password.get("name"):
        return dict(values)
    return {name: value for name, value in values.items() if name != (password.get("key") or "password")}


def final_newlines(credentials: Mapping[str, Any] | None) -> list[str]:
    """Which values end with a newline, which the server leaves out: `password`, and names of variables."""
    values = {"password": (credentials or {}).get("password"), **(credentials or {}).get("env", {})}
    return [name for name, value in values.items() if isinstance(value, str) and value.endswith("\n")]
