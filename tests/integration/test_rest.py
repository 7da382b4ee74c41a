"""The REST API accepts, answers, refuses and hides what it should, over a real socket on a real store."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest

from controller.client import Client
from server.api import requests as reading
from server.api.operations import OPERATIONS
from server.app import Config, Parts, Running, serving
from server.jobs.credentials import RepositoryAccess
from server.resources.selectors import parse_selector, selector_matches
from server.resources.specs import LabelSelector
from server.store.engine import Store
from server.store.hosts import host_acks, upsert_hosts
from server.store.jobs import jobs_accepted, record_jobs
from server.store.load import load_all
from server.store.logs import log_lines
from server.store.rows import HostRow, JobRow
from tests.plain import NO_TLS
from wire.messages import Repository

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
PROBLEM = "application/problem+json"
JSON = {"content-type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path, port=0)) as running:
        yield running


@pytest.fixture
async def anyone(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", verify=NO_TLS) as client:
        yield client


@pytest.fixture
async def api(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{server.port}/api/v1"
    headers = {"authorization": f"Bearer {server.admin_token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def store(server: Running) -> Store:
    """The server's own, which no other may open."""
    return server.parts.services.store


def manifest(kind: str, name: str, spec: dict[str, Any], namespace: str = "ns", **others: Any) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "lamplighter.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec, **others}


def repository(name: str = "main", **others: Any) -> Any:
    return manifest("Repository", name, {"url": "/backup/{host}"}, **others)


def schedule(name: str = "etc", **spec: Any) -> Any:
    base = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/etc"]}}
    return manifest("Schedule", name, base | spec)


def job(job_id: str, host: str = "node-1", **values: Any) -> JobRow:
    at = NOW + timedelta(seconds=int(job_id))
    return JobRow(job_id, host, "backup", "schedule", "ns/etc", "s1", at, 0, '{"args":["backup"]}', at)._replace(
        **values
    )


async def declared(api: httpx.AsyncClient, *names: str) -> None:
    assert (await api.post("/repositories", json=repository())).status_code == 201
    for name in names:
        answer = await api.post("/schedules", json=schedule(name))
        assert answer.status_code == 201, answer.text


def refused(answer: httpx.Response, status: int, *fields: str) -> Any:
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    body = answer.json()
    assert body["status"] == status
    assert [error["field"] for error in body.get("errors", [])] == list(fields)
    return body


async def audit(api: httpx.AsyncClient) -> list[Any]:
    return [
        (row["action"], row["object_kind"], row["object_name"]) for row in (await api.get("/audit")).json()["items"]
    ]


