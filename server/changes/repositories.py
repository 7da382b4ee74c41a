"""Changes of Repositories and their credentials."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from server.access.vault import Vault
from server.changes.change import Change, audit
from server.changes.pipeline import Commits
from server.errors import Conflict, Forbidden, Invalid
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement, Plan
from server.resources import manifests
from server.resources.bindings import binding_errors
from server.resources.manifests import Credentials
from server.resources.versions import Condition, unconditional, version_of
from server.store.rows import RepositoryRow, Row
from server.store.tables import Actor


class Repositories:
    """Creates, changes and deletes Repositories."""

    def __init__(
        self,
        pipeline: Commits,
        catalog: Catalog,
        placement: Placement,
        vault: Vault,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._placement = placement
        self._vault = vault
        self._clock = clock
        self._new_id = new_id

    async def put(self, actor: Actor, manifest: object, condition: Condition = unconditional) -> tuple[Row, bool]:
        """Create a repository, or update it to the manifest; the same manifest again changes nothing.

        Every host whose schedules use it gets the new credentials, and a new version of its set. Returns the resource,
        and whether it is new. Raises Invalid, Forbidden, and what `condition` raises.
        """
        parsed = manifests.parse_repository(manifest)
        self._check(parsed)
        return await self._pipeline.planned(partial(self._put, actor, parsed, condition))

    async def _put(self, actor: Actor, parsed: manifests.Repository, condition: Condition) -> tuple[Row, bool]:
        old = self._catalog.repositories.get((parsed.namespace, parsed.name))
        condition(version_of(old))
        kept = self._catalog.credentials(old) if old is not None else None
        if old is not None and (old.spec, old.labels, kept) == (parsed.raw_spec, parsed.labels, parsed.credentials):
            return old._asdict(), False
        now = self._clock()
        row = self._row(old, parsed, now)
        changed = "changed" if kept != parsed.credentials else "unchanged"
        detail = {"spec": row.spec, "credentials": changed}
        line = audit(now, actor, "update" if old else "create", "Repository", full_name(row), **detail)
        resolved = self._catalog.resolve(row)
        users = [self._catalog.place(it, [resolved]) for it in self._catalog.schedules_of(row)]
        warned = {"repository": full_name(row), "fields": ", ".join(parsed.trimmed)}
        warnings = [("newline at the end of a secret left out", warned)] if parsed.trimmed else []
        moved = [row.id] if old is not None and old.spec["url"] != row.spec["url"] else []
        change = Change(now, [line], warnings=warnings, moved_repositories=moved)
        await self._pipeline.commit(change, self._placement.plan(users), [resolved])
        return row._asdict(), old is None

    async def delete(self, actor: Actor, namespace: str, name: str, condition: Condition = unconditional) -> None:
        """Delete a Repository; the data in it stays. Raises NotFound, Conflict while a Schedule uses it."""
        await self._pipeline.planned(partial(self._delete, actor, namespace, name, condition))

    async def _delete(self, actor: Actor, namespace: str, name: str, condition: Condition) -> None:
        row = self._catalog.repository(namespace, name)
        condition(version_of(row))
        if users := sorted(map(full_name, self._catalog.schedules_of(row))):
            what = f"{full_name(row)} is used by Schedule {', '.join(users[:5])}"
            raise Conflict(f"{what}: delete or change what uses it first")
        now = self._clock()
        line = audit(now, actor, "delete", "Repository", full_name(row))
        await self._pipeline.commit(Change(now, [line], delete_repositories=[row]), Plan())

    def _check(self, parsed: manifests.Repository) -> None:
        """Raises Invalid for a URL that no namespace may use, Forbidden for what this one may not reach or use."""
        if wrong := self._catalog.scheme_errors(parsed.spec.url):
            raise Invalid("the Repository is not valid", wrong)
        if wrong := self._catalog.forbidden(parsed.namespace, parsed.spec.url):
            raise Forbidden(f"namespace {parsed.namespace} may not reach this", wrong)
        given, grant = parsed.credentials or Credentials(), self._catalog.grant(parsed.namespace)
        if wrong := list(binding_errors(parsed.namespace, parsed.spec, given, grant)):
            raise Forbidden("the Secret is not for this repository", wrong)

    def _row(self, old: RepositoryRow | None, parsed: manifests.Repository, now: datetime) -> RepositoryRow:
        return RepositoryRow(
            old.id if old else self._new_id(),
            parsed.namespace,
            parsed.name,
            parsed.labels,
            parsed.raw_spec,
            old.generation + 1 if old else 1,
            old.created_at if old else now,
            now,
            self._vault.seal(parsed.credentials) if parsed.credentials is not None else None,
        )
