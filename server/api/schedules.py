"""Schedules, and running one of them now."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from cron import CronError
from server.api.answers import json_response, page
from server.api.conditions import condition, versioned
from server.api.jobs import shown_jobs
from server.api.objects import as_object, created, find_object, is_new, named_manifest, version_of
from server.api.requests import Query, actor, body, converted, has_body, object_body
from server.api.services import Services
from server.fleet.herd import Herd, herd, offsets
from server.fleet.placement import PlacedSchedule
from server.observe.problems import Coverage, schedule_problems
from server.resources.manifests import is_enabled
from server.store.declared import list_resources
from server.store.rows import Row
from server.store.tables import SCHEDULES


class RunBody(Struct, forbid_unknown_fields=True):
    """The hosts to run a schedule on; when absent, all hosts of the schedule."""

    hosts: Annotated[list[Annotated[str, Meta(max_length=253)]], Meta(min_length=1, max_length=10_000)] | None = None


MAX_HOURS = 48
"""Maximum hours for which due times are answered."""


class DueMinute(Struct, frozen=True):
    """A minute, and how many hosts are due in it."""

    at: datetime
    hosts: int


async def list_schedules(services: Services, request: Request) -> Response:
    """List schedules, by namespace and name."""
    query = Query(request, "namespace", "labelSelector", "limit", "cursor")
    after, limit = query.after(tuple[str, str]), query.limit()
    narrowed = (query.text("namespace"), query.label_conditions())
    rows = await services.store.read(list_resources, SCHEDULES, after, limit + 1, *narrowed)
    return await schedule_page(services, rows, limit)


async def schedule_page(services: Services, rows: list[Row], limit: int) -> Response:
    """A page of schedules, ordered by namespace and name. `rows`: one more than `limit` when there is a next page."""
    coverage = await services.coverage.schedules([row["id"] for row in rows])
    return page(rows, limit, lambda row: _shown(services, row, coverage[row["id"]]), "namespace", "name")


async def create_schedule(services: Services, request: Request) -> Response:
    """Create a schedule."""
    Query(request)
    manifest = await object_body(request)
    row, _ = await services.schedules.put(actor(request), manifest, is_new(request, "Schedule"))
    return created(request, row, await _shown_one(services, row))


async def get_schedule(services: Services, request: Request) -> Response:
    """Read a schedule."""
    Query(request)
    row = await find_object(services, request, "Schedule")
    return versioned(await _shown_one(services, row), version_of(row))


async def put_schedule(services: Services, request: Request) -> Response:
    """Create a schedule, or update it to the manifest; the same manifest again changes nothing."""
    manifest = await named_manifest(request)
    check = condition(request, manifest["metadata"].get("resourceVersion"))
    row, is_created = await services.schedules.put(actor(request), manifest, check)
    return versioned(await _shown_one(services, row), version_of(row), 201 if is_created else 200)


async def delete_schedule(services: Services, request: Request) -> Response:
    """Delete a schedule; its jobs stay."""
    Query(request)
    await services.schedules.delete(actor(request), **request.path_params, condition=condition(request))
    return Response(status_code=204)


async def run_schedule(services: Services, request: Request) -> Response:
    """Run a schedule once, now, on all of its hosts or on some."""
    Query(request)
    wanted = converted(await body(request), RunBody) if has_body(request) else RunBody()
    rows = await services.runs.run_now(actor(request), **request.path_params, hosts=wanted.hosts)
    shown = await shown_jobs(services, rows)
    return json_response({"items": [shown[row["id"]] for row in rows], "next": None}, 201)


async def resume_schedule(services: Services, request: Request) -> Response:
    """Have a schedule go on that is paused since it failed on too many hosts. One that is not paused stays as it is."""
    Query(request)
    await services.runs.resume(actor(request), **request.path_params)
    row = await find_object(services, request, "Schedule")
    return versioned(await _shown_one(services, row), version_of(row))


class Due(Struct, frozen=True):
    """When the hosts of a schedule are due, from `begin`, the next whole minute, up to `end`, which is left out.

    `hosts`: how many it has. `times`: its due times without the spread. `minutes`: those in which hosts are due, with
    the spread. `most`: the one in which most are. Nothing is due while a schedule is disabled.
    """

    begin: datetime
    end: datetime
    hosts: int
    times: list[datetime]
    minutes: list[DueMinute]
    most: DueMinute | None


async def get_due(services: Services, request: Request) -> Response:
    """Read when the hosts of a schedule are due in the next hours, minute by minute."""
    query = Query(request, "hours")
    hours = query.number("hours", 24, MAX_HOURS)
    row = await find_object(services, request, "Schedule")
    schedule = services.placement.schedules.get(row["id"])
    now = services.clock()
    begin = now.replace(second=0, microsecond=0)
    begin += timedelta(minutes=begin < now)  # a minute that has begun would tell what is over
    end = begin + timedelta(hours=hours)
    hosts = services.placement.matched(schedule) if schedule is not None else []
    due = Herd([], [])
    if schedule is not None and schedule.spec.enabled:
        with suppress(CronError):  # of another release, or with another tzdata
            due = await asyncio.to_thread(_herd, schedule, hosts, begin, end)
    minutes = [DueMinute(*it) for it in due.minutes]
    most = max(minutes, key=lambda it: it.hosts, default=None)
    return json_response(Due(begin, end, len(hosts), due.times, minutes, most))


def _herd(schedule: PlacedSchedule, hosts: Sequence[str], begin: datetime, end: datetime) -> Herd:
    timing = schedule.timing
    return herd(timing, offsets(schedule.id, hosts, timing.spread_s), begin, end)


async def _shown_one(services: Services, row: Row) -> dict[str, object]:
    return _shown(services, row, (await services.coverage.schedules([row["id"]]))[row["id"]])


def _shown(services: Services, row: Row, covers: Coverage) -> dict[str, object]:
    counts = {"hosts": covers.hosts, "hostsInSync": covers.in_sync, "hostsFailed": covers.failed}
    named = {"outOfSync": covers.out_of_sync, "failed": covers.failed_names, "hostsNotGranted": covers.not_granted}
    counts |= {"hostsOverdue": covers.overdue, "hostsWithoutSuccess": covers.never_succeeded}
    named |= {"overdue": covers.overdue_names, "successWithinSeconds": int(covers.within.total_seconds())}
    counts["hostsBehind"], named["behind"] = covers.behind, covers.behind_names
    counts["hostsRefusingHooks"] = len(set().union(*covers.refused_hooks.values()))
    counts["hostsUnsupported"] = sum(map(len, covers.unsupported.values()))
    pause = None if covers.pause is None else covers.pause._asdict()
    state = {"suspended": not is_enabled(row["spec"]), "paused": pause}
    problems = [it._asdict() for it in schedule_problems(covers)]
    times: dict[str, datetime | None] = {
        "lastScheduleTime": row.get("last_due"),
        "nextScheduleTime": services.placement.next_due(row["id"], services.clock()),
        "oldestSuccessTime": covers.oldest_success,
    }
    known = {name: at for name, at in times.items() if at is not None}
    return as_object("Schedule", row, {**counts, **named, **known, **state, "problems": problems})
