"""Declared resources and their keys, with what folders and clusters have in common."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

PLURALS: Mapping[str, str] = {"Repository": "repositories", "Schedule": "schedules", "Alert": "alerts"}
"""The kinds with their plurals. Kinds that others refer to come first."""
FOLDER_PLURALS: Mapping[str, str] = {"Host": "hosts", **PLURALS}
"""The kinds of a folder. A cluster's Hosts are synced one by one."""

PING_KEY = "url"
"""The key, unless a Schedule names another, of the Secret with the URL that it pings."""
URLS_KEY, SIGNING_KEY = "urls", "signing-key"
"""The keys of a Secret that an Alert names: its URLs, one on each line, and what signs webhooks."""
SECRET_PARTS: Mapping[str, str] = {"passwordSecretRef": "password", "envSecretRef": "env"}
"""For each field of a Repository's spec that names a Secret, the part of the credentials that it holds."""
REPOSITORY_URLS = "lamplighter.dev/repository-urls"
"""The annotation of a Secret with the URLs of the repositories that it is for. The server enforces it."""
RECONCILE_REQUESTED = "lamplighter.dev/reconcile-requested-at"
"""The annotation that requests a look at an object now. Each new value is a new request, as in Flux."""
RESUME_REQUESTED = "lamplighter.dev/resume-requested-at"
"""The annotation that has a Schedule go on which is paused. Each new value is a new request."""

Value = TypeVar("Value", str, bytes)
"""A value of a Secret: text in a folder, bytes in a cluster."""


class Key(NamedTuple):
    """The kind, namespace and name of a resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Resource(NamedTuple):
    """A declared resource. `credentials`: what its Secrets hold. Its repr hides them."""

    metadata: Mapping[str, Any]
    spec: Any
    credentials: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Resource({self.metadata!r}, {self.spec!r})"


def repository_urls(secret_metadata: Mapping[str, Any]) -> list[str] | None:
    """The URL prefixes that a Secret is for; None if it does not limit them."""
    annotations = secret_metadata.get("annotations")
    value = annotations.get(REPOSITORY_URLS) if isinstance(annotations, dict) else None
    return None if value is None else str(value).split()


def environment_of(spec: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Value]:
    """The environment variables in a Secret that envSecretRef names.

    If passwordSecretRef names the same Secret, its key is the password, not a variable.
    """
    env, password = spec.get("envSecretRef"), spec.get("passwordSecretRef")
    if not isinstance(env, dict) or not isinstance(password, dict) or env.get("name") != password.get("name"):
        return dict(values)
    return {name: value for name, value in values.items() if name != (password.get("key") or "password")}


def ping_secret(spec: object) -> Mapping[str, Any] | None:
    """The reference to the Secret with the URL that a Schedule pings; None if it pings none."""
    ping = spec.get("ping") if isinstance(spec, dict) else None
    ref = ping.get("urlSecretRef") if isinstance(ping, dict) else None
    return ref if isinstance(ref, dict) and isinstance(ref.get("name"), str) else None


def names_secrets(kind: str, spec: object) -> bool:
    """Whether a resource of this kind and spec has its credentials in Secrets."""
    return kind in ("Repository", "Alert") or (kind == "Schedule" and ping_secret(spec) is not None)


def alert_credentials(values: Mapping[str, str]) -> dict[str, Any]:
    """The credentials of an Alert, from the values of its Secret. Empty lines and those that begin with # are left out.

    Raises KeyError if the Secret has no URLs.
    """
    lines = (line.strip() for line in values[URLS_KEY].splitlines())
    found: dict[str, Any] = {"urls": [line for line in lines if line and not line.startswith("#")]}
    key = values.get(SIGNING_KEY, "").strip()
    return found | ({"signingKey": key} if key else {})


def final_newlines(credentials: Mapping[str, Any] | None) -> list[str]:
    """The credentials that end with a newline, which the server removes: `password`, or names of variables."""
    values = {"password": (credentials or {}).get("password"), **(credentials or {}).get("env", {})}
    return [name for name, value in values.items() if isinstance(value, str) and value.endswith("\n")]
