"""What agent and server say to each other: one class for each message, with the limits of every field.

Fields that a peer does not know are ignored and absent fields take their defaults, so that old and new versions talk;
whatever breaks a limit is refused by the codec. Times are aware datetimes in UTC (RFC 3339 on the wire).
"""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct, field

PROTOCOL = "lamplighter.v1"
"""The WebSocket subprotocol that both sides name (RFC 6455, section 1.9)."""
HOST_HEADER = "Lamplighter-Host"
"""The header of the handshake in which an agent says whose it is, for the log of a server that refuses it."""

Id = Annotated[str, Meta(min_length=1, max_length=64)]
HostName = Annotated[
    str,
    Meta(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z"),
]
"""An RFC 1123 subdomain, as Kubernetes names its nodes."""
Version = Annotated[int, Meta(ge=0, le=2**53)]
Digest = Annotated[str, Meta(max_length=64)]
Time = Annotated[datetime, Meta(tz=True)]
Text = Annotated[str, Meta(max_length=4096)]
Seconds = Annotated[int, Meta(ge=0, le=366 * 86400)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Argv = Annotated[list[Annotated[str, Meta(max_length=8192)]], Meta(max_length=4096)]

MissedRunPolicy = Literal["RunOnce", "Skip"]
RefusalReason = Literal[
    "NotFound",
    "NotThisHost",
    "Disabled",
    "TooEarly",
    "NotDue",
    "Duplicate",
    "DeadlineExceeded",
    "Missed",
    "Concurrent",
    "Queued",
]
"""Why a fire is not answered with a command. `Queued`: its job is recorded and waits for its turn; the command follows.
`TooEarly`: by the server's clock it is yet to come; it is to be fired again when it has come by that clock.
`NotDue`: the schedule has no such due time on that host, or it lies before the schedule or the host began.
`Concurrent`: the last run of its schedule on that host is not over, and the schedule's concurrencyPolicy is Forbid.
`Missed`: it comes late, and the schedule's missedRunPolicy is Skip."""
JobEnd = Literal["succeeded", "warning", "failed", "timed_out", "cancelled", "interrupted"]
"""How a job ended. `warning`: what was to be done is done, but not all of it: some files could not be read (restic's
exit code 3), or the hook after it failed."""
JobReason = Literal[
    "",
    "WrongPassword",
    "NoRepository",
    "Locked",
    "HookFailed",
    "NotGranted",
    "NotConfined",
    "VerificationFailed",
    "TargetNotEmpty",
    "TargetNotWritable",
    "NoSnapshot",
    "DeadlineExceeded",
    "OutcomeUnknown",
]
"""Why a job ended badly, as programs tell it; empty where its error alone tells."""
Path = Annotated[str, Meta(max_length=4096)]
RepositoryId = Annotated[str, Meta(max_length=320)]
"""An id; where a URL that holds a host's name is that of another host, followed by a slash and that name."""


class Entry(Struct, frozen=True, omit_defaults=True):
    """One schedule as an agent holds it: when to fire, and nothing of what to run.

    `since`: due times before it do not count. `revision` changes with whatever the schedule runs, so that a set's
    digest covers that too. `spread_s`: the width of the window over which hosts are spread after each due time.
    """

    id: Id
    name: Text
    cron: Annotated[str, Meta(max_length=256)]
    since: Time
    revision: Annotated[str, Meta(max_length=64)]
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    enabled: bool = True
    missed_run_policy: MissedRunPolicy = "RunOnce"
    deadline_s: Seconds | None = None
    spread_s: Seconds = 0


class Repository(Struct, frozen=True, omit_defaults=True):
    """Where a host's snapshots go, and what opens it. Its repr hides the secrets."""

    id: RepositoryId
    name: Text
    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    password: Text = ""
    env: Annotated[dict[Annotated[str, Meta(max_length=256)], Text], Meta(max_length=64)] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Repository(id={self.id!r}, name={self.name!r})"


class LeftOut(Struct, frozen=True):
    """An entry of the set that the agent holds and could not put in force, and why."""

    schedule_id: Id
    reason: Annotated[str, Meta(max_length=256)]


LeftOutList = Annotated[list[LeftOut], Meta(max_length=100)]
"""The first of them in the order of the set; their number tells whether there are more."""
MAX_HOOKS, MAX_HOOK = 64, 1024
"""Programs that a hello lists as allowed hooks, and characters of the path of each."""


class Hello(Struct, frozen=True, omit_defaults=True):
    """agent → server, first on every connection. `running_jobs`: every job whose end the server has not confirmed.

    `instance`: an id that each agent process makes when it starts; empty from agents that make none. `now`: what the
    agent's clock shows. `left_out`: entries that are held and not in force, None while the agent works that out: a
    schedule.ack follows. `left_out_count`: how many there are, those that are not listed included. `allowed_hooks`: the
    programs that the agent runs as hooks; None from agents that do not say, or allow more than are listed.
    """

    host: HostName
    agent_version: Annotated[str, Meta(max_length=64)] = ""
    applied_version: Version = 0
    digest: Digest = ""
    capabilities: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = field(
        default_factory=list
    )
    running_jobs: Annotated[list[Id], Meta(max_length=10_000)] = field(default_factory=list)
    instance: Annotated[str, Meta(max_length=64)] = ""
    now: Time | None = None
    left_out: LeftOutList | None = None
    left_out_count: Count = 0
    allowed_hooks: Annotated[list[Annotated[str, Meta(max_length=MAX_HOOK)]], Meta(max_length=MAX_HOOKS)] | None = None


class RepoCredentials(Struct, frozen=True):
    """server → agent: the repositories that this host's schedules need, in place of any sent before."""

    repositories: Annotated[list[Repository], Meta(max_length=10_000)]


class ScheduleSet(Struct, frozen=True, omit_defaults=True):
    """server → agent: the whole set at `version`. An entry's bytes are its identity; see `wire.entries`.

    `since`: when this host, with the labels it has, began; due times before it are not this host's.
    """

    version: Version
    schedules: list[Raw]
    since: Time | None = None


class ScheduleDiff(Struct, frozen=True, omit_defaults=True):
    """server → agent: what makes the set at `base` the set at `version`."""

    base: Version
    version: Version
    upsert: list[Raw] = field(default_factory=list)
    remove: list[Id] = field(default_factory=list)
    since: Time | None = None


class ScheduleAck(Struct, frozen=True, omit_defaults=True):
    """agent → server: the set at `version` is in force, and has this digest as the agent holds it.

    `left_out`: entries of it that are not in force, and why; `left_out_count`: how many, those not listed included.
    """

    version: Version
    digest: Digest
    left_out: LeftOutList = field(default_factory=list)
    left_out_count: Count = 0


class ScheduleResync(Struct, frozen=True):
    """agent → server: a diff did not fit the set at version `have`; send the whole set."""

    have: Version


class ScheduleFire(Struct, frozen=True, omit_defaults=True):
    """agent → server: a due time has come. `missed`: 0 on time; else how many due times this one run stands for."""

    schedule_id: Id
    scheduled_at: Time
    missed: Count = 0


class ScheduleRefused(Struct, frozen=True, omit_defaults=True):
    """server → agent: no command follows that fire now, and why. `now`: what the server's clock shows, for TooEarly."""

    schedule_id: Id
    scheduled_at: Time
    reason: RefusalReason
    message: Text = ""
    now: Time | None = None


class Hooks(Struct, frozen=True, omit_defaults=True):
    """Programs of the host to run before and after a job, each with its arguments; empty for none.

    `schedule`: what people call the schedule, which they are told.
    """

    before: Argv = field(default_factory=list)
    after: Argv = field(default_factory=list)
    schedule: Text = ""


class Verify(Struct, frozen=True):
    """How many files of a snapshot are restored and compared: at most `files`, of at most `max_bytes` together."""

    files: Annotated[int, Meta(ge=1, le=500)]
    max_bytes: Count


class Restore(Struct, frozen=True, omit_defaults=True):
    """What is to be restored, and where to.

    `snapshot`: "latest", or an id's beginning; `before`: of "latest", the time that it may not be later than.
    `source_host`: whose snapshot it is; empty for anyone's. `paths`: what of it, absolute; empty for all.
    `target`: an absolute folder, which must be empty or not there unless `overwrite`. `setuid_and_devices`: whether
    setuid and setgid bits, file capabilities and devices come back, which needs an empty `CommandRun.within`.
    """

    target: Annotated[str, Meta(min_length=1, max_length=4096, pattern="^/")]
    snapshot: Annotated[str, Meta(max_length=64, pattern=r"^(latest|[0-9a-f]{4,64})\Z")] = "latest"
    before: Time | None = None
    source_host: Annotated[str, Meta(max_length=253)] = ""
    paths: Annotated[list[Annotated[str, Meta(max_length=4096, pattern="^/")]], Meta(max_length=256)] = field(
        default_factory=list
    )
    overwrite: bool = False
    setuid_and_devices: bool = False


class CommandRun(Struct, frozen=True, omit_defaults=True):
    """server → agent: run restic with `args` against a repository. Sent again until the job is accepted.

    `init`: the arguments that create the repository when restic finds none; absent where it must exist.
    `within`: where the paths after `--` and a restore's target must lead to, symbolic links followed; empty for
    anywhere. `lock_wait_s`: how long a locked repository is waited for. `verify`, of kind verify: `args` list the
    snapshot to choose from. `restore`: what kind restore does, in place of `args`. `host_identity`: whether restic may
    speak as the host: with its keys and cloud profiles, and by what the cloud's metadata service says it is.
    """

    job_id: Id
    kind: Annotated[str, Meta(max_length=32)]
    args: Argv
    repository: RepositoryId = ""
    timeout_s: Seconds | None = None
    init: Argv | None = None
    schedule_id: Annotated[str, Meta(max_length=64)] = ""
    scheduled_at: Time | None = None
    within: Annotated[list[Path], Meta(max_length=256)] = field(default_factory=list)
    lock_wait_s: Seconds = 300
    hooks: Hooks | None = None
    verify: Verify | None = None
    restore: Restore | None = None
    host_identity: bool = False


class CommandCancel(Struct, frozen=True):
    """server → agent: stop that job; it ends as cancelled, also when it has not begun."""

    job_id: Id
    reason: Text = ""


class JobAsk(Struct, frozen=True):
    """server → agent: what became of that job? Answered with job.accepted while it runs, else with job.finished."""

    job_id: Id


class JobAccepted(Struct, frozen=True):
    """agent → server: the command is in the agent's journal; it will end, whatever happens."""

    job_id: Id


class JobProgress(Struct, frozen=True, omit_defaults=True):
    """agent → server: how far a running job is. Lossy: one may be dropped, the next one tells more."""

    job_id: Id
    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.0
    files_done: Count = 0
    files_total: Count = 0
    bytes_done: Count = 0
    bytes_total: Count = 0


class JobLog(Struct, frozen=True):
    """agent → server: lines that restic wrote for people."""

    job_id: Id
    lines: Annotated[list[Text], Meta(max_length=1000)]


class JobFinished(Struct, frozen=True, omit_defaults=True):
    """agent → server: how a job ended. Sent again until the server answers `job.confirmed`.

    `error` is for people; `reason` for programs, one of JobReason, or one that a later version tells.
    """

    job_id: Id
    status: JobEnd
    finished_at: Time
    started_at: Time | None = None
    exit_code: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None
    snapshot_id: Annotated[str, Meta(max_length=64)] = ""
    files_processed: Count = 0
    bytes_processed: Count = 0
    bytes_added: Count = 0
    error: Text = ""
    reason: Annotated[str, Meta(max_length=64)] = ""


class AgentClock(Struct, frozen=True):
    """agent → server, every minute: what the agent's clock shows. Clocks drift, and are set, while connected."""

    now: Time


class JobConfirmed(Struct, frozen=True):
    """server → agent: that job's end is stored; the agent may forget it."""

    job_id: Id


FromAgent = (
    Hello | ScheduleAck | ScheduleResync | ScheduleFire | JobAccepted | JobProgress | JobLog | JobFinished | AgentClock
)
FromServer = (
    RepoCredentials | ScheduleSet | ScheduleDiff | ScheduleRefused | CommandRun | CommandCancel | JobAsk | JobConfirmed
)
Message = FromAgent | FromServer

FROM_AGENT: dict[str, type[FromAgent]] = {
    "hello": Hello,
    "schedule.ack": ScheduleAck,
    "schedule.resync": ScheduleResync,
    "schedule.fire": ScheduleFire,
    "job.accepted": JobAccepted,
    "job.progress": JobProgress,
    "job.log": JobLog,
    "job.finished": JobFinished,
    "agent.clock": AgentClock,
}
FROM_SERVER: dict[str, type[FromServer]] = {
    "repo.credentials": RepoCredentials,
    "schedule.set": ScheduleSet,
    "schedule.diff": ScheduleDiff,
    "schedule.refused": ScheduleRefused,
    "command.run": CommandRun,
    "command.cancel": CommandCancel,
    "job.ask": JobAsk,
    "job.confirmed": JobConfirmed,
}
TYPES: dict[type[Message], str] = {cls: name for name, cls in {**FROM_AGENT, **FROM_SERVER}.items()}
