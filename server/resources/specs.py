"""The specs of resources as typed values, converted from plain JSON that was validated.

Their schema, limits and defaults are in the custom resource definitions (crds/). A field that gets a default there
after a release needs the same default here, for rows that were stored before.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct, field

import cron

ConcurrencyPolicy = Literal["Allow", "Forbid", "Replace"]
"""Whether runs of a schedule on a host may be beside each other."""
Compression = Literal["auto", "off", "fastest", "better", "max"]
"""How much restic compresses."""
IoClass = Literal["BestEffort", "Idle"]
"""A class of ioprio_set(2)."""
Kind = Literal["backup", "forget", "prune", "check", "unlock", "verify", "copy"]


class Requirement(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A condition on one label of a host."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A label selector as in Kubernetes: every part must hold, and an empty one selects everything.

    Unknown fields are refused, since a misspelt selector would otherwise select every host.
    """

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()


class ObjectRef(Struct, frozen=True):
    """Another object in the same namespace."""

    name: str


class SecretKeyRef(Struct, frozen=True):
    """One value of a Secret in the same namespace."""

    name: str
    key: str


class Backup(Struct, frozen=True, rename="camel"):
    """What a backup includes and excludes, and how it reads and stores. Sizes are quantities: 64Mi.

    `command`: a program whose output is backed up in place of paths, as the file `stdin_filename`.
    `compression`, `pack_size`: in place of the Repository's.
    """

    excludes: tuple[str, ...]
    tags: tuple[str, ...]
    one_file_system: bool
    exclude_caches: bool
    paths: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    stdin_filename: str = "stdin"
    iexcludes: tuple[str, ...] = ()
    exclude_larger_than: str | None = None
    exclude_if_present: tuple[str, ...] = ()
    with_atime: bool = False
    no_scan: bool = False
    skip_if_unchanged: bool = False
    read_concurrency: int | None = None
    compression: Compression | None = None
    pack_size: str | None = None


class Retention(Struct, frozen=True, rename="camel"):
    """Which snapshots `forget` keeps: numbers of them, a restic duration, tags.

    `prune`: whether the data of forgotten snapshots is removed at once. `all_hosts`: whether snapshots of other hosts
    are forgotten, too. `group_by`: what snapshots have in common that are counted together; None for restic's default,
    host and paths. `tags`: only snapshots with one of these are looked at; empty for those that Schedules of kind
    backup made that use the same Repository. `all_tags`: whether snapshots are looked at whatever their tags.
    """

    keep_last: int | None = None
    keep_hourly: int | None = None
    keep_daily: int | None = None
    keep_weekly: int | None = None
    keep_monthly: int | None = None
    keep_yearly: int | None = None
    keep_within: str | None = None
    keep_tags: tuple[str, ...] = ()
    prune: bool = False
    all_hosts: bool = False
    group_by: tuple[Literal["host", "paths", "tags"], ...] | None = None
    tags: tuple[str, ...] = ()
    all_tags: bool = False


class PruneOptions(Struct, frozen=True, rename="camel"):
    """How much prune works: how much data may stay unused (5%, 10Gi, unlimited), and how much it moves at most."""

    max_unused: str | None = None
    max_repack_size: str | None = None


class Check(Struct, frozen=True, rename="camel"):
    """How much `check` reads."""

    read_data_subset: str | None = None


class Verify(Struct, frozen=True, rename="camel"):
    """How much of a snapshot `verify` restores: a number of files, and a quantity of bytes (100Mi)."""

    files: int = 20
    max_bytes: str = "100Mi"


class Copy(Struct, frozen=True, rename="camel"):
    """What `copy` copies: the snapshots of this Repository, in the same namespace."""

    from_repository_ref: ObjectRef

    @property
    def source(self) -> str:
        """The name of that Repository."""
        return self.from_repository_ref.name


class Retry(Struct, frozen=True, rename="camel"):
    """How often a failed job is tried again, and the seconds before the first retry."""

    limit: int
    backoff_seconds: int


