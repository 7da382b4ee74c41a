"""People sign in with a token or with a link that works once, and no other site can act for them."""

import re

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Looks, OpenWindow, Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_a_page_leads_to_the_sign_in_and_back(open_window: OpenWindow, site: Site, looks: Looks) -> None:
    page = await open_window(signed_in=False)
    await page.goto("/?namespace=default")
    await expect(page).to_have_url(re.compile(r"/sign-in\?next="))
    await looks(page, "sign-in")
    await page.get_by_label("Token").fill(site.token)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{site.url}/?namespace=default")
    await expect(page.get_by_role("banner")).to_contain_text("admin")


async def test_a_wrong_token_is_refused_in_words(open_window: OpenWindow, looks: Looks) -> None:
    page = await open_window(signed_in=False, expected="401")
    await page.goto("/sign-in")
    await page.get_by_label("Token").fill("no token of anybody")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("admin-token")
    await looks(page, "sign-in-refused")


async def test_the_printed_link_signs_in_once(open_window: OpenWindow, site: Site) -> None:
    first = await open_window(signed_in=False)
    await first.goto(site.link)
    await expect(first).to_have_url(f"{site.url}/")
    await expect(first.get_by_role("banner")).to_contain_text("admin")
    second = await open_window(signed_in=False, expected="401")
    await second.goto(site.link)
    await expect(second.get_by_role("alert")).to_contain_text("was used, or has expired")


async def test_signing_out_ends_the_session_everywhere(open_window: OpenWindow, page: Page, site: Site) -> None:
    await page.goto("/")
    stolen = await page.context.cookies()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(f"{site.url}/sign-in")
    thief = await open_window(signed_in=False)
    await thief.context.add_cookies(stolen)  # type: ignore[arg-type]
    await thief.goto("/")
    await expect(thief).to_have_url(f"{site.url}/sign-in")


async def test_pages_work_without_scripts(open_window: OpenWindow, site: Site) -> None:
    page = await open_window(java_script_enabled=False)
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await page.get_by_role("link", name="Fleet").click()
    await expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(f"{site.url}/sign-in")


async def test_a_keyboard_is_enough(page: Page) -> None:
    await page.goto("/")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("main")).to_be_focused()
