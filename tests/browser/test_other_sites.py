"""Other sites can lead people to pages, and can neither act for them nor show pages inside their own."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import OpenWindow, Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ELSEWHERE = "http://elsewhere.example.org/"


async def visit(page: Page, body: str) -> None:
    """Open a page of another site."""
    html = f"<!doctype html><title>Elsewhere</title>{body}"
    await page.route(f"{ELSEWHERE}**", lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.goto(ELSEWHERE)


async def test_a_form_of_another_site_changes_nothing(open_window: OpenWindow, site: Site) -> None:
    page = await open_window(expected="403")
    form = f'<form method="post" action="{site.url}/sign-out"><button>Win a prize</button></form>'
    await visit(page, form)
    await page.get_by_role("button").click()
    await expect(page.get_by_role("alert")).to_contain_text("another site sent this form")
    await page.goto("/")
    await expect(page.get_by_role("banner")).to_contain_text("admin")


async def test_a_form_without_the_session_s_token_changes_nothing(open_window: OpenWindow) -> None:
    page = await open_window(expected="403")
    await page.goto("/")
    await page.evaluate("document.querySelector('[name=form_token]').value = 'guessed'")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("alert")).to_contain_text("not from a page of your session")
    await page.goto("/")
    await expect(page.get_by_role("banner")).to_contain_text("admin")


async def test_a_link_of_another_site_finds_who_is_signed_in(page: Page, site: Site) -> None:
    """The browser withholds a SameSite=Strict cookie from the first request, and sends it with the second."""
    await visit(page, f'<a href="{site.url}/fleet?days=7">the fleet</a>')
    await page.get_by_role("link").click()
    await expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    await expect(page).to_have_url(f"{site.url}/fleet?days=7")


async def test_no_other_site_shows_a_page_inside_its_own(open_window: OpenWindow, site: Site) -> None:
    page = await open_window(expected="frame")
    await visit(page, f'<iframe src="{site.url}/"></iframe>')
    inside = page.frame_locator("iframe").get_by_role("heading")
    await expect(inside).to_have_count(0)


async def test_scripts_of_others_do_not_run_in_a_page(open_window: OpenWindow) -> None:
    page = await open_window(expected="Content Security Policy")
    await page.goto("/")
    async with page.expect_console_message(lambda it: "inline event handler" in it.text):
        await page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.stolen = true";
            document.body.append(script);
            document.body.insertAdjacentHTML(
                "beforeend", "<img src='data:image/png,x' onerror='window.stolen = true'>");
        }""")
    assert await page.evaluate("window.stolen") is None
