"""The tables, and the values of an actor's kind and a job's status.

The classes are the schema: the migrations are checked against them. Statements are plain SQLAlchemy Core on their
tables, in the files beside this one; no ORM objects are loaded or tracked.
"""

from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple, get_args

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from wire.messages import JobEnd

JobStatus = Literal["pending", "running"] | JobEnd
"""`pending`: recorded, not yet accepted by the agent; `running`: accepted; the rest are ends."""
OPEN: tuple[str, ...] = ("pending", "running")
GOOD: tuple[str, ...] = ("succeeded", "warning")
"""The ends that count as success: the snapshot, or whatever the job was for, exists."""
JOB_STATUSES: tuple[str, ...] = (*OPEN, *get_args(JobEnd))

ActorKind = Literal["user", "controller", "schedule", "agent", "run", "join"]
ACTOR_KINDS: tuple[str, ...] = get_args(ActorKind)


class Actor(NamedTuple):
    """Who causes a change or a job. `kind`: one of ACTOR_KINDS."""

    kind: str
    id: str


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware datetime: timestamptz in PostgreSQL, and in SQLite text of fixed width, which sorts by time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Text in SQLite, which has no type for times; timestamptz elsewhere."""
        return dialect.type_descriptor(sa.String(27) if dialect.name == "sqlite" else sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        """Raises ValueError for a naive datetime, whose zone is unknown."""
        if value is None:
            return None
        return stored(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """The datetime in UTC, whatever the time zone of the session."""
        if value is None:
            return None
        return datetime.fromisoformat(value) if dialect.name == "sqlite" else value.astimezone(UTC)


def stored(at: datetime) -> str:
    """An aware datetime as the store writes it: in UTC, with microseconds. Raises ValueError for a naive one."""
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()}: a time without a zone cannot be stored")
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


_LANE = sa.String(320).with_variant(sa.String(320, collation="C"), "postgresql")
"""In the order of its bytes on every database: the lanes of a repository are found by a range."""


_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""An id that the database counts: SQLite does so for the type INTEGER alone."""


