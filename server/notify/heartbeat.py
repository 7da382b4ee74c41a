"""The dead man's switch: calls a URL while all is well, so that somebody notices when Lamplighter falls silent."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from server.errors import Unavailable
from server.notify.webhooks import CallError, Webhooks
from server.store.engine import StoreClosedError

log = logging.getLogger(__name__)

Trouble = Callable[[], Awaitable[str]]
"""Returns why not all is well, in a sentence; empty when it is. Raises Unavailable."""


async def follow(url_file: Path, every_s: float, trouble: Trouble) -> None:
    """Call the URL in a file every `every_s` seconds while all is well, until cancelled. The leader alone does so."""
    silent = ""
    async with Webhooks() as webhooks:
        while True:
            why = await _beat(webhooks, url_file, trouble)
            if why != silent:
                if why:
                    log.warning("no heartbeat", extra={"reason": why})
                else:
                    log.info("heartbeat goes on")
            silent = why
            await asyncio.sleep(every_s)


async def _beat(webhooks: Webhooks, url_file: Path, trouble: Trouble) -> str:
    """Call the URL if all is well. Returns why it was not called, or did not answer; empty if it did."""
    try:
        if why := await trouble():
            return why
        url = (await asyncio.to_thread(url_file.read_text, encoding="utf-8")).strip()
        await webhooks.call(url, b"", {}, anywhere=True, method="GET")
    except (Unavailable, StoreClosedError, CallError) as error:
        return str(error)
    except (OSError, UnicodeDecodeError) as error:
        return f"{url_file} cannot be read: {error}"
    except Exception as error:
        log.exception("no heartbeat")
        return type(error).__name__
    return ""