# Who may ask, and the probes.


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer")],
        [("authorization", "Basic YTpi")],
        [("authorization", "Bearer é".encode("latin-1"))],
    ],
    ids=["none", "wrong", "empty", "basic", "not ascii"],
)
async def test_every_operation_wants_a_known_token(anyone: httpx.AsyncClient, headers: list[Any]) -> None:
    for path in ("/api/v1/jobs", "/api/v1/nothing"):
        answer = await anyone.get(path, headers=headers)
        refused(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_agents_token_is_not_a_users(server: Running, anyone: httpx.AsyncClient) -> None:
    refused(await anyone.get("/api/v1/jobs", headers={"authorization": f"Bearer {server.agent_token}"}), 401)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
async def test_probes_and_description_need_no_token(anyone: httpx.AsyncClient, path: str) -> None:
    assert (await anyone.get(path)).status_code == 200


async def test_what_is_not_there_is_told_as_a_problem(api: httpx.AsyncClient) -> None:
    refused(await api.get("/nothing"), 404)
    answer = await api.delete("/jobs")
    refused(answer, 405)
    assert "GET" in answer.headers["allow"]


# Schedules and repositories.


async def test_a_manifest_is_created_read_changed_and_deleted(api: httpx.AsyncClient) -> None:
    await declared(api)
    made = await api.post("/schedules", json=schedule(enabled=True))
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/schedules/ns/etc")
    assert (await api.get("/schedules/ns/etc")).json() == made.json()
    assert made.json()["metadata"]["generation"] == made.json()["status"]["observedGeneration"] == 1
    assert made.json()["status"]["nextScheduleTime"].endswith("T02:00:00Z")
    changed = await api.put("/schedules/ns/etc", json=schedule(enabled=False))
    assert changed.status_code == 200
    assert changed.json()["metadata"]["generation"] == 2
    assert "nextScheduleTime" not in changed.json()["status"]
    assert (await api.delete("/schedules/ns/etc")).status_code == 204
    refused(await api.get("/schedules/ns/etc"), 404)
    refused(await api.delete("/schedules/ns/etc"), 404)
    done = [("delete", "Schedule", "ns/etc"), ("update", "Schedule", "ns/etc"), ("create", "Schedule", "ns/etc")]
    assert (await audit(api))[:3] == done


async def test_what_was_read_can_be_put_back_and_changes_nothing(api: httpx.AsyncClient) -> None:
    await declared(api, "etc")
    read = (await api.get("/schedules/ns/etc")).json()
    before = await audit(api)
    again = await api.put("/schedules/ns/etc", json=read)
    assert (again.status_code, again.json()) == (200, read)
    assert await audit(api) == before


async def test_post_creates_and_only_creates(api: httpx.AsyncClient) -> None:
    await declared(api, "etc")
    body = refused(await api.post("/schedules", json=schedule(cron="@hourly")), 409)
    assert "PUT" in body["detail"]
    refused(await api.post("/repositories", json=repository()), 409)
    unplaced = {"metadata": {"name": "main"}, "spec": repository()["spec"]}
    assert (await api.post("/repositories", json=unplaced)).json()["metadata"]["namespace"] == "default"
    refused(await api.post("/repositories", json=unplaced), 409)
    assert (await api.get("/schedules/ns/etc")).json()["spec"]["cron"] == "0 2 * * *"


async def test_put_creates_by_the_names_of_its_path(api: httpx.AsyncClient) -> None:
    spec = {"spec": repository()["spec"], "apiVersion": "lamplighter.dev/v1alpha1", "kind": "Repository"}
    assert (await api.put("/repositories/ns/other", json=spec)).status_code == 201
    assert (await api.get("/repositories/ns/other")).json()["metadata"]["name"] == "other"
    refused(await api.put("/repositories/ns/third", json=repository("other")), 422, "metadata.name")


async def test_a_repository_in_use_is_not_deleted(api: httpx.AsyncClient) -> None:
    await declared(api, "etc")
    assert "ns/etc" in refused(await api.delete("/repositories/ns/main"), 409)["detail"]


async def test_wrong_specs_name_their_fields(api: httpx.AsyncClient) -> None:
    await declared(api)
    refused(await api.post("/schedules", json=schedule(cron="61 * * * *")), 422, "spec.cron")
    refused(await api.post("/schedules", json=schedule(timeZone="Mars/Base")), 422, "spec.timeZone")
    refused(await api.post("/schedules", json=schedule(repositoryRef={"name": "no"})), 422, "spec.repositoryRef.name")


async def test_credentials_are_written_and_never_told(
    api: httpx.AsyncClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    secret = {"password": "correct horse", "env": {"AWS_SECRET_ACCESS_KEY": "battery staple"}}
    answers = [
        await api.post("/repositories", json=repository(credentials=secret)),
        await api.put("/repositories/ns/main", json=repository(credentials={**secret, "password": "another horse"})),
        await api.put("/repositories/ns/main", json=repository(credentials={"password": ["horse"]})),
        await api.get("/repositories/ns/main"),
        await api.get("/repositories"),
        await api.get("/audit"),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 422, 200, 200, 200]
    stored = (await store.read(load_all, NOW)).repositories[0].credentials
    assert stored
    for shown in (*(answer.text for answer in answers), stored, caplog.text):
        assert "horse" not in shown
        assert "staple" not in shown


# Hosts.


async def test_a_host_is_put_read_and_deleted(api: httpx.AsyncClient) -> None:
    made = await api.put("/hosts/node-1.example.org", json={"labels": {"role": "db", "a.b/c": ""}})
    assert made.status_code == 201
    host = (await api.get("/hosts/node-1.example.org")).json()
    assert host == made.json()
    assert (host["labels"], host["connected"], host["last_seen"]) == ({"role": "db", "a.b/c": ""}, False, None)
    assert (await api.put("/hosts/node-1.example.org", json={"labels": {}})).status_code == 200
    assert (await api.delete("/hosts/node-1.example.org")).status_code == 204
    refused(await api.get("/hosts/node-1.example.org"), 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": {"-a": "b"}}, "labels[-a]"),
        ({"labels": {"a": "b\n"}}, "labels.a"),
        ({"labels": {"a": "b" * 64}}, "labels.a"),
        ({"labels": {}, "role": "db"}, "role"),
    ],
)
async def test_labels_that_kubernetes_would_refuse_are_named(
    api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    refused(await api.put("/hosts/node-1", json=body), 422, field)


async def test_a_host_is_named_like_a_dns_name(api: httpx.AsyncClient) -> None:
    refused(await api.put("/hosts/Node_1", json={"labels": {}}), 422, "name")


async def test_a_host_is_in_sync_when_what_it_holds_is_what_it_should(api: httpx.AsyncClient, store: Store) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    await declared(api, "etc")
    host = (await api.get("/hosts/node-1")).json()
    assert (host["desired_version"], host["in_sync"]) == (1, False)
    await store.write(host_acks, ("node-1", 1, 1, host["desired_digest"], NOW))
    assert (await api.get("/hosts/node-1")).json()["in_sync"]
    await store.write(host_acks, ("node-1", 1, 1, "0" * 64, NOW))
    assert not (await api.get("/hosts/node-1")).json()["in_sync"]


# Jobs.


async def test_a_schedule_runs_now_on_its_hosts_or_some(api: httpx.AsyncClient) -> None:
    await declared(api, "etc")
    for name in ("node-1", "node-2"):
        await api.put(f"/hosts/{name}", json={"labels": {}})
    everywhere = await api.post("/schedules/ns/etc/run")
    assert everywhere.status_code == 201
    assert sorted(job["host"] for job in everywhere.json()["items"]) == ["node-1", "node-2"]
    some = (await api.post("/schedules/ns/etc/run", json={"hosts": ["node-2"]})).json()["items"]
    assert [(job["host"], job["status"], job["actor_kind"]) for job in some] == [("node-2", "pending", "user")]
    assert some[0]["command"]["args"][0] == "backup"
    [attempt] = (told := (await api.get(f"/jobs/{some[0]['id']}")).json()).pop("attempts")
    assert (told, attempt["status"]) == (some[0], "pending")
    refused(await api.post("/schedules/ns/etc/run", json={"hosts": ["node-3"]}), 422, "hosts")
    refused(await api.post("/schedules/ns/etc/run", json={"hosts": []}), 422, "hosts")
    refused(await api.post("/schedules/ns/no/run"), 404)


async def test_a_job_is_cancelled_once(api: httpx.AsyncClient) -> None:
    await declared(api, "etc")
    await api.put("/hosts/node-1", json={"labels": {}})
    (job,) = (await api.post("/schedules/ns/etc/run")).json()["items"]
    cancelled = await api.post(f"/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    refused(await api.post(f"/jobs/{job['id']}/cancel"), 409)
    refused(await api.post("/jobs/unknown/cancel"), 404)


async def test_jobs_are_filtered(api: httpx.AsyncClient, store: Store) -> None:
    await declared(api, "etc")
    uid = (await api.get("/schedules/ns/etc")).json()["metadata"]["uid"]
    jobs = [job("1", scheduled_id=uid), job("2"), job("3", host="node-2"), job("4", actor_kind="user")]
    await store.write(record_jobs, jobs)
    await store.write(jobs_accepted, [("2", NOW, datetime.max.replace(tzinfo=UTC))])
    found = {
        "host=node-2": ["3"],
        "status=running": ["2"],
        "actor_kind=user": ["4"],
        "schedule=ns/etc": ["1"],
        "schedule=s1": ["4", "3", "2"],
        "host=node-1&status=pending": ["4", "1"],
        "host=unknown": [],
        "id=2": ["2"],
        "id=22": [],
    }
    for query, ids in found.items():
        assert [job["id"] for job in (await api.get(f"/jobs?{query}")).json()["items"]] == ids, query
    last = (await api.get("/schedules/ns/etc")).json()["status"]["lastScheduleTime"]
    assert last == "2026-03-29T01:30:01Z"


def opened(parts: Parts) -> list[Repository]:
    """What a host would be told of all repositories."""
    return parts.credentials.message("node-1", map(RepositoryAccess, parts.catalog.repositories.values())).repositories


async def test_a_server_that_lost_its_key_goes_on_and_takes_credentials_anew(tmp_path: Path) -> None:
    declared = repository(credentials={"password": "secret"})
    for lost in (False, True):
        if lost:
            (tmp_path / "vault-key").unlink()
        async with serving(Config(tmp_path, port=0)) as server:
            client = Client(f"http://127.0.0.1:{server.port}", server.admin_token)
            assert opened(server.parts) == []
            async with client:
                await client.put("repositories", "ns", "main", declared)
            assert [it.password for it in opened(server.parts)] == ["secret"]


async def test_a_schedule_tells_on_how_many_hosts_it_is_and_how_many_hold_it(
    api: httpx.AsyncClient, server: Running
) -> None:
    await declared(api, "etc", "elsewhere")
    await api.put("/schedules/ns/elsewhere", json=schedule("elsewhere", hostSelector={"matchLabels": {"a": "b"}}))
    for host in ("node-1", "node-2"):
        await api.put(f"/hosts/{host}", json={"labels": {}})
    session = server.parts.services.hub.session("node-1")
    assert session is not None
    session.applied_version, session.applied_digest = session.desired.version, session.desired.entries.digest
    items = (await api.get("/schedules")).json()["items"]
    counts = [(it["metadata"]["name"], it["status"]["hosts"], it["status"]["hostsInSync"]) for it in items]
    assert counts == [("elsewhere", 0, 0), ("etc", 2, 1)]


async def test_a_log_is_read_line_by_line(api: httpx.AsyncClient, store: Store) -> None:
    await store.write(record_jobs, [job("1")])
    await store.write(log_lines, ("1", NOW, ["one", "two", "three"]))
    first = (await api.get("/jobs/1/log?limit=2")).json()
    assert first["items"][0] == {"seq": 1, "at": "2026-03-29T01:30:00Z", "line": "one"}
    rest = (await api.get(f"/jobs/1/log?cursor={first['next']}")).json()
    assert ([row["line"] for row in rest["items"]], rest["next"]) == (["three"], None)
    refused(await api.get("/jobs/2/log"), 404)


# Pages.


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/schedules", lambda item: item["metadata"]["name"]),
        ("/repositories", lambda item: item["metadata"]["name"]),
        ("/hosts", lambda item: item["name"]),
        ("/jobs", lambda item: item["id"]),
        ("/audit", lambda item: item["id"]),
    ],
)
async def test_pages_hold_everything_once(
    api: httpx.AsyncClient, store: Store, path: str, key: Callable[..., Any]
) -> None:
    await declared(api, "a", "b", "c")
    for name in "def":
        await api.put(f"/repositories/ns/{name}", json=repository(name))
        await api.put(f"/hosts/{name}", json={"labels": {}})
    await store.write(record_jobs, [job(str(at)) for at in range(5)])
    whole = (await api.get(path)).json()
    items, cursor = [], ""
    while cursor is not None:
        page = (await api.get(f"{path}?limit=2{cursor}")).json()
        assert len(page["items"]) <= 2
        items += page["items"]
        cursor = page["next"] and f"&cursor={page['next']}"
    assert items == whole["items"]
    assert whole["next"] is None
    assert len({key(item) for item in items}) == len(items) >= 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=ten", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=%F0%9F", "cursor"),
        ("cursor=MQ", "cursor"),
        ("cursor=WyIyMDI2LTAzLTI5VDAxOjMwOjAwIiwiMSJd", "cursor"),
        ("hots=node-1", "hots"),
        ("status=done", "status"),
        ("actor_kind=root", "actor_kind"),
        ("schedule=ns/none", "schedule"),
    ],
)
async def test_a_query_that_cannot_be_read_is_refused_by_name(api: httpx.AsyncClient, query: str, field: str) -> None:
    refused(await api.get(f"/jobs?{query}"), 400, field)