class Base(SQLModel):
    """Names every constraint, so that a migration can drop it on any database."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Host(Base, table=True):
    """A machine with an agent: its desired version, and the version that it last acknowledged.

    `left_out`: {"count": N, "reasons": {schedule id: reason}} of the entries that it holds and could not apply; None
    when it applied all. Reasons are limited to the length of `wire.messages.LeftOutList`; the count is not. `session`:
    the number of the hello since which it said so; what came by an older one is not stored. `spec`: that of its Host,
    as `HostSpec` reads it. `drained_by`: who asked for it to be drained, "" for nobody; `drains`: whether that, or its
    Host, asks for it.
    """

    __tablename__ = "hosts"

    name: str = Field(primary_key=True, max_length=253)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=sa.JSON)
    created_at: datetime = Field(sa_type=UtcDateTime)
    since: datetime = Field(sa_type=UtcDateTime)
    desired_version: int = Field(default=0, sa_type=sa.BigInteger)
    desired_digest: str = Field(default="", max_length=64)
    applied_version: int = Field(default=0, sa_type=sa.BigInteger)
    applied_digest: str = Field(default="", max_length=64)
    agent_version: str = Field(default="", max_length=64)
    last_seen: datetime | None = Field(default=None, sa_type=UtcDateTime)
    left_out: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON)
    session: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})
    restic_version: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    spec: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON, sa_column_kwargs={"server_default": "{}"})
    drained_by: str = Field(default="", max_length=253, sa_column_kwargs={"server_default": ""})
    drains: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})


class Schedule(Base, table=True):
    """An accepted Schedule resource.

    `since`: due times up to it do not count. `enabled_since`: when the schedule was created or last enabled; None, in
    rows of older versions, means `since`. `earlier`: see `server.fleet.timing`. `ping`: the URL of spec.ping, sealed by
    `Vault.seal`.
    """

    __tablename__ = "schedules"
    __table_args__ = (sa.UniqueConstraint("namespace", "name"),)

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=63)
    name: str = Field(max_length=253)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=sa.JSON)
    spec: dict[str, Any] = Field(sa_type=sa.JSON)
    generation: int = Field(default=1, sa_type=sa.BigInteger)
    created_at: datetime = Field(sa_type=UtcDateTime)
    since: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)
    enabled_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    earlier: list[Any] = Field(default_factory=list, sa_type=sa.JSON, sa_column_kwargs={"server_default": "[]"})
    ping: str | None = Field(default=None, sa_type=sa.Text, repr=False)


class HostSchedule(Base, table=True):
    """When a host got a schedule, if that was after both were created; see `server.fleet.expected`."""

    __tablename__ = "host_schedules"

    schedule_id: str = Field(primary_key=True, foreign_key="schedules.id", ondelete="CASCADE", max_length=32)
    host: str = Field(primary_key=True, foreign_key="hosts.name", ondelete="CASCADE", max_length=253, index=True)
    since: datetime = Field(sa_type=UtcDateTime)


class MetHost(Base, table=True):
    """A host that a Schedule with runOnJoin selected at any time. `due`: whether it joined, and has yet to run it."""

    __tablename__ = "met_hosts"
    __table_args__ = (
        sa.Index("ix_met_hosts_due", "host", sqlite_where=sa.text("due"), postgresql_where=sa.text("due")),
    )

    schedule_id: str = Field(primary_key=True, foreign_key="schedules.id", ondelete="CASCADE", max_length=32)
    host: str = Field(primary_key=True, foreign_key="hosts.name", ondelete="CASCADE", max_length=253, index=True)
    due: bool = Field(default=False)


class Repository(Base, table=True):
    """An accepted Repository resource. `credentials`: its password and environment, sealed by `Vault.seal`."""

    __tablename__ = "repositories"
    __table_args__ = (sa.UniqueConstraint("namespace", "name"),)

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=63)
    name: str = Field(max_length=253)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=sa.JSON)
    spec: dict[str, Any] = Field(sa_type=sa.JSON)
    generation: int = Field(default=1, sa_type=sa.BigInteger)
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)
    credentials: str | None = Field(default=None, sa_type=sa.Text, repr=False)


class Job(Base, table=True):
    """One execution on one host. The unique key ensures one job for each schedule, host and due time.

    A job with `scheduled_id` but without `scheduled_at` was requested by a run. `command`: the JSON of the command.run
    payload. `sent`: whether the current `attempt` may have been sent to the host. `not_before`: the earliest time of
    that attempt; earlier attempts are in JobAttempt. `cancel_requested`: whether the host is asked to cancel it.

    Of an open job, its place in the queue: `lane`, a repository or one host's part of it; `from_lane`, the same of the
    repository that a copy reads from; `queued_at`, and then the id,
    order the jobs of a lane; `exclusive`: alone in its lane; `serial`: not beside an earlier run of its schedule on its
    host; `start_by`: when it is too late to begin its first attempt; `deferred`: until its next attempt is due;
    `ready`: only its lane holds it back; `holds`: it has a slot of its lane; `cancel_reason`: why it is to end;
    `hangs_at`: when its host should have stopped it, once it runs; `gate`: the one at which it is held back; `claims`:
    whether it keeps its place at its gates while it waits for its lane.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("host", "scheduled_id", "scheduled_at"),
        sa.Index("ix_jobs_created_at_id", "created_at", "id"),
        sa.Index("ix_jobs_scheduled_id_created_at_id", "scheduled_id", "created_at", "id"),
        sa.Index(
            "ix_jobs_open_host_id",
            "host",
            "id",
            sqlite_where=sa.text("status IN ('pending', 'running')"),
            postgresql_where=sa.text("status IN ('pending', 'running')"),
        ),
        sa.Index(
            "ix_jobs_run",
            "actor_id",
            sqlite_where=sa.text("actor_kind = 'run'"),
            postgresql_where=sa.text("actor_kind = 'run'"),
        ),
        sa.Index("ix_jobs_host_created_at", "host", "created_at"),
        *(
            sa.Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
            for name, columns, where in (
                ("ix_jobs_other_kind", ("kind", "created_at", "id"), "kind <> 'backup'"),
                ("ix_jobs_other_actor", ("actor_kind", "created_at", "id"), "actor_kind <> 'schedule'"),
                ("ix_jobs_other_status", ("status", "created_at", "id"), "status <> 'succeeded'"),
                ("ix_jobs_lane_ready", ("lane", "queued_at", "id"), "ready"),
                ("ix_jobs_lane_holds", ("lane", "exclusive"), "holds"),
                ("ix_jobs_from_lane_ready", ("from_lane", "queued_at", "id"), "ready AND from_lane <> ''"),
                ("ix_jobs_from_lane_holds", ("from_lane",), "holds AND from_lane <> ''"),
                ("ix_jobs_copies_ready", ("lane",), "ready AND from_lane <> ''"),
                ("ix_jobs_open_copies", ("from_lane",), "status IN ('pending', 'running') AND from_lane <> ''"),
                ("ix_jobs_open_pair", ("scheduled_id", "host", "queued_at", "id"), "status IN ('pending', 'running')"),
                ("ix_jobs_sent_pair", ("scheduled_id", "host"), "status IN ('pending', 'running') AND sent"),
                (
                    "ix_jobs_waiting_pair",
                    ("scheduled_id", "host", "serial", "queued_at", "id"),
                    "status = 'pending' AND NOT sent AND NOT deferred",
                ),
                ("ix_jobs_ready_pair", ("scheduled_id", "host"), "ready AND serial"),
                ("ix_jobs_deferred", ("not_before",), "deferred"),
                ("ix_jobs_hangs_at", ("hangs_at",), "status = 'running'"),
                ("ix_jobs_start_by", ("start_by",), "status = 'pending' AND NOT sent AND start_by IS NOT NULL"),
                ("ix_jobs_gate", ("gate", "queued_at", "id"), "status = 'pending' AND NOT sent AND gate IS NOT NULL"),
            )
        ),
    )

    id: str = Field(primary_key=True, max_length=64)
    host: str = Field(max_length=253)
    kind: str = Field(max_length=32)
    actor_kind: str = Field(max_length=16)
    actor_id: str = Field(max_length=253)
    scheduled_id: str | None = Field(default=None, max_length=32)
    scheduled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    missed: int = Field(default=0, sa_type=sa.BigInteger)
    status: str = Field(default="pending", max_length=16)
    command: str = Field(sa_type=sa.Text)
    created_at: datetime = Field(sa_type=UtcDateTime)
    accepted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    exit_code: int | None = None
    snapshot_id: str | None = Field(default=None, max_length=64)
    files_processed: int | None = Field(default=None, sa_type=sa.BigInteger)
    bytes_processed: int | None = Field(default=None, sa_type=sa.BigInteger)
    bytes_added: int | None = Field(default=None, sa_type=sa.BigInteger)
    error: str | None = Field(default=None, sa_type=sa.Text)
    reason: str | None = Field(default=None, max_length=64)
    sent: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    attempt: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    not_before: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cancel_requested: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    lane: str = Field(default="", sa_type=_LANE, sa_column_kwargs={"server_default": ""})
    from_lane: str = Field(default="", sa_type=_LANE, sa_column_kwargs={"server_default": ""})
    queued_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    start_by: datetime | None = Field(default=None, sa_type=UtcDateTime)
    exclusive: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    serial: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    deferred: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    ready: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    holds: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    cancel_reason: str | None = Field(default=None, sa_type=sa.Text)
    hangs_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    gate: str | None = Field(default=None, max_length=320)
    claims: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})


