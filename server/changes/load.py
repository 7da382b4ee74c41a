"""Loading: a starting server puts in force what its store holds."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import msgspec

from server.access.vault import Vault, VaultError
from server.agents.hub import Hub
from server.agents.session import LeftOutEntries, Session
from server.changes.change import Change
from server.changes.pipeline import Pipeline
from server.fleet.catalog import Catalog
from server.fleet.expected import ExpectedSince
from server.fleet.placement import HostState, Placement, Plan
from server.jobs.dispatcher import Dispatcher
from server.jobs.outcomes import LastOutcome, Outcomes, why
from server.jobs.repositories import RepositoryStates
from server.resources.manifests import host_spec
from server.store.engine import Store
from server.store.futures import stored
from server.store.load import load_all
from server.store.rows import HostRow, LastEnd, Loaded, RepositoryRow, ScheduleRow
from wire.messages import JobFinished


class Loader:
    """Fills the parts of a new server, which are empty, with what the store holds."""

    def __init__(  # noqa: PLR0913, PLR0917 - it fills each of them
        self,
        catalog: Catalog,
        placement: Placement,
        expected_since: ExpectedSince,
        hub: Hub,
        repositories: RepositoryStates,
        outcomes: Outcomes,
        dispatcher: Dispatcher,
        pipeline: Pipeline,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._expected_since = expected_since
        self._hub = hub
        self._repositories = repositories
        self._outcomes = outcomes
        self._dispatcher = dispatcher
        self._pipeline = pipeline
        self._clock = clock

    async def load(self, store: Store, vault: Vault) -> None:
        """Load the store, and store what this version makes of it otherwise.

        A host whose set has another digest than the stored one gets a new version. Credentials that an older key sealed
        are sealed again with the first key.
        """
        with _without_collector():
            loaded = await store.read(load_all, self._clock())
            moved = self._put_in_force(loaded)
        self._pipeline.loaded(loaded.revision)
        await self._pipeline.planned(partial(self._renew, vault, moved))
        await stored(self._dispatcher.begin())

    async def _renew(self, vault: Vault, moved: Mapping[str, int]) -> None:
        """Store what this version makes of the store otherwise. `moved`: hosts whose sets differ, with their versions.

        A host that got a new version since then, from another server, keeps that.
        """
        rows, schedules = self._catalog.repositories.values(), self._catalog.schedules.values()
        renewed = [self._catalog.resolve(new) for row in rows if (new := _renewed(row, vault)) != row]
        pinging = [its for it in schedules if (its := _renewed_ping(it, vault)) != it]
        hosts = self._placement.hosts
        same = (state for name, version in moved.items() if (state := hosts.get(name)) and state.version == version)
        plan = Plan(sets={state.name: state.entries for state in same})
        if renewed or pinging or plan.sets:
            await self._pipeline.commit(Change(self._clock(), put_schedules=pinging), plan, renewed)

    def _put_in_force(self, loaded: Loaded) -> dict[str, int]:
        """Put what was loaded in force. Returns the hosts whose sets are not the stored ones, with their versions."""
        catalog = self._catalog
        catalog.put(loaded.schedules, [catalog.resolve(row) for row in loaded.repositories])
        self._placement.put(catalog.place(row) for row in loaded.schedules)
        moved = {row.name: row.desired_version for row in loaded.hosts if not self._put_host(row)}
        for schedule in loaded.schedules:
            self._expected_since.put_schedule(schedule.id, schedule.enabled_since or schedule.since)
        self._expected_since.join(loaded.joined)
        self._expected_since.clock_set_back(self._clock())  # the clock may have been set back since
        for repository in loaded.repositories:
            self._repositories.put(repository)
        self._remember(loaded.last_ends)
        return moved

    def _put_host(self, row: HostRow) -> bool:
        """Put a host in force. Returns whether its set is the stored one."""
        held = self._placement.match(row.labels)
        spec = host_spec(row.spec)
        state = HostState(
            row.name, row.labels, row.since, row.desired_version, held, row.created_at, spec, row.drained_by
        )
        self._placement.commit(Plan(put_hosts=[state]))
        self._expected_since.put_host(row.name, row.created_at)
        left_out = msgspec.convert(row.left_out or {}, LeftOutEntries)
        self._hub.add(Session(state, row.applied_version, row.applied_digest, left_out))
        return row.desired_digest == held.digest

    def _remember(self, last_ends: Iterable[LastEnd]) -> None:
        """Remember the last end of each schedule's jobs on each host."""
        for it in sorted(last_ends, key=lambda end: end.finished_at):
            schedule = self._placement.schedules.get(it.schedule_id)
            if schedule is None or it.host not in self._placement.hosts:
                continue
            end = JobFinished(it.job_id, it.status, it.finished_at, error=it.error or "", reason=it.reason or "")
            last = LastOutcome(it.status, it.finished_at, it.succeeded_at, why(end), it.created_at, it.job_id)
            self._outcomes.remember(it.schedule_id, it.host, last)
            self._repositories.remember(schedule.repository_id, it.host, schedule.spec.kind, end, it.succeeded_at)
        now = self._clock()
        self._outcomes.clock_set_back(now)  # the clock may have been set back since
        health = self._repositories.health
        health.clock_set_back(now)


def _renewed(row: RepositoryRow, vault: Vault) -> RepositoryRow:
    try:
        return row if row.credentials is None else row._replace(credentials=vault.renew(row.credentials))
    except VaultError:  # reported when a host needs them
        return row


def _renewed_ping(row: ScheduleRow, vault: Vault) -> ScheduleRow:
    try:
        return row if row.ping is None else row._replace(ping=vault.renew(row.ping))
    except VaultError:  # it is not pinged
        return row


@contextmanager
def _without_collector() -> Iterator[None]:
    """Allocate long-lived objects without Python's garbage collector, which would traverse them again and again.

    On leaving, the collector is told to ignore them from now on (gc.freeze).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
