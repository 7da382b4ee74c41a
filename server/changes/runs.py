"""Requests for jobs: a Schedule run now, a Run; and requests to cancel jobs, and to have a paused Schedule go on."""

from collections.abc import Callable, Sequence
from datetime import datetime

from server.changes.change import audit
from server.errors import Conflict, Invalid, NotFound
from server.fleet.catalog import Catalog
from server.fleet.placement import PlacedSchedule, Placement
from server.jobs.dispatcher import Dispatcher
from server.jobs.fires import NewJob, new_job
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector
from server.store.engine import Store
from server.store.futures import stored
from server.store.jobs import get_job, get_jobs, lasting_job_id
from server.store.rows import AuditRow, Row
from server.store.runs import run_status
from server.store.tables import OPEN, Actor


class Runs:
    """Records requested jobs, cancels jobs, and has paused Schedules go on."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        placement: Placement,
        dispatcher: Dispatcher,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._dispatcher = dispatcher
        self._clock = clock
        self._new_id = new_id

    async def run_now(self, actor: Actor, namespace: str, name: str, hosts: Sequence[str] | None) -> list[Row]:
        """Run a schedule once, now, on all its hosts or on these. Raises NotFound, Invalid, Conflict for no host."""
        schedule = self._schedule(namespace, name)
        matched = self._placement.matched(schedule, hosts)
        if hosts is None and not matched:
            raise Conflict(
                f"{schedule.name} has no host: have hostSelector select one that is granted to its namespace"
            )
        if hosts is not None and (others := sorted(set(hosts) - set(matched))):
            raise Invalid.field("hosts", f"{schedule.name} does not select {', '.join(others[:5])}")
        now = self._clock()
        into = self._placement.backups_into
        jobs = [new_job(schedule, host, self._new_id(), None, now, actor, into) for host in matched]
        await self.record(jobs, audit(now, actor, "run", "Schedule", schedule.name, hosts=matched))
        return await self._store.read(get_jobs, [job.command.job_id for job in jobs])

    async def start(self, actor: Actor, namespace: str, name: str, run: str, selector: LabelSelector) -> Row:
        """Run a schedule once, now, on those of its hosts that a selector selects; the same run again changes nothing.

        `run`: the id of the run, 1 to 40 characters. Returns its status (see `run_status`). Raises NotFound, Conflict.
        """
        schedule = self._schedule(namespace, name)
        now, run_id = self._clock(), f"{namespace}/{run}"
        states = self._placement.hosts
        matched = self._placement.matched(schedule)
        hosts = [host for host in matched if selector_matches(selector, states[host].labels)]
        before = await self._store.read(run_status, run_id)
        ids = {host: lasting_job_id("run", namespace, run, host) for host in hosts}
        if before["hosts"] == 0 and hosts:
            of_run, into = Actor("run", run_id), self._placement.backups_into
            jobs = [new_job(schedule, host, id_, None, now, of_run, into) for host, id_ in ids.items()]
            await self.record(jobs, audit(now, actor, "run", "Schedule", schedule.name, run=run_id, hosts=hosts))
        return await self._store.read(run_status, run_id)

    async def resume(self, actor: Actor, namespace: str, name: str) -> None:
        """Have a schedule go on that is paused; one that is not stays as it is. Raises NotFound."""
        schedule = self._schedule(namespace, name)
        line = audit(self._clock(), actor, "resume", "Schedule", schedule.name)
        await stored(self._dispatcher.resume(schedule.id, line))

    def _schedule(self, namespace: str, name: str) -> PlacedSchedule:
        return self._placement.schedules[self._catalog.schedule(namespace, name).id]

    async def record(self, jobs: Sequence[NewJob], line: AuditRow) -> None:
        """Store requested jobs, and send those that may run now. Raises Conflict if too many are open."""
        await stored(self._dispatcher.record(jobs, line))

    async def cancel(self, actor: Actor, job_id: str) -> Row:
        """Cancel a job. Raises NotFound, Conflict for a job that has ended.

        If the job was sent to a host that is online, the host is asked to cancel it and reports how it ended. Any other
        job ends at once; a host that nevertheless has it is asked at its next hello.
        """
        job = await self._find(job_id)
        if job["status"] not in OPEN:
            raise Conflict(f"job {job_id} has ended already: {job['status']}")
        line = audit(self._clock(), actor, "cancel", "Job", job_id)
        await stored(self._dispatcher.cancel([job_id], f"cancelled by {actor.id}", line))
        return await self._find(job_id)

    async def _find(self, job_id: str) -> Row:
        job = await self._store.read(get_job, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        return job
