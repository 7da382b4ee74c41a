"""The overview: is everything backed up, and if not, what is wrong first; and the fleet, hosts by days."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from starlette.responses import Response

from server.web import plots
from server.web.asking import which_namespace
from server.web.client import Refused
from server.web.page import Page

ANSWERS: Mapping[str, tuple[str, str]] = {"yes": ("good", "✓"), "no": ("bad", "✕"), "unknown": ("warn", "!")}
"""Answers of REST's overview, as a tone and a sign."""
STATES: Mapping[str, tuple[str, str]] = {
    "overdue": ("bad", "overdue"),
    "failed": ("bad", "failed"),
    "never_ran": ("bad", "never ran"),
    "offline": ("bad", "offline"),
    "out_of_sync": ("bad", "out of sync"),
    "no_backup": ("bad", "no backup"),
    "agents": ("bad", "agent"),
    "incomplete": ("warn", "incomplete"),
    "good": ("good", "good"),
}
"""States of hosts in REST's fleet, as a tone and in words."""
DAYS = ("7", "14", "30", "90")
"""How many days the fleet page offers."""
SHOWN, CELLS = 100, 3000
"""How many hosts or groups a page of the fleet shows, and how many days of them together: it stays below 200 KB."""


async def show_overview(page: Page) -> Response:
    """Show what REST's overview says, of all namespaces or of one."""
    namespace = page.query.get("namespace", "")
    try:
        overview = await page.get("overview", namespace=namespace)
    except Refused as refused:
        return which_namespace(page, refused)
    answer, days = ANSWERS[overview["answer"]], overview["days"]
    added = plots.bytes_by_day(days, date.fromisoformat(days[-1]["day"]), len(days))
    return page.show("overview.html", overview=overview, answer=answer, namespace=namespace, added=added)


async def show_fleet(page: Page) -> Response:
    """Show hosts, or groups of hosts, and how each of their days ended."""
    names = ("namespace", "labelSelector", "schedule", "state", "group", "days", "cursor")
    asked = {name: page.query.get(name, "") for name in names}
    error = ""
    try:
        fleet = await page.get("fleet", limit=_limit(asked["days"]), **asked)
    except Refused as refused:
        if not refused.errors:
            return which_namespace(page, refused)
        error = "; ".join(f"{it['field']} {it['detail']}" for it in refused.errors)
        fleet = _EMPTY
    status = 400 if error else 200
    return page.show(
        "fleet.html", status, fleet=fleet, asked=asked, error=error, states=STATES, periods=DAYS, query=page.query
    )


def _limit(days: str) -> str:
    """How many hosts the page shows with so many days each."""
    return str(min(SHOWN, CELLS // int(days)) if re.fullmatch("[1-9][0-9]?", days) else SHOWN)


_EMPTY: Mapping[str, Any] = {"days": [], "hosts": 0, "label_keys": [], "groups": [], "items": [], "next": None}
"""A fleet in which nothing was found."""
