"""Rows of the controller on a real API server: Schedules created at once until all are Ready, and a restart.

`python -m bench.controller` is the peer: an operator of the same framework that only patches a status.
"""

import asyncio
import json
import logging
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.result import Limits, Result, Row, Size, median, runs
from bench.servers import LAMPLIGHTER, Server, schedule, serving
from tests.cluster.apiserver import OwnCluster

CREATING = 32
"""Concurrent requests that create Schedules."""
SETTLED = 5
"""Multiple of `Size.settled_s` within which a controller has written everything."""
GROUP = "lamplighter.dev/v1alpha1"
REPOSITORY = {"url": "s3:https://s3.example.org/backups/{host}", "passwordSecretRef": {"name": "main"}}
PEER = (sys.executable, "-m", "bench.controller")


async def created(row: str, size: Size) -> Sequence[Result]:
    """Measure the time from the first create to the last status."""
    took: dict[str, list[float]] = {"lamplighter": [], "peer": []}
    async with running() as (cluster, http), serving() as server:
        for run in range(size.runs):
            for name, argv in (("peer", PEER), ("lamplighter", controller(server))):
                namespace = await _namespace(http, f"{name}-{run}")
                async with operating(cluster, http, argv, namespace):
                    took[name].append(await _until_ready(http, namespace, size.created))
                for plural in ("schedules", "repositories"):
                    (await http.delete(f"/apis/{GROUP}/namespaces/{namespace}/{plural}")).raise_for_status()
    what = f"{size.created:,} Schedules created at once: the last one Ready"
    floor_is = "an operator that only patches status"
    limits = Limits(ratio=1 / 0.7)
    note = f"{runs(took['lamplighter'])}; peer {runs(took['peer'])}"
    return [Result(row, what, "s", median(took["lamplighter"]), median(took["peer"]), floor_is, limits, note)]


async def restarted(row: str, size: Size) -> Sequence[Result]:
    """Measure the time from a controller's restart to its first whole comparison, which must write nothing."""
    async with running() as (cluster, http), serving() as server:
        namespace = await _namespace(http, "many")
        async with operating(cluster, http, controller(server), namespace):
            await _until_ready(http, namespace, size.compared)
            await asyncio.sleep(SETTLED * size.settled_s)
        before = (await _versions(http), await _last_change(server))
        took = []
        for _ in range(size.runs):
            begin = time.perf_counter()
            async with _process(cluster, controller(server, "--log-level", "info")) as process:
                assert process.stderr is not None
                async for line in process.stderr:
                    if b"compared" in line:
                        break
                took.append(time.perf_counter() - begin)
                await asyncio.sleep(SETTLED * size.settled_s)
        after = (await _versions(http), await _last_change(server))
        assert after == before, "a restart wrote something"
        begin = time.perf_counter()
        await _versions(http)
        async with server.client() as client:
            await _pages(client, "/schedules", "cursor", lambda page: page["next"])
        floor = time.perf_counter() - begin
    what = f"a controller of {size.compared:,} Schedules restarted, until all is compared and nothing written"
    return [Result(row, what, "s", median(took), floor, "both sides' lists read once", Limits(15.0), runs(took))]


def controller(server: Server, *more: str) -> Sequence[str]:
    """The command that runs a server's controller."""
    there = (f"--server=http://127.0.0.1:{server.port}", f"--token-file={server.data / 'admin-token'}")
    return (
        *LAMPLIGHTER,
        "controller",
        *there,
        "--no-lease",
        "--host-namespace=home",
        *(more or ("--log-level", "error")),
    )


@asynccontextmanager
async def running() -> AsyncIterator[tuple[OwnCluster, httpx.AsyncClient]]:
    """An API server with Lamplighter's definitions, and a client of it."""
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        cluster = await asyncio.to_thread(OwnCluster(Path(folder)).__enter__)
        try:
            cluster.define()
            cert, key = Path(folder) / "admin.crt", Path(folder) / "admin.key"
            for path, content in zip((cert, key), cluster.admin, strict=True):
                path.touch(0o600)
                path.write_bytes(content)
            trusted = ssl.create_default_context(cadata=cluster.ca)
            trusted.load_cert_chain(cert, key)
            async with httpx.AsyncClient(
                base_url=cluster.url,
                verify=trusted,
                timeout=60,
                trust_env=False,
                limits=httpx.Limits(max_connections=64),
            ) as http:
                await _namespace(http, "home")
                # A Schedule that selects no host is not Ready.
                (await http.post("/api/v1/nodes", json={"metadata": {"name": "host"}})).raise_for_status()
                yield cluster, http
        finally:
            await asyncio.to_thread(cluster.__exit__)


