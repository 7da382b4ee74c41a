"""The operations of the API: each reads its request, has `control` change or `records` find, and answers.

Schedules and repositories have the shape of Kubernetes' objects, so that a manifest can be sent as it is; hosts, jobs
and the audit log are plain records. Each operation names what its caller must be allowed to, in the words of RBAC.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from msgspec import Meta, Raw, Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server import enrolment, records
from server.controllers import ControllerReport, Controllers, ControllerState
from server.dispatch import Dispatch
from server.enrolment import Enrolment
from server.identity import Permission, User
from server.models import ACTOR_KINDS, JOB_STATUSES, REPOSITORIES, SCHEDULES, Actor
from server.news import News
from server.problems import Conflict, Invalid, NotFound
from server.queue import LOOKS
from server.records import Row
from server.resources import API_VERSION, MAX_LABELS
from server.rest.conditions import condition, tag
from server.rest.reading import (
    Number,
    Query,
    bad_parameter,
    body,
    converted,
    cursor,
    has_body,
    invalid,
    json_response,
    object_body,
)
from server.restores import File, Question, Restores, Snapshot
from server.schema import MAX_ERRORS
from server.selectors import OWN_ID, is_dns_label, is_dns_name, label_errors, selector_errors
from server.specs import LabelSelector
from server.store import Store
from server.trouble import NAMED, Access, Coverage, repository_troubles, run_phase, schedule_troubles
from server.versions import Condition, host_version, resource_version
from wire.messages import HostName


class HostBody(Struct, forbid_unknown_fields=True):
    """What PUT says of a host: labels as Kubernetes allows them."""

    labels: Annotated[dict[str, str], Meta(max_length=MAX_LABELS)]


class RunFailure(Struct, frozen=True):
    """How a run failed on a host. `reason`: a word, where there is one."""

    host: str
    status: str
    reason: str | None
    error: str | None


class RunStatus(Struct, frozen=True, rename="camel"):
    """How far a run is: on how many hosts, and how many of them are in each state. `failures`: the first of them."""

    phase: Literal["Pending", "Running", "Succeeded", "Failed"]
    reason: str
    message: str
    failures: list[RunFailure]
    hosts: int
    pending: int
    running: int
    succeeded: int
    failed: int
    start_time: datetime | None
    completion_time: datetime | None


class RunBody(Struct, forbid_unknown_fields=True):
    """Which of its hosts a schedule is to run on; all of them when absent."""

    hosts: Annotated[list[Annotated[str, Meta(max_length=253)]], Meta(min_length=1, max_length=10_000)] | None = None


class RunPutBody(Struct, forbid_unknown_fields=True):
    """What a run is of, and on which of its hosts."""

    schedule: Annotated[str, Meta(max_length=253)]
    hostSelector: LabelSelector = LabelSelector()  # noqa: N815 - as in a Run's spec


class OfferBody(Struct, forbid_unknown_fields=True):
    """For how long a token to enrol a host is to be good."""

    expires_in_s: Annotated[int, Meta(ge=enrolment.SHORTEST_S, le=enrolment.LONGEST_S)] = enrolment.DEFAULT_S


class Offer(Struct, frozen=True):
    """A token to enrol a host with, told this once."""

    host: str
    token: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Offer(host={self.host!r})"


class EnrolBody(Struct, forbid_unknown_fields=True):
    """An agent's token, the host that it is, and the SHA-256 of the key that it will show from now on."""

    token: Annotated[str, Meta(max_length=256)]
    host: HostName
    key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

    def __repr__(self) -> str:
        return f"EnrolBody(host={self.host!r})"


BODIES: Mapping[str, type[Struct]] = {
    "HostPut": HostBody,
    "Run": RunBody,
    "RunPut": RunPutBody,
    "RunStatus": RunStatus,
    "Snapshot": Snapshot,
    "File": File,
    "EnrolmentPost": OfferBody,
    "Enrolment": Offer,
    "Enrol": EnrolBody,
    "ControllerPut": ControllerReport,
    "Controller": ControllerState,
}
"""Bodies by the name of their schema, beside those that the custom resource definitions describe."""


