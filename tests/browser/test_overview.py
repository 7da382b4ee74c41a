"""The overview says whether everything is backed up, and is as new as the fleet."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Looks, Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_a_job_appears_while_the_page_is_open(page: Page, site: Site, looks: Looks) -> None:
    await site.until("/hosts/node-1", lambda host: host["in_sync"] and host["schedules"])
    await page.goto("/")
    await looks(page, "overview-before")
    (await site.api.post("/schedules/default/notes/run")).raise_for_status()
    await expect(page.get_by_text("succeeded")).to_be_visible(timeout=60_000)
    await looks(page, "overview")
