"""Sends messages for people by Apprise (https://github.com/caronc/apprise): mail, chat and over a hundred services.

Apprise blocks, so a few threads of its own run it. Its URLs are secrets: neither it nor we print them.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from server.errors import FieldError
from server.notify.webhooks import CallError
from server.resources.targets import is_webhook, scheme_of

THREADS = 4
"""The most messages that are sent at once."""
TIMEOUT_S = 60.0
"""Seconds to wait for one message. Apprise itself waits 4 s to connect and 4 s for each answer, unless its URL says
otherwise."""


class Services:
    """Sends messages by Apprise, which is imported when it is first needed."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="apprise")

    def close(self) -> None:
        """Take no more messages; those that are being sent go on."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def send(self, url: str, title: str, text: str, *, is_over: bool) -> None:
        """Send a message. `is_over`: whether it tells of nothing that is wrong. Raises CallError."""
        scheme = scheme_of(url)
        if not await self._run(partial(_send, url, title, text, is_over=is_over), scheme):
            raise CallError(f"{scheme}:// did not take it: check its URL in the Secret, and the service")

    async def unknown(self, urls: Sequence[str], field: str = "credentials.urls") -> list[FieldError]:
        """Errors of URLs that Apprise does not understand."""
        found: list[FieldError] = []
        for at, url in enumerate(urls):
            if is_webhook(url):
                continue
            try:
                is_known = await self._run(partial(_understands, url), scheme_of(url))
            except CallError:
                is_known = True  # whether it is will show
            if not is_known:
                detail = f"{scheme_of(url)}:// is not understood by Apprise, or lacks something: see its documentation"
                found.append({"field": f"{field}[{at}]", "detail": detail})
        return found

    async def _run(self, work: Callable[[], bool], scheme: str) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return bool(await loop.run_in_executor(self._pool, work))
        except TimeoutError:
            raise CallError(f"{scheme}:// did not take it within {self._timeout_s:.0f} s") from None
        except ImportError:
            raise CallError(f"{scheme}:// needs Apprise: install it beside the server (pip install apprise)") from None
        except Exception as error:  # noqa: BLE001 - of whichever service; its text may hold the URL
            raise CallError(f"{scheme}:// failed: {type(error).__name__}") from None


def _loaded(url: str) -> Any:
    """Apprise with one URL; None if it does not understand it."""
    import apprise  # noqa: PLC0415 - with all its services it takes some megabytes and a second

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it prints parts of URLs
    asset = apprise.AppriseAsset(
        app_id="Lamplighter", app_desc="Lamplighter", app_url="", async_mode=False, secure_logging=True
    )
    loaded = apprise.Apprise(asset=asset)
    return loaded if loaded.add(url) else None


def _understands(url: str) -> bool:
    return _loaded(url) is not None


def _send(url: str, title: str, text: str, *, is_over: bool) -> bool:
    loaded = _loaded(url)
    kind = "success" if is_over else "failure"
    return loaded is not None and bool(loaded.notify(body=text, title=title, notify_type=kind, body_format="text"))
