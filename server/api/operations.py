"""The table of operations: their routes, the permissions that callers need, their bodies and answers.

The handlers are in a file for each resource. Routing (`routing`) and /openapi.json (`openapi`) are made from the table.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from server.access.identity import Permission
from server.api import (
    alerts,
    audit,
    controllers,
    enrolments,
    history,
    hosts,
    jobs,
    news,
    overview,
    plans,
    repositories,
    restores,
    runs,
    schedules,
    sign_ins,
    snapshots,
)
from server.api.requests import object_body
from server.api.services import Services
from server.changes.listings import File, Snapshot
from server.changes.plan import Plan
from server.changes.previews import RestorePreview
from server.observe.contents import HostContents
from server.observe.controllers import ControllerReport, ControllerState
from server.observe.entries import HostEntry
from server.observe.fleet import Fleet
from server.observe.overview import Overview
from server.store.schedule_days import PastDay

BODIES: Mapping[str, type[Struct]] = {
    "HostPut": hosts.HostBody,
    "Run": schedules.RunBody,
    "RunPut": runs.RunPutBody,
    "RunStatus": runs.RunStatus,
    "Snapshot": Snapshot,
    "File": File,
    "EnrolmentPost": enrolments.OfferBody,
    "Enrolment": enrolments.Offer,
    "Enrol": enrolments.EnrolBody,
    "PlanPost": plans.PlanBody,
    "Plan": Plan,
    "ControllerPut": ControllerReport,
    "Controller": ControllerState,
    "Due": schedules.Due,
    "HostEntry": HostEntry,
    "HostDrain": hosts.Drain,
    "Overview": Overview,
    "Fleet": Fleet,
    "RestorePreview": RestorePreview,
    "SignInLink": sign_ins.SignInLink,
    "PastDay": PastDay,
    "HostContents": HostContents,
}
"""Bodies by the name of their schema, except those that the custom resource definitions describe."""

Handler = Callable[[Services, Request], Awaitable[Response]]


async def in_path(_services: Services, request: Request) -> tuple[str, str]:
    """The object that the path names."""
    return request.path_params.get("namespace", ""), request.path_params.get("name", "")


async def in_namespace(_services: Services, request: Request) -> tuple[str, str]:
    """Any object in the namespace that the path names."""
    return request.path_params["namespace"], ""


async def in_query(_services: Services, request: Request) -> tuple[str, str]:
    """Any object in the namespace that the query names; all namespaces when it names none."""
    return request.query_params.get("namespace", ""), ""


async def in_body(_services: Services, request: Request) -> tuple[str, str]:
    """Any object in the namespace of the manifest in the body; all namespaces when the manifest cannot be read."""
    metadata = (await object_body(request)).get("metadata")
    namespace = metadata.get("namespace", "") if isinstance(metadata, dict) else ""
    return (namespace or "default", "") if isinstance(namespace, str) else ("", "")


class Needs(NamedTuple):
    """The permissions that a caller needs, in the words of Kubernetes' RBAC.

    `verbs`, `resources`: separated by spaces; all are needed, and none where a token is enough. `about`: returns the
    (namespace, name) of the object that a request is about; an empty one stands for all.
    """

    verbs: str
    resources: str
    about: Callable[[Services, Request], Awaitable[tuple[str, str]]] = in_path


class Operation(NamedTuple):
    """One operation as it is routed and described. Names of schemas are those of `openapi`.

    `needs`: None if the caller needs no token. `takes`: the schema of the body. `answers`: schemas by status, None
    for no body. `may`: statuses of the problems that this operation answers besides the general ones.
    """

    method: str
    path: str
    handler: Handler
    needs: Needs | None
    answers: Mapping[int, str | None]
    takes: str | None = None
    body_required: bool = True
    query: Sequence[str] = ()
    may: Sequence[int] = ()

    async def permissions(self, services: Services, request: Request) -> list[Permission]:
        """The permissions that the caller of this request needs. Raises what reading the request raises."""
        if self.needs is None:
            return []
        about = await self.needs.about(services, request)
        verbs, resources = self.needs.verbs.split(), self.needs.resources.split()
        return [Permission(verb, resource, *about) for verb in verbs for resource in resources]


_PAGE = ("limit", "cursor")
_ALL = "schedules repositories hosts runs"
_BODY = (400, 413, 415, 422)
_LISTING = (400, 404, 409, 422, 502, 504)
_RUN, _RESTORE = "/runs/{namespace}/{id}", "/restores/{namespace}/{id}"
_SCHEDULE, _REPOSITORY, _HOST = "/schedules/{namespace}/{name}", "/repositories/{namespace}/{name}", "/hosts/{name}"
_ALERT = "/alerts/{namespace}/{name}"

OPERATIONS: Sequence[Operation] = (
    Operation(
        "GET",
        "/schedules",
        schedules.list_schedules,
        Needs("list", "schedules", in_query),
        {200: "ScheduleList"},
        query=("namespace", "labelSelector", *_PAGE),
        may=(400,),
    ),
    Operation(
        "POST",
        "/schedules",
        schedules.create_schedule,
        Needs("create", "schedules", in_body),
        {201: "Schedule"},
        "SchedulePost",
        may=(*_BODY, 409),
    ),
    Operation("GET", _SCHEDULE, schedules.get_schedule, Needs("get", "schedules"), {200: "Schedule"}, may=(400, 404)),
    Operation(
        "PUT",
        _SCHEDULE,
        schedules.put_schedule,
        Needs("create update", "schedules"),
        {200: "Schedule", 201: "Schedule"},
        "SchedulePut",
        may=(*_BODY, 409),
    ),
    Operation(
        "DELETE", _SCHEDULE, schedules.delete_schedule, Needs("delete", "schedules"), {204: None}, may=(400, 404)
    ),
    Operation(
        "POST",
        f"{_SCHEDULE}/run",
        schedules.run_schedule,
        Needs("create", "runs", in_namespace),
        {201: "JobList"},
        "Run",
        body_required=False,
        may=(*_BODY, 404, 409),
    ),
    Operation(
        "POST",
        f"{_SCHEDULE}/resume",
        schedules.resume_schedule,
        Needs("create", "runs", in_namespace),
        {200: "Schedule"},
        may=(400, 404),
    ),
    Operation(
        "GET",
        f"{_SCHEDULE}/history",
        history.get_schedule_history,
        Needs("get", "schedules"),
        {200: "PastDayList"},
        query=("days",),
        may=(400, 404),
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/history",
        history.get_repository_history,
        Needs("get", "repositories"),
        {200: "PastDayList"},
        query=("days",),
        may=(400, 404),
    ),
    Operation(
        "GET",
        f"{_SCHEDULE}/due",
        schedules.get_due,
        Needs("get", "schedules"),
        {200: "Due"},
        query=("hours",),
        may=(400, 404),
    ),
    Operation(
        "GET",
        "/repositories",
        repositories.list_repositories,
        Needs("list", "repositories", in_query),
        {200: "RepositoryList"},
        query=("namespace", "labelSelector", *_PAGE),
        may=(400,),
    ),
    Operation(
        "POST",
        "/repositories",
        repositories.create_repository,
        Needs("create", "repositories", in_body),
        {201: "Repository"},
        "RepositoryPost",
        may=(*_BODY, 409),
    ),
    Operation(
        "GET",
        _REPOSITORY,
        repositories.get_repository,
        Needs("get", "repositories"),
        {200: "Repository"},
        may=(400, 404),
    ),
    Operation(
        "PUT",
        _REPOSITORY,
        repositories.put_repository,
        Needs("create update", "repositories"),
        {200: "Repository", 201: "Repository"},
        "RepositoryPut",
        may=(*_BODY, 409),
    ),
    Operation(
        "DELETE",
        _REPOSITORY,
        repositories.delete_repository,
        Needs("delete", "repositories"),
        {204: None},
        may=(400, 404, 409),
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/schedules",
        repositories.list_users,
        Needs("list", "schedules", in_namespace),
        {200: "ScheduleList"},
        query=_PAGE,
        may=(400, 404),
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/hosts",
        repositories.list_hosts,
        Needs("get", "repositories"),
        {200: "HostContentsList"},
        query=("host", *_PAGE),
        may=(400, 404),
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/lane",
        repositories.get_lane,
        Needs("list", "runs", in_namespace),
        {200: "Lane"},
        query=("limit",),
        may=(400, 404),
    ),
    Operation(
        "GET",
        "/alerts",
        alerts.list_alerts,
        Needs("list", "alerts", in_query),
        {200: "AlertList"},
        query=("namespace", "labelSelector", *_PAGE),
        may=(400,),
    ),
    Operation(
        "POST",
        "/alerts",
        alerts.create_alert,
        Needs("create", "alerts", in_body),
        {201: "Alert"},
        "AlertPost",
        may=(*_BODY, 409),
    ),
    Operation("GET", _ALERT, alerts.get_alert, Needs("get", "alerts"), {200: "Alert"}, may=(400, 404)),
    Operation(
        "PUT",
        _ALERT,
        alerts.put_alert,
        Needs("create update", "alerts"),
        {200: "Alert", 201: "Alert"},
        "AlertPut",
        may=(*_BODY, 409),
    ),
    Operation("DELETE", _ALERT, alerts.delete_alert, Needs("delete", "alerts"), {204: None}, may=(400, 404)),
    Operation(
        "PUT",
        _RUN,
        runs.put_run,
        Needs("create", "runs", in_namespace),
        {200: "RunStatus"},
        "RunPut",
        may=(*_BODY, 404),
    ),
    Operation("GET", _RUN, runs.get_run, Needs("get", "runs", in_namespace), {200: "RunStatus"}, may=(400, 422)),
    Operation(
        "PUT",
        _RESTORE,
        restores.put_restore,
        Needs("create", "restores", in_namespace),
        {200: "Job"},
        "RestorePut",
        may=(*_BODY, 404, 409),
    ),
    Operation(
        "POST",
        f"{_RESTORE}/preview",
        restores.preview_restore,
        Needs("create", "restores", in_namespace),
        {200: "RestorePreview"},
        "RestorePut",
        query=("limit",),
        may=(*_BODY, 404, 409, 502, 504),
    ),
    Operation(
        "GET", _RESTORE, restores.get_restore, Needs("get", "restores", in_namespace), {200: "Job"}, may=(400, 404, 422)
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/snapshots",
        snapshots.list_snapshots,
        Needs("get", "repositories/snapshots"),
        {200: "SnapshotList"},
        query=("host", *_PAGE),
        may=_LISTING,
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/snapshots/{{snapshot}}/files",
        snapshots.list_files,
        Needs("get", "repositories/snapshots"),
        {200: "FileList"},
        query=("host", "path", *_PAGE),
        may=_LISTING,
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/snapshots/{{snapshot}}/find",
        snapshots.find_files,
        Needs("get", "repositories/snapshots"),
        {200: "FileList"},
        query=("host", "name", *_PAGE),
        may=_LISTING,
    ),
    Operation(
        "GET",
        "/news",
        news.listen,
        Needs("list", "schedules", in_query),
        {200: "Events"},
        query=("namespace",),
        may=(400,),
    ),
    Operation(
        "GET",
        "/hosts",
        hosts.list_hosts,
        Needs("list", "hosts"),
        {200: "HostList"},
        query=("labelSelector", *_PAGE),
        may=(400,),
    ),
    Operation(
        "GET",
        f"{_HOST}/entries",
        hosts.list_entries,
        Needs("get", "hosts"),
        {200: "HostEntryList"},
        query=("in_force", *_PAGE),
        may=(400, 404),
    ),
    Operation("GET", _HOST, hosts.get_host, Needs("get", "hosts"), {200: "Host"}, may=(400, 404)),
    Operation(
        "PUT", _HOST, hosts.put_host, Needs("create update", "hosts"), {200: "Host", 201: "Host"}, "HostPut", may=_BODY
    ),
    Operation("DELETE", _HOST, hosts.delete_host, Needs("delete", "hosts"), {204: None}, may=(400, 404, 409)),
    Operation("PUT", f"{_HOST}/drain", hosts.drain_host, Needs("update", "hosts"), {200: "Host"}, may=(400, 404)),
    Operation("DELETE", f"{_HOST}/drain", hosts.undrain_host, Needs("update", "hosts"), {200: "Host"}, may=(400, 404)),
    Operation(
        "POST",
        f"{_HOST}/enrolments",
        enrolments.enrol_host,
        Needs("create", "hosts/enrolments"),
        {201: "Enrolment"},
        "EnrolmentPost",
        body_required=False,
        may=(*_BODY, 404),
    ),
    Operation(
        "DELETE", f"{_HOST}/key", enrolments.revoke_host_key, Needs("delete", "hosts/key"), {204: None}, may=(400, 404)
    ),
    Operation("POST", "/sign-in-links", sign_ins.create_sign_in_link, Needs("", ""), {201: "SignInLink"}, may=(400,)),
    Operation("POST", "/enrol", enrolments.enrol, None, {204: None}, "Enrol", may=(*_BODY, 401)),
    Operation(
        "GET",
        "/jobs",
        jobs.list_jobs,
        Needs("list", "runs", jobs.of_filter),
        {200: "JobList"},
        query=("id", "host", "schedule", "namespace", "kind", "status", "actor_kind", *_PAGE),
        may=(400,),
    ),
    Operation("GET", "/jobs/{id}", jobs.get_job, Needs("get", "runs", jobs.of_job), {200: "JobDetail"}, may=(400, 404)),
    Operation(
        "GET",
        "/jobs/{id}/log",
        jobs.get_job_log,
        Needs("get", "runs", jobs.of_job),
        {200: "LogList"},
        query=("last", *_PAGE),
        may=(400, 404),
    ),
    Operation(
        "POST",
        "/jobs/{id}/cancel",
        jobs.cancel_job,
        Needs("delete", "runs", jobs.of_job),
        {200: "Job"},
        may=(400, 404, 409),
    ),
    Operation(
        "POST",
        "/plan",
        plans.make_plan,
        Needs("", "plans"),
        {200: "Plan"},
        "PlanPost",
        may=_BODY,
    ),
    Operation(
        "GET",
        "/controllers",
        controllers.list_controllers,
        Needs("list", "schedules"),
        {200: "ControllerList"},
        query=_PAGE,
        may=(400,),
    ),
    Operation(
        "PUT",
        "/controllers/{name}",
        controllers.put_controller,
        Needs("update", "schedules"),
        {200: "Controller"},
        "ControllerPut",
        may=_BODY,
    ),
    Operation(
        "GET",
        "/audit",
        audit.list_audit,
        Needs("list", "auditlogs"),
        {200: "AuditList"},
        query=("object_kind", "object_name", *_PAGE),
        may=(400,),
    ),
    Operation(
        "GET",
        "/overview",
        overview.get_overview,
        Needs("list", _ALL, in_query),
        {200: "Overview"},
        query=("namespace",),
        may=(400,),
    ),
    Operation(
        "GET",
        "/fleet",
        overview.get_fleet,
        Needs("list", _ALL, in_query),
        {200: "Fleet"},
        query=("namespace", "labelSelector", "schedule", "state", "group", "days", *_PAGE),
        may=(400,),
    ),
)
