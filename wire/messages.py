"""The messages between agent and server: one class for each, with the limits of every field.

A receiver ignores unknown fields and uses defaults for absent ones, so that old and new versions understand each other.
The codec refuses a message that breaks a limit. Times are aware datetimes in UTC (RFC 3339 on the wire).
"""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct, field

PROTOCOL = "lamplighter.v1"
"""The WebSocket subprotocol that both sides must offer (RFC 6455, section 1.9)."""
CHECK_PROTOCOL = "lamplighter.check.v1"
"""The subprotocol of a connection on which an agent only asks what its host is to hold: hello, then host.expected."""
HOST_HEADER = "Lamplighter-Host"
"""The handshake's header with the agent's host, for the log of a server that refuses the agent."""

Id = Annotated[str, Meta(min_length=1, max_length=64)]
HostName = Annotated[
    str,
    Meta(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z"),
]
"""An RFC 1123 subdomain, like the names of Kubernetes nodes."""
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
"""Why a fire is not answered with a command.

- `Queued`: its job is recorded and waits in its lane; the command follows.
- `TooEarly`: the due time is in the future by the server's clock; the agent fires again when it has come by that clock.
- `NotDue`: the schedule has no such due time on that host, or the due time is before the schedule or the host existed.
- `Concurrent`: the schedule's previous job on that host is running, and its concurrencyPolicy is Forbid.
- `Missed`: the due time was missed, and the schedule's missedRunPolicy is Skip.
"""
JobEnd = Literal["succeeded", "warning", "failed", "timed_out", "cancelled", "interrupted"]
"""How a job ended. `warning`: it did its work, but some files could not be read (restic's exit code 3), or the hook
after the job failed."""
JobReason = Literal[
    "",
    "WrongPassword",
    "NoRepository",
    "Locked",
    "HookFailed",
    "CommandFailed",
    "NotGranted",
    "NotConfined",
    "VerificationFailed",
    "TargetNotEmpty",
    "TargetNotWritable",
    "NoSnapshot",
    "DeadlineExceeded",
    "OutcomeUnknown",
    "WindowClosed",
]
"""Why a job failed, for programs; empty if only its error says why."""
Path = Annotated[str, Meta(max_length=4096)]
RepositoryId = Annotated[str, Meta(max_length=320)]
"""A Repository's id. If its URL contains another host's name, a slash and that name follow."""


class Entry(Struct, frozen=True, omit_defaults=True):
    """One schedule as an agent holds it: when to fire, but not what to run.

    `cron`: one expression, or several with "; " between them; an agent without the capability `crons` leaves such an
    entry out. `since`: earlier due times do not count. `revision`: changes when what the schedule runs changes, so that
    the digest of a set covers that, too. `spread_s`: hosts are spread over this many seconds after each due time.
    """

    id: Id
    name: Text
    cron: Annotated[str, Meta(max_length=4096)]
    since: Time
    revision: Annotated[str, Meta(max_length=64)]
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    enabled: bool = True
    missed_run_policy: MissedRunPolicy = "RunOnce"
    deadline_s: Seconds | None = None
    spread_s: Seconds = 0


class Repository(Struct, frozen=True, omit_defaults=True):
    """A repository's URL and credentials for one host. Its repr hides the secrets."""

    id: RepositoryId
    name: Text
    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    password: Text = ""
    env: Annotated[dict[Annotated[str, Meta(max_length=256)], Text], Meta(max_length=64)] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Repository(id={self.id!r}, name={self.name!r})"


class LeftOut(Struct, frozen=True):
    """An entry that the agent holds but could not put in force, and why."""

    schedule_id: Id
    reason: Annotated[str, Meta(max_length=256)]


LeftOutList = Annotated[list[LeftOut], Meta(max_length=100)]
"""The first left-out entries, in the order of the set. `left_out_count` says whether there are more."""
MAX_HOOKS, MAX_HOOK = 64, 1024
"""The most programs that a hello lists as allowed hooks, and the most characters in the path of each."""


class Hello(Struct, frozen=True, omit_defaults=True):
    """agent → server, first on every connection. `running_jobs`: every job whose end the server has not confirmed.

    - `applied_version`, `digest`: of the set that the agent holds.
    - `instance`: a random id of the agent's process; empty from agents that send none.
    - `now`: what the agent's clock shows.
    - `left_out`: entries that are held but not in force; None while the agent does not know yet, and then a
      schedule.ack follows. `left_out_count`: their number, including those that are not listed.
    - `allowed_hooks`: the programs that the agent runs as hooks; None if it does not say, or allows too many to list.
    - `restic_version`: restic's own, such as 0.18.0; empty from agents that do not say, or have found no restic.
    - `max_jobs`: how many jobs the agent is to run at once; None for any number.
    - `stops`: whether the agent begins nothing more, as it is about to end.
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
    restic_version: Annotated[str, Meta(max_length=64)] = ""
    max_jobs: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    stops: bool = False


class RepoCredentials(Struct, frozen=True):
    """server → agent: the repositories that this host's schedules need. Replaces those sent before."""

    repositories: Annotated[list[Repository], Meta(max_length=10_000)]


class ScheduleSet(Struct, frozen=True, omit_defaults=True):
    """server → agent: the whole set at `version`. An entry's bytes are its identity; see `wire.entries`.

    `since`: when this host got its present labels; a new entry has no earlier due times on this host.
    """

    version: Version
    schedules: list[Raw]
    since: Time | None = None


class ScheduleDiff(Struct, frozen=True, omit_defaults=True):
    """server → agent: the diff from the set at `base` to the set at `version`."""

    base: Version
    version: Version
    upsert: list[Raw] = field(default_factory=list)
    remove: list[Id] = field(default_factory=list)
    since: Time | None = None


class ScheduleAck(Struct, frozen=True, omit_defaults=True):
    """agent → server: the set at `version` is in force; `digest` is the digest of what the agent holds.

    `left_out`: entries that are not in force, and why. `left_out_count`: their number, including those not listed.
    """

    version: Version
    digest: Digest
    left_out: LeftOutList = field(default_factory=list)
    left_out_count: Count = 0


class ScheduleResync(Struct, frozen=True):
    """agent → server: a diff does not fit the agent's set, at version `have`: send the whole set."""

    have: Version


class ScheduleFire(Struct, frozen=True, omit_defaults=True):
    """agent → server: a due time has come. `missed`: 0 on time, else how many due times this run stands for."""

    schedule_id: Id
    scheduled_at: Time
    missed: Count = 0


class ScheduleRefused(Struct, frozen=True, omit_defaults=True):
    """server → agent: why no command follows a fire now. `now`: what the server's clock shows, for TooEarly."""

    schedule_id: Id
    scheduled_at: Time
    reason: RefusalReason
    message: Text = ""
    now: Time | None = None


class Hooks(Struct, frozen=True, omit_defaults=True):
    """Programs of the host to run before and after a job, each with its arguments; empty for none.

    `schedule`: the schedule's name for people, which the programs get in their environment.
    """

    before: Argv = field(default_factory=list)
    after: Argv = field(default_factory=list)
    schedule: Text = ""


class Verify(Struct, frozen=True):
    """How much of a snapshot is restored and compared: at most `files` files, with at most `max_bytes` together."""

    files: Annotated[int, Meta(ge=1, le=500)]
    max_bytes: Count


class Restore(Struct, frozen=True, omit_defaults=True):
    """What to restore, and where to.

    - `target`: an absolute folder; without `overwrite` it must be empty or missing.
    - `snapshot`: "latest", or the beginning of an id. `before`: the latest time that "latest" may be of.
    - `source_host`: the host whose snapshot it is; empty for any host's.
    - `paths`: absolute paths in the snapshot; empty for all of it.
    - `setuid_and_devices`: whether to restore setuid and setgid bits, file capabilities and devices; allowed only with
      an empty `CommandRun.within`.
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

    - `init`: arguments that create a missing repository; None if it must exist.
    - `within`: the granted paths. Paths after `--` and a restore's target must resolve to somewhere in them; empty for
      the whole host.
    - `stop_after_s`: seconds after which it is interrupted with reason WindowClosed. It needs the capability
      `stop-after`.
    - `lock_wait_s`: seconds to wait for a locked repository.
    - `verify`: for kind verify, whose `args` list the files of the snapshot.
    - `restore`: for kind restore, which uses it in place of `args`.
    - `host_identity`: whether restic may use the host's identity: its keys, cloud profiles and metadata service.
    - `stdin_command`: for kind backup, a program of the host with its arguments, whose output becomes the snapshot.
    - `options`: options of every restic of this job, which stand before `args`.
    - `nice`: how much the job lowers its priority (nice(2)). `io_class`: "BestEffort", "Idle", or "" for the agent's.
    - `from_repository`: for kind copy, the repository whose snapshots are copied into `repository`.
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
    stdin_command: Argv = field(default_factory=list)
    options: Argv = field(default_factory=list)
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    io_class: Annotated[str, Meta(max_length=32)] = ""
    stop_after_s: Seconds | None = None
    from_repository: RepositoryId = ""


MAX_EXPECTED = 1000
"""The most commands in one host.expected."""


class HostExpected(Struct, frozen=True, omit_defaults=True):
    """server → agent, in answer to a hello by `CHECK_PROTOCOL`: what the host is to hold, and what its jobs would need.

    - `version`: of the set. `schedules`: how many it has, those that are disabled included.
    - `entries`, `commands`: the enabled ones, by name, each with the command that would follow its fire, with the
      schedule's id as the job's. At most MAX_EXPECTED.
    - `repositories`: those that the commands need, with their credentials.
    """

    version: Version
    schedules: Count
    entries: Annotated[list[Entry], Meta(max_length=MAX_EXPECTED)] = field(default_factory=list)
    commands: Annotated[list[CommandRun], Meta(max_length=MAX_EXPECTED)] = field(default_factory=list)
    repositories: Annotated[list[Repository], Meta(max_length=10_000)] = field(default_factory=list)


class CommandCancel(Struct, frozen=True):
    """server → agent: stop a job, started or not; it ends as cancelled."""

    job_id: Id
    reason: Text = ""


class JobAsk(Struct, frozen=True):
    """server → agent: what is the state of a job? The answer is job.accepted while it runs, else job.finished."""

    job_id: Id


class JobAccepted(Struct, frozen=True):
    """agent → server: the command is in the agent's journal, and a job.finished will follow, whatever happens."""

    job_id: Id


class JobProgress(Struct, frozen=True, omit_defaults=True):
    """agent → server: the progress of a running job. It may be dropped, since the next one replaces it."""

    job_id: Id
    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.0
    files_done: Count = 0
    files_total: Count = 0
    bytes_done: Count = 0
    bytes_total: Count = 0


class JobLog(Struct, frozen=True):
    """agent → server: lines of a job's log."""

    job_id: Id
    lines: Annotated[list[Text], Meta(max_length=1000)]


class JobFinished(Struct, frozen=True, omit_defaults=True):
    """agent → server: how a job ended. Sent again until the server answers `job.confirmed`.

    `error`: for people. `reason`: for programs; one of JobReason, or a reason of a later version.

    - `done_at`: when restic had done the job's work, before snapshots were counted and the hook after the job; None
      where it did not, and from agents that do not say.
    - `bytes_stored`: what a backup added to the repository as it is stored there; 0 before restic 0.17.
    - `repository_bytes`: what is left in the repository after a prune; None where restic did not say.
    - `created`: whether the job created the repository.
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
    done_at: Time | None = None
    bytes_stored: Count = 0
    repository_bytes: Count | None = None
    created: bool = False


class HostSnapshots(Struct, frozen=True, array_like=True):
    """The snapshots of a host in a repository. `host`: as restic has it. `newest`: its time, in seconds since 1970."""

    host: Annotated[str, Meta(max_length=253)]
    count: Count
    newest: Count


class JobCounted(Struct, frozen=True, omit_defaults=True):
    """agent → server, before a job's end: the snapshots that restic listed in its repository from `at` on, by host.

    `of`: the host whose snapshots alone were listed; "" for all. `more`: how many hosts are not in `hosts`. It may be
    lost: the next job that counts replaces it.
    """

    job_id: Id
    at: Time
    hosts: Annotated[list[HostSnapshots], Meta(max_length=10_000)] = field(default_factory=list)
    of: Annotated[str, Meta(max_length=253)] = ""
    more: Count = 0


JobReport = JobProgress | JobLog | JobCounted
"""What is said of a job while it runs."""


class AgentClock(Struct, frozen=True, omit_defaults=True):
    """agent → server, every minute: what the agent's clock shows, since it may drift or be set while connected.

    `stops`: whether the agent begins nothing more, as it is about to end.
    """

    now: Time
    stops: bool = False


class JobConfirmed(Struct, frozen=True):
    """server → agent: a job's end is stored, and the agent may forget it."""

    job_id: Id


FromAgent = Hello | ScheduleAck | ScheduleResync | ScheduleFire | JobAccepted | JobReport | JobFinished | AgentClock
FromServer = (
    RepoCredentials
    | ScheduleSet
    | ScheduleDiff
    | ScheduleRefused
    | CommandRun
    | CommandCancel
    | JobAsk
    | JobConfirmed
    | HostExpected
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
    "job.counted": JobCounted,
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
    "host.expected": HostExpected,
}
TYPES: dict[type[Message], str] = {cls: name for name, cls in {**FROM_AGENT, **FROM_SERVER}.items()}
