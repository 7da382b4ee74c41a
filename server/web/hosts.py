"""The page of a host: what it should hold and what it holds, what ran on it and what is wrong with it."""

import asyncio

from starlette.responses import Response

from server.web.asking import if_allowed
from server.web.page import Page

JOBS = "20"
"""How many of its jobs are shown."""


async def show_host(page: Page) -> Response:
    """Show a host."""
    name = page.path["name"]
    host, entries, differing, jobs = await asyncio.gather(
        page.get("hosts", name),
        page.get("hosts", name, "entries", cursor=page.query.get("cursor")),
        page.get("hosts", name, "entries", in_force="false"),
        if_allowed(page.get("jobs", host=name, limit=JOBS)),
    )
    return page.show("host.html", host=host, entries=entries, differing=differing, jobs=jobs, query=page.query)