class ControlPlane(Protocol):
    """What changes go through: see `control.Control`. Each raises the problems that it finds."""

    @property
    def is_connected(self) -> Callable[[str], bool]:
        """Whether the host of this name has an agent that is connected."""

    @property
    def last_heard(self) -> Callable[[str], datetime | None]:
        """When a host that is connected last gave a sign of life."""

    news: News
    jobs: Dispatch
    controllers: Controllers

    def controller_states(self) -> list[ControllerState]:
        """How the controllers are that should be at work."""

    def told_of(self, name: str, left_out: Mapping[str, str]) -> Row:
        """What is told of a host beside its row."""

    async def coverage(self, schedule_ids: Collection[str]) -> Mapping[str, Coverage]:
        """On which hosts each of these schedules is, and how it is going there."""

    def access(self, repository_id: str) -> Access:
        """Whether a repository can be used."""

    def next_due(self, schedule_id: str) -> datetime | None:
        """When a schedule is due next."""

    def now(self) -> datetime:
        """The server's clock."""

    async def put_schedule(self, actor: Actor, manifest: object, condition: Condition) -> tuple[Row, bool]:
        """Create or change a schedule; the flag: it is new."""

    async def delete_schedule(self, actor: Actor, namespace: str, name: str, condition: Condition) -> None:
        """Delete a schedule."""

    async def put_repository(self, actor: Actor, manifest: object, condition: Condition) -> tuple[Row, bool]:
        """Create or change a repository; the flag: it is new."""

    async def delete_repository(self, actor: Actor, namespace: str, name: str, condition: Condition) -> None:
        """Delete a repository."""

    async def put_host(
        self, actor: Actor, name: str, labels: Mapping[str, str], condition: Condition
    ) -> tuple[Row, bool]:
        """Create a host or change its labels; the flag: it is new."""

    async def delete_host(self, actor: Actor, name: str, condition: Condition) -> None:
        """Delete a host."""

    async def run_now(self, actor: Actor, namespace: str, name: str, hosts: Sequence[str] | None) -> list[Row]:
        """Run a schedule once, now."""

    async def start_run(self, actor: Actor, namespace: str, name: str, run: str, selector: LabelSelector) -> Row:
        """Run a schedule once, now, under a name of its own."""

    async def cancel_job(self, actor: Actor, job_id: str) -> Row:
        """Have a job end."""


