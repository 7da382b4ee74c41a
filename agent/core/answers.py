"""How jobs ended that the agent took before, for a server that asks again."""

from datetime import datetime

import msgspec

from agent.core.state import AgentState
from wire.messages import CommandRun, JobFinished


def known_end(state: AgentState, job_id: str, now: datetime) -> JobFinished | None:
    """The end of a job that is over; None for a job that runs, or was never taken."""
    end = state.ends.get(job_id) or state.confirmed.get(job_id)
    if end is None and job_id in state.done:
        error = "this job is over; how it ended was confirmed and is not known here any more"
        end = JobFinished(job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
    return end


def end_as(other: str, state: AgentState, command: CommandRun, now: datetime) -> JobFinished:
    """The end of a command whose due time was run as another job, which a server with an older database has lost."""
    end = state.ends.get(other) or state.confirmed.get(other)
    if end is None:
        error = f"this due time was run as job {other}, of which the server does not know any more"
        end = JobFinished(command.job_id, "interrupted", now, error=error, reason="OutcomeUnknown")
    return msgspec.structs.replace(end, job_id=command.job_id)
