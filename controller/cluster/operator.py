"""The operator: what kopf sees of the cluster is fed to `cluster`, by the one replica that holds the lease."""

import asyncio
import logging
import os
import socket
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from controller.client import Client
from controller.cluster.access import login
from controller.cluster.follower import DEFAULT_TIMING, ClusterFollower, Timing
from controller.cluster.kube import Kube, Object
from controller.cluster.lease import Lease
from controller.cluster.metrics import Metrics
from controller.cluster.watching import Progress, WatchTiming, watch, watched_paths

log = logging.getLogger(__name__)

LEASE = "lamplighter-controller"
STUCK_S = 900.0
"""Seconds that the controller may work at one thing before it counts as stuck."""


class Health:
    """Whether a controller moves. One that waits for the lease is well."""

    def __init__(self) -> None:
        self._leading: tuple[ClusterFollower, Progress, WatchTiming] | None = None

    def begin(self, cluster: ClusterFollower, progress: Progress, times: WatchTiming) -> None:
        """This replica is at work."""
        self._leading = (cluster, progress, times)

    def end(self) -> None:
        """This replica is not at work any more."""
        self._leading = None

    async def problem(self) -> str:
        """What does not move, though it was begun anew; empty when all does."""
        if self._leading is None:
            return ""
        cluster, progress, times = self._leading
        now = asyncio.get_running_loop().time()
        if silent := progress.silent(now, times.stalled + times.check):
            return f"the API server has answered no watch for {times.stalled:.0f} s of {', '.join(silent)}"
        if now - cluster.busy_since > STUCK_S:
            return f"the controller has worked at one thing for more than {STUCK_S:.0f} s"
        return ""


async def operate(
    client: Client,
    host_namespace: str,
    namespaces: Collection[str],
    stop: asyncio.Event,
    *,
    lease: bool = True,
    times: Timing = DEFAULT_TIMING,
    metrics: Metrics | None = None,
    health: Health | None = None,
) -> None:
    """Follow the cluster until `stop` is set. With `lease`, only while no other replica does."""
    metrics, health = metrics or Metrics(), health or Health()
    async with Kube(login) as kube:
        identity = f"{socket.gethostname()}_{os.getpid()}"
        held = Lease(kube, host_namespace, LEASE, identity)

        async def lead() -> None:
            where = sorted({*namespaces, host_namespace}) if namespaces else []
            progress = Progress(watched_paths(where))
            cluster = ClusterFollower(kube, client, host_namespace, _now, namespaces, times)
            metrics.begin(cluster)
            health.begin(cluster, progress, times.watch)
            try:
                await _follow(cluster, where, progress, times.watch)
            finally:
                metrics.end()
                health.end()

        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(_again(held, lead) if lease else lead(), name="lead")
            await stop.wait()
            leading.cancel()


async def _again(lease: Lease, lead: Any) -> None:
    while True:
        await lease.hold(lead)


async def _follow(cluster: ClusterFollower, namespaces: Sequence[str], progress: Progress, times: WatchTiming) -> None:
    """Watch with kopf and follow what it sees, until cancelled."""

    def on_object(body: Object, kind: str | None) -> None:
        cluster.on_event(body, deleted=kind == "DELETED", listed=kind is None)

    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns of not being the main thread
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cluster.run(), name="cluster")
        await cluster.compared.wait()  # from here on the definitions are known to be there
        while True:
            cluster.begin()
            await watch(login, on_object, namespaces, progress, times)
            log.warning("watches ended, beginning anew")
            await asyncio.sleep(times.again)


def _now() -> datetime:
    return datetime.now(UTC)
