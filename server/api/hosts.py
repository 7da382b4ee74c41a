"""Hosts, with what their agents report."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response, page
from server.api.conditions import condition, versioned
from server.api.requests import Query, actor, converted, cursor, object_body
from server.api.services import Services
from server.errors import Invalid, NotFound
from server.resources.manifests import MAX_LABELS, parse_host_spec
from server.resources.schema import MAX_ERRORS
from server.resources.selectors import label_errors
from server.resources.versions import host_version
from server.store import hosts as host_statements
from server.store.rows import Row

HIDDEN = ("drained_by", "drains")
"""The columns of a host that are shown as its `drain`."""


class HostBody(Struct, forbid_unknown_fields=True):
    """The body of a PUT: labels, as Kubernetes allows them. `spec`: as in a Host; it stays as it is if left out."""

    labels: Annotated[dict[str, str], Meta(max_length=MAX_LABELS)]
    spec: dict[str, Any] | None = None


async def list_hosts(services: Services, request: Request) -> Response:
    """List hosts, by name."""
    query = Query(request, "labelSelector", "limit", "cursor")
    after, limit, labels = query.after(str), query.limit(), query.label_conditions()
    rows = await services.store.read(host_statements.list_hosts, after, limit + 1, labels)
    drains = await services.store.read(host_statements.draining, [row["name"] for row in rows])
    return page(rows, limit, lambda row: _shown(services, row, drains), "name")


async def get_host(services: Services, request: Request) -> Response:
    """Read a host."""
    Query(request)
    return await _answer(services, await find_host(services, request.path_params["name"]))


async def put_host(services: Services, request: Request) -> Response:
    """Create a host, or replace its labels and its spec."""
    Query(request)
    given = await object_body(request)
    if errors := list(islice(label_errors(given.get("labels"), "labels"), MAX_ERRORS)):
        raise Invalid("the request is not allowed", errors)
    wanted = converted(given, HostBody)
    spec = None if wanted.spec is None else parse_host_spec(wanted.spec)
    name = request.path_params["name"]
    row, created = await services.hosts.put(actor(request), name, wanted.labels, spec, condition(request))
    return await _answer(services, row, 201 if created else 200)


async def drain_host(services: Services, request: Request) -> Response:
    """Have nothing new begin on a host."""
    return await _drain(services, request, on=True)


async def undrain_host(services: Services, request: Request) -> Response:
    """Have jobs begin on a host again, unless its spec says that it is drained."""
    return await _drain(services, request, on=False)


async def _drain(services: Services, request: Request, *, on: bool) -> Response:
    Query(request)
    name = request.path_params["name"]
    await services.hosts.drain(actor(request), name, on=on, condition=condition(request))
    return await _answer(services, await find_host(services, name))


async def delete_host(services: Services, request: Request) -> Response:
    """Delete a host; its jobs stay. Its key is revoked, and the connection opened with it is closed."""
    Query(request)
    name, check = request.path_params["name"], condition(request)
    check(version_of_row(await find_host(services, name)))
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


def version_of_row(row: Row) -> str:
    """The version of a host."""
    return host_version(row["labels"], row["spec"])


async def _answer(services: Services, row: Row, status: int = 200) -> Response:
    drains = await services.store.read(host_statements.draining, [row["name"]])
    return versioned(_shown(services, row, drains), version_of_row(row), status)


class Drain(Struct, frozen=True):
    """That nothing new begins on a host. `reason`: its spec says so (Declared), somebody asked for it (Asked, `by`
    whom), or its agent is about to end (AgentStops). `jobs`: how many may run there still. `done`: whether none
    does."""

    reason: Literal["Declared", "Asked", "AgentStops"]
    by: str | None
    jobs: int
    done: bool


def _drain_of(row: Row, drain: host_statements.Drain) -> Drain:
    by = row["drained_by"] or None
    reason = "Declared" if row["spec"].get("drain") else "Asked" if by else "AgentStops"
    return Drain(reason, by, drain.jobs, not drain.jobs)  # type: ignore[arg-type]


def _shown(services: Services, row: Row, drains: Mapping[str, host_statements.Drain]) -> dict[str, object]:
    in_sync = (row["desired_version"], row["desired_digest"]) == (row["applied_version"], row["applied_digest"])
    left_out = row["left_out"] or {}
    row = {**row, "last_seen": services.hub.last_seen(row["name"]) or row["last_seen"]}
    covered = services.coverage.host(row["name"], left_out.get("reasons", {}))
    now = {"connected": services.hub.is_connected(row["name"]), "in_sync": in_sync and not left_out}
    drain = drains.get(row["name"])
    held = {"max_concurrent_jobs": services.limits.of_host(row["name"])}
    shown = {name: value for name, value in row.items() if name not in HIDDEN}
    return {**shown, **now, **covered, **held, "drain": None if drain is None else _drain_of(row, drain)}
