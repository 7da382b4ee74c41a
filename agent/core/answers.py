"""The ends of jobs that the agent accepted earlier, for a server that sends or asks for them again."""

from datetime import datetime

import msgspec

from agent.core.state import AgentState
from wire.messages import CommandRun, JobFinished


def known_end(state: AgentState, job_id: str, now: datetime) -> JobFinished | None:
    """The end of a job that is over; None for a job that is running or was never accepted."""
    end = state.ends.get(job_id) or state.confirmed.get(job_id)
    if end is None and job_id in state.done:
        error = "the job is over, but the agent no longer knows how it ended: the server had confirmed its end"
        end = JobFinished(job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
    return end


def end_as(other: str, state: AgentState, command: CommandRun, now: datetime) -> JobFinished:
    """The end of a command whose due time already ran as the job `other`.

    A server whose database was restored from a backup has lost `other`, and sends the due time as a new job.
    """
    end = state.ends.get(other) or state.confirmed.get(other)
    if end is None:
        error = f"this due time already ran as job {other}, which the server has lost: its end is unknown"
        end = JobFinished(command.job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
    return msgspec.structs.replace(end, job_id=command.job_id)