class Connection(Base, table=True):
    """Whether a host is connected. `server`: the id of the server that has it, None once it is gone, at `lost_at`.

    `session`: the number of the host's newest hello, on whichever server, which only grows; `instance`: the agent's
    process; `hello`: what it said of itself there. `stops`: whether the agent begins nothing more, as it is about to
    end; `drains`: whether that or its Host's `drains` holds, so that the host is sent nothing new.
    """

    __tablename__ = "connections"

    host: str = Field(primary_key=True, foreign_key="hosts.name", ondelete="CASCADE", max_length=253)
    server: str | None = Field(default=None, max_length=32, index=True)
    lost_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    session: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})
    instance: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    hello: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON)
    stops: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    drains: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})


class Server(Base, table=True):
    """A server that runs. `seen_at`: it writes this every few seconds; `revision`, `news`: up to where it has followed
    the change log and the news; `stopping`: whether it sends its agents to the others."""

    __tablename__ = "servers"

    id: str = Field(primary_key=True, max_length=32)
    name: str = Field(max_length=253)
    started_at: datetime = Field(sa_type=UtcDateTime)
    seen_at: datetime = Field(sa_type=UtcDateTime)
    revision: int = Field(default=0, sa_type=sa.BigInteger)
    news: int = Field(default=0, sa_type=sa.BigInteger)
    stopping: bool = Field(default=False)


