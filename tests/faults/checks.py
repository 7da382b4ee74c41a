"""What must hold of a fleet once it is quiet, as pure functions over what was found; each yields what is wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

ENDS = frozenset({"succeeded", "warning", "failed", "timed_out", "cancelled", "interrupted"})
GOOD = frozenset({"succeeded", "warning"})
FORGOTTEN = "forgotten"
"""The status of a job that no agent had taken when an older database was put back: its due time is fired again."""
MINUTE = timedelta(minutes=1)


class Job(NamedTuple):
    """A row of jobs. `schedule`: the schedule's name; `due` None for a run by hand."""

    id: str
    schedule_id: str
    schedule: str
    host: str
    kind: str
    due: datetime | None
    missed: int
    status: str
    attempt: int
    created_at: datetime
    snapshot_id: str


class Kept(NamedTuple):
    """A schedule that a host has held unchanged since `begin`: due every so many minutes of the hour."""

    schedule_id: str
    schedule: str
    host: str
    minutes: int
    begin: datetime


class Held(NamedTuple):
    """What an agent's journal says. `lost`: lines that cannot be read."""

    version: int
    digest: str
    open: tuple[str, ...]
    lost: int


class Row(NamedTuple):
    """A host as the server stores it."""

    desired: tuple[int, str]
    applied: tuple[int, str]


class Run(NamedTuple):
    """A backup that restic was told to make, or a snapshot that it made."""

    host: str
    schedule: str
    snapshot_id: str


class Evidence(NamedTuple):
    """All that was found. `until`: what was due by then must be over; `runs`: None where they were not looked at.

    `deadlines`: seconds, of schedules that have one, by name. `due`: every how many minutes of the hour a schedule is
    due, by name, 0 for never; of others every minute may be. `problems`: what else was found to be wrong.
    """

    until: datetime
    jobs: Sequence[Job]
    kept: Sequence[Kept]
    hosts: Mapping[str, Row]
    held: Mapping[str, Held]
    runs: Sequence[Run] | None
    deadlines: Mapping[str, float] = {}
    due: Mapping[str, int] = {}
    problems: Sequence[str] = ()


def violations(found: Evidence) -> list[str]:
    """What does not hold."""
    return [f"{name}: {what}" for name, check in CHECKS.items() for what in check(found)]


def one_job(found: Evidence) -> Iterator[str]:
    """At most one job for each schedule, host and due time."""
    counts = Counter((job.schedule_id, job.host, job.due) for job in found.jobs if job.due is not None)
    names = {job.schedule_id: job.schedule for job in found.jobs}
    for (schedule, host, due), count in counts.items():
        if count > 1:
            yield f"{names[schedule]} on {host} has {count} jobs due {due}"


def none_dropped(found: Evidence) -> Iterator[str]:
    """Each due time of what was kept has a job, or one of a later due time counts it among those it stands for."""
    jobs: dict[tuple[str, str], dict[datetime, Job]] = defaultdict(dict)
    for job in found.jobs:
        if job.due is not None:
            jobs[job.schedule_id, job.host][job.due] = job
    for kept in found.kept:
        yield from _not_stood_for(kept, jobs[kept.schedule_id, kept.host], found.until)


def _not_stood_for(kept: Kept, jobs: Mapping[datetime, Job], until: datetime) -> Iterator[str]:
    stands_from = min(
        (due - max(job.missed - 1, 0) * kept.minutes * MINUTE for due, job in jobs.items() if due > until),
        default=until + MINUTE,
    )
    for due in reversed(due_times(kept, until)):
        if (job := jobs.get(due)) is not None:
            back = max(job.missed - 1, 0) * kept.minutes
            stands_from = min(stands_from, due - back * MINUTE)
        elif due < stands_from:
            later = min((at for at in jobs if at > due), default=None)
            told = "no later one has either" if later is None else f"that of {later} stands for {jobs[later].missed}"
            yield f"{kept.schedule} on {kept.host} has no job due {due}, and {told}"


def due_times(kept: Kept, until: datetime) -> list[datetime]:
    """When it was due since its begin, up to and with `until`."""
    at = kept.begin.replace(second=0, microsecond=0) + MINUTE
    due = []
    while at <= until:
        if at.minute % kept.minutes == 0:
            due.append(at)
        at += MINUTE
    return due


