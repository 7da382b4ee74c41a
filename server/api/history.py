"""How the jobs of a schedule, or on a repository, went by day."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.objects import find_object
from server.api.requests import Query
from server.api.services import Services
from server.observe.fleet import DAYS
from server.observe.host_days import MAX_DAYS
from server.store.schedule_days import PastDay, days_of_repository, days_of_schedule

DaysOf = Callable[[Connection, str, date], Sequence[PastDay]]


async def get_schedule_history(services: Services, request: Request) -> Response:
    """Read how a schedule's jobs went on each of the last days, and how long they took."""
    return await _history(services, request, "Schedule", days_of_schedule)


async def get_repository_history(services: Services, request: Request) -> Response:
    """Read what the jobs of schedules added to a repository on each of the last days."""
    return await _history(services, request, "Repository", days_of_repository)


async def _history(services: Services, request: Request, kind: str, days_of: DaysOf) -> Response:
    """The days on which a job ended, oldest first."""
    days = Query(request, "days").number("days", DAYS, MAX_DAYS)
    row = await find_object(services, request, kind)
    since = services.clock().date() - timedelta(days=days - 1)
    found = await services.store.read(days_of, row["id"], since)
    return json_response({"items": found, "next": None})
