"""What the cluster holds, as it was last seen, and what an event there may have an effect on. Plain data, no I/O."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from controller.cluster.kube import Object
from controller.cluster.status import NotFoundError
from controller.resources import SECRET_PARTS, Key, Resource, environment_of, final_newlines

ONCE = ("Run", "Restore")
"""The kinds that are done once, and then are over."""
WATCHED = ("Node", "Repository", "Schedule", "Host", *ONCE)
"""The kinds that are cached, those that others depend on first."""
ENDED = ("Succeeded", "Failed")
"""The phases in which one of ONCE stays."""
_REFERENCES = {
    "Schedule": ("Repository", "repositoryRef"),
    "Restore": ("Repository", "repositoryRef"),
    "Run": ("Schedule", "scheduleRef"),
}
"""The kind of what each of these kinds names in its namespace, and the field of its spec that does."""


class Cache:
    """Objects by key. `host_namespace`: where Hosts count."""

    def __init__(self, host_namespace: str) -> None:
        self.host_namespace = host_namespace
        self.objects: dict[Key, Object] = {}
        self._seen: set[Key] = set()

    def on_event(self, body: Object, *, deleted: bool = False) -> set[Key]:
        """Take in an object as it is now, or is no more. Returns what is to be looked at for it."""
        key = key_of(body)
        self._seen.add(key)
        old = self.objects.get(key)
        if deleted:
            self.objects.pop(key, None)
        else:
            self.objects[key] = body
        if not deleted and old is not None and _declares(old) == _declares(body):
            return set()
        return {key, *self.dependents(key)}

    def begin(self) -> None:
        """What is seen from here on is news to a list that is read meanwhile."""
        self._seen.clear()

    def replace(self, bodies: Iterable[Object]) -> None:
        """Take in a list of all objects, which was begun to be read at `begin`: others are no more."""
        listed = {key_of(body): body for body in bodies}
        newer = {key: self.objects.get(key) for key in self._seen}
        self.objects = {key: body for key, body in {**listed, **newer}.items() if body is not None}

    def of(self, kind: str) -> Iterator[tuple[Key, Object]]:
        """All objects of a kind."""
        return ((key, body) for key, body in list(self.objects.items()) if key.kind == kind)

    def node_host(self, name: str) -> Object | None:
        """The Host that there should be for a node, or None for no node of that name."""
        node = self.objects.get(Key("Node", "", name))
        if node is None:
            return None
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        return {
            "apiVersion": "lamplighter.dev/v1alpha1",
            "kind": "Host",
            "metadata": {
                "namespace": self.host_namespace,
                "name": name,
                "labels": node["metadata"].get("labels") or {},
                "ownerReferences": [owner],  # Kubernetes' garbage collection takes the Host along with its Node
            },
            "spec": {"nodeName": name},
        }

    def active(self) -> list[Key]:
        """Those of ONCE that have not ended."""
        return [key for kind in ONCE for key, body in self.of(kind) if is_active(body)]

    def dependents(self, key: Key) -> Iterator[Key]:
        """What refers to an object: it may be right now, or wrong."""
        if key.kind == "Node":
            yield Key("Host", self.host_namespace, key.name)
        elif key.kind == "Repository":
            for it, body in [*self.of("Schedule"), *self.of("Restore")]:
                if refers_to(it, body) == key:
                    yield it


def is_active(body: Mapping[str, Any]) -> bool:
    """Whether one of ONCE has not ended."""
    return (body.get("status") or {}).get("phase") not in ENDED


def refers_to(key: Key, body: Mapping[str, Any]) -> Key | None:
    """What an object names: a Schedule or Restore its Repository, a Run its Schedule, others nothing."""
    if key.kind not in _REFERENCES:
        return None
    kind, field = _REFERENCES[key.kind]
    return Key(kind, key.namespace, body["spec"][field]["name"])


def key_of(body: Mapping[str, Any]) -> Key:
    """The key of an object; a cluster-scoped one has no namespace."""
    metadata = body["metadata"]
    return Key(body["kind"], metadata.get("namespace", ""), metadata["name"])


def resource_of(body: Mapping[str, Any], credentials: Mapping[str, Any] | None = None) -> Resource:
    """What an object declares, without what Kubernetes adds."""
    metadata = body["metadata"]
    named = {"namespace": metadata["namespace"], "name": metadata["name"], "labels": metadata.get("labels") or {}}
    return Resource(named, body.get("spec"), credentials)


def newline_note(credentials: Mapping[str, Any] | None) -> str:
    """What there is to say of secrets that end with a newline; empty where none does."""
    names = final_newlines(credentials)
    return f"the newline at the end of {', '.join(names)} in its Secret is left out" if names else ""


def credentials_of(
    body: Mapping[str, Any],
    secrets: Mapping[str, Mapping[str, bytes]],
    urls: Mapping[str, list[str]] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """What opens a Repository, from the values of its namespace's Secrets. None where it names none.

    `urls`: the URL prefixes that Secrets are for, by the name of each Secret that says so.
    Raises NotFoundError, with the remedy, for a Secret or a key that is not there, or a value that is no text.
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


def secrets_named(body: Mapping[str, Any]) -> set[str]:
    """The names of the Secrets that a Repository refers to."""
    references = (body["spec"].get("passwordSecretRef"), body["spec"].get("envSecretRef"))
    return {reference["name"] for reference in references if reference}


def _values(body: Mapping[str, Any], name: str, secrets: Mapping[str, Mapping[str, bytes]]) -> Mapping[str, bytes]:
    if name not in secrets:
        where = body["metadata"]["namespace"]
        raise NotFoundError("SecretNotFound", f"there is no Secret {name} in namespace {where}: create it")
    return secrets[name]


def _text(secret: str, key: str, value: bytes) -> str:
    """A value as text. One that is none is not replaced by another, which would open or create with what is known."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        remedy = "put text there, for example what `openssl rand -base64 32` prints"
        raise NotFoundError("SecretNotText", f"Secret {secret} holds no UTF-8 text under {key}: {remedy}") from None


def _declares(body: Mapping[str, Any]) -> tuple[object, ...]:
    """What of an object is declared, and so matters here; its status does not."""
    metadata = body["metadata"]
    return metadata.get("uid"), metadata.get("generation"), metadata.get("labels"), metadata.get("deletionTimestamp")