class ChangeHead(Base, table=True):
    """The revision of the newest change: one row, whose lock orders all changes. `sessions`: the largest number of a
    hello of the hosts that were deleted; those that come by their names later go on from there."""

    __tablename__ = "change_head"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    revision: int = Field(sa_type=sa.BigInteger)
    sessions: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})


class ChangeEntry(Base, table=True):
    """A change of what is declared, for the servers that did not make it. `body`: its JSON."""

    __tablename__ = "change_log"

    revision: int = Field(primary_key=True, sa_type=sa.BigInteger, sa_column_kwargs={"autoincrement": False})
    at: datetime = Field(sa_type=UtcDateTime)
    body: str = Field(sa_type=sa.Text)


class News(Base, table=True):
    """What happened to jobs and hosts on one server, for the others. `server`: which one; `body`: its JSON."""

    __tablename__ = "news"

    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    server: str = Field(max_length=32)
    body: str = Field(sa_type=sa.Text)


class Progress(Base, table=True):
    """How far a running job is, as its server wrote it last, for the other servers."""

    __tablename__ = "job_progress"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE", max_length=64)
    at: datetime = Field(sa_type=UtcDateTime)
    body: str = Field(sa_type=sa.Text)


class KeptListing(Base, table=True):
    """A list of snapshots or files that a host gave, kept while its pages are read. `body`: its JSON."""

    __tablename__ = "listings"

    id: str = Field(primary_key=True, max_length=32)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    body: str = Field(sa_type=sa.Text)


class ControllerReport(Base, table=True):
    """The last report of a controller. `body`: its JSON."""

    __tablename__ = "controllers"

    name: str = Field(primary_key=True, max_length=253)
    at: datetime = Field(sa_type=UtcDateTime)
    body: str = Field(sa_type=sa.Text)


class HostDay(Base, table=True):
    """How the Schedules' jobs that ended on a day (UTC) went on a host; on all hosts together where `host` is empty.

    `namespace`: of their repository, empty for one that was deleted before they ended. `failed`: any end that is not in
    GOOD.
    """

    __tablename__ = "host_days"

    host: str = Field(primary_key=True, max_length=253)
    day: date = Field(primary_key=True, sa_type=sa.Date, index=True)
    namespace: str = Field(primary_key=True, max_length=63)
    succeeded: int = Field(default=0, sa_type=sa.BigInteger)
    warned: int = Field(default=0, sa_type=sa.BigInteger)
    failed: int = Field(default=0, sa_type=sa.BigInteger)
    bytes_added: int = Field(default=0, sa_type=sa.BigInteger)


class ScheduleDay(Base, table=True):
    """How the jobs of a Schedule that ended on a day (UTC) went, on all hosts, by the repository that they used.

    `failed`: of any end that is not in GOOD. `backups`: the good ones that made a snapshot. `seconds`: of all jobs that
    began, together; `longest`: of the longest one.
    """

    __tablename__ = "schedule_days"
    __table_args__ = (sa.Index("ix_schedule_days_schedule_id_day", "schedule_id", "day"),)

    repository_id: str = Field(primary_key=True, max_length=32)
    day: date = Field(primary_key=True, sa_type=sa.Date)
    schedule_id: str = Field(primary_key=True, max_length=32)
    succeeded: int = Field(default=0, sa_type=sa.BigInteger)
    warned: int = Field(default=0, sa_type=sa.BigInteger)
    failed: int = Field(default=0, sa_type=sa.BigInteger)
    backups: int = Field(default=0, sa_type=sa.BigInteger)
    seconds: int = Field(default=0, sa_type=sa.BigInteger)
    longest: int = Field(default=0, sa_type=sa.BigInteger)
    bytes_processed: int = Field(default=0, sa_type=sa.BigInteger)
    bytes_added: int = Field(default=0, sa_type=sa.BigInteger)