SELECTORS = ["tier=db", "tier!=db", "tier in (db,web)", "tier notin (db)", "example.org/spare", "!tier", "tier,n=1", ""]


@pytest.mark.parametrize("selector", SELECTORS)
async def test_a_list_has_what_a_selector_of_labels_selects(api: httpx.AsyncClient, selector: str) -> None:
    labels: dict[str, dict[str, str]] = {
        "a": {"tier": "db", "n": "1"},
        "b": {"tier": "web"},
        "c": {"example.org/spare": ""},
        "d": {"tier": "", "example.org/spare": "x"},
    }
    for name, its in labels.items():
        await api.put(f"/hosts/{name}", json={"labels": its})
        made = repository(name)
        await api.put(f"/repositories/ns/{name}", json=made | {"metadata": made["metadata"] | {"labels": its}})
    wanted = LabelSelector(match_expressions=tuple(parse_selector(selector)))
    names = [name for name, its in labels.items() if selector_matches(wanted, its)]
    query: dict[str, str | int] = {"labelSelector": selector, "limit": 2}
    found = (await api.get("/hosts", params=query)).json()
    assert [it["name"] for it in found["items"]] == names[:2]
    assert (found["next"] is None) == (len(names) <= 2)
    found = (await api.get("/repositories", params=query)).json()
    assert [it["metadata"]["name"] for it in found["items"]] == names[:2]