def in_time(found: Evidence) -> Iterator[str]:
    """No job was let in after its deadline, by the clock of the server that let it in."""
    for job in found.jobs:
        deadline = found.deadlines.get(job.schedule)
        if deadline is not None and job.due is not None and (job.created_at - job.due).total_seconds() > deadline:
            yield f"{job.schedule} on {job.host}, due {job.due}, was let in at {job.created_at}: too late"


def only_due(found: Evidence) -> Iterator[str]:
    """Each job is of a time that its schedule has, and was let in no earlier than a minute before it, by the clock of
    the server that let it in."""
    for job in found.jobs:
        if job.due is None:
            continue
        minutes = found.due.get(job.schedule, 1)
        if minutes == 0 or job.due.minute % minutes or job.due.second or job.due.microsecond:
            yield f"{job.schedule} on {job.host} has a job due {job.due}, and is not due then"
        if job.due - job.created_at > MINUTE:
            yield f"{job.schedule} on {job.host}, due {job.due}, was let in at {job.created_at}: too early"


def each_ended(found: Evidence) -> Iterator[str]:
    """Every job has an end, and no agent has anything left to tell."""
    for job in found.jobs:
        if job.status not in ENDS and job.status != FORGOTTEN:
            yield f"job {job.id} of {job.schedule} on {job.host}, due {job.due}, is {job.status}"
    for host, held in found.held.items():
        for what in held.open:
            yield f"{host} still has {what}"


def in_sync(found: Evidence) -> Iterator[str]:
    """Every host holds what it should: by what it acked, and by what its journal says."""
    for host, row in found.hosts.items():
        if row.desired != row.applied:
            yield f"{host} acked {row.applied}, and should hold {row.desired}"
        held = found.held.get(host)
        if held is not None and (held.version, held.digest) != row.desired:
            yield f"the journal of {host} holds {(held.version, held.digest)}, and should hold {row.desired}"


def ran_once(found: Evidence) -> Iterator[str]:
    """Each attempt ran at most once, each that went well ran, and each has a snapshot of its own."""
    if found.runs is None:
        return
    backups = [job for job in found.jobs if job.kind == "backup"]
    attempts: Counter[tuple[str, str]] = Counter()
    good: Counter[tuple[str, str]] = Counter()
    for job in backups:
        attempts[job.host, job.schedule] += job.attempt
        good[job.host, job.schedule] += job.status in GOOD
    runs = Counter((run.host, run.schedule) for run in found.runs)
    for (host, schedule), count in runs.items():
        if count > attempts[host, schedule]:
            yield f"{schedule} on {host} ran {count} times in {attempts[host, schedule]} attempts"
    for (host, schedule), count in good.items():
        if runs[host, schedule] < count:
            yield f"{schedule} on {host} went well {count} times, and ran {runs[host, schedule]} times"
    yield from _snapshots(backups, found.runs)


def _snapshots(backups: Sequence[Job], runs: Sequence[Run]) -> Iterator[str]:
    made = Counter(run.snapshot_id[:8] for run in runs)
    told = Counter(job.snapshot_id[:8] for job in backups if job.snapshot_id)
    for snapshot, count in made.items():
        if count > 1:
            yield f"snapshot {snapshot} was made {count} times"
    for snapshot, count in told.items():
        if count > 1:
            yield f"snapshot {snapshot} is that of {count} jobs"
        if not made[snapshot]:
            yield f"snapshot {snapshot} is told of by a job, and was never made"


def undamaged(found: Evidence) -> Iterator[str]:
    """What is on disk can be read, and no part ended but by our hand."""
    yield from found.problems
    for host, held in found.held.items():
        if held.lost:
            yield f"the journal of {host} has {held.lost} lines that cannot be read"


CHECKS = {
    "one job": one_job,
    "none dropped": none_dropped,
    "in time": in_time,
    "only due": only_due,
    "each ended": each_ended,
    "in sync": in_sync,
    "ran once": ran_once,
    "undamaged": undamaged,
}
