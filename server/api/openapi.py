"""The OpenAPI 3.1 document, generated from the table of operations and the schemas of the CRDs."""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from sqlalchemy import JSON, BigInteger, Boolean, Column, Integer, Table

import server
from server.api.hosts import HIDDEN
from server.api.operations import Operation
from server.errors import MEDIA_TYPE
from server.observe.fleet import DAYS, GOOD_STATE, STATES
from server.observe.host_days import MAX_DAYS
from server.resources import selectors
from server.resources.manifests import API_VERSION, HOST, MAX_LABELS, MAX_SECRET, MAX_URL, MAX_URLS, METADATA
from server.resources.schema import definition
from server.resources.targets import MAX_TARGET, MAX_TARGETS
from server.store.queue import COLUMNS as QUEUE_COLUMNS
from server.store.tables import ACTOR_KINDS, AUDIT, HOSTS, JOB_ATTEMPTS, JOB_LOGS, JOB_STATUSES, JOBS, UtcDateTime
from wire.variables import ALLOWED

Schema = dict[str, Any]

_NAME: Schema = {"type": "string", "maxLength": 253, "pattern": f"^{selectors.DNS.pattern}$"}
_NAMESPACE: Schema = {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_OWN_ID: Schema = {"type": "string", "pattern": f"^{selectors.OWN_ID.pattern}$"}
_SNAPSHOT: Schema = {"type": "string", "pattern": "^(latest|[0-9a-f]{4,64})$"}
_IN_PATH: Mapping[str, Schema] = {"namespace": _NAMESPACE, "name": _NAME, "snapshot": _SNAPSHOT}
_PARAMETERS: Mapping[str, Schema] = {
    "hours": {
        "description": "How many hours; 24 by default.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 48},
    },
    "last": {
        "description": "Only the last lines, so many.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 500},
    },
    "limit": {"description": "Maximum items of a page.", "schema": {"type": "integer", "minimum": 1, "maximum": 500}},
    "cursor": {"description": "The `next` of the previous page.", "schema": {"type": "string"}},
    "id": {"description": "Only jobs whose id begins with this.", "schema": {"type": "string"}},
    "host": {"description": "Only jobs or snapshots of this host.", "schema": {"type": "string"}},
    "schedule": {
        "description": "Only jobs or hosts of the schedule NAMESPACE/NAME, or jobs of the one with this uid.",
        "schema": {"type": "string"},
    },
    "namespace": {"description": "Only what is in this namespace.", "schema": {"type": "string"}},
    "labelSelector": {
        "description": "Only what has these labels, as `kubectl -l` takes it: tier=db,env!=test,zone in (a,b),!spare.",
        "schema": {"type": "string", "pattern": selectors.SELECTOR},
    },
    "kind": {"description": "Only jobs of this kind.", "schema": {"type": "string"}},
    "object_kind": {"description": "Only lines about objects of this kind.", "schema": {"type": "string"}},
    "object_name": {
        "description": "Only lines about this object: NAME or NAMESPACE/NAME.",
        "schema": {"type": "string"},
    },
    "name": {
        "description": "A part of the file's name, or a pattern of it with * and ?.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "path": {"description": "The folder or file; / by default.", "schema": {"type": "string"}},
    "status": {"description": "Only jobs with this status.", "schema": {"enum": list(JOB_STATUSES)}},
    "state": {"description": "Only hosts in this state.", "schema": {"enum": [*STATES, GOOD_STATE]}},
    "in_force": {
        "description": "Only entries that are in force on the host as they are declared, or only the others.",
        "schema": {"enum": ["true", "false"]},
    },
    "group": {"description": "The label by which hosts are grouped.", "schema": {"type": "string"}},
    "days": {
        "description": f"How many days, up to today (UTC); {DAYS} by default.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_DAYS},
    },
    "actor_kind": {"description": "Only jobs caused by this kind of actor.", "schema": {"enum": list(ACTOR_KINDS)}},
}


def document(operations: Sequence[Operation], bodies: Mapping[str, type[msgspec.Struct]], prefix: str) -> Schema:
    """The OpenAPI document of these operations and bodies, served under `prefix`."""
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(prefix + operation.path, {})[operation.method.lower()] = _operation(operation)
    for path, summary in (
        ("/healthz", "Whether the process is alive."),
        ("/readyz", "Whether the store can be written."),
    ):
        paths[path] = {"get": _probe(summary)}
    paths["/openapi.json"] = {"get": _probe("This document.", "application/json")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lamplighter", "version": server.__version__, "license": {"name": "Apache-2.0"}},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _bodies(bodies) | _schemas() | {"HostPut": _HOST},
        },
    }


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.handler.__name__,
        "summary": (inspect.getdoc(operation.handler) or "").partition("\n")[0],
        "responses": {
            **{str(status): _answer(status, schema) for status, schema in operation.answers.items()},
            **({"304": {"description": "Not Modified"}} if operation.method == "GET" else {}),
            **{str(status): _problem(status) for status in sorted({*operation.may, *_general(operation)})},
        },
    }
    if operation.needs is None:
        described["security"] = []
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.takes is not None:
        content = {"application/json": {"schema": _ref(operation.takes)}}
        described["requestBody"] = {"required": operation.body_required, "content": content}
    return described


