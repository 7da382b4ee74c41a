"""What hosts report of their jobs: due times that they fire, attempts that they take, progress, output and ends.

What is in memory changes once it is stored. Methods return futures of what they store; nobody has to await them.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from server.agents.session import Effect, Send, Session
from server.events import AttemptEnded, Event, Events, HostDisconnected, JobsChanged
from server.fleet.placement import Placement
from server.jobs import attempts, fires, resume
from server.jobs.dispatcher import Dispatcher
from server.jobs.job import READ_KINDS, Job
from server.jobs.lanes import Lanes
from server.jobs.pieces import pieces
from server.jobs.repositories import RepositoryStates
from server.store.futures import Submit, then
from server.store.jobs import jobs_accepted, jobs_finished, jobs_retried
from server.store.logs import log_lines
from server.store.rows import Retry
from wire.messages import JobFinished, JobProgress, ScheduleFire

log = logging.getLogger(__name__)

MAX_OUTPUT = 10_001
"""Lines that are collected of a job's output: the maximum that an agent sends, and one that counts those left out."""
PROGRESS = timedelta(seconds=0.5)
"""Progress that a job reports within this time of the last is dropped. Agents report it each second."""


class JobOutput(NamedTuple):
    """The output of a job that lists snapshots or files, up to now. `end`: how the job ended, once it has."""

    lines: list[str]
    end: "asyncio.Future[JobFinished]"


