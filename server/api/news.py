"""The stream of changes, which controllers follow."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.api.requests import Query
from server.api.services import Services


async def listen(services: Services, request: Request) -> Response:
    """Stream, as server-sent events, which kinds have changed.

    `namespace` is for callers who may list the schedules of that one alone: kinds are told, and no names.
    """
    Query(request, "namespace")
    return StreamingResponse(services.stream.stream(), 200, {"Cache-Control": "no-store"}, "text/event-stream")
