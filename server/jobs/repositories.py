"""What the jobs' side knows of each repository: its limit, whether a job has opened it yet, and how healthy it is."""

from datetime import datetime

from server.errors import as_text
from server.events import ClockSetBack, DeclarationChanged, Event, Events, RepositoryHealthChanged
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs.job import ConcurrencyLimit, Job
from server.jobs.lanes import Lanes
from server.jobs.outcomes import Health
from server.resources.manifests import repository_spec
from server.resources.specs import RepositorySpec
from server.store.rows import RepositoryRow
from server.store.tables import GOOD
from wire.messages import CommandRun, JobFinished


class RepositoryStates:
    """What is known of repositories, by id. It sets the limit of each one's lane."""

    def __init__(self, catalog: Catalog, placement: Placement, lanes: Lanes, events: Events) -> None:
        self.health = Health()
        self._catalog = catalog
        self._placement = placement
        self._lanes = lanes
        self._events = events
        self._names: dict[str, str] = {}
        self._specs: dict[str, RepositorySpec] = {}
        self._opened: dict[str, str] = {}  # the URL at which a job has opened a repository

    def name(self, repository: str) -> str:
        """Its namespace/name; empty for one that is not declared."""
        return self._names.get(repository, "")

    def on_event(self, event: Event) -> None:
        """Hear of repositories that are put or deleted, and of a clock that was wrong."""
        if isinstance(event, ClockSetBack):
            self.health.clock_set_back(event.now)
        elif isinstance(event, DeclarationChanged):
            for repository in event.deleted_repositories:
                self.forget(repository)
            for key in event.repositories:
                self.follow(self._catalog.repositories[key])

    def follow(self, row: RepositoryRow) -> None:
        """A repository is there, or has become another."""
        self._names[row.id] = f"{row.namespace}/{row.name}"
        self._specs[row.id] = repository_spec(row.spec)
        self._limit(row.id)

    def forget(self, repository: str) -> None:
        """A repository is not declared any more."""
        for known in (self._names, self._specs, self._opened):
            known.pop(repository, None)
        self._lanes.limit(repository, ConcurrencyLimit())
        self.health.forget(repository)

    def withdrawn(self, host: str, command: CommandRun) -> str:
        """Why a job may not run that was recorded when more was granted; empty where it may."""
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
        """A job has opened a repository; whether it was not known to be there."""
        spec = self._specs.get(repository)
        if spec is None or self._opened.get(repository) == spec.url:
            return False
        self._opened[repository] = spec.url
        self._limit(repository)
        return True

    def _limit(self, repository: str) -> None:
        """Set a repository's limit: one job while it may have yet to be created. Two concurrent `restic init` leave a
        repository that neither host can open, so creation is serialised."""
        spec = self._specs[repository]
        creating = spec.init and self._opened.get(repository) != spec.url
        limit = ConcurrencyLimit(1 if creating else spec.max_concurrent_jobs, "{host}" in spec.url)
        self._lanes.limit(repository, limit)

    def remember(self, repository: str, host: str, kind: str, end: JobFinished, succeeded_at: datetime | None) -> None:
        """How jobs of a kind went last on a host, and when one last went well, from before the server began."""
        if succeeded_at is not None:
            self.mark_opened(repository)
        self.health.told(repository, host, kind, end)
        if kind == "verify" and succeeded_at is not None:
            self.health.remember_verified(repository, succeeded_at)

    def attempted(self, job: Job, end: JobFinished) -> None:
        """An attempt of a job on a repository has ended."""
        if end.status in GOOD:
            self.mark_opened(job.repository)
        # A job that was asked for by hand may be of no repository that is there.
        command = job.command
        if command.schedule_id and self.health.told(command.repository, job.host, command.kind, end):
            self._events.publish(RepositoryHealthChanged(command.repository))
