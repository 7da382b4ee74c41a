"""What a host's hello teaches about its open jobs: which it took, which are lost, which are to end. No I/O."""

from collections.abc import Collection, Sequence
from datetime import datetime

from server.agents.session import Accepted, Effect, Ended, Send
from server.jobs.queue import wire_id
from server.store.queue import OpenRow
from wire.messages import CommandCancel, FromServer, JobAsk, JobFinished


def resumed(
    capabilities: Collection[str], running: Collection[str], open_jobs: Sequence[OpenRow], now: datetime
) -> list[Effect]:
    """What a hello's running jobs teach about the jobs that are open here.

    Jobs that it had taken, and does not name, are asked for: they are over there, which a database that was
    restored may not know, or its journal was lost. Those that it runs though they are over here, or are to end, are
    cancelled. Those that it has not taken are back in the queue.
    """
    its = {wire_id(job): job for job in open_jobs}
    taken = [attempt for attempt, job in its.items() if job.status != "running" and attempt in running]
    stop = [CommandCancel(attempt, _why(job)) for attempt, job in its.items() if job.cancel_requested]
    over = set(running) - its.keys()
    missing = {
        attempt: job
        for attempt, job in its.items()
        if attempt not in running and (job.cancel_requested or job.status == "running")
    }
    ask = [JobAsk(it) for it, job in missing.items() if "ask" in capabilities and not job.cancel_requested]
    gone = [
        JobFinished(attempt, "cancelled", now, error=_why(job))
        if job.cancel_requested
        else JobFinished(attempt, "interrupted", now, error=_FORGOTTEN)
        for attempt, job in missing.items()
        if job.cancel_requested or not ask
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


def _why(job: OpenRow) -> str:
    """Why a job is to end; a release that did not store it leaves that out."""
    return job.cancel_reason or "cancelled"


_FORGOTTEN = "the agent has no memory of this job: its journal was lost"
