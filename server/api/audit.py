"""The audit log."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import page
from server.api.requests import Number, Query
from server.api.services import Services
from server.store import audit as audit_statements


async def list_audit(services: Services, request: Request) -> Response:
    """List who changed what, newest first."""
    query = Query(request, "object_kind", "object_name", "limit", "cursor")
    before, limit = query.after(Number), query.limit()
    given = {name: query.text(name) for name in ("object_kind", "object_name")}
    filters = {name: value for name, value in given.items() if value is not None}
    rows = await services.store.read(audit_statements.list_audit, before, limit + 1, filters)
    return page(rows, limit, dict, "id")
