"""What should run: which schedule was which host's under which timing, written down while a story goes on."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msgspec import Struct

from server.fleet.placement import PlacedSchedule
from server.resources.specs import ScheduleSpec
from wire.messages import ScheduleFire

if TYPE_CHECKING:
    from tests.simulation.world import Agent

NEVER = datetime.max.replace(tzinfo=UTC)
IN_FLIGHT = timedelta(minutes=2)
"""What came due less than this before a schedule was taken away may be answered after that."""


def may_be_left_out(spec: ScheduleSpec) -> bool:
    """Whether a due time that comes late may never run."""
    return spec.missed_run_policy == "Skip" or spec.starting_deadline_seconds is not None


class Span(Struct):
    """An enabled schedule's time on a host, under one timing: what is due after `begin` and before `end` is to run.

    `begun`: when that timing began, on whatever host; by it an agent's entry is known to be of this timing.
    From `excused` on it need not, since the schedule was taken away before the host could have said that it was due.
    """

    schedule: PlacedSchedule
    begun: datetime
    begin: datetime
    end: datetime = NEVER
    excused: datetime = NEVER


class Expected:
    """All spans of a story, by host and schedule; and `concurrent`, the due times that were left out because the run
    before was not over, with how many had been missed by then."""

    def __init__(self) -> None:
        self.spans: dict[tuple[str, str], list[Span]] = {}
        self._open: dict[str, dict[str, Span]] = {}
        self.concurrent: dict[tuple[str, str], dict[datetime, int]] = {}
        self.wrongly: list[str] = []
        self._missed: dict[tuple[str, str, datetime], int] = {}

    def fired(self, host: str, messages: Iterable[object]) -> None:
        """A host's fires reached the server."""
        for fire in messages:
            if isinstance(fire, ScheduleFire):
                self._missed[host, fire.schedule_id, fire.scheduled_at] = fire.missed

    def excuse(self, host: str, schedule: str, due: datetime, by: Sequence[str]) -> None:
        """A due time is left out, because these jobs of the same schedule and host are not over."""
        left_out = self.concurrent.setdefault((host, schedule), {})
        left_out[due] = max(left_out.get(due, 0), self._missed[host, schedule, due])  # a clock may come there twice
        if not by:
            self.wrongly.append(f"{schedule} due {due} on {host} was refused, though no run of it was open")

    def changed(
        self,
        agent: "Agent",
        held: Iterable[PlacedSchedule],
        begun: Mapping[str, datetime],
        since: datetime,
        now: datetime,
        behind: timedelta,
        *,
        relabelled: bool,
    ) -> None:
        """A host's set has become another. A host that is relabelled begins anew with what it had not heard of.

        `since`: when its present labels began; `behind`: how far it may go by a time of the server's that is behind.
        What began while the server's clock was ahead counts from then on.
        """
        schedules = {schedule.id: schedule for schedule in held if schedule.spec.enabled}
        spans = self._open.setdefault(agent.name, {})
        for key, span in list(spans.items()):
            known = agent.holds(key, span.begun)
            if key in schedules and begun[key] == span.begun and (known or not relabelled):
                continue
            del spans[key]
            span.end = now
            makes_up = key in schedules and not may_be_left_out(schedules[key].spec)
            if known and makes_up:  # it says what was due under the old timing, as far as its clock has come
                span.excused = now + min(agent.skew, behind, timedelta())
                continue
            for earlier in self.spans[agent.name, key]:  # timings that changed while it was away count as well
                earlier.excused = min(earlier.excused, (agent.ill_since or now) - IN_FLIGHT)
        for key, schedule in schedules.items():
            if key not in spans:
                spans[key] = Span(schedule, begun[key], max(now, begun[key], since))
                self.spans.setdefault((agent.name, key), []).append(spans[key])
