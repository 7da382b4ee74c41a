"""Reads the credentials of an object from the Secrets that it names."""

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from controller.cluster.conditions import NotFoundError
from controller.cluster.kube import Kube, KubeError
from controller.resources import (
    PING_KEY,
    SECRET_PARTS,
    URLS_KEY,
    Key,
    alert_credentials,
    environment_of,
    final_newlines,
    ping_secret,
    repository_urls,
)


async def read_credentials(kube: Kube, key: Key, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """An object's credentials, read from its Secrets; None if it names none. Raises NotFoundError and KubeError."""
    secrets: dict[str, dict[str, bytes]] = {}
    urls: dict[str, list[str]] = {}
    for name in secrets_named(body):
        try:
            secret = await kube.get("Secret", key.namespace, name)
        except KubeError as error:
            if error.passing:
                raise
            raise NotFoundError("SecretForbidden", f"Secret {name} cannot be read: {error}") from None
        if secret is not None:
            secrets[name] = {it: base64.b64decode(value) for it, value in (secret.get("data") or {}).items()}
            if (bound := repository_urls(secret["metadata"])) is not None:
                urls[name] = bound
    if key.kind == "Repository":
        return credentials_of(body, secrets, urls)
    return _of_alert(body, secrets) if key.kind == "Alert" else _of_ping(body, secrets)


def newline_note(credentials: Mapping[str, Any] | None) -> str:
    """A note on credentials that end with a newline; empty if none does."""
    names = final_newlines(credentials)
    return f"the newline at the end of {', '.join(names)} in its Secret is left out" if names else ""


def credentials_of(
    body: Mapping[str, Any],
    secrets: Mapping[str, Mapping[str, bytes]],
    urls: Mapping[str, list[str]] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """A Repository's credentials, from the values of its namespace's Secrets; None if it names none.

    `urls`: the URL prefixes that a Secret is for, by the name of each Secret that limits them. Raises NotFoundError,
    with the remedy, for a missing Secret or key, and for a value that is not UTF-8 text.
    """
    spec = body["spec"]
    found: dict[str, Any] = {}
    if reference := spec.get("passwordSecretRef"):
        values = _values(body, reference["name"], secrets)
        key = reference.get("key") or "password"
        if key not in values:
            raise NotFoundError("SecretKeyNotFound", f"Secret {reference['name']} has no key {key}: add it")
        found["password"] = _text(reference["name"], key, values[key])
    if reference := spec.get("envSecretRef"):
        values = environment_of(spec, _values(body, reference["name"], secrets))
        found["env"] = {key: _text(reference["name"], key, value) for key, value in values.items()}
    named = {part: reference["name"] for field, part in SECRET_PARTS.items() if (reference := spec.get(field))}
    if bound := {part: urls[name] for part, name in named.items() if name in urls}:
        found["urls"] = bound
    return found or None


def _of_alert(body: Mapping[str, Any], secrets: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """Where an Alert's messages go. Raises NotFoundError."""
    name = body["spec"]["secretRef"]["name"]
    values = {key: _text(name, key, value) for key, value in _values(body, name, secrets).items()}
    try:
        return alert_credentials(values)
    except KeyError:
        message = f"Secret {name} has no key {URLS_KEY}: add it, with the URLs to notify, one on each line"
        raise NotFoundError("SecretKeyNotFound", message) from None


def _of_ping(body: Mapping[str, Any], secrets: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any] | None:
    """The URL that a Schedule pings; None if it pings none. Raises NotFoundError."""
    if (ref := ping_secret(body["spec"])) is None:
        return None
    name, key = ref["name"], ref.get("key") or PING_KEY
    values = _values(body, name, secrets)
    if key not in values:
        raise NotFoundError("SecretKeyNotFound", f"Secret {name} has no key {key}: add it")
    return {"pingUrl": _text(name, key, values[key]).strip()}


def secrets_named(body: Mapping[str, Any]) -> set[str]:
    """The names of the Secrets that an object refers to."""
    spec = body["spec"]
    references = (*(spec.get(field) for field in (*SECRET_PARTS, "secretRef")), ping_secret(spec))
    return {reference["name"] for reference in references if reference}


def _values(body: Mapping[str, Any], name: str, secrets: Mapping[str, Mapping[str, bytes]]) -> Mapping[str, bytes]:
    if name not in secrets:
        where = body["metadata"]["namespace"]
        raise NotFoundError("SecretNotFound", f"there is no Secret {name} in namespace {where}: create it")
    return secrets[name]


def _text(secret: str, key: str, value: bytes) -> str:
    """A value as text. Raises NotFoundError: replacing invalid bytes would make a password that others could guess."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        remedy = "put text there, for example what `openssl rand -base64 32` prints"
        raise NotFoundError("SecretNotText", f"Secret {secret} holds no UTF-8 text under {key}: {remedy}") from None
