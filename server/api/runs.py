"""Runs: a schedule is run once, now, under an id that the caller chooses."""

from datetime import datetime
from itertools import islice
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.requests import Query, actor, converted, object_body, own_id
from server.api.services import Services
from server.errors import Invalid
from server.observe.problems import MAX_NAMED, run_phase
from server.resources.schema import MAX_ERRORS
from server.resources.selectors import selector_errors
from server.resources.specs import LabelSelector
from server.store.rows import Row
from server.store.runs import run_failures, run_status


class RunFailure(Struct, frozen=True):
    """How a run failed on a host. `reason`: one word, if the failure has one."""

    host: str
    status: str
    reason: str | None
    error: str | None


class RunStatus(Struct, frozen=True, rename="camel"):
    """The status of a run: the number of hosts, and of those in each state. `failures`: the first ones, by host."""

    phase: Literal["Pending", "Running", "Succeeded", "Failed"]
    reason: str
    message: str
    failures: list[RunFailure]
    hosts: int
    pending: int
    running: int
    succeeded: int
    failed: int
    start_time: datetime | None
    completion_time: datetime | None


class RunPutBody(Struct, forbid_unknown_fields=True):
    """The schedule to run, and on which of its hosts."""

    schedule: Annotated[str, Meta(max_length=253)]
    hostSelector: LabelSelector = LabelSelector()  # noqa: N815 - as in a Run's spec


async def put_run(services: Services, request: Request) -> Response:
    """Run a schedule once, now, under this id; a repeated request is the same run."""
    Query(request)
    namespace, run = request.path_params["namespace"], own_id(request)
    given = await object_body(request)
    if errors := list(islice(selector_errors(given.get("hostSelector"), "hostSelector"), MAX_ERRORS)):
        raise Invalid("the Run is not valid", errors)
    wanted = converted(given, RunPutBody)
    row = await services.runs.start(actor(request), namespace, wanted.schedule, run, wanted.hostSelector)
    return json_response(await _shown(services, row, f"{namespace}/{run}"))


async def get_run(services: Services, request: Request) -> Response:
    """Read the status of a run; an unknown run has no hosts and counts as failed."""
    Query(request)
    run_id = f"{request.path_params['namespace']}/{own_id(request)}"
    row = await services.store.read(run_status, run_id)
    return json_response(await _shown(services, row, run_id))


async def _shown(services: Services, row: Row, run_id: str) -> Row:
    """The status of a run, with its first failures."""
    phase, reason, message = run_phase(row)
    failures = await services.store.read(run_failures, run_id, MAX_NAMED) if row["failed"] else []
    return {"phase": phase, "reason": reason, "message": message, "failures": failures, **row}
