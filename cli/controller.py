"""Runs the controller of a folder or of a cluster, until it is asked to stop."""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

from cli.reach import reason
from controller.client import Client

Server = tuple[str, str | Callable[[], str], Path | None]
"""A server's URL, the token for it, and the file with CA certificates to trust."""


def _client(server: Server) -> Client:
    url, _, ca_file = server
    return Client(*server, explain=reason(url, ca_file))


async def folder(
    path: Path, server: Server, stop: asyncio.Event, *, allow_empty: bool, metrics_listen: str = ""
) -> None:
    """Keep a server's desired state equal to a folder until `stop` is set.

    `allow_empty`: delete what the folder no longer declares, even if that is more than half of it.
    """
    from cli import metrics, systemd
    from controller.folder.follower import follow_folder
    from controller.folder.metrics import FolderMetrics

    measured = FolderMetrics()
    probed = metrics.serving(metrics_listen, measured.registry, measured.waits_for)
    async with _client(server) as client, probed, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(follow_folder(path, client, allow_empty=allow_empty, metrics=measured))
        async with systemd.supervised(measured.waits_for, metrics.always_ready):
            await stop.wait()
        watching.cancel()


async def cluster(
    server: Server,
    host_namespace: str,
    namespaces: Collection[str],
    stop: asyncio.Event,
    *,
    lease: bool,
    metrics_listen: str,
) -> None:
    """Keep a server's desired state equal to a cluster's resources until `stop` is set. Raises ControllerError."""
    from cli import metrics
    from controller.cluster.metrics import Metrics
    from controller.cluster.operator import Health, operate

    measured, health = Metrics(), Health()
    probed = metrics.serving(metrics_listen, measured.registry, metrics.always_ready, health.problem)
    async with _client(server) as client, probed:
        await operate(client, host_namespace, namespaces, stop, lease=lease, metrics=measured, health=health)
