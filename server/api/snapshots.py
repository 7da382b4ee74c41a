"""Snapshots and their files. The server cannot read repositories, so it asks a connected host to list them."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.requests import Number, Query, actor, bad_parameter, cursor
from server.api.services import Services
from server.changes.listings import Question


async def list_snapshots(services: Services, request: Request) -> Response:
    """List the snapshots in a repository, newest first. A connected host reads them."""
    query = Query(request, "host", "limit", "cursor")
    question = Question(**request.path_params, host=query.text("host") or "")
    return await _listed(services, request, query, question)


async def list_files(services: Services, request: Request) -> Response:
    """List a folder of a snapshot. A connected host reads it."""
    query = Query(request, "host", "path", "limit", "cursor")
    names = dict(request.path_params)
    snapshot = names.pop("snapshot")
    path = query.text("path") or "/"
    question = Question(**names, host=query.text("host") or "", snapshot=snapshot, path=path)
    return await _listed(services, request, query, question)


async def find_files(services: Services, request: Request) -> Response:
    """Find files and folders of a snapshot by name, in any case. A connected host reads it."""
    query = Query(request, "host", "name", "limit", "cursor")
    names = dict(request.path_params)
    snapshot, wanted = names.pop("snapshot"), query.text("name")
    if not wanted:
        raise bad_parameter("name", "is required: a part of the name, or a pattern such as *.conf")
    question = Question(**names, host=query.text("host") or "", snapshot=snapshot, find=wanted)
    return await _listed(services, request, query, question)


async def _listed(services: Services, request: Request, query: Query, question: Question) -> Response:
    after, limit = query.after(tuple[str, Number]), query.limit()
    page = await services.listings.page(actor(request), question, limit, after)
    next_ = None if page.after is None else cursor(page.after)
    return json_response({"items": page.items, "next": next_, "truncated": page.truncated})
