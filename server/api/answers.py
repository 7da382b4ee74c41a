"""JSON answers, and pages of lists."""

from collections.abc import Callable, Mapping

import msgspec
from starlette.responses import Response

from server.api.requests import cursor
from server.store.rows import Row


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer. Datetimes are written as in RFC 3339, Raw values unchanged."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def page(rows: list[Row], limit: int, show: Callable[[Row], object], *key: str) -> Response:
    """A page of up to `limit` rows. `rows`: one more than `limit` when there is a next page.

    `key`: the columns by which the rows are ordered, which the cursor of the next page holds.
    """
    shown = rows[:limit]
    more = len(rows) > limit
    values = [shown[-1][name] for name in key] if more else []
    next_ = cursor(values if len(key) > 1 else values[0]) if more else None
    return json_response({"items": [show(row) for row in shown], "next": next_})
