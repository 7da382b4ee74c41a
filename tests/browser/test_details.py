"""The pages of single things: a job is followed and ended there, a file found and restored, and all are fit to use."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.conftest import RESOURCES, Looks, OpenWindow, Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SOON_MS = 60_000
CHECK = """---
apiVersion: lamplighter.dev/v1alpha1
kind: Schedule
metadata: {name: look}
spec:
  kind: check
  cron: "0 4 * * *"
  repositoryRef: {name: local}
"""


@pytest.fixture(scope="module")
def declared() -> dict[str, str]:
    return {"main.yaml": RESOURCES + CHECK}


@contextmanager
def locked(site: Site) -> Iterator[None]:
    """The repository, while somebody else's restic uses it: an exclusive job waits and says so in its log."""
    env = {"RESTIC_REPOSITORY": str(site.data / "repository"), "RESTIC_PASSWORD": "only-for-tests"}
    words = [shutil.which("restic") or "restic", "--no-cache", "backup", "--stdin"]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=-3, stderr=-3) as restic:
        try:
            locks = site.data / "repository" / "locks"
            while not any(locks.iterdir()):
                assert restic.poll() is None
            yield
        finally:
            restic.terminate()


def state(page: Page, word: str) -> Locator:
    """The state that a job's page shows."""
    return page.locator(".head .badge", has_text=word)


async def backed_up(site: Site) -> None:
    """There is a snapshot."""
    await site.until("/hosts/node-1", lambda host: host.get("in_sync") and host["schedules"])
    if not (await site.api.get("/jobs?kind=backup")).json()["items"]:
        (await site.api.post("/schedules/default/notes/run")).raise_for_status()
    await site.until("/jobs?kind=backup", lambda jobs: jobs["items"][0]["status"] == "succeeded")


async def test_a_job_is_followed_from_its_schedule_to_the_restore_of_a_file(
    page: Page, site: Site, looks: Looks
) -> None:
    await site.until("/hosts/node-1", lambda host: host.get("in_sync") and host["schedules"])
    await page.goto("/schedules/default/notes")
    await page.get_by_role("button", name="Run now on 1 host").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("backup on node-1")
    await page.evaluate("window.stayed = true")
    await expect(state(page, "succeeded")).to_be_visible(timeout=SOON_MS)
    assert await page.evaluate("window.stayed"), "the page was loaded again, and did not change by itself"
    await looks(page, "job")
    await page.get_by_role("link", name="Browse its snapshot").click()
    await page.get_by_label("Find a file by name").fill("NOTE")
    await page.get_by_role("button", name="Find").click()
    notes = site.folder / "saved" / "notes.txt"
    await page.get_by_label(f"Restore {notes}").check()
    target = site.data / "restored"
    await page.get_by_label("Into folder").fill(str(target))
    await page.get_by_role("button", name="Preview").click()
    await expect(page.get_by_role("main")).to_contain_text("1 file with")
    await expect(page.get_by_role("rowheader", name=f"{target}{notes}")).to_be_visible()
    assert not target.exists()
    await looks(page, "restore")
    await page.get_by_role("button", name="Restore").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("restore on node-1")
    await expect(state(page, "succeeded")).to_be_visible(timeout=SOON_MS)
    assert (target / notes.relative_to("/")).read_text() == notes.read_text()


async def test_a_job_that_waits_says_so_live_and_is_cancelled(page: Page, site: Site, looks: Looks) -> None:
    await backed_up(site)
    with locked(site):
        [job] = (await site.api.post("/schedules/default/look/run")).json()["items"]
        await page.goto(f"/jobs/{job['id']}")
        await expect(page.get_by_role("region", name="Log")).to_contain_text("is locked", timeout=SOON_MS)
        await expect(page.get_by_role("progressbar")).to_be_visible()
        await looks(page, "job-running")
        await page.get_by_role("button", name="Cancel").click()
        await expect(state(page, "cancelled")).to_be_visible(timeout=SOON_MS)
        await expect(page.get_by_role("button", name="Run again on node-1")).to_be_visible()


PAGES = {
    "host": "/hosts/node-1",
    "schedule": "/schedules/default/notes",
    "jobs": "/jobs?host=node-1",
    "repository": "/repositories/default/local",
    "snapshots": "/snapshots/default/local",
    "snapshot": "/snapshots/default/local/latest?host=node-1",
    "audit": "/audit",
    "problems": "/problems",
}


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_fit_to_use(page: Page, site: Site, looks: Looks, name: str) -> None:
    await backed_up(site)
    await page.goto(PAGES[name])
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await looks(page, name)


async def test_a_page_works_without_scripts(open_window: OpenWindow, site: Site) -> None:
    await backed_up(site)
    page = await open_window(java_script_enabled=False)
    await page.goto("/schedules/default/notes")
    await page.get_by_role("button", name="Run now on node-1").click()
    await expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f]{32}$"))
    await expect(page.get_by_role("heading", level=1)).to_contain_text("backup on node-1")


async def test_nothing_moves_under_the_hands_of_a_reader_while_a_page_is_live(
    open_window: OpenWindow, site: Site
) -> None:
    """The focus stays on what it was on, what was opened stays open, and a proxy's error does not end the liveness."""
    await backed_up(site)
    page = await open_window(expected="502")
    answers = 0

    async def once_broken(route: Route) -> None:
        nonlocal answers
        answers += 1
        await (route.fulfill(status=502) if answers == 1 else route.continue_())

    await page.route(re.compile(r"/live(\?|$)"), once_broken)
    await page.goto("/schedules/default/notes")
    await expect(page.locator("#liveness")).to_have_text("· live")
    button = page.get_by_role("button", name="Run now on node-1")
    await button.focus()
    (await site.api.put("/hosts/a-new-one", json={"labels": {}})).raise_for_status()
    await expect(page.get_by_role("button", name="Run now on a-new-one")).to_be_visible()
    await expect(button).to_be_focused()
    await page.goto("/audit?object_kind=Host")
    line = page.get_by_role("row").filter(has_text="node-1")
    await line.locator("summary").click()
    (await site.api.delete("/hosts/a-new-one")).raise_for_status()
    await expect(page.get_by_role("row").filter(has_text="delete")).to_be_visible()
    await expect(line.locator("details")).to_have_attribute("open", "")