class RolloutFailure(Base, table=True):
    """A host on which the newest run of a Schedule failed since that was last resumed. Of Schedules that may pause."""

    __tablename__ = "rollout_failures"

    schedule_id: str = Field(primary_key=True, max_length=32)
    host: str = Field(primary_key=True, max_length=253, index=True)


class RolloutPause(Base, table=True):
    """A Schedule that is paused: nothing of it begins until somebody resumes it. `failed`: on how many hosts it had
    failed then; `hosts`: the first of them by name."""

    __tablename__ = "rollout_pauses"

    schedule_id: str = Field(primary_key=True, max_length=32)
    paused_at: datetime = Field(sa_type=UtcDateTime)
    failed: int
    hosts: list[str] = Field(sa_type=sa.JSON)


class RepositoryCount(Base, table=True):
    """How much a repository holds. `what`, `host` and the values: see `server.store.counts`."""

    __tablename__ = "repository_counts"

    repository_id: str = Field(primary_key=True, max_length=32)
    what: str = Field(primary_key=True, max_length=16)
    host: str = Field(primary_key=True, max_length=253)
    value: int = Field(default=0, sa_type=sa.BigInteger)
    at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    since: int = Field(default=0, sa_type=sa.BigInteger)
    first_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    newest: datetime | None = Field(default=None, sa_type=UtcDateTime)
    made_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class JobAttempt(Base, table=True):
    """A failed attempt of a job, which was followed by another attempt."""

    __tablename__ = "job_attempts"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE", max_length=64)
    attempt: int = Field(primary_key=True)
    status: str = Field(max_length=16)
    finished_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    exit_code: int | None = None
    snapshot_id: str | None = Field(default=None, max_length=64)
    error: str | None = Field(default=None, sa_type=sa.Text)
    reason: str | None = Field(default=None, max_length=64)


class JobLog(Base, table=True):
    """A line of restic's output. `total_bytes`: the UTF-8 bytes of the job's lines up to and including this one."""

    __tablename__ = "job_logs"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE", max_length=64)
    seq: int = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)
    line: str = Field(sa_type=sa.Text)
    total_bytes: int = Field(sa_type=sa.Integer)


class Enrolment(Base, table=True):
    """A host's newest enrolment token, hashed. `key_hash`: of the key that was registered with it; empty before."""

    __tablename__ = "enrolments"

    host: str = Field(primary_key=True, foreign_key="hosts.name", ondelete="CASCADE", max_length=253)
    token_hash: str = Field(unique=True, max_length=64)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    key_hash: str = Field(default="", max_length=64)


class HostKey(Base, table=True):
    """The key by which a host outside a cluster authenticates, hashed."""

    __tablename__ = "host_keys"

    host: str = Field(primary_key=True, foreign_key="hosts.name", ondelete="CASCADE", max_length=253)
    key_hash: str = Field(unique=True, max_length=64)
    created_at: datetime = Field(sa_type=UtcDateTime)


class Alert(Base, table=True):
    """An accepted Alert resource. `credentials`: its URLs and the key that signs, sealed by `Vault.seal`."""

    __tablename__ = "alerts"
    __table_args__ = (sa.UniqueConstraint("namespace", "name"),)

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=63)
    name: str = Field(max_length=253)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=sa.JSON)
    spec: dict[str, Any] = Field(sa_type=sa.JSON)
    generation: int = Field(default=1, sa_type=sa.BigInteger)
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)
    credentials: str | None = Field(default=None, sa_type=sa.Text, repr=False)