class Api:
    """The operations, on a control plane and the store that it writes."""

    def __init__(self, control: ControlPlane, store: Store, enrolment: Enrolment, restores: Restores) -> None:
        self._control = control
        self._restores = restores
        self._store = store
        self._enrolment = enrolment

    # Schedules.

    async def list_schedules(self, request: Request) -> Response:
        """List schedules, by namespace and name."""
        query = Query(request, "limit", "cursor")
        after, limit = query.after(tuple[str, str]), query.limit()
        rows = await self._store.read(records.list_resources, SCHEDULES, after, limit + 1)
        coverage = await self._control.coverage([row["id"] for row in rows])
        return _page(rows, limit, lambda row: self._schedule(row, coverage[row["id"]]), "namespace", "name")

    async def create_schedule(self, request: Request) -> Response:
        """Create a schedule."""
        Query(request)
        manifest = await object_body(request)
        row, _ = await self._control.put_schedule(_actor(request), manifest, _is_new(request, "Schedule"))
        return _created(request, row, await self._shown_schedule(row))

    async def get_schedule(self, request: Request) -> Response:
        """Read a schedule."""
        Query(request)
        row = await self._resource(request, "Schedule")
        return _versioned(await self._shown_schedule(row), _version(row))

    async def put_schedule(self, request: Request) -> Response:
        """Create a schedule, or make it what the manifest says; saying the same again changes nothing."""
        manifest = await _named_manifest(request)
        check = condition(request, manifest["metadata"].get("resourceVersion"))
        row, created = await self._control.put_schedule(_actor(request), manifest, check)
        return _versioned(await self._shown_schedule(row), _version(row), 201 if created else 200)

    async def delete_schedule(self, request: Request) -> Response:
        """Delete a schedule; its jobs stay."""
        Query(request)
        await self._control.delete_schedule(_actor(request), **request.path_params, condition=condition(request))
        return Response(status_code=204)

    async def run_schedule(self, request: Request) -> Response:
        """Run a schedule once, now, on all of its hosts or on some."""
        Query(request)
        wanted = converted(await body(request), RunBody) if has_body(request) else RunBody()
        rows = await self._control.run_now(_actor(request), **request.path_params, hosts=wanted.hosts)
        return json_response({"items": [self._shown_job(row) for row in rows], "next": None}, 201)

    # Runs.

    async def put_run(self, request: Request) -> Response:
        """Run a schedule once, now, under this id; asked for again, it is the same run."""
        Query(request)
        namespace, run = request.path_params["namespace"], _own_id(request)
        given = await object_body(request)
        if errors := list(islice(selector_errors(given.get("hostSelector"), "hostSelector"), MAX_ERRORS)):
            raise Invalid("the Run is not valid", errors)
        wanted = converted(given, RunPutBody)
        selector = wanted.hostSelector
        row = await self._control.start_run(_actor(request), namespace, wanted.schedule, run, selector)
        return json_response(await self._run(row, namespace, run))

    async def get_run(self, request: Request) -> Response:
        """Read how far a run is; one that is not known is on no host, and has failed."""
        Query(request)
        namespace, run = request.path_params["namespace"], _own_id(request)
        row = await self._store.read(records.run_status, f"{namespace}/{run}")
        return json_response(await self._run(row, namespace, run))

    async def _run(self, row: Row, namespace: str, run: str) -> Row:
        """How far a run is, and why it failed on the first of its hosts."""
        phase, reason, message = run_phase(row)
        failures = await self._store.read(records.run_failures, f"{namespace}/{run}", NAMED) if row["failed"] else []
        return {"phase": phase, "reason": reason, "message": message, "failures": failures, **row}

    # Restores.

    async def put_restore(self, request: Request) -> Response:
        """Restore what a Restore says, once; under the same id it is the same restore. Answers its job."""
        Query(request)
        namespace, name = request.path_params["namespace"], _own_id(request)
        manifest = await object_body(request)
        metadata = {"namespace": namespace, "name": name}
        row = await self._restores.restore(_actor(request), {**manifest, "metadata": metadata})
        return json_response(self._shown_job(row))

    async def get_restore(self, request: Request) -> Response:
        """Read the job of a restore."""
        Query(request)
        row = await self._restores.get(request.path_params["namespace"], _own_id(request))
        return json_response(self._shown_job(row))

    async def list_snapshots(self, request: Request) -> Response:
        """List the snapshots in a repository, newest first, as a host that is connected finds them."""
        query = Query(request, "host", "limit", "cursor")
        question = Question(**request.path_params, host=query.text("host") or "")
        return await self._look(request, query, question)

    async def list_files(self, request: Request) -> Response:
        """List what a folder of a snapshot holds, as a host that is connected finds it."""
        query = Query(request, "host", "path", "limit", "cursor")
        names = dict(request.path_params)
        snapshot = names.pop("snapshot")
        path = query.text("path") or "/"
        question = Question(**names, host=query.text("host") or "", snapshot=snapshot, path=path)
        return await self._look(request, query, question)

    async def _look(self, request: Request, query: Query, question: Question) -> Response:
        after, limit = query.after(tuple[str, Number]), query.limit()
        page = await self._restores.look(_actor(request), question, limit, after)
        next_ = None if page.after is None else cursor(page.after)
        return json_response({"items": page.items, "next": next_, "truncated": page.truncated})

    # News.

    async def listen(self, request: Request) -> Response:
        """Listen, by server-sent events, to which kinds change."""
        Query(request)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(self._control.news.stream(), 200, headers, "text/event-stream")

    # Repositories.

    async def list_repositories(self, request: Request) -> Response:
        """List repositories, by namespace and name."""
        query = Query(request, "limit", "cursor")
        after, limit = query.after(tuple[str, str]), query.limit()
        rows = await self._store.read(records.list_resources, REPOSITORIES, after, limit + 1)
        return _page(rows, limit, self._repository, "namespace", "name")

    async def create_repository(self, request: Request) -> Response:
        """Create a repository. Its `credentials` can be written, and are never told."""
        Query(request)
        manifest = await object_body(request)
        row, _ = await self._control.put_repository(_actor(request), manifest, _is_new(request, "Repository"))
        return _created(request, row, self._repository(row))

    async def get_repository(self, request: Request) -> Response:
        """Read a repository, without its credentials."""
        Query(request)
        row = await self._resource(request, "Repository")
        return _versioned(self._repository(row), _version(row))

    async def put_repository(self, request: Request) -> Response:
        """Create a repository, or make it what the manifest says; saying the same again changes nothing."""
        manifest = await _named_manifest(request)
        check = condition(request, manifest["metadata"].get("resourceVersion"))
        row, created = await self._control.put_repository(_actor(request), manifest, check)
        return _versioned(self._repository(row), _version(row), 201 if created else 200)

    async def delete_repository(self, request: Request) -> Response:
        """Delete a repository's declaration; what is stored in it stays."""
        Query(request)
        await self._control.delete_repository(_actor(request), **request.path_params, condition=condition(request))
        return Response(status_code=204)

    # Hosts.

    async def list_hosts(self, request: Request) -> Response:
        """List hosts, by name."""
        query = Query(request, "limit", "cursor")
        after, limit = query.after(str), query.limit()
        rows = await self._store.read(records.list_hosts, after, limit + 1)
        return _page(rows, limit, self._host, "name")

    async def get_host(self, request: Request) -> Response:
        """Read a host."""
        Query(request)
        row = await self._host_row(request.path_params["name"])
        return _versioned(self._host(row), host_version(row["labels"]))

    async def put_host(self, request: Request) -> Response:
        """Make a host known, or give it these labels in place of those it had."""
        Query(request)
        given = await object_body(request)
        if errors := list(islice(label_errors(given.get("labels"), "labels"), MAX_ERRORS)):
            raise Invalid("the request is not allowed", errors)
        wanted = converted(given, HostBody)
        actor, name = _actor(request), request.path_params["name"]
        row, created = await self._control.put_host(actor, name, wanted.labels, condition(request))
        return _versioned(self._host(row), host_version(row["labels"]), 201 if created else 200)

    async def delete_host(self, request: Request) -> Response:
        """Forget a host; its jobs stay. One that has a key loses it, and the connection that it opened."""
        Query(request)
        actor, name = _actor(request), request.path_params["name"]
        check = condition(request)
        check(host_version((await self._host_row(name))["labels"]))
        with suppress(NotFound):
            await self._enrolment.revoke(actor, name)
        await self._control.delete_host(actor, name, check)
        return Response(status_code=204)

    async def enrol_host(self, request: Request) -> Response:
        """Make a token with which this host's agent can register a key of its own, once."""
        Query(request)
        wanted = converted(await body(request), OfferBody) if has_body(request) else OfferBody()
        name = request.path_params["name"]
        token, expires_at = await self._enrolment.offer(_actor(request), name, wanted.expires_in_s)
        return json_response(Offer(name, token, expires_at), 201, {"Cache-Control": "no-store"})

    async def enrol(self, request: Request) -> Response:
        """Register a host's key. The token in the body is all that is needed; the same again changes nothing."""
        Query(request)
        given = converted(await object_body(request), EnrolBody)
        await self._enrolment.exchange(given.token, given.host, given.key_sha256)
        return Response(status_code=204)

    async def revoke_host_key(self, request: Request) -> Response:
        """Have a host's key be good no more, and end the connection that it opened. A condition is about the host."""
        Query(request)
        name, check = request.path_params["name"], condition(request)
        check(host_version((await self._host_row(name))["labels"]))
        await self._enrolment.revoke(_actor(request), name)
        return Response(status_code=204)

    # Jobs.

    async def list_jobs(self, request: Request) -> Response:
        """List jobs, newest first; looks into repositories only where they are asked for by id or kind."""
        query = Query(request, "id", "host", "schedule", "kind", "status", "actor_kind", "limit", "cursor")
        after, limit = query.after(tuple[datetime, str]), query.limit()
        if after is not None and after[0].utcoffset() != timedelta():
            raise bad_parameter("cursor", "must be the `next` of an earlier page, as it was given")
        given = {
            "host": query.text("host"),
            "scheduled_id": await self._schedule_id(query.text("schedule")),
            "kind": query.text("kind"),
            "status": query.one_of("status", JOB_STATUSES),
            "actor_kind": query.one_of("actor_kind", ACTOR_KINDS),
        }
        filters = {name: value for name, value in given.items() if value is not None}
        id_ = query.text("id") or ""
        leave_out = () if id_ or "kind" in filters else LOOKS
        rows = await self._store.read(records.list_jobs, filters, after, limit + 1, id_, leave_out)
        return _page(rows, limit, self._shown_job, "created_at", "id")

    async def get_job(self, request: Request) -> Response:
        """Read a job, with its attempts."""
        Query(request)
        row = await self._job(request)
        before = await self._store.read(records.list_attempts, row["id"])
        last = {name: row[name] for name in ATTEMPT}
        return json_response({**self._shown_job(row), "attempts": [*before, last]})

    async def get_job_log(self, request: Request) -> Response:
        """Read what restic wrote for people, line by line."""
        query = Query(request, "limit", "cursor")
        after, limit = query.after(Number) or 0, query.limit()
        job = await self._job(request)
        rows = await self._store.read(records.list_log, job["id"], after, limit + 1)
        return _page(rows, limit, dict, "seq")

    async def cancel_job(self, request: Request) -> Response:
        """Have a job end as cancelled."""
        Query(request)
        row = await self._control.cancel_job(_actor(request), request.path_params["id"])
        return json_response(self._shown_job(row))

    # The audit log.

    async def list_audit(self, request: Request) -> Response:
        """List who changed what, newest first."""
        query = Query(request, "limit", "cursor")
        before, limit = query.after(Number), query.limit()
        rows = await self._store.read(records.list_audit, before, limit + 1)
        return _page(rows, limit, dict, "id")

    # Controllers.

    async def list_controllers(self, request: Request) -> Response:
        """List the controllers of folders, and what keeps each from following its own."""
        query = Query(request, "limit", "cursor")
        after, limit = query.after(str), query.limit()
        states = [asdict(it) for it in self._control.controller_states() if it.name > (after or "")]
        return _page(states, limit, lambda row: row, "name")

    async def put_controller(self, request: Request) -> Response:
        """Say what keeps a controller from following its folder; it does so at least once a minute."""
        Query(request)
        name = request.path_params["name"]
        if not is_dns_name(name):
            raise invalid({"name": "must be like a DNS name: lower case letters, digits, '-' and '.'"})
        report = converted(await object_body(request), ControllerReport)
        condition(request)(None)
        return json_response(self._control.controllers.report(name, report))

    # Which object a request is about, as (namespace, name).

    async def in_path(self, request: Request) -> tuple[str, str]:
        """The object that the path names."""
        return request.path_params.get("namespace", ""), request.path_params.get("name", "")

    async def in_namespace(self, request: Request) -> tuple[str, str]:
        """Something in the namespace of what the path names."""
        return request.path_params["namespace"], ""

    async def in_body(self, request: Request) -> tuple[str, str]:
        """What the manifest in the body is to become; where it cannot be read, no namespace in particular."""
        metadata = (await object_body(request)).get("metadata")
        namespace = metadata.get("namespace", "") if isinstance(metadata, dict) else ""
        return (namespace or "default", "") if isinstance(namespace, str) else ("", "")

    async def of_filter(self, request: Request) -> tuple[str, str]:
        """The jobs of the schedule that the query names as NAMESPACE/NAME, or all."""
        namespace, slash, _ = request.query_params.get("schedule", "").partition("/")
        return (namespace if slash else ""), ""

    async def of_job(self, request: Request) -> tuple[str, str]:
        """A job of a schedule, or on a repository; where that is gone, no namespace in particular."""
        return await self._store.read(records.job_namespace, request.path_params["id"]) or "", ""

    # What they share.

    async def _resource(self, request: Request, kind: str) -> Row:
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        row = await self._store.read(records.get_resource, _TABLES[kind], namespace, name)
        if row is None:
            raise NotFound(f"there is no {kind} {namespace}/{name}")
        return row

    async def _host_row(self, name: str) -> Row:
        row = await self._store.read(records.get_host, name)
        if row is None:
            raise NotFound(f"there is no host {name!r}")
        return row

    async def _job(self, request: Request) -> Row:
        job_id = request.path_params["id"]
        row = await self._store.read(records.get_job, job_id)
        if row is None:
            raise NotFound(f"there is no job {job_id!r}")
        return row

    async def _schedule_id(self, named: str | None) -> str | None:
        """The id of the schedule that a filter names as NAMESPACE/NAME, or by its id, which works once it is gone."""
        if named is None or "/" not in named:
            return named
        namespace, _, name = named.partition("/")
        row = await self._store.read(records.get_resource, SCHEDULES, namespace, name)
        if row is None:
            raise bad_parameter("schedule", f"there is no Schedule {named}; one that was deleted is found by its uid")
        id_: str = row["id"]
        return id_

    async def _shown_schedule(self, row: Row) -> dict[str, object]:
        return self._schedule(row, (await self._control.coverage([row["id"]]))[row["id"]])

    def _schedule(self, row: Row, covers: Coverage) -> dict[str, object]:
        counts = {"hosts": covers.hosts, "hostsInSync": covers.in_sync, "hostsFailed": covers.failed}
        named = {"outOfSync": covers.behind, "failed": covers.failing, "hostsNotGranted": covers.not_granted}
        counts |= {"hostsOverdue": covers.late, "hostsWithoutSuccess": covers.unproven}
        named |= {"overdue": covers.overdue, "successWithinSeconds": int(covers.within.total_seconds())}
        counts["hostsRefusingHooks"] = len(set().union(*covers.refused_hooks.values()))
        troubles = [it._asdict() for it in schedule_troubles(covers)]
        due = {"lastScheduleTime": row.get("last_due"), "nextScheduleTime": self._control.next_due(row["id"])}
        times = {**due, "oldestSuccessTime": covers.oldest}
        known = {name: at for name, at in times.items() if at is not None}
        return _object("Schedule", row, {**counts, **named, **known, "problems": troubles})

    def _repository(self, row: Row) -> dict[str, object]:
        health = self._control.jobs.health
        problem, verified = health.problem(row["id"]), health.verified(row["id"])
        days = row["spec"].get("verifyWithinDays")
        access, now = self._control.access(row["id"]), self._control.now()
        troubles = repository_troubles(access, problem, days, verified, row["created_at"], now)
        known = {"problem": problem._asdict() if problem else None, "lastVerified": verified}
        status: dict[str, object] = {name: it for name, it in known.items() if it is not None}
        return _object("Repository", row, {**status, "problems": [it._asdict() for it in troubles]})

    def _shown_job(self, row: Row) -> dict[str, object]:
        jobs = self._control.jobs
        now = {"waits_for": jobs.waits_for(row["id"]) or None, "progress": jobs.progress_of(row["id"])}
        now |= {"problem": jobs.problem_of(row["id"]) or None}
        return {**row, "command": Raw(row["command"].encode()), **now}

    def _host(self, row: Row) -> dict[str, object]:
        in_sync = (row["desired_version"], row["desired_digest"]) == (row["applied_version"], row["applied_digest"])
        left_out = row["left_out"] or {}
        row = {**row, "last_seen": self._control.last_heard(row["name"]) or row["last_seen"]}
        told = self._control.told_of(row["name"], left_out.get("reasons", {}))
        now = {"connected": self._control.is_connected(row["name"]), "in_sync": in_sync and not left_out}
        return {**row, **now, **told}


