"""What a fire or a request becomes: a job with its command, or a refusal with its reason. No I/O."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct

import cron
from server.agents.session import Send, Session
from server.fleet.placement import PlacedSchedule
from server.fleet.timing import EARLY, max_missed, why_not_due
from server.fleet.windows import begins_at, stops_after
from server.jobs import arguments
from server.jobs.kinds import EXCLUSIVE
from server.resources.specs import ConcurrencyPolicy, ScheduleSpec
from server.store.rows import JobRow
from wire.messages import CommandRun, FromServer, RefusalReason, ScheduleFire, ScheduleRefused

MAX_OPEN_JOBS = 1000
"""Maximum open jobs of one Schedule on one host, under any concurrencyPolicy. Jobs of no Schedule count together."""
DELETED = "its host was deleted"
"""Why a due time gets no job whose host another server deleted meanwhile."""


BackupsInto = Callable[[str], Sequence[str]]
"""Returns the names of the Schedules of kind backup whose snapshots come into a repository."""


def no_backups(repository_id: str) -> Sequence[str]:
    """No Schedule of kind backup is known."""
    return ()


class NewJob(Struct, frozen=True):
    """A job to record.

    `actor_kind`, `actor_id`: who asked for it.
    `missed`: how many earlier due times it stands for.
    `answers`: the id of the envelope of its fire; empty for a request.
    `policy`: the concurrencyPolicy of its Schedule; Allow for a job of none.
    `start_by`: the first attempt fails if it cannot start before this time; None for no deadline.
    `not_before`: when the window opens that it waits for; None where it waits for none.
    """

    host: str
    command: CommandRun
    actor_kind: str
    actor_id: str
    missed: int
    created_at: datetime
    answers: str = ""
    policy: ConcurrencyPolicy = "Allow"
    start_by: datetime | None = None
    not_before: datetime | None = None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.command.job_id


def decide(
    fires: Sequence[tuple[ScheduleFire, str]],
    session: Session,
    schedules: Mapping[str, PlacedSchedule],
    now: datetime,
    new_ids: Sequence[str],
    backups_into: BackupsInto = no_backups,
) -> tuple[list[NewJob], Send | None]:
    """Decide on the fires of one frame. Returns the jobs to record, and the refusals to send, None without any.

    Whether other jobs are in a job's way is decided when it is recorded: see `concurrent`.
    `fires`: each with the id of its envelope. `new_ids`: an id for the job of each fire. `backups_into`: see
    `command_for`.
    """
    jobs: list[NewJob] = []
    refused: list[ScheduleRefused] = []
    refused_ids: list[str] = []
    in_frame: set[tuple[str, datetime]] = set()
    for (fire, answers), new_id in zip(fires, new_ids, strict=True):
        if (due := (fire.schedule_id, fire.scheduled_at)) in in_frame:
            answer: NewJob | ScheduleRefused = _refused(fire, "Duplicate", _REPEATED)
        else:
            answer = fired(fire, session, schedules, now, new_id, answers, backups_into)
        if isinstance(answer, NewJob):
            jobs.append(answer)
            in_frame.add(due)
        else:
            refused.append(answer)
            refused_ids.append(answers)
    return jobs, Send(refused, refused_ids) if refused else None


def fired(
    fire: ScheduleFire,
    session: Session,
    schedules: Mapping[str, PlacedSchedule],
    now: datetime,
    new_id: str,
    answers: str = "",
    backups_into: BackupsInto = no_backups,
) -> NewJob | ScheduleRefused:
    """Decide on one fire: a job to record, or a refusal. `answers`: the id of the fire's envelope."""
    refused = refusal(fire, session, schedules, now)
    if refused is not None:
        return refused
    schedule = schedules[fire.schedule_id]
    actor = ("schedule", schedule.name)
    job = new_job(schedule, session.name, new_id, fire.scheduled_at, now, actor, backups_into)
    oldest = schedule.earlier[-1] if schedule.earlier else schedule.timing
    missed = min(fire.missed, max_missed(oldest, fire.scheduled_at))
    return msgspec.structs.replace(job, missed=missed, answers=answers)


