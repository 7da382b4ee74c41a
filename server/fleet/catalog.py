"""The catalog: the resources that are declared and in force, as they are stored, and what hosts are matched with.

`changes` alone puts something in. Nothing here has a second copy: which host should hold what follows from it in
`placement`, and what a host does hold is in its session.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import msgspec

from server.access.vault import Vault, VaultError
from server.errors import FieldError, NotFound
from server.events import Key
from server.fleet.placement import PlacedSchedule, entry_item
from server.resources.bindings import binding_errors
from server.resources.grants import NOTHING, Grant, Grants, path_errors, url_errors
from server.resources.manifests import Credentials, repository_spec, schedule_spec
from server.resources.urls import SCHEMES, scheme_errors
from server.store.rows import RepositoryRow, ScheduleRow

R = TypeVar("R", ScheduleRow, RepositoryRow)


class ResolvedRepository(NamedTuple):
    """A repository as its schedules need it. `init`: whether a backup may create it. `opened`: whether a password is
    known that opens it. `wrong`: why its URL, or the Secrets with it, do not pass the current grant and the rules of
    schemes and bindings, all of which may change after the Repository was accepted."""

    row: RepositoryRow
    init: bool
    opened: bool
    wrong: Sequence[FieldError]


class Catalog:
    """Schedules and repositories by (namespace, name), and the rules of the operator: grants, and schemes of URLs."""

    def __init__(self, vault: Vault, grants: Grants | None = None, schemes: Sequence[str] = SCHEMES) -> None:
        self.schedules: dict[Key, ScheduleRow] = {}
        self.repositories: dict[Key, RepositoryRow] = {}
        self._resolved: dict[str, ResolvedRepository] = {}
        self._vault = vault
        self._grants = grants or Grants()
        self._schemes = schemes

    def schedule(self, namespace: str, name: str) -> ScheduleRow:
        """A schedule. Raises NotFound."""
        return _found("Schedule", self.schedules, namespace, name)

    def repository(self, namespace: str, name: str) -> RepositoryRow:
        """A repository. Raises NotFound."""
        return _found("Repository", self.repositories, namespace, name)

    def repository_of(self, schedule: ScheduleRow) -> RepositoryRow:
        """The repository that a schedule uses."""
        return self.repositories[repository_key(schedule)]

    def users(self, repository: RepositoryRow) -> list[ScheduleRow]:
        """The schedules that use a repository."""
        key = repository.namespace, repository.name
        return [it for it in self.schedules.values() if repository_key(it) == key]

    def put(self, schedules: Sequence[ScheduleRow] = (), repositories: Sequence[ResolvedRepository] = ()) -> None:
        """These are in force."""
        self.schedules.update(((row.namespace, row.name), row) for row in schedules)
        self.repositories.update(((it.row.namespace, it.row.name), it.row) for it in repositories)
        self._resolved.update((it.row.id, it) for it in repositories)

    def remove(self, schedules: Sequence[ScheduleRow] = (), repositories: Sequence[RepositoryRow] = ()) -> None:
        """These are in force no more."""
        for schedule in schedules:
            del self.schedules[schedule.namespace, schedule.name]
        for repository in repositories:
            del self.repositories[repository.namespace, repository.name], self._resolved[repository.id]

    # What the operator allows.

    def grant(self, namespace: str) -> Grant:
        """What a namespace may reach."""
        return self._grants.of(namespace)

    def forbidden(self, namespace: str, url: str = "", paths: Sequence[str] = (), field: str = "") -> list[FieldError]:
        """What of a URL and of paths a namespace may not reach. `field`: where the paths stand in its manifest."""
        grant = self.grant(namespace)
        of_url = chain(url_errors(grant, namespace, url), scheme_errors(url, self._schemes)) if url else ()
        return [*path_errors(grant, namespace, paths, field), *of_url]

    def scheme_errors(self, url: str) -> list[FieldError]:
        """What is wrong with a URL's scheme for any namespace."""
        return list(scheme_errors(url, self._schemes))

    # What hosts are matched with.

    def resolved(self, repository_id: str) -> ResolvedRepository | None:
        """A repository that is in force, as its schedules need it; None for one that is not."""
        return self._resolved.get(repository_id)

    def in_force(self, row: RepositoryRow) -> ResolvedRepository:
        """A repository of the catalog, as its schedules need it: worked out once, when it was put."""
        return self._resolved[row.id]

    def resolve(self, row: RepositoryRow) -> ResolvedRepository:
        """A repository as its schedules would need it, in force or not. Opens its credentials."""
        spec, given = repository_spec(row.spec), self.credentials(row) or Credentials()
        wrong = self.forbidden(row.namespace, spec.url)
        wrong += binding_errors(row.namespace, spec, given, self.grant(row.namespace))
        return ResolvedRepository(row, spec.init, bool(given.password), wrong)

    def resolved_of(self, schedule: ScheduleRow) -> ResolvedRepository:
        """The repository that a schedule uses."""
        return self.in_force(self.repository_of(schedule))

    def credentials(self, row: RepositoryRow) -> Credentials | None:
        """The credentials that a repository has; None also for those that cannot be opened, which may be replaced."""
        try:
            return self._vault.opened(row.credentials)
        except VaultError:
            return None

    def place(self, row: ScheduleRow, resolved: ResolvedRepository) -> PlacedSchedule:
        """A schedule as hosts are matched with it. Its revision covers all that its runs depend on."""
        spec, repository, grant = schedule_spec(row.spec), resolved.row, self.grant(row.namespace)
        basis = (row.generation, row.spec, repository.id, repository.generation)
        revision = hashlib.blake2b(msgspec.json.encode(basis, order="deterministic"), digest_size=8).hexdigest()
        paths = spec.backup.paths if spec.backup else ()
        allowed = not resolved.wrong and not self.forbidden(row.namespace, paths=paths)
        return PlacedSchedule(
            row.id,
            full_name(row),
            spec,
            repository.id,
            resolved.init,
            entry_item(row.id, full_name(row), spec, row.since, revision),
            grant.host_selector if allowed else NOTHING,
            grant.within,
            grant.host_identity,
            row.since,
            row.earlier,
        )


def full_name(row: ScheduleRow | RepositoryRow) -> str:
    """Its namespace/name."""
    return f"{row.namespace}/{row.name}"


def repository_key(schedule: ScheduleRow) -> Key:
    """Namespace and name of the repository that a schedule uses."""
    return schedule.namespace, schedule.spec["repositoryRef"]["name"]


def _found(kind: str, rows: Mapping[Key, R], namespace: str, name: str) -> R:
    row = rows.get((namespace, name))
    if row is None:
        raise NotFound(f"there is no {kind} {namespace}/{name}")
    return row