class Reports:
    """Takes in what hosts report. `submit` stores as `Store.submit` does."""

    def __init__(
        self,
        submit: Submit,
        lanes: Lanes,
        placement: Placement,
        repositories: RepositoryStates,
        dispatcher: Dispatcher,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._submit = submit
        self._lanes = lanes
        self._placement = placement
        self._repositories = repositories
        self._dispatcher = dispatcher
        self._events = events
        self._clock = clock
        self._outputs: dict[str, JobOutput] = {}
        self._foreign: dict[str, int] = {}  # messages of each connected host about jobs of other hosts

    def on_event(self, event: Event) -> None:
        """Note the end of a job whose output is collected, and that a host disconnected."""
        if isinstance(event, AttemptEnded) and event.final:
            if (output := self._outputs.get(event.job_id)) is not None and not output.end.done():
                output.end.set_result(event.end)
        elif isinstance(event, HostDisconnected) and (count := self._foreign.pop(event.host, 0)) > 1:
            log.warning(_FOREIGN, extra={"host": event.host, "messages": count})

    # A hello, and due times.

    def resume(self, session: Session, running: Collection[str]) -> Iterator[list[Effect]]:
        """Compare the attempts that a hello names with the host's open jobs. Yields effects, piece by piece.

        `running`: ids of the attempts that the host has.
        """
        unknown = set(running)
        for jobs in pieces(self._lanes.of_host(session.name)):
            known = unknown.intersection(job.wire_id for job in jobs)
            unknown -= known
            yield resume.resumed(session.capabilities, known, jobs, self._clock())
        yield resume.resumed(session.capabilities, unknown, (), self._clock())

    def connected(self, host: str, running: Collection[str]) -> None:
        """The effects of `resume` are done: send the jobs that may start on this host."""
        self._dispatcher.connected(host, running)

    def count_of(self, host: str) -> int:
        """How many open jobs a host has."""
        return self._lanes.count_of(host)

    def fire(
        self,
        session: Session,
        fired: Sequence[tuple[ScheduleFire, str]],
        new_ids: Sequence[str],
        now: datetime,
        refuse: Callable[[Send], object],
    ) -> "Sequence[asyncio.Future[Any]]":
        """Record jobs for the due times that a host fired. Raises Unavailable.

        `fired`: each due time with the id of its envelope. `new_ids`: an id for each job. `refuse`: called with the
        refusals, if there are any, before jobs are recorded.
        """
        jobs, refusals = fires.decide(fired, session, self._placement.schedules, self._lanes, now, new_ids)
        if refusals is not None:
            self._dispatcher.publish_refused(session.name, refusals)
            refuse(refusals)
        return [self._dispatcher.record(jobs)] if jobs else []

    # Attempts.

    def own_ends(self, host: str, ends: Sequence[JobFinished]) -> list[JobFinished]:
        """The ends that a host may report: those that are not of another host's open job."""
        return [end for end in ends if not self._is_foreign(host, end.job_id)]

    def _find(self, host: str, wire_id: str) -> Job | None:
        """The open job of this host whose current attempt has this id."""
        return None if self._is_foreign(host, wire_id) else self._lanes.find(host, wire_id)

    def _is_foreign(self, host: str, wire_id: str) -> bool:
        """Whether an id names another host's open job. The first time is logged; a count, when the host disconnects."""
        if not self._lanes.is_of_another_host(host, wire_id):
            return False
        count = self._foreign[host] = self._foreign.get(host, 0) + 1
        if count == 1:
            log.warning(_FOREIGN, extra={"host": host, "job": wire_id})
        return True

    def accept(self, host: str, wire_ids: Sequence[str]) -> "Sequence[asyncio.Future[Any]]":
        """A host accepted these attempts. Raises Unavailable."""
        jobs = [job for wire_id in wire_ids if (job := self._find(host, wire_id)) is not None]
        now = self._clock()
        for job in jobs:
            self._lanes.accepted(job, now)
        if not jobs:
            return []
        future = self._submit(jobs_accepted, [(job.id, now) for job in jobs])
        return [then(future, lambda _: self._events.publish(JobsChanged([job.id for job in jobs])))]

    def progress(self, host: str, progress: JobProgress) -> None:
        """An attempt reported its progress. It is dropped within PROGRESS of the last."""
        now = self._clock()
        job = self._find(host, progress.job_id)
        if job is not None and (job.progress_at is None or abs(now - job.progress_at) >= PROGRESS):
            job.take_progress(progress, now)
            if self._repositories.mark_opened(job.repository):  # restic reports nothing before it has opened it
                self._dispatcher.advance()

    def log(self, host: str, wire_id: str, lines: Sequence[str]) -> "Sequence[asyncio.Future[Any]]":
        """An attempt wrote lines for people. Those of a job that lists snapshots or files are collected, not stored.

        Raises Unavailable.
        """
        job = self._find(host, wire_id)
        if job is None:
            return []
        if job.command.kind in READ_KINDS:
            if (output := self._outputs.get(job.id)) is not None:
                output.lines.extend(lines[: MAX_OUTPUT - len(output.lines)])
            return []
        return [] if job.log_is_full else [then(self._submit(log_lines, (job.id, self._clock(), lines)), job.note_log)]

    @contextmanager
    def collect_output(self, job_id: str) -> Iterator[JobOutput]:
        """While entered, collect the output of a job that lists snapshots or files."""
        output = self._outputs[job_id] = JobOutput([], asyncio.get_running_loop().create_future())
        try:
            yield output
        finally:
            del self._outputs[job_id]

    def finish(self, host: str, ends: Sequence[JobFinished]) -> "Sequence[asyncio.Future[Any]]":
        """Attempts ended: store their ends, and the next attempts where the Schedule allows one. Raises Unavailable.

        Ends of jobs that are not open are skipped.
        """
        final, retries, futures = [], [], []
        now = self._clock()
        for reported in ends:
            if (job := self._find(host, reported.job_id)) is None:
                continue
            end = attempts.by_our_clock(reported, job, now)
            if (at := attempts.next_attempt(job, end, self._placement, now)) is None:
                final.append(end)
            else:
                retries.append(Retry(end, job.attempt, at))
        if retries:
            futures.append(then(self._submit(jobs_retried, retries), lambda _: self._dispatcher.retried(retries)))
        if final:
            futures.append(then(self._submit(jobs_finished, final), lambda _: self._dispatcher.ended(final)))
        return futures


_FOREIGN = "dropped: a host's message about another host's job"
