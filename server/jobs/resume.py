"""What a host's hello teaches about its open jobs: which it took, which are lost, which are to end. No I/O."""

from collections.abc import Collection, Sequence
from datetime import datetime

from server.agents.session import Accepted, Effect, Ended, Send
from server.jobs.job import Job
from wire.messages import CommandCancel, FromServer, JobAsk, JobFinished


def resumed(
    capabilities: Collection[str], running: Collection[str], open_jobs: Sequence[Job], now: datetime
) -> list[Effect]:
    """What a hello's running jobs teach about the jobs that are open here.

    Jobs that it had taken, and does not name, are asked for: they are over there, which a database that was
    restored may not know, or its journal was lost. Those that it runs though they are over here, or are to end, are
    cancelled. Those that it has not taken are back in the queue.
    """
    running = set(running)
    taken = [job.wire_id for job in open_jobs if job.state != "running" and job.wire_id in running]
    stop = [CommandCancel(job.wire_id, job.cancelled) for job in open_jobs if job.cancelled]
    over = running - {job.wire_id for job in open_jobs}
    missing = [job for job in open_jobs if job.wire_id not in running and (job.cancelled or job.state == "running")]
    ask = [JobAsk(job.wire_id) for job in missing if "ask" in capabilities and not job.cancelled]
    gone = [
        cancelled(job, now) if job.cancelled else JobFinished(job.wire_id, "interrupted", now, error=_FORGOTTEN)
        for job in missing
        if job.cancelled or not ask
    ]
    effects: list[Effect] = []
    told: list[FromServer] = [*stop, *map(CommandCancel, sorted(over)), *ask]
    if told:
        effects.append(Send(told))
    if taken:
        effects.append(Accepted(taken))
    if gone:
        effects.append(Ended(gone))
    return effects


def cancelled(job: Job, now: datetime) -> JobFinished:
    """The end of a job that somebody wanted to end, and that does not run."""
    return JobFinished(job.wire_id, "cancelled", now, error=job.cancelled)


_FORGOTTEN = "the agent has no memory of this job: its journal was lost"
