"""The overview: is everything backed up, and if not, what is wrong first."""

import asyncio

from starlette.responses import Response

from server.web.page import Page

SHOWN = "20"
"""How many jobs of each kind the page shows."""


async def show_overview(page: Page) -> Response:
    """Show what runs, and what ran last."""
    running, recent = await asyncio.gather(
        page.get("jobs", status="running", limit=SHOWN), page.get("jobs", limit=SHOWN)
    )
    return page.show("overview.html", running=running["items"], recent=recent["items"])
