"""The page of a repository: whether it is well, what it holds, what came to it, who uses it, and who waits for it."""

import asyncio
from typing import Any

from starlette.responses import Response

from server.web import plots
from server.web.asking import if_allowed
from server.web.page import Page

DAYS = 30
"""Over how many days the history goes."""
HOSTS = 20
"""How many hosts are shown: those whose newest snapshots are the oldest."""


async def show_repository(page: Page) -> Response:
    """Show a repository."""
    here = ("repositories", page.path["namespace"], page.path["name"])
    repository, past, users, lane = await asyncio.gather(
        page.get(*here),
        page.get(*here, "history", days=str(DAYS)),
        if_allowed(page.get(*here, "schedules", cursor=page.query.get("cursor"))),
        if_allowed(page.get(*here, "lane", limit="20")),
    )
    days, today = past["items"], page.now.date()
    held = repository["status"].get("snapshots", {})
    hosts = held.get("hosts", [])[:HOSTS]
    left = len(held.get("hosts", [])) + held.get("hostsOmitted", 0) - len(hosts)
    drawn: dict[str, Any] = {
        "growth": plots.growth(days, today, DAYS),
        "added": plots.bytes_by_day(days, today, DAYS),
        "outcomes": plots.outcomes_by_day(days, today, DAYS),
        "hosts": hosts,
        "hosts_left": left,
    }
    return page.show("repository.html", repository=repository, users=users, lane=lane, **drawn, query=page.query)
