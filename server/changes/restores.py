"""Requests of Restores: each is checked, and recorded once as a job of one host.

In a repository's URL, {host} stands for the host that was backed up, whichever host restores.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from server.changes.change import audit
from server.changes.runs import Runs
from server.errors import Conflict, Forbidden, Invalid, NotFound
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs import arguments
from server.jobs.fires import NewJob
from server.resources import manifests
from server.resources.grants import Grant
from server.resources.manifests import repository_spec
from server.resources.restic import repository_options
from server.resources.specs import RestoreSpec
from server.store.engine import Store
from server.store.jobs import get_jobs, lasting_job_id
from server.store.rows import RepositoryRow, Row
from server.store.tables import Actor
from wire.messages import CommandRun, Restore


class Restores:
    """Records the jobs of Restores."""

    def __init__(
        self, runs: Runs, store: Store, catalog: Catalog, placement: Placement, clock: Callable[[], datetime]
    ) -> None:
        self._runs = runs
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._clock = clock
        self._asking = asyncio.Lock()

    async def restore(self, actor: Actor, manifest: Mapping[str, Any]) -> Row:
        """Record the job of a Restore, once: a second request of this name returns the same job.

        Raises Invalid, also for an unknown repository or host, Forbidden, and Conflict if the name was used for a
        different restore.
        """
        spec = manifests.parse_restore(manifest)
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        async with self._asking:  # so that concurrent requests of one name record one job
            job = await self._find(namespace, name)
            if job is None:
                job = await self._record(actor, namespace, name, spec)
            elif not _is_same(job, spec):
                raise Conflict(f"there is another restore {name} with another spec: give this one a name of its own")
        return job

    async def get(self, namespace: str, name: str) -> Row:
        """The job of a restore. Raises NotFound."""
        job = await self._find(namespace, name)
        if job is None:
            raise NotFound(f"there is no restore {name!r} in namespace {namespace!r}")
        return job

    async def _find(self, namespace: str, name: str) -> Row | None:
        found = await self._store.read(get_jobs, [_job_id(namespace, name), _earlier_job_id(namespace, name)])
        return found[0] if found else None

    def check(self, namespace: str, spec: RestoreSpec) -> tuple[RepositoryRow, str, Grant]:
        """The repository and the host of a restore, and the grant of its namespace. Raises Invalid, Forbidden."""
        try:
            row = self._catalog.repository(namespace, spec.repository_ref.name)
        except NotFound as error:
            raise Invalid.field("spec.repositoryRef.name", error.detail) from None
        host = spec.host or spec.source_host
        grant = self._catalog.grant(namespace)
        of_target = self._catalog.forbidden(namespace, paths=[spec.target], field="spec.target")
        if wrong := [*of_target, *self._catalog.in_force(row).errors]:
            raise Forbidden(f"namespace {namespace} may not reach this", wrong)
        if spec.setuid_and_devices and not grant.everywhere:
            detail = "needs a grant of all paths: leave it out, or ask the cluster's operator for one"
            raise Forbidden(
                f"namespace {namespace} may not have this", [{"field": "spec.setuidAndDevices", "detail": detail}]
            )
        state = self._placement.hosts.get(host)
        if state is None:
            raise Invalid.field("spec.host", f"there is no host {host!r}: name one that exists, or start its agent")
        if not grant.selects(state.labels):
            detail = f"{host} is not granted to namespace {namespace}: name another, or ask the cluster's operator"
            raise Forbidden(f"namespace {namespace} may not reach this", [{"field": "spec.host", "detail": detail}])
        return row, host, grant

    async def _record(self, actor: Actor, namespace: str, name: str, spec: RestoreSpec) -> Row:
        row, host, grant = self.check(namespace, spec)
        command = CommandRun(
            _job_id(namespace, name),
            "restore",
            [],
            arguments.repository_id(row.id, repository_spec(row.spec), spec.source_host, host),
            restore=_wanted(spec),
            within=list(grant.within),
            host_identity=grant.host_identity,
            options=repository_options(repository_spec(row.spec)),
        )
        now = self._clock()
        asked = {"restore": name, "host": host, **msgspec.to_builtins(_wanted(spec))}
        line = audit(now, actor, "restore", "Repository", full_name(row), **asked)
        await self._runs.record([NewJob(host, command, *actor, 0, now)], line)
        return await self.get(namespace, name)


def _job_id(namespace: str, name: str) -> str:
    """The id of a restore's job, derived from its name."""
    return lasting_job_id("restore", namespace, name)


def _earlier_job_id(namespace: str, name: str) -> str:
    """The id that older versions gave a restore's job. Such jobs may still be in the store."""
    return f"{name}-{hashlib.blake2b(f'restore {namespace}'.encode(), digest_size=8).hexdigest()}"


def _wanted(spec: RestoreSpec) -> Restore:
    return Restore(
        target=spec.target,
        snapshot=spec.snapshot,
        before=spec.before,
        source_host=spec.source_host,
        paths=list(spec.paths),
        overwrite=spec.overwrite,
        setuid_and_devices=spec.setuid_and_devices,
    )


def _is_same(job: Row, spec: RestoreSpec) -> bool:
    wanted = msgspec.json.decode(job["command"], type=CommandRun).restore
    return (job["host"], wanted) == (spec.host or spec.source_host, _wanted(spec))
