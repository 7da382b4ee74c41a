"""What the core asks its shells to do. Plain data."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from msgspec import Struct

from agent.core.state import Record
from wire.messages import CommandRun, FromAgent, JobAccepted, JobEnd, JobReason, Repository, ScheduleDiff, ScheduleSet

MAX_FIRES = 1000
"""Fires or acceptances in one frame: far below the server's limit on a frame."""

Push = ScheduleSet | ScheduleDiff


class Send(Struct, frozen=True):
    """Write one frame to the server; dropped when there is no connection."""

    messages: Sequence[FromAgent]


class Persist(Struct, frozen=True):
    """Append records to the journal; do `then` once they are on disk."""

    records: Sequence[Record]
    then: "Sequence[Effect]" = ()


class Apply(Struct, frozen=True):
    """Call `pushes.build(push, …)` outside the read loop, then hand its result to `Core.applied`."""

    push: Push | None


class StartJob(Struct, frozen=True):
    """Run a command. `Core.job_ended` must follow, whatever happens. `source`: the repository that a copy reads."""

    command: CommandRun
    repository: Repository | None
    source: Repository | None = None


class StopJob(Struct, frozen=True):
    """Stop a job, started or not, with this status. `reason`: why, for programs, where the status does not say it."""

    job_id: str
    status: JobEnd
    reason: JobReason = ""


Effect = Send | Persist | Apply | StartJob | StopJob


def merged(effects: Sequence[Effect]) -> list[Effect]:
    """The same effects with neighbours merged: records share a write, acceptances share a frame.

    Messages that follow a merged write are sent before its jobs start, so that the server is not kept waiting.
    """
    made: list[Effect] = []
    for kind, group in groupby(effects, type):
        alike = list(group)
        if kind is Persist and len(alike) > 1:
            writes = [effect for effect in alike if isinstance(effect, Persist)]
            then = [effect for write in writes for effect in write.then]
            then.sort(key=lambda effect: not isinstance(effect, Send))
            made.append(Persist([record for write in writes for record in write.records], merged(then)))
        elif kind is Send:
            made += _merged_accepts([effect for effect in alike if isinstance(effect, Send)])
        else:
            made += alike
    return made


def _merged_accepts(sends: Sequence[Send]) -> Iterator[Effect]:
    for accepts, group in groupby(sends, lambda send: all(isinstance(it, JobAccepted) for it in send.messages)):
        alike = list(group)
        yield from frames([it for send in alike for it in send.messages], MAX_FIRES) if accepts else alike


def frames(messages: Sequence[FromAgent], size: int) -> list[Effect]:
    """Effects that send messages in frames of at most `size` messages."""
    return [Send(messages[at : at + size]) for at in range(0, len(messages), size)]