def refusal(
    fire: ScheduleFire, session: Session, schedules: Mapping[str, PlacedSchedule], now: datetime
) -> ScheduleRefused | None:
    """Why a fire gets no job; None where it gets one."""
    schedule = schedules.get(fire.schedule_id)
    if schedule is None:
        return _refused(fire, "NotFound", "there is no such schedule (any more)")
    refused = _not_of_host(schedule, fire, session) or _not_due(schedule, fire, session, now)
    return refused or _too_late(schedule, fire, now)


def _not_of_host(schedule: PlacedSchedule, fire: ScheduleFire, session: Session) -> ScheduleRefused | None:
    """Refuse a fire of a Schedule that does not select the host, or is disabled. None if neither holds."""
    if not session.desired.holds(fire.schedule_id):
        return _refused(fire, "NotThisHost", f"{schedule.name} does not select {session.name}")
    return None if schedule.spec.enabled else _refused(fire, "Disabled", f"{schedule.name} is disabled")


def _not_due(schedule: PlacedSchedule, fire: ScheduleFire, session: Session, now: datetime) -> ScheduleRefused | None:
    """Refuse a time that is not due on the host by the Schedule, or lies in the future. None if neither holds."""
    due, host, created_at = fire.scheduled_at, session.name, session.desired.created_at
    if due > now + EARLY:
        message = f"it is {now:%Y-%m-%dT%H:%M:%SZ} here: the clock of {host} is ahead"
        return ScheduleRefused(fire.schedule_id, due, "TooEarly", message, now)
    if due <= created_at <= now:
        why = f"{host} is known since {created_at:%Y-%m-%dT%H:%M:%SZ}"
    else:
        in_force_since = session.in_force_since or now
        why = why_not_due(schedule.timing, schedule.earlier, host, schedule.id, due, now, in_force_since)
    return _refused(fire, "NotDue", f"{schedule.name}: {why}") if why else None


def _too_late(schedule: PlacedSchedule, fire: ScheduleFire, now: datetime) -> ScheduleRefused | None:
    """Refuse a due time past its deadline, or missed under missedRunPolicy Skip. None if neither holds.

    Agents check the same; their copy of the Schedule may be older, and the fire may have been delayed.
    """
    spec, late = schedule.spec, now - fire.scheduled_at
    deadline = spec.starting_deadline_seconds
    if deadline is not None and late > timedelta(seconds=deadline):
        return _refused(fire, "DeadlineExceeded", f"{schedule.name} must start within {deadline} s of its due time")
    if spec.missed_run_policy == "Skip" and fire.missed and late >= cron.ON_TIME:
        return _refused(fire, "Missed", f"{schedule.name} skips runs that were missed")
    return None


def concurrent(job: NewJob, open_jobs: int, oldest: str | None, *, same_frame: bool) -> str:
    """Why a due time is refused because of other jobs of its Schedule on its host; empty if they allow it.

    `open_jobs`: how many are open, of which `oldest` is the first. `same_frame`: whether one came in the same frame.
    """
    if open_jobs >= MAX_OPEN_JOBS:
        return f"{MAX_OPEN_JOBS} runs of {job.actor_id} are not over"
    if job.policy == "Allow" or not open_jobs:
        return ""
    if same_frame:
        return f"another run of {job.actor_id} came with it"
    return f"the last run of {job.actor_id} is not over: job {oldest}" if job.policy == "Forbid" else ""


def new_job(
    schedule: PlacedSchedule,
    host: str,
    job_id: str,
    due: datetime | None,
    now: datetime,
    actor: tuple[str, str],
    backups_into: BackupsInto = no_backups,
) -> NewJob:
    """A new job of a Schedule on a host.

    `due`: its due time; None for a request to run now. `actor`: kind and id of who asked for it.
    """
    spec = schedule.spec
    deadline = spec.starting_deadline_seconds
    start_by = None if deadline is None else (due or now) + timedelta(seconds=deadline)
    command = timed(command_for(schedule, host, job_id, due, backups_into), spec, now)
    opens = begins_at(spec, now)
    return NewJob(host, command, *actor, 0, now, "", spec.concurrency_policy, start_by, opens if opens > now else None)