class AlertState(Base, table=True):
    """What an Alert, or a Schedule with a ping, has told. `owner`: the id of either; `body`: its JSON.

    `version`: grows with each decision, which is stored only if no other came between. `delivered_at`: when a message
    last arrived; `failed_at`, `error`: when one last did not, and why, None since one did. `dropped`: how many were
    given up.
    """

    __tablename__ = "alert_states"

    owner: str = Field(primary_key=True, max_length=32)
    version: int = Field(default=0, sa_type=sa.BigInteger)
    at: datetime = Field(sa_type=UtcDateTime)
    body: str = Field(sa_type=sa.Text)
    firing: int = Field(default=0)
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    failed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    error: str | None = Field(default=None, sa_type=sa.Text)
    dropped: int = Field(default=0, sa_type=sa.BigInteger)


class Delivery(Base, table=True):
    """A message that is still to be delivered. Those of one `owner` and `target` go one after the other.

    `key`: what the receiver recognises a copy by. `target`: which of the owner's URLs. `body`: its JSON.
    """

    __tablename__ = "deliveries"
    __table_args__ = (sa.UniqueConstraint("owner", "target", "key"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    owner: str = Field(max_length=32)
    target: str = Field(max_length=253)
    key: str = Field(max_length=128)
    created_at: datetime = Field(sa_type=UtcDateTime)
    not_before: datetime = Field(sa_type=UtcDateTime)
    attempts: int = Field(default=0)
    body: str = Field(sa_type=sa.Text)


class SignInLink(Base, table=True):
    """A link that signs in once. `digest`: of its code; `sealed`: the token that it signs in with, by the vault."""

    __tablename__ = "sign_in_links"

    digest: str = Field(primary_key=True, max_length=64)
    sealed: str = Field(sa_type=sa.Text)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class EndedSession(Base, table=True):
    """A session of the pages that its user ended, until it would have expired. `digest`: of its id."""

    __tablename__ = "ended_sessions"

    digest: str = Field(primary_key=True, max_length=64)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class StoreOwner(Base, table=True):
    """The owner of the store: one row. `server`: the id of the server that opened it last. `probed_at`: see `probe`."""

    __tablename__ = "store_owner"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    server: str = Field(max_length=32)
    probed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Audit(Base, table=True):
    """Who changed what, when."""

    __tablename__ = "audit_log"
    __table_args__ = (sa.Index("ix_audit_log_object", "object_kind", "object_name", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)
    actor_kind: str = Field(max_length=16)
    actor_id: str = Field(max_length=253)
    action: str = Field(max_length=32)
    object_kind: str = Field(max_length=32)
    object_name: str = Field(max_length=512)
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)


tables = Base.metadata.tables
HOSTS, SCHEDULES, REPOSITORIES = tables["hosts"], tables["schedules"], tables["repositories"]
JOBS, JOB_ATTEMPTS, JOB_LOGS = tables["jobs"], tables["job_attempts"], tables["job_logs"]
AUDIT, HOST_SCHEDULES, STORE_OWNER = tables["audit_log"], tables["host_schedules"], tables["store_owner"]
CONNECTIONS, SERVERS, NEWS = tables["connections"], tables["servers"], tables["news"]
MET_HOSTS = tables["met_hosts"]
CHANGE_HEAD, CHANGE_LOG = tables["change_head"], tables["change_log"]
PROGRESS, LISTINGS, CONTROLLERS = tables["job_progress"], tables["listings"], tables["controllers"]
ROLLOUT_FAILURES, ROLLOUT_PAUSES = tables["rollout_failures"], tables["rollout_pauses"]
HOST_DAYS, SCHEDULE_DAYS = tables["host_days"], tables["schedule_days"]
REPOSITORY_COUNTS = tables["repository_counts"]
ENROLMENTS, HOST_KEYS = tables["enrolments"], tables["host_keys"]
ALERTS, ALERT_STATES, DELIVERIES = tables["alerts"], tables["alert_states"], tables["deliveries"]
SIGN_IN_LINKS, ENDED_SESSIONS = tables["sign_in_links"], tables["ended_sessions"]