@asynccontextmanager
async def _process(cluster: OwnCluster, argv: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    process = await asyncio.create_subprocess_exec(*argv, env=env, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        _, said = await process.communicate()
        sys.stderr.write(said.decode())


@asynccontextmanager
async def operating(
    cluster: OwnCluster, http: httpx.AsyncClient, argv: Sequence[str], namespace: str
) -> AsyncIterator[None]:
    """Run an operator while entered, after it has made a first Schedule Ready."""
    async with _process(cluster, argv):
        secret = {"metadata": {"name": "main"}, "stringData": {"password": "secret"}}
        (await http.post(f"/api/v1/namespaces/{namespace}/secrets", json=secret)).raise_for_status()
        await _create(http, namespace, "repositories", "main", "Repository", REPOSITORY)
        await _create(http, namespace, "schedules", "first", "Schedule", schedule("first", "0 2 * * *")["spec"])
        async with asyncio.timeout(60):
            await _ready(http, namespace, {"first"})
        yield


async def _until_ready(http: httpx.AsyncClient, namespace: str, count: int) -> float:
    """Create `count` Schedules at once, and return the seconds until all are Ready."""
    names = [f"s-{at:05}" for at in range(count)]
    left = iter(names)

    async def create() -> None:
        for name in left:
            await _create(http, namespace, "schedules", name, "Schedule", schedule(name, "0 2 * * *")["spec"])

    async with asyncio.timeout(600), asyncio.TaskGroup() as tasks:
        watching = asyncio.Event()
        ready = tasks.create_task(_ready(http, namespace, set(names), watching))
        await watching.wait()
        begin = time.perf_counter()
        for _ in range(CREATING):
            tasks.create_task(create())
        await ready
        return time.perf_counter() - begin


async def _ready(
    http: httpx.AsyncClient, namespace: str, names: set[str], watching: asyncio.Event | None = None
) -> None:
    """Wait, with a watch, until all of these Schedules are Ready."""
    params = {"watch": "true", "resourceVersion": "0"}
    waiting = set(names)
    path = f"/apis/{GROUP}/namespaces/{namespace}/schedules"
    while waiting:  # the API server ends a slow watch, and sends everything again at the next
        async with http.stream("GET", path, params=params, timeout=None) as answer:
            if watching is not None:
                watching.set()
            async for line in answer.aiter_lines():
                if '"type":"Ready"' not in line:
                    continue
                body = json.loads(line)["object"]
                conditions = {it["type"]: it["status"] for it in body["status"]["conditions"]}
                if conditions["Ready"] == "True":
                    waiting.discard(body["metadata"]["name"])
                if not waiting:
                    return


async def _create(http: httpx.AsyncClient, namespace: str, plural: str, name: str, kind: str, spec: object) -> None:
    body = {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    (await http.post(f"/apis/{GROUP}/namespaces/{namespace}/{plural}", json=body)).raise_for_status()


async def _namespace(http: httpx.AsyncClient, name: str) -> str:
    (await http.post("/api/v1/namespaces", json={"metadata": {"name": name}})).raise_for_status()
    return name


async def _versions(http: httpx.AsyncClient) -> dict[str, str]:
    """resourceVersions of all Schedules and Repositories by uid. Hosts are left out: their status changes by itself."""
    found: dict[str, str] = {}
    for plural in ("schedules", "repositories"):
        pages = await _pages(http, f"/apis/{GROUP}/{plural}", "continue", lambda page: page["metadata"].get("continue"))
        found.update((it["metadata"]["uid"], it["metadata"]["resourceVersion"]) for it in pages)
    return found


async def _last_change(server: Server) -> object:
    """The latest line of the server's audit log."""
    async with server.client() as client:
        return (await client.get("/audit", params={"limit": 1})).raise_for_status().json()["items"]


async def _pages(http: httpx.AsyncClient, path: str, parameter: str, following: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    params = {"limit": "500"}
    while True:
        page = (await http.get(path, params=params)).raise_for_status().json()
        items += page["items"]
        if not (after := following(page)):
            return items
        params[parameter] = after


def peer() -> None:
    """Run an operator that patches the status of every new Schedule, and does nothing else."""
    logging.basicConfig(level=logging.ERROR)
    import kopf  # noqa: PLC0415 - only in the process of the peer

    @kopf.on.login()
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup()
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True

    @kopf.on.event(GROUP, "schedules")
    async def accept(event: Any, body: Any, patch: Any, **_: Any) -> None:
        if event["type"] in (None, "ADDED") and "conditions" not in body.get("status", {}):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            ready = {"type": "Ready", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": at}
            patch.status["observedGeneration"] = body["metadata"]["generation"]
            patch.status["conditions"] = [ready]

    kopf.run(clusterwide=True, standalone=True)


ROWS = (Row("schedules-ready", created, True), Row("controller-restart", restarted, True))

if __name__ == "__main__":
    peer()
