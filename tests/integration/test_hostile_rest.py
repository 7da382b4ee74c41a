"""Promise 9: each hostile request gets the answer that /openapi.json documents, in bounded time."""

import base64
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from server.api import requests as reading
from server.api.news import listen
from server.api.operations import OPERATIONS, Operation
from server.api.routing import PREFIX
from server.app import Config, Running, serving
from tests.plain import NO_TLS

EXAMPLES = 10 * int(os.environ.get("LAMPLIGHTER_FUZZ", "1"))
"""Of each operation; `make faults` asks for many times as many."""
PATIENCE_S = 30
PROBLEM = "application/problem+json"
LEFT_OUT = {
    "not_a_server_error": "looks answer 502 and 504 where no host can look; the test itself refuses 500",
    "negative_data_rejection": "only where the body is wrong: what else is may not reach the wire",
    "positive_data_acceptance": "only where JSON Schema can say all that is wrong",
    "use_after_free": "it follows links from one operation to another, and the description has none",
    "ensure_resource_availability": "likewise; test_what_was_made_is_there_and_what_was_deleted_is_not stands for both",
    "object_level_authorization": "it needs a second user: test_identity.py and test_tenancy.py have them",
}
"""The checks of schemathesis that not every answer is put to, and why."""
RULED = {
    "POST /alerts",
    "POST /enrol",
    "POST /repositories",
    "POST /restores/{namespace}/{id}/preview",
    "POST /schedules",
    "POST /schedules/{namespace}/{name}/run",
    "PUT /alerts/{namespace}/{name}",
    "PUT /repositories/{namespace}/{name}",
    "PUT /restores/{namespace}/{id}",
    "PUT /runs/{namespace}/{id}",
    "PUT /schedules/{namespace}/{name}",
}
"""Operations whose bodies must obey rules that JSON Schema cannot say: those of CEL, or of what is there."""
BACKUP = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(Config(folder, port=0))) as it:
        yield it