def _general(operation: Operation) -> tuple[int, ...]:
    """The statuses of problems that every operation of this form may answer."""
    known = () if operation.needs is None else (401, 403)
    placed = (404,) if "{" in operation.path else ()
    read = () if operation.takes is None else (408,)
    conditional = (400, 412) if operation.method != "POST" and operation.needs is not None else ()
    return (*known, *placed, *read, *conditional, 500, 503)


def _parameters(operation: Operation) -> list[Schema]:
    names = re.findall(r"{(\w+)}", operation.path)
    own = {"id": _OWN_ID} if operation.path.startswith(("/runs/", "/restores/")) else {}
    schemas = {**{it: {"type": "string"} for it in names}, **_IN_PATH, **own}
    in_path = [{"name": it, "in": "path", "required": True, "schema": schemas[it]} for it in names]
    return in_path + [{"name": name, "in": "query", **_PARAMETERS[name]} for name in operation.query]


def _answer(status: int, schema: str | None) -> Schema:
    described: Schema = {"description": HTTPStatus(status).phrase}
    if schema is not None:
        described["content"] = {_MEDIA_TYPES.get(schema, "application/json"): {"schema": _ref(schema)}}
    return described


def _problem(status: int) -> Schema:
    return {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _ref("Problem")}}}


def _probe(summary: str, media_type: str = "text/plain") -> Schema:
    answer = {"description": "OK", "content": {media_type: {}}}
    return {"summary": summary, "security": [], "responses": {"200": answer}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> dict[str, Schema]:
    """The schemas that operations name: of custom resources, of plain records, and of lists of both."""
    crds = _crd_schemas()
    seen: Schema = {
        "connected": {"type": "boolean"},
        "in_sync": {"type": "boolean"},
        "left_out": _list_of("What the host holds and could not put in force.", "schedule", "reason"),
        "schedules": {"type": "integer", "description": "How many enabled Schedules it has."},
        "clock_skew_seconds": {
            "type": ["number", "null"],
            "description": "Seconds by which its clock was ahead of the server's, when it last reported.",
        },
        "problems": _list_of("What is wrong with its agent.", "reason", "message"),
        "max_concurrent_jobs": {
            "type": ["integer", "null"],
            "description": "How many jobs it runs at once, by its spec or its agent's option; null for any number.",
        },
        "drain": {"anyOf": [_ref("HostDrain"), {"type": "null"}]},
    }
    status: Schema = {"enum": list(JOB_STATUSES)}
    waits: Schema = {"type": ["string", "null"], "description": "What the job waits for, in words."}
    problem: Schema = {"type": ["string", "null"], "description": "What is wrong with the running job, in words."}
    named: Schema = {
        "schedule": {"type": ["string", "null"], "description": "NAMESPACE/NAME of its Schedule, while that exists."},
        "repository": {"type": ["string", "null"], "description": "NAMESPACE/NAME of its Repository, likewise."},
    }
    now = {**named, "waits_for": waits, "progress": _PROGRESS, "problem": problem}
    job = _record(JOBS, {"command": {"type": "object"}, "status": status, **now}, leave_out=QUEUE_COLUMNS)
    attempt = _record(JOB_ATTEMPTS, {"status": status}, leave_out=("job_id",))
    attempt["properties"]["finished_at"] = {**attempt["properties"]["finished_at"], "type": ["string", "null"]}
    attempts = {"type": "array", "items": attempt, "description": "All attempts in order; the last is the current one."}
    repository = _with(crds["Repository"], credentials=_CREDENTIALS)
    schedule = _with(crds["Schedule"], credentials=_SCHEDULE_CREDENTIALS)
    alert = _with(crds["Alert"], credentials=_ALERT_CREDENTIALS)
    schemas = {
        **crds,
        "RepositoryPut": repository,
        "AlertPut": alert,
        "SchedulePut": schedule,
        "SchedulePost": _posted(schedule),
        "RepositoryPost": _posted(repository),
        "AlertPost": _posted(alert),
        "Host": _record(HOSTS, seen, leave_out=HIDDEN),
        "Job": job,
        "JobDetail": {
            "allOf": [job, {"type": "object", "properties": {"attempts": attempts}, "required": ["attempts"]}]
        },
        "LogLine": _record(JOB_LOGS, {}, leave_out=("job_id", "total_bytes")),
        "Audit": _record(AUDIT, {}),
        "RestorePut": _restore(),
        "SnapshotList": _listing("Snapshot"),
        "FileList": _listing("File"),
        "ControllerList": _list("Controller"),
        "HostEntryList": _list("HostEntry"),
        "PastDayList": _list("PastDay"),
        "HostContentsList": _list("HostContents"),
        "Lane": _LANE,
        "Problem": _PROBLEM,
        "Events": {"type": "string", "description": 'Server-sent events: {"changed": ["schedules", …]}.'},
    }
    lists = {"Schedule": "", "Repository": "", "Alert": "", "Host": "", "Job": "", "Audit": "", "LogLine": "LogList"}
    return schemas | {plural or f"{name}List": _list(name) for name, plural in lists.items()}


def _crd_schemas() -> dict[str, Schema]:
    """The schemas of the custom resources served here, by kind. They are as in crds/, and allow no other fields."""
    found = [definition(name) for name in _SERVED]
    kinds = [(crd["names"]["kind"], crd["versions"][0]["schema"]["openAPIV3Schema"]) for crd in found]
    return {kind: _object(kind, schema) for kind, schema in kinds}


def _object(kind: str, schema: Schema) -> Schema:
    """The schema of a manifest of this kind. In answers, its status may have more fields than in the cluster."""
    fields = schema["properties"]
    known = {"metadata": _METADATA, "spec": _closed(fields["spec"]), "status": {"type": ["object", "null"]}}
    known |= {"apiVersion": {"enum": [API_VERSION]}, "kind": {"enum": [kind]}}
    return {**schema, "properties": {**fields, **known}, "additionalProperties": False}


def _with(manifest: Schema, **fields: Schema) -> Schema:
    """The schema of a manifest with further fields beside `spec`."""
    return {**manifest, "properties": {**manifest["properties"], **fields}}


def _posted(manifest: Schema) -> Schema:
    """The schema of a manifest in a POST, whose name must be in the manifest since the path has none."""
    named = {**_METADATA, "required": ["name"]}
    required = [*manifest.get("required", []), "metadata"]
    return {**manifest, "properties": {**manifest["properties"], "metadata": named}, "required": required}


def _closed(schema: Schema) -> Schema:
    """A schema without additional properties, at any depth: the server refuses unknown fields."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(field) for name, field in schema["properties"].items()}
        closed["additionalProperties"] = False
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed


def _list_of(description: str, *fields: str) -> Schema:
    """The schema of a list of objects with these string fields."""
    item = {"type": "object", "properties": {name: {"type": "string"} for name in fields}, "required": list(fields)}
    return {"type": "array", "items": item, "description": description}


def _record(table: Table, also: Mapping[str, Schema], leave_out: Collection[str] = ()) -> Schema:
    """The schema of a table's rows in answers: its columns, and the fields `also`."""
    properties = {column.name: _column(column) for column in table.c if column.name not in leave_out} | dict(also)
    return {"type": "object", "properties": properties, "required": list(properties)}


def _column(column: "Column[Any]") -> Schema:
    match column.type:
        case UtcDateTime():
            schema: Schema = {"type": "string", "format": "date-time"}
        case JSON():
            schema = {"type": "object"}
        case Integer() | BigInteger():
            schema = {"type": "integer"}
        case Boolean():
            schema = {"type": "boolean"}
        case _:
            schema = {"type": "string"}
    return {**schema, "type": [schema["type"], "null"]} if column.nullable else schema


def _bodies(bodies: Mapping[str, type[msgspec.Struct]]) -> dict[str, Schema]:
    """The schemas of bodies by their names in the table, and of nested types by the names of their classes.

    Patterns are translated: what is `\\Z` in Python is `$` in JSON Schema.
    """
    made = msgspec.json.schema_components(bodies.values(), ref_template="#/components/schemas/{name}")
    described = msgspec.json.encode(made).replace(rb"\\Z", b"$")
    schemas, components = msgspec.json.decode(described, type=tuple[list[Schema], dict[str, Schema]])
    named = {name: components.pop(it["$ref"].rpartition("/")[2]) for name, it in zip(bodies, schemas, strict=True)}
    return components | named


def _list(name: str) -> Schema:
    properties = {"items": {"type": "array", "items": _ref(name)}, "next": {"type": ["string", "null"]}}
    return {"type": "object", "properties": properties, "required": ["items", "next"]}


def _listing(name: str) -> Schema:
    listed = _list(name)
    truncated = {"type": "boolean", "description": "Whether the list was cut, because it was too long."}
    return {**listed, "properties": {**listed["properties"], "truncated": truncated}}


def _restore() -> Schema:
    """The schema of a Restore's manifest without metadata: namespace and name are in the path."""
    spec = definition("restores")["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return {
        "type": "object",
        "properties": {"spec": _closed(spec)},
        "required": ["spec"],
        "additionalProperties": False,
    }


_PROGRESS: Schema = {
    "type": ["object", "null"],
    "description": "What the host last reported of the running job; fields that are 0 are left out.",
    "properties": {
        "fraction": {"type": "number"},
        **{name: {"type": "integer"} for name in ("files_done", "files_total", "bytes_done", "bytes_total")},
    },
}
_LANE: Schema = {
    "type": "object",
    "description": "Who uses a repository now, and who is next.",
    "properties": {
        "limit": {"type": ["integer", "null"], "description": "How many jobs may use it at once; null for any number."},
        "per_host": {"type": "boolean", "description": "Whether each host has a lane of its own."},
        "running": {"type": "array", "items": _ref("Job"), "description": "Jobs that have a slot."},
        "waiting": {
            "type": "array",
            "items": _ref("Job"),
            "description": "The first that wait for one, in order.",
        },
        "waits": {"type": "integer", "description": "How many jobs wait for a slot, counted up to 1000."},
    },
    "required": ["limit", "per_host", "running", "waiting", "waits"],
}
_MEDIA_TYPES = {"Events": "text/event-stream"}
_SERVED = ("schedules", "repositories", "alerts")
_LABELS: Schema = {
    "type": "object",
    "maxProperties": MAX_LABELS,
    "propertyNames": {"maxLength": 317, "pattern": f"^({selectors.DNS.pattern}/)?{selectors.LABEL.pattern}$"},
    "additionalProperties": {"type": "string", "pattern": f"^({selectors.LABEL.pattern})?$"},
}
_HOST_SPEC: Schema = {
    "type": "object",
    "description": "As in a Host, without nodeName; it stays as it is if it is left out.",
    "properties": {name: it for name, it in HOST.fields.items() if name != "nodeName"},
    "additionalProperties": False,
}
_HOST: Schema = {
    "type": "object",
    "properties": {"labels": _LABELS, "spec": {"anyOf": [_HOST_SPEC, {"type": "null"}]}},
    "required": ["labels"],
    "additionalProperties": False,
}
_METADATA: Schema = {
    "type": "object",
    "description": "Further fields of Kubernetes are accepted and ignored.",
    "properties": {
        **{name: {} for name in METADATA},
        "namespace": _NAMESPACE,
        "name": _NAME,
        "labels": _LABELS,
        "resourceVersion": {"type": "string", "description": "The version to change; any, if it is left out."},
    },
    "additionalProperties": False,
}
_SECRET: Schema = {"type": "string", "maxLength": MAX_SECRET}
_URLS: Schema = {
    "type": "array",
    "maxItems": MAX_URLS,
    "items": {"type": "string", "maxLength": MAX_URL},
    "description": "Prefixes of the repository URLs that it may be used for; without them, any.",
}
_CREDENTIALS: Schema = {
    "type": ["object", "null"],
    "writeOnly": True,
    "properties": {
        "password": {**_SECRET, "type": ["string", "null"], "not": {"enum": ["", "\n", "\r\n"]}},
        "env": {"type": "object", "properties": dict.fromkeys(sorted(ALLOWED), _SECRET), "additionalProperties": False},
        "urls": {
            "type": ["object", "null"],
            "properties": {"password": _URLS, "env": _URLS},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_SCHEDULE_CREDENTIALS: Schema = {
    "type": ["object", "null"],
    "writeOnly": True,
    "required": ["pingUrl"],
    "properties": {"pingUrl": {"type": "string", "maxLength": MAX_TARGET, "description": "The URL of spec.ping."}},
    "additionalProperties": False,
}
_ALERT_CREDENTIALS: Schema = {
    "type": ["object", "null"],
    "writeOnly": True,
    "required": ["urls"],
    "properties": {
        "urls": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_TARGETS,
            "items": {"type": "string", "maxLength": MAX_TARGET},
            "description": "Where messages go: https URLs of webhooks, and URLs of Apprise.",
        },
        "signingKey": {
            "type": ["string", "null"],
            "maxLength": MAX_SECRET,
            "description": "Signs webhooks as Standard Webhooks says: whsec_ and 24 to 64 bytes in base64.",
        },
    },
    "additionalProperties": False,
}

_PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                "required": ["field", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}
