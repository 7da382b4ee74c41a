"""The overview says whether everything is backed up, the fleet page how each day went; both are as new as the fleet."""

import re

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Looks, OpenWindow, Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def run(site: Site) -> None:
    """Run the schedule, and wait for the job's end."""
    (job,) = (await site.api.post("/schedules/default/notes/run")).raise_for_status().json()["items"]
    await site.until(f"/jobs/{job['id']}", lambda it: it["finished_at"])


async def test_the_answer_changes_while_the_page_is_open(page: Page, site: Site, looks: Looks) -> None:
    await site.until("/hosts/node-1", lambda host: host["in_sync"] and host["schedules"])
    await page.goto("/")
    headline = page.get_by_role("heading", level=1)
    before = await headline.inner_text()
    await page.get_by_role("link", name="Fleet").focus()
    await run(site)
    await expect(headline).not_to_have_text(before)
    told = page.get_by_role("status")
    await expect(told).not_to_be_empty()
    await expect(page.get_by_role("heading", level=1, name=await told.inner_text())).to_be_visible()
    await expect(page.get_by_role("link", name="Fleet")).to_be_focused()
    await looks(page, "overview")


async def test_the_fleet_shows_each_host_s_days(page: Page, site: Site, looks: Looks) -> None:
    await site.until("/hosts/node-1", lambda host: host["in_sync"] and host["schedules"])
    await run(site)
    await page.goto("/fleet")
    row = page.get_by_role("row", name=re.compile("node-1"))
    await expect(row.get_by_role("cell", name="succeeded")).to_have_count(1)
    await looks(page, "fleet")
    await page.get_by_label("Group by label").fill("kubernetes.io/os")
    await page.get_by_label("Days", exact=True).select_option("7")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_role("row", name=re.compile("linux"))).to_contain_text("1 succeeded")
    await looks(page, "fleet-groups")
    await page.get_by_role("link", name="linux").click()
    await expect(page.get_by_label("Labels")).to_have_value("kubernetes.io/os=linux")
    await expect(page.get_by_role("row", name=re.compile("node-1"))).to_be_visible()


async def test_a_filter_that_cannot_be_read_is_told_in_words(open_window: OpenWindow) -> None:
    page = await open_window(expected="400")
    await page.goto("/fleet?labelSelector=%3D%3D%3D")
    await expect(page.get_by_role("alert")).to_contain_text("labelSelector")
