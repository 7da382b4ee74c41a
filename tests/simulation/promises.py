"""The project's promises, checked at the end of a story: each check yields what is wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain
from zoneinfo import ZoneInfo

import msgspec

import cron
from agent.core.state import Accepted
from server.fleet.timing import EARLY
from server.fleet.windows import begins_at, stops_after
from server.jobs.kinds import EXCLUSIVE
from tests.simulation.clock import DAY
from tests.simulation.database import Row
from tests.simulation.expected import IN_FLIGHT, Span, may_be_left_out
from tests.simulation.server import LIMITS
from tests.simulation.story import FLEETS, HALF_PAST_TWO, Story
from tests.simulation.world import Agent, Use
from wire.messages import ScheduleFire

SETTLED = timedelta(hours=1)
"""What came due less than this before the end of a story may still be on its way."""
PAUSED = timedelta(minutes=20)
"""A command that is on its way may be held up for so long where a server stands still."""


class BrokenPromiseError(AssertionError):
    """A promise did not hold; the message says which, where, and how to play it again."""


def check(story: Story) -> None:
    """Raises BrokenPromiseError where a promise of the project does not hold."""
    broken = [f"promise {number}: {what}" for number, promise in PROMISES.items() for what in promise(story)]
    if broken:
        told = "\n  ".join(broken[:10])
        fleets = [name for name, scale in FLEETS.items() if scale(story.seed) == story.scale]
        how = f"python -m tests.simulation {story.seed} --fleet {fleets[0]}" if fleets else f"play(seed, {story.scale})"
        raise BrokenPromiseError(
            f"seed {story.seed} breaks promises {len(broken)} times, the first\n  {told}\n"
            f"Play it again, line by line: {how}"
        )


def one_run(story: Story) -> Iterator[str]:
    """One run for each schedule, host and due time: never two, whatever is killed or cut."""
    for (host, schedule, due, _), times in story.runs.items():
        if len(times) > 1:
            yield f"{schedule} due {due} ran {len(times)} times on {host}: {', '.join(map(str, times))}"
    rows = story.db.jobs.values()
    jobs = Counter((row.host, row.scheduled_id, row.scheduled_at) for row in rows)
    for (host, name, due), count in jobs.items():
        if count > 1:
            yield f"{name} due {due} has {count} jobs on {host}"


def none_dropped(story: Story) -> Iterator[str]:
    """Every due time ran, or a later run stands for it and tells how many were missed."""
    jobs = _by_schedule(story)
    for (host, schedule), spans in story.expected.spans.items():
        what, ran, agent = f"{schedule} on {host}", jobs[host, schedule], story.by_name[host]
        to_run = [list(_to_run(story, agent, span)) for span in spans]
        if not ran.keys() >= set(chain(*to_run)):
            dealt_with = _stood_for(story, host, schedule, ran)
            for due in _left(agent, spans, to_run, dealt_with):
                after = min((it for it in dealt_with if it > due), default=None)
                told = (
                    f"the next run, of {after}, says it stands for {dealt_with[after]}" if after else "nor a later one"
                )
                yield f"{what}: {due} never ran, {told}"
        yield from _too_late(what, spans, ran, agent)


def _to_run(story: Story, agent: Agent, span: Span) -> Iterator[datetime]:
    """The due times of a span that must have run or be stood for."""
    spec = span.schedule.spec
    expression, zone = cron.parse(spec.cron), cron.zone(spec.time_zone)
    offset = cron.spread(agent.name, span.schedule.id, spec.spread_seconds)
    end = min(span.end, span.excused, story.now - SETTLED)
    due = cron.next_due(expression, zone, span.begin - offset) + offset
    left_out = may_be_left_out(spec)
    while due < end:
        if not (left_out and agent.was_ill(due)):
            yield due
        due = cron.next_due(expression, zone, due - offset) + offset


def _is_due(span: Span, agent: Agent, due: datetime) -> bool:
    """Whether a time is one of a span's due times."""
    spec = span.schedule.spec
    before = due - cron.spread(agent.name, span.schedule.id, spec.spread_seconds)
    return cron.next_due(cron.parse(spec.cron), cron.zone(spec.time_zone), before - timedelta.resolution) == before


