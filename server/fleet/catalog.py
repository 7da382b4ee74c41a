"""The catalog: the rows of all Schedules and Repositories in force, and how a schedule is prepared for placement.

Only `changes` writes to it. It does not know hosts: what each host should hold is in `placement`, and what each host
does hold is in its session.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import msgspec

from server.access.vault import Vault, VaultError
from server.errors import FieldError, NotFound
from server.events import Key
from server.fleet.placement import PlacedSchedule, encoded_entry
from server.resources.bindings import binding_errors
from server.resources.grants import NOTHING, Grant, Grants, path_errors, url_errors
from server.resources.manifests import Credentials, repository_spec, schedule_spec
from server.resources.restic import copy_options, repository_options
from server.resources.urls import SCHEMES, scheme_errors
from server.store.rows import RepositoryRow, ScheduleRow

R = TypeVar("R", ScheduleRow, RepositoryRow)

_encode = msgspec.json.Encoder(order="deterministic").encode


class PingUrl(msgspec.Struct, frozen=True):
    """The URL that a schedule pings. Its repr hides it."""

    url: str

    def __repr__(self) -> str:
        return "PingUrl(...)"


class ResolvedRepository(NamedTuple):
    """A repository with what its schedules need to know of it.

    `init`: whether a backup may create it. `has_password`: whether its Secrets have a password. `errors`: why its URL
    or its Secrets break the current grant, the allowed schemes or the bindings. All three may change after the
    Repository was accepted.
    """

    row: RepositoryRow
    init: bool
    has_password: bool
    errors: Sequence[FieldError]


class Catalog:
    """Schedules and repositories by (namespace, name), and the cluster operator's rules: grants and URL schemes."""

    def __init__(self, vault: Vault, grants: Grants | None = None, schemes: Sequence[str] = SCHEMES) -> None:
        self.schedules: dict[Key, ScheduleRow] = {}
        self.repositories: dict[Key, RepositoryRow] = {}
        self._resolved: dict[str, ResolvedRepository] = {}
        self._vault = vault
        self._grants = grants or Grants()
        self._schemes = schemes

    def copy(self) -> "Catalog":
        """A catalog of the same rows and rules, whose changes do not touch this one."""
        copied = Catalog(self._vault, self._grants, self._schemes)
        copied.put(list(self.schedules.values()), list(self._resolved.values()))
        return copied

    def schedule(self, namespace: str, name: str) -> ScheduleRow:
        """The row of a schedule. Raises NotFound."""
        return _found("Schedule", self.schedules, namespace, name)

    def repository(self, namespace: str, name: str) -> RepositoryRow:
        """The row of a repository. Raises NotFound."""
        return _found("Repository", self.repositories, namespace, name)

    def repository_of(self, schedule: ScheduleRow) -> RepositoryRow:
        """The repository that a schedule uses."""
        return self.repositories[repository_key(schedule)]

    def schedules_of(self, repository: RepositoryRow) -> list[ScheduleRow]:
        """The schedules that use a repository, also those that copy from it."""
        key = repository.namespace, repository.name
        return [it for it in self.schedules.values() if key in (repository_key(it), from_repository_key(it))]

    def put(self, schedules: Sequence[ScheduleRow] = (), repositories: Sequence[ResolvedRepository] = ()) -> None:
        """Put rows in force, in place of older rows of the same names."""
        self.schedules.update(((row.namespace, row.name), row) for row in schedules)
        self.repositories.update(((it.row.namespace, it.row.name), it.row) for it in repositories)
        self._resolved.update((it.row.id, it) for it in repositories)

    def remove(self, schedules: Sequence[ScheduleRow] = (), repositories: Sequence[RepositoryRow] = ()) -> None:
        """Take rows out of force. Raises KeyError for a row that is not in force."""
        for schedule in schedules:
            del self.schedules[schedule.namespace, schedule.name]
        for repository in repositories:
            del self.repositories[repository.namespace, repository.name], self._resolved[repository.id]

    # The cluster operator's rules.

    def grant(self, namespace: str) -> Grant:
        """The grant of a namespace."""
        return self._grants.of(namespace)

    def forbidden(self, namespace: str, url: str = "", paths: Sequence[str] = (), field: str = "") -> list[FieldError]:
        """Why a namespace may not use a URL and paths. `field`: the field of the manifest that has the paths."""
        grant = self.grant(namespace)
        of_url = chain(url_errors(grant, namespace, url), scheme_errors(url, self._schemes)) if url else ()
        return [*path_errors(grant, namespace, paths, field), *of_url]

    def scheme_errors(self, url: str) -> list[FieldError]:
        """Why the scheme of a URL is not allowed in any namespace."""
        return list(scheme_errors(url, self._schemes))

    # Preparation for placement.

    def resolved(self, repository_id: str) -> ResolvedRepository | None:
        """A repository in force, by its id; None when it is not in force."""
        return self._resolved.get(repository_id)

    def in_force(self, row: RepositoryRow) -> ResolvedRepository:
        """A repository in force, as it was resolved for `put`. Raises KeyError when it is not in force."""
        return self._resolved[row.id]

    def resolve(self, row: RepositoryRow) -> ResolvedRepository:
        """Check a repository, in force or not, against the current rules. Decrypts its credentials."""
        spec, given = repository_spec(row.spec), self.credentials(row) or Credentials()
        errors = self.forbidden(row.namespace, spec.url)
        errors += binding_errors(row.namespace, spec, given, self.grant(row.namespace))
        return ResolvedRepository(row, spec.init, bool(given.password), errors)

    def resolved_of(self, schedule: ScheduleRow) -> ResolvedRepository:
        """The repository that a schedule uses, resolved."""
        return self.in_force(self.repository_of(schedule))

    def from_resolved_of(self, schedule: ScheduleRow) -> ResolvedRepository | None:
        """The repository that a schedule copies from, resolved; None for a schedule of another kind."""
        key = from_repository_key(schedule)
        return None if key is None else self.in_force(self.repositories[key])

    def credentials(self, row: RepositoryRow) -> Credentials | None:
        """The credentials of a repository; None when it has none, or when the vault cannot decrypt them.

        That is no error: the user can replace such credentials with the next PUT.
        """
        try:
            return self._vault.opened(row.credentials)
        except VaultError:
            return None

    def ping_url(self, row: ScheduleRow) -> str | None:
        """The URL that a schedule pings; None when it pings none, or when the vault cannot decrypt it."""
        try:
            return None if row.ping is None else self._vault.unseal(row.ping, PingUrl).url
        except VaultError:
            return None

    def sealed_ping(self, url: str | None) -> str | None:
        """A URL to ping, for the row of a schedule."""
        return None if url is None else self._vault.seal(PingUrl(url))

    def place(self, row: ScheduleRow, changed: Iterable[ResolvedRepository] = ()) -> PlacedSchedule:
        """Prepare a schedule for placement. `changed`: repositories that are not in force yet as they are here.

        The revision of its entry is a hash of everything that its runs depend on. A schedule whose paths or
        repositories are not granted selects no host.
        """
        spec, grant = schedule_spec(row.spec), self.grant(row.namespace)
        newer = {(it.row.namespace, it.row.name): it for it in changed}
        resolved = newer.get(repository_key(row)) or self.resolved_of(row)
        key = from_repository_key(row)
        source = None if key is None else newer.get(key) or self.from_resolved_of(row)
        repository = resolved.row
        basis: tuple[object, ...] = (row.generation, row.spec, repository.id, repository.generation)
        if source is not None:
            basis = (*basis, source.row.id, source.row.generation)
        revision = hashlib.blake2b(_encode(basis), digest_size=8).hexdigest()
        paths = spec.backup.paths if spec.backup else ()
        errors = resolved.errors or (source is not None and source.errors)
        allowed = not errors and (grant.everywhere or not self.forbidden(row.namespace, paths=paths))
        name, its = full_name(row), repository_spec(repository.spec)
        options = repository_options(its) if source is None else copy_options(its, repository_spec(source.row.spec))
        return PlacedSchedule(
            row.id,
            name,
            spec,
            repository.id,
            resolved.init,
            encoded_entry(row.id, name, spec, row.since, revision),
            grant.host_selector if allowed else NOTHING,
            grant.within,
            grant.host_identity,
            row.since,
            row.earlier,
            tuple(options),
            "" if source is None else source.row.id,
        )


def full_name(row: ScheduleRow | RepositoryRow) -> str:
    """NAMESPACE/NAME of a schedule or repository."""
    return f"{row.namespace}/{row.name}"


def repository_key(schedule: ScheduleRow) -> Key:
    """Namespace and name of the repository that a schedule uses."""
    return schedule.namespace, schedule.spec["repositoryRef"]["name"]


def from_repository_key(schedule: ScheduleRow) -> Key | None:
    """Namespace and name of the repository that a schedule copies from; None for a schedule of another kind."""
    copied = schedule.spec.get("copy")
    return None if copied is None else (schedule.namespace, copied["fromRepositoryRef"]["name"])


def _found(kind: str, rows: Mapping[Key, R], namespace: str, name: str) -> R:
    row = rows.get((namespace, name))
    if row is None:
        raise NotFound(f"there is no {kind} {namespace}/{name}")
    return row
