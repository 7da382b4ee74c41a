"""What jobs need and show of each repository: its concurrency limit, whether one has opened it yet, its health."""

from datetime import datetime

from server.errors import as_text
from server.events import ClockSetBack, DeclarationChanged, Event, Events, RepositoryHealthChanged
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs.job import ConcurrencyLimit, Job
from server.jobs.lanes import Lanes
from server.jobs.outcomes import Health
from server.resources.manifests import repository_spec
from server.store.rows import RepositoryRow
from server.store.tables import GOOD
from wire.messages import CommandRun, JobFinished


class RepositoryStates:
    """The state of repositories by id. Sets the limits of their lanes."""

    def __init__(self, catalog: Catalog, placement: Placement, lanes: Lanes, events: Events) -> None:
        self.health = Health()
        self._catalog = catalog
        self._placement = placement
        self._lanes = lanes
        self._events = events
        self._opened: dict[str, str] = {}  # the URL at which a job has opened a repository

    def name(self, repository: str) -> str:
        """The name of a repository, NAMESPACE/NAME; empty for one that is not declared."""
        resolved = self._catalog.resolved(repository)
        return "" if resolved is None else full_name(resolved.row)

    def on_event(self, event: Event) -> None:
        """Follow repositories that are put or deleted, and correct times when the clock was wrong."""
        if isinstance(event, ClockSetBack):
            self.health.clock_set_back(event.now)
        elif isinstance(event, DeclarationChanged):
            for repository in event.deleted_repositories:
                self.forget(repository)
            for key in event.repositories:
                self.limit(self._catalog.repositories[key])

    def limit(self, row: RepositoryRow) -> None:
        """Set the limit of a repository's lane: one job while the repository may not exist yet.

        Two concurrent `restic init` leave a repository that neither host can open, so creation is serialised.
        """
        spec = repository_spec(row.spec)
        creating = spec.init and self._opened.get(row.id) != spec.url
        limit = ConcurrencyLimit(1 if creating else spec.max_concurrent_jobs, "{host}" in spec.url)
        self._lanes.limit(row.id, limit)

    def forget(self, repository: str) -> None:
        """Drop what is known of a repository that was deleted, and its limit."""
        self._opened.pop(repository, None)
        self._lanes.limit(repository, ConcurrencyLimit())
        self.health.forget(repository)

    def withdrawn(self, host: str, command: CommandRun) -> str:
        """Why a recorded job must not run under the present grants, as text for users; empty if it may."""
        resolved = self._catalog.resolved(command.repository.partition("/")[0])
        state = self._placement.hosts.get(host)
        if resolved is None or state is None:
            return ""
        row = resolved.row
        if resolved.errors:
            return f"{full_name(row)}: {as_text(resolved.errors)}"
        grant = self._catalog.grant(row.namespace)
        if grant.still_grants(command.within, command.host_identity) and grant.selects(state.labels):
            return ""
        return f"namespace {row.namespace} was granted more when this was asked for: ask for it again"

    def mark_opened(self, repository: str) -> bool:
        """A job opened a repository, so it exists. Returns whether that was unknown, and the limit may have risen."""
        resolved = self._catalog.resolved(repository)
        if resolved is None or self._opened.get(repository) == (url := resolved.row.spec["url"]):
            return False
        self._opened[repository] = url
        self.limit(resolved.row)
        return True

    def remember(self, repository: str, host: str, kind: str, end: JobFinished, succeeded_at: datetime | None) -> None:
        """Take in from the store how a Schedule's last job on a host ended. `succeeded_at`: when one last succeeded."""
        if succeeded_at is not None:
            self.mark_opened(repository)
        self.health.attempt_ended(repository, host, kind, end)
        if kind == "verify" and succeeded_at is not None:
            self.health.remember_verified(repository, succeeded_at)

    def attempt_ended(self, job: Job, end: JobFinished) -> None:
        """Note what an attempt showed of its repository, and publish RepositoryHealthChanged if that is new."""
        if end.status in GOOD:
            self.mark_opened(job.repository)
        # A job of no Schedule may name a repository that was deleted meanwhile.
        command = job.command
        if command.schedule_id and self.health.attempt_ended(command.repository, job.host, command.kind, end):
            self._events.publish(RepositoryHealthChanged(command.repository))
