"""What hosts report of their jobs: due times that they fire, attempts that they take, progress, output, counts, ends.

Methods return futures of what they store; nobody has to await them.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import msgspec

from server.agents.session import Effect, Send, Session
from server.events import AttemptEnded, Event, Events, HostDisconnected, JobsChanged, RepositoryCounted
from server.fleet.placement import Placement
from server.jobs import fires, notices, resume
from server.jobs.active import ActiveAttempts, Attempt
from server.jobs.dispatcher import Dispatcher
from server.jobs.kinds import READ_KINDS, repository_of
from server.jobs.queue import Accepted, Arrived, CountedBy, Ended, Ending, JobQueue, Taken, wire_id
from server.jobs.repositories import RepositoryStates
from server.store.futures import Submit, then
from server.store.logs import log_lines
from server.store.queue import OpenRow
from wire.messages import CommandRun, JobCounted, JobFinished, JobProgress, ScheduleFire

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
        queue: JobQueue,
        active: ActiveAttempts,
        placement: Placement,
        repositories: RepositoryStates,
        dispatcher: Dispatcher,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._submit = submit
        self._queue = queue
        self._active = active
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

    def resume(self, session: Session, running: Collection[str], jobs: Sequence[OpenRow]) -> list[Effect]:
        """Compare the attempts that a hello names, by their ids, with some of the host's open jobs."""
        known = {wire_id(job): job for job in jobs}
        its = [
            Attempt(job.id, attempt, session.name, _command.decode(job.command))
            for attempt, job in known.items()
            if attempt in running
        ]
        for attempt in its:
            self._active.add(attempt)
        closings = self._dispatcher.closings(its)  # their windows may have changed while the host was away
        return [*resume.resumed(session.capabilities, known.keys() & running, jobs, self._clock()), *closings]

    def resume_unknown(self, session: Session, unknown: Collection[str]) -> list[Effect]:
        """What follows for attempts that a hello names and that are no open job's."""
        return resume.resumed(session.capabilities, unknown, (), self._clock())

    def connected(
        self, host: str, running: Collection[str], instance: str = "", *, stops: bool = False
    ) -> "asyncio.Future[Arrived]":
        """The effects of `resume` are done: send the jobs that may start on this host. `stops`: whether its agent
        begins nothing more. Raises Unavailable."""
        return self._dispatcher.connected(host, running, instance, stops=stops)

    def stops(self, host: str) -> "asyncio.Future[Any]":
        """An agent begins nothing more, as it is about to end. Raises Unavailable."""
        return self._dispatcher.agent_stops(host)

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
        placement = self._placement
        jobs, refusals = fires.decide(fired, session, placement.schedules, now, new_ids, placement.backups_into)
        if refusals is not None:
            self._dispatcher.publish_refused(session.name, refusals)
            refuse(refusals)
        return [self._dispatcher.record(jobs, host=session.name)] if jobs else []

    # Attempts.

    def accept(self, host: str, wire_ids: Sequence[str]) -> "asyncio.Future[Any]":
        """A host accepted these attempts. Raises Unavailable."""
        future: asyncio.Future[Accepted] = self._submit(self._queue.accept, Taken(host, wire_ids, self._clock()), host)

        def accepted(result: Accepted) -> None:
            self._leave_out(host, result.foreign)
            if result.job_ids:
                self._events.publish(JobsChanged(result.job_ids, accepted=True))

        return then(future, accepted)

    def progress(self, host: str, progress: JobProgress) -> None:
        """An attempt reported its progress. It is dropped within PROGRESS of the last."""
        now = self._clock()
        attempt = self._find(host, progress.job_id)
        if attempt is not None and (attempt.progress_at is None or abs(now - attempt.progress_at) >= PROGRESS):
            attempt.take_progress(progress, now)
            url = self._repositories.mark_opened(attempt.repository)  # restic reports nothing before it has opened it
            if url is not None:
                self._dispatcher.tell(notices.Opened(attempt.repository, url))

    def log(self, host: str, attempt_id: str, lines: Sequence[str]) -> "Sequence[asyncio.Future[Any]]":
        """An attempt wrote lines for people. Those of a job that lists snapshots or files are collected, not stored.

        Raises Unavailable.
        """
        attempt = self._find(host, attempt_id)
        if attempt is None:
            return []
        job_id = attempt.job_id
        if attempt.command.kind in READ_KINDS:
            if job_id in self._outputs:
                self.heard_output(job_id, lines)
            elif told := attempt.tell_lines(lines, MAX_OUTPUT):
                self._dispatcher.tell(notices.Output(job_id, told))  # another server was asked for it
            return []
        if attempt.log_is_full:
            return []
        return [then(self._submit(log_lines, (job_id, self._clock(), lines), host), attempt.note_log)]

    def heard_output(self, job_id: str, lines: Sequence[str]) -> None:
        """A job that lists snapshots or files printed lines, on this server or another one."""
        if (output := self._outputs.get(job_id)) is not None:
            output.lines.extend(lines[: MAX_OUTPUT - len(output.lines)])

    def counted(self, host: str, counted: JobCounted) -> "Sequence[asyncio.Future[Any]]":
        """An attempt counted the snapshots in its repository, which each does once. Raises Unavailable."""
        attempt = self._find(host, counted.job_id)
        if attempt is None or not attempt.counts_first():
            return []
        return [self.count(host, attempt.command, counted)]

    def count(self, host: str, command: CommandRun, counted: JobCounted) -> "asyncio.Future[Any]":
        """Store what a job on a host counted. Raises Unavailable."""
        future = self._submit(self._queue.counted, CountedBy(host, command, counted, self._clock()), host)
        return then(future, lambda _: self._events.publish(RepositoryCounted(repository_of(command))))

    @contextmanager
    def collect_output(self, job_id: str) -> Iterator[JobOutput]:
        """While entered, collect the output of a job that lists snapshots or files."""
        output = self._outputs[job_id] = JobOutput([], asyncio.get_running_loop().create_future())
        try:
            yield output
        finally:
            del self._outputs[job_id]

    def finish(self, host: str, ends: Sequence[JobFinished]) -> "asyncio.Future[Ended]":
        """Attempts ended: store their ends, and the next attempts where the Schedule allows one. Raises Unavailable.

        Ends of jobs that are not open are skipped.
        """
        future: asyncio.Future[Ended] = self._submit(self._queue.finish, Ending(host, ends, self._clock()), host)
        return then(future, partial(self._finished, host), self._dispatcher.answer_lost)

    def _finished(self, host: str, ended: Ended) -> None:
        self._dispatcher.retried(ended.again)
        self._dispatcher.ended(ended.over)
        self._dispatcher.carry_out(ended.outcome)
        self._leave_out(host, ended.foreign)

    def tell(self, notice: notices.AnyNotice) -> None:
        """Tell the other servers, if there are any, what is stored nowhere."""
        self._dispatcher.tell(notice)

    def _find(self, host: str, wire_id: str) -> Attempt | None:
        """The attempt that a host reports on, if it is its own."""
        if self._active.is_of_another_host(host, wire_id):
            self._leave_out(host, [wire_id])
        return self._active.find(host, wire_id)

    def _leave_out(self, host: str, attempts: Iterable[str]) -> None:
        """A host reported on other hosts' jobs. The first time is logged; a count, when the host disconnects."""
        for attempt in attempts:
            count = self._foreign[host] = self._foreign.get(host, 0) + 1
            if count == 1:
                log.warning(_FOREIGN, extra={"host": host, "job": attempt})


_FOREIGN = "left out: what a host said of another host's job"
_command = msgspec.json.Decoder(CommandRun)
