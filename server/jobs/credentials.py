"""Which repositories each host needs, and what opens them: those of its schedules and of its open jobs, no others."""

import logging
from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from server.access.vault import Vault, VaultError
from server.errors import as_text
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs import arguments
from server.jobs.job import Job
from server.jobs.lanes import Lanes
from server.resources.manifests import repository_spec
from server.store.rows import RepositoryRow
from wire import codec
from wire.entries import EntrySet
from wire.messages import RepoCredentials, Repository

log = logging.getLogger(__name__)


class RepositoryAccess(NamedTuple):
    """A repository that a host needs. `source_host`: the host whose name is in its URL; "" for the host's own."""

    row: RepositoryRow
    source_host: str = ""


class HostCredentials:
    """What each host is told of repositories."""

    def __init__(self, catalog: Catalog, placement: Placement, lanes: Lanes, vault: Vault) -> None:
        self._catalog = catalog
        self._placement = placement
        self._lanes = lanes
        self._vault = vault
        self._scheduled: WeakKeyDictionary[EntrySet, tuple[RepositoryAccess, ...]] = WeakKeyDictionary()

    def needed(self, host: str) -> tuple[RepositoryAccess, ...]:
        """The repositories that a host's schedules use, and those of its open jobs that are of no schedule."""
        jobs = self._lanes.of_schedule("", host)
        return self._of_schedules(host) + self._of_jobs(jobs) if jobs else self._of_schedules(host)

    def _of_jobs(self, jobs: Iterable[Job]) -> tuple[RepositoryAccess, ...]:
        wanted: dict[str, dict[str, None]] = {}
        for job in jobs:
            wanted.setdefault(job.repository, {})[job.source_host if job.source_host != job.host else ""] = None
        rows = self._catalog.repositories.values()
        return tuple(RepositoryAccess(row, source) for row in rows for source in wanted.get(row.id, ()))

    def _of_schedules(self, host: str) -> tuple[RepositoryAccess, ...]:
        """What a host's schedules need; found once for all hosts that hold the same.

        A set's digest covers them: an entry's revision changes with its repository, credentials and all.
        """
        hosts, schedules = self._placement.hosts, self._placement.schedules
        held = hosts[host].entries
        needed = self._scheduled.get(held)
        if needed is None:
            ids = {schedules[key].repository_id for key in held.items}
            rows = self._catalog.repositories.values()
            needed = self._scheduled[held] = tuple(RepositoryAccess(row) for row in rows if row.id in ids)
        return needed

    def message(self, host: str, needed: Iterable[RepositoryAccess]) -> RepoCredentials:
        """What opens these repositories on a host; those whose credentials cannot be opened, or must not be used with
        the repository's URL (any more), are left out."""
        told = []
        for row, source in needed:
            facts = {"repository": full_name(row), "host": host}
            if (resolved := self._catalog.resolved(row.id)) is not None and resolved.errors:
                log.warning("credentials left out", extra={**facts, "reason": as_text(resolved.errors)})
                continue
            try:
                told.append(self._repository(row, host, source))
            except VaultError as error:
                log.error("credentials left out", extra={**facts, "reason": error})
        return RepoCredentials(told)

    def changed(self, host: str, told: object) -> tuple[object, str] | None:
        """What a host needs now, and the frame that opens it; None where that is what it was told."""
        needed = self.needed(host)
        return None if needed == told else (needed, codec.encode((self.message(host, needed),)))

    def _repository(self, row: RepositoryRow, host: str, source: str) -> Repository:
        spec = repository_spec(row.spec)
        secret = self._vault.opened(row.credentials)
        url = arguments.repository_url(spec, row.namespace, source or host)
        id_ = arguments.repository_id(row.id, spec, source or host, host)
        return Repository(id_, full_name(row), url, secret.password if secret else "", secret.env if secret else {})
