"""Jobs, their attempts and their logs."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response, page
from server.api.requests import MAX_LIMIT, Number, Query, actor, bad_parameter, cursor
from server.api.services import Services
from server.errors import NotFound
from server.jobs.kinds import READ_KINDS
from server.jobs.waiting import problem_of, waits_for
from server.store import jobs as job_statements
from server.store import queue
from server.store.declared import get_resource
from server.store.logs import last_lines, list_log
from server.store.progress import ProgressRow, progress_of
from server.store.rows import Row
from server.store.tables import ACTOR_KINDS, JOB_STATUSES, SCHEDULES

ATTEMPT = ("attempt", "status", "started_at", "finished_at", "exit_code", "snapshot_id", "error", "reason")
"""The columns that are answered of each attempt of a job."""


class _On(msgspec.Struct):
    """The field of a stored command that names its repository; see `server.jobs.arguments.repository_id`."""

    repository: str = ""


_on = msgspec.json.Decoder(_On)


async def list_jobs(services: Services, request: Request) -> Response:
    """List jobs, newest first. Jobs that list snapshots or files are left out unless `id` or `kind` is given."""
    query = Query(request, "id", "host", "schedule", "namespace", "kind", "status", "actor_kind", "limit", "cursor")
    after, limit = query.after(tuple[datetime, str]), query.limit()
    if after is not None and after[0].utcoffset() != timedelta():
        raise bad_parameter("cursor", "must be the `next` of an earlier page, unchanged")
    given = {
        "host": query.text("host"),
        "scheduled_id": await _schedule_id(services, query.text("schedule")),
        "kind": query.text("kind"),
        "status": query.one_of("status", JOB_STATUSES),
        "actor_kind": query.one_of("actor_kind", ACTOR_KINDS),
    }
    filters = {name: value for name, value in given.items() if value is not None}
    id_ = query.text("id") or ""
    leave_out = () if id_ or "kind" in filters else READ_KINDS
    asked = (filters, after, limit, id_, leave_out, query.text("namespace"))
    rows, next_ = await services.store.read(job_statements.list_jobs, *asked)
    shown = await shown_jobs(services, rows)
    more = None if next_ is None else cursor(next_)
    return json_response({"items": [shown[row["id"]] for row in rows], "next": more})


async def get_job(services: Services, request: Request) -> Response:
    """Read a job, with its attempts."""
    Query(request)
    row = await _find(services, request)
    before = await services.store.read(job_statements.list_attempts, row["id"])
    last = {name: row[name] for name in ATTEMPT}
    return json_response({**await shown_job(services, row), "attempts": [*before, last]})


async def get_job_log(services: Services, request: Request) -> Response:
    """Read a job's log: the lines that restic printed for people."""
    query = Query(request, "last", "limit", "cursor")
    after, limit = query.after(Number) or 0, query.limit()
    job = await _find(services, request)
    if query.text("last") is not None:
        rows = await services.store.read(last_lines, job["id"], query.number("last", MAX_LIMIT, MAX_LIMIT))
        return json_response({"items": rows, "next": None})
    rows = await services.store.read(list_log, job["id"], after, limit + 1)
    return page(rows, limit, dict, "seq")


async def cancel_job(services: Services, request: Request) -> Response:
    """Cancel a job."""
    Query(request)
    row = await services.runs.cancel(actor(request), request.path_params["id"])
    return json_response(await shown_job(services, row))


async def shown_job(services: Services, row: Row) -> dict[str, object]:
    """A job in an answer: see `shown_jobs`."""
    return (await shown_jobs(services, [row]))[row["id"]]


async def shown_jobs(services: Services, rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    """Jobs in answers, by id: their rows without the columns of the queue, and their current state."""
    now = services.clock()
    waiting = [row["id"] for row in rows if row["status"] == "pending" and not row["sent"]]
    elsewhere = [row["id"] for row in rows if row["status"] == "running" and services.active.get(row["id"]) is None]
    progress = await services.store.read(progress_of, elsewhere) if elsewhere and services.store.is_shared else {}
    ahead = {it.id: it for it in await services.store.read(queue.waits, waiting)} if waiting else {}
    found = {}
    for row in rows:
        shown = {name: value for name, value in row.items() if name not in queue.COLUMNS}
        attempt = services.active.get(row["id"])
        waits = ""
        if row["id"] in ahead:
            of_lanes = (services.repository_name(row[it].partition("/")[0]) for it in ("lane", "from_lane"))
            waits = waits_for(row, ahead[row["id"]], next(of_lanes), now, next(of_lanes))
        schedule = services.placement.schedules.get(row["scheduled_id"])
        found[row["id"]] = {
            **shown,
            "schedule": None if schedule is None else schedule.name,
            "repository": services.repository_name(_on.decode(row["command"]).repository.partition("/")[0]) or None,
            "command": Raw(row["command"].encode()),
            "waits_for": waits or None,
            "progress": _told(row, progress) if attempt is None else attempt.progress,
            "problem": problem_of(row, now) or None,
        }
    return found


def _told(row: Row, progress: Mapping[str, ProgressRow]) -> Raw | None:
    """The progress of a job whose host another server has: what that wrote since the job began."""
    told = progress.get(row["id"])
    return None if told is None or told.at < row["accepted_at"] else Raw(told.body.encode())


async def of_filter(_services: Services, request: Request) -> tuple[str, str]:
    """For permissions: the one namespace that the query or its schedule (NAMESPACE/NAME) names, or all namespaces."""
    namespace, slash, _ = request.query_params.get("schedule", "").partition("/")
    named = {request.query_params.get("namespace", ""), namespace if slash else ""} - {""}
    return (named.pop() if len(named) == 1 else ""), ""


async def of_job(services: Services, request: Request) -> tuple[str, str]:
    """For permissions: the namespace of the job's repository, or all namespaces when the repository was deleted."""
    return await services.store.read(job_statements.job_namespace, request.path_params["id"]) or "", ""


async def _find(services: Services, request: Request) -> Row:
    job_id = request.path_params["id"]
    row = await services.store.read(job_statements.get_job, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id!r}")
    return row


async def _schedule_id(services: Services, named: str | None) -> str | None:
    """The id of the schedule NAMESPACE/NAME. An id is returned as it is, which finds jobs of a deleted schedule."""
    if named is None or "/" not in named:
        return named
    namespace, _, name = named.partition("/")
    row = await services.store.read(get_resource, SCHEDULES, namespace, name)
    if row is None:
        raise bad_parameter("schedule", f"there is no Schedule {named}: use the uid of one that was deleted")
    id_: str = row["id"]
    return id_
