"""Hosts, with what their agents report."""

from contextlib import suppress
from itertools import islice
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response, page
from server.api.conditions import condition, versioned
from server.api.requests import Query, actor, converted, cursor, object_body
from server.api.services import Services
from server.errors import Invalid, NotFound
from server.resources.manifests import MAX_LABELS
from server.resources.schema import MAX_ERRORS
from server.resources.selectors import label_errors
from server.resources.versions import host_version
from server.store import hosts as host_statements
from server.store.rows import Row


class HostBody(Struct, forbid_unknown_fields=True):
    """The body of a PUT: labels, as Kubernetes allows them."""

    labels: Annotated[dict[str, str], Meta(max_length=MAX_LABELS)]


async def list_hosts(services: Services, request: Request) -> Response:
    """List hosts, by name."""
    query = Query(request, "labelSelector", "limit", "cursor")
    after, limit, labels = query.after(str), query.limit(), query.label_conditions()
    rows = await services.store.read(host_statements.list_hosts, after, limit + 1, labels)
    return page(rows, limit, lambda row: _shown(services, row), "name")


async def get_host(services: Services, request: Request) -> Response:
    """Read a host."""
    Query(request)
    row = await find_host(services, request.path_params["name"])
    return versioned(_shown(services, row), host_version(row["labels"]))


async def put_host(services: Services, request: Request) -> Response:
    """Create a host, or replace its labels."""
    Query(request)
    given = await object_body(request)
    if errors := list(islice(label_errors(given.get("labels"), "labels"), MAX_ERRORS)):
        raise Invalid("the request is not allowed", errors)
    wanted = converted(given, HostBody)
    name = request.path_params["name"]
    row, created = await services.hosts.put(actor(request), name, wanted.labels, condition(request))
    return versioned(_shown(services, row), host_version(row["labels"]), 201 if created else 200)


async def delete_host(services: Services, request: Request) -> Response:
    """Delete a host; its jobs stay. Its key is revoked, and the connection opened with it is closed."""
    Query(request)
    name, check = request.path_params["name"], condition(request)
    check(host_version((await find_host(services, name))["labels"]))
    with suppress(NotFound):
        await services.enrolments.revoke(actor(request), name)
    await services.hosts.delete(actor(request), name, check)
    return Response(status_code=204)


async def list_entries(services: Services, request: Request) -> Response:
    """List the schedules of a host: as it should hold each and as it holds it, by name."""
    query = Query(request, "in_force", "limit", "cursor")
    after, limit = query.after(tuple[str, str]) or ("", ""), query.limit()
    asked = query.one_of("in_force", ("true", "false"))
    name = request.path_params["name"]
    await find_host(services, name)
    session = services.hub.session(name)
    in_force = None if asked is None else asked == "true"
    found = [] if session is None else services.coverage.entries(session, after, limit + 1, in_force=in_force)
    more = cursor((found[limit - 1].schedule, found[limit - 1].id)) if len(found) > limit else None
    return json_response({"items": found[:limit], "next": more})


async def find_host(services: Services, name: str) -> Row:
    """A host by name. Raises NotFound."""
    row = await services.store.read(host_statements.get_host, name)
    if row is None:
        raise NotFound(f"there is no host {name!r}")
    return row


def _shown(services: Services, row: Row) -> dict[str, object]:
    in_sync = (row["desired_version"], row["desired_digest"]) == (row["applied_version"], row["applied_digest"])
    left_out = row["left_out"] or {}
    row = {**row, "last_seen": services.hub.last_seen(row["name"]) or row["last_seen"]}
    covered = services.coverage.host(row["name"], left_out.get("reasons", {}))
    now = {"connected": services.hub.is_connected(row["name"]), "in_sync": in_sync and not left_out}
    return {**row, **now, **covered}
