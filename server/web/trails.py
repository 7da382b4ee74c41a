"""The pages of what happened and of what is wrong: the audit trail, and all problems."""

from starlette.responses import Response

from server.web.asking import which_namespace
from server.web.client import Refused
from server.web.page import Page

LIMIT = "100"
"""How many lines of the audit trail are on a page."""
KINDS = ("Schedule", "Repository", "Host", "Job", "Alert")
"""What the audit trail can be narrowed to."""


async def show_audit(page: Page) -> Response:
    """Show who changed what, newest first."""
    asked = {name: page.query.get(name) for name in ("object_kind", "object_name")}
    lines = await page.get("audit", limit=LIMIT, cursor=page.query.get("cursor"), **asked)
    return page.show("audit.html", lines=lines, kinds=KINDS, query=page.query)


async def show_problems(page: Page) -> Response:
    """Show what is wrong, what matters most first."""
    namespace = page.query.get("namespace", "")
    try:
        overview = await page.get("overview", namespace=namespace)
    except Refused as refused:
        return which_namespace(page, refused)
    return page.show("problems.html", overview=overview, namespace=namespace)
