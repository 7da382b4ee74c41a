"""The pages of jobs: their list, one with its progress, log and attempts, and the forms that end or repeat it."""

import asyncio
from collections.abc import Mapping, Sequence

from starlette.responses import Response

from server.errors import Conflict
from server.jobs.arguments import KINDS
from server.store.tables import ACTOR_KINDS, JOB_STATUSES
from server.web.asking import which_namespace
from server.web.client import Refused
from server.web.page import Page

FILTERS = ("host", "schedule", "namespace", "kind", "status", "actor_kind", "id")
"""What jobs are filtered by, as in REST."""
CHOICES: Mapping[str, Sequence[str]] = {
    "kind": (*sorted(KINDS), "restore"),
    "status": JOB_STATUSES,
    "actor_kind": ACTOR_KINDS,
}
"""The values that some filters choose from."""
LIMIT = "50"
"""How many jobs of the list, and lines of a whole log, are on a page."""
LAST_LINES = "200"
"""How many of the last lines of its log a job's page shows."""
OPEN = ("pending", "running")


async def show_jobs(page: Page) -> Response:
    """Show jobs, newest first."""
    asked = {name: page.query.get(name) for name in FILTERS}
    try:
        jobs = await page.get("jobs", limit=LIMIT, cursor=page.query.get("cursor"), **asked)
    except Refused as refused:
        return which_namespace(page, refused)
    named, slash, _ = (asked["schedule"] or "").partition("/")
    values = {"jobs": jobs, "choices": CHOICES, "namespace": asked["namespace"] or (named if slash else "")}
    return page.show("jobs.html", **values, query=page.query, is_filtered=any(asked.values()))


async def show_job(page: Page) -> Response:
    """Show a job."""
    id_ = page.path["id"]
    log = page.get("jobs", id_, "log", last=LAST_LINES)
    job, lines = await asyncio.gather(page.get("jobs", id_), log)
    return page.show("job.html", job=job, lines=lines["items"], is_open=job["status"] in OPEN)


async def show_log(page: Page) -> Response:
    """Show the whole log of a job, page by page."""
    id_ = page.path["id"]
    log = page.get("jobs", id_, "log", limit="500", cursor=page.query.get("cursor"))
    job, lines = await asyncio.gather(page.get("jobs", id_), log)
    return page.show("log.html", job=job, lines=lines, query=page.query)


async def cancel_job(page: Page) -> Response:
    """Cancel a job, and show it."""
    id_ = page.path["id"]
    await page.send("POST", "jobs", id_, "cancel")
    return page.see("jobs", id_)


async def run_again(page: Page) -> Response:
    """Run the schedule of a job again on its host, and show the new job. Raises Conflict for a job of no schedule."""
    job = await page.get("jobs", page.path["id"])
    if job["schedule"] is None:
        raise Conflict("this job belongs to no Schedule: ask for the restore again, from the page of its snapshot")
    namespace, _, name = job["schedule"].partition("/")
    jobs = await page.send("POST", "schedules", namespace, name, "run", body={"hosts": [job["host"]]})
    return page.see("jobs", jobs["items"][0]["id"])
