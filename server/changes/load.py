"""What a server does first: put in force what its store holds."""

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import msgspec

from server.access.vault import Vault, VaultError
from server.agents.hub import Hub
from server.agents.session import LeftOutEntries, Session
from server.fleet.catalog import Catalog
from server.fleet.expected import ExpectedSince
from server.fleet.placement import HostState, Placement, Plan
from server.jobs.dispatcher import Dispatcher
from server.jobs.outcomes import LastOutcome, Outcomes, why
from server.jobs.repositories import RepositoryStates
from server.store.declared import upsert_repositories
from server.store.engine import Store
from server.store.hosts import set_desired
from server.store.load import load_all
from server.store.rows import HostRow, Loaded, RepositoryRow
from wire.messages import JobFinished


class Loader:
    """Puts in force what the store holds. All that it fills is empty before."""

    def __init__(
        self,
        catalog: Catalog,
        placement: Placement,
        expected_since: ExpectedSince,
        hub: Hub,
        repositories: RepositoryStates,
        outcomes: Outcomes,
        dispatcher: Dispatcher,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._expected_since = expected_since
        self._hub = hub
        self._repositories = repositories
        self._outcomes = outcomes
        self._dispatcher = dispatcher
        self._clock = clock

    async def load(self, store: Store, vault: Vault) -> None:
        """Take in what the store holds; a host whose set is not what it was stored as gets a new version.

        Credentials that an older key sealed are sealed with the first.
        """
        with _growing():
            loaded = await store.read(load_all, self._clock())
            renewed = [_renewed(row, vault) for row in loaded.repositories]
            moved = self._take_in(loaded._replace(repositories=renewed))
        changed = [new for new, old in zip(renewed, loaded.repositories, strict=True) if new != old]
        await asyncio.gather(*(store.write(upsert_repositories, row) for row in changed))
        await store.write(set_desired, moved)

    def _take_in(self, loaded: Loaded) -> list[tuple[str, int, str]]:
        """Put what was loaded in force; the hosts that get a new version, with it and its digest."""
        catalog = self._catalog
        catalog.put(loaded.schedules, [catalog.resolve(row) for row in loaded.repositories])
        self._placement.put(catalog.place(row, catalog.resolved_of(row)) for row in loaded.schedules)
        moved = [it for row in loaded.hosts if (it := self._host(row)) is not None]
        for schedule in loaded.schedules:
            self._expected_since.put_schedule(schedule.id, schedule.enabled_since or schedule.since)
        self._expected_since.join(loaded.joined)
        self._expected_since.clock_set_back(self._clock())  # it may have been since then
        for repository in loaded.repositories:
            self._repositories.put(repository)
        self._remember(loaded.last_ends)
        self._dispatcher.load(loaded.open_jobs)
        return moved

    def _host(self, row: HostRow) -> tuple[str, int, str] | None:
        """Take in a host; its new version and digest, where its set is not what it was stored as."""
        held = self._placement.match(row.labels)
        version = row.desired_version + (row.desired_digest != held.digest)
        state = HostState(row.name, row.labels, row.since, version, held, row.created_at)
        self._placement.commit(Plan(put_hosts=[state]))
        self._expected_since.put_host(row.name, row.created_at)
        left_out = msgspec.convert(row.left_out or {}, LeftOutEntries)
        self._hub.add(Session(state, row.applied_version, row.applied_digest, left_out))
        return None if version == row.desired_version else (row.name, version, held.digest)

    def _remember(self, last_ends: Iterable[Sequence[Any]]) -> None:
        """Take in how each schedule's runs went last on each host."""
        for schedule_id, host, status, at, succeeded_at, reason, error in sorted(last_ends, key=lambda end: end[3]):
            schedule = self._placement.schedules.get(schedule_id)
            if schedule is None or host not in self._placement.hosts:
                continue
            end = JobFinished("", status, at, error=error or "", reason=reason or "")
            self._outcomes.remember(schedule_id, host, LastOutcome(status, at, succeeded_at, why(end)))
            self._repositories.remember(schedule.repository_id, host, schedule.spec.kind, end, succeeded_at)
        now = self._clock()
        self._outcomes.clock_set_back(now)  # it may have been since then
        health = self._repositories.health
        health.clock_set_back(now)


def _renewed(row: RepositoryRow, vault: Vault) -> RepositoryRow:
    try:
        return row if row.credentials is None else row._replace(credentials=vault.renew(row.credentials))
    except VaultError:  # told when a host needs them
        return row


@contextmanager
def _growing() -> Iterator[None]:
    """While entered, memory is filled with what stays: the collector, which would walk all of it again and again for
    nothing, is off, and later leaves it alone (gc.freeze)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
