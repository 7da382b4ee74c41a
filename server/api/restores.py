"""Restores: one job under an id that the caller chose."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.jobs import shown_job
from server.api.requests import Query, actor, object_body, own_id
from server.api.services import Services


async def put_restore(services: Services, request: Request) -> Response:
    """Restore once, by the spec of a Restore; a repeated request is the same restore. Answers its job."""
    Query(request)
    namespace, name = request.path_params["namespace"], own_id(request)
    manifest = await object_body(request)
    metadata = {"namespace": namespace, "name": name}
    row = await services.restores.restore(actor(request), {**manifest, "metadata": metadata})
    return json_response(await shown_job(services, row))


async def preview_restore(services: Services, request: Request) -> Response:
    """Read what a restore would write, and where. A connected host lists the files; nothing is restored."""
    limit = Query(request, "limit").limit()
    namespace, name = request.path_params["namespace"], own_id(request)
    manifest = await object_body(request)
    metadata = {"namespace": namespace, "name": name}
    found = await services.previews.preview(actor(request), namespace, {**manifest, "metadata": metadata}, limit)
    return json_response(found)


async def get_restore(services: Services, request: Request) -> Response:
    """Read the job of a restore."""
    Query(request)
    row = await services.restores.get(request.path_params["namespace"], own_id(request))
    return json_response(await shown_job(services, row))
