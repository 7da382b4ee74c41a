"""Controllers of folders, which report what prevents them from following their folder."""

from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response, page
from server.api.conditions import condition
from server.api.requests import Query, converted, invalid, object_body
from server.api.services import Services
from server.observe.controllers import ControllerReport
from server.resources.selectors import is_dns_name


async def list_controllers(services: Services, request: Request) -> Response:
    """List the controllers of folders, and what prevents each from following its folder."""
    query = Query(request, "limit", "cursor")
    after, limit = query.after(str), query.limit()
    states = [asdict(it) for it in services.controllers.states() if it.name > (after or "")]
    return page(states, limit, lambda row: row, "name")


async def put_controller(services: Services, request: Request) -> Response:
    """Report what prevents a controller from following its folder. Controllers report at least once a minute."""
    Query(request)
    name = request.path_params["name"]
    if not is_dns_name(name):
        raise invalid({"name": "must be like a DNS name: lower case letters, digits, '-' and '.'"})
    report = converted(await object_body(request), ControllerReport)
    condition(request)(None)
    return json_response(await services.controllers.report(name, report))
