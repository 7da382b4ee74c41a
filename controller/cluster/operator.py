"""Runs the controller of a cluster: the replica that holds the lease passes what kopf watches to a ClusterFollower."""

import asyncio
import logging
import os
import socket
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial
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
"""Seconds that one piece of work may take before the controller counts as stuck."""


class Health:
    """Whether the controller makes progress. Waiting for the lease is healthy."""

    def __init__(self) -> None:
        self._leading: tuple[ClusterFollower, Progress, WatchTiming] | None = None

    def begin(self, cluster: ClusterFollower, progress: Progress, times: WatchTiming) -> None:
        """This replica starts to work."""
        self._leading = (cluster, progress, times)

    def end(self) -> None:
        """This replica no longer works."""
        self._leading = None

    async def problem(self) -> str:
        """What makes no progress, although it was restarted; empty if the controller is healthy."""
        if self._leading is None:
            return ""
        cluster, progress, times = self._leading
        now = asyncio.get_running_loop().time()
        if silent := progress.silent(now, times.stalled + times.check):
            return f"the API server has not answered watches for {times.stalled:.0f} s: {', '.join(silent)}"
        if now - cluster.busy_since > STUCK_S:
            return f"one piece of work has taken the controller more than {STUCK_S:.0f} s"
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
    """Follow the cluster until `stop` is set. With `lease`, only while this replica holds it."""
    metrics, health = metrics or Metrics(), health or Health()
    async with Kube(login) as kube:
        identity = f"{socket.gethostname()}_{os.getpid()}"
        held = Lease(kube, host_namespace, LEASE, identity)

        async def lead() -> None:
            where = sorted({*namespaces, host_namespace}) if namespaces else []
            progress = Progress(watched_paths(where))
            cluster = ClusterFollower(kube, client, host_namespace, partial(datetime.now, UTC), namespaces, times)
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
    """Watch with kopf, and follow the objects that it passes on, until cancelled."""

    def on_object(body: Object, kind: str | None) -> None:
        cluster.on_event(body, deleted=kind == "DELETED", listed=kind is None)

    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns of not being the main thread
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cluster.run(), name="cluster")
        await cluster.compared.wait()  # from then on, the CRDs are known to exist
        while True:
            cluster.begin()
            await watch(login, on_object, namespaces, progress, times)
            log.warning("watches ended, starting again")
            await asyncio.sleep(times.again)
