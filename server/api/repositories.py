"""Repositories. Their credentials can be written, and are in no answer."""

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response, page
from server.api.conditions import condition, versioned
from server.api.jobs import shown_jobs
from server.api.objects import as_object, created, find_object, is_new, named_manifest, version_of
from server.api.requests import Query, actor, object_body
from server.api.schedules import schedule_page
from server.api.services import Services
from server.observe.contents import Contents
from server.observe.problems import problems_of_repository
from server.store.declared import get_resources, list_resources
from server.store.lanes import in_lanes
from server.store.rows import Row
from server.store.tables import REPOSITORIES, SCHEDULES


async def list_repositories(services: Services, request: Request) -> Response:
    """List repositories, by namespace and name."""
    query = Query(request, "namespace", "labelSelector", "limit", "cursor")
    after, limit = query.after(tuple[str, str]), query.limit()
    narrowed = (query.text("namespace"), query.label_conditions())
    rows = await services.store.read(list_resources, REPOSITORIES, after, limit + 1, *narrowed)
    held = await services.contents.of(rows[:limit])
    return page(rows, limit, lambda row: _shown(services, row, held.get(row["id"])), "namespace", "name")


async def create_repository(services: Services, request: Request) -> Response:
    """Create a repository. Its `credentials` are in no answer."""
    Query(request)
    manifest = await object_body(request)
    row, _ = await services.repositories.put(actor(request), manifest, is_new(request, "Repository"))
    return created(request, row, await _read(services, row))


async def get_repository(services: Services, request: Request) -> Response:
    """Read a repository, without its credentials."""
    Query(request)
    row = await find_object(services, request, "Repository")
    return versioned(await _read(services, row), version_of(row))


async def put_repository(services: Services, request: Request) -> Response:
    """Create a repository, or update it to the manifest; the same manifest again changes nothing."""
    manifest = await named_manifest(request)
    check = condition(request, manifest["metadata"].get("resourceVersion"))
    row, is_created = await services.repositories.put(actor(request), manifest, check)
    return versioned(await _read(services, row), version_of(row), 201 if is_created else 200)


async def delete_repository(services: Services, request: Request) -> Response:
    """Delete a Repository; the data in it stays."""
    Query(request)
    await services.repositories.delete(actor(request), **request.path_params, condition=condition(request))
    return Response(status_code=204)


class Lane(Struct, frozen=True):
    """Who uses a repository now, and who is next.

    `limit`: how many jobs may use it at once, None for any number; each host has a lane of its own if `per_host`.
    `running`: jobs that have a slot. `waiting`: the first jobs that only wait for one, in order; `waits`: how many
    there are, counted up to 1000. Jobs of hosts that are offline do not wait here.
    """

    limit: int | None
    per_host: bool
    running: list[dict[str, object]]
    waiting: list[dict[str, object]]
    waits: int


async def get_lane(services: Services, request: Request) -> Response:
    """Read which jobs use a repository, and which wait for it."""
    limit = Query(request, "limit").limit()
    row = await find_object(services, request, "Repository")
    found, lane = await services.store.read(in_lanes, row["id"], limit), services.repository_limit(row["id"])
    shown = await shown_jobs(services, [*found.holding, *found.ready])
    running, waiting = ([shown[it["id"]] for it in rows] for rows in (found.holding, found.ready))
    return json_response(Lane(lane.limit, lane.per_host, running, waiting, found.waits))


async def list_hosts(services: Services, request: Request) -> Response:
    """List the hosts that have snapshots in a repository, with how many and the newest, by name."""
    query = Query(request, "host", "limit", "cursor")
    after, limit, host = query.after(str) or "", query.limit(), query.text("host")
    found = await services.contents.by_host(await find_object(services, request, "Repository"))
    rows = [msgspec.to_builtins(it) for it in found if it.host > after and host in {None, it.host}]
    return page(rows, limit, lambda row: row, "host")


async def list_users(services: Services, request: Request) -> Response:
    """List the schedules that use a repository, by name."""
    query = Query(request, "limit", "cursor")
    after, limit = query.after(tuple[str, str]) or ("", ""), query.limit()
    id_ = (await find_object(services, request, "Repository"))["id"]
    using = {
        tuple(it.name.split("/", 1)): it.id for it in services.placement.schedules.values() if id_ in it.repository_ids
    }
    ids = [using[name] for name in sorted(using) if name > after][: limit + 1]
    return await schedule_page(services, await services.store.read(get_resources, SCHEDULES, ids), limit)


async def _read(services: Services, row: Row) -> dict[str, object]:
    return _shown(services, row, (await services.contents.of([row])).get(row["id"]))


def _shown(services: Services, row: Row, held: Contents | None) -> dict[str, object]:
    id_, health, now = row["id"], services.health, services.clock()
    problems = problems_of_repository(health, services.coverage.access(id_), id_, row["spec"], row["created_at"], now)
    problem = health.problem(id_)
    known = {"problem": problem._asdict() if problem else None, "lastVerified": health.verified(id_), "snapshots": held}
    status: dict[str, object] = {name: it for name, it in known.items() if it is not None}
    return as_object("Repository", row, {**status, "problems": [it._asdict() for it in problems]})
