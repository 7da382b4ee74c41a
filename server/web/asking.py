"""What several pages ask REST in the same way."""

from collections.abc import Awaitable
from typing import Any

from server.web.client import Refused

FORBIDDEN = 403


async def if_allowed(asking: Awaitable[Any]) -> Any:
    """What REST answers, or None where the user may not ask that: the rest of a page is shown all the same."""
    try:
        return await asking
    except Refused as error:
        if error.status != FORBIDDEN:
            raise
        return None