ATTEMPT = ("attempt", "status", "started_at", "finished_at", "exit_code", "snapshot_id", "error", "reason")
"""What is told of each attempt of a job."""
_TABLES = {"Schedule": SCHEDULES, "Repository": REPOSITORIES}


def _is_new(request: Request, kind: str) -> Condition:
    """What a POST demands: nothing is there yet. It is asked where nobody can come between."""
    also = condition(request)

    def check(version: str | None) -> None:
        if version is not None:
            raise Conflict(f"there is a {kind} of this name: change it with PUT")
        also(version)

    return check


def _version(row: Row) -> str:
    return resource_version(row["id"], row["generation"])


def _versioned(shown: dict[str, object], version: str, status: int = 200) -> Response:
    """One object, with the tag by which it can be changed."""
    answer = json_response(shown, status)
    answer.headers["etag"] = tag(bytes(answer.body), version)
    return answer


def _created(request: Request, row: Row, shown: dict[str, object]) -> Response:
    """The answer to a POST."""
    answer = _versioned(shown, _version(row), 201)
    answer.headers["location"] = f"{request.url.path.rstrip('/')}/{row['namespace']}/{row['name']}"
    return answer


def _actor(request: Request) -> Actor:
    user: User = request.state.user
    return user.actor


async def _named_manifest(request: Request) -> dict[str, Any]:
    """The manifest in the body, with the names of the path, which it may repeat but not contradict."""
    Query(request)
    manifest = await object_body(request)
    metadata = manifest.get("metadata", {})
    if not isinstance(metadata, dict):
        raise invalid({"metadata": "must be an object"})
    for key, value in request.path_params.items():
        if metadata.get(key, value) != value:
            raise invalid({f"metadata.{key}": f"must be {value!r}, as the path says"})
    return {**manifest, "metadata": {**metadata, **request.path_params}}