def _stood_for(story: Story, host: str, schedule: str, ran: dict[datetime, Row]) -> dict[datetime, int]:
    """The due times that were dealt with, each with how many had been missed by then: those that ran, and those that
    were left out because the last run was not over."""
    left_out = story.expected.concurrent.get((host, schedule), {})
    return left_out | {due: max(row.job.missed, left_out.get(due, 0)) for due, row in ran.items()}


def _left(agent: Agent, spans: list[Span], to_run: list[list[datetime]], ran: dict[datetime, int]) -> list[datetime]:
    """Due times for which no run stands. A run counts those of its own timing; one for which a fire of the timing
    before was still waiting counts those as well."""
    left = _not_stood_for(chain(*to_run), ran)
    for span, dues in zip(spans, to_run, strict=True):
        if not left.isdisjoint(dues):
            own = {due: missed for due, missed in ran.items() if _is_due(span, agent, due)}
            left -= set(dues) - _not_stood_for(dues, own)
    return sorted(left)


def _not_stood_for(to_run: Iterable[datetime], ran: dict[datetime, int]) -> set[datetime]:
    """Due times for which no run stands: none is of that time, or of a later one and counts back to it."""
    times = sorted({*to_run, *ran})
    stands_from = len(times)
    left = set()
    for at in reversed(range(len(times))):
        due = times[at]
        if due in ran:
            stands_from = min(stands_from, at - max(ran[due] - 1, 0))
        elif at < stands_from:
            left.add(due)
    return left


def _too_late(what: str, spans: list[Span], ran: dict[datetime, Row], agent: Agent) -> Iterator[str]:
    """Runs that began after their deadline, or that were to be skipped when missed."""
    for due, row in ran.items():
        late = row.job.created_at - due
        span = next((span for span in spans if span.begin <= due < span.end), None)
        if span is None or late < timedelta(minutes=1) or row.recorded_at >= span.end:
            continue  # by then it was another's to say how late that may be
        if not _is_due(span, agent, due):
            continue  # a host that was away has not heard of the new timing, and means the old one
        deadline = span.schedule.spec.starting_deadline_seconds
        if deadline is not None and late > timedelta(seconds=deadline):
            yield f"{what}: the run of {due} was let in {late} late, with a deadline of {deadline} s"
        clock_was_right = not any(due - DAY <= at <= row.recorded_at for at in agent.clock_set)
        if span.schedule.spec.missed_run_policy == "Skip" and late > timedelta(minutes=2) and clock_was_right:
            yield f"{what}: the run of {due} was let in {late} late, and was to be skipped"


def in_sync(story: Story) -> Iterator[str]:
    """What was acked is what runs: each agent's set is the one that the server wants it to hold."""
    yield from story.wrongs
    if len(story.servers) > 1:
        yield from story.replicas.wrongs()
    for agent in story.agents:
        memory, held = agent.memory, story.servers[0].placement.hosts[agent.name].entries
        should, does = story.db.versions[agent.name], memory.version
        wanted = {key: item.raw for key, item in held.items.items()}
        if {key: item.raw for key, item in memory.entries.items.items()} != wanted:
            yield f"{agent.name} holds other entries at version {does} than it should at {should}"
        elif (does, memory.digest) != (should, held.digest):
            yield f"{agent.name} holds version {does} with {memory.digest[:8]}, should {should} with {held.digest[:8]}"
        elif (
            story.db.acked.get(agent.name) != (should, held.digest) or not story.servers[0].sessions[agent.name].in_sync
        ):
            yield f"{agent.name} is not known to be in sync"


