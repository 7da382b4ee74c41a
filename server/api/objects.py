"""What schedules, repositories and alerts have in common: all have the shape of Kubernetes' objects."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from server.api.conditions import condition, versioned
from server.api.requests import Query, invalid, object_body
from server.api.services import Services
from server.errors import Conflict, NotFound
from server.resources.manifests import API_VERSION
from server.resources.versions import Condition, resource_version
from server.store.declared import get_resource
from server.store.rows import Row
from server.store.tables import ALERTS, REPOSITORIES, SCHEDULES

_TABLES: Mapping[str, sa.Table] = {"Schedule": SCHEDULES, "Repository": REPOSITORIES, "Alert": ALERTS}


async def find_object(services: Services, request: Request, kind: str) -> Row:
    """The object that the path names. Raises NotFound."""
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    row = await services.store.read(get_resource, _TABLES[kind], namespace, name)
    if row is None:
        raise NotFound(f"there is no {kind} {namespace}/{name}")
    return row


async def named_manifest(request: Request) -> dict[str, Any]:
    """The manifest in the body, completed with namespace and name from the path. Raises Invalid where they differ."""
    Query(request)
    manifest = await object_body(request)
    metadata = manifest.get("metadata", {})
    if not isinstance(metadata, dict):
        raise invalid({"metadata": "must be an object"})
    for key, value in request.path_params.items():
        if metadata.get(key, value) != value:
            raise invalid({f"metadata.{key}": f"must be {value!r}, as in the path"})
    return {**manifest, "metadata": {**metadata, **request.path_params}}


def is_new(request: Request, kind: str) -> Condition:
    """The condition of a POST: there is no object of this name yet. It is checked in the transaction."""
    also = condition(request)

    def check(version: str | None) -> None:
        if version is not None:
            raise Conflict(f"there is already a {kind} of this name: change it with PUT")
        also(version)

    return check


def version_of(row: Row) -> str:
    """The resourceVersion of an object."""
    return resource_version(row["id"], row["generation"])


def created(request: Request, row: Row, shown: dict[str, object]) -> Response:
    """The answer to a POST: the object, and its path in the header Location."""
    answer = versioned(shown, version_of(row), 201)
    answer.headers["location"] = f"{request.url.path.rstrip('/')}/{row['namespace']}/{row['name']}"
    return answer


def as_object(kind: str, row: Row, status: Mapping[str, object]) -> dict[str, object]:
    """A row in the shape of a Kubernetes object."""
    metadata = {
        "namespace": row["namespace"],
        "name": row["name"],
        "uid": row["id"],
        "generation": row["generation"],
        "resourceVersion": version_of(row),
        "labels": row["labels"],
        "creationTimestamp": row["created_at"],
    }
    status = {"observedGeneration": row["generation"], **status}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": row["spec"], "status": status}
