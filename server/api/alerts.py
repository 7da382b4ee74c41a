"""Alerts. Where their messages go can be written, and is in no answer."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import page
from server.api.conditions import condition, versioned
from server.api.objects import as_object, created, find_object, is_new, named_manifest, version_of
from server.api.requests import Query, actor, object_body
from server.api.services import Services
from server.observe.problems import AlertFacts, alert_problems
from server.store.alerts import delivery_facts
from server.store.declared import list_resources
from server.store.rows import Row
from server.store.tables import ALERTS


async def list_alerts(services: Services, request: Request) -> Response:
    """List alerts, by namespace and name."""
    query = Query(request, "namespace", "labelSelector", "limit", "cursor")
    after, limit = query.after(tuple[str, str]), query.limit()
    narrowed = (query.text("namespace"), query.label_conditions())
    rows = await services.store.read(list_resources, ALERTS, after, limit + 1, *narrowed)
    facts = await services.store.read(delivery_facts, [row["id"] for row in rows])
    return page(rows, limit, lambda row: _shown(services, row, facts), "namespace", "name")


async def create_alert(services: Services, request: Request) -> Response:
    """Create an alert. Its `credentials` are in no answer."""
    Query(request)
    manifest = await object_body(request)
    row, _ = await services.alerts.put(actor(request), manifest, is_new(request, "Alert"))
    return created(request, row, await _shown_one(services, row))


async def get_alert(services: Services, request: Request) -> Response:
    """Read an alert, without its credentials."""
    Query(request)
    row = await find_object(services, request, "Alert")
    return versioned(await _shown_one(services, row), version_of(row))


async def put_alert(services: Services, request: Request) -> Response:
    """Create an alert, or update it to the manifest; the same manifest again changes nothing."""
    manifest = await named_manifest(request)
    check = condition(request, manifest["metadata"].get("resourceVersion"))
    row, is_created = await services.alerts.put(actor(request), manifest, check)
    return versioned(await _shown_one(services, row), version_of(row), 201 if is_created else 200)


async def delete_alert(services: Services, request: Request) -> Response:
    """Delete an alert. Its messages that have not arrived yet are not sent any more."""
    Query(request)
    await services.alerts.delete(actor(request), **request.path_params, condition=condition(request))
    return Response(status_code=204)


async def _shown_one(services: Services, row: Row) -> dict[str, object]:
    return _shown(services, row, await services.store.read(delivery_facts, [row["id"]]))


def _shown(services: Services, row: Row, facts: Mapping[str, Row]) -> dict[str, object]:
    its = facts.get(row["id"], {})
    counts = {name: its.get(name, 0) for name in ("firing", "waiting", "dropped")}
    at = its.get("delivered_at")
    selects = services.alerts.selects_any(row["namespace"], row["spec"])
    facts_of_it = AlertFacts(row["namespace"], row["name"], its.get("failed_at"), its.get("error") or "", selects)
    problems = [it._asdict() for it in alert_problems(facts_of_it)]
    return as_object("Alert", row, {**counts, **({} if at is None else {"lastDeliveryTime": at}), "problems": problems})
