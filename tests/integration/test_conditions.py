"""Conditional requests: no change overwrites one that the caller has not seen, and what did not change is not sent."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient

from server.api.operations import OPERATIONS
from server.api.routing import PREFIX
from server.app import Running
from tests.integration.conftest import Connect

pytestmark = pytest.mark.anyio

BACKUP: dict[str, Any] = {
    "kind": "backup",
    "cron": "0 2 * * *",
    "repositoryRef": {"name": "main"},
    "backup": {"paths": ["/etc"]},
}
THERE: dict[str, Any] = {
    "/schedules/ns/etc": [{"spec": BACKUP}, {"spec": BACKUP | {"cron": "0 3 * * *"}}],
    "/repositories/ns/other": [{"spec": {"url": "/backup"}}, {"spec": {"url": "/elsewhere"}}],
    "/hosts/node-1": [{"labels": {}}, {"labels": {"a": "b"}}],
}
PATHS = list(THERE)
PAGE = Path("docs/api.md").read_text()


@pytest.fixture
async def there(api: AsyncClient) -> None:
    (await api.put("/repositories/ns/main", json={"spec": {"url": "/backup"}})).raise_for_status()
    for path, (body, _) in THERE.items():
        (await api.put(path, json=body)).raise_for_status()


@pytest.mark.parametrize("path", PATHS)
async def test_a_change_holds_for_the_version_that_was_read_and_for_no_other(
    api: AsyncClient, there: None, path: str
) -> None:
    old, new = THERE[path]
    read = await api.get(path)
    tag = read.headers["etag"]
    assert (await api.put(path, json=old, headers={"if-match": tag})).status_code == 200
    assert (await api.put(path, json=new, headers={"if-match": '"another", ' + tag})).status_code == 200
    for method in ("PUT", "DELETE"):
        for header in ({"if-match": tag}, {"if-match": f"W/{tag}"}, {"if-none-match": "*"}):
            answer = await api.request(method, path, json=old if method == "PUT" else None, headers=header)
            assert answer.status_code == 412, (method, header)
            assert answer.headers["content-type"] == "application/problem+json"
    changed = await api.get(path)
    assert changed.headers["etag"] != tag
    assert changed.json() != read.json()
    assert (await api.get(path, headers={"if-match": tag})).status_code == 412
    assert (await api.delete(path, headers={"if-match": changed.headers["etag"]})).status_code == 204
    for header in ({"if-match": "*"}, {"if-match": changed.headers["etag"]}):
        assert (await api.put(path, json=old, headers=header)).status_code == 412
    assert (await api.put(path, json=old, headers={"if-none-match": "*"})).status_code == 201
    if not path.startswith("/hosts"):  # the same labels are the same declaration
        assert (await api.put(path, json=old, headers={"if-match": tag})).status_code == 412


async def test_a_hosts_key_goes_for_the_host_that_was_read_and_for_no_other(api: AsyncClient) -> None:
    tag = (await api.put("/hosts/web-1", json={"labels": {}})).headers["etag"]
    token = (await api.post("/hosts/web-1/enrolments")).json()["token"]
    (await api.post("/enrol", json={"token": token, "host": "web-1", "key_sha256": "0" * 64})).raise_for_status()
    (await api.put("/hosts/web-1", json={"labels": {"tier": "web"}})).raise_for_status()
    for header, status in ({"if-match": tag}, 412), ({"if-none-match": "*"}, 412), ({"if-match": "*"}, 204):
        assert (await api.delete("/hosts/web-1/key", headers=header)).status_code == status


@pytest.mark.parametrize("path", PATHS)
async def test_of_many_who_change_the_same_version_at_once_one_does(api: AsyncClient, there: None, path: str) -> None:
    old, new = THERE[path]
    tag = (await api.get(path)).headers["etag"]
    answers = await asyncio.gather(*(api.put(path, json=new, headers={"if-match": tag}) for _ in range(8)))
    assert sorted(it.status_code for it in answers) == [200] + [412] * 7
    (await api.delete(path)).raise_for_status()
    answers = await asyncio.gather(*(api.put(path, json=old, headers={"if-none-match": "*"}) for _ in range(8)))
    assert sorted(it.status_code for it in answers) == [201] + [412] * 7


@pytest.mark.parametrize(("collection", "key"), [("/schedules", PATHS[0]), ("/repositories", PATHS[1])])
async def test_post_of_what_exists_changes_nothing_however_many_race(
    api: AsyncClient, there: None, collection: str, key: str
) -> None:
    before = (await api.get(key)).json()
    metadata = {"namespace": "ns", "name": key.rpartition("/")[2]}
    answers = await asyncio.gather(*(api.post(collection, json={"metadata": metadata, **it}) for it in THERE[key] * 4))
    assert {it.status_code for it in answers} == {409}
    assert (await api.get(key)).json() == before
    (await api.delete(key)).raise_for_status()
    bodies = [{"metadata": metadata | {"labels": {"n": str(n)}}, **THERE[key][0]} for n in range(8)]
    answers = await asyncio.gather(*(api.post(collection, json=it) for it in bodies))
    assert sorted(it.status_code for it in answers) == [201] + [409] * 7
    created = next(it.json()["metadata"] for it in answers if it.status_code == 201)
    assert (await api.get(key)).json()["metadata"] == created


@pytest.mark.parametrize("path", PATHS[:2])
async def test_a_resource_version_in_the_body_is_honoured(api: AsyncClient, there: None, path: str) -> None:
    read = (await api.get(path)).json()
    assert (await api.put(path, json=read)).status_code == 200
    assert (await api.put(path, json=THERE[path][1])).status_code == 200
    answer = await api.put(path, json=read)
    assert (answer.status_code, "resourceVersion" in answer.text) == (409, True)
    (await api.delete(path)).raise_for_status()
    assert (await api.put(path, json=read)).status_code == 409
    read["metadata"].pop("resourceVersion")
    assert (await api.put(path, json=read)).status_code == 201


@pytest.mark.parametrize("value", ["tag", '"tag', '"a" "b"', "", "W/", '"a",,"b"', '"ä\x01"', '*, "a"'])
async def test_a_tag_that_cannot_be_read_is_refused_by_name(api: AsyncClient, there: None, value: str) -> None:
    for path in PATHS:
        answer = await api.get(path, headers={b"if-match": value.encode("latin-1")})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "if-match")


async def test_whoever_has_the_answer_is_told_so(api: AsyncClient, there: None) -> None:
    run = (await api.post("/schedules/ns/etc/run")).json()["items"][0]["id"]
    await api.put("/runs/ns/r", json={"schedule": "etc"})
    lists = ["/schedules", "/repositories", "/hosts", "/jobs", "/audit", f"/jobs/{run}/log"]
    for path in [*PATHS, *lists, f"/jobs/{run}", "/runs/ns/r"]:
        first = await api.get(path)
        again = await api.get(path, headers={"if-none-match": f'"x", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b""), path
        assert again.headers["etag"] == first.headers["etag"]
        assert (await api.get(path, headers={"if-none-match": '"x"'})).json() == first.json()
        assert (await api.head(path, headers={"if-none-match": "*"})).status_code == 304


async def test_what_is_told_of_the_state_is_told_anew_though_nothing_was_declared(
    api: AsyncClient, there: None, connect: Connect
) -> None:
    before = await api.get("/hosts/node-1")
    async with connect() as agent:
        await agent.follow()
        changed = await api.get("/hosts/node-1", headers={"if-none-match": before.headers["etag"]})
        assert changed.json()["connected"]
        assert (
            await api.put("/hosts/node-1", json={"labels": {}}, headers={"if-match": before.headers["etag"]})
        ).is_success


async def test_large_answers_are_compressed_for_those_who_take_it(api: AsyncClient, there: None) -> None:
    for number in range(40):
        (await api.put(f"/hosts/node-{number}", json={"labels": {"n": str(number)}})).raise_for_status()
    plain = await api.get("/hosts", headers={"accept-encoding": "identity"})
    packed = await api.get("/hosts", headers={"accept-encoding": "gzip"})
    assert ("content-encoding" in plain.headers, packed.headers["content-encoding"]) == (False, "gzip")
    assert "accept-encoding" in plain.headers["vary"].lower()
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    assert packed.json() == plain.json()
    again = await api.get("/hosts", headers={"if-none-match": packed.headers["etag"]})
    assert again.status_code == 304


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]


async def test_a_method_that_a_path_has_not_is_told_with_those_that_it_has(api: AsyncClient, server: Running) -> None:
    root = str(api.base_url).removesuffix(f"{PREFIX}/")
    known: dict[str, set[str]] = {"/healthz": {"GET"}, "/readyz": {"GET"}, "/openapi.json": {"GET"}}
    for operation in OPERATIONS:
        known.setdefault(PREFIX + operation.path, set()).add(operation.method)
    for path, operations in known.items():
        methods = operations | {"HEAD"} if "GET" in operations else operations
        for method in set(METHODS) - methods:
            answer = await api.request(method, root + re.sub(r"{\w+}", "x", path))
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == methods, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_every_public_path_is_routed_described_and_documented(api: AsyncClient) -> None:
    """The page of the API writes a path once with all of its methods, and query parameters after it."""
    root = str(api.base_url).removesuffix(f"{PREFIX}/")
    described = json.loads((await api.get(f"{root}/openapi.json")).content)["paths"]
    probes = {("GET", path) for path in ("/healthz", "/readyz", "/openapi.json")}
    routed = {(it.method, PREFIX + it.path) for it in OPERATIONS} | probes
    told = {(method.upper(), path) for path, operations in described.items() for method in operations}
    listed = set(probes) if all(f"`{path}`" in PAGE for _, path in probes) else set()
    for methods, path in re.findall(r"`((?:[A-Z]+ )+)(/[^`?\s]*)[^`]*`", PAGE):
        listed |= {(method, PREFIX + path) for method in methods.split()}
    assert routed == told == listed