def _page(rows: list[Row], limit: int, show: Callable[[Row], object], *key: str) -> Response:
    """A page of `limit` rows; one row more than that stands for the pages that follow."""
    shown = rows[:limit]
    more = len(rows) > limit
    values = [shown[-1][name] for name in key] if more else []
    next_ = cursor(values if len(key) > 1 else values[0]) if more else None
    return json_response({"items": [show(row) for row in shown], "next": next_})


def _object(kind: str, row: Row, status: Mapping[str, object]) -> dict[str, object]:
    """A row in the shape of a Kubernetes object."""
    metadata = {
        "namespace": row["namespace"],
        "name": row["name"],
        "uid": row["id"],
        "generation": row["generation"],
        "resourceVersion": _version(row),
        "labels": row["labels"],
        "creationTimestamp": row["created_at"],
    }
    status = {"observedGeneration": row["generation"], **status}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": row["spec"], "status": status}


def _own_id(request: Request) -> str:
    run: str = request.path_params["id"]
    if not OWN_ID.fullmatch(run):
        raise invalid({"id": "must be 1 to 40 lower case letters, digits and '-', such as a uid"})
    if not is_dns_label(request.path_params["namespace"]):
        raise invalid({"namespace": "must be a namespace's name: at most 63 lower case letters, digits and '-'"})
    return run


