"""Repositories. Their credentials can be written, and are in no answer."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import page
from server.api.conditions import condition, versioned
from server.api.objects import as_object, created, find_object, is_new, named_manifest, version_of
from server.api.requests import Query, actor, object_body
from server.api.services import Services
from server.observe.problems import repository_problems
from server.store.declared import list_resources
from server.store.rows import Row
from server.store.tables import REPOSITORIES


async def list_repositories(services: Services, request: Request) -> Response:
    """List repositories, by namespace and name."""
    query = Query(request, "namespace", "labelSelector", "limit", "cursor")
    after, limit = query.after(tuple[str, str]), query.limit()
    narrowed = (query.text("namespace"), query.label_conditions())
    rows = await services.store.read(list_resources, REPOSITORIES, after, limit + 1, *narrowed)
    return page(rows, limit, lambda row: _shown(services, row), "namespace", "name")


async def create_repository(services: Services, request: Request) -> Response:
    """Create a repository. Its `credentials` are in no answer."""
    Query(request)
    manifest = await object_body(request)
    row, _ = await services.repositories.put(actor(request), manifest, is_new(request, "Repository"))
    return created(request, row, _shown(services, row))


async def get_repository(services: Services, request: Request) -> Response:
    """Read a repository, without its credentials."""
    Query(request)
    row = await find_object(services, request, "Repository")
    return versioned(_shown(services, row), version_of(row))


async def put_repository(services: Services, request: Request) -> Response:
    """Create a repository, or update it to the manifest; the same manifest again changes nothing."""
    manifest = await named_manifest(request)
    check = condition(request, manifest["metadata"].get("resourceVersion"))
    row, is_created = await services.repositories.put(actor(request), manifest, check)
    return versioned(_shown(services, row), version_of(row), 201 if is_created else 200)


async def delete_repository(services: Services, request: Request) -> Response:
    """Delete a Repository; the data in it stays."""
    Query(request)
    await services.repositories.delete(actor(request), **request.path_params, condition=condition(request))
    return Response(status_code=204)


def _shown(services: Services, row: Row) -> dict[str, object]:
    problem, verified = services.health.problem(row["id"]), services.health.verified(row["id"])
    days = row["spec"].get("verifyWithinDays")
    access, now = services.coverage.access(row["id"]), services.clock()
    problems = repository_problems(access, problem, days, verified, row["created_at"], now)
    known = {"problem": problem._asdict() if problem else None, "lastVerified": verified}
    status: dict[str, object] = {name: it for name, it in known.items() if it is not None}
    return as_object("Repository", row, {**status, "problems": [it._asdict() for it in problems]})
