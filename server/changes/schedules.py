"""Changes of Schedules."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from server.changes.change import Change, audit
from server.changes.pipeline import Commits
from server.errors import Forbidden, Invalid
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.fleet.timing import superseded, timing
from server.jobs import arguments
from server.resources import manifests
from server.resources.manifests import is_enabled, schedule_spec
from server.resources.targets import grant_errors
from server.resources.versions import Condition, unconditional, version_of
from server.store.rows import Row, ScheduleRow
from server.store.tables import Actor

_TIMING = ("cron", "crons", "timeZone", "hostSelector", "spreadSeconds")
"""The fields of a spec that decide when it is due, and on which hosts, beside whether it is enabled."""


class Schedules:
    """Creates, changes and deletes Schedules."""

    def __init__(
        self,
        pipeline: Commits,
        catalog: Catalog,
        placement: Placement,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._placement = placement
        self._clock = clock
        self._new_id = new_id

    async def put(self, actor: Actor, manifest: object, condition: Condition = unconditional) -> tuple[Row, bool]:
        """Create a schedule, or update it to the manifest; the same manifest again changes nothing.

        Returns the resource, and whether it is new. Raises Invalid, Forbidden, and what `condition` raises.
        """
        parsed = manifests.parse_schedule(manifest)
        namespace, spec = parsed.namespace, parsed.spec
        paths = spec.backup.paths if spec.backup else ()
        if wrong := self._catalog.forbidden(namespace, paths=paths, field="spec.backup.paths"):
            raise Forbidden(f"namespace {namespace} may not reach this", wrong)
        if parsed.ping_url is not None:
            grant = self._catalog.grant(namespace)
            if wrong := list(grant_errors(grant, namespace, [parsed.ping_url], "credentials.pingUrl")):
                raise Forbidden(f"namespace {namespace} may not ping this", wrong)
        if spec.kind not in arguments.KINDS:
            runs = ", ".join(sorted(arguments.KINDS))
            raise Invalid.field("spec.kind", f"{spec.kind!r} cannot be run by this version: use one of {runs}")
        return await self._pipeline.planned(partial(self._put, actor, parsed, condition))

    async def _put(self, actor: Actor, parsed: manifests.Schedule, condition: Condition) -> tuple[Row, bool]:
        namespace = parsed.namespace
        old = self._catalog.schedules.get((namespace, parsed.name))
        condition(version_of(old))
        source = parsed.spec.from_repository
        self._require(namespace, parsed.spec.repository, "spec.repositoryRef.name")
        if source:
            self._require(namespace, source, "spec.copy.fromRepositoryRef.name")
        kept = self._catalog.ping_url(old) if old is not None else None
        if old is not None and (old.spec, old.labels, kept) == (parsed.raw_spec, parsed.labels, parsed.ping_url):
            return old._asdict(), False
        now = self._clock()
        row = self._row(old, parsed, now)
        line = audit(now, actor, "update" if old else "create", "Schedule", full_name(row), spec=row.spec)
        placed = self._catalog.place(row)
        await self._pipeline.commit(Change(now, [line], put_schedules=[row]), self._placement.plan([placed]))
        return row._asdict(), old is None

    def _require(self, namespace: str, repository: str, field: str) -> None:
        """Raises Invalid for a Repository that does not exist. `field`: which names it."""
        if (namespace, repository) not in self._catalog.repositories:
            there = f"there is no Repository {repository!r} in namespace {namespace!r}"
            raise Invalid.field(field, f"{there}: create it first, or name one that exists")

    async def delete(self, actor: Actor, namespace: str, name: str, condition: Condition = unconditional) -> None:
        """Delete a schedule; its jobs stay. Raises NotFound, and what `condition` raises."""
        await self._pipeline.planned(partial(self._delete, actor, namespace, name, condition))

    async def _delete(self, actor: Actor, namespace: str, name: str, condition: Condition) -> None:
        row = self._catalog.schedule(namespace, name)
        condition(version_of(row))
        now = self._clock()
        line = audit(now, actor, "delete", "Schedule", full_name(row))
        change = Change(now, [line], delete_schedules=[row])
        await self._pipeline.commit(change, self._placement.plan(remove=[row.id]))

    def _row(self, old: ScheduleRow | None, parsed: manifests.Schedule, now: datetime) -> ScheduleRow:
        """The row of a new or changed schedule.

        If it changes when or where it is due, due times before now do not count: they would be run as missed.
        """
        row = ScheduleRow(
            old.id if old else self._new_id(),
            parsed.namespace,
            parsed.name,
            parsed.labels,
            parsed.raw_spec,
            old.generation + (old.spec != parsed.raw_spec) if old else 1,
            old.created_at if old else now,
            now,
            now,
            now,
            ping=self._catalog.sealed_ping(parsed.ping_url),
        )
        if old is None:
            return row
        was_enabled = is_enabled(old.spec)
        if was_enabled:
            row = row._replace(enabled_since=old.enabled_since or old.since)
        same = all(old.spec.get(key) == row.spec.get(key) for key in _TIMING)
        if same and was_enabled == is_enabled(row.spec):
            return row._replace(since=old.since, earlier=old.earlier)
        spec = schedule_spec(old.spec)
        return row._replace(earlier=superseded(timing(spec, old.since), old.earlier) if spec.enabled else old.earlier)
