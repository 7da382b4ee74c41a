"""What tests in a browser share: Debian's chromium, and `lamplighter up` on a folder, with a real agent and restic.

A module starts both once. `page` is a fresh window in which the administrator is signed in. At its end it must have had
no error in its console. `looks` checks a page as people see it: both themes, on a desk and on a phone, with axe.
Screenshots are kept in the folder LAMPLIGHTER_SCREENSHOTS, if that is set, and else below pytest's --basetemp.
"""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.plain import NO_TLS

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
CHROMIUM = os.environ.get("LAMPLIGHTER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
PATIENCE_S = 120
"""What takes longer than this will not come, however much else the machine has to do."""
expect.set_options(timeout=1000 * PATIENCE_S)
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

Looks = Callable[..., Awaitable[None]]
OpenWindow = Callable[..., Awaitable[Page]]


class Site(NamedTuple):
    """A running `lamplighter up`: its URL, its token and folders, its REST API, and the link that it printed."""

    url: str
    token: str
    folder: Path
    data: Path
    api: httpx.AsyncClient
    link: str

    async def until(self, path: str, found: Callable[[Any], Any]) -> Any:
        """What is found in the answer at a path of REST, once there is something."""
        async with asyncio.timeout(PATIENCE_S):
            while not (it := found((await self.api.get(path)).json())):
                await asyncio.sleep(0.1)
        return it


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    if not CHROMIUM:
        pytest.skip("there is no chromium: apt-get install chromium, or name one in LAMPLIGHTER_CHROMIUM")
    async with async_playwright() as playwright:
        sandbox = os.geteuid() != 0  # chromium's own does not run as root
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=sandbox, timeout=1000 * PATIENCE_S
        )
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
def declared() -> dict[str, str]:
    """The files of the folder that `site` follows. A module may have others."""
    return {"main.yaml": RESOURCES}


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, declared: dict[str, str]) -> AsyncIterator[Site]:
    """`lamplighter up` on the files of `declared`, on host node-1."""
    folder, data = tmp_path_factory.mktemp("declared"), tmp_path_factory.mktemp("data")
    (folder / "saved").mkdir()
    (folder / "saved" / "notes.txt").write_text("what is worth saving\n")
    for name, text in declared.items():
        (folder / name).write_text(text.replace("FOLDER", str(folder)).replace("DATA", str(data)))
    options = ["--listen", "127.0.0.1:0", "--host", "node-1", "--data-dir", str(data), "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(LAMPLIGHTER, "up", str(folder), *options, stdout=-1, stderr=-1)
    assert process.stdout is not None
    try:
        ready = await _said(process, "ready")
        token = (data / "admin-token").read_text().strip()
        reading = asyncio.create_task(_read(process))
        headers = {"authorization": f"Bearer {token}"}
        url, link = str(ready["url"]), (await process.stdout.readline()).decode().split()[-1]
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, verify=NO_TLS) as api:
            yield Site(url, token, folder, data, api, link)
        process.terminate()
        await asyncio.wait_for(asyncio.gather(process.wait(), reading), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _said(process: Process, message: str) -> dict[str, object]:
    """The line of the log with this message."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stderr.readline():
            told: dict[str, object] = json.loads(line)
            if told["message"] == message:
                return told
    raise AssertionError(f"ended without saying {message!r}")


async def _read(process: Process) -> None:
    assert process.stderr is not None
    while await process.stderr.readline():
        pass


@pytest.fixture
async def open_window(browser: Browser, site: Site) -> AsyncIterator[OpenWindow]:
    """Opens windows, each with cookies of its own. `signed_in`: whether the administrator is.

    At the end, none may have had an error in its console, but for those with a text of `expected`.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    async def open_window(*, signed_in: bool = True, expected: str = "", **settings: Any) -> Page:
        context = await browser.new_context(base_url=site.url, viewport=DESK, **settings)  # type: ignore[arg-type]
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda it: (
                errors.append(it.text)
                if it.type in {"error", "warning"} and (not expected or expected not in it.text)
                else None
            ),
        )
        if signed_in:
            await sign_in(page, site.token)
        return page

    yield open_window
    for context in contexts:
        await context.close()
    assert errors == []


async def sign_in(page: Page, token: str) -> None:
    """Sign in with a token, as a person does."""
    await page.goto("/sign-in")
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("/")


@pytest.fixture
async def page(open_window: OpenWindow) -> Page:
    """A window in which the administrator is signed in."""
    return await open_window()


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of screenshots."""
    named = os.environ.get("LAMPLIGHTER_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screens")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def looks(screens: Path) -> Looks:
    """Checks how a page looks, and takes pictures of it, named after it."""

    async def looks(page: Page, name: str) -> None:
        for theme in ("light", "dark"):
            for device, size in (("desk", DESK), ("phone", PHONE)):
                # Without transitions: axe would see colours on their way from one theme to the other.
                await page.emulate_media(color_scheme=theme, reduced_motion="reduce")
                await page.set_viewport_size(size)  # type: ignore[arg-type]
                found = await Axe().run(page)
                assert found.violations_count == 0, f"{name}, {theme}, {device}: {found.generate_report()}"
                wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert await page.evaluate(wider) == 0, f"{name} is wider than the {device}"
                await page.screenshot(path=screens / f"{name}-{theme}-{device}.png", full_page=True)
        await page.emulate_media(color_scheme="light")
        await page.set_viewport_size(DESK)  # type: ignore[arg-type]

    return looks


RESOURCES = """
apiVersion: lamplighter.dev/v1alpha1
kind: Repository
metadata: {name: local}
spec: {url: DATA/repository, passwordSecretRef: {name: local}, init: true}
---
apiVersion: v1
kind: Secret
metadata: {name: local}
stringData: {password: only-for-tests}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Schedule
metadata: {name: notes}
spec:
  kind: backup
  cron: "0 3 * * *"
  repositoryRef: {name: local}
  backup: {paths: [FOLDER/saved]}
"""