async def test_a_selector_that_cannot_be_read_is_refused_by_name(api: httpx.AsyncClient) -> None:
    for path in ("/hosts", "/schedules", "/repositories"):
        refused(await api.get(path, params={"labelSelector": "a in b"}), 400, "labelSelector")


async def test_a_list_of_a_namespace_has_nothing_of_others(api: httpx.AsyncClient) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    for namespace in ("ns", "other"):
        await api.put(f"/repositories/{namespace}/main", json={"spec": {"url": "/backup/{host}"}})
        for kind in ("backup", "unlock"):  # an unlock waits in no lane
            spec = schedule(kind, kind=kind)["spec"]
            spec = spec if kind == "backup" else {name: it for name, it in spec.items() if name != "backup"}
            put = await api.put(f"/schedules/{namespace}/{kind}", json={"spec": spec})
            assert put.status_code == 201, put.text
            await api.post(f"/schedules/{namespace}/{kind}/run")
        restore = {"repositoryRef": {"name": "main"}, "sourceHost": "node-1", "target": "/srv"}
        await api.put(f"/restores/{namespace}/one", json={"spec": restore})
    for path, count in (("/schedules", 2), ("/repositories", 1)):
        items = (await api.get(f"{path}?namespace=ns")).json()["items"]
        assert [it["metadata"]["namespace"] for it in items] == ["ns"] * count
    everything = (await api.get("/jobs")).json()["items"]
    of_one = (await api.get("/jobs?namespace=ns")).json()["items"]
    of_other = (await api.get("/jobs?namespace=other")).json()["items"]
    assert len(of_one) == len(of_other) == 3
    assert sorted(it["id"] for it in of_one + of_other) == sorted(it["id"] for it in everything)
    for path in ("/schedules", "/repositories", "/jobs"):
        assert (await api.get(f"{path}?namespace=none")).json() == {"items": [], "next": None}


