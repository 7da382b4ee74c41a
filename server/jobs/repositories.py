"""What jobs need and show of each repository: its concurrency limit, whether one has opened it yet, its health."""

from datetime import datetime

from server.errors import as_text
from server.events import (
    AttemptEnded,
    ClockSetBack,
    DeclarationChanged,
    Event,
    Events,
    LimitChanged,
    RepositoryHealthChanged,
)
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs.kinds import ConcurrencyLimit, repository_of
from server.jobs.outcomes import Health
from server.resources.manifests import repository_spec
from server.store.rows import RepositoryRow
from server.store.tables import GOOD
from wire.messages import CommandRun, JobFinished


class RepositoryStates:
    """The state of repositories by id."""

    def __init__(self, catalog: Catalog, placement: Placement, events: Events) -> None:
        self.health = Health()
        self._catalog = catalog
        self._placement = placement
        self._events = events
        self._limits: dict[str, ConcurrencyLimit] = {}
        self._opened: dict[str, str] = {}  # the URL at which a job has opened a repository

    def name(self, repository: str) -> str:
        """The name of a repository, NAMESPACE/NAME; empty for one that is not declared. Any thread may ask."""
        resolved = self._catalog.resolved(repository)
        return "" if resolved is None else full_name(resolved.row)

    def namespace(self, repository: str) -> str:
        """The namespace of a repository; empty for one that is not declared. Any thread may ask."""
        return self.name(repository).partition("/")[0]

    def url(self, repository: str) -> str:
        """The URL that is declared for a repository; empty for one that is not declared. Any thread may ask."""
        resolved = self._catalog.resolved(repository)
        return "" if resolved is None else str(resolved.row.spec["url"])

    def limit(self, repository: str) -> ConcurrencyLimit:
        """How many jobs may use a repository at once. Any thread may ask."""
        return self._limits.get(repository, _UNLIMITED)

    def on_event(self, event: Event) -> None:
        """Follow repositories that are put or deleted, and correct times when the clock was wrong."""
        if isinstance(event, ClockSetBack):
            self.health.clock_set_back(event.now)
        elif isinstance(event, DeclarationChanged):
            for repository in event.deleted_repositories:
                self.forget(repository)
            for key in event.repositories:
                self.put(self._catalog.repositories[key])

    def forget(self, repository: str) -> None:
        """Drop a repository that was deleted, with its limit and health."""
        self._opened.pop(repository, None)
        self._set_limit(repository, _UNLIMITED)
        self.health.forget(repository)

    def withdrawn(self, host: str, command: CommandRun) -> str:
        """Why a recorded job must not run under the present grants, as text for users; empty if it may."""
        resolved = self._catalog.resolved(repository_of(command))
        state = self._placement.hosts.get(host)
        if resolved is None or state is None:
            return ""
        row = resolved.row
        for it in (resolved, self._catalog.resolved(command.from_repository)):
            if it is not None and it.errors:
                return f"{full_name(it.row)}: {as_text(it.errors)}"
        grant = self._catalog.grant(row.namespace)
        if grant.still_grants(command.within, command.host_identity) and grant.selects(state.labels):
            return ""
        return f"namespace {row.namespace} was granted more when this was asked for: ask for it again"

    def mark_opened(self, repository: str) -> str | None:
        """A job opened a repository, so it exists, and its limit may rise. Returns its URL if that is new."""
        resolved = self._catalog.resolved(repository)
        if resolved is None or self._opened.get(repository) == (url := str(resolved.row.spec["url"])):
            return None
        self._opened[repository] = url
        self.put(resolved.row)
        return url

    def heard_opened(self, repository: str, url: str) -> None:
        """A job opened a repository at this URL on another server, which may be ahead or behind."""
        if (declared := self.url(repository)) == url:
            self.mark_opened(repository)
        elif not declared or self._opened.get(repository) != declared:
            self._opened[repository] = url

    def put(self, row: RepositoryRow) -> None:
        """Take in a new or changed repository. The limit of its lane is one job while it may not exist yet.

        Two concurrent `restic init` leave a repository that neither host can open, so creation is serialised.
        """
        spec = repository_spec(row.spec)
        creating = spec.init and self._opened.get(row.id) != spec.url
        self._set_limit(row.id, ConcurrencyLimit(1 if creating else spec.max_concurrent_jobs, "{host}" in spec.url))

    def _set_limit(self, repository: str, limit: ConcurrencyLimit) -> None:
        before = self.limit(repository)
        if limit == _UNLIMITED:
            self._limits.pop(repository, None)
        else:
            self._limits[repository] = limit
        if limit != before:
            self._events.publish(LimitChanged(repository, limit.per_host != before.per_host))

    def remember(self, repository: str, host: str, kind: str, end: JobFinished, succeeded_at: datetime | None) -> None:
        """Take in from the store how a Schedule's last job on a host ended. `succeeded_at`: when one last succeeded."""
        if succeeded_at is not None:
            self.mark_opened(repository)
        self.health.attempt_ended(repository, host, kind, end)
        if kind == "verify" and succeeded_at is not None:
            self.health.remember_verified(repository, succeeded_at)

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """Note what an attempt showed of its repository, and publish RepositoryHealthChanged if that is new."""
        self._note_health(ended)
        if ended.end.status in GOOD:
            self.mark_opened(ended.repository)

    def heard_end(self, ended: AttemptEnded, url: str) -> None:
        """The same of an attempt that ended on another server. `url`: at which it opened its repository, "" if not."""
        self._note_health(ended)
        if url:
            self.heard_opened(ended.repository, url)

    def _note_health(self, ended: AttemptEnded) -> None:
        # A job of no Schedule may name a repository that was deleted meanwhile.
        if ended.schedule_id and self.health.attempt_ended(ended.repository, ended.host, ended.kind, ended.end):
            self._events.publish(RepositoryHealthChanged(ended.repository))


_UNLIMITED = ConcurrencyLimit()