class Needs(NamedTuple):
    """What a caller must be allowed to: each of the verbs, set apart by spaces, on the resource. `about`: which one."""

    verbs: str
    resource: str
    about: Callable[[Api, Request], Awaitable[tuple[str, str]]] = Api.in_path


class Operation(NamedTuple):
    """One operation as it is routed and described. Names of schemas are those of `openapi`.

    `needs`: None where no one need say who they are. `takes` is the body's; `answers` by status, None for no body;
    `may` are the problems beside the general ones.
    """

    method: str
    path: str
    handler: Callable[[Api, Request], Awaitable[Response]]
    needs: Needs | None
    answers: Mapping[int, str | None]
    takes: str | None = None
    body_required: bool = True
    query: Sequence[str] = ()
    may: Sequence[int] = ()

    async def permissions(self, api: Api, request: Request) -> list[Permission]:
        """What the caller of this request must be allowed to. Raises what reading the request does."""
        if self.needs is None:
            return []
        about = await self.needs.about(api, request)
        return [Permission(verb, self.needs.resource, *about) for verb in self.needs.verbs.split()]


_PAGE = ("limit", "cursor")
_BODY = (400, 413, 415, 422)
_LOOK = (400, 404, 409, 422, 502, 504)
_RUN, _RESTORE = "/runs/{namespace}/{id}", "/restores/{namespace}/{id}"
_SCHEDULE, _REPOSITORY, _HOST = "/schedules/{namespace}/{name}", "/repositories/{namespace}/{name}", "/hosts/{name}"