class Hooks(Struct, frozen=True):
    """Commands before and after a job, as argument lists."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Rollout(Struct, frozen=True, rename="camel"):
    """On how many hosts a Schedule runs at once, None for any number; and what happens once more than `max_failures`
    have failed: nothing else, or nothing begins until it is resumed."""

    max_concurrent_hosts: int | None = None
    max_failures: int = 0
    failure_policy: Literal["Continue", "Pause"] = "Continue"

    @property
    def pauses_after(self) -> int | None:
        """How many hosts may fail before it pauses; None where it never does."""
        return self.max_failures if self.failure_policy == "Pause" else None


class Ping(Struct, frozen=True, rename="camel"):
    """Where the URL is that is called when a run begins and ends."""

    url_secret_ref: SecretKeyRef


class Window(Struct, frozen=True, rename={"begin": "from", "end": "to"}):
    """Times of day (HH:MM) between which a run may begin, on the days on which it opens."""

    begin: str
    end: str
    days: tuple[str, ...] = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class ScheduleSpec(Struct, frozen=True, rename="camel"):
    """The spec of a Schedule. The blocks of other kinds than its own are None.

    `switched_on`, `suspend`: see `enabled`. `successful_runs_history_limit` and `failed_runs_history_limit` are for the
    controller, which deletes Runs beyond them.
    """

    kind: Kind
    time_zone: str
    switched_on: bool = field(name="enabled")
    host_selector: LabelSelector
    repository_ref: ObjectRef
    concurrency_policy: ConcurrencyPolicy
    missed_run_policy: Literal["RunOnce", "Skip"]
    spread_seconds: int
    retry: Retry
    cron: str = ""
    crons: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    stop_at_end: bool = False
    run_on_join: bool = False
    starting_deadline_seconds: int | None = None
    timeout_seconds: int = 86400
    success_within: str | None = None
    backup: Backup | None = None
    retention: Retention | None = None
    check: Check | None = None
    verify: Verify | None = None
    copy: Copy | None = None
    hooks: Hooks | None = None
    ping: Ping | None = None
    nice: int = 0
    io_class: IoClass | None = None
    suspend: bool = False
    prune_options: PruneOptions | None = None
    rollout: Rollout | None = None
    successful_runs_history_limit: int | None = None
    failed_runs_history_limit: int | None = None

    @property
    def enabled(self) -> bool:
        """Whether it runs: `spec.enabled` is true, and `spec.suspend` is not."""
        return self.switched_on and not self.suspend

    @property
    def cron_text(self) -> str:
        """Its expression, or those of `crons`, as `cron.parse_all` reads them."""
        return cron.joined(self.crons) or self.cron

    @property
    def repository(self) -> str:
        """The name of the Repository, in the same namespace."""
        return self.repository_ref.name

    @property
    def from_repository(self) -> str:
        """The name of the Repository that a copy reads from; empty for other kinds."""
        return "" if self.copy is None else self.copy.source


class HostSpec(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The spec of a Host. `max_concurrent_jobs`: how many jobs run there at once; None for any number. `drain`: whether
    nothing new begins there."""

    max_concurrent_jobs: int | None = None
    drain: bool = False


class RepositorySpec(Struct, frozen=True, rename="camel"):
    """The spec of a Repository. `url` may hold {host} and {namespace}.

    `compression` and what follows it are options of all of restic's jobs that use the repository. The history limits
    are for the controller, which deletes Restores beyond them.
    """

    url: str
    init: bool
    password_secret_ref: SecretKeyRef | None = None
    env_secret_ref: ObjectRef | None = None
    max_concurrent_jobs: int | None = None
    verify_within_days: int | None = None
    compression: Compression | None = None
    pack_size: str | None = None
    limit_upload_kib: int | None = field(name="limitUploadKiB", default=None)
    limit_download_kib: int | None = field(name="limitDownloadKiB", default=None)
    cleanup_cache: bool = False
    successful_restores_history_limit: int | None = None
    failed_restores_history_limit: int | None = None


class RestoreSpec(Struct, frozen=True, rename="camel"):
    """The spec of a Restore. `host`: None for the source host; `snapshot`: "latest", or the first digits of its id.

    `ttl_seconds_after_finished` is for the controller, which deletes the object so many seconds after it ended.
    """

    repository_ref: ObjectRef
    source_host: str
    target: str
    snapshot: str
    paths: tuple[str, ...]
    overwrite: bool
    setuid_and_devices: bool = False
    host: str | None = None
    before: datetime | None = None
    ttl_seconds_after_finished: int | None = None


class AlertSpec(Struct, frozen=True, rename="camel"):
    """The spec of an Alert. `events`: None for all; durations as `server.fleet.expected.duration` reads them."""

    secret_ref: ObjectRef
    enabled: bool
    scope: Literal["Namespace", "Fleet"]
    selector: LabelSelector
    host_selector: LabelSelector
    severity: Literal["info", "warning", "critical"]
    repeat_interval: str
    after: str
    send_resolved: bool
    events: tuple[str, ...] | None = None
