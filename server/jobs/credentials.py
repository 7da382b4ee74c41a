"""Which repositories each host needs, and their credentials: those of its Schedules and open jobs, no others."""

import logging
from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from server.access.vault import Vault, VaultError
from server.errors import as_text
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs import arguments
from server.jobs.active import ActiveAttempts
from server.resources.manifests import repository_spec
from server.store.rows import RepositoryRow
from wire import codec
from wire.entries import EntrySet
from wire.messages import RepoCredentials, Repository

log = logging.getLogger(__name__)


class RepositoryAccess(NamedTuple):
    """A repository that a host needs. `source_host`: the host whose name fills `{host}` in its URL; "" for itself."""

    row: RepositoryRow
    source_host: str = ""


class HostCredentials:
    """The repositories and credentials that hosts get."""

    def __init__(self, catalog: Catalog, placement: Placement, active: ActiveAttempts, vault: Vault) -> None:
        self._catalog = catalog
        self._placement = placement
        self._active = active
        self._vault = vault
        self._scheduled: WeakKeyDictionary[EntrySet, tuple[RepositoryAccess, ...]] = WeakKeyDictionary()

    def needed(self, host: str) -> tuple[RepositoryAccess, ...]:
        """The repositories of a host's Schedules, and those of its open jobs that belong to no Schedule."""
        jobs = self._active.of_no_schedule(host)
        if not jobs:
            return self._of_schedules(host)
        sources: dict[str, dict[str, None]] = {}  # by repository, in order
        for job in jobs:
            sources.setdefault(job.repository, {})[job.source_host] = None
        rows = self._catalog.repositories.values()
        return (
            *self._of_schedules(host),
            *(RepositoryAccess(row, source) for row in rows for source in sources.get(row.id, ())),
        )

    def _of_schedules(self, host: str) -> tuple[RepositoryAccess, ...]:
        """The repositories of a host's Schedules, looked up once for all hosts that hold the same set.

        The cached answer stays true: an entry's revision, and so the set, changes with its Repository and credentials.
        """
        hosts, schedules = self._placement.hosts, self._placement.schedules
        held = hosts[host].entries
        needed = self._scheduled.get(held)
        if needed is None:
            ids = {id_ for key in held.items for id_ in schedules[key].repository_ids}
            rows = self._catalog.repositories.values()
            needed = self._scheduled[held] = tuple(RepositoryAccess(row) for row in rows if row.id in ids)
        return needed

    def message(self, host: str, needed: Iterable[RepositoryAccess]) -> RepoCredentials:
        """The credentials of these repositories for a host.

        Those that cannot be decrypted, and those of a Repository that must not be used any more, are left out and
        logged.
        """
        found = []
        for row, source in needed:
            facts = {"repository": full_name(row), "host": host}
            if (resolved := self._catalog.resolved(row.id)) is not None and resolved.errors:
                log.warning("credentials left out", extra={**facts, "reason": as_text(resolved.errors)})
                continue
            try:
                secret = self._vault.opened(row.credentials)
            except VaultError as error:
                log.error("credentials left out", extra={**facts, "reason": error})
                continue
            spec = repository_spec(row.spec)
            id_ = arguments.repository_id(row.id, spec, source or host, host)
            url = arguments.repository_url(spec, row.namespace, source or host)
            password, env = (secret.password, secret.env) if secret else ("", {})
            found.append(Repository(id_, full_name(row), url, password, env))
        return RepoCredentials(found)

    def changed(self, host: str, sent: object) -> tuple[object, str] | None:
        """The repositories that a host needs, and the frame with their credentials; None if these equal `sent`."""
        needed = self.needed(host)
        return None if needed == sent else (needed, codec.encode((self.message(host, needed),)))
