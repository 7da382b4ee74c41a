"""What follows for a host's open jobs from the attempts that its hello names. No I/O."""

from collections.abc import Collection, Sequence
from datetime import datetime

from server.agents.session import Accepted, Effect, Ended, Send
from server.jobs.job import Job
from wire.messages import CommandCancel, FromServer, JobAsk, JobFinished


def resumed(
    capabilities: Collection[str], running: Collection[str], open_jobs: Sequence[Job], now: datetime
) -> list[Effect]:
    """Compare the attempts that a host has with its open jobs. Returns what to send and to store.

    - A job that the host has is stored as accepted.
    - A job that the host had accepted and does not name has ended there, unknown to a restored database, or the host
      lost its journal. An agent with capability `ask` is asked; with another agent, the job ends as interrupted.
    - A cancelled job, and one that has ended here, is cancelled on the host.
    - A job that was sent and not accepted needs nothing: `Lanes.connected` requeues it.

    `running`: ids of the attempts that the host has.
    """
    running = set(running)
    accepted = [job.wire_id for job in open_jobs if job.state != "running" and job.wire_id in running]
    stop = [CommandCancel(job.wire_id, job.cancelled) for job in open_jobs if job.cancelled]
    ended = running - {job.wire_id for job in open_jobs}
    missing = [job for job in open_jobs if job.wire_id not in running and (job.cancelled or job.state == "running")]
    ask = [JobAsk(job.wire_id) for job in missing if "ask" in capabilities and not job.cancelled]
    ends = [
        JobFinished(job.wire_id, "cancelled", now, error=job.cancelled)
        if job.cancelled
        else JobFinished(job.wire_id, "interrupted", now, error=_FORGOTTEN)
        for job in missing
        if job.cancelled or not ask
    ]
    effects: list[Effect] = []
    messages: list[FromServer] = [*stop, *map(CommandCancel, sorted(ended)), *ask]
    if messages:
        effects.append(Send(messages))
    if accepted:
        effects.append(Accepted(accepted))
    if ends:
        effects.append(Ended(ends))
    return effects


_FORGOTTEN = "the agent has no memory of this job: its journal was lost"
