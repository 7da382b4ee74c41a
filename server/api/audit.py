"""The audit log."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import page
from server.api.requests import Number, Query
from server.api.services import Services
from server.store import audit as audit_statements


async def list_audit(services: Services, request: Request) -> Response:
    """List who changed what, newest first."""
    query = Query(request, "limit", "cursor")
    before, limit = query.after(Number), query.limit()
    rows = await services.store.read(audit_statements.list_audit, before, limit + 1)
    return page(rows, limit, dict, "id")
