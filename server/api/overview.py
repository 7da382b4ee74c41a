"""The overview of what is backed up, and the fleet by days."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.requests import Query, bad_parameter, cursor
from server.api.services import Services
from server.observe.fleet import DAYS, GOOD_STATE, STATES, FleetQuery
from server.observe.host_days import MAX_DAYS
from server.resources.selectors import is_label_key


async def get_overview(services: Services, request: Request) -> Response:
    """Read whether everything is backed up, what is wrong, what runs and what is due next."""
    query = Query(request, "namespace")
    return json_response(await services.surveyor.overview(query.text("namespace") or ""))


async def get_fleet(services: Services, request: Request) -> Response:
    """Read the worst outcome of each day on each host, or on groups of hosts by a label."""
    query = Query(request, "namespace", "labelSelector", "schedule", "state", "group", "days", "limit", "cursor")
    group = query.text("group") or ""
    if group and not is_label_key(group):
        raise bad_parameter("group", "must be the key of a label, such as zone or example.org/zone")
    asked = FleetQuery(
        namespace=query.text("namespace") or "",
        selector=query.label_selector(),
        schedule=query.text("schedule") or "",
        state=query.one_of("state", (*STATES, GOOD_STATE)) or "",
        group=group,
        days=query.number("days", DAYS, MAX_DAYS),
        after=query.after(str),
        limit=query.limit(),
    )
    fleet = await services.surveyor.fleet(asked)
    return json_response(msgspec.structs.replace(fleet, next=None if fleet.next is None else cursor(fleet.next)))
