"""The page of a schedule: where and when it runs, and how that went; and the forms that run it now, or resume it."""

import asyncio
from typing import Any

from starlette.responses import Response

from server.web import plots
from server.web.asking import if_allowed
from server.web.overview import STATES
from server.web.page import Page

DAYS = 30
"""Over how many days the history goes."""
JOBS, HOSTS = "20", "50"
"""How many of its jobs, and of its hosts on a page, are shown."""


async def show_schedule(page: Page) -> Response:
    """Show a schedule."""
    here = (page.path["namespace"], page.path["name"])
    full = "/".join(here)
    schedule, due, past, jobs, hosts = await asyncio.gather(
        page.get("schedules", *here),
        page.get("schedules", *here, "due"),
        page.get("schedules", *here, "history", days=str(DAYS)),
        if_allowed(page.get("jobs", schedule=full, limit=JOBS)),
        if_allowed(page.get("fleet", schedule=full, namespace=here[0], limit=HOSTS, cursor=page.query.get("cursor"))),
    )
    used = (here[0], schedule["spec"]["repositoryRef"]["name"])
    repository = await if_allowed(page.get("repositories", *used))
    days, today = past["items"], page.now.date()
    drawn: dict[str, Any] = {
        "herd": plots.herd(due),
        "outcomes": plots.outcomes_by_day(days, today, DAYS),
        "durations": plots.durations_by_day(days, today, DAYS),
        "added": plots.bytes_by_day(days, today, DAYS),
    }
    found = {"schedule": schedule, "due": due, "jobs": jobs, "hosts": hosts, "repository": repository}
    return page.show("schedule.html", **found, **drawn, states=STATES, query=page.query)


async def run_schedule(page: Page) -> Response:
    """Run a schedule now, on one of its hosts or on all, and show the job, or the jobs."""
    here, host = (page.path["namespace"], page.path["name"]), page.form.get("host", "")
    body = {"hosts": [host]} if host else None
    jobs = (await page.send("POST", "schedules", *here, "run", body=body))["items"]
    return page.see("jobs", jobs[0]["id"]) if len(jobs) == 1 else page.see("jobs", schedule="/".join(here))


async def resume_schedule(page: Page) -> Response:
    """Have a schedule go on that is paused, and show it."""
    here = (page.path["namespace"], page.path["name"])
    await page.send("POST", "schedules", *here, "resume")
    return page.see("schedules", *here)