@pytest.fixture(scope="module")
def api(server: Running) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{server.port}{PREFIX}"
    headers = {"authorization": f"Bearer {server.admin_token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=NO_TLS) as client:
        yield client


@pytest.fixture(scope="module")
def description(server: Running) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


@pytest.fixture
def there(api: httpx.Client) -> dict[str, Any]:
    """Objects of every kind, by the names that paths have for them."""
    api.put("/hosts/node-1", json={"labels": {}}).raise_for_status()
    api.put("/repositories/ns/etc", json={"spec": {"url": "/backup"}}).raise_for_status()
    api.put("/repositories/ns/main", json={"spec": {"url": "/backup"}}).raise_for_status()
    api.put("/schedules/ns/etc", json={"spec": BACKUP}).raise_for_status()
    job = api.post("/schedules/ns/etc/run", json={"hosts": ["node-1"]}).json()["items"][0]["id"]
    return {"namespace": "ns", "id": job}


@pytest.fixture(autouse=True)
def untroubled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing that a request says is an error of the server."""
    caplog = request.getfixturevalue("caplog")
    yield
    records = [it for when in ("setup", "call") for it in caplog.get_records(when)]
    assert [it.getMessage() for it in records if it.levelno >= logging.ERROR] == []


def refused(answer: httpx.Response, status: int, *fields: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text[:1000]
    assert len(answer.content) < 100_000
    assert [error["field"] for error in answer.json().get("errors", [])] == list(fields)


# What the description allows and forbids.


@pytest.mark.parametrize(
    "operation", [it for it in OPERATIONS if it.handler is not listen], ids=lambda it: f"{it.method} {it.path}"
)
def test_every_answer_is_one_that_the_description_tells(
    server: Running, description: OpenApiSchema, there: dict[str, Any], operation: Operation
) -> None:
    described = description[PREFIX + operation.path][operation.method]
    known = there | {"name": "node-1" if "/hosts/" in operation.path else "etc"}

    @settings(
        max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None,
        phases=[Phase.generate], derandomize=True,
    )  # fmt: skip
    @given(
        data=st.data(), mode=st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]), of_what=st.booleans()
    )
    def holds(data: st.DataObject, mode: Any, of_what: bool) -> None:
        case = data.draw(described.as_strategy(generation_mode=mode))
        if of_what and case.path_parameters and mode is GenerationMode.POSITIVE:
            case.path_parameters = {name: known.get(name, it) for name, it in case.path_parameters.items()}
        headers = {"Authorization": f"Bearer {server.admin_token}"} if operation.needs is not None else {}
        assert case.meta is not None
        body = case.meta.components.get(ParameterLocation.BODY)
        wrong = body is not None and body.mode is GenerationMode.NEGATIVE  # what else is wrong may not reach the wire
        checks: list[Any] = CHECKS.get_by_names([it for it in CHECKS.get_all_names() if it not in LEFT_OUT])
        checks += [negative_data_rejection] if wrong else []
        asks_hosts = operation.path.endswith(("/snapshots", "/files", "/find"))
        told = asks_hosts or f"{operation.method} {operation.path}" in RULED
        if mode is GenerationMode.POSITIVE and not told and "cursor" not in (case.query or {}):  # a cursor is opaque
            checks = [*checks, positive_data_acceptance]
        answer = case.call_and_validate(headers=headers, checks=checks, timeout=PATIENCE_S)
        assert answer.status_code != 500

    holds()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("/hosts/new", {"labels": {}}),
        ("/alerts/ns/new", {"spec": {"secretRef": {"name": "on-call"}}}),
        ("/repositories/ns/new", {"spec": {"url": "/new"}}),
        ("/schedules/ns/new", {"spec": BACKUP}),
    ],
)
def test_what_was_made_is_there_and_what_was_deleted_is_not(
    api: httpx.Client, there: dict[str, Any], path: str, made: dict[str, Any]
) -> None:
    assert api.put(path, json=made).status_code == 201
    assert api.get(path).status_code == 200
    assert api.delete(path).status_code == 204
    assert {api.get(path).status_code, api.delete(path).status_code} == {404}


CURSORS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(codec="utf-8"))
    | st.datetimes().map(lambda at: f"{at.isoformat()}+23:59") | st.just("9999-12-31T23:59:59-23:59"),
    lambda inner: st.lists(inner, min_size=2, max_size=2),
    max_leaves=2,
).map(lambda key: base64.urlsafe_b64encode(json.dumps(key).encode()).decode())  # fmt: skip


@settings(max_examples=10 * EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(
    path=st.sampled_from(["/audit", "/jobs", "/hosts", "/schedules", "/repositories", "/jobs/{id}/log"]),
    cursor=CURSORS | st.text(st.characters(codec="utf-8")) | st.just("W1tb" * 5000),
)
def test_a_cursor_of_nobodys_is_refused_or_stands_for_a_place(
    api: httpx.Client, there: dict[str, Any], path: Any, cursor: Any
) -> None:
    answer = api.get(path.format(**there), params={"cursor": cursor})
    assert answer.status_code in {200, 400}


# Bodies.


def spec(**changes: Any) -> bytes:
    return json.dumps({"spec": BACKUP | changes}).encode()


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        (b"", 400, ()),
        (b"\xff\xfe{}", 400, ()),
        (b"\xef\xbb\xbf{}", 400, ()),
        (b'{"spec": "\xff"}', 400, ()),
        (b'{"spec": "\\ud800"}', 400, ()),
        (b"{} {}", 400, ()),
        (b'{"spec": NaN}', 400, ()),
        (b'{"spec": 1e999}', 400, ()),
        (DEEP, 400, ()),
        (b'{"spec": ' + DEEP + b"}", 400, ()),
        (b"x" * ((1 << 20) + 1), 413, ()),
        (b"[" + b"[]," * 300_000 + b"[]]", 422, ()),
        (b'{"spec": 1' + b"0" * 4000 + b"}", 422, ("spec",)),
        (b'{"spec": {"cron": "a", "cron": "b"}, "spec": {}}', 422, ("spec.kind", "spec.repositoryRef")),
        (spec(cron="*" * 1_000_000), 422, ("spec.cron",)),
        (spec(cron="* " * 128), 422, ("spec.cron",)),
        (spec(cron="1-1-1-1 * * * *"), 422, ("spec.cron",)),
        (spec(cron=f"{'9' * 200} * * * *"), 422, ("spec.cron",)),
        (spec(cron="0 0 31 2 *"), 422, ("spec.cron",)),
        (spec(timeZone="../../etc/passwd"), 422, ("spec.timeZone",)),
        (spec(timeZone="/etc/localtime"), 422, ("spec.timeZone",)),
        (spec(timeZone="Europe/Berlin\0"), 422, ("spec.timeZone",)),
        (spec(timeZone="." * 64), 422, ("spec.timeZone",)),
        (spec(timeZone="localtime\n"), 422, ("spec.timeZone",)),
        (spec(spreadSeconds=10**300), 422, ("spec.spreadSeconds",)),
        (spec(spreadSeconds=1.5), 422, ("spec.spreadSeconds",)),
        (spec(enabled="true"), 422, ("spec.enabled",)),
        (spec(backup={"paths": ["/\0"]}), 422, ("spec.backup.paths[0]",)),
        (spec(backup={"paths": ["/x"] * 50_000}), 422, ("spec.backup.paths",)),
        (spec(hostSelector={"matchLabels": dict.fromkeys(map(str, range(10_000)), "")}), 422, None),
    ],
    ids=lambda value: value[:60].decode(errors="replace") if isinstance(value, bytes) else "",
)  # fmt: skip
def test_a_body_that_means_harm_is_refused_with_what_is_wrong(
    api: httpx.Client, there: dict[str, Any], body: bytes, status: int, fields: tuple[str, ...] | None
) -> None:
    answer = api.put("/schedules/ns/etc", content=body, headers={"content-type": "application/json"})
    named = [error["field"] for error in answer.json().get("errors", [])] if fields is None else fields
    refused(answer, status, *named)
    assert api.get("/schedules/ns/etc").json()["spec"]["cron"] == BACKUP["cron"]


def test_ten_thousand_labels_are_refused_with_few_words(api: httpx.Client) -> None:
    answer = api.put("/hosts/node-1", json={"labels": {f"-{at}": "-" for at in range(10_000)}})
    assert answer.status_code == 422
    assert len(answer.content) < 100_000


def test_a_body_without_end_is_read_no_further_than_its_limit(api: httpx.Client) -> None:
    def forever() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)

    answer = api.post("/schedules", content=forever(), headers={"content-type": "application/json"})
    refused(answer, 413)


def test_a_body_that_does_not_come_is_not_awaited(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_S", 0.5)
    said = exchange(server, b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 99\r\n\r\n{")  # fmt: skip
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not come within" in said


@pytest.fixture
def on_postgresql(postgresql: str, tmp_path: Path) -> Iterator[httpx.Client]:
    config = Config(tmp_path, port=0, database=postgresql)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(config)) as it:
        url, headers = f"http://127.0.0.1:{it.port}{PREFIX}", {"authorization": f"Bearer {it.admin_token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=NO_TLS) as client:
            yield client


def test_what_postgresql_cannot_be_asked_is_answered_all_the_same(on_postgresql: httpx.Client) -> None:
    key = base64.urlsafe_b64encode(b'["2026-01-01T00:00:00Z", "\\u0000"]').decode()
    enrol = {"token": "\0", "host": "node-1\0", "key_sha256": "0" * 64}
    spec = {"kind": "backup", "cron": "@daily", "repositoryRef": {"name": "\0"}, "backup": {"paths": ["/\0"]}}
    metadata = {"metadata": {"namespace": "ns\0", "name": "etc\0", "labels": {"\0": "\0"}}}
    requests = [
        *(("GET", path, None) for path in ("/hosts/%00", "/jobs/%00", "/jobs/%00/log", "/schedules/%00/%00")),
        *(("GET", f"/jobs?{name}=%00", None) for name in ("id", "host", "schedule", "status", "actor_kind", "limit")),
        *(("GET", f"/{path}?cursor={key}", None) for path in ("jobs", "hosts", "schedules", "repositories", "audit")),
        ("GET", "/jobs?schedule=ns/%00", None),
        ("POST", "/enrol", enrol),
        ("POST", "/schedules", {**metadata, "spec": spec}),
        ("POST", "/repositories", {**metadata, "spec": {"url": "/\0"}}),
        ("PUT", "/hosts/node-1", {"labels": {"a": "\0"}}),
        ("PUT", "/hosts/node-1", {"labels": {"\0": "a"}}),
        ("PUT", "/runs/ns/run", {"schedule": "\0", "hostSelector": {"matchLabels": {"\0": "\0"}}}),
    ]
    answers = [on_postgresql.request(method, path, json=body) for method, path, body in requests]
    assert [answer.status_code for answer in answers if answer.status_code not in {400, 404, 422}] == []


# Variables and kinds of URLs that are not allowed.


@pytest.mark.parametrize(
    "name",
    [
        *("RESTIC_PASSWORD_COMMAND", "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE", "RESTIC_CACERT"),
        *("PATH", "LD_PRELOAD", "GODEBUG", "HTTP_PROXY", "SSH_ASKPASS", "SSH_AUTH_SOCK", "RCLONE_CONFIG"),
        *("RCLONE_SFTP_SSH", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("AWS_REGION ", "aws_region", "AWS_REGION\n", "", "=", "A=B"),
    ],
)  # fmt: skip
def test_a_variable_that_reaches_the_host_is_refused_by_name(api: httpx.Client, name: str) -> None:
    wanted = {"spec": {"url": "/backup"}, "credentials": {"env": {name: "hush"}}}
    answer = api.put("/repositories/ns/other", json=wanted)
    refused(answer, 422, "credentials.env")
    assert repr(name) in answer.json()["errors"][0]["detail"]
    assert "hush" not in answer.text
    assert api.get("/repositories/ns/other").status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        *("rclone:remote:b", "ftp://host/b", "RCLONE:remote:b", "-o", "--repo=/b", "/b\n", "/b\x1b[2J"),
        *("sftp:-oProxyCommand=id:/b", "sftp://-oProxyCommand=id/b", "sftp:u@-oProxyCommand=id:/b"),
        *("rest:http+unix:///var/run/docker.sock:/", "rest:http://me:hush@host/", "/{host.__class__}", "/{0}"),
    ],
)  # fmt: skip
def test_a_url_that_reaches_the_host_is_refused(api: httpx.Client, url: str) -> None:
    refused(api.put("/repositories/ns/other", json={"spec": {"url": url}}), 422, "spec.url")


# Paths, headers and what is no HTTP.


def exchange(server: Running, *sent: bytes) -> bytes:
    """All that the server says on a connection that asks it to close."""
    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)) as connection:
        for data in sent:
            connection.sendall(data)
        said = b""
        while data := connection.recv(1 << 16):
            said += data
    return said


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/schedules/%2e%2e/%2e%2e", "/api/v1/../../etc/passwd", "/api/v1/hosts/..%2f..%2fetc%2fpasswd"),
        *("/api/v1/hosts/%00", "/api/v1/jobs/%00%00", "/api/v1/hosts/node-1%00", "//api/v1/jobs", "/api/v1//jobs"),
        *("/api/v1/hosts/%ff%fe", "/api/v1/hosts/%", "/api/v1/hosts/%zz", "/api/v1/hosts/" + "a" * 30_000),
        *("/%2fapi/v1/jobs", "/api/v1;x/jobs", "/healthz/", "/etc/passwd", "/api/v1/jobs/%0d%0aX:y"),
        *("/api/v1/repositories/ns/\\..\\x", "/agent", "http://elsewhere/api/v1/nothing", "*"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_told_so(server: Running, path: str) -> None:
    said = exchange(server, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                    f"Authorization: Bearer {server.admin_token}\r\n\r\n".encode())  # fmt: skip
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 307 ")), head
    assert PROBLEM.encode() in head or body == b""


@pytest.mark.parametrize("path", ["/", "/healthz", "/openapi.json", "/api/v1/jobs", "/agent"])
@pytest.mark.parametrize("method", ["DELETE", "TRACE", "CONNECT", "BREW", "PROPFIND"])
def test_a_method_that_is_not_there_is_told_so(api: httpx.Client, method: str, path: str) -> None:
    answer = api.request(method, str(api.base_url.copy_with(path=path)))
    refused(answer, 404 if path == "/agent" else 405)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        b"\r\nzz\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 70_000,
    ],
    ids=lambda value: value[:40].decode(errors="replace"),
)
def test_what_is_no_request_is_told_so_and_the_connection_over(server: Running, request_: bytes) -> None:
    assert exchange(server, request_).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("header", [b"X: y\r\n", b"y"])
def test_headers_without_end_are_cut_off(server: Running, header: bytes) -> None:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        exchange(server, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", *[header * 10_000] * 10_000)


@pytest.mark.parametrize("media", ["", "text/plain", "application/xml", "multipart/form-data; boundary=x", "x" * 5000])
def test_a_body_of_another_type_is_refused(api: httpx.Client, media: str) -> None:
    answer = api.put("/hosts/node-1", content=b"{}", headers={"content-type": media})
    refused(answer, 415)
    assert len(answer.content) < 1000


def test_after_all_that_the_server_serves_others(server: Running, api: httpx.Client) -> None:
    assert api.get("/audit").status_code == 200
    assert httpx.get(f"http://127.0.0.1:{server.port}/readyz", trust_env=False, verify=NO_TLS).text == "ok\n"