def no_end_lost(story: Story) -> Iterator[str]:
    """Every job has the end that its agent told, and no agent has anything left to tell."""
    settled = story.settled
    for job_id, row in story.db.jobs.items():
        said = story.said.get(row.wire_id)
        if row.end is None:
            if row.recorded_at < settled:
                yield f"{job_id} on {row.host} has no end; its agent said {said}"
        elif row.end.reason == "DeadlineExceeded":
            if row.wire_id in story.uses and not any(at > story.uses[row.wire_id].begin for at in story.put_back):
                yield f"{job_id} on {row.host} ended as too late, and ran"
        elif row.end.status not in (said, "cancelled"):
            yield f"{job_id} on {row.host} ended as {row.end.status} ({row.end.error}); its agent said {said}"
    for agent in story.agents:
        held: list[Accepted | ScheduleFire] = [*agent.memory.running.values(), *agent.memory.fires.values()]
        for left in held:
            if left.scheduled_at is not None and left.scheduled_at < settled:
                yield f"{agent.name} still has {left}"
        for end in agent.memory.ends.values():
            if end.finished_at < settled:
                yield f"{agent.name} still has to tell {end}"


def in_turn(story: Story) -> Iterator[str]:
    """No more jobs use a repository, or run on a host, at once than it allows, none beside one that needs it alone, and
    no Schedule on more hosts; a fire is refused only while the last run is not over. What the server had
    given up by then does not count."""
    yield from story.expected.wrongly
    uses: dict[str, list[tuple[datetime, datetime, Use]]] = defaultdict(list)
    rows = story.lost | story.db.jobs
    for job_id, use in story.uses.items():
        over = rows[job_id.partition(".")[0]].ended_at
        forgotten = min((at for at in story.put_back if at > use.begin), default=story.now)
        until = min(use.end or story.now, over or story.now, forgotten)
        for key in (*_lanes(use), use.host):
            uses[key].append((use.begin, until, use))
        if (schedule_id := use.command.schedule_id) in story.rollouts:
            uses[schedule_id].append((use.begin, until, use))
    for key, its in uses.items():
        active: list[tuple[datetime, Use]] = []
        for begin, end, use in sorted(its, key=lambda it: it[0]):
            active = [*((till, other) for till, other in active if till > begin), (end, use)]
            is_lane = key not in {use.host, use.command.schedule_id}
            limit = LIMITS[_lanes(use)[key]].limit if is_lane else (story.of_hosts | story.rollouts).get(key)
            count = len({it.host for _, it in active} if key == use.command.schedule_id else active)
            if limit is not None and count > limit:
                yield f"{len(active)} jobs used {key} at {begin}, which allows {limit}"
            if is_lane and len(active) > 1 and any(other.command.kind in EXCLUSIVE for _, other in active):
                yield f"{', '.join(other.command.job_id for _, other in active)} used {key} at once, at {begin}"


def _lanes(use: Use) -> dict[str, str]:
    """The repositories that an attempt uses, or its host's parts of them, each with the repository's name."""
    names = filter(None, (use.command.repository, use.command.from_repository))
    return {f"{name} of {use.host}" if LIMITS[name].per_host else name: name for name in names}


def in_windows(story: Story) -> Iterator[str]:
    """Nothing begins outside its windows, but for a command that is on its way when they close."""
    slack = PAUSED if len(story.servers) > 1 else IN_FLIGHT
    for job_id, use in story.uses.items():
        known = story.specs[use.command.schedule_id]
        later = [since for since, _ in known[1:]] + [story.now]
        specs = [spec for (_, spec), end in zip(known, later, strict=True) if end > use.begin - slack]
        begins = [min(begins_at(spec, use.begin - slack), begins_at(spec, use.begin)) for spec in specs]
        if not any(at <= use.begin for at in begins):
            yield f"{job_id} began at {use.begin} on {use.host}, outside the windows {specs[0].windows}"
        closes = [stops_after(spec, use.begin) for spec in specs]
        if len(specs) == 1 and closes[0] is not None:
            end = use.end or story.now
            if end > use.begin + timedelta(seconds=closes[0]) + slack:
                yield f"{job_id} ran until {end} on {use.host}, after its window had closed"


