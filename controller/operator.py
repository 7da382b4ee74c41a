"""The operator: kopf watches the cluster and feeds what it sees to `cluster`."""

import asyncio
import dataclasses
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import kopf

from controller.client import Client, ControllerError
from controller.cluster import TIMES, Cluster, Times
from controller.kube import KINDS, Kube, Object
from controller.lease import Lease
from controller.metrics import Metrics
from controller.mirror import WATCHED

log = logging.getLogger(__name__)

LEASE = "lamplighter-controller"
BACKOFFS_S = (1, 1, 2, 3, 5, 5, 5, 5)
"""Seconds between kopf's attempts to reach the API server, before it gives up."""
IDLE_S = 0.5
"""Seconds that kopf keeps an object's task for further events; it waits for them to end when it is to stop."""
WATCH_AGAIN_S = 5.0
"""Seconds before kopf is begun anew when it has given up."""


def login() -> kopf.ConnectionInfo:
    """The credentials of this process: its service account's, or a kubeconfig's. Raises ControllerError."""
    settings = kopf.OperatorSettings()
    if found := kopf.login_with_service_account(settings=settings):
        return dataclasses.replace(found, server=api_server(os.environ))
    if found := kopf.login_with_kubeconfig(settings=settings):
        return found
    raise ControllerError("no cluster: run in a pod with a service account, or set KUBECONFIG")


def api_server(environ: Mapping[str, str]) -> str:
    """The API server's URL as every pod is told it, which needs no DNS (client-go does the same)."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


async def operate(
    client: Client,
    host_namespace: str,
    namespaces: Collection[str],
    stop: asyncio.Event,
    *,
    lease: bool = True,
    times: Times = TIMES,
    metrics: Metrics | None = None,
) -> None:
    """Follow the cluster until `stop` is set. With `lease`, only while no other replica does."""
    metrics = metrics or Metrics()
    async with Kube(login) as kube:
        identity = f"{socket.gethostname()}_{os.getpid()}"
        held = Lease(kube, host_namespace, LEASE, identity)

        async def lead() -> None:
            metrics.leading = cluster = Cluster(kube, client, host_namespace, _now, namespaces, times)
            try:
                await _follow(cluster, host_namespace, namespaces)
            finally:
                metrics.leading = None

        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(_again(held, lead) if lease else lead(), name="lead")
            await stop.wait()
            leading.cancel()


async def _again(lease: Lease, lead: Any) -> None:
    while True:
        await lease.hold(lead)


async def _follow(cluster: Cluster, host_namespace: str, namespaces: Collection[str]) -> None:
    """Watch with kopf and follow what it sees, until cancelled."""
    where = sorted({*namespaces, host_namespace}) if namespaces else []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cluster.run(), name="cluster")
        await cluster.compared.wait()  # from here on the definitions are known to be there
        while True:
            await _watch(cluster, where)
            log.warning("watches ended, beginning anew")
            await asyncio.sleep(WATCH_AGAIN_S)


async def _watch(cluster: Cluster, namespaces: Collection[str]) -> None:
    """Run kopf until it ends, or this is cancelled.

    In a thread with a loop of its own: it takes all signals and all tasks of the loop that it runs in for its own.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns of not being the main thread

    def see(body: Object, kind: str | None) -> None:
        loop.call_soon_threadsafe(functools.partial(cluster.see, body, deleted=kind == "DELETED", listed=kind is None))

    def watch() -> None:
        where: dict[str, Any] = {"namespaces": namespaces} if namespaces else {"clusterwide": True}
        asyncio.run(kopf.operator(registry=_registry(see), standalone=True, stop_flag=stop, **where))

    cluster.begin()
    watching = asyncio.ensure_future(asyncio.to_thread(watch))
    try:
        await asyncio.shield(watching)
    except Exception as error:  # noqa: BLE001 - whatever ended it, it is begun anew
        log.warning("kopf gave up", extra={"reason": str(error) or type(error).__name__})
    finally:
        stop.set()
        await asyncio.wait([watching])


def _registry(see: Callable[[Object, str | None], None]) -> kopf.OperatorRegistry:
    """Handlers that only hand on what is seen; nothing is written by kopf."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.networking.error_backoffs = BACKOFFS_S
        settings.queueing.idle_timeout = IDLE_S

    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        see(dict(event["object"]), event["type"])

    for name in WATCHED:
        kopf.on.event(KINDS[name].version, KINDS[name].plural, registry=registry)(seen)
    return registry


def _now() -> datetime:
    return datetime.now(UTC)