OPERATIONS: Sequence[Operation] = (
    Operation(
        "GET",
        "/schedules",
        Api.list_schedules,
        Needs("list", "schedules"),
        {200: "ScheduleList"},
        query=_PAGE,
        may=(400,),
    ),
    Operation(
        "POST",
        "/schedules",
        Api.create_schedule,
        Needs("create", "schedules", Api.in_body),
        {201: "Schedule"},
        "SchedulePost",
        may=(*_BODY, 409),
    ),
    Operation("GET", _SCHEDULE, Api.get_schedule, Needs("get", "schedules"), {200: "Schedule"}, may=(400, 404)),
    Operation(
        "PUT",
        _SCHEDULE,
        Api.put_schedule,
        Needs("create update", "schedules"),
        {200: "Schedule", 201: "Schedule"},
        "Schedule",
        may=(*_BODY, 409),
    ),
    Operation("DELETE", _SCHEDULE, Api.delete_schedule, Needs("delete", "schedules"), {204: None}, may=(400, 404)),
    Operation(
        "POST",
        f"{_SCHEDULE}/run",
        Api.run_schedule,
        Needs("create", "runs", Api.in_namespace),
        {201: "JobList"},
        "Run",
        body_required=False,
        may=(*_BODY, 404, 409),
    ),
    Operation(
        "GET",
        "/repositories",
        Api.list_repositories,
        Needs("list", "repositories"),
        {200: "RepositoryList"},
        query=_PAGE,
        may=(400,),
    ),
    Operation(
        "POST",
        "/repositories",
        Api.create_repository,
        Needs("create", "repositories", Api.in_body),
        {201: "Repository"},
        "RepositoryPost",
        may=(*_BODY, 409),
    ),
    Operation(
        "GET", _REPOSITORY, Api.get_repository, Needs("get", "repositories"), {200: "Repository"}, may=(400, 404)
    ),
    Operation(
        "PUT",
        _REPOSITORY,
        Api.put_repository,
        Needs("create update", "repositories"),
        {200: "Repository", 201: "Repository"},
        "RepositoryPut",
        may=(*_BODY, 409),
    ),
    Operation(
        "DELETE", _REPOSITORY, Api.delete_repository, Needs("delete", "repositories"), {204: None}, may=(400, 404, 409)
    ),
    Operation(
        "PUT",
        _RUN,
        Api.put_run,
        Needs("create", "runs", Api.in_namespace),
        {200: "RunStatus"},
        "RunPut",
        may=(*_BODY, 404),
    ),
    Operation("GET", _RUN, Api.get_run, Needs("get", "runs", Api.in_namespace), {200: "RunStatus"}, may=(400, 422)),
    Operation(
        "PUT",
        _RESTORE,
        Api.put_restore,
        Needs("create", "restores", Api.in_namespace),
        {200: "Job"},
        "RestorePut",
        may=(*_BODY, 404, 409),
    ),
    Operation(
        "GET", _RESTORE, Api.get_restore, Needs("get", "restores", Api.in_namespace), {200: "Job"}, may=(400, 404, 422)
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/snapshots",
        Api.list_snapshots,
        Needs("get", "repositories/snapshots"),
        {200: "SnapshotList"},
        query=("host", *_PAGE),
        may=_LOOK,
    ),
    Operation(
        "GET",
        f"{_REPOSITORY}/snapshots/{{snapshot}}/files",
        Api.list_files,
        Needs("get", "repositories/snapshots"),
        {200: "FileList"},
        query=("host", "path", *_PAGE),
        may=_LOOK,
    ),
    Operation("GET", "/news", Api.listen, Needs("list", "schedules"), {200: "Events"}, may=(400,)),
    Operation("GET", "/hosts", Api.list_hosts, Needs("list", "hosts"), {200: "HostList"}, query=_PAGE, may=(400,)),
    Operation("GET", _HOST, Api.get_host, Needs("get", "hosts"), {200: "Host"}, may=(400, 404)),
    Operation(
        "PUT", _HOST, Api.put_host, Needs("create update", "hosts"), {200: "Host", 201: "Host"}, "HostPut", may=_BODY
    ),
    Operation("DELETE", _HOST, Api.delete_host, Needs("delete", "hosts"), {204: None}, may=(400, 404, 409)),
    Operation(
        "POST",
        f"{_HOST}/enrolments",
        Api.enrol_host,
        Needs("create", "hosts/enrolments"),
        {201: "Enrolment"},
        "EnrolmentPost",
        body_required=False,
        may=(*_BODY, 404),
    ),
    Operation("DELETE", f"{_HOST}/key", Api.revoke_host_key, Needs("delete", "hosts/key"), {204: None}, may=(400, 404)),
    Operation("POST", "/enrol", Api.enrol, None, {204: None}, "Enrol", may=(*_BODY, 401)),
    Operation(
        "GET",
        "/jobs",
        Api.list_jobs,
        Needs("list", "runs", Api.of_filter),
        {200: "JobList"},
        query=("id", "host", "schedule", "kind", "status", "actor_kind", *_PAGE),
        may=(400,),
    ),
    Operation("GET", "/jobs/{id}", Api.get_job, Needs("get", "runs", Api.of_job), {200: "JobDetail"}, may=(400, 404)),
    Operation(
        "GET",
        "/jobs/{id}/log",
        Api.get_job_log,
        Needs("get", "runs", Api.of_job),
        {200: "LogList"},
        query=_PAGE,
        may=(400, 404),
    ),
    Operation(
        "POST",
        "/jobs/{id}/cancel",
        Api.cancel_job,
        Needs("delete", "runs", Api.of_job),
        {200: "Job"},
        may=(400, 404, 409),
    ),
    Operation(
        "GET",
        "/controllers",
        Api.list_controllers,
        Needs("list", "schedules"),
        {200: "ControllerList"},
        query=_PAGE,
        may=(400,),
    ),
    Operation(
        "PUT",
        "/controllers/{name}",
        Api.put_controller,
        Needs("update", "schedules"),
        {200: "Controller"},
        "ControllerPut",
        may=_BODY,
    ),
    Operation("GET", "/audit", Api.list_audit, Needs("list", "auditlogs"), {200: "AuditList"}, query=_PAGE, may=(400,)),
)