def once_joined(story: Story) -> Iterator[str]:
    """A host that joins a schedule with runOnJoin runs it once, unless it ran it before, and soon if it can."""
    joined: dict[tuple[str, str], Row] = {}
    for row in story.db.jobs.values():
        key = row.host, row.scheduled_id
        if row.job.actor_kind == "join":
            if key in joined:
                yield f"{row.scheduled_id} ran on {row.host} as joined at {joined[key].recorded_at}, and again"
            joined[key] = row
            if not any(spec.run_on_join for _, spec in story.specs[row.scheduled_id]):
                yield f"{row.scheduled_id} ran on {row.host} as joined, which it is not to"
    for schedule_id, host in story.db.joining():
        agent, holds = story.by_name[host], story.servers[0].placement.schedule_of(host, schedule_id)
        if holds is not None and agent.was_well(story.now - SETTLED):
            yield f"{host} joined {schedule_id}, and has yet to run it"


def once_a_day(story: Story) -> Iterator[str]:
    """Half past two comes once a day, days on which clocks are changed included. The calendar says so, not `cron`."""
    jobs = _by_schedule(story)
    for (host, schedule), (first, *later) in story.expected.spans.items():
        spec = first.schedule.spec
        if spec.cron != HALF_PAST_TWO or later or may_be_left_out(spec):
            continue
        zone, offset = ZoneInfo(spec.time_zone), cron.spread(host, schedule, spec.spread_seconds)
        ran = _stood_for(story, host, schedule, jobs[host, schedule])
        days = Counter((due - offset).astimezone(zone).date() for due in ran)
        stood_for = {
            (due - offset).astimezone(zone).date() - timedelta(days=back)
            for due, missed in ran.items()
            for back in range(max(1, missed))
        }
        day, last = (at.astimezone(zone).date() for at in (first.begin, min(first.excused, story.now)))
        while (day := day + timedelta(days=1)) < last:
            if days[day] > 1 or day not in stood_for:
                yield f"{schedule} on {host} ran {days[day]} times on {day} in {zone}"


def only_due_times(story: Story) -> Iterator[str]:
    """A job is of a due time that its schedule had on that host, and not from before that had come."""
    for (host, schedule), rows in _by_schedule(story).items():
        spans, agent = story.expected.spans.get((host, schedule), []), story.by_name[host]
        for due, row in rows.items():
            if due > row.job.created_at + EARLY:
                yield f"{schedule} on {host}, due {due}, was let in at {row.job.created_at} already"
            if not any(_is_due(span, agent, due) for span in spans):
                yield f"{schedule} is not due {due} on {host}, and has a job"


def _by_schedule(story: Story) -> dict[tuple[str, str], dict[datetime, Row]]:
    """Jobs by host and schedule, and then by due time. One that is there again as another job stands for as many."""
    jobs: dict[tuple[str, str], dict[datetime, Row]] = defaultdict(dict)
    for row in _rows(story):
        if row.job.actor_kind == "join":
            continue
        assert row.scheduled_at is not None
        assert row.scheduled_id is not None
        its = jobs[row.host, row.scheduled_id]
        if (lost := its.get(row.scheduled_at)) is not None:
            its[row.scheduled_at] = replace(
                row, job=msgspec.structs.replace(row.job, missed=max(row.job.missed, lost.job.missed))
            )
        else:
            its[row.scheduled_at] = row
    return jobs


def _rows(story: Story) -> list[Row]:
    """All jobs, with those that an older database has lost: their due times were dealt with."""
    return [*story.lost.values(), *story.db.jobs.values()]


PROMISES = {
    1: one_run,
    2: none_dropped,
    3: in_sync,
    4: no_end_lost,
    5: once_a_day,
    9: only_due_times,
    "of turns": in_turn,
    "of windows": in_windows,
    "of joins": once_joined,
}
