"""The cluster's objects as they were last seen, and which keys an event affects. Plain data, no I/O."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from controller.cluster.kube import Object
from controller.resources import RECONCILE_REQUESTED, RESUME_REQUESTED, Key, Resource

ONE_SHOT = ("Run", "Restore")
"""The kinds that are carried out once."""
WATCHED = ("Node", "Repository", "Schedule", "Alert", "Host", *ONE_SHOT)
"""The cached kinds. Kinds that others depend on come first."""
ENDED = ("Succeeded", "Failed")
"""The final phases of ONE_SHOT kinds."""
_REFERENCES = {
    "Schedule": ("Repository", "repositoryRef"),
    "Restore": ("Repository", "repositoryRef"),
    "Run": ("Schedule", "scheduleRef"),
}
"""For each of these kinds, the kind that it refers to in its namespace, and the field of its spec that does."""


class Cache:
    """Objects by key. `host_namespace`: where Hosts count.

    An event of a watch may arrive after a newer answer to a write of the controller. So an event with an older resource
    version than the known one is ignored. Resource versions of one object can be compared as numbers (KEP-5504).
    """

    def __init__(self, host_namespace: str) -> None:
        self.host_namespace = host_namespace
        self.objects: dict[Key, Object] = {}
        self._seen: set[Key] = set()
        self._deleted: dict[Key, int] = {}  # resource versions at which objects were deleted

    def on_event(self, body: Object, *, deleted: bool = False) -> set[Key]:
        """Take in an object as it is now, or its deletion. Returns the keys to sync for it; none where it is stale."""
        key, version = key_of(body), _resource_version(body)
        old = self.objects.get(key)
        known = self._deleted.get(key, 0) if old is None else _resource_version(old)
        if 0 < version < known or (0 < version == known and old is None and not deleted):
            return set()
        self._seen.add(key)
        if deleted:
            self.objects.pop(key, None)
            self._deleted[key] = version
        else:
            self.objects[key] = body
            self._deleted.pop(key, None)
        if not deleted and old is not None and _declares(old) == _declares(body):
            return set() if requests_of(old) == requests_of(body) else {key}
        return {key, *self.dependents(key)}

    def get(self, key: Key) -> Object | None:
        """An object as it was last seen; None if there is none."""
        return self.objects.get(key)

    def begin(self) -> None:
        """Call before reading a list: events from now on are newer than the list."""
        self._seen.clear()

    def replace(self, bodies: Iterable[Object]) -> None:
        """Replace all objects by a list that was read since `begin`. Newer events stay."""
        listed = {key_of(body): body for body in bodies}
        newer = {key: self.objects.get(key) for key in self._seen}
        self.objects = {key: body for key, body in {**listed, **newer}.items() if body is not None}
        self._deleted = {key: version for key, version in self._deleted.items() if key in self._seen}

    def of(self, kind: str) -> Iterator[tuple[Key, Object]]:
        """All objects of a kind."""
        return ((key, body) for key, body in list(self.objects.items()) if key.kind == kind)

    def node_host(self, name: str) -> Object | None:
        """The Host that a node should have; None if there is no such node."""
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
                "ownerReferences": [owner],  # Kubernetes' garbage collection deletes the Host with its Node
            },
            "spec": {"nodeName": name},
        }

    def active(self) -> list[Key]:
        """The keys of ONE_SHOT objects that have not ended."""
        return [key for kind in ONE_SHOT for key, body in self.of(kind) if is_active(body)]

    def dependents(self, key: Key) -> Iterator[Key]:
        """The keys that depend on an object: a change of it may make them valid or invalid."""
        if key.kind == "Node":
            yield Key("Host", self.host_namespace, key.name)
        elif key.kind == "Repository":
            for it, body in [*self.of("Schedule"), *self.of("Restore")]:
                if key in references(it, body):
                    yield it


def is_active(body: Mapping[str, Any]) -> bool:
    """Whether a ONE_SHOT object has not ended."""
    return (body.get("status") or {}).get("phase") not in ENDED


def requests_of(body: Mapping[str, Any]) -> dict[str, str]:
    """The annotations by which something is requested of an object: RECONCILE_REQUESTED, and a Schedule's
    RESUME_REQUESTED."""
    found = (body["metadata"].get("annotations") or {}).items()
    known = (RECONCILE_REQUESTED, RESUME_REQUESTED) if body["kind"] == "Schedule" else (RECONCILE_REQUESTED,)
    return {name: value for name, value in found if name in known}


def references(key: Key, body: Mapping[str, Any]) -> list[Key]:
    """The keys that an object refers to: a Schedule's or Restore's Repositories, a Run's Schedule; none for others."""
    if key.kind not in _REFERENCES:
        return []
    (kind, field), spec = _REFERENCES[key.kind], body["spec"]
    named = [spec[field], *([spec["copy"]["fromRepositoryRef"]] if spec.get("copy") else ())]
    return [Key(kind, key.namespace, it["name"]) for it in named]


def key_of(body: Mapping[str, Any]) -> Key:
    """The key of an object; a cluster-scoped one has no namespace."""
    metadata = body["metadata"]
    return Key(body["kind"], metadata.get("namespace", ""), metadata["name"])


def resource_of(body: Mapping[str, Any], credentials: Mapping[str, Any] | None = None) -> Resource:
    """The declared part of an object, without what Kubernetes adds."""
    metadata = body["metadata"]
    named = {"namespace": metadata["namespace"], "name": metadata["name"], "labels": metadata.get("labels") or {}}
    return Resource(named, body.get("spec"), credentials)


def _resource_version(body: Mapping[str, Any]) -> int:
    """The number of an object's resource version; 0 where it is none."""
    version = str(body["metadata"].get("resourceVersion", ""))
    return int(version) if version.isascii() and version.isdigit() else 0


def _declares(body: Mapping[str, Any]) -> tuple[object, ...]:
    """The parts of an object that the server must know when they change. Its status is not one of them."""
    metadata = body["metadata"]
    return metadata.get("uid"), metadata.get("generation"), metadata.get("labels"), metadata.get("deletionTimestamp")