def answered(
    jobs: Sequence[NewJob], new: Collection[str], sendable: Collection[str], refused: Mapping[str, str]
) -> Send | None:
    """The answers to a host's fires once the jobs are stored: commands and refusals. None if there are none.

    `new`: ids of the jobs that were not stored before. `sendable`: ids of those that the host may run now. `refused`:
    why others are not stored, by id.
    """
    messages: list[FromServer] = []
    answers: list[str] = []
    for job in jobs:
        command = job.command
        if job.id in sendable:
            messages.append(command)
        elif command.scheduled_at is not None:
            why = refused.get(job.id)
            reason: RefusalReason = "Queued" if job.id in new else "Duplicate"
            if why is not None:
                reason = "NotThisHost" if why == DELETED else "Concurrent"
            message = refused.get(job.id, "its job waits for its turn" if reason == "Queued" else _REPEATED)
            messages.append(ScheduleRefused(command.schedule_id, command.scheduled_at, reason, message))
        else:
            continue
        answers.append(job.answers)
    return Send(messages, answers) if messages else None


def command_for(
    schedule: PlacedSchedule,
    host: str,
    job_id: str,
    scheduled_at: datetime | None,
    backups_into: BackupsInto = no_backups,
) -> CommandRun:
    """The command of a Schedule's job on a host.

    `scheduled_at`: its due time; None for a request to run now. `backups_into`: as `Placement.backups_into`, for kind
    forget.
    """
    spec = schedule.spec
    backups = backups_into(schedule.repository_id) if spec.kind == "forget" else ()
    return CommandRun(
        job_id,
        spec.kind,
        arguments.run_args(spec, schedule.name, host, backups),
        schedule.repository_id,
        spec.timeout_seconds,
        arguments.init_args(schedule.init, spec.kind),
        schedule.id,
        scheduled_at,
        list(schedule.within),
        hooks=arguments.hooks_part(spec, schedule.name),
        verify=arguments.verify_part(spec),
        host_identity=schedule.host_identity,
        stdin_command=arguments.stdin_command(spec),
        options=list(schedule.options),
        nice=spec.nice,
        io_class=spec.io_class or "",
        from_repository=schedule.from_repository_id,
    )


def timed(command: CommandRun, spec: ScheduleSpec, now: datetime) -> CommandRun:
    """A command as it is sent now: for how long it may run depends on when its Schedule's window closes."""
    stop_after_s = stops_after(spec, now)
    if command.stop_after_s == stop_after_s:
        return command
    return msgspec.structs.replace(command, stop_after_s=stop_after_s)


def job_row(job: NewJob, lane: str, from_lane: str = "") -> JobRow:
    """The row of a new job, before its turn is decided."""
    command = job.command
    return JobRow(
        id=command.job_id,
        host=job.host,
        kind=command.kind,
        actor_kind=job.actor_kind,
        actor_id=job.actor_id,
        scheduled_id=command.schedule_id or None,
        scheduled_at=command.scheduled_at,
        missed=job.missed,
        command=_encode(command).decode(),
        created_at=job.created_at,
        lane=lane,
        queued_at=job.created_at,
        start_by=job.start_by,
        exclusive=command.kind in EXCLUSIVE,
        serial=job.policy != "Allow",
        deferred=job.not_before is not None,
        not_before=job.not_before,
        from_lane=from_lane,
    )


_REPEATED = "this due time has its job already"
_encode = msgspec.json.Encoder().encode


def _refused(fire: ScheduleFire, reason: RefusalReason, message: str) -> ScheduleRefused:
    return ScheduleRefused(fire.schedule_id, fire.scheduled_at, reason, message)
