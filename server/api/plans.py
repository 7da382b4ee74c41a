"""Plans: what requests would change, before they are made."""

from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.requests import Query, actor, body, converted
from server.api.services import Services
from server.changes.plan import MAX_REQUESTS, Deletion


class PlanBody(Struct, forbid_unknown_fields=True):
    """The requests to plan: manifests of Hosts, Repositories (with their `credentials`) and Schedules to put, and
    objects to delete."""

    put: Annotated[list[dict[str, Any]], Meta(max_length=MAX_REQUESTS)] = []
    delete: Annotated[list[Deletion], Meta(max_length=MAX_REQUESTS)] = []


async def make_plan(services: Services, request: Request) -> Response:
    """Say what putting manifests and deleting objects would change, without doing so."""
    Query(request)
    wanted = converted(await body(request), PlanBody)
    authorize = partial(services.authorize, request.state.user)
    return json_response(await services.plans.plan(actor(request), wanted.put, wanted.delete, authorize))