async def test_the_audit_log_is_read_for_one_object(api: httpx.AsyncClient) -> None:
    await declared(api, "a", "b")
    await api.put("/schedules/ns/a", json=schedule("a", cron="0 3 * * *"))
    lines = (await api.get("/audit?object_kind=Schedule&object_name=ns/a")).json()["items"]
    assert [(it["action"], it["object_name"]) for it in lines] == [("update", "ns/a"), ("create", "ns/a")]
    assert {it["object_name"] for it in (await api.get("/audit?object_kind=Schedule")).json()["items"]} == {
        "ns/a",
        "ns/b",
    }


async def test_operations_without_parameters_take_none(api: httpx.AsyncClient) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    refused(await api.delete("/hosts/node-1?force=1"), 400, "force")
    assert (await api.get("/hosts/node-1")).status_code == 200


# Bodies.


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'{"labels": {}}{}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"a":' * 40 + b"1" + b"}" * 40, JSON, 400),
        (b"{}", {}, 415),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"[]", JSON, 422),
        (b" " * (reading.MAX_BODY + 1), JSON, 413),
    ],
    ids=["cut", "bytes", "two", "very deep", "deep", "untyped", "text", "array", "long"],
)
async def test_bodies_that_cannot_be_read_are_refused(
    api: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    for method, path in (("PUT", "/hosts/node-1"), ("POST", "/schedules")):
        refused(await api.request(method, path, content=content, headers=headers), status)


async def test_a_body_of_untold_length_is_refused_at_its_limit_not_at_its_end(server: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"PUT /api/v1/hosts/a HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {server.admin_token}\r\n"
    writer.write(f"{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    size = reading.MAX_BODY + 1
    writer.write(f"{size:x}\r\n".encode() + b" " * size + b"\r\n")  # and no last chunk
    async with asyncio.timeout(10):
        assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_what_nobody_expected_is_logged_and_not_told(
    api: httpx.AsyncClient, server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any) -> None:
        raise RuntimeError("the inside")

    monkeypatch.setattr(server.parts.services.runs, "cancel", broken)
    body = refused(await api.post("/jobs/1/cancel"), 500)
    assert "inside" not in str(body)
    assert "the inside" in caplog.text


async def test_two_who_create_the_same_at_once_do_not_both_succeed(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(api.post("/repositories", json=repository()) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


# The description.


async def test_every_operation_is_described_and_every_reference_resolves(anyone: httpx.AsyncClient) -> None:
    document = (await anyone.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1.")
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described >= {(operation.method.lower(), f"/api/v1{operation.path}") for operation in OPERATIONS}
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', (await anyone.get("/openapi.json")).text))
    assert references <= schemas.keys()
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_answers_are_as_described(anyone: httpx.AsyncClient, api: httpx.AsyncClient, store: Store) -> None:
    await declared(api, "etc")
    await api.put("/hosts/node-1", json={"labels": {"a": "b"}})
    await api.post("/schedules/ns/etc/run")
    await store.write(record_jobs, [job("1")])
    await store.write(log_lines, ("1", NOW, ["one"]))
    document = (await anyone.get("/openapi.json")).json()
    for path, name in {
        "/schedules": "ScheduleList",
        "/repositories": "RepositoryList",
        "/hosts": "HostList",
        "/jobs": "JobList",
        "/jobs/1/log": "LogList",
        "/audit": "AuditList",
    }.items():
        answer = (await api.get(path)).json()
        assert answer["items"], path
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", **document})
    problem = (await api.get("/jobs?limit=0")).json()
    jsonschema.validate(problem, {"$ref": "#/components/schemas/Problem", **document})


async def test_a_listener_to_news_does_not_hold_up_a_server_that_stops(tmp_path: Path) -> None:
    async with httpx.AsyncClient(verify=NO_TLS) as client, contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(Config(tmp_path, port=0)))
        headers = {"authorization": f"Bearer {server.admin_token}"}
        async with client.stream("GET", f"http://127.0.0.1:{server.port}/api/v1/news", headers=headers) as news:
            lines = news.aiter_lines()
            assert "schedules" in await anext(lines)
            await stack.aclose()
            assert [line async for line in lines if line] == []


@pytest.mark.parametrize(
    ("selector", "field"),
    [
        ({"matchLabels": {"a b": "c"}}, "hostSelector.matchLabels[a b]"),
        ({"matchLabels": {"a": "b c"}}, "hostSelector.matchLabels.a"),
        ({"matchExpressions": [{"key": "a/b/c", "operator": "Exists"}]}, "hostSelector.matchExpressions[0].key"),
        ({"matchlabels": {"a": "b"}}, "hostSelector.matchlabels"),
        ({"a": "b"}, "hostSelector.a"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn"}]}, "hostSelector.matchExpressions[0].values"),
        (
            {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
            "hostSelector.matchExpressions[0].values",
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "value": ["b"], "values": ["c"]}]},
            "hostSelector.matchExpressions[0].value",
        ),
    ],
)
async def test_a_run_on_what_selects_no_labels_that_hosts_can_have_is_refused(
    api: httpx.AsyncClient, selector: dict[str, Any], field: str
) -> None:
    answer = await api.put("/runs/ns/now", json={"schedule": "etc", "hostSelector": selector})
    assert (answer.status_code, [it["field"] for it in answer.json()["errors"]]) == (422, [field])


async def test_a_name_is_taken_as_a_whole_whatever_stands_at_its_end(api: httpx.AsyncClient, store: Store) -> None:
    await api.put("/hosts/one", json={"labels": {}})
    for end in ("%0A", "%0D", "%0A%0A"):
        assert (await api.put(f"/hosts/one{end}", json={"labels": {}})).status_code == 422
        assert (await api.get(f"/hosts/one{end}")).status_code == 404
        assert (await api.delete(f"/hosts/one{end}")).status_code == 404
        assert (await api.post(f"/schedules/default/etc/run{end}")).status_code == 404
    assert (await api.get("/hosts%0A")).status_code == 404
    assert (await api.get("/hosts/one")).status_code == 200


async def test_a_host_that_an_older_version_let_in_under_a_name_that_is_none_is_deleted(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    store = Store.open(tmp_path / "lamplighter.db")
    for name in ("one", "one\n", "\n", "two\r\nthree", "a b", "a?b#c"):
        await store.write(upsert_hosts, HostRow(name, {}, now, now, 0, ""))
    await store.close()
    async with serving(Config(tmp_path, port=0)) as running:
        headers = {"authorization": f"Bearer {running.admin_token}"}
        url = f"http://127.0.0.1:{running.port}/api/v1/"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=NO_TLS) as client:
            names = [it["name"] for it in (await client.get("hosts")).json()["items"]]
            for name in names:
                if name != "one":
                    assert (await client.delete(f"hosts/{quote(name, safe='')}")).status_code == 204, name
            assert [it["name"] for it in (await client.get("hosts")).json()["items"]] == ["one"]


async def test_runs_and_restores_of_two_namespaces_may_have_one_name(api: httpx.AsyncClient) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    for namespace in ("ns", "other"):
        (await api.put(f"/repositories/{namespace}/main", json={"spec": {"url": "/backup"}})).raise_for_status()
        (await api.put(f"/schedules/{namespace}/etc", json={"spec": schedule()["spec"]})).raise_for_status()
    for _ in range(2):  # asked for again, it is the same
        for namespace in ("ns", "other"):
            run = (await api.put(f"/runs/{namespace}/nightly", json={"schedule": "etc"})).raise_for_status().json()
            assert run["hosts"] == 1
            spec = {"repositoryRef": {"name": "main"}, "sourceHost": "node-1", "target": f"/srv/{namespace}"}
            job = (await api.put(f"/restores/{namespace}/nightly", json={"spec": spec})).raise_for_status().json()
            assert job["command"]["restore"]["target"] == f"/srv/{namespace}"
    jobs = (await api.get("/jobs")).json()["items"]
    assert len(jobs) == len({job["id"] for job in jobs}) == 4


async def test_a_whole_number_is_one_however_it_is_written(api: httpx.AsyncClient) -> None:
    await api.put("/hosts/node-1", json={"labels": {}})
    for written, status in (("3600.0", 201), ("3.6e3", 201), ("3600.5", 422), ("1e999", 400)):
        content = f'{{"expires_in_s": {written}}}'.encode()
        answer = await api.post(
            "/hosts/node-1/enrolments", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status, written


async def test_a_run_is_asked_for_in_a_namespace_that_can_be(api: httpx.AsyncClient) -> None:
    refused(await api.get("/runs/%C2%84/0"), 422, "namespace")
    refused(await api.get("/restores/a.b/0"), 422, "namespace")


@pytest.mark.parametrize(
    ("said", "packed"),
    [
        *(("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0.001", True), ("identity", False)),
        *(("gzip;q=0", False), ("gzip ; q=0.000", False), ("identity, gzip;q=0, br", False)),
    ],
)
async def test_an_answer_is_packed_for_those_alone_who_take_it(api: httpx.AsyncClient, said: str, packed: bool) -> None:
    labels = {f"label-{number}": "x" * 60 for number in range(60)}
    await api.put("/hosts/one", json={"labels": labels})
    answer = await api.get("/hosts/one", headers={"accept-encoding": said})
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.json()["labels"] == labels
